//! The log: where it goes and how much of it.

use super::args::{GlobalArgs, LogFormat};
use super::console::{LogLine, stderr_is_terminal};
use super::failure::{Failure, Outcome};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Starts the log on standard error; `default` is the level where the user names none.
pub(crate) fn init(global: &GlobalArgs, default: &str) -> Outcome {
    // An empty variable is as good as none.
    let asked = global.log.as_deref().filter(|text| !text.is_empty());
    let filter = filter(asked.unwrap_or(default))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(LogLine::default)
        .with_ansi(stderr_is_terminal());
    match global.log_format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// A bare level is ours: other libraries stay at warnings, or the log would be about sockets.
fn filter(text: &str) -> Outcome<EnvFilter> {
    let directives = match text.parse::<LevelFilter>() {
        Ok(level) => format!("{},aha={level}", level.min(LevelFilter::WARN)),
        Err(_) => text.to_owned(),
    };
    EnvFilter::try_new(directives).map_err(|error| {
        Failure::usage(format!(
            "invalid value '{text}' for '--log': {error}; use off, error, warn, info, debug, \
             trace or a filter such as aha_engine=debug"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn levels_and_filters_are_understood() {
        for text in [
            "off",
            "error",
            "warn",
            "info",
            "DEBUG",
            "trace",
            "aha_engine=debug,warn",
        ] {
            assert!(filter(text).is_ok(), "{text}");
        }
        assert!(filter("info").unwrap().to_string().contains("aha=info"));
        assert!(filter("aha=loud").is_err());
    }
}
