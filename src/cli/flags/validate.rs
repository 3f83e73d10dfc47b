//! What a candidate must pass before anything is visible.

use std::path::Path;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::{Checked, Gate, UsageError, usage};
use crate::candidate::{self, syntax::Syntax};
use crate::cli::values::{NamedPath, duration};
use crate::os::exec::Command;

/// Validate.
#[derive(Debug, Args)]
#[command(next_help_heading = "Validate (before anything is visible)")]
pub struct ValidateArgs {
    /// Parse files that end in .json, .yaml, .yml or .toml
    #[arg(long, value_name = "HOW", default_value = "warn")]
    pub syntax: Syntax,
    /// Run this program before anything is visible
    ///
    /// On the candidate, in the directory {dir}; any exit code but 0 rejects it. {dir:NAME} is that of --observe-dir as it is now; {dir}
    /// too, without --output. May be repeated. Words are split as in a shell, but no shell runs. Programs run in the order given.
    #[arg(long = "validate", value_name = "CMD")]
    pub validate: Vec<String>,
    /// Kill a --validate program that takes longer than this, and reject the candidate
    #[arg(long, value_name = "D", default_value = "30s", value_parser = duration)]
    pub validate_timeout: Duration,
}

impl ValueEnum for Syntax {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Strict, Self::Warn, Self::Off]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Strict => PossibleValue::new("strict").help("Reject a malformed file"),
            Self::Warn => PossibleValue::new("warn").help("Log a malformed file, and publish it"),
            Self::Off => PossibleValue::new("off").help("Do not parse files"),
        })
    }
}

impl ValidateArgs {
    /// `output`: where candidates are, if anything is written; `observed`: what the main process reads by itself.
    pub(super) fn config(&self, output: Option<&Path>, observed: &[NamedPath]) -> Checked<candidate::Config> {
        if self.validate_timeout.is_zero() {
            return usage("--validate-timeout must not be 0");
        }
        let mut commands = Vec::new();
        for (index, text) in self.validate.iter().enumerate() {
            // The text is not quoted: a command line may hold a credential.
            let number = index + 1;
            let command: Command =
                text.parse().map_err(|error| UsageError(format!("--validate (number {number}): {error}")))?;
            let has = |placeholder: &str| command.replace(placeholder, "") != command;
            if has(candidate::PLACEHOLDER) && output.is_none() && observed.len() > 1 {
                return usage(format!(
                    "--validate {command} (number {number}): with several --observe-dir and no --output it is not clear \
                     which {{dir}} is: write {{dir:NAME}}"
                ));
            }
            if !has(candidate::PLACEHOLDER) && !observed.iter().any(|dir| has(&candidate::placeholder_of(&dir.name))) {
                return usage(format!(
                    "--validate {command} (number {number}) has no {{dir}}, and would not look at the candidate: give \
                     it the path there, as in --validate 'nginx -t -p {{dir}} -c {{dir}}/nginx.conf'"
                ));
            }
            commands.push(command);
        }
        let mut paths = observed.iter().map(|dir| dir.path.as_path()).chain(output);
        if !commands.is_empty() && paths.any(|path| path.to_str().is_none()) {
            return usage(
                "--validate gives programs the path of --output or --observe-dir, which is not UTF-8: choose another",
            );
        }
        Ok(candidate::Config {
            syntax: self.syntax,
            candidates: output.is_some(),
            commands,
            timeout: self.validate_timeout,
        })
    }

    pub(super) fn add_to(&self, gate: &mut Gate) {
        let Self { syntax, validate, validate_timeout } = self;
        gate.choice("--syntax", syntax);
        gate.texts("--validate", validate);
        gate.time("--validate-timeout", Some(*validate_timeout));
    }
}
