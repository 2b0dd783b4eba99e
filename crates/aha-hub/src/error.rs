//! What can go wrong, where, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{ModelId, Source};

/// Every error of this crate. URLs in it carry no query and no user info, because both may hold
/// secrets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A model id that is not `owner/name`.
    #[error("model id {id:?} is not valid: {reason}; write it as owner/name")]
    InvalidModelId {
        /// The id as given.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A hub name that does not exist.
    #[error("source {text:?} is unknown; use auto, modelscope or huggingface")]
    InvalidSource {
        /// The name as given.
        text: String,
    },
    /// A revision with characters that no hub allows.
    #[error("revision {revision:?} is not valid; use a branch, a tag or a commit")]
    InvalidRevision {
        /// The revision as given.
        revision: String,
    },
    /// A glob that does not parse.
    #[error("file pattern {pattern:?} is not valid: {reason}")]
    InvalidPattern {
        /// The pattern as given.
        pattern: String,
        /// The parser's answer.
        reason: String,
    },
    /// A setting from the environment or the builder that cannot be used.
    #[error("{name} is not usable: {reason}")]
    InvalidSetting {
        /// The environment variable or option.
        name: &'static str,
        /// What is wrong, without the value when it may be secret.
        reason: String,
    },
    /// Neither AHA_HOME nor a home directory is known.
    #[error("there is no home directory to keep models in; set AHA_HOME or pass a directory")]
    NoHome,
    /// A connection was needed in offline mode.
    #[error(
        "offline mode is on, so {what} is not possible; leave out --offline and unset AHA_OFFLINE"
    )]
    Offline {
        /// What was asked for.
        what: String,
    },
    /// The hub wants a token, or a better one.
    #[error(
        "{source_hub} refused access to {url} (401){detail}; set {} or pass a token",
        token_variable(*.source_hub)
    )]
    Unauthorized {
        /// The hub asked.
        source_hub: Source,
        /// The address asked.
        url: String,
        /// What the hub said, or nothing.
        detail: String,
    },
    /// The account has no access, for example to a gated model.
    #[error(
        "{source_hub} forbids {url} (403){detail}; accept the model's terms on its page with the \
         account of the token"
    )]
    Forbidden {
        /// The hub asked.
        source_hub: Source,
        /// The address asked.
        url: String,
        /// What the hub said, or nothing.
        detail: String,
    },
    /// No such repository, revision or file.
    #[error(
        "{source_hub} has nothing at {url} (404){detail}; check the id and the revision (a private \
         model needs a token)"
    )]
    NotFound {
        /// The hub asked.
        source_hub: Source,
        /// The address asked.
        url: String,
        /// What the hub said, or nothing.
        detail: String,
    },
    /// Too many requests.
    #[error("{source_hub} limits requests to {url} (429){}; try again later or use a token", wait_text(.retry_after))]
    RateLimited {
        /// The hub asked.
        source_hub: Source,
        /// The address asked.
        url: String,
        /// How long the hub wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// Any other status than success.
    #[error("{source_hub} answered {status} for {url}{}; try again later", wait_text(.retry_after))]
    Status {
        /// The hub asked.
        source_hub: Source,
        /// The address asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// How long the hub wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The connection failed or broke.
    #[error(
        "the connection to {url} failed: {reason}; check the network, the proxy settings and the clock"
    )]
    Network {
        /// The address asked.
        url: String,
        /// The transport's answer.
        reason: String,
    },
    /// The connection is alive but delivers too little.
    #[error("{url} is too slow: {received} bytes in {seconds:.0} s; another source may be faster")]
    TooSlow {
        /// The address asked.
        url: String,
        /// Bytes received in the window.
        received: u64,
        /// Length of the window.
        seconds: f64,
    },
    /// The answer is not what a hub sends, such as a login page of the network.
    #[error("{url} did not answer like a model hub: {reason}; check for a login page or a proxy")]
    NotAHub {
        /// The address asked.
        url: String,
        /// What came instead.
        reason: String,
    },
    /// A redirect that must not be followed.
    #[error("{url} redirects to {target}, which is refused: {reason}")]
    BadRedirect {
        /// The address asked.
        url: String,
        /// Where it points.
        target: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// The size differs from what the hub's list says.
    #[error(
        "{path} from {url} has {actual} bytes where {expected} are expected; try again or use another source"
    )]
    SizeMismatch {
        /// The file in the repository.
        path: String,
        /// The address asked.
        url: String,
        /// Bytes by the hub's list.
        expected: u64,
        /// Bytes received or announced.
        actual: u64,
    },
    /// The content differs from the hub's checksum.
    #[error(
        "{path} has sha256 {actual} where {expected} is expected; it was discarded, try again or use another source"
    )]
    ChecksumMismatch {
        /// The file in the repository.
        path: String,
        /// The hub's checksum.
        expected: String,
        /// The checksum of what arrived.
        actual: String,
    },
    /// The repository changed between the list and the download.
    #[error("{path} changed on the hub during the download; try again")]
    Changed {
        /// The file in the repository.
        path: String,
    },
    /// A file name in the hub's list that would leave the model's directory.
    #[error(
        "{source_hub} lists the file {path:?}, which is not a safe relative path; nothing was written"
    )]
    UnsafePath {
        /// The hub asked.
        source_hub: Source,
        /// The name as listed.
        path: String,
    },
    /// The filter leaves nothing to download.
    #[error(
        "{source_hub} has {id}, but none of its {listed} files match the wanted patterns; check --include and --exclude"
    )]
    NoFiles {
        /// The hub asked.
        source_hub: Source,
        /// The repository.
        id: ModelId,
        /// Files before the filter.
        listed: usize,
    },
    /// The repository has no weights among its usual files.
    #[error(
        "{source_hub} has {id}, but no safetensors; {}",
        weight_choices(.choices)
    )]
    NoWeights {
        /// The hub asked.
        source_hub: Source,
        /// The repository.
        id: ModelId,
        /// Files of it that may hold weights.
        choices: Vec<String>,
    },
    /// Every hub failed.
    #[error("{id} could not be downloaded: {}", join_failures(.failures))]
    AllSourcesFailed {
        /// The model.
        id: ModelId,
        /// The failure of each hub.
        failures: Vec<(Source, HubError)>,
    },
    /// The disk has too little room.
    #[error("{} has {available} bytes free, {needed} are needed; free some space or use another directory", .path.display())]
    NoSpace {
        /// The directory to write to.
        path: PathBuf,
        /// Bytes still to write, with the reserve.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// The file system refused.
    #[error("cannot {action} {}: {source}{}", .path.display(), io_hint(.source))]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process works on the model.
    #[error(
        "{id} is being downloaded or changed by another process{holder}; wait for it or stop it"
    )]
    Busy {
        /// The model.
        id: ModelId,
        /// Who holds the lock, as ` (pid 1)`, when known.
        holder: String,
    },
    /// The model is not in this store.
    #[error("{id} is not in the store {}{hint}", .store.display())]
    NotInStore {
        /// The model.
        id: ModelId,
        /// The store's root.
        store: PathBuf,
        /// Where else it was found, or nothing.
        hint: String,
    },
    /// A path that would lead outside the store.
    #[error("{} does not lie inside the store {}; nothing was deleted", .path.display(), .store.display())]
    OutsideStore {
        /// The path.
        path: PathBuf,
        /// The store's root.
        store: PathBuf,
    },
    /// A metadata file that cannot be read.
    #[error("{} is not a readable manifest: {reason}; download the model again", .path.display())]
    BadManifest {
        /// The file.
        path: PathBuf,
        /// The parser's answer.
        reason: String,
    },
    /// The caller cancelled.
    #[error("the download was cancelled; what has arrived is kept and will be resumed")]
    Cancelled,
}

