//! How Trimtab sees that the main process took a generation, and what happens if not.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::reload::{ReloadArgs, TARGET};
use super::{Checked, Gate, UsageError, check_goes_with, usage};
use crate::cli::values::duration;
use crate::reload::confirm::{self, Probe};

/// Confirm and roll back.
#[derive(Debug, Args)]
#[command(next_help_heading = "Confirm and roll back (none: a reload that succeeds confirms)")]
pub struct ConfirmArgs {
    /// The main process must live this long after the reload; 0: do not look [default: 2s with a target]
    ///
    /// After TERM, INT or QUIT: its replacement, after it started.
    #[arg(long, value_name = "D", value_parser = duration)]
    pub confirm_alive: Option<Duration>,
    /// The main process must start a new child
    ///
    /// It must live for --confirm-alive.
    #[arg(long)]
    pub confirm_workers: bool,
    /// Ask this URL until it answers as expected
    ///
    /// http, https, or unix:/path.sock:/uri.
    #[arg(long, value_name = "URL")]
    pub confirm_url: Option<String>,
    /// Status codes of --confirm-url that confirm [default: 2xx]
    #[arg(long, value_name = "CODES")]
    pub confirm_status: Option<String>,
    /// The answer of --confirm-url must match this; {digest} stands for the generation's digest
    #[arg(long, value_name = "REGEX")]
    pub confirm_match: Option<String>,
    /// What this captures in the answer of --confirm-url (first group, or all) must differ from before the reload
    #[arg(long, value_name = "REGEX")]
    pub confirm_changed: Option<String>,
    /// Reject the generation if it is not confirmed in this time
    ///
    /// Runs only while the main process exists or the URL accepts connections.
    #[arg(long, value_name = "D", default_value = "30s", value_parser = duration)]
    pub confirm_timeout: Duration,
    /// What happens to a generation that the main process rejects
    #[arg(long, value_name = "WHAT", default_value = "rollback")]
    pub on_reject: OnReject,
}

/// `--on-reject`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnReject {
    /// Publish the last good generation again, and reload it
    Rollback,
    /// Keep it published, and report it
    Hold,
}

impl ConfirmArgs {
    pub(super) fn config(&self, reload: &ReloadArgs, has_target: bool) -> Checked<confirm::Config> {
        check_goes_with(
            "--confirm-url",
            self.confirm_url.is_some(),
            &[
                ("--confirm-status", self.confirm_status.is_some()),
                ("--confirm-match", self.confirm_match.is_some()),
                ("--confirm-changed", self.confirm_changed.is_some()),
            ],
        )?;
        let default = has_target.then_some(confirm::DEFAULT_ALIVE);
        let alive = self.confirm_alive.or(default).filter(|alive| !alive.is_zero());
        for (flag, given) in [("--confirm-alive", alive.is_some()), ("--confirm-workers", self.confirm_workers)] {
            if given && !has_target {
                return usage(format!("{flag} needs a target: give {TARGET}"));
            }
        }
        if self.confirm_timeout.is_zero() {
            return usage("--confirm-timeout must not be 0");
        }
        let config = confirm::Config {
            alive,
            workers: self.confirm_workers,
            url: self.confirm_url.as_deref().map(|url| self.probe(url, reload)).transpose()?,
            timeout: self.confirm_timeout,
        };
        let life = if config.workers { Some(config.worker_life()) } else { alive };
        if let Some(life) = life.filter(|life| *life >= config.timeout) {
            let timeout = config.timeout;
            return usage(format!("--confirm-alive ({life:?}) is not shorter than --confirm-timeout ({timeout:?})"));
        }
        if has_target && reload.signal.is_none() && !config.needs_target() {
            return usage(format!(
                "--confirm-alive 0 leaves no use for {TARGET}: they are for --signal, --confirm-alive and \
                 --confirm-workers"
            ));
        }
        Ok(config)
    }

    fn probe(&self, url: &str, reload: &ReloadArgs) -> Checked<Probe> {
        // Neither URL nor pattern is quoted: each may hold what is secret.
        let endpoint = url.parse().map_err(|error| UsageError(format!("--confirm-url: {error}")))?;
        let status = self.confirm_status.as_deref().unwrap_or("2xx");
        let accept = status.parse().map_err(|error| UsageError(format!("--confirm-status {status}: {error}")))?;
        let matches = self.confirm_match.as_deref().map(str::parse).transpose();
        let changed = self.confirm_changed.as_deref().map(regex_lite::Regex::new).transpose();
        Ok(Probe {
            endpoint,
            http: reload.trust()?,
            accept,
            matches: matches.map_err(|error: regex_lite::Error| UsageError(format!("--confirm-match: {error}")))?,
            changed: changed.map_err(|error| UsageError(format!("--confirm-changed: {error}")))?,
        })
    }

    pub(super) fn add_to(&self, gate: &mut Gate) {
        let Self {
            confirm_alive,
            confirm_workers,
            confirm_url,
            confirm_status,
            confirm_match,
            confirm_changed,
            confirm_timeout,
            on_reject,
        } = self;
        gate.time("--confirm-alive", *confirm_alive);
        gate.texts("--confirm-workers", confirm_workers.then_some("true"));
        gate.texts("--confirm-url", confirm_url);
        gate.texts("--confirm-status", confirm_status);
        gate.texts("--confirm-match", confirm_match);
        gate.texts("--confirm-changed", confirm_changed);
        gate.time("--confirm-timeout", Some(*confirm_timeout));
        gate.choice("--on-reject", on_reject);
    }
}
