//! `trimtab check`: what would not work here with these flags, and how to fix it. It changes nothing and notifies
//! nobody: no signal is sent, and no request that the sidecar does not make while it only looks.

mod output;
mod reload;
mod rollout;
mod sources;

use std::fmt;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use serde::Serialize;
use tracing::error;

use super::{escaped, prepare};
use crate::app::Config;
use crate::cli::exit::Exit;
use crate::cli::{DryRunArgs, Format};
use crate::net::server::Guard;

/// How much a finding weighs; the exit code follows the heaviest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// It works, and could work better. Exit code 0.
    Advice,
    /// It does not work. Exit code 1.
    Problem,
    /// It does not work for lack of a permission. Exit code 77.
    Permission,
}

/// One thing that would not work.
#[derive(Debug, Serialize)]
struct Finding {
    severity: Severity,
    /// Where: a source, or flags with their values.
    place: String,
    /// What is wrong.
    message: String,
    /// What to change; lines of a Pod spec or of RBAC among it.
    remedy: String,
}

impl Finding {
    fn new(
        severity: Severity,
        place: impl fmt::Display,
        message: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Self {
        Self { severity, place: place.to_string(), message: message.to_string(), remedy: remedy.to_string() }
    }
}

/// Prints what is found. Exit code 0: nothing but advice; 77: permissions are missing; 1: anything else.
pub(super) fn check(args: DryRunArgs) -> ExitCode {
    let (config, runtime) = match prepare(args.run) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let config = Arc::new(config);
    let mut findings = runtime.block_on(sources::of_api(&config));
    let directories = runtime.block_on(sources::directories(&config));
    findings.extend(sources::of_files(&config, directories.views()));
    findings.extend(runtime.block_on(sources::of_sources_behind_urls(&config)));
    findings.extend(runtime.block_on(rollout::of_rollout(&config, directories.views())));
    if findings.is_empty() {
        findings.extend(runtime.block_on(sources::of_content(&config)));
    }
    findings.extend(output::of_output(&config));
    findings.extend(runtime.block_on(reload::of_urls(&config)));
    findings.extend(runtime.block_on(reload::of_target(&config)));
    findings.extend(reload::of_confirmation(&config));
    findings.extend(of_listener(&config));
    runtime.shutdown_background();
    let written = match args.format {
        Format::Text => Ok(text(&findings, std::io::stdout().is_terminal())),
        Format::Json => serde_json::to_string_pretty(&serde_json::json!({ "findings": findings })).context("JSON"),
    };
    let written =
        written.and_then(|text| std::io::stdout().write_all((text + "\n").as_bytes()).context("standard output"));
    if let Err(failure) = written {
        error!("{failure:#}");
        return Exit::StartUp.into();
    }
    let exit = match findings.iter().map(|finding| finding.severity).max() {
        None | Some(Severity::Advice) => Exit::Done,
        Some(Severity::Problem) => Exit::StartUp,
        Some(Severity::Permission) => Exit::Forbidden,
    };
    exit.into()
}

fn of_listener(config: &Config) -> Option<Finding> {
    let guard = config.guard.as_ref().filter(|_| config.listen.is_some() && config.once.is_none())?;
    let error = Guard::load(guard).err()?;
    let remedy = "mount the file, or correct it; Trimtab does not start without it";
    Some(Finding::new(Severity::Problem, "--listen", error, remedy))
}

/// For people. `terminal`: what is found is shown on one, which names must not be able to steer.
fn text(findings: &[Finding], terminal: bool) -> String {
    let mut text = String::new();
    for Finding { severity, place, message, remedy } in findings {
        let word = match severity {
            Severity::Advice => "advice",
            Severity::Problem => "problem",
            Severity::Permission => "permission",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{word}: {place}\n  {message}");
        for line in remedy.lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    let weighty = findings.iter().filter(|finding| finding.severity > Severity::Advice).count();
    let _ = match weighty {
        0 => write!(text, "no problems found"),
        1 => write!(text, "1 problem"),
        count => write!(text, "{count} problems"),
    };
    if terminal { escaped(&text, '\n') } else { text }
}
