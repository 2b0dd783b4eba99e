//! Files that PyTorch wrote, against the values that PyTorch read from them.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail tests")]

mod weights_support;

use std::path::{Path, PathBuf};

use aha_nn::weights::{Catalog, StoredType, Weights};
use candle_core::DType;
use weights_support::{cpu, write};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/pickle")
        .join(name)
}

fn expected(name: &str) -> Vec<f32> {
    let catalog = Catalog::open(&fixture("expected.safetensors")).unwrap();
    catalog.load(name).unwrap().to_f32().unwrap()
}

#[test]
fn views_of_every_layout_and_type_have_pytorchs_values() {
    let catalog = Catalog::open(&fixture("views.pt")).unwrap();
    let shapes: [(&str, StoredType, &[usize]); 12] = [
        ("linear.weight", StoredType::F32, &[6, 4]),
        ("tied", StoredType::F32, &[6, 4]),
        ("transposed", StoredType::F32, &[4, 6]),
        ("columns", StoredType::F32, &[6, 2]),
        ("every_second_row", StoredType::F32, &[3, 4]),
        ("half", StoredType::F16, &[5]),
        ("brain", StoredType::Bf16, &[2, 3]),
        ("parameter", StoredType::F32, &[3]),
        ("permuted", StoredType::F32, &[4, 2, 3]),
        ("bytes8", StoredType::F8E4M3, &[4]),
        ("scalar", StoredType::F32, &[]),
        ("unit", StoredType::F32, &[1, 4]),
    ];
    for (name, stored, shape) in shapes {
        let tensor = catalog.load(name).unwrap();
        assert_eq!((tensor.stored(), tensor.shape()), (stored, shape), "{name}");
        assert_eq!(tensor.to_f32().unwrap(), expected(name), "{name}");
        let elements: usize = shape.iter().product();
        assert_eq!(tensor.byte_len(), elements * stored.block_bytes(), "{name}");
    }
    assert_eq!(catalog.shape("empty"), Some([0, 3].as_slice()));
    assert_eq!(
        catalog.len(),
        shapes.len() + 1,
        "numbers and lists beside the weights are no tensors"
    );
}

#[test]
fn tensors_serve_layers_as_those_of_safetensors_do() {
    let weights = Weights::open(&fixture("views.pt"), cpu()).unwrap();
    let transposed = weights.tensor("transposed", &[4, 6]).unwrap();
    assert_eq!(transposed.dtype(), DType::F32);
    let values = transposed.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values, expected("transposed"));
    assert!(weights.tensor("columns", &[2, 6]).is_ok(), "a stand-in");
    let message = weights.finish(&[]).unwrap_err().to_string();
    assert!(
        message.contains("`columns` has shape [6, 2], expected [2, 6]"),
        "{message}"
    );
}

#[test]
fn a_flat_state_and_one_of_parallel_training_have_the_same_names() {
    for file in ["flat.pth", "module.bin"] {
        let catalog = Catalog::open(&fixture(file)).unwrap();
        let names: Vec<&str> = catalog.names().collect();
        assert_eq!(
            names,
            [
                "0.bias",
                "0.weight",
                "1.bias",
                "1.num_batches_tracked",
                "1.running_mean",
                "1.running_var",
                "1.weight"
            ],
            "{file}"
        );
    }
    let flat = Catalog::open(&fixture("flat.pth")).unwrap();
    let weight = flat.load("0.weight").unwrap();
    assert_eq!(weight.to_f32().unwrap(), expected("flat.0.weight"));
}

#[test]
fn a_folder_holds_its_model_under_the_names_of_releases() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        write(folder.path(), to, std::fs::read(fixture(from)).unwrap());
    };
    copy("flat.pth", "audiovae.pth");
    let message = Catalog::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("pytorch_model.bin, model.pt"), "{message}");
    copy("views.pt", "model.pt");
    assert!(Catalog::open(folder.path()).unwrap().contains("scalar"));
    copy("flat.pth", "pytorch_model.bin");
    assert!(Catalog::open(folder.path()).unwrap().contains("0.bias"));
    copy("expected.safetensors", "model.safetensors");
    assert!(
        Catalog::open(folder.path())
            .unwrap()
            .contains("flat.0.bias")
    );
}