impl HubError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// A short stable name for JSON output.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidModelId { .. } => "invalid_model_id",
            Self::InvalidSource { .. } => "invalid_source",
            Self::InvalidRevision { .. } => "invalid_revision",
            Self::InvalidPattern { .. } => "invalid_pattern",
            Self::InvalidSetting { .. } => "invalid_setting",
            Self::NoHome => "no_home",
            Self::Offline { .. } => "offline",
            Self::Unauthorized { .. } => "unauthorized",
            Self::Forbidden { .. } => "forbidden",
            Self::NotFound { .. } => "not_found",
            Self::RateLimited { .. } => "rate_limited",
            Self::Status { .. } => "bad_status",
            Self::Network { .. } => "network",
            Self::TooSlow { .. } => "too_slow",
            Self::NotAHub { .. } => "not_a_hub",
            Self::BadRedirect { .. } => "bad_redirect",
            Self::SizeMismatch { .. } => "size_mismatch",
            Self::ChecksumMismatch { .. } => "checksum_mismatch",
            Self::Changed { .. } => "changed",
            Self::UnsafePath { .. } => "unsafe_path",
            Self::NoFiles { .. } => "no_files",
            Self::NoWeights { .. } => "no_weights",
            Self::AllSourcesFailed { .. } => "all_sources_failed",
            Self::NoSpace { .. } => "no_space",
            Self::Io { .. } => "io",
            Self::Busy { .. } => "busy",
            Self::NotInStore { .. } => "not_in_store",
            Self::OutsideStore { .. } => "outside_store",
            Self::BadManifest { .. } => "bad_manifest",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 416 | 425 | 500..=599),
            Self::RateLimited { .. }
            | Self::Network { .. }
            | Self::TooSlow { .. }
            | Self::SizeMismatch { .. } => true,
            _ => false,
        }
    }

    /// Whether the hub, not this machine or the request, is at fault, so that the other hub may
    /// do better.
    pub(crate) fn is_hub_fault(&self) -> bool {
        self.is_transient()
            || matches!(
                self,
                Self::Unauthorized { .. }
                    | Self::Forbidden { .. }
                    | Self::NotFound { .. }
                    | Self::Status { .. }
                    | Self::NotAHub { .. }
                    | Self::BadRedirect { .. }
                    | Self::ChecksumMismatch { .. }
                    | Self::Changed { .. }
                    | Self::UnsafePath { .. }
                    | Self::NoFiles { .. }
                    | Self::NoWeights { .. }
            )
    }

    /// How long the hub asked to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Status { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }
}

