//! The side files of sentence-transformers: how a checkpoint's hidden states become vectors, and what its inputs are.

use crate::checkpoint::{Checkpoint, Format, parse, read_json};
use crate::error::LoadError;
use crate::pooling::Pooling;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;

const MODULES: &str = "modules.json";

/// One entry of modules.json.
#[derive(Debug, Clone, Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Module {
    /// The class without its package, which releases of the library moved about.
    fn class(&self) -> &str {
        self.kind.rsplit('.').next().unwrap_or(&self.kind)
    }
}

/// The flags of `1_Pooling/config.json`, or the word that replaced them.
#[derive(Debug, Default, Deserialize)]
struct PoolingConfig {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    pooling_mode: Option<String>,
}

impl PoolingConfig {
    fn pooling(&self) -> Result<Pooling, LoadError> {
        let flags = [
            ("cls", self.pooling_mode_cls_token),
            ("mean", self.pooling_mode_mean_tokens),
            ("max", self.pooling_mode_max_tokens),
            (
                "mean_sqrt_len_tokens",
                self.pooling_mode_mean_sqrt_len_tokens,
            ),
            ("weightedmean", self.pooling_mode_weightedmean_tokens),
            ("lasttoken", self.pooling_mode_lasttoken),
        ];
        let set: Vec<&str> = flags
            .iter()
            .filter(|(_, set)| *set)
            .map(|(name, _)| *name)
            .collect();
        let name = match (&self.pooling_mode, set.as_slice()) {
            (Some(name), _) => name.as_str(),
            (None, [name]) => name,
            (None, []) => "mean",
            (None, several) => {
                let reason = format!(
                    "{} together are not supported, one of them is",
                    several.join(", ")
                );
                return Err(LoadError::config("pooling_mode", reason));
            }
        };
        match name {
            "cls" => Ok(Pooling::First),
            "mean" => Ok(Pooling::Mean),
            "lasttoken" => Ok(Pooling::Last),
            other => Err(LoadError::config(
                "pooling_mode",
                format!("`{other}` is not supported; mean, cls and lasttoken are"),
            )),
        }
    }
}

/// `sentence_bert_config.json`.
#[derive(Debug, Default, Deserialize)]
struct TransformerConfig {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

/// `config_sentence_transformers.json`.
#[derive(Debug, Default, Deserialize)]
struct Prompts {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

/// What the side files of a checkpoint say together.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SentenceTransformer {
    /// How hidden states become one vector; `None` where no module pools.
    pub pooling: Option<Pooling>,
    /// A module scores pairs instead.
    pub scores_pairs: bool,
    /// A module scales vectors to the length 1.
    pub normalizes: bool,
    /// Inputs longer than this are cut.
    pub max_seq_length: Option<usize>,
    /// Texts become lower case first.
    pub lower_case: bool,
    /// Prompts by name.
    pub prompts: BTreeMap<String, String>,
    /// The prompt of inputs that name none.
    pub default_prompt: Option<String>,
}

impl SentenceTransformer {
    /// Reads the side files of a folder; `None` where there is no modules.json.
    ///
    /// Errors when a file is malformed, or a module is none that vectors can be right without.
    pub fn read(checkpoint: &Checkpoint) -> Result<Option<Self>, LoadError> {
        let Format::Folder { .. } = checkpoint.format() else {
            return Ok(None);
        };
        let folder = checkpoint.path();
        let Some(modules) = optional::<Vec<Module>>(&folder.join(MODULES))? else {
            return Ok(None);
        };
        let mut found = Self::default();
        for module in &modules {
            match module.class() {
                "Transformer" => {}
                "Pooling" => {
                    let path = inside(folder, &module.path)?.join("config.json");
                    let config: PoolingConfig = optional(&path)?.unwrap_or_default();
                    found.pooling = Some(config.pooling()?);
                }
                "Normalize" => found.normalizes = true,
                "LogitScore" => found.scores_pairs = true,
                other => {
                    return Err(LoadError::Json {
                        path: folder.join(MODULES),
                        field: "type".to_owned(),
                        reason: format!(
                            "the module {other} is not supported, and vectors would be wrong without it"
                        ),
                    });
                }
            }
        }
        let transformer: TransformerConfig =
            optional(&folder.join("sentence_bert_config.json"))?.unwrap_or_default();
        let prompts: Prompts =
            optional(&folder.join("config_sentence_transformers.json"))?.unwrap_or_default();
        Ok(Some(Self {
            max_seq_length: transformer.max_seq_length,
            lower_case: transformer.do_lower_case,
            prompts: prompts.prompts,
            default_prompt: prompts.default_prompt_name,
            ..found
        }))
    }
}

/// A folder beside modules.json. Its name comes from the file and must not lead elsewhere.
fn inside(folder: &Path, name: &str) -> Result<std::path::PathBuf, LoadError> {
    let plain = Path::new(name)
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    if plain {
        return Ok(folder.join(name));
    }
    Err(LoadError::Json {
        path: folder.join(MODULES),
        field: "path".to_owned(),
        reason: format!("`{name}` is no folder of the checkpoint"),
    })
}

fn optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LoadError> {
    if !path.is_file() {
        return Ok(None);
    }
    parse(&read_json(path)?, path).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn read(files: &[(&str, &str)]) -> Result<Option<SentenceTransformer>, LoadError> {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("config.json"), "{}").unwrap();
        for (name, text) in files {
            let path = home.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        SentenceTransformer::read(&Checkpoint::open(home.path()).unwrap())
    }

    const MODULES_OF_TWO: &str = r#"[{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},
        {"idx":1,"name":"1","path":"1_Pooling","type":"sentence_transformers.models.Pooling"}]"#;

