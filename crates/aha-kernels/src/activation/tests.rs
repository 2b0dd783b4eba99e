//! Tests of the activation functions.

use super::*;
use crate::matmul::tests::values;

const ALL: [Activation; 6] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Silu,
    Activation::Relu,
    Activation::Sigmoid,
];

fn available() -> impl Iterator<Item = InstructionSet> {
    InstructionSet::available()
}

/// In double precision; the exact GELU has tests of its own, and the portable body stands for it.
fn wanted(activation: Activation, x: f32) -> f64 {
    let wide = f64::from(x);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::Gelu => f64::from(activation.of(x)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            wide / 2.0 * (1.0 + inner.tanh())
        }
        Activation::QuickGelu => wide * sigmoid(1.702 * wide),
        Activation::Silu => wide * sigmoid(wide),
        Activation::Relu => wide.max(0.0),
        Activation::Sigmoid => sigmoid(wide),
    }
}

#[test]
fn they_agree_with_double_precision() {
    let x: Vec<f32> = (-90_000..=90_001)
        .map(|step| step as f32 / 8_000.0)
        .collect();
    for activation in ALL {
        for set in available() {
            let mut out = vec![f32::NAN; x.len()];
            activation.apply_on(set, &x, &mut out).unwrap();
            for (&x, &out) in x.iter().zip(&out) {
                let want = wanted(activation, x);
                let error = (f64::from(out) - want).abs();
                let allowed = 3e-7 * f64::from(x.abs()).max(0.5);
                assert!(error <= allowed, "{activation:?} {set:?} {x}: {out} {want}");
            }
        }
    }
}

#[test]
fn a_bias_goes_first_and_every_row_has_the_same_bits_alone() {
    for (rows, size) in [(0, 5), (3, 1), (7, 8), (300, 33), (70, 1024)] {
        let (x, bias) = (values(rows * size, 1), values(size, 2));
        for (activation, set) in ALL
            .into_iter()
            .flat_map(|a| available().map(move |s| (a, s)))
        {
            let mut sum: Vec<f32> = x.clone();
            crate::add_bias(&mut sum, &bias).unwrap();
            let mut want = vec![f32::NAN; x.len()];
            activation.apply_on(set, &sum, &mut want).unwrap();
            let mut got = x.clone();
            activation.apply_to_biased_on(set, &mut got, &bias).unwrap();
            assert_eq!(got, want, "{activation:?} {set:?}");
            for (row, want) in sum.chunks(size).zip(want.chunks(size)) {
                let mut alone = vec![0.0; size];
                activation.apply_on(set, row, &mut alone).unwrap();
                assert_eq!(alone, want);
            }
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so_and_large_numbers_meet_their_limits() {
    let x = [
        f32::NAN,
        1e30,
        -1e30,
        f32::INFINITY,
        200.0,
        -200.0,
        0.0,
        3.0,
        f32::NAN,
    ];
    for (activation, set) in ALL
        .into_iter()
        .flat_map(|a| available().map(move |s| (a, s)))
    {
        let mut out = [7.0; 9];
        activation.apply_on(set, &x, &mut out).unwrap();
        assert!(out[0].is_nan() && out[8].is_nan(), "{activation:?} {set:?}");
        let high = |x: f32| {
            if activation == Activation::Sigmoid {
                1.0
            } else {
                x
            }
        };
        assert_eq!(out[1], high(1e30), "{activation:?} {set:?}");
        assert_eq!((out[3], out[4]), (high(f32::INFINITY), high(200.0)));
        assert!(
            out[2].abs() < 1e-30 && out[5].abs() < 1e-30,
            "{activation:?} {set:?}"
        );
        let zero = if activation == Activation::Sigmoid {
            0.5
        } else {
            0.0
        };
        assert_eq!(out[6], zero);
    }
}

#[test]
fn sums_are_taken_row_by_row() {
    for rows in [1, 3, 9000] {
        let (x, bias, other) = (values(rows * 9, 1), values(9, 2), values(rows * 9, 3));
        let mut out = x.clone();
        add_bias_and(&mut out, &bias, &other).unwrap();
        for (index, out) in out.iter().enumerate() {
            assert_eq!(*out, other[index] + (x[index] + bias[index % 9]));
        }
        let mut out = x.clone();
        add(&mut out, &other).unwrap();
        for (index, out) in out.iter().enumerate() {
            assert_eq!(*out, x[index] + other[index]);
        }
    }
}

#[test]
fn misfits_are_refused() {
    let silu = Activation::Silu;
    assert!(silu.apply(&[0.0; 4], &mut [0.0; 3]).is_err());
    assert!(silu.apply_to_biased(&mut [0.0; 4], &[]).is_err());
    assert!(silu.apply_to_biased(&mut [0.0; 4], &[0.0; 3]).is_err());
    assert!(add_bias_and(&mut [0.0; 4], &[0.0; 2], &[0.0; 3]).is_err());
    assert!(add_bias_and(&mut [0.0; 4], &[], &[0.0; 4]).is_err());
    assert!(add(&mut [0.0; 4], &[0.0; 3]).is_err());
}
