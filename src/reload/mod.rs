//! Notifying the main process: by a signal, by HTTP requests, or by a program. One attempt at a time; when to try again
//! is the caller's to decide, from the result.

pub mod confirm;
mod exec;
mod gate_url;
mod http;
pub mod process;
mod signal;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

pub use self::gate_url::GateUrl;
use self::http::{CallFailure, Unanswered};
use self::process::{ChildId, Clock, Selector, Signal, Target};
use crate::model::journal::Moment;
use crate::net::endpoint::{Endpoint, StatusCodes};
use crate::net::request::HttpConfig;
use crate::os::exec::Command;
use crate::os::mask::Said;

/// How the main process is notified.
#[derive(Clone, Debug)]
pub enum Driver {
    /// Not at all: it watches its files itself.
    None,
    Signal {
        signal: Signal,
        selector: Selector,
    },
    /// A request to each endpoint, in this order, after the program if there is one; the next one only when the one before
    /// took it.
    Http {
        program: Option<Command>,
        endpoints: Vec<Endpoint>,
        http: Box<HttpConfig>,
        accept: StatusCodes,
    },
    /// A program in the sidecar's own image.
    Exec(Command),
}

impl Driver {
    /// Whether an attempt may be given up half way. A program may not: it could leave its work half done.
    #[must_use]
    pub fn can_be_abandoned(&self) -> bool {
        !matches!(self, Self::Exec(_) | Self::Http { program: Some(_), .. })
    }
}

impl Driver {
    /// Who is notified, and how, for the log: no query, argument or header, as these may hold credentials.
    #[must_use]
    pub fn target(&self) -> String {
        match self {
            Self::None => "nobody".to_owned(),
            Self::Signal { signal, selector } => format!("{signal} to {selector}"),
            Self::Http { program, endpoints, .. } => {
                let program = program.iter().map(|_| "a program".to_owned());
                program.chain(endpoints.iter().map(Endpoint::to_string)).collect::<Vec<_>>().join(", ")
            }
            Self::Exec(_) => "a program".to_owned(),
        }
    }
}

impl fmt::Display for Driver {
    /// What was done, for the log: no query, argument or header, as these may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("publish only"),
            Self::Signal { signal, .. } => write!(f, "{signal} was sent"),
            Self::Http { program, endpoints, .. } => {
                let ran = if program.is_some() { "the program ran, and " } else { "" };
                let names: Vec<_> = endpoints.iter().map(Endpoint::to_string).collect();
                write!(f, "{ran}{} {} called", names.join(", "), if endpoints.len() == 1 { "was" } else { "were" })
            }
            Self::Exec(_) => f.write_str("the program ran"),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    pub driver: Driver,
    /// `--process`, `--process-args`, `--pid-file` with another driver than a signal: the process to confirm by.
    pub target: Option<Selector>,
    /// Whether it matters which children the process had before: to count new workers, and to distinguish a
    /// replacement from an orphan.
    pub children: bool,
    /// `--reload-timeout`: for each request, from connect to last byte, and for a program.
    pub timeout: Duration,
    /// `--confirm-timeout` where `--confirm-url` is given: how long a server may refuse connections after a request that
    /// it did not answer, before the main process is presumed dead. `None`: for ever.
    pub presumed_dead_after: Option<Duration>,
    /// `--confirm-url`: a process that answers it has started.
    pub ready: Option<confirm::Probe>,
}

/// Why the main process did not take a generation, as an attempt or a confirmation found. Messages are fit for logs,
/// `/status` and Events; output only through a mask, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// It said no, or was not as expected in time. A refused attempt is retried before the generation is rejected.
    Refused { message: String, output: Said },
    /// It was notified, did not answer, and has not been there for long since. Not retried: the generation is rejected.
    Died { message: String },
    /// Nobody answered, nobody is there, or not now. Retried for ever, and never a rejection.
    Unreachable {
        message: String,
        output: Said,
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

impl TargetState {
    /// The name in `/status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Missing => "missing",
            Self::Ambiguous => "ambiguous",
            Self::Forbidden => "forbidden",
            Self::NotHandling => "notHandling",
        }
    }
}

/// The target at the last attempt, in the form of `/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TargetStatus {
    pub state: TargetState,
    pub pid: Option<i32>,
    /// Its executable's base name, or its comm.
    pub name: Option<String>,
    /// What is wrong, and the remedy.
    pub message: Option<String>,
}

impl Config {
    /// Which process is notified, or is to be confirmed by, where one was named.
    #[must_use]
    pub fn selector(&self) -> Option<&Selector> {
        match &self.driver {
            Driver::Signal { selector, .. } => Some(selector),
            _ => self.target.as_ref(),
        }
    }

    fn signal(&self) -> Option<Signal> {
        match self.driver {
            Driver::Signal { signal, .. } => Some(signal),
            _ => None,
        }
    }
}

/// Who was notified, and what was there just before: what a confirmation goes by.
#[derive(Debug)]
pub struct Notified {
    /// How the process is found again; `None` where none was named.
    pub selector: Option<Selector>,
    /// The process, held since before it was notified; `None` if it could not be found then.
    pub target: Option<Target>,
    /// Whether it started after the publish: then all that it is and does is newer.
    pub started_after: bool,
    /// Whether no signal was sent, as it started after the publish and has read what is published.
    pub skipped: bool,
    /// The children that it had just before.
    pub children: BTreeSet<ChildId>,
    /// The moment just before, in clock ticks since boot; `None` if not known. What started earlier is not its doing.
    pub ticks: Option<u64>,
    /// The signal that was sent to it.
    pub signal: Option<Signal>,
    /// When the attempt took.
    pub at: Instant,
}

