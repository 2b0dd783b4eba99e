//! Embedders and rerankers against their reference implementations, and what must not change an answer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use aha_engine::embedding::PreparedInput;
use aha_engine::{
    EmbeddingEngine, EmbeddingInput, EmbeddingOptions, EngineError, EngineOptions, LoadedModel,
    PooledBatch, RerankEngine, Service, Task, Truncate,
};
use aha_models::{Checkpoint, LoadError, LoadOptions, minilm, qwen3_embedding, qwen3_reranker};
use aha_nn::ragged::SequenceBounds;
use aha_nn::weights::{Placement, Weights};
use candle_core::Tensor;
use serde_json::Value;
use std::path::Path;
use support::{f32_options, fixture, fixtures, golden};

fn options(task: Task) -> LoadOptions {
    LoadOptions {
        task: Some(task),
        ..f32_options()
    }
}

fn service(path: &Path, load: &LoadOptions, max_batch_tokens: usize) -> Service {
    let options = EngineOptions {
        max_batch_tokens,
        ..EngineOptions::default()
    };
    Service::start(aha_models::load(path, load).unwrap(), options).unwrap()
}

fn embedder(path: &Path) -> EmbeddingEngine {
    match service(path, &f32_options(), 512) {
        Service::Embed(engine) => engine,
        other => panic!("{other:?}"),
    }
}

fn reranker(path: &Path) -> RerankEngine {
    match service(path, &options(Task::Rerank), 512) {
        Service::Rerank(engine) => engine,
        other => panic!("{other:?}"),
    }
}

fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        list => list
            .as_array()
            .unwrap()
            .iter()
            .map(|text| text.as_str().unwrap().to_owned())
            .collect(),
    }
}

