//! Settings from the environment, read once and passed on.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use ureq::http::Uri;

use crate::{HubError, Source};

/// A token or password that never shows in logs or messages.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a token.
    ///
    /// # Errors
    /// [`HubError::InvalidSetting`] when it is empty or holds characters that no HTTP header may
    /// hold; `name` says which setting is meant.
    pub fn new(name: &'static str, token: &str) -> Result<Self, HubError> {
        let token = token.trim();
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(HubError::InvalidSetting {
                name,
                reason: "a token is one line of printable ASCII without spaces".to_owned(),
            });
        }
        Ok(Self(token.to_owned()))
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Proxies by scheme, and the hosts that are reached directly.
#[derive(Clone, Default)]
pub struct ProxySettings {
    /// For `https` addresses (`HTTPS_PROXY`, else `ALL_PROXY`).
    pub https: Option<String>,
    /// For `http` addresses (`http_proxy`, else `ALL_PROXY`).
    pub http: Option<String>,
    /// Hosts, domains or `*` (`NO_PROXY`); a domain also covers what is below it.
    pub no_proxy: Vec<String>,
}

impl fmt::Debug for ProxySettings {
    /// Leaves the URLs out: they may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxySettings")
            .field("https", &self.https.is_some())
            .field("http", &self.http.is_some())
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// Everything that the environment decides.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HubConfig {
    /// Hugging Face's address (`HF_ENDPOINT`), without a slash at the end.
    pub huggingface_endpoint: String,
    /// Hugging Face's token (`HF_TOKEN`, else the file of `HF_TOKEN_PATH` or `HF_HOME/token`).
    pub huggingface_token: Option<Secret>,
    /// Hugging Face's cache of repositories (`HF_HUB_CACHE`, else `HF_HOME/hub`).
    pub huggingface_cache: Option<PathBuf>,
    /// ModelScope's address (`MODELSCOPE_ENDPOINT`, a full URL), without a slash at the end.
    pub modelscope_endpoint: String,
    /// ModelScope's token (`MODELSCOPE_API_TOKEN`).
    pub modelscope_token: Option<Secret>,
    /// ModelScope's cache (`MODELSCOPE_CACHE`, else `~/.cache/modelscope/hub`).
    pub modelscope_cache: Option<PathBuf>,
    /// The store's root (`AHA_HOME`, else `~/.aha`).
    pub store_root: Option<PathBuf>,
    /// No connection is attempted (`AHA_OFFLINE`).
    pub offline: bool,
    /// Proxies (`HTTPS_PROXY`, `http_proxy`, `ALL_PROXY`, `NO_PROXY`).
    pub proxies: ProxySettings,
    /// A PEM file of certificates to trust beside the system's (`AHA_CA_FILE`). `SSL_CERT_FILE`
    /// and `SSL_CERT_DIR` replace the system's.
    pub ca_file: Option<PathBuf>,
}

