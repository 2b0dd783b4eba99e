//! Another program that measures the same tests in the same run: llama-bench, or what prints as it does.

use super::Test;
use crate::cli::failure::{Failure, Outcome};
use serde::Deserialize;
use std::process::{Command, Stdio};

/// Characters of the peer's own words that an error quotes.
const QUOTED: usize = 200;

/// The command and what it measured so far.
#[derive(Debug)]
pub(super) struct Peer {
    program: String,
    args: Vec<String>,
    results: Vec<PeerResult>,
    rounds: usize,
}

/// What llama-bench tells of a test.
#[derive(Debug, Deserialize)]
struct PeerResult {
    n_prompt: usize,
    n_gen: usize,
    /// Tokens that were there before the test.
    #[serde(default)]
    n_depth: usize,
    avg_ts: f64,
    /// Tokens a second of each repetition.
    #[serde(default)]
    samples_ts: Vec<f64>,
    #[serde(default)]
    build_commit: Option<String>,
    #[serde(default)]
    model_type: Option<String>,
    #[serde(default)]
    n_threads: Option<usize>,
}

/// What the command is to measure where it does not say so itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) prompt: &'a [usize],
    pub(super) generate: &'a [usize],
    pub(super) threads: usize,
}

impl Peer {
    /// Adds to `command` what it lacks. A run of it is one round: one repetition of each of its tests.
    pub(super) fn new(command: &str, wanted: Wanted<'_>) -> Outcome<Self> {
        let mut words = words(command)
            .ok_or_else(|| Failure::usage("--compare: a quotation mark is never closed"))?
            .into_iter();
        let Some(program) = words.next() else {
            return Err(Failure::usage(
                "--compare: a command is wanted, such as \"llama-bench -m model.gguf\"",
            ));
        };
        let mut args: Vec<String> = words.collect();
        let list = |numbers: &[usize]| {
            let texts: Vec<String> = numbers.iter().map(usize::to_string).collect();
            texts.join(",")
        };
        for (short, long, value) in [
            ("-p", "--n-prompt", list(wanted.prompt)),
            ("-n", "--n-gen", list(wanted.generate)),
            ("-t", "--threads", wanted.threads.to_string()),
            ("-r", "--repetitions", "1".to_owned()),
        ] {
            if !args.iter().any(|arg| arg == short || arg == long) {
                args.extend([short.to_owned(), value]);
            }
        }
        match args.iter().position(|arg| arg == "-o" || arg == "--output") {
            None => args.extend(["-o".to_owned(), "json".to_owned()]),
            Some(at) if args.get(at + 1).is_some_and(|format| format == "json") => {}
            Some(_) => {
                return Err(Failure::usage(
                    "--compare: the peer's results are read as json: leave its -o out",
                ));
            }
        }
        Ok(Self {
            program,
            args,
            results: Vec::new(),
            rounds: 0,
        })
    }

    /// Runs the command once.
    pub(super) fn measure(&mut self) -> Outcome {
        let program = &self.program;
        tracing::info!("peer: {program} {}", self.args.join(" "));
        let output = Command::new(program)
            .args(&self.args)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                Failure::message(format!(
                    "cannot run the peer: {program}: {error}; --compare takes the command as a shell would, with the \
                     program's path where it is not in PATH"
                ))
            })?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            let last = words.lines().rev().find(|line| !line.trim().is_empty());
            return Err(Failure::message(format!(
                "cannot compare: {program}: it failed ({}) and said: {}",
                output.status,
                quoted(last.unwrap_or("nothing"))
            )));
        }
        let results: Vec<PeerResult> =
            serde_json::from_slice(&output.stdout).map_err(|error| {
                let begin = String::from_utf8_lossy(&output.stdout);
                let line = begin.lines().find(|line| !line.trim().is_empty());
                Failure::message(format!(
                    "cannot compare: {program}: what it printed is not the JSON of llama-bench ({error}); it begins \
                     with: {}",
                    quoted(line.unwrap_or("nothing"))
                ))
            })?;
        self.results.extend(results);
        self.rounds += 1;
        Ok(())
    }

    /// Tokens a second that it reached in this test, a number a repetition. Requests at once are none of its tests.
    pub(super) fn samples(&self, test: Test) -> Vec<f64> {
        let (prompt, generated) = match test {
            Test::Prompt(tokens) => (tokens, 0),
            Test::Generate { tokens, batch: 1 } => (0, tokens),
            Test::Generate { .. } => return Vec::new(),
        };
        let same = |result: &&PeerResult| {
            (result.n_prompt, result.n_gen, result.n_depth) == (prompt, generated, 0)
        };
        let of = |result: &PeerResult| match result.samples_ts.as_slice() {
            [] => vec![result.avg_ts],
            samples => samples.to_vec(),
        };
        self.results.iter().filter(same).flat_map(of).collect()
    }

    /// Refuses a peer that measured something else.
    pub(super) fn check(&self, tests: &[Test]) -> Outcome {
        if tests.iter().any(|&test| !self.samples(test).is_empty()) {
            return Ok(());
        }
        let mut found: Vec<String> = self
            .results
            .iter()
            .map(|result| match (result.n_prompt, result.n_gen) {
                (prompt, 0) => format!("pp{prompt}"),
                (0, generated) => format!("tg{generated}"),
                (prompt, generated) => format!("pp{prompt}+tg{generated}"),
            })
            .collect();
        found.dedup();
        Err(Failure::message(format!(
            "cannot compare: {}: it measured {}, and nothing of that is among our tests; leave its -p and -n out",
            self.program,
            if found.is_empty() {
                "nothing".to_owned()
            } else {
                found.join(", ")
            }
        )))
    }

    /// The program and what it says about itself, in a line.
    pub(super) fn description(&self) -> String {
        let mut about = vec![match self.rounds {
            1 => "1 round".to_owned(),
            rounds => format!("{rounds} rounds"),
        }];
        if let Some(result) = self.results.first() {
            about.extend(result.model_type.clone());
            about.extend(result.n_threads.map(|threads| format!("{threads} threads")));
            about.extend(
                result
                    .build_commit
                    .as_ref()
                    .map(|commit| format!("build {commit}")),
            );
        }
        format!("{} ({})", self.program, about.join(", "))
    }
}