fn ids(value: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn texts(value: &Value) -> Vec<EmbeddingInput> {
    strings(value)
        .into_iter()
        .map(EmbeddingInput::Text)
        .collect()
}

fn embedding_options(request: &Value) -> EmbeddingOptions {
    let text = |key: &str| request[key].as_str().map(str::to_owned);
    EmbeddingOptions {
        prompt_name: text("prompt_name"),
        instruct: text("instruct"),
        truncate: Truncate::Release,
        dimensions: request["dimensions"].as_u64().map(|d| d as usize),
    }
}

fn token_ids(prepared: Vec<PreparedInput>) -> Vec<Vec<u32>> {
    prepared.into_iter().map(|input| input.token_ids).collect()
}

fn embed(engine: &EmbeddingEngine, sequences: Vec<Vec<u32>>) -> Vec<Vec<f32>> {
    let pending = engine.submit(sequences, None).unwrap();
    pending.blocking_wait().unwrap().rows
}

/// Every case of a golden file: token ids are the reference's, vectors close to it.
fn check_embeddings(engine: &EmbeddingEngine, cases: &Value, truncate: Truncate, origin: &str) {
    for case in cases.as_array().unwrap() {
        let name = format!("{origin} {}", case["name"]);
        let (request, expect) = (&case["request"], &case["expect"]);
        let options = EmbeddingOptions {
            truncate,
            ..embedding_options(request)
        };
        let prepared = engine.prepare(&texts(&request["input"]), &options, "input");
        let sequences = token_ids(prepared.unwrap());
        assert_eq!(sequences, ids(&expect["prompt_ids"]), "{name}");
        let pending = engine.submit(sequences, options.dimensions).unwrap();
        let found = pending.blocking_wait().unwrap().rows;
        let wanted: Vec<Vec<f32>> = serde_json::from_value(expect["embeddings"].clone()).unwrap();
        assert_eq!(found.len(), wanted.len(), "{name}");
        for (found, wanted) in found.iter().zip(&wanted) {
            assert_eq!(found.len(), wanted.len(), "{name}");
            for (a, b) in found.iter().zip(wanted) {
                assert!((a - b).abs() < 1e-5, "{name}: {a} is not {b}");
            }
        }
    }
}

#[test]
fn vectors_equal_the_reference() {
    for folder in fixtures(&["minilm", "qwen3_embedding"]) {
        let engine = embedder(&folder);
        check_embeddings(
            &engine,
            &golden(&folder)["cases"],
            Truncate::Release,
            &folder.display().to_string(),
        );
    }
}

#[test]
fn gguf_files_embed_like_their_sources() {
    // The format has no place for the shorter limit that MiniLM's side files name.
    for (file, source, truncate) in [
        (
            "minilm/gguf/prefixed.gguf",
            "minilm/prefixed",
            Truncate::To(24),
        ),
        (
            "qwen3_embedding/gguf/sharded.gguf",
            "qwen3_embedding/sharded",
            Truncate::Release,
        ),
    ] {
        let engine = embedder(&fixture(file));
        let cases = &golden(&fixture(source))["cases"];
        check_embeddings(&engine, cases, truncate, file);
    }
}

#[test]
fn scores_equal_the_reference() {
    let mut cases: Vec<_> = fixtures(&["qwen3_reranker"])
        .into_iter()
        .map(|folder| (folder.clone(), folder))
        .collect();
    cases.push((
        fixture("qwen3_reranker/gguf/single.gguf"),
        fixture("qwen3_reranker/single"),
    ));
    for (path, folder) in cases {
        let engine = reranker(&path);
        for case in golden(&folder)["cases"].as_array().unwrap() {
            let name = format!("{} {}", path.display(), case["name"]);
            let (request, expect) = (&case["request"], &case["expect"]);
            let query = request["query"].as_str().unwrap();
            let sequences: Vec<Vec<u32>> = strings(&request["documents"])
                .iter()
                .map(|document| {
                    let prepared = engine.processor().prepare(
                        query,
                        document,
                        request["instruct"].as_str(),
                        engine.context_length(),
                    );
                    prepared.unwrap().token_ids
                })
                .collect();
            assert_eq!(sequences, ids(&expect["prompt_ids"]), "{name}");
            let found = engine.submit(sequences).unwrap().blocking_wait().unwrap();
            let wanted: Vec<f32> = serde_json::from_value(expect["scores"].clone()).unwrap();
            assert_eq!(found.rows.len(), wanted.len(), "{name}");
            for (found, wanted) in found.rows.iter().zip(&wanted) {
                assert!((found[0] - wanted).abs() < 1e-5, "{name}: {found:?}");
            }
        }
    }
}

#[test]
fn logits_of_yes_and_no_equal_the_reference() {
    for folder in fixtures(&["qwen3_reranker"]) {
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let tokenizer = aha_models::text::tokenizer(&checkpoint).unwrap();
        let id = |text: &str| tokenizer.token_id(text).unwrap();
        let model =
            qwen3_reranker::Qwen3Reranker::load(&checkpoint, &f32_options(), id("yes"), id("no"));
        let model = model.unwrap();
        for case in golden(&folder)["cases"].as_array().unwrap() {
            let sequences = ids(&case["expect"]["prompt_ids"]);
            let logits = model
                .logits(&batch(&sequences, &[sequences.len()]))
                .unwrap();
            let wanted: Vec<Vec<f32>> =
                serde_json::from_value(case["expect"]["logits_no_yes"].clone()).unwrap();
            for (found, wanted) in logits.to_vec2::<f32>().unwrap().iter().zip(&wanted) {
                for (a, b) in found.iter().zip(wanted) {
                    assert!((a - b).abs() < 1e-4, "{}: {a} is not {b}", case["name"]);
                }
            }
        }
    }
}

fn batch<'a>(sequences: &'a [Vec<u32>], requests: &[usize]) -> PooledBatch<'a> {
    let mut start = 0;
    PooledBatch {
        sequences: sequences.iter().map(Vec::as_slice).collect(),
        requests: requests
            .iter()
            .map(|len| {
                start += len;
                start - len..start
            })
            .collect(),
    }
}

/// The first input of the golden file and its hidden states.
fn stages(folder: &Path) -> (Vec<u32>, impl Fn(usize) -> Tensor) {
    let weights = Weights::open(&folder.join("stages.safetensors"), Placement::cpu()).unwrap();
    let load = move |name: &str| {
        let shape = weights.shape(name).unwrap().to_vec();
        weights.tensor(name, &shape).unwrap().squeeze(0).unwrap()
    };
    let ids = ids(&golden(folder)["cases"][0]["expect"]["prompt_ids"]).remove(0);
    (ids, move |index| load(&format!("hidden.{index}")))
}

