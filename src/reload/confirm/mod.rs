//! Seeing for oneself that the main process took a generation: that it lives on, that it has new workers, and what it
//! answers. [`confirm`] watches until it knows; what follows from that is the machine's to decide.
//!
//! Two things are watched at once. The *subject* is the process that was notified, or the one that took its place: held
//! by pidfd, so that its exit is known at once and for certain. The *probe* is `--confirm-url`. What the probe hears
//! counts once the subject is as expected: until then an old process could answer.
//!
//! The clock of `--confirm-timeout` runs while there is somebody to ask. Every wait is on a monotonic clock.

mod probe;
mod subject;

#[cfg(test)]
mod tests;

use std::str::FromStr;
use std::time::Duration;

use regex_lite::Regex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use self::probe::{Prober, Reply};
pub use self::probe::{baseline, objection, problem};
use self::subject::{Role, Subject};
use crate::model::digest::{Digest, DigestKey};
use crate::model::journal::Baseline;
use crate::net::endpoint::{Endpoint, StatusCodes};
use crate::net::request::HttpConfig;
use crate::os::mask::Said;
use crate::reload::NotTaken;
use crate::reload::Notified;

/// `--confirm-alive` without the flag, where there is a target; and how long a worker must live when it is off.
pub const DEFAULT_ALIVE: Duration = Duration::from_secs(2);

/// What is expected of a main process that took a reload.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--confirm-alive`; `None` when off.
    pub alive: Option<Duration>,
    /// `--confirm-workers`.
    pub workers: bool,
    /// `--confirm-url`.
    pub url: Option<Probe>,
    /// `--confirm-timeout`.
    pub timeout: Duration,
}

impl Config {
    /// Whether anything is to be confirmed.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.needs_target() || self.url.is_some()
    }

    /// Whether a process is looked at.
    #[must_use]
    pub fn needs_target(&self) -> bool {
        self.alive.is_some() || self.workers
    }

    /// How long a worker must live. `--confirm-alive 0` means the target itself: a worker that ends at once is no sign.
    #[must_use]
    pub fn worker_life(&self) -> Duration {
        self.alive.unwrap_or(DEFAULT_ALIVE)
    }
}

/// `--confirm-url`: what is asked by GET, and which answer is expected.
#[derive(Clone, Debug)]
pub struct Probe {
    pub endpoint: Endpoint,
    /// Who is believed, as for `--reload-url`; no body, headers or Authorization.
    pub http: HttpConfig,
    /// `--confirm-status`.
    pub accept: StatusCodes,
    /// `--confirm-match`.
    pub matches: Option<Pattern>,
    /// `--confirm-changed`. What it captures is its first group, or the whole match without one.
    pub changed: Option<Regex>,
}

/// A regular expression in which `{digest}` stands for the digest of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    const DIGEST: &str = "{digest}";

    /// For this generation. One whose digest is not known (the journal was lost) matches with any.
    fn of(&self, generation: Digest) -> Result<Regex, regex_lite::Error> {
        let digest = if generation == Digest::UNKNOWN { "[0-9a-f]{64}".to_owned() } else { generation.to_string() };
        Regex::new(&self.0.replace(Self::DIGEST, &digest))
    }
}

impl FromStr for Pattern {
    type Err = regex_lite::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let pattern = Self(text.to_owned());
        pattern.of(Digest::UNKNOWN)?;
        pattern.of(Digest::from_bytes([1; 32]))?;
        Ok(pattern)
    }
}

/// Watches until it is known whether the main process took the generation. `notified`: as the reload says. `baseline`:
/// what the URL said before it; where that is not known, any capture of `--confirm-changed` counts as a change, as the
/// reload itself was a success. `generation`: for `{digest}`. `impatient` becomes true when newer inputs wait or
/// Trimtab is to end: then nobody is waited for who is not there, but whoever is there gets the time of
/// `--confirm-timeout`.
pub async fn confirm(
    config: &Config,
    notified: Notified,
    baseline: Option<&Baseline>,
    generation: Digest,
    key: &DigestKey,
    mut impatient: watch::Receiver<bool>,
) -> Result<(), NotTaken> {
    let mut subject = Subject::new(config, notified);
    let mut prober = config.url.as_ref().map(|probe| Prober::new(probe, config.timeout, baseline, generation, key));
    let mut clock = Countdown { spent: Duration::ZERO, at: Instant::now(), runs: false };
    loop {
        let now = Instant::now();
        clock.advance(now);
        let before = subject.role();
        if let Err(message) = subject.look() {
            return Err(NotTaken::Refused { message, output: Said::default() });
        }
        if before == Some(Role::Leaving) && subject.role() == Some(Role::Replacement) {
            // What the old one took to leave is not the new one's fault.
            clock.spent = Duration::ZERO;
        }
        let settled = subject.settle(now);
        if let Some(prober) = &mut prober {
            prober.follow(settled, !subject.is_unready(), now);
        }
        if settled.is_some() && prober.as_ref().is_none_or(|prober| prober.is_content(settled)) {
            return Ok(());
        }
        let listens = prober.as_ref().is_some_and(|prober| prober.accepts);
        clock.runs = if subject.is_awaited() { false } else { subject.exists() || listens };
        if clock.spent >= config.timeout {
            return Err(match &prober {
                Some(prober) if settled.is_some() => prober.rejection(),
                _ => NotTaken::Refused { message: subject.complaint(), output: Said::default() },
            });
        }
        if let Some(prober) = prober.as_ref().filter(|prober| prober.refused_for(now) >= config.timeout) {
            return Err(prober.death());
        }
        let hurried = *impatient.borrow();
        let may_be_there = prober.as_ref().is_some_and(|prober| !prober.has_asked() || prober.was_reachable);
        if hurried && !clock.runs && (subject.is_awaited() || !may_be_there) {
            let message = match &prober {
                Some(prober) if !subject.is_awaited() => prober.problem.clone(),
                _ => subject.complaint(),
            };
            return Err(NotTaken::Unreachable { message, output: Said::default(), delivered: false });
        }
        let expiry = clock.runs.then(|| now + config.timeout.saturating_sub(clock.spent));
        let prober_wake = prober.as_ref().and_then(|prober| prober.wake(config.timeout));
        let wake = [expiry, subject.wake(now), prober_wake].into_iter().flatten().min();
        tokio::select! {
            biased;
            () = subject.exited() => {}
            reply = hear(&mut prober) => {
                let now = Instant::now();
                clock.advance(now);
                if let Some(prober) = &mut prober {
                    if reply.accepted && !clock.runs && !subject.is_awaited() {
                        // It was there while it was asked, though that is known only now.
                        clock.spent += now.duration_since(prober.asked_at);
                    }
                    prober.take(reply, now);
                }
            }
            () = hurry(&mut impatient), if !hurried => {}
            () = until(wake) => {}
        }
    }
}

/// Completes at this moment; never without one.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn hurry(impatient: &mut watch::Receiver<bool>) {
    if impatient.wait_for(|impatient| *impatient).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn hear(prober: &mut Option<Prober>) -> Reply {
    match prober.as_mut().and_then(|prober| prober.asking.as_mut()) {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

/// How much of `--confirm-timeout` is spent.
struct Countdown {
    spent: Duration,
    at: Instant,
    runs: bool,
}

impl Countdown {
    fn advance(&mut self, now: Instant) {
        if self.runs {
            self.spent += now.duration_since(self.at);
        }
        self.at = now;
    }
}
