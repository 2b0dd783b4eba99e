//! `aha embed`, `aha rerank`, and `aha run` on embedders and rerankers.

use super::support::{Home, fixture};
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

fn embedder() -> String {
    fixture("minilm/base")
}

fn reranker() -> String {
    fixture("qwen3_reranker/single")
}

/// The shape and the values of a NumPy file.
fn npy(path: &Path) -> (usize, usize, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let head = std::str::from_utf8(&bytes[10..end]).unwrap();
    let shape = head
        .split_once("'shape': (")
        .unwrap()
        .1
        .split_once(')')
        .unwrap()
        .0;
    let (rows, width) = shape.split_once(", ").unwrap();
    let values = bytes[end..].chunks(4);
    let values = values
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    (rows.parse().unwrap(), width.parse().unwrap(), values)
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn numbers(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn run_prints_vectors_of_embedders() {
    let home = Home::new();
    let run = |more: &[&str]| {
        let model = embedder();
        home.run(&[&["run", "-m", &model, "-i", "one text", "-i", "two"], more].concat())
    };
    let printed: Vec<Vec<f32>> = serde_json::from_str(&run(&[]).ok()).unwrap();
    assert_eq!((printed.len(), printed[0].len()), (2, 48));
    let norm: f32 = printed[0].iter().map(|x| x * x).sum();
    assert!((norm - 1.0).abs() < 1e-5);
    assert_eq!(run(&["-o", "x.npy"]).ok(), "");
    let (rows, width, values) = npy(&home.path().join("x.npy"));
    assert_eq!((rows, width), (2, 48));
    assert_eq!(values, printed.concat());
    assert!(run(&["-o", "x.txt"]).failed(2).contains(".npy"));
    assert!(run(&["--instruct", "find"]).failed(1).contains("instruct"));
}

#[test]
fn run_orders_documents_with_rerankers() {
    let home = Home::new();
    let model = reranker();
    let texts = ["What is gravity?", "A force.", "A river in France."];
    let mut args = vec!["run", "-m", &model, "--task", "rerank"];
    for text in &texts {
        args.extend(["-i", text]);
    }
    let table = home.run(&args).ok();
    let scores: Vec<f32> = table
        .lines()
        .map(|line| line[..6].parse().unwrap())
        .collect();
    assert_eq!(scores.len(), 2);
    assert!(scores[0] >= scores[1], "{table}");
    let message = home.run(&args[..7]).failed(2);
    assert!(message.contains("a query and documents"), "{message}");
    // Without the task, the checkpoint is a chat model as far as anybody knows.
    let message = home.run(&["rerank", "q", "x.txt", "-m", &model]).failed(1);
    assert!(message.contains("x.txt"), "{message}");
    std::fs::write(home.path().join("x.txt"), "a\n").unwrap();
    let message = home.run(&["rerank", "q", "x.txt", "-m", &model]).failed(1);
    assert!(
        message.contains("`chat`") && message.contains("`rerank`"),
        "{message}"
    );
}

#[test]
fn embed_writes_three_formats_out_of_three() {
    let home = Home::new();
    let at = |name: &str| home.path().join(name);
    let texts = ["one text", "", "three, \"quoted\""];
    std::fs::write(at("in.txt"), texts.join("\n") + "\n").unwrap();
    let json = texts.map(|text| serde_json::json!({"body": text}).to_string());
    std::fs::write(at("in.jsonl"), json.join("\n")).unwrap();
    std::fs::write(
        at("in.csv"),
        "id,body\n1,one text\n2,\n3,\"three, \"\"quoted\"\"\"\n",
    )
    .unwrap();
    let embed = |input: &str, output: &str, more: &[&str]| {
        let model = embedder();
        let ran = home.run(&[&["embed", input, "-m", &model, "-o", output], more].concat());
        assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{}", ran.err);
        assert!(ran.err.contains("3 vectors of 48 numbers"), "{}", ran.err);
        assert!(!at(&format!("{output}.journal")).exists());
    };
    embed("in.txt", "out.npy", &[]);
    let (rows, width, values) = npy(&at("out.npy"));
    assert_eq!((rows, width), (3, 48));
    embed("in.jsonl", "out.jsonl", &["--field", "body"]);
    for (index, line) in lines(&at("out.jsonl")).iter().enumerate() {
        assert_eq!(line["index"], index);
        assert_eq!(line["text"], texts[index]);
        assert_eq!(numbers(&line["embedding"]), values[index * 48..][..48]);
    }
    embed("in.csv", "out.parquet", &["--column", "body"]);
    let parquet = std::fs::read(at("out.parquet")).unwrap();
    assert!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));
    assert_eq!(
        parquet_values(&at("out.parquet")),
        (texts.map(str::to_owned).to_vec(), values)
    );
}