fn close(found: &Tensor, wanted: &Tensor, what: &str) {
    let worst = (found - wanted).unwrap().abs().unwrap();
    let worst = worst.flatten_all().unwrap().max(0).unwrap();
    let worst = worst.to_scalar::<f32>().unwrap();
    assert!(worst < 1e-4, "{what}: {worst}");
}

#[test]
fn hidden_states_of_bert_equal_the_reference_layer_by_layer() {
    let folder = fixture("minilm/base");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let bert = minilm::encoder(&checkpoint, &f32_options()).unwrap();
    let (ids, stage) = stages(&folder);
    let bounds = SequenceBounds::from_lengths([ids.len()]).unwrap();
    let mut index = 0;
    bert.hidden_states(&ids, &bounds, |hidden| {
        close(hidden, &stage(index), &format!("hidden.{index}"));
        index += 1;
    })
    .unwrap();
    assert_eq!(index, 3);
}

#[test]
fn the_last_hidden_state_of_decoders_equals_the_reference() {
    let embedding = fixture("qwen3_embedding/sharded");
    let checkpoint = Checkpoint::open(&embedding).unwrap();
    let decoder = qwen3_embedding::decoder(&checkpoint, &f32_options()).unwrap();
    let (ids, stage) = stages(&embedding);
    let last = stage(2).get(ids.len() - 1).unwrap();
    let sequences = [ids];
    let found = aha_models::pass::last_hidden(&decoder, &batch(&sequences, &[1])).unwrap();
    close(&found.get(0).unwrap(), &last, "last token");
}

/// Sequences of many lengths, some of which begin alike.
fn mixed(vocab: u32) -> Vec<Vec<u32>> {
    let token = |n: usize| 5 + (n * 7919 % (vocab as usize - 5)) as u32;
    [1, 3, 40, 17, 2, 64, 33, 16, 63]
        .into_iter()
        .enumerate()
        .map(|(index, len)| {
            let own = |n: usize| {
                if n < 12 {
                    token(n)
                } else {
                    token(n + 100 * index)
                }
            };
            (0..len).map(own).collect()
        })
        .collect()
}

#[test]
fn company_order_and_cut_change_no_bit() {
    let bits = |rows: &[Vec<f32>]| -> Vec<Vec<u32>> {
        rows.iter()
            .map(|row| row.iter().map(|value| value.to_bits()).collect())
            .collect()
    };
    let run = |service: &Service, sequences: Vec<Vec<u32>>| -> Vec<Vec<u32>> {
        let output = match service {
            Service::Embed(engine) => engine.submit(sequences, None).unwrap().blocking_wait(),
            Service::Rerank(engine) => engine.submit(sequences).unwrap().blocking_wait(),
            other => panic!("{other:?}"),
        };
        bits(&output.unwrap().rows)
    };
    for (name, task) in [
        ("minilm/base", Task::Embed),
        ("qwen3_embedding/single", Task::Embed),
        ("qwen3_reranker/single", Task::Rerank),
    ] {
        let path = fixture(name);
        let sequences = mixed(400);
        let whole = service(&path, &options(task), 1000);
        let together = run(&whole, sequences.clone());
        for (sequence, row) in sequences.iter().zip(&together) {
            assert_eq!(
                run(&whole, vec![sequence.clone()]),
                std::slice::from_ref(row),
                "{name}"
            );
        }
        let mut reversed = sequences.clone();
        reversed.reverse();
        let mut backwards = run(&whole, reversed);
        backwards.reverse();
        assert_eq!(backwards, together, "{name}");
        // Batches of about one sequence, and of a few.
        for tokens in [1, 20] {
            let cut = service(&path, &options(task), tokens);
            assert_eq!(run(&cut, sequences.clone()), together, "{name} {tokens}");
        }
    }
}

