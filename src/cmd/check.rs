//! `trimtab check`.
use std::process::ExitCode;

use crate::args::DryRunArgs;

/// Stub.
#[must_use]
pub fn check(_args: DryRunArgs) -> ExitCode {
    ExitCode::FAILURE
}