impl HubConfig {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// [`HubError::InvalidSetting`] naming the variable that cannot be used.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// Reads settings through `lookup`, so that tests need not change the process's environment.
    ///
    /// # Errors
    /// [`HubError::InvalidSetting`] naming the variable that cannot be used.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let env = Lookup(&lookup);
        let home = env.path("HOME").or_else(|| env.path("USERPROFILE"));
        let below_home = |parts: &[&str]| {
            Some(
                parts
                    .iter()
                    .fold(home.clone()?, |path, part| path.join(part)),
            )
        };
        let cache = env
            .path("XDG_CACHE_HOME")
            .or_else(|| below_home(&[".cache"]));
        let hf_home = env
            .path("HF_HOME")
            .or_else(|| Some(cache.clone()?.join("huggingface")));
        let token_file = env
            .path("HF_TOKEN_PATH")
            .or_else(|| Some(hf_home.clone()?.join("token")));
        let huggingface_token = match env.secret("HF_TOKEN")? {
            Some(token) => Some(token),
            None => token_file
                .and_then(|path| std::fs::read_to_string(path).ok())
                .filter(|text| !text.trim().is_empty())
                .map(|text| Secret::new("the Hugging Face token file", &text))
                .transpose()?,
        };
        let all_proxy = env.either("ALL_PROXY", "all_proxy")?;
        Ok(Self {
            huggingface_endpoint: env.endpoint("HF_ENDPOINT", "https://huggingface.co")?,
            huggingface_token,
            huggingface_cache: env
                .path("HF_HUB_CACHE")
                .or_else(|| Some(hf_home?.join("hub"))),
            modelscope_endpoint: env
                .endpoint("MODELSCOPE_ENDPOINT", "https://www.modelscope.cn")?,
            modelscope_token: env.secret("MODELSCOPE_API_TOKEN")?,
            modelscope_cache: env
                .path("MODELSCOPE_CACHE")
                .or_else(|| below_home(&[".cache", "modelscope", "hub"])),
            store_root: env.path("AHA_HOME").or_else(|| below_home(&[".aha"])),
            offline: env.flag("AHA_OFFLINE")?,
            proxies: ProxySettings {
                https: env
                    .either("HTTPS_PROXY", "https_proxy")?
                    .or_else(|| all_proxy.clone()),
                http: env.either("HTTP_PROXY", "http_proxy")?.or(all_proxy),
                no_proxy: env
                    .either("NO_PROXY", "no_proxy")?
                    .map(|list| list.split(',').map(|host| host.trim().to_owned()).collect())
                    .unwrap_or_default(),
            },
            ca_file: env.path("AHA_CA_FILE"),
        })
    }

    pub(crate) fn endpoint(&self, source: Source) -> &str {
        match source {
            Source::ModelScope => &self.modelscope_endpoint,
            _ => &self.huggingface_endpoint,
        }
    }

    pub(crate) fn token(&self, source: Source) -> Option<&Secret> {
        match source {
            Source::ModelScope => self.modelscope_token.as_ref(),
            _ => self.huggingface_token.as_ref(),
        }
    }
}

struct Lookup<'a>(&'a dyn Fn(&str) -> Option<OsString>);

impl Lookup<'_> {
    /// Empty means unset, as in most tools.
    fn path(&self, name: &str) -> Option<PathBuf> {
        (self.0)(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    }

    fn text(&self, name: &'static str) -> Result<Option<String>, HubError> {
        let Some(value) = (self.0)(name) else {
            return Ok(None);
        };
        let text = value.into_string().map_err(|_| HubError::InvalidSetting {
            name,
            reason: "it is not UTF-8".to_owned(),
        })?;
        Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
    }

    fn either(
        &self,
        first: &'static str,
        second: &'static str,
    ) -> Result<Option<String>, HubError> {
        match self.text(first)? {
            Some(text) => Ok(Some(text)),
            None => self.text(second),
        }
    }

    fn secret(&self, name: &'static str) -> Result<Option<Secret>, HubError> {
        self.text(name)?
            .map(|text| Secret::new(name, &text))
            .transpose()
    }

    fn endpoint(&self, name: &'static str, default: &str) -> Result<String, HubError> {
        let Some(text) = self.text(name)? else {
            return Ok(default.to_owned());
        };
        check_endpoint(name, &text)
    }

    fn flag(&self, name: &'static str) -> Result<bool, HubError> {
        let text = self.text(name)?.unwrap_or_default();
        match text.to_ascii_lowercase().as_str() {
            "" | "0" | "false" | "no" | "off" => Ok(false),
            "1" | "true" | "yes" | "on" => Ok(true),
            _ => Err(HubError::InvalidSetting {
                name,
                reason: format!("{text:?} is neither 1 nor 0"),
            }),
        }
    }
}