#[test]
fn a_thousand_inputs_and_their_cancellation_leave_nothing() {
    let engine = embedder(&fixture("minilm/base"));
    let one = mixed(400).remove(3);
    let alone = embed(&engine, vec![one.clone()]).remove(0);
    let all = embed(&engine, vec![one.clone(); 1000]);
    assert!(all.iter().all(|row| *row == alone));
    drop(engine.submit(vec![one.clone(); 100_000], None).unwrap());
    let again = embed(&engine, vec![one]);
    assert_eq!(again, [alone]);
    for _ in 0..1000 {
        let status = engine.status();
        if (status.running, status.waiting) == (0, 0) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("{:?}", engine.status());
}

fn message<T: std::fmt::Debug>(result: Result<T, EngineError>) -> String {
    match result.unwrap_err() {
        EngineError::InvalidRequest { param, message } => {
            format!("{}: {message}", param.unwrap_or_default())
        }
        other => panic!("{other}"),
    }
}

#[test]
fn inputs_are_checked_and_cut_as_asked() {
    let qwen = embedder(&fixture("qwen3_embedding/sharded"));
    let text = |text: &str| vec![EmbeddingInput::Text(text.to_owned())];
    let plain = EmbeddingOptions::default();
    // The empty text is its end token, as in the reference.
    let end = token_ids(qwen.prepare(&text(""), &plain, "input").unwrap()).remove(0);
    assert_eq!(end.len(), 1);
    assert_eq!(embed(&qwen, vec![end.clone()])[0].len(), 64);

    let to = |truncate| EmbeddingOptions {
        truncate,
        ..EmbeddingOptions::default()
    };
    let words = text("what is the capital of China and where does it lie");
    let whole = token_ids(qwen.prepare(&words, &plain, "input").unwrap()).remove(0);
    let cut = qwen.prepare(&words, &to(Truncate::To(5)), "input").unwrap();
    assert!(cut[0].truncated);
    assert_eq!(cut[0].token_ids, [&whole[..4], &end].concat());
    let none = qwen.prepare(&words, &to(Truncate::To(1)), "input");
    assert!(
        message(none).contains("no room"),
        "the end token needs a place"
    );

    let long = vec![EmbeddingInput::Tokens(vec![3; 32_769])];
    let refused = message(qwen.prepare(&long, &plain, "input"));
    assert!(
        refused.starts_with("input: ") && refused.contains("32768"),
        "{refused}"
    );
    let cut = qwen
        .prepare(&long, &to(Truncate::ToLimit), "input")
        .unwrap();
    assert_eq!(cut[0].token_ids.len(), 32_768);

    // MiniLM's release cuts by itself; it does not when asked not to.
    let minilm = embedder(&fixture("minilm/base"));
    let long = text(&"long ".repeat(100));
    let cut = minilm.prepare(&long, &plain, "input").unwrap();
    assert_eq!((cut[0].token_ids.len(), cut[0].truncated), (32, true));
    assert_eq!(
        cut[0].token_ids[31],
        minilm.processor().tokenizer().token_id("[SEP]").unwrap()
    );
    let refused = message(minilm.prepare(&long, &to(Truncate::Never), "input"));
    assert!(refused.contains("32"), "{refused}");

    let several = [
        EmbeddingInput::Tokens(vec![1]),
        EmbeddingInput::Tokens(vec![]),
    ];
    assert!(message(qwen.prepare(&several, &plain, "input")).starts_with("input[1]"));
    // Rows of the embedding may be fewer than tokens of the vocabulary.
    let beyond = [EmbeddingInput::Tokens(vec![1, 10_000])];
    assert!(message(qwen.prepare(&beyond, &plain, "input")).contains("10000"));

    let unknown = EmbeddingOptions {
        prompt_name: Some("nobody".to_owned()),
        ..EmbeddingOptions::default()
    };
    let refused = message(qwen.prepare(&words, &unknown, "input"));
    assert!(refused.contains("query"), "{refused}");
    let instruct = EmbeddingOptions {
        instruct: Some("find".to_owned()),
        ..EmbeddingOptions::default()
    };
    assert!(message(minilm.prepare(&words, &instruct, "input")).starts_with("instruct"));
    for (engine, dimensions) in [(&qwen, 0), (&qwen, 65), (&minilm, 20)] {
        let shorter = EmbeddingOptions {
            dimensions: Some(dimensions),
            ..EmbeddingOptions::default()
        };
        assert!(message(engine.prepare(&words, &shorter, "input")).starts_with("dimensions"));
    }
}

#[test]
fn long_documents_are_cut_and_long_queries_refused() {
    let engine = reranker(&fixture("qwen3_reranker/single"));
    let prepare = |query: &str, document: &str, limit: usize| {
        engine.processor().prepare(query, document, None, limit)
    };
    let whole = prepare("gravity?", "A force.", 8192).unwrap();
    assert!(!whole.truncated);
    let cut = prepare("gravity?", &"A force. ".repeat(9000), 8192).unwrap();
    assert_eq!((cut.token_ids.len(), cut.truncated), (8192, true));
    // What stands around the pair stays.
    let same = |a: &[u32], b: &[u32]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let (mut a, mut b) = (whole.token_ids.clone(), cut.token_ids.clone());
    assert!(same(&a, &b) > 40);
    a.reverse();
    b.reverse();
    assert!(same(&a, &b) >= 5);
    assert!(message(prepare(&"gravity ".repeat(9000), "A force.", 8192)).starts_with("query"));
}

#[test]
fn the_task_comes_from_files_names_or_the_caller() {
    let task = |path: &Path, task: Option<Task>, name: Option<&str>| {
        let options = LoadOptions {
            task,
            name: name.map(str::to_owned),
            ..f32_options()
        };
        aha_models::load(path, &options).map(|model: LoadedModel| model.task())
    };
    let (embedding, reranker) = (
        fixture("qwen3_embedding/single"),
        fixture("qwen3_reranker/single"),
    );
    assert_eq!(task(&embedding, None, None).unwrap(), Task::Embed);
    // The side files say more than a name.
    assert_eq!(
        task(&embedding, None, Some("Qwen/Qwen3-8B")).unwrap(),
        Task::Embed
    );
    assert_eq!(task(&reranker, None, None).unwrap(), Task::Chat);
    for name in [
        "Qwen/Qwen3-Reranker-0.6B",
        "me/legal-qwen3-reranker",
        "qwen3-reranker-4b",
    ] {
        assert_eq!(task(&reranker, None, Some(name)).unwrap(), Task::Rerank);
    }
    assert_eq!(
        task(&reranker, Some(Task::Rerank), Some("x")).unwrap(),
        Task::Rerank
    );
    assert_eq!(
        task(&reranker, Some(Task::Chat), Some("Qwen/Qwen3-Reranker-4B")).unwrap(),
        Task::Chat
    );
    assert_eq!(
        task(&fixture("qwen3_reranker/gguf/single.gguf"), None, None).unwrap(),
        Task::Rerank
    );
    assert_eq!(
        task(&fixture("minilm/base"), None, None).unwrap(),
        Task::Embed
    );
    for (path, wanted) in [("minilm/base", Task::Chat), ("llama/smol", Task::Embed)] {
        let error = task(&fixture(path), Some(wanted), None).unwrap_err();
        assert!(matches!(error, LoadError::Task { .. }), "{error}");
    }
}

#[test]
fn old_and_prefixed_names_of_tensors_are_known() {
    let source = fixture("minilm/base");
    let home = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, home.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    std::fs::create_dir(home.path().join("1_Pooling")).unwrap();
    std::fs::copy(
        source.join("1_Pooling/config.json"),
        home.path().join("1_Pooling/config.json"),
    )
    .unwrap();
    // The header is JSON in front of the values: the length of the names changes, the values do not move.
    let path = home.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
    let renamed = header
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta");
    let mut file = (renamed.len() as u64).to_le_bytes().to_vec();
    file.extend(renamed.as_bytes());
    file.extend(&bytes[8 + length..]);
    std::fs::write(&path, file).unwrap();
    let engine = embedder(home.path());
    let cases = &golden(&source)["cases"];
    check_embeddings(&engine, cases, Truncate::Release, "gamma and beta");
}