/// What was there before an attempt.
#[derive(Debug)]
struct Before {
    generation: u64,
    target: Target,
    started_after: bool,
    children: BTreeSet<ChildId>,
    ticks: u64,
    /// Whether an attempt since may have reached it.
    delivered: bool,
}

impl Before {
    fn new(generation: u64, target: Target, published: Option<&Moment>, with_children: bool) -> Self {
        let started_after = started_after(&target, published);
        // Before the children, so that one that starts in between is among them and not newer.
        let ticks = process::ticks();
        // Where they cannot be listed, the moment alone distinguishes old from new.
        let listed = (with_children && !started_after).then(|| target.children().unwrap_or_default());
        let children = listed.unwrap_or_default();
        Self { generation, target, started_after, children, ticks, delivered: false }
    }
}

/// Notifies the main process.
#[derive(Debug)]
pub struct Reloader {
    config: Config,
    /// The generation last tried and not yet taken by all, and how many took it: the program, then the endpoints.
    progress: (u64, usize),
    target: Option<TargetStatus>,
    before: Option<Before>,
    unanswered: Unanswered,
}

impl Reloader {
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, progress: (0, 0), target: None, before: None, unanswered: Unanswered::default() }
    }

    /// The signal's target as the last attempt saw it; `None` before the first, and for the other drivers.
    #[must_use]
    pub fn target(&self) -> Option<&TargetStatus> {
        self.target.as_ref()
    }

    fn notified(&mut self) -> Notified {
        let selector = self.config.selector().cloned();
        let at = Instant::now();
        let Some(before) = self.before.take() else {
            return Notified {
                selector,
                target: None,
                started_after: false,
                skipped: false,
                children: BTreeSet::new(),
                ticks: None,
                signal: None,
                at,
            };
        };
        let Before { target, started_after, children, ticks, .. } = before;
        Notified {
            selector,
            target: Some(target),
            started_after,
            skipped: started_after && matches!(self.config.driver, Driver::Signal { .. }),
            children,
            ticks: Some(ticks),
            signal: self.config.signal().filter(|_| !started_after),
            at,
        }
    }

    /// Tries once. `generation`: the sequence number of what is published; a retry with the same number does not repeat
    /// the requests that succeeded. `published`: a moment after it was, if known. It may be dropped at any time: a
    /// request is cut off, a program's group is killed.
    pub async fn attempt(&mut self, generation: u64, published: Option<&Moment>) -> Result<Notified, NotTaken> {
        if !matches!(self.config.driver, Driver::Signal { .. }) {
            self.hold(generation, published);
        }
        let failure = match self.notify(generation, published).await {
            Ok(()) => return Ok(self.notified()),
            Err(failure) => failure,
        };
        // Or the program or one of several endpoints took it.
        let reached = matches!(failure, NotTaken::Unreachable { delivered: true, .. }) || self.progress.1 > 0;
        if let Some(before) = &mut self.before {
            before.delivered |= reached;
        }
        Err(failure)
    }

    /// Holds the process to confirm by. After an attempt that may have reached it, what is newer than that one counts.
    fn hold(&mut self, generation: u64, published: Option<&Moment>) {
        let Some(selector) = &self.config.target else { return };
        let reached = |before: &Before| before.delivered && before.generation == generation && before.target.is_alive();
        if !self.before.as_ref().is_some_and(reached) {
            // One that is not there is waited for when it is time to confirm, and said then.
            let target = process::find(selector).ok();
            self.before = target.map(|target| Before::new(generation, target, published, self.config.children));
        }
    }

    async fn notify(&mut self, generation: u64, published: Option<&Moment>) -> Result<(), NotTaken> {
        let Config { driver, children, timeout, presumed_dead_after, ready, .. } = &self.config;
        match driver {
            Driver::None => Ok(()),
            Driver::Signal { signal, selector } => {
                let (result, status, before) =
                    signal::send(*signal, selector, ready.as_ref(), generation, published, *children).await;
                self.target = Some(status);
                self.before = before;
                result
            }
            Driver::Http { program, endpoints, http: request, accept } => {
                if self.progress.0 != generation {
                    self.progress = (generation, 0);
                }
                if let Some(program) = program.as_ref().filter(|_| self.progress.1 == 0) {
                    exec::execute(program, *timeout).await?;
                    self.progress.1 = 1;
                }
                let programs = usize::from(program.is_some());
                while let Some(endpoint) = endpoints.get(self.progress.1 - programs) {
                    let answer = http::call(endpoint, request, accept, *timeout).await;
                    let died = self.unanswered.after(generation, &answer, *presumed_dead_after);
                    if let Err(CallFailure { why, .. }) = answer {
                        return Err(died.unwrap_or(why));
                    }
                    self.progress.1 += 1;
                }
                // Whoever asks again for the same generation wants all of them notified again.
                self.progress.1 = 0;
                Ok(())
            }
            Driver::Exec(command) => exec::execute(command, *timeout).await,
        }
    }
}

/// Whether it is known to have started after the publish. Start times have a grain of 10 ms, so a tie is no proof. Under
/// another boot id, every process started later.
fn started_after(target: &Target, published: Option<&Moment>) -> bool {
    let after = |published: &Moment| {
        Clock::new().is_ok_and(|clock| !clock.knows(published) || target.start_ticks > published.ticks)
    };
    published.is_some_and(after)
}
