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
        Activation::Gelu => f64::from(activation.of::<false>(x)),
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
fn misfits_are_refused() {
    let silu = Activation::Silu;
    assert!(silu.apply(&[0.0; 4], &mut [0.0; 3]).is_err());
    assert!(silu.apply_to_biased(&mut [0.0; 4], &[]).is_err());
    assert!(silu.apply_to_biased(&mut [0.0; 4], &[0.0; 3]).is_err());
}

/// Φ(x) = erfc(-x / √2) / 2, by the series for small and the continued fraction for large arguments.
fn normal_distribution(x: f64) -> f64 {
    let a = x.abs();
    let density = (-a * a / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let beyond = if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..200 {
            term *= a * a / f64::from(2 * n + 1);
            sum += term;
        }
        0.5 - density * sum
    } else {
        let fraction = (1..200).rev().fold(a, |below, n| a + f64::from(n) / below);
        density / fraction
    };
    if x < 0.0 { beyond } else { 1.0 - beyond }
}

#[test]
fn gelu_agrees_with_double_precision() {
    let x: Vec<f32> = (-90_000..=90_001)
        .map(|step| step as f32 / 10_000.0)
        .collect();
    for set in InstructionSet::available() {
        let mut out = vec![f32::NAN; x.len()];
        Activation::Gelu.apply_on(set, &x, &mut out).unwrap();
        for (&x, &out) in x.iter().zip(&out) {
            let want = f64::from(x) * normal_distribution(f64::from(x));
            let error = (f64::from(out) - want).abs();
            assert!(
                error <= 2.5e-7 * f64::from(x.abs()).max(0.1),
                "{x}: {out} {want}"
            );
            // The tail is small, and still right relative to its size.
            assert!(x > -8.0 || error <= 1e-5 * want.abs() + 1e-37, "{x}");
        }
    }
}

#[test]
fn gelu_meets_its_limits() {
    for set in InstructionSet::available() {
        let x = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            0.0,
            1e30,
            -1e30,
            -50.0,
            50.0,
            f32::NAN,
        ];
        let mut out = [7.0; 9];
        Activation::Gelu.apply_on(set, &x, &mut out).unwrap();
        assert!(out[0].is_nan() && out[8].is_nan());
        assert_eq!((out[1], out[4], out[7]), (f32::INFINITY, 1e30, 50.0));
        assert!(
            [out[2], out[3], out[5], out[6]]
                .iter()
                .all(|x| x.abs() < 1e-30)
        );
    }
}
