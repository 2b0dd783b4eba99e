//! GGUF files must answer exactly like the checkpoints they were converted from.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use aha_engine::EngineOptions;
use aha_nn::weights::{Placement, Weights};
use serde_json::Value;
use std::path::Path;
use support::{chat, engine, fixture, golden, greedy, run};

#[test]
fn a_converted_llama_answers_like_its_source() {
    // Biases, a head size of its own, shards, Llama 3's rope: everything that a converter folds or permutes.
    same_answers("llama/llama3", "llama", "smollm");
    same_answers("llama/smol", "llama", "smollm");
}

#[test]
fn a_converted_qwen3_answers_like_its_source() {
    same_answers("qwen3/sharded", "qwen3", "qwen2");
    same_answers("qwen3/untied-yarn", "qwen3", "qwen2");
}

#[test]
fn a_converted_minicpm_answers_like_its_source() {
    // muP's factors, both lists of longrope's divisors, a sentencepiece tokenizer, two end tokens.
    same_answers("minicpm4/tied-short", "minicpm", "default");
    same_answers("minicpm4/untied-long", "minicpm", "default");
}

#[test]
fn recurrent_models_answer_alike_from_the_converters_own_files() {
    // Made by llama.cpp's converter: value heads in another order, decay and norms in another form, a layer for
    // multi-token prediction at the end.
    compare("qwen3_5/untied-think", &fixture("gguf/qwen35.gguf"), true);
    compare("lfm2/lfm2", &fixture("gguf/lfm2.gguf"), true);
    let defaults = |path: &Path| support::load_text(path).defaults;
    let converted = defaults(&fixture("gguf/qwen35.gguf"));
    let source = defaults(&fixture("qwen3_5/untied-think"));
    assert_eq!(converted, source);
}

fn same_answers(name: &str, architecture: &str, pre: &str) {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("model.gguf");
    std::fs::write(&path, convert(&fixture(name), architecture, pre)).unwrap();
    compare(name, &path, architecture != "minicpm");
}

/// Holds a GGUF to the fixture that it was made of; `ordered` when its first end token is the fixture's.
fn compare(name: &str, path: &Path, ordered: bool) {
    let folder = fixture(name);
    let source = engine(&folder, EngineOptions::default());
    let converted = engine(path, EngineOptions::default());
    let ends = |engine: &aha_engine::Engine| engine.defaults().eos_token_ids.clone();
    let known = ends(&source);
    let end_of_text = source.processor().tokenizer().token_id("<|endoftext|>");
    assert!(
        ends(&converted)
            .iter()
            .all(|id| known.contains(id) || Some(*id) == end_of_text)
    );
    if ordered {
        assert_eq!(ends(&converted)[0], known[0], "{name}");
    } else {
        assert_eq!(ends(&converted).len(), known.len(), "{name}");
    }
    for text in [
        "the river 12345",
        "नमस्ते x\u{323}\u{307} 北京 🙂",
        "  two\r\n\n lines",
    ] {
        let ids = |engine: &aha_engine::Engine| engine.processor().prepare_text(text).unwrap();
        assert_eq!(ids(&source), ids(&converted), "{name}: {text:?}");
    }
    for case in golden(&folder)["cases"].as_array().unwrap() {
        let request = |engine: &aha_engine::Engine| {
            greedy(
                engine.processor().prepare(&chat(&case["request"])).unwrap(),
                12,
            )
        };
        let (expected, found) = (request(&source), request(&converted));
        assert_eq!(expected.prompt, found.prompt, "{name}: {}", case["name"]);
        let (expected, found) = (run(&source, expected), run(&converted, found));
        assert_eq!(expected.ids(), found.ids(), "{name}: {}", case["name"]);
        for (a, b) in expected.tokens.iter().zip(&found.tokens) {
            let gap = a.logprob.as_ref().unwrap().logprob - b.logprob.as_ref().unwrap().logprob;
            assert!(gap.abs() < 1e-4, "{name}: {}: {gap}", case["name"]);
        }
    }
}

/// A writer of GGUF version 3, as far as these tests need it.
#[derive(Default)]
struct Writer {
    metadata: Vec<u8>,
    keys: u64,
    infos: Vec<u8>,
    tensors: u64,
    data: Vec<u8>,
}

const UNSIGNED: u32 = 4;
const FLOAT: u32 = 6;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

impl Writer {
    fn key(&mut self, name: &str, kind: u32, value: &[u8]) {
        text(&mut self.metadata, name);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.keys += 1;
    }

    fn unsigned(&mut self, name: &str, value: &Value) {
        let value = u32::try_from(value.as_u64().unwrap()).unwrap();
        self.key(name, UNSIGNED, &value.to_le_bytes());
    }

    fn float(&mut self, name: &str, value: f64) {
        self.key(name, FLOAT, &(value as f32).to_le_bytes());
    }

