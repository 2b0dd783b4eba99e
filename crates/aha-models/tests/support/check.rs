//! Comparisons with what the references gave.

use super::Answer;
use aha_engine::FinishReason;
use aha_nn::weights::{Placement, Weights};
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::path::Path;

/// Token ids of a golden prompt.
pub(crate) fn prompt_ids(expect: &Value) -> Vec<u32> {
    let ids = expect["prompt_ids"].as_array().unwrap().iter();
    ids.map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Tokens, log-probabilities and end of a greedy answer.
pub(crate) fn check_answer(answer: &Answer, case: &Value, name: &str) {
    let expect = &case["expect"];
    let steps = expect["steps"].as_array().unwrap();
    assert_eq!(answer.tokens.len(), steps.len(), "{name}");
    let tolerance = case["tolerance"]["logprob"].as_f64().unwrap();
    for (token, step) in answer.tokens.iter().zip(steps) {
        assert_eq!(
            u64::from(token.token_id),
            step["id"].as_u64().unwrap(),
            "{name}"
        );
        let logprob = token.logprob.as_ref().unwrap();
        let bytes: Vec<u8> = step["bytes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|byte| byte.as_u64().unwrap() as u8)
            .collect();
        assert_eq!(logprob.bytes, bytes, "{name}");
        let gap = (f64::from(logprob.logprob) - step["logprob"].as_f64().unwrap()).abs();
        assert!(gap <= tolerance, "{name}: log-probability differs by {gap}");
        for (top, want) in token
            .top_logprobs
            .iter()
            .zip(step["top"].as_array().unwrap())
        {
            let gap = (f64::from(top.logprob) - want[1].as_f64().unwrap()).abs();
            assert!(
                gap <= tolerance,
                "{name}: a top log-probability differs by {gap}"
            );
        }
    }
    let stopped = expect["finish_reason"] == "stop";
    assert_eq!(
        answer.finished.reason == FinishReason::Stop,
        stopped,
        "{name}"
    );
    assert_eq!(
        answer.finished.usage.completion_tokens,
        steps.len() + usize::from(stopped),
        "{name}"
    );
}

/// Tensors inside a reference's run.
pub(crate) struct Stages(Weights);

impl Stages {
    pub(crate) fn open(path: &Path) -> Self {
        Self(Weights::open(path, Placement::cpu()).unwrap())
    }

    /// The tensor in the type that it is stored in.
    pub(crate) fn get(&self, name: &str) -> Tensor {
        let found = self.find(name);
        found.unwrap_or_else(|| panic!("no stage {name}"))
    }

    /// The same for a stage that not every fixture keeps.
    pub(crate) fn find(&self, name: &str) -> Option<Tensor> {
        let stored = self.0.catalog().load(name)?;
        let dtype = stored.stored().dtype().unwrap();
        Some(stored.to_tensor(dtype, &Device::Cpu).unwrap())
    }
}

/// Compares relative to a value's own size or the usual one, whichever is larger.
pub(crate) fn close(got: &Tensor, want: &Tensor, tolerance: f32, what: &str) {
    let got: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
    let want: Vec<f32> = want.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(got.len(), want.len(), "{what}");
    // Sums cancel: the error of a small value is that of the large ones around it.
    let size = (want.iter().map(|value| value * value).sum::<f32>() / want.len() as f32).sqrt();
    let worst = got
        .iter()
        .zip(&want)
        .map(|(a, b)| (a - b).abs() / b.abs().max(size).max(1.0))
        .fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: differs by {worst}");
}