fn token_variable(source: Source) -> &'static str {
    match source {
        Source::ModelScope => "MODELSCOPE_API_TOKEN",
        _ => "HF_TOKEN",
    }
}

/// Names shown of a repository with many files of weights.
const CHOICES_SHOWN: usize = 20;

fn weight_choices(choices: &[String]) -> String {
    if choices.is_empty() {
        return "it holds no weights at all: check the id".to_owned();
    }
    let shown = choices[..choices.len().min(CHOICES_SHOWN)].join(", ");
    let more = choices.len().saturating_sub(CHOICES_SHOWN);
    let more = if more == 0 {
        String::new()
    } else {
        format!(" and {more} more")
    };
    format!("choose files with --include: {shown}{more}")
}

fn wait_text(retry_after: &Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |wait| {
        format!(" and asks to wait {} s", wait.as_secs())
    })
}

fn join_failures(failures: &[(Source, HubError)]) -> String {
    let parts: Vec<String> = failures
        .iter()
        .map(|(source, error)| format!("[{source}] {error}"))
        .collect();
    parts.join("; ")
}

fn io_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "; free some space or use another directory, what has arrived is kept for resuming"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; choose a writable directory with AHA_HOME or --save-dir"
        }
        io::ErrorKind::InvalidFilename => "; choose a directory with a shorter path",
        _ => "",
    }
}
