//! What layers see of GGUF files: metadata, names, quantised values, and rows back in order.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail tests"
)]

mod weights_support;

use std::sync::Arc;

use aha_nn::weights::gguf::{GgufFile, Value};
use aha_nn::weights::{NameMap, StoredType, Weights};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::f16;
use weights_support::*;

fn read(file: &Gguf) -> GgufFile {
    GgufFile::from_bytes("model.gguf".as_ref(), file.bytes()).unwrap()
}

#[test]
fn metadata_of_every_type_in_both_versions() {
    for version in [2, 3] {
        let mut file = Gguf::default()
            .text("general.architecture", "qwen3")
            .pair("u8", 0, [200])
            .pair("i8", 1, [0xff])
            .pair("u16", 2, 60_000u16.to_le_bytes())
            .pair("i16", 3, (-3i16).to_le_bytes())
            .u32("u32", 4_000_000_000)
            .pair("i32", 5, 7i32.to_le_bytes())
            .pair("f32", 6, 0.5f32.to_le_bytes())
            .pair("bool", 7, [1])
            .pair("u64", 10, u64::MAX.to_le_bytes())
            .pair("i64", 11, i64::MIN.to_le_bytes())
            .pair("f64", 12, 1e-300f64.to_le_bytes())
            .array("texts", 8, 2, &[string("Ġthe"), string(b"\xe4")].concat())
            .array("types", 5, 2, &[1, 0, 0, 0, 3, 0, 0, 0])
            .array("bytes", 0, 3, &[0, 1, 255])
            .array("scores", 6, 2, &f32_bytes(&[-1.0, 2.0]))
            .array("flags", 7, 2, &[0, 1])
            .array("none", 8, 0, &[]);
        file.version = version;
        let metadata = read(&file).metadata;
        assert_eq!(
            metadata.text("general.architecture").unwrap(),
            Some("qwen3")
        );
        assert_eq!(metadata.unsigned("u8").unwrap(), Some(200));
        assert_eq!(metadata.get("i8"), Some(&Value::Signed(-1)));
        assert_eq!(metadata.unsigned("u16").unwrap(), Some(60_000));
        assert_eq!(metadata.get("i16"), Some(&Value::Signed(-3)));
        assert_eq!(metadata.unsigned("u32").unwrap(), Some(4_000_000_000));
        assert_eq!(metadata.unsigned("i32").unwrap(), Some(7));
        assert_eq!(metadata.float("f32").unwrap(), Some(0.5));
        assert_eq!(metadata.boolean("bool").unwrap(), Some(true));
        assert_eq!(metadata.unsigned("u64").unwrap(), Some(u64::MAX));
        assert_eq!(metadata.get("i64"), Some(&Value::Signed(i64::MIN)));
        assert_eq!(metadata.float("f64").unwrap(), Some(1e-300));
        assert_eq!(
            metadata.texts("texts").unwrap().unwrap(),
            ["Ġthe", "\u{fffd}"]
        );
        assert_eq!(metadata.integers("types").unwrap().unwrap(), [1, 3]);
        assert_eq!(metadata.integers("bytes").unwrap().unwrap(), [0, 1, 255]);
        assert_eq!(metadata.floats("scores").unwrap().unwrap(), [-1.0, 2.0]);
        assert_eq!(
            metadata.get("flags"),
            Some(&Value::Booleans(vec![false, true]))
        );
        assert_eq!(metadata.texts("none").unwrap().unwrap().len(), 0);
        assert_eq!(metadata.text("absent").unwrap(), None);
        assert_eq!(metadata.keys().count(), 18);
    }
}

/// One Q8_0 block: a scale and 32 signed bytes.
fn q8_0(scale: f32, values: impl Fn(usize) -> i8) -> Vec<u8> {
    let mut block = f16::from_f32(scale).to_le_bytes().to_vec();
    block.extend((0..32).map(|i| values(i).to_le_bytes()[0]));
    block
}