    fn text(&mut self, name: &str, value: &str) {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        self.key(name, TEXT, &bytes);
    }

    fn array(&mut self, name: &str, kind: u32, items: Vec<Vec<u8>>) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((items.len() as u64).to_le_bytes());
        bytes.extend(items.concat());
        self.key(name, ARRAY, &bytes);
    }

    fn texts(&mut self, name: &str, items: &[String]) {
        let encoded = items.iter().map(|item| {
            let mut bytes = Vec::new();
            text(&mut bytes, item);
            bytes
        });
        self.array(name, TEXT, encoded.collect());
    }

    /// Dimensions are written fastest first.
    fn tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        text(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        for dimension in shape.iter().rev() {
            self.infos.extend((*dimension as u64).to_le_bytes());
        }
        self.infos.extend(0u32.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.tensors += 1;
    }

    fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.tensors.to_le_bytes());
        file.extend(self.keys.to_le_bytes());
        file.extend(self.metadata);
        file.extend(self.infos);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(self.data);
        file
    }
}

fn text(out: &mut Vec<u8>, value: &str) {
    out.extend((value.len() as u64).to_le_bytes());
    out.extend(value.as_bytes());
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// What llama.cpp's converter makes of a checkpoint folder.
fn convert(folder: &Path, architecture: &str, pre: &str) -> Vec<u8> {
    let config = json(&folder.join("config.json"));
    let mut file = Writer::default();
    file.text("general.architecture", architecture);
    hyper_parameters(&mut file, &config, architecture);
    tokenizer(&mut file, folder, &config, pre);
    tensors(&mut file, folder, &config, architecture);
    file.finish()
}

fn hyper_parameters(file: &mut Writer, config: &Value, architecture: &str) {
    let head_dim = config.get("head_dim").cloned().unwrap_or_else(|| {
        (config["hidden_size"].as_u64().unwrap() / config["num_attention_heads"].as_u64().unwrap())
            .into()
    });
    for (key, value) in [
        ("block_count", &config["num_hidden_layers"]),
        ("context_length", &config["max_position_embeddings"]),
        ("embedding_length", &config["hidden_size"]),
        ("feed_forward_length", &config["intermediate_size"]),
        ("attention.head_count", &config["num_attention_heads"]),
        ("attention.head_count_kv", &config["num_key_value_heads"]),
        ("attention.key_length", &head_dim),
        ("attention.value_length", &head_dim),
        ("vocab_size", &config["vocab_size"]),
    ] {
        file.unsigned(&format!("{architecture}.{key}"), value);
    }
    file.float(
        &format!("{architecture}.attention.layer_norm_rms_epsilon"),
        config["rms_norm_eps"].as_f64().unwrap(),
    );
    if let Some(theta) = config["rope_theta"].as_f64() {
        file.float(&format!("{architecture}.rope.freq_base"), theta);
    }
    if architecture == "minicpm" {
        let number = |key: &str| config[key].as_f64().unwrap();
        for (key, value) in [
            ("embedding_scale", number("scale_emb")),
            (
                "residual_scale",
                number("scale_depth") / number("num_hidden_layers").sqrt(),
            ),
            (
                "logit_scale",
                number("hidden_size") / number("dim_model_base"),
            ),
        ] {
            file.float(&format!("minicpm.{key}"), value);
        }
    }
    let scaling = &config["rope_scaling"];
    if scaling["rope_type"] == "yarn" {
        file.text(&format!("{architecture}.rope.scaling.type"), "yarn");
        file.float(
            &format!("{architecture}.rope.scaling.factor"),
            scaling["factor"].as_f64().unwrap(),
        );
        file.unsigned(
            &format!("{architecture}.rope.scaling.original_context_length"),
            &scaling["original_max_position_embeddings"],
        );
    }
    if scaling["rope_type"] == "longrope" {
        for (name, key) in [
            ("rope_factors_short.weight", "short_factor"),
            ("rope_factors_long.weight", "long_factor"),
        ] {
            let factors: Vec<f32> = serde_json::from_value(scaling[key].clone()).unwrap();
            file.tensor(name, &[factors.len()], &factors);
        }
        let original = &scaling["original_max_position_embeddings"];
        // Some converters write neither the kind nor the trained length where that is the whole context.
        if *original != config["max_position_embeddings"] {
            file.text(&format!("{architecture}.rope.scaling.type"), "longrope");
            file.unsigned(
                &format!("{architecture}.rope.scaling.original_context_length"),
                original,
            );
        }
    }
    if scaling["rope_type"] == "llama3" {
        let factors = llama3_factors(
            scaling,
            config["rope_theta"].as_f64().unwrap(),
            head_dim.as_u64().unwrap(),
        );
        file.tensor("rope_freqs.weight", &[factors.len()], &factors);
    }
}

/// Llama 3's scaling as divisors of the frequencies.
fn llama3_factors(scaling: &Value, theta: f64, head_dim: u64) -> Vec<f32> {
    let number = |key: &str| scaling[key].as_f64().unwrap();
    let (factor, low, high) = (
        number("factor"),
        number("low_freq_factor"),
        number("high_freq_factor"),
    );
    let original = number("original_max_position_embeddings");
    (0..head_dim / 2)
        .map(|i| {
            let wavelength =
                2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
            let divisor = if wavelength < original / high {
                1.0
            } else if wavelength > original / low {
                factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            };
            divisor as f32
        })
        .collect()
}

fn tokenizer(file: &mut Writer, folder: &Path, config: &Value, pre: &str) {
    let tokenizer = json(&folder.join("tokenizer.json"));
    let mut tokens: Vec<(usize, String, u32)> = Vec::new();
    let sentencepiece = tokenizer["model"]["byte_fallback"] == true;
    for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        let kind = if sentencepiece && token.starts_with("<0x") {
            6
        } else {
            1
        };
        tokens.push((id.as_u64().unwrap() as usize, token.clone(), kind));
    }
    for added in tokenizer["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap() as usize;
        tokens.retain(|(other, ..)| *other != id);
        let kind = match (&added["content"], &added["special"]) {
            (Value::String(text), _) if sentencepiece && text == "<unk>" => 2,
            (_, Value::Bool(true)) => 3,
            _ => 4,
        };
        tokens.push((id, added["content"].as_str().unwrap().to_owned(), kind));
    }
    // Converters fill the rows of the embedding that no token has.
    for id in tokens.len()..config["vocab_size"].as_u64().unwrap() as usize {
        tokens.push((id, format!("[PAD{id}]"), 5));
    }
    tokens.sort();
    let own = json(&folder.join("tokenizer_config.json"));
    let flag = u8::from(own["add_bos_token"] == true);
    file.key("tokenizer.ggml.add_bos_token", 7, &[flag]);
    let names: Vec<String> = tokens.iter().map(|(_, token, _)| token.clone()).collect();
    let id_of = |key: &str| names.iter().position(|name| own[key] == name.as_str());
    for (key, name) in [
        ("bos", "bos_token"),
        ("eos", "eos_token"),
        ("unknown", "unk_token"),
    ] {
        if let Some(id) = id_of(name) {
            file.unsigned(&format!("tokenizer.ggml.{key}_token_id"), &id.into());
        }
    }
    file.texts("tokenizer.ggml.tokens", &names);
    let kinds = tokens
        .iter()
        .map(|(.., kind)| kind.to_le_bytes().to_vec())
        .collect();
    file.array("tokenizer.ggml.token_type", 5, kinds);
    file.text(
        "tokenizer.chat_template",
        own["chat_template"].as_str().unwrap(),
    );
    if sentencepiece {
        // Pieces are scored by their rank.
        let scores = (0..names.len()).map(|id| (-(id as f32)).to_le_bytes().to_vec());
        file.array("tokenizer.ggml.scores", FLOAT, scores.collect());
        file.text("tokenizer.ggml.model", "llama");
        file.text("tokenizer.ggml.pre", pre);
        return;
    }
    let merges: Vec<String> = tokenizer["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| match merge {
            Value::String(text) => text.clone(),
            pair => format!(
                "{} {}",
                pair[0].as_str().unwrap(),
                pair[1].as_str().unwrap()
            ),
        })
        .collect();
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", pre);
    file.texts("tokenizer.ggml.merges", &merges);
}

