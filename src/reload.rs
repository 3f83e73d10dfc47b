//! Telling the main process to reload: by a signal, by HTTP requests, or by a program. One attempt at a time; when to
//! try again is the caller's to decide, from the [`Verdict`].

use std::time::Duration;

use serde::Serialize;

use crate::exec::{self, Command};
use crate::http::{self, Endpoint, HttpConfig, Response, StatusCodes};
use crate::journal::Moment;
use crate::mask::Output;
use crate::process::{self, FindError, Selector, Signal, SignalError, Target};

/// How the main process is told.
#[derive(Clone, Debug)]
pub enum Driver {
    /// Not at all: it looks for itself.
    None,
    /// A signal to one process.
    Signal {
        /// `--signal`.
        signal: Signal,
        /// `--process`, `--process-args`, `--pid-file`.
        selector: Selector,
    },
    /// A request to each endpoint, in this order; the next one only when the one before took it.
    Http {
        /// `--reload-url`.
        endpoints: Vec<Endpoint>,
        /// What is sent to each.
        http: HttpConfig,
        /// `--reload-status`.
        accept: StatusCodes,
    },
    /// A program in the sidecar's own image.
    Exec(Command),
}

/// What a reload needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// How.
    pub driver: Driver,
    /// `--reload-timeout`: for each request, from connect to last byte, and for a program.
    pub timeout: Duration,
}

/// What came of one attempt. Messages are fit for logs, `/status` and Events; output only through a mask, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The main process was told, and did not refuse.
    Took,
    /// The target started after the publish, so it has read what is published: no signal was sent.
    NotOwed,
    /// It said no. Retried a few times, then the generation is rejected.
    Refused {
        /// Who said what.
        message: String,
        /// What else it said.
        output: Output,
    },
    /// Nobody answered, nobody is there, or not now. Retried for ever, and never a rejection.
    Unreachable {
        /// What stands in the way, and the remedy.
        message: String,
        /// What else was said.
        output: Output,
        /// Whether the main process may have acted all the same: the request was sent and not answered, or a program
        /// ran and did not come to its end.
        delivered: bool,
    },
}

/// Whether the process that is to be signalled can be, as `/status` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TargetState {
    /// It is there, and takes the signal.
    Found,
    /// It is not there, or not visible.
    Missing,
    /// More than one could be meant.
    Ambiguous,
    /// The kernel does not allow the signal.
    Forbidden,
    /// It does not handle the signal (yet).
    NotHandling,
}

/// The target at the last attempt, in the form of `/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TargetStatus {
    /// In short.
    pub state: TargetState,
    /// Where one process was found.
    pub pid: Option<i32>,
    /// Its executable's base name, or its comm.
    pub name: Option<String>,
    /// What is wrong, and the remedy.
    pub message: Option<String>,
}

/// Tells the main process to reload.
#[derive(Debug)]
pub struct Reloader {
    config: Config,
    /// The generation last tried and not yet taken by all endpoints, and how many of them took it.
    told: (u64, usize),
    target: Option<TargetStatus>,
}

impl Reloader {
    /// One that has told nobody yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, told: (0, 0), target: None }
    }

    /// The signal's target as the last attempt saw it; `None` before the first, and for the other drivers.
    #[must_use]
    pub fn target(&self) -> Option<&TargetStatus> {
        self.target.as_ref()
    }

    /// Tries once. `generation`: the sequence number of what is published; a retry with the same number does not repeat
    /// the requests that succeeded. `published`: a moment after it was, if known. It may be dropped at any time: a
    /// request is cut off, a program's group is killed.
    pub async fn attempt(&mut self, generation: u64, published: Option<&Moment>) -> Verdict {
        let Config { driver, timeout } = &self.config;
        match driver {
            Driver::None => Verdict::Took,
            Driver::Signal { signal, selector } => {
                let (verdict, status) = send(*signal, selector, published);
                self.target = Some(status);
                verdict
            }
            Driver::Http { endpoints, http, accept } => {
                if self.told.0 != generation {
                    self.told = (generation, 0);
                }
                while let Some(endpoint) = endpoints.get(self.told.1) {
                    if let Err(verdict) = call(endpoint, http, accept, *timeout).await {
                        return verdict;
                    }
                    self.told.1 += 1;
                }
                // Whoever asks again for the same generation wants all of them told again.
                self.told.1 = 0;
                Verdict::Took
            }
            Driver::Exec(command) => execute(command, *timeout).await,
        }
    }
}

