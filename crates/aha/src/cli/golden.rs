//! A golden set beside a checkpoint: recorded requests and what the reference implementation
//! answered, token by token. The numbers are compared in f32 on the CPU.

use super::failure::{Failure, Outcome};
use aha::{DeviceChoice, Dtype, EngineOptions, Event, Loader, TokenEvent};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// The file that holds a golden set.
const FILE: &str = "golden.json";
const CHAT: &str = "/v1/chat/completions";
/// The folder of media beside a golden set.
const MEDIA: &str = "media/";
/// Largest difference of log-probabilities where a case names none.
const TOLERANCE: f64 = 1e-3;
/// No golden set is larger.
const MAX_BYTES: u64 = 256 << 20;

#[derive(Debug, Deserialize)]
struct Golden {
    #[serde(default)]
    reference: Option<String>,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    endpoint: String,
    request: Value,
    #[serde(default)]
    tolerance: Tolerance,
    expect: Value,
}

#[derive(Debug, Default, Deserialize)]
struct Tolerance {
    logprob: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Expected {
    prompt_tokens: Option<usize>,
    #[serde(default)]
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
struct Step {
    id: u32,
    bytes: Option<Vec<u8>>,
    logprob: f64,
    /// The most probable tokens, best first.
    #[serde(default)]
    top: Vec<(u32, f64)>,
}

/// What became of a golden set.
#[derive(Debug, Serialize)]
pub(crate) struct GoldenReport {
    /// What computed the numbers.
    pub(crate) reference: Option<String>,
    /// Cases that hold.
    pub(crate) passed: usize,
    /// Cases that do not.
    pub(crate) failed: usize,
    /// Cases of other kinds, which are not compared.
    pub(crate) skipped: usize,
    /// The largest difference of a log-probability in all compared cases.
    pub(crate) worst_logprob_difference: Option<f64>,
    pub(crate) cases: Vec<CaseReport>,
}

#[derive(Debug, Serialize)]
pub(crate) struct CaseReport {
    pub(crate) name: String,
    pub(crate) state: CaseState,
    pub(crate) tokens: usize,
    pub(crate) logprob_difference: Option<f64>,
    /// Why it failed or was skipped.
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CaseState {
    Passed,
    Failed,
    Skipped,
}

/// How far a case agrees, up to where it first does not.
#[derive(Debug, Default)]
struct Agreement {
    tokens: usize,
    difference: Option<f64>,
    fault: Option<String>,
}

impl GoldenReport {
    /// Runs the golden set of the checkpoint in `folder`, if there is one.
    pub(crate) fn of(folder: &Path, loader: Loader) -> Outcome<Option<Self>> {
        let path = folder.join(FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let golden = read(&path)?;
        let options = EngineOptions {
            max_sequences: 1,
            ..EngineOptions::default()
        };
        // Without a case to run the model need not be loaded.
        let model = match golden.cases.iter().any(|case| case.obstacle().is_none()) {
            true => Some(
                loader
                    .device(DeviceChoice::Cpu)
                    .dtype(Dtype::F32)
                    .engine_options(options)
                    .build()?,
            ),
            false => None,
        };
        let mut report = Self {
            reference: golden.reference,
            passed: 0,
            failed: 0,
            skipped: 0,
            worst_logprob_difference: None,
            cases: Vec::new(),
        };
        for case in golden.cases {
            report.add(match (case.obstacle(), &model) {
                (None, Some(model)) => case.run(model.engine()?)?,
                (reason, _) => CaseReport {
                    reason,
                    name: case.name,
                    state: CaseState::Skipped,
                    tokens: 0,
                    logprob_difference: None,
                },
            });
        }
        Ok(Some(report))
    }

    fn add(&mut self, case: CaseReport) {
        match case.state {
            CaseState::Passed => self.passed += 1,
            CaseState::Failed => self.failed += 1,
            CaseState::Skipped => self.skipped += 1,
        }
        if let Some(difference) = case.logprob_difference {
            let worst = self.worst_logprob_difference.get_or_insert(difference);
            *worst = worst.max(difference);
        }
        self.cases.push(case);
    }

    /// Nothing differs.
    pub(crate) fn is_ok(&self) -> bool {
        self.failed == 0
    }
}

fn read(path: &Path) -> Outcome<Golden> {
    let wrong = |reason: String| {
        Failure::message(format!(
            "cannot read the golden set: {}: {reason}",
            path.display()
        ))
    };
    let size = fs::metadata(path)
        .map_err(|error| wrong(error.to_string()))?
        .len();
    if size > MAX_BYTES {
        return Err(wrong(format!(
            "{size} bytes are more than a golden set has"
        )));
    }
    let text = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))
}

/// Whether a request names files of the golden set, such as pictures.
fn holds_media(value: &Value) -> bool {
    match value {
        Value::String(text) => text.starts_with(MEDIA),
        Value::Array(values) => values.iter().any(holds_media),
        Value::Object(fields) => fields.values().any(holds_media),
        _ => false,
    }
}

impl Case {
    /// Why the case cannot be compared, if it cannot.
    fn obstacle(&self) -> Option<String> {
        if self.endpoint != CHAT {
            Some(format!("{} is not compared", self.endpoint))
        } else if holds_media(&self.request) {
            Some("media are not compared".to_owned())
        } else {
            None
        }
    }

    /// Only a golden set that cannot be read is an error; everything else is the case's result.
    fn run(self, engine: &aha::Engine) -> Outcome<CaseReport> {
        let expected: Expected = serde_json::from_value(self.expect).map_err(|error| {
            Failure::message(format!(
                "cannot read the golden set: case {}: {error}",
                self.name
            ))
        })?;
        let tolerance = self.tolerance.logprob.unwrap_or(TOLERANCE);
        let agreement = match generate(engine, &self.request) {
            Ok((prompt_tokens, tokens)) => expected.compare(prompt_tokens, &tokens, tolerance),
            Err(fault) => Agreement {
                fault: Some(fault),
                ..Agreement::default()
            },
        };
        Ok(CaseReport {
            name: self.name,
            state: match agreement.fault {
                None => CaseState::Passed,
                Some(_) => CaseState::Failed,
            },
            tokens: agreement.tokens,
            logprob_difference: agreement.difference,
            reason: agreement.fault,
        })
    }
}

/// The number of the prompt's tokens, and the answer's tokens with log-probabilities.
fn generate(engine: &aha::Engine, request: &Value) -> Result<(usize, Vec<TokenEvent>), String> {
    let body = request.to_string();
    let mut request = aha_server::chat_generation(engine, body.as_bytes())?;
    request.output.logprobs.get_or_insert(0);
    let mut generation = engine.submit(request).map_err(|error| error.to_string())?;
    let prompt_tokens = generation.prompt_tokens();
    let mut tokens = Vec::new();
    loop {
        match generation.blocking_next() {
            Some(Event::Token(token)) => tokens.push(token),
            Some(Event::Finished(_)) => return Ok((prompt_tokens, tokens)),
            Some(Event::Failed(error)) => return Err(error.to_string()),
            None => return Err("the answer ended without an end".to_owned()),
        }
    }
}

impl Expected {
    fn compare(&self, prompt_tokens: usize, tokens: &[TokenEvent], tolerance: f64) -> Agreement {
        let mut agreement = Agreement::default();
        agreement.fault = self
            .fault(prompt_tokens, tokens, tolerance, &mut agreement)
            .err();
        agreement
    }

    fn fault(
        &self,
        prompt_tokens: usize,
        tokens: &[TokenEvent],
        tolerance: f64,
        agreement: &mut Agreement,
    ) -> Result<(), String> {
        if let Some(expected) = self.prompt_tokens
            && expected != prompt_tokens
        {
            return Err(format!(
                "the prompt has {prompt_tokens} tokens, not {expected}"
            ));
        }
        for (index, step) in self.steps.iter().enumerate() {
            let found = tokens
                .get(index)
                .and_then(|token| Some((token, token.logprob.as_ref()?)));
            let Some((token, scored)) = found else {
                return Err(format!("{index} tokens came, not {}", self.steps.len()));
            };
            let same_bytes = step
                .bytes
                .as_ref()
                .is_none_or(|bytes| *bytes == scored.bytes);
            if token.token_id != step.id || !same_bytes {
                return Err(format!(
                    "token {index} is {}, not {}",
                    token.token_id, step.id
                ));
            }
            // The alternatives lie further down, where the same error weighs more.
            let pairs = std::iter::once((scored.logprob, step.logprob, tolerance)).chain(
                token
                    .top_logprobs
                    .iter()
                    .zip(&step.top)
                    .map(|(found, (_, expected))| (found.logprob, *expected, 2.0 * tolerance)),
            );
            for (found, expected, allowed) in pairs {
                let difference = (f64::from(found) - expected).abs();
                let worst = agreement.difference.get_or_insert(0.0);
                *worst = worst.max(difference);
                // Not a number is no agreement either.
                if difference.is_nan() || difference > allowed {
                    return Err(format!(
                        "token {index}: log-probability {found:.6}, not {expected:.6} (± {allowed})"
                    ));
                }
            }
            agreement.tokens += 1;
        }
        if tokens.len() > self.steps.len() && !self.steps.is_empty() {
            return Err(format!(
                "{} tokens came, not {}",
                tokens.len(),
                self.steps.len()
            ));
        }
        Ok(())
    }
}
