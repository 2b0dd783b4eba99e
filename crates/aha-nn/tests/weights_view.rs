//! What layers see of safetensors checkpoints: values, conversions, and the report of what does not fit.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail tests"
)]

mod weights_support;

use std::sync::{Arc, Mutex};

use aha_nn::weights::{
    Catalog, NameMap, Placement, Precision, StoredType, Weights, WeightsError, safetensors,
};
use candle_core::{DType, Device};
use half::{bf16, f16};
use weights_support::*;

fn view(tensors: &[(&str, &[usize], &[f32])]) -> Weights {
    let catalog = safetensors::from_bytes("model.safetensors", f32_file(tensors)).unwrap();
    Weights::from_catalog(catalog, NameMap::identity(), cpu())
}

#[test]
fn a_single_file_gives_back_its_values() {
    let folder = tempfile::tempdir().unwrap();
    let values = [1.0f32, -2.0, 0.5, 4.0, 5.0, 6.0];
    let halves: Vec<u8> = values
        .iter()
        .flat_map(|&v| f16::from_f32(v).to_le_bytes())
        .collect();
    let brains: Vec<u8> = values
        .iter()
        .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
        .collect();
    let ids: Vec<u8> = [7i64, -1].iter().flat_map(|id| id.to_le_bytes()).collect();
    let file = safetensors::to_bytes([
        // Nine bytes of text in front leave the others at odd offsets.
        (
            "odd",
            StoredType::U8,
            &[3usize] as &[usize],
            &[1u8, 2, 3] as &[u8],
        ),
        ("layers.0.half", StoredType::F16, &[2, 3], &halves),
        ("layers.0.brain", StoredType::Bf16, &[3, 2], &brains),
        (
            "layers.0.single",
            StoredType::F32,
            &[6],
            &f32_bytes(&values),
        ),
        ("layers.0.scalar", StoredType::F32, &[], &f32_bytes(&[9.0])),
        ("layers.0.empty", StoredType::F32, &[0, 4], &[]),
        ("ids", StoredType::I64, &[2], &ids),
    ]);
    write(folder.path(), "model.safetensors", file);
    // A folder may hold other tensors beside the model's.
    write(
        folder.path(),
        "stages.safetensors",
        f32_file(&[("x", &[1], &[0.0])]),
    );

    let weights = Weights::open(folder.path(), cpu()).unwrap();
    let layer = weights.pp("layers").pp(0);
    assert_eq!(layer.prefix(), "layers.0");
    for (name, shape) in [
        ("half", vec![2, 3]),
        ("brain", vec![3, 2]),
        ("single", vec![6]),
    ] {
        let tensor = layer.tensor(name, &shape).unwrap();
        assert_eq!(
            (tensor.dtype(), tensor.dims()),
            (DType::F32, shape.as_slice())
        );
        assert_eq!(
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            values,
            "{name}"
        );
    }
    assert_eq!(
        layer
            .tensor("scalar", &[])
            .unwrap()
            .to_scalar::<f32>()
            .unwrap(),
        9.0
    );
    assert_eq!(layer.tensor("empty", &[0, 4]).unwrap().dims(), [0, 4]);

    let stored = layer.stored("brain", &[3, 2]).unwrap().unwrap();
    assert_eq!(
        (stored.stored(), stored.shape()),
        (StoredType::Bf16, [3, 2].as_slice())
    );
    assert_eq!(stored.bytes().unwrap().as_ref(), brains);
    assert!(!stored.rows_permuted());

    let ids = weights.stored("ids", &[2]).unwrap().unwrap();
    let ids = ids
        .to_tensor(DType::I64, &Device::Cpu)
        .unwrap()
        .to_vec1::<i64>()
        .unwrap();
    assert_eq!(ids, [7, -1]);
    assert!(matches!(
        weights.tensor("ids", &[2]),
        Err(WeightsError::Unconvertible { .. })
    ));
    weights.finish(&[]).unwrap();
}

#[test]
fn tensors_take_the_activation_type() {
    let placement = Placement {
        device: Device::Cpu,
        dtype: DType::BF16,
        weights: Precision::Stored,
    };
    let weights = view(&[("norm", &[2], &[1.0, 2.5])]).with_placement(placement);
    let norm = weights.tensor("norm", &[2]).unwrap();
    assert_eq!(
        norm.to_vec1::<bf16>().unwrap(),
        [bf16::from_f32(1.0), bf16::from_f32(2.5)]
    );
}

#[test]
fn shards_are_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    );
    write(folder.path(), first, f32_file(&[("a", &[2], &[1.0, 2.0])]));
    write(
        folder.path(),
        second,
        f32_file(&[("b", &[1], &[3.0]), ("not.in.the.index", &[1], &[4.0])]),
    );
    let text = index(&[("a", first), ("b", second)]);
    let path = write(folder.path(), "model.safetensors.index.json", text);
    for path in [folder.path(), &path] {
        let weights = Weights::open(path, cpu()).unwrap();
        assert_eq!(
            weights.tensor("a", &[2]).unwrap().to_vec1::<f32>().unwrap(),
            [1.0, 2.0]
        );
        assert_eq!(
            weights.tensor("b", &[1]).unwrap().to_vec1::<f32>().unwrap(),
            [3.0]
        );
        assert_eq!(weights.unexpected(&[]), ["not.in.the.index"]);
        weights.finish(&[]).unwrap();
    }
}