fn send(signal: Signal, selector: &Selector, published: Option<&Moment>) -> (Verdict, TargetStatus) {
    let blocked = |state, target: Option<&Target>, message: String| {
        let (pid, name) = target.map(|target| (target.pid, target.name.clone())).unzip();
        let status = TargetStatus { state, pid, name, message: Some(message.clone()) };
        (Verdict::Unreachable { message, output: Output::default(), delivered: false }, status)
    };
    let target = match process::find(selector) {
        Ok(target) => target,
        Err(error @ FindError::Ambiguous { .. }) => return blocked(TargetState::Ambiguous, None, error.to_string()),
        Err(error) => return blocked(TargetState::Missing, None, error.to_string()),
    };
    let verdict = match published.map(|published| started_after(&target, published)).transpose() {
        Ok(Some(true)) => Verdict::NotOwed,
        // Without the clock, it is taken to be owed.
        Ok(_) | Err(_) => match target.signal(signal) {
            Ok(()) => Verdict::Took,
            Err(error) => {
                let state = match error {
                    SignalError::NotHandling { .. } => TargetState::NotHandling,
                    SignalError::Forbidden { .. } => TargetState::Forbidden,
                    SignalError::Gone { .. } | SignalError::Io { .. } => TargetState::Missing,
                };
                return blocked(state, Some(&target), error.to_string());
            }
        },
    };
    let Target { pid, name, .. } = target;
    (verdict, TargetStatus { state: TargetState::Found, pid: Some(pid), name: Some(name), message: None })
}

/// Start times have a grain of 10 ms, so a tie is no proof. Under another boot id, every process started later.
fn started_after(target: &Target, published: &Moment) -> std::io::Result<bool> {
    Ok(process::now()?.boot_id != published.boot_id || target.start_ticks > published.ticks)
}

async fn call(endpoint: &Endpoint, http: &HttpConfig, accept: &StatusCodes, timeout: Duration) -> Result<(), Verdict> {
    let Response { status, body } = match http::request(endpoint, http, timeout).await {
        Ok(response) => response,
        Err(error) => {
            let (message, delivered) = (error.to_string(), error.sent());
            return Err(Verdict::Unreachable { message, output: Output::default(), delivered });
        }
    };
    if accept.contains(status) {
        return Ok(());
    }
    let mut output = Output::default();
    output.push(&body);
    Err(match status {
        429 | 502..=504 => {
            let message = format!("{endpoint} answered {status}: not now");
            Verdict::Unreachable { message, output, delivered: false }
        }
        300..=399 => {
            let message = format!(
                "{endpoint} answered {status}, and redirects are not followed: give --reload-url the final URL"
            );
            Verdict::Refused { message, output }
        }
        _ => {
            let message = format!("{endpoint} answered {status}, which --reload-status does not accept");
            Verdict::Refused { message, output }
        }
    })
}

async fn execute(command: &Command, timeout: Duration) -> Verdict {
    let exec::Outcome { status, output } = match exec::run(command, timeout).await {
        Ok(outcome) => outcome,
        Err(error) => {
            let message = format!("--reload-exec: {error}");
            return Verdict::Unreachable { message, output: Output::default(), delivered: false };
        }
    };
    match status {
        Some(status) if status.success() => Verdict::Took,
        Some(status) => match status.code() {
            Some(code) => Verdict::Refused { message: format!("{command} exited with code {code}"), output },
            // Killed by somebody, for want of memory perhaps: that is not the main process's no. Prints 'signal: 9 …'.
            None => {
                Verdict::Unreachable { message: format!("{command} was ended by a {status}"), output, delivered: true }
            }
        },
        None => {
            let message = format!("{command} was killed after {timeout:?} (--reload-timeout)");
            Verdict::Unreachable { message, output, delivered: true }
        }
    }
}
