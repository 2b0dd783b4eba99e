//! How a command fails, and how that is told: one style, one place for exit codes.

use super::console;
use super::signals::Signal;
use std::io;
use std::process::ExitCode;

/// What a command returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The arguments do not fit together: status 2, with the usage.
    Usage(Box<clap::Error>),
    /// The command failed: status 1. The text reads "what failed: object: why or what to do".
    Message(String),
    /// The same with the hub's short name for it, for machines.
    Hub {
        /// [`aha::hub::HubError::code`].
        code: &'static str,
        /// What the user reads.
        text: String,
    },
    /// The user stopped it: 128 and the signal's number, as shells expect.
    Stopped(Signal),
    /// The reader of the output has gone, which is its right: status 0.
    OutputClosed,
    /// The report is on the terminal already: status 1.
    Told,
}

impl Failure {
    pub(crate) fn message(text: impl Into<String>) -> Self {
        Self::Message(text.into())
    }

    /// Arguments that the parser could not judge, e.g. because they depend on the terminal.
    pub(crate) fn usage(message: impl std::fmt::Display) -> Self {
        use clap::CommandFactory;
        let error = super::Cli::command().error(clap::error::ErrorKind::InvalidValue, message);
        Self::Usage(Box::new(error))
    }

    /// A failure to write the command's own output.
    pub(crate) fn output(target: &str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Message(format!("cannot write to {target}: {error}")),
        }
    }

    /// A short stable name and the text, for output that machines read.
    pub(crate) fn described(&self) -> (&'static str, String) {
        match self {
            Self::Hub { code, text } => (code, text.clone()),
            Self::Message(text) => ("failed", text.clone()),
            Self::Usage(error) => ("usage", error.to_string()),
            Self::Stopped(_) => ("cancelled", "stopped by a signal".to_owned()),
            Self::OutputClosed | Self::Told => ("failed", String::new()),
        }
    }

    /// Tells the user and gives the exit status.
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Self::Usage(error) => {
                // Nobody is left to tell when even this cannot be written.
                let _ = error.print();
                ExitCode::from(2)
            }
            Self::Message(text) | Self::Hub { text, .. } => {
                console::error(&text);
                ExitCode::FAILURE
            }
            Self::Stopped(signal) => ExitCode::from(signal.exit_code()),
            Self::OutputClosed => ExitCode::SUCCESS,
            Self::Told => ExitCode::FAILURE,
        }
    }
}

impl From<aha::Error> for Failure {
    fn from(error: aha::Error) -> Self {
        match error {
            aha::Error::Hub(error) => (*error).into(),
            // Options that do not go with each other or with the checkpoint.
            aha::Error::Load(error) if matches!(*error, aha::LoadError::Quantize { .. }) => {
                Self::usage(error)
            }
            aha::Error::Load(error) if matches!(*error, aha::LoadError::Export { .. }) => {
                Self::Message(error.to_string())
            }
            other => Self::Message(other.to_string()),
        }
    }
}

impl From<aha::LoadError> for Failure {
    fn from(error: aha::LoadError) -> Self {
        aha::Error::from(error).into()
    }
}

impl From<aha::EngineError> for Failure {
    fn from(error: aha::EngineError) -> Self {
        Self::Message(error.to_string())
    }
}

impl From<aha::hub::HubError> for Failure {
    fn from(error: aha::hub::HubError) -> Self {
        Self::Hub {
            code: error.code(),
            text: error.to_string(),
        }
    }
}

impl From<aha_server::ServerError> for Failure {
    fn from(error: aha_server::ServerError) -> Self {
        Self::Message(error.to_string())
    }
}