/// The beginning of the peer's words, without what a terminal would act upon.
fn quoted(text: &str) -> String {
    let text = text.trim();
    let short: String = text.chars().take(QUOTED).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{}{more}", short.escape_debug())
}

/// The words of a command; quotation marks of both kinds keep words together. None where one is never closed.
fn words(command: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut open) = (Vec::new(), None::<String>, None);
    for character in command.chars() {
        match (open, character) {
            (Some(mark), _) if character == mark => open = None,
            (None, '"' | '\'') => {
                open = Some(character);
                word.get_or_insert_default();
            }
            (None, _) if character.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    open.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(command: &str) -> Peer {
        let wanted = Wanted {
            prompt: &[512, 64],
            generate: &[0],
            threads: 2,
        };
        Peer::new(command, wanted).unwrap()
    }

    #[test]
    fn commands_are_taken_apart_as_a_shell_would() {
        let split = |text| words(text).unwrap();
        assert_eq!(
            split(" a  'b c' d\"e f\"g ''"),
            ["a", "b c", "de fg", ""].map(str::to_owned)
        );
        assert!(split(" ").is_empty());
        assert_eq!(words("a 'b"), None);
        // A backslash is a part of paths.
        assert_eq!(split("C:\\bin\\x"), ["C:\\bin\\x"]);
    }

    #[test]
    fn what_the_command_lacks_is_added_and_what_it_says_stays() {
        let added = peer("llama-bench -m a.gguf").args.join(" ");
        assert_eq!(added, "-m a.gguf -p 512,64 -n 0 -t 2 -r 1 -o json");
        let own = "-p 8 --n-gen 4 --threads 1 -r 5 -o json";
        assert_eq!(peer(&format!("x {own}")).args.join(" "), own);
    }

    #[test]
    fn results_are_found_by_their_sizes() {
        let mut peer = peer("x");
        peer.results = serde_json::from_str(
            r#"[{"n_prompt": 512, "n_gen": 0, "avg_ts": 7.0, "samples_ts": [6.0, 8.0]},
                {"n_prompt": 0, "n_gen": 16, "avg_ts": 2.5},
                {"n_prompt": 0, "n_gen": 16, "n_depth": 99, "avg_ts": 1.0}]"#,
        )
        .unwrap();
        let generate = |batch| Test::Generate { tokens: 16, batch };
        assert_eq!(peer.samples(Test::Prompt(512)), [6.0, 8.0]);
        assert_eq!(peer.samples(generate(1)), [2.5]);
        assert!(peer.samples(generate(4)).is_empty());
        assert!(peer.check(&[Test::Prompt(512)]).is_ok());
        assert!(peer.check(&[Test::Prompt(64), generate(4)]).is_err());
    }

    #[test]
    fn words_of_a_peer_are_quoted_in_one_line() {
        assert_eq!(quoted(" a\u{1b}[1m "), "a\\u{1b}[1m");
        assert_eq!(quoted(&"x".repeat(300)).chars().count(), QUOTED + 1);
    }
}