/// The columns of a Parquet file, read by the library's record reader.
fn parquet_values(path: &Path) -> (Vec<String>, Vec<f32>) {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::{ListAccessor, RowAccessor};
    let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
    let (mut texts, mut values) = (Vec::new(), Vec::new());
    for row in reader.get_row_iter(None).unwrap() {
        let row = row.unwrap();
        texts.push(row.get_string(0).unwrap().clone());
        let list = row.get_list(1).unwrap();
        values.extend((0..list.len()).map(|index| list.get_float(index).unwrap()));
    }
    (texts, values)
}

#[test]
fn a_killed_job_goes_on_where_it_was() {
    let home = Home::new();
    let at = |name: &str| home.path().join(name);
    let texts: Vec<String> = (0..6000).map(|n| format!("text {n} of many")).collect();
    std::fs::write(at("in.txt"), texts.join("\n")).unwrap();
    let model = embedder();
    let args = ["embed", "in.txt", "-m", &model, "-o", "out.npy"];
    let mut child = home
        .command(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let journal = at("out.npy.journal");
    let started = Instant::now();
    while std::fs::metadata(&journal).map_or(0, |file| file.len()) < 100_000 {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "nothing was written"
        );
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it could be killed"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(journal.exists() && !at("out.npy").exists());
    // Another job must not take these rows for its own.
    let other = home.run(&[&args[..], &["--truncate"]].concat()).failed(1);
    assert!(other.contains("--restart"), "{other}");
    let ran = home.run(&args);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("going on behind"), "{}", ran.err);
    assert!(!journal.exists());
    let (rows, _, resumed) = npy(&at("out.npy"));
    assert_eq!(rows, 6000);
    // Bit for bit what one run gives.
    let ran = home.run(&["embed", "in.txt", "-m", &model, "-o", "whole.npy"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(npy(&at("whole.npy")).2, resumed);
}

#[test]
fn rerank_prints_a_table_or_writes_all() {
    let home = Home::new();
    let at = |name: &str| home.path().join(name);
    std::fs::write(at("in.txt"), "A force.\nA river in France.\nno\n").unwrap();
    let model = reranker();
    let rerank = |more: &[&str]| {
        let args = [
            "rerank",
            "What is gravity?",
            "in.txt",
            "--weight-path",
            &model,
        ];
        home.run(&[&args[..], &["-m", "Qwen/Qwen3-Reranker-0.6B"], more].concat())
    };
    let table = rerank(&[]).ok();
    assert_eq!(table.lines().count(), 3);
    assert_eq!(
        rerank(&["-n", "1"]).ok(),
        table.lines().next().unwrap().to_owned() + "\n"
    );
    assert_eq!(rerank(&["-o", "out.jsonl"]).ok(), "");
    let found = lines(&at("out.jsonl"));
    for (line, row) in table.lines().zip(&found) {
        assert_eq!(
            line[..6],
            format!("{:.4}", row["relevance_score"].as_f64().unwrap())
        );
        let number: u64 = line[6..15]
            .trim()
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(row["index"], number - 1);
    }
    assert_eq!(found.len(), 3);
    assert!(rerank(&["-o", "out.csv"]).failed(2).contains(".jsonl"));
}

#[test]
fn models_of_other_tasks_say_so() {
    let home = Home::new();
    std::fs::write(home.path().join("in.txt"), "a\n").unwrap();
    let model = fixture("llama/smol");
    let message = home
        .run(&["embed", "in.txt", "-m", &model, "-o", "o.npy"])
        .failed(1);
    assert!(
        message.contains("`chat`") && message.contains("`embed`"),
        "{message}"
    );
    let message = home
        .run(&["run", "-m", &model, "--task", "embed", "-i", "a"])
        .failed(1);
    assert!(message.contains("it was asked for"), "{message}");
    let message = home.run(&["run", "--task", "embed", "-i", "a"]).failed(2);
    assert!(message.contains("--model"), "{message}");
    let message = home
        .run(&["run", "-m", &model, "--task", "sing", "-i", "a"])
        .failed(2);
    assert!(message.contains("chat, embed, rerank"), "{message}");
    let message = home.run(&["chat", "-m", &embedder()]).failed(1);
    assert!(message.contains("`embed`"), "{message}");
}