    #[test]
    fn side_files_say_how_texts_become_vectors() {
        assert_eq!(read(&[]).unwrap(), None);
        let found = read(&[
            ("modules.json", MODULES_OF_TWO),
            (
                "1_Pooling/config.json",
                r#"{"pooling_mode_lasttoken": true, "pooling_mode_cls_token": false}"#,
            ),
            (
                "sentence_bert_config.json",
                r#"{"max_seq_length": 99, "do_lower_case": true}"#,
            ),
            (
                "config_sentence_transformers.json",
                r#"{"prompts": {"query": "Q: "}, "default_prompt_name": null}"#,
            ),
        ])
        .unwrap()
        .unwrap();
        assert_eq!(found.pooling, Some(Pooling::Last));
        assert_eq!((found.max_seq_length, found.lower_case), (Some(99), true));
        assert!(!found.normalizes && !found.scores_pairs);
        assert_eq!(found.prompts["query"], "Q: ");
        let word = read(&[
            ("modules.json", MODULES_OF_TWO),
            ("1_Pooling/config.json", r#"{"pooling_mode": "cls"}"#),
        ]);
        assert_eq!(word.unwrap().unwrap().pooling, Some(Pooling::First));
    }

    #[test]
    fn what_would_give_wrong_vectors_is_refused() {
        let dense = r#"[{"path":"2_Dense","type":"sentence_transformers.models.Dense"}]"#;
        let message = read(&[("modules.json", dense)]).unwrap_err().to_string();
        assert!(message.contains("Dense"), "{message}");
        for pooling in [
            r#"{"pooling_mode_max_tokens": true}"#,
            r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}"#,
            r#"{"pooling_mode_mean_tokens": 3}"#,
        ] {
            let files = [
                ("modules.json", MODULES_OF_TWO),
                ("1_Pooling/config.json", pooling),
            ];
            assert!(read(&files).is_err(), "{pooling}");
        }
        for path in ["../elsewhere", "/etc"] {
            let modules = format!(r#"[{{"path":"{path}","type":"x.Pooling"}}]"#);
            assert!(read(&[("modules.json", &modules)]).is_err(), "{path}");
        }
    }
}