#[test]
fn tensors_of_several_types_become_f32() {
    // Q4_1: x = scale * nibble + minimum, low nibbles first.
    let mut q4_1 = [f16::from_f32(0.25), f16::from_f32(-1.0)]
        .map(f16::to_le_bytes)
        .concat();
    q4_1.extend((0..16u8).map(|i| i | ((15 - i) << 4)));
    let q8_0: Vec<u8> = [q8_0(0.5, |i| i as i8 - 16), q8_0(2.0, |i| -(i as i8))].concat();
    let halves: Vec<u8> = [1.0f32, -0.5]
        .iter()
        .flat_map(|&v| f16::from_f32(v).to_le_bytes())
        .collect();
    for (version, alignment) in [(2, 32), (3, 32), (3, 8), (3, 256)] {
        let mut file = Gguf::default();
        (file.version, file.alignment) = (version, alignment);
        if alignment != 32 {
            file = file.u32("general.alignment", alignment as u32);
        }
        let file = read(
            &file
                .tensor(
                    "single",
                    &[3, 2],
                    F32,
                    &f32_bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
                )
                .tensor("half", &[2], F16, &halves)
                .tensor("eight", &[32, 2], Q8_0, &q8_0)
                .tensor("four", &[32], Q4_1, &q4_1),
        );
        let single = file.tensor("single").unwrap();
        assert_eq!(
            (single.stored, single.shape.as_slice()),
            (StoredType::F32, [2, 3].as_slice())
        );
        assert_eq!(single.to_f32().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(file.tensor("half").unwrap().to_f32().unwrap(), [1.0, -0.5]);
        let eight = file.tensor("eight").unwrap();
        assert_eq!(
            (eight.stored, eight.shape.as_slice()),
            (StoredType::Q8_0, [2, 32].as_slice())
        );
        let wanted: Vec<f32> = (0..32)
            .map(|i| 0.5 * (i - 16) as f32)
            .chain((0..32).map(|i| -2.0 * i as f32))
            .collect();
        assert_eq!(eight.to_f32().unwrap(), wanted);
        let wanted: Vec<f32> = (0..16)
            .map(|i| 0.25 * i as f32 - 1.0)
            .chain((0..16).map(|i| 0.25 * (15 - i) as f32 - 1.0))
            .collect();
        assert_eq!(file.tensor("four").unwrap().to_f32().unwrap(), wanted);
        assert!(file.tensor("five").is_none());
    }
}

/// Every block format, against the quantiser of the tensor library, at any alignment in memory.
#[test]
fn every_quantised_type_is_close_to_what_was_quantised() {
    let formats = [
        (StoredType::Q4_0, GgmlDType::Q4_0, 0.13),
        (StoredType::Q4_1, GgmlDType::Q4_1, 0.1),
        (StoredType::Q5_0, GgmlDType::Q5_0, 0.07),
        (StoredType::Q5_1, GgmlDType::Q5_1, 0.05),
        (StoredType::Q8_0, GgmlDType::Q8_0, 0.01),
        (StoredType::Q2K, GgmlDType::Q2K, 0.4),
        (StoredType::Q3K, GgmlDType::Q3K, 0.25),
        (StoredType::Q4K, GgmlDType::Q4K, 0.1),
        (StoredType::Q5K, GgmlDType::Q5K, 0.05),
        (StoredType::Q6K, GgmlDType::Q6K, 0.05),
        (StoredType::Q8K, GgmlDType::Q8K, 0.01),
    ];
    let values: Vec<f32> = (0..2 * 512).map(|i| (i as f32 * 0.37).sin()).collect();
    let source = Tensor::from_slice(&values, (2, 512), &Device::Cpu).unwrap();
    for (stored, ggml, tolerance) in formats {
        let quantized = QTensor::quantize(&source, ggml).unwrap();
        for shift in 0..4 {
            let mut shifted = vec![0; shift];
            shifted.extend_from_slice(&quantized.data().unwrap());
            let tensor = aha_nn::weights::StoredTensor {
                name: "t".to_owned(),
                stored,
                shape: vec![2, 512],
                bytes: &shifted[shift..],
            };
            for (value, wanted) in tensor.to_f32().unwrap().iter().zip(&values) {
                assert!(
                    (value - wanted).abs() < tolerance,
                    "{stored}: {value} for {wanted}"
                );
            }
        }
    }
}

const HEADS: usize = 3;
const KV_HEADS: usize = 1;
const HEAD_DIM: usize = 8;
const HIDDEN: usize = 32;

/// Rows as converters of Llama models write them: `[heads, 2, D/2]` becomes `[heads, D/2, 2]`.
fn interleaved(rows: &Tensor, heads: usize) -> Vec<f32> {
    let width = rows.elem_count() / (heads * HEAD_DIM);
    rows.reshape((heads, 2, HEAD_DIM / 2, width))
        .unwrap()
        .transpose(1, 2)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn quantized(values: Vec<f32>) -> Vec<u8> {
    let rows = values.len() / HIDDEN;
    let tensor = Tensor::from_vec(values, (rows, HIDDEN), &Device::Cpu).unwrap();
    QTensor::quantize(&tensor, GgmlDType::Q8_0)
        .unwrap()
        .data()
        .unwrap()
        .into_owned()
}

#[test]
fn llama_files_give_rows_in_half_split_order() {
    let rows = HEADS * HEAD_DIM;
    // Values that Q8_0 holds exactly: each row its own multiple of a full-scale pattern.
    let q = Tensor::from_vec(
        (0..rows * HIDDEN)
            .map(|i| (i / HIDDEN + 1) as f32 * if i % 2 == 0 { 127.0 } else { -127.0 })
            .collect(),
        (rows, HIDDEN),
        &Device::Cpu,
    )
    .unwrap();
    let k = q.narrow(0, 0, KV_HEADS * HEAD_DIM).unwrap();
    let bias = Tensor::arange(0f32, rows as f32, &Device::Cpu).unwrap();
    let (h, q_rows) = (HIDDEN as u64, rows as u64);
    let k_rows = (KV_HEADS * HEAD_DIM) as u64;
    let folder = tempfile::tempdir().unwrap();
    let file = Gguf::default()
        .text("general.architecture", "llama")
        .u32("llama.attention.head_count", HEADS as u32)
        .u32("llama.attention.head_count_kv", KV_HEADS as u32)
        .tensor(
            "blk.0.attn_q.weight",
            &[h, q_rows],
            Q8_0,
            &quantized(interleaved(&q, HEADS)),
        )
        .tensor(
            "blk.0.attn_q.bias",
            &[q_rows],
            F32,
            &f32_bytes(&interleaved(&bias, HEADS)),
        )
        .tensor(
            "blk.0.attn_k.weight",
            &[h, k_rows],
            F32,
            &f32_bytes(&interleaved(&k, KV_HEADS)),
        )
        .tensor(
            "blk.0.attn_v.bias",
            &[q_rows],
            F32,
            &f32_bytes(&bias.to_vec1().unwrap()),
        );
    let path = write(folder.path(), "llama.gguf", file.bytes());
    for path in [folder.path(), &path] {
        let weights = Weights::open(path, cpu()).unwrap();
        let attention = weights.pp("model.layers.0.self_attn");
        let loaded = attention.tensor("q_proj.weight", &[rows, HIDDEN]).unwrap();
        assert_eq!(
            loaded.to_vec2::<f32>().unwrap(),
            q.to_vec2::<f32>().unwrap()
        );
        let loaded = attention.tensor("q_proj.bias", &[rows]).unwrap();
        assert_eq!(
            loaded.to_vec1::<f32>().unwrap(),
            bias.to_vec1::<f32>().unwrap()
        );
        let loaded = attention
            .tensor("k_proj.weight", &[KV_HEADS * HEAD_DIM, HIDDEN])
            .unwrap();
        assert_eq!(
            loaded.to_vec2::<f32>().unwrap(),
            k.to_vec2::<f32>().unwrap()
        );
        let loaded = attention.tensor("v_proj.bias", &[rows]).unwrap();
        assert_eq!(
            loaded.to_vec1::<f32>().unwrap(),
            bias.to_vec1::<f32>().unwrap()
        );

        // Quantised rows move as they are.
        let stored = attention
            .stored("q_proj.weight", &[rows, HIDDEN])
            .unwrap()
            .unwrap();
        assert!(stored.rows_permuted() && stored.stored() == StoredType::Q8_0);
        let wanted = quantized(q.flatten_all().unwrap().to_vec1().unwrap());
        assert_eq!(stored.bytes().unwrap().as_ref(), wanted);
        weights.finish(&[]).unwrap();
    }
}

#[test]
fn the_heads_of_a_permuted_architecture_are_found_under_its_own_name() {
    let bias = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
    let file = read(
        &Gguf::default()
            .text("general.architecture", "minicpm")
            .u32("minicpm.attention.head_count", 2)
            .u32("minicpm.attention.head_count_kv", 1)
            .tensor("blk.1.attn_q.bias", &[8], F32, &f32_bytes(&bias))
            .tensor("blk.1.attn_k.bias", &[4], F32, &f32_bytes(&bias[..4])),
    );
    let names = NameMap::for_gguf(&file.metadata).unwrap();
    let weights = Weights::from_gguf(Arc::new(file), names, cpu());
    let loaded = |name: &str, rows| {
        let name = format!("model.layers.1.self_attn.{name}.bias");
        weights
            .tensor(&name, &[rows])
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
    };
    assert_eq!(
        loaded("q_proj", 8),
        [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
    );
    assert_eq!(loaded("k_proj", 4), [0.0, 2.0, 1.0, 3.0]);
}

#[test]
fn other_architectures_keep_their_rows() {
    let bias = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
    let file = read(
        &Gguf::default()
            .text("general.architecture", "qwen3")
            .tensor("blk.1.attn_q.bias", &[8], F32, &f32_bytes(&bias)),
    );
    let names = NameMap::for_gguf(&file.metadata).unwrap();
    let weights = Weights::from_gguf(Arc::new(file), names, cpu());
    let loaded = weights
        .tensor("model.layers.1.self_attn.q_proj.bias", &[8])
        .unwrap();
    assert_eq!(loaded.to_vec1::<f32>().unwrap(), bias);
}

#[test]
fn missing_tensors_are_reported_under_both_names() {
    let file = Arc::new(read(&Gguf::default().tensor(
        "output_norm.weight",
        &[4],
        F32,
        &[0; 16],
    )));
    let weights = Weights::from_gguf(file, NameMap::decoder(), cpu());
    weights.tensor("model.norm.weight", &[5]).unwrap();
    weights.tensor("lm_head.weight", &[2, 5]).unwrap();
    let message = weights.finish(&[]).unwrap_err().to_string();
    for part in [
        "`model.norm.weight` (`output_norm.weight` in the file) has shape [4], expected [5]",
        "`lm_head.weight` (`output.weight` in the file) is missing, expected shape [2, 5]",
    ] {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}

#[test]
fn dimensions_of_one_may_be_left_out() {
    let file = read(&Gguf::default().tensor("conv.weight", &[3, 2], F32, &f32_bytes(&[0.5; 6])));
    let weights = Weights::from_gguf(Arc::new(file), NameMap::identity(), cpu());
    assert_eq!(
        weights.tensor("conv.weight", &[2, 1, 3]).unwrap().dims(),
        [2, 1, 3]
    );
    weights.finish(&[]).unwrap();
    weights.tensor("conv.weight", &[3, 1, 2]).unwrap();
    assert!(weights.has_problems());
}
