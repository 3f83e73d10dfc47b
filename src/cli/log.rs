//! Logs: text for people or JSON for machines, on standard error.
//!
//! Only this crate's own lines are written: others' may hold bodies or values (`kube_client` logs responses at warn).

use std::ffi::OsStr;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::flags::{LogFormat, LogLevel};

/// Starts logging; to be called once.
pub fn init(format: LogFormat, level: LogLevel) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let registry = tracing_subscriber::registry().with(Targets::new().with_target("trimtab", level));
    match format {
        LogFormat::Text => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            let coloured = is_coloured(terminal, std::env::var_os("NO_COLOR").as_deref());
            let layer = tracing_subscriber::fmt::layer().with_ansi(coloured).with_target(false);
            registry.with(layer.with_writer(std::io::stderr)).init();
        }
        LogFormat::Json => {
            let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false);
            registry.with(layer.with_target(false).with_span_list(false).with_writer(std::io::stderr)).init();
        }
    }
}

/// `no_color`: see no-color.org; an empty one means nothing.
fn is_coloured(terminal: bool, no_color: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_whose_user_wants_them() {
        assert!(is_coloured(true, None) && is_coloured(true, Some(OsStr::new(""))));
        assert!(!is_coloured(true, Some(OsStr::new("1"))) && !is_coloured(false, None));
    }
}
