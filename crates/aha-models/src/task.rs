//! What a checkpoint is for, where its architecture leaves that open: chat models, embedders and rerankers of one
//! release family often call themselves alike.

use crate::checkpoint::{Checkpoint, Format, LoadOptions};
use crate::error::LoadError;
use crate::registry::Family;
use crate::releases;
use crate::sentence::SentenceTransformer;
use aha_engine::Task;

/// A task, and what speaks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The task.
    pub task: Task,
    /// Why, in words for the log.
    pub reason: String,
}

/// The family of a checkpoint, and why among several it is this one.
pub(crate) type Choice = (&'static Family, Option<String>);

/// The family among `candidates` (those that know the checkpoint's architecture) whose task is the checkpoint's.
///
/// In this order: what the caller asks for, the checkpoint's own side files, the name that the user gave, the name
/// inside the checkpoint; without any of these the first candidate.
pub(crate) fn choose(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    candidates: &[&'static Family],
) -> Result<Option<Choice>, LoadError> {
    let Some(&first) = candidates.first() else {
        return Ok(None);
    };
    let found = match options.task {
        Some(task) => Some(Evidence {
            task,
            reason: "it was asked for".to_owned(),
        }),
        None => evidence(checkpoint, options)?,
    };
    let several = candidates.len() > 1;
    let Some(evidence) = found else {
        let reason = "nothing says that the checkpoint is for another".to_owned();
        return Ok(Some((first, several.then_some(reason))));
    };
    match candidates
        .iter()
        .find(|family| family.task == evidence.task)
    {
        Some(&family) => Ok(Some((family, several.then_some(evidence.reason)))),
        None => {
            let mut possible: Vec<&str> =
                candidates.iter().map(|family| family.task.name()).collect();
            possible.dedup();
            Err(LoadError::Task {
                path: checkpoint.path().to_owned(),
                task: evidence.task,
                reason: evidence.reason,
                possible: possible.join(", "),
            })
        }
    }
}

/// What the files and names say; `None` when they say nothing.
fn evidence(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Option<Evidence>, LoadError> {
    if let Some(found) = from_files(checkpoint)? {
        return Ok(Some(found));
    }
    let folder = checkpoint
        .path()
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let inner = match checkpoint.format() {
        Format::Folder { config } => config
            .get("_name_or_path")
            .and_then(|name| name.as_str())
            .map(str::to_owned),
        Format::Gguf(file) => file.metadata.text("general.name")?.map(str::to_owned),
    };
    Ok([options.name.clone(), folder, inner]
        .into_iter()
        .flatten()
        .find_map(|name| from_name(&name)))
}

fn from_files(checkpoint: &Checkpoint) -> Result<Option<Evidence>, LoadError> {
    let evidence = |task, reason: &str| {
        Ok(Some(Evidence {
            task,
            reason: reason.to_owned(),
        }))
    };
    match checkpoint.format() {
        Format::Folder { .. } => match SentenceTransformer::read(checkpoint)? {
            Some(sides) if sides.scores_pairs => {
                evidence(Task::Rerank, "modules.json has a module that scores pairs")
            }
            Some(sides) if sides.pooling.is_some() => {
                evidence(Task::Embed, "modules.json has a pooling module")
            }
            _ => Ok(None),
        },
        Format::Gguf(file) => {
            let architecture = file.metadata.text("general.architecture")?;
            let key = format!("{}.pooling_type", architecture.unwrap_or_default());
            match file.metadata.unsigned(&key)? {
                Some(4) => evidence(Task::Rerank, "the GGUF's pooling_type is that of rerankers"),
                Some(1..=3) => evidence(Task::Embed, "the GGUF has a pooling_type"),
                _ => Ok(None),
            }
        }
    }
}

/// What a model's name says: that of a known release, or the word that names of its kind contain.
fn from_name(name: &str) -> Option<Evidence> {
    if let Some(release) = releases::find(name)
        && let Some(family) = crate::FAMILIES
            .iter()
            .find(|family| family.slug == release.family)
    {
        return Some(Evidence {
            task: family.task,
            reason: format!("{} is a release of that kind", release.id),
        });
    }
    // Folders above the checkpoint's own, and owners of ids, say nothing about it.
    let name = name
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(name);
    let lower = name.to_lowercase();
    [
        (Task::Rerank, "reranker"),
        (Task::Rerank, "-rerank"),
        (Task::Embed, "embedding"),
        (Task::Embed, "-embed"),
    ]
    .into_iter()
    .find(|(_, word)| lower.contains(word))
    .map(|(task, word)| Evidence {
        task,
        reason: format!("its name `{name}` contains `{word}`"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_tasks() {
        let task = |name: &str| from_name(name).map(|evidence| evidence.task);
        assert_eq!(task("Qwen/Qwen3-0.6B"), Some(Task::Chat));
        assert_eq!(task("qwen3-reranker-0.6b"), Some(Task::Rerank));
        assert_eq!(task("me/Qwen3-Reranker-0.6B-legal"), Some(Task::Rerank));
        assert_eq!(task("Qwen/Qwen3-Embedding-4B"), Some(Task::Embed));
        assert_eq!(task("finetuned-qwen3-embedding"), Some(Task::Embed));
        assert_eq!(task("my-checkpoint"), None);
        assert_eq!(task("/data/embedding-models/chat"), None);
        assert_eq!(task("./qwen3-reranker/"), Some(Task::Rerank));
        assert_eq!(task(""), None);
    }
}