fn tensors(file: &mut Writer, folder: &Path, config: &Value, architecture: &str) {
    let weights = Weights::open(folder, Placement::cpu()).unwrap();
    let heads = |key: &str| config[key].as_u64().unwrap() as usize;
    for name in weights.catalog().names() {
        let tensor = weights.catalog().load(name).unwrap();
        let mut values = tensor.to_f32().unwrap();
        let permuted = ["llama", "minicpm"].contains(&architecture);
        if permuted && name.contains("q_proj") {
            values = interleaved(&values, tensor.rows(), heads("num_attention_heads"));
        }
        if permuted && name.contains("k_proj") {
            values = interleaved(&values, tensor.rows(), heads("num_key_value_heads"));
        }
        file.tensor(&gguf_name(name), tensor.shape(), &values);
    }
}

/// Rows in the order of interleaved rotation: `[heads, 2, head_dim / 2]` becomes `[heads, head_dim / 2, 2]`.
fn interleaved(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (width, head_dim) = (values.len() / rows, rows / heads);
    (0..rows)
        .flat_map(|row| {
            let (head, within) = (row / head_dim, row % head_dim);
            let source = head * head_dim + (within % 2) * (head_dim / 2) + within / 2;
            values[source * width..(source + 1) * width].to_vec()
        })
        .collect()
}

fn gguf_name(name: &str) -> String {
    let mut name = name.replace("model.layers.", "blk.");
    for (from, to) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        name = name.replace(from, to);
    }
    name
}
