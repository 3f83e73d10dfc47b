//! `--validate`: programs that look at a candidate.
//!
//! What a program says comes back as [`Said`], for the log.

use std::path::PathBuf;

use nix::sys::signal::Signal;

use super::Config;
use crate::os::exec::{self, Command};
use crate::os::mask::Said;

/// Why a program did not let a candidate pass. Either way, nothing is published.
#[derive(Debug)]
pub(super) enum ProgramError {
    /// The candidate is at fault: the program said no, did not end in time, or crashed.
    Refused { message: String, output: Said },
    /// Nobody knows what the candidate is worth: the program could not be run, or was ended by somebody else. Retried.
    NotRun { message: String, output: Said },
}

/// Runs each program on what `places` has for the placeholders in its arguments, in order; the first that does not exit
/// with 0 ends it.
pub(super) async fn run(config: &Config, places: &[(String, PathBuf)]) -> Result<(), ProgramError> {
    for command in &config.commands {
        // That each path is UTF-8 was checked when the flags were: see `crate::cli::flags`.
        let said = |command: Command, (placeholder, path): &(String, PathBuf)| {
            command.replace(placeholder, &path.to_string_lossy())
        };
        let full = places.iter().fold(command.clone(), said);
        let ran = exec::run(&full, config.timeout).await;
        let outcome = ran.map_err(|error| ProgramError::NotRun {
            message: format!("--validate {error}"),
            output: Said::default(),
        })?;
        let Some(status) = outcome.status else {
            let message = format!(
                "--validate {command} did not end within --validate-timeout ({:?}), and was killed with its process \
                 group; what it said is in the log",
                config.timeout
            );
            return Err(ProgramError::Refused { message, output: outcome.output });
        };
        if status.success() {
            continue;
        }
        return Err(judge(command, status, outcome.output));
    }
    Ok(())
}

fn judge(command: &Command, status: std::process::ExitStatus, output: Said) -> ProgramError {
    use std::os::unix::process::ExitStatusExt as _;

    match status.signal() {
        // The kernel kills so when memory is short (cgroups), people and supervisors when they want it to end.
        Some(signal) if signal == Signal::SIGKILL as i32 || signal == Signal::SIGTERM as i32 => {
            let message = format!(
                "--validate {command} was killed by signal {signal}, and not for its time: if by the kernel, raise \
                 this container's memory limit"
            );
            ProgramError::NotRun { message, output }
        }
        Some(signal) => {
            let message =
                format!("--validate {command} died by signal {signal} of the candidate; what it said is in the log");
            ProgramError::Refused { message, output }
        }
        None => {
            let code = status.code().unwrap_or_default();
            let message = format!(
                "--validate {command} refused the candidate with exit code {code}: fix what it names in the log"
            );
            ProgramError::Refused { message, output }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::candidate::PLACEHOLDER;
    use crate::candidate::syntax::Syntax;
    use crate::os::mask::Mask;

    fn config(commands: &[&str]) -> Config {
        let commands = commands.iter().map(|command| command.parse().unwrap()).collect();
        Config { syntax: Syntax::Warn, candidates: true, commands, timeout: Duration::from_secs(20) }
    }

    async fn verdict(command: &str) -> String {
        match run(&config(&[command]), &[]).await {
            Ok(()) => "passed".into(),
            Err(ProgramError::Refused { message, .. }) => format!("rejected: {message}"),
            Err(ProgramError::NotRun { message, .. }) => format!("failed: {message}"),
        }
    }

    #[tokio::test]
    async fn only_what_the_inputs_did_is_their_fault() {
        assert_eq!(verdict("sh -c 'exit 0'").await, "passed");
        let message = verdict("sh -c 'exit 3' secret-canary").await;
        assert!(message.starts_with("rejected: --validate sh ") && message.contains("exit code 3"), "{message}");
        assert!(!message.contains("canary"), "{message}");
        assert!(verdict("sh -c 'kill -SEGV $$'").await.starts_with("rejected: "));
        assert!(verdict("sh -c 'kill -KILL $$'").await.starts_with("failed: "));
        assert!(verdict("sh -c 'kill -TERM $$'").await.starts_with("failed: "));
        let message = verdict("/no/such/program").await;
        assert!(message.starts_with("failed: --validate /no/such/program") && message.contains("COPY"), "{message}");
    }

    #[tokio::test]
    async fn programs_run_in_order_until_one_refuses() {
        let dir = tempfile::tempdir().unwrap();
        let first = "sh -c 'echo 1 >$0/log' {dir}";
        let second = "sh -c 'echo 2 >>$0/log; echo why; exit 1' {dir}";
        let places = [(PLACEHOLDER.to_owned(), dir.path().to_owned())];
        let failure = run(&config(&[first, second, "touch {dir}/third"]), &places).await.unwrap_err();
        assert_eq!(std::fs::read_to_string(dir.path().join("log")).unwrap(), "1\n2\n");
        assert!(!dir.path().join("third").exists());
        let ProgramError::Refused { output, .. } = failure else { panic!("{failure:?}") };
        assert_eq!(Mask::new(std::iter::empty::<Bytes>()).apply(&output), "why\\n");
    }
}