#[test]
fn the_error_lists_the_first_ten_and_counts_all() {
    let weights = view(&[("layers.0.weight", &[2, 3], &[0.0; 6])]);
    assert!(weights.contains("layers.0.weight") && !weights.contains("layers.1.weight"));
    assert!(!weights.has_problems());
    for layer in 0..25 {
        let layer = weights.pp("layers").pp(layer);
        let tensor = layer.tensor("weight", &[3, 2]).unwrap();
        assert_eq!(tensor.dims(), [3, 2]);
        assert_eq!(
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            [0.0; 6]
        );
        assert!(layer.stored("bias", &[3]).unwrap().is_none());
    }
    assert!(weights.has_problems());
    // What is there is no longer converted, but still checked.
    assert!(
        weights
            .stored("layers.0.weight", &[2, 3])
            .unwrap()
            .is_none()
    );

    let error = weights.finish(&[]).unwrap_err();
    let WeightsError::Mismatch(report) = &error else {
        panic!("{error}")
    };
    assert_eq!((report.total, report.first.len()), (50, 10));
    let message = error.to_string();
    for part in [
        "model.safetensors: 50 tensors do not fit",
        "`layers.0.weight` has shape [2, 3], expected [3, 2]",
        "`layers.0.bias` is missing, expected shape [3]",
        "`layers.4.bias` is missing",
        "and 40 more",
    ] {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
    assert!(!message.contains("layers.5"), "{message}");
}

#[test]
fn absurd_configurations_stop_early() {
    let weights = view(&[]);
    let error = weights
        .tensor("a", &[usize::MAX, 2])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`a`") && error.contains("config.json"),
        "{error}"
    );
    // As large as a shape can be, and still no memory.
    assert_eq!(
        weights.tensor("b", &[1 << 40, 1 << 20]).unwrap().dims(),
        [1 << 40, 1 << 20]
    );
    let stopped = (0..1_000_000_000).find_map(|layer| {
        let layer = weights.pp("layers").pp(layer);
        layer.tensor("weight", &[4]).err()
    });
    assert!(matches!(stopped, Some(WeightsError::Mismatch(_))));
}

#[test]
fn unexpected_tensors_are_those_nobody_read_or_ignored() {
    let weights = view(&[
        ("lm_head.weight", &[1], &[0.0]),
        ("model.norm.weight", &[1], &[0.0]),
        ("vision.a", &[1], &[0.0]),
        ("vision.b", &[1], &[0.0]),
        ("text.position_ids", &[1], &[0.0]),
        ("stray", &[1], &[0.0]),
    ]);
    weights.pp("model.norm").tensor("weight", &[1]).unwrap();
    let ignore = ["lm_head.weight", "vision.*", "*.position_ids"];
    assert_eq!(weights.unexpected(&ignore), ["stray"]);
    assert_eq!(weights.unexpected(&[]).len(), 5);
    weights.finish(&ignore).unwrap();
}

#[test]
fn progress_counts_each_tensor_once_and_ends_full() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let weights = view(&[
        ("a", &[2], &[0.0; 2]),
        ("b", &[1], &[0.0]),
        ("c", &[3], &[0.0; 3]),
    ])
    .on_progress(move |done, total| log.lock().unwrap().push((done, total)));
    weights.tensor("a", &[2]).unwrap();
    weights.tensor("a", &[2]).unwrap();
    weights.stored("b", &[1]).unwrap();
    weights.finish(&[]).unwrap();
    assert_eq!(
        *seen.lock().unwrap(),
        [(8, 24), (8, 24), (12, 24), (24, 24)]
    );
}

#[test]
fn the_main_type_is_that_of_most_bytes() {
    let file = safetensors::to_bytes([
        (
            "norm",
            StoredType::F32,
            &[2usize] as &[usize],
            &[0u8; 8] as &[u8],
        ),
        ("bias", StoredType::F32, &[2], &[0; 8]),
        ("matrix", StoredType::Bf16, &[4, 4], &[0; 32]),
    ]);
    let catalog: Catalog = safetensors::from_bytes("x", file).unwrap();
    assert_eq!(catalog.main_type(), Some(StoredType::Bf16));
    assert_eq!(catalog.total_bytes(), 48);
}

#[test]
fn errors_pass_through_the_tensor_library() {
    fn build(weights: &Weights) -> candle_core::Result<candle_core::Tensor> {
        Ok(weights.tensor("a", &[usize::MAX, 2])?)
    }
    let message = build(&view(&[])).unwrap_err().to_string();
    assert!(message.contains("tensor `a`"), "{message}");
}
