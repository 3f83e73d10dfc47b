//! When Trimtab works, what it serves and how it ends.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{Checked, check_goes_with, usage};
use crate::cli::values::{Listen, duration};

/// Where `--admin` is by default.
pub const ADMIN: &str = "127.0.0.1:9534";

/// Pace and life.
#[derive(Debug, Args)]
#[command(next_help_heading = "Pace and life")]
pub struct LifeArgs {
    /// Wait until the sources have been quiet for this long
    #[arg(long, value_name = "D", default_value = "200ms", value_parser = duration)]
    pub debounce: Duration,
    /// Wait no longer than this for quiet sources
    #[arg(long, value_name = "D", default_value = "2s", value_parser = duration)]
    pub debounce_max: Duration,
    /// Publish once and exit: for init containers
    ///
    /// Without a reload.
    #[arg(long)]
    pub once: bool,
    /// With --once, exit without a fetch where --output has files in it already: for an init container that brings back data
    ///
    /// With --layout files.
    #[arg(long)]
    pub once_if_empty: bool,
    /// Fail if --once has not published in this time
    #[arg(long, value_name = "D", default_value = "2m", value_parser = duration)]
    pub once_timeout: Duration,
    /// Serve /livez, /readyz and /metrics at this address, by IPv6 and IPv4; off: do not serve them
    #[arg(long, value_name = "ADDR", default_value = ":9533")]
    pub listen: Listen,
    /// Serve /status, POST /retry and a page for people at this address; off: do not serve them
    #[arg(long, value_name = "ADDR", default_value = ADMIN)]
    pub admin: Listen,
    /// What happens if --listen or --admin cannot be served, as another program has the port
    #[arg(long, value_name = "WHAT", default_value = "end")]
    pub on_bind_error: OnBindError,
    /// Also serve metrics under the names that another sidecar gives them
    #[arg(long, value_name = "PEER")]
    pub metrics_as: Option<MetricsAs>,
    /// Format of the log
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Log this and what is more severe
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevel,
    /// At SIGTERM, wait this long for the step in flight
    #[arg(long, value_name = "D", default_value = "5s", value_parser = duration)]
    pub shutdown_grace: Duration,
}

/// `--on-bind-error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnBindError {
    /// Trimtab ends
    End,
    /// It is logged, and Trimtab works without
    Warn,
}

/// `--metrics-as`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MetricsAs {
    /// configmap_reload_…, by webhook. Those of prometheus-config-reloader are always there
    ConfigmapReload,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// `--log-level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Failures that somebody must fix
    Error,
    /// And what is tried again, kept or held back
    Warn,
    /// And each change on its way
    Info,
    /// And each step
    Debug,
}

impl LifeArgs {
    pub(super) fn check(&self) -> Checked<()> {
        if self.debounce > self.debounce_max {
            return usage("--debounce is longer than --debounce-max");
        }
        if self.once && self.once_timeout.is_zero() {
            return usage("--once-timeout must not be 0");
        }
        check_goes_with("--once", self.once, &[("--once-if-empty", self.once_if_empty)])?;
        match (self.listen.0, self.admin.0) {
            (Some(listen), Some(admin)) if !self.once && listen.port() == admin.port() && listen.port() != 0 => {
                usage(format!("--listen {listen} and --admin {admin} have one port: give one of them another"))
            }
            _ => Ok(()),
        }
    }
}