/// Returns the URL without a slash at the end when it is a full `http` or `https` address.
fn check_endpoint(name: &'static str, text: &str) -> Result<String, HubError> {
    let invalid = |reason: &str| HubError::InvalidSetting {
        name,
        reason: reason.to_owned(),
    };
    let uri: Uri = text.parse().map_err(|_| invalid("it is not a URL"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
        return Err(invalid("it is not a full URL such as https://example.org"));
    }
    if uri.query().is_some() || text.contains(['@', '#']) {
        return Err(invalid("it holds a query, a fragment or user info"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Result<HubConfig, HubError> {
        HubConfig::from_lookup(|name| {
            let pair = pairs.iter().find(|(key, _)| *key == name)?;
            Some(OsString::from(pair.1))
        })
    }

    #[test]
    fn defaults_follow_the_home_directory() {
        let config = config(&[("HOME", "/home/u")]).unwrap();
        assert_eq!(config.store_root, Some(PathBuf::from("/home/u/.aha")));
        assert_eq!(
            config.huggingface_cache,
            Some(PathBuf::from("/home/u/.cache/huggingface/hub"))
        );
        assert_eq!(
            config.modelscope_cache,
            Some(PathBuf::from("/home/u/.cache/modelscope/hub"))
        );
        assert_eq!(config.huggingface_endpoint, "https://huggingface.co");
        assert_eq!(config.modelscope_endpoint, "https://www.modelscope.cn");
        assert!(!config.offline);
    }

    #[test]
    fn variables_override_defaults() {
        let config = config(&[
            ("HOME", "/home/u"),
            ("AHA_HOME", "/data/aha"),
            ("HF_HOME", "/data/hf"),
            ("HF_ENDPOINT", "https://mirror.example/hf/"),
            ("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9000"),
            ("ALL_PROXY", "socks5://proxy:1080"),
            ("https_proxy", "http://user:pw@proxy:3128"),
            ("NO_PROXY", "localhost, .example.org"),
            ("AHA_OFFLINE", "1"),
        ])
        .unwrap();
        assert_eq!(config.store_root, Some(PathBuf::from("/data/aha")));
        assert_eq!(
            config.huggingface_cache,
            Some(PathBuf::from("/data/hf/hub"))
        );
        assert_eq!(config.huggingface_endpoint, "https://mirror.example/hf");
        assert_eq!(config.modelscope_endpoint, "http://127.0.0.1:9000");
        assert_eq!(config.proxies.http.as_deref(), Some("socks5://proxy:1080"));
        assert_eq!(config.proxies.no_proxy, ["localhost", ".example.org"]);
        assert!(config.offline);
        assert!(!format!("{config:?}").contains("pw"));
    }

    #[test]
    fn bad_values_are_named() {
        for (name, value) in [
            ("HF_ENDPOINT", "mirror.example"),
            ("HF_ENDPOINT", "ftp://mirror.example"),
            ("MODELSCOPE_ENDPOINT", "https://user:pw@host"),
            ("MODELSCOPE_ENDPOINT", "https://host/?a=b"),
            ("HF_TOKEN", "two words"),
            ("MODELSCOPE_API_TOKEN", "a\r\nX-Evil: 1"),
            ("AHA_OFFLINE", "maybe"),
        ] {
            let error = config(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            assert!(!error.contains("Evil") && !error.contains("pw"), "{error}");
        }
    }

    #[test]
    fn the_token_file_is_the_second_choice() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "hf_from_file\n").unwrap();
        let home = dir.path().to_str().unwrap();
        let from_file = config(&[("HF_HOME", home)]).unwrap().huggingface_token;
        assert_eq!(from_file.unwrap().expose(), "hf_from_file");
        let from_variable = config(&[("HF_HOME", home), ("HF_TOKEN", "hf_variable")]).unwrap();
        assert_eq!(
            from_variable.huggingface_token.unwrap().expose(),
            "hf_variable"
        );
    }
}
