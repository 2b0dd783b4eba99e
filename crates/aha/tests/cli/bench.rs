//! `aha bench`: what it measures, and beside whom.

use crate::support::{Home, fixture};
use serde_json::{Value, json};

#[test]
fn a_bench_measures_what_was_asked() {
    let home = Home::new();
    let model = fixture("qwen3/untied-yarn");
    let args = [
        "bench", "-m", &model, "-p", "8,16", "-n", "4", "--batch", "1,2", "-r", "2",
    ];
    let text = home.run(&[&args[..], &["-o", "json"]].concat()).ok();
    let results: Value = serde_json::from_str(&text).unwrap();
    let results = results.as_array().unwrap();
    let tests: Vec<_> = results
        .iter()
        .map(|result| result["test"].as_str().unwrap())
        .collect();
    assert_eq!(tests, ["pp8", "pp16", "tg4", "tg4 x2"]);
    for result in results {
        let samples = result["samples"].as_array().unwrap();
        let mean = samples
            .iter()
            .map(|sample| sample.as_f64().unwrap())
            .sum::<f64>()
            / 2.0;
        assert_eq!(samples.len(), 2);
        assert!((result["tokens_per_second"].as_f64().unwrap() / mean - 1.0).abs() < 1e-9);
        let generates = result["test"].as_str().unwrap().starts_with("tg");
        assert_eq!(result["bandwidth_share"].is_f64(), generates);
        assert!(result["arithmetic_share"].as_f64().unwrap() > 0.0);
        let bound = result["bound"].as_str().unwrap();
        assert!(bound == "arithmetic" || (bound == "bandwidth" && generates));
        assert!(result["ratio"].is_null() && result["peer_samples"] == json!([]));
    }
    let table = home.run(&args).ok();
    assert!(
        table.starts_with("| model ")
            && table.contains("Memory bandwidth:")
            && table.contains("Multiply-adds:")
            && table.contains("| % of bound | bound")
            && !table.contains("peer"),
        "{table}"
    );
    let error = home
        .run(&[
            "bench",
            "-m",
            &fixture("llama/smol"),
            "-p",
            "20000",
            "-n",
            "0",
        ])
        .failed(1);
    assert!(error.starts_with("error: cannot measure: "), "{error}");
}

#[cfg(unix)]
mod peers {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A program that notes how it was called and prints `output`.
    fn peer(home: &Home, output: &str, status: i32) -> String {
        let path = home.path().join("llama bench");
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> calls\ncat <<'END'\n{output}\nEND\necho 'out of luck' >&2\nexit {status}\n"
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        format!("'{}' -m 'a model.gguf'", path.display())
    }

    const RESULTS: &str = r#"[
        {"build_commit": "abc1234", "model_type": "qwen3 0.6B BF16", "n_threads": 1,
         "n_prompt": 8, "n_gen": 0, "n_depth": 0, "avg_ts": 4.0, "stddev_ts": 0.0, "samples_ts": [4.0]},
        {"n_prompt": 0, "n_gen": 4, "n_depth": 0, "avg_ts": 2.0, "stddev_ts": 0.0, "samples_ts": [2.0]}
    ]"#;

    fn bench(model: &str, command: &str) -> Vec<String> {
        let args = [
            "bench",
            "-m",
            model,
            "-p",
            "8",
            "-n",
            "4",
            "--batch",
            "1,2",
            "-r",
            "3",
            "--compare",
            command,
        ];
        args.map(str::to_owned).to_vec()
    }

    fn run(home: &Home, args: &[String], more: &[&str]) -> crate::support::Ran {
        let args: Vec<&str> = args
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied())
            .collect();
        home.run(&args)
    }

    #[test]
    fn a_peer_measures_in_turn_with_us() {
        let home = Home::new();
        let args = bench(&fixture("llama/smol"), &peer(&home, RESULTS, 0));
        let text = run(&home, &args, &["-o", "json"]).ok();
        let results: Value = serde_json::from_str(&text).unwrap();
        let [prompt, one, two] = results.as_array().unwrap().as_slice() else {
            unreachable!("{text}");
        };
        for (result, rate) in [(prompt, 4.0), (one, 2.0)] {
            assert_eq!(result["peer_samples"], json!([rate, rate, rate]));
            assert_eq!(result["peer_tokens_per_second"], json!(rate));
            let ratio = result["tokens_per_second"].as_f64().unwrap() / rate;
            assert!((result["ratio"].as_f64().unwrap() / ratio - 1.0).abs() < 1e-9);
        }
        assert!(
            two["ratio"].is_null(),
            "no peer generates for two at once: {two}"
        );
        let calls = std::fs::read_to_string(home.path().join("calls")).unwrap();
        let call = "-m a model.gguf -p 8 -n 4 -t 1 -r 1 -o json\n";
        assert_eq!(calls, call.repeat(3));

        let table = run(&home, &args, &[]).ok();
        assert!(
            table.contains(" peer t/s |") && table.contains("| 4.00 ± 0.00 |"),
            "{table}"
        );
        let about =
            "llama bench (3 rounds, qwen3 0.6B BF16, 1 threads, build abc1234), in turn with ours.";
        assert!(table.contains(about), "{table}");
    }

    #[test]
    fn a_peer_that_cannot_be_compared_is_refused_in_a_line() {
        let home = Home::new();
        let model = fixture("llama/smol");
        let fails = |output: &str, status, message: &str| {
            let args = bench(&model, &peer(&home, output, status));
            let error = run(&home, &args, &[]).failed(1);
            assert!(
                error.contains(message) && error.lines().count() == 1,
                "{error}"
            );
        };
        fails(
            RESULTS,
            3,
            "it failed (exit status: 3) and said: out of luck",
        );
        fails("| model | size |", 0, "is not the JSON of llama-bench");
        fails("| model | size |", 0, "it begins with: | model | size |");
        fails("[]", 0, "it measured nothing");
        let other = r#"[{"n_prompt": 99, "n_gen": 0, "avg_ts": 1.0}]"#;
        fails(
            other,
            0,
            "it measured pp99, and nothing of that is among our tests",
        );
        let args = bench(&model, "./no-such-bench -m model.gguf");
        let error = run(&home, &args, &[]).failed(1);
        assert!(
            error.starts_with("error: cannot run the peer: ./no-such-bench: "),
            "{error}"
        );
    }

    #[test]
    fn commands_that_cannot_be_meant_are_wrong_usage() {
        let home = Home::new();
        for (command, message) in [
            ("", "a command is wanted"),
            ("llama-bench 'x", "a quotation mark is never closed"),
            ("llama-bench -o md", "leave its -o out"),
        ] {
            let args = bench(&fixture("llama/smol"), command);
            let error = run(&home, &args, &[]).failed(2);
            assert!(error.contains(message), "{error}");
        }
    }
}
