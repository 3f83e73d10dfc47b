//! `--confirm-url`: asking, and what the answers say.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use regex_lite::Regex;
use tokio::time::Instant;

use super::{Config, Probe};
use crate::model::digest::{Digest, DigestKey, Hasher};
use crate::model::journal::Baseline;
use crate::net::request::{self, BODY_READ};
use crate::os::mask::Said;
use crate::reload::NotTaken;

/// Said of a body of which only the first [`BODY_READ`] bytes were looked at.
const CUT: &str = " (only the first MiB of the body was looked at)";
/// The longest that one request of the probe takes; also that before a reload.
const ASK: Duration = Duration::from_secs(5);
/// The pauses between requests: they grow from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What `--confirm-url` says before a reload, within 5 s; `None` without one. What `--confirm-changed` captures is kept
/// as a keyed digest alone.
pub async fn baseline(config: &Config, key: &DigestKey) -> Option<Baseline> {
    let probe = config.url.as_ref()?;
    let expectation = Arc::new(Expectation { matches: None, changed: probe.changed.clone(), key: key.clone() });
    let reply = ask(Arc::new(probe.clone()), expectation, ASK).await;
    Some(Baseline { reachable: reply.accepted, captured: reply.captured })
}

/// What is not as expected of `--confirm-url` now, beside `--confirm-changed`: that was answered once and for all.
pub async fn objection(config: &Config, generation: Digest, key: &DigestKey) -> Option<String> {
    let probe = config.url.as_ref()?;
    let matches = probe.matches.as_ref().map(|pattern| pattern.of(generation));
    let expectation = Arc::new(Expectation { matches, changed: None, key: key.clone() });
    ask(Arc::new(probe.clone()), expectation, ASK.min(config.timeout)).await.problem
}

/// What is wrong with how `--confirm-url` answers now, of what holds whichever generation runs.
pub async fn problem(config: &Config, probe: &Probe) -> Option<String> {
    // Captures are compared with nothing.
    let key = DigestKey::new([0; 32]);
    let expectation = Arc::new(Expectation { matches: None, changed: probe.changed.clone(), key });
    let reply = ask(Arc::new(probe.clone()), expectation, ASK.min(config.timeout)).await;
    let captures = probe.changed.is_none() || reply.captured.is_some();
    reply
        .problem
        .or_else(|| (!captures).then(|| format!("{}: nothing in its body matches --confirm-changed", probe.endpoint)))
}

/// What answers are looked at for.
struct Expectation {
    matches: Option<Result<Regex, regex_lite::Error>>,
    changed: Option<Regex>,
    key: DigestKey,
}

/// An answer, or none.
pub(super) struct Reply {
    /// Whether the connection was accepted.
    pub(super) accepted: bool,
    captured: Option<Digest>,
    /// What is not as expected, of that which needs no baseline.
    problem: Option<String>,
    /// Whether the body was longer than what was looked at.
    cut: bool,
    output: Said,
}

/// Asks once.
async fn ask(probe: Arc<Probe>, expectation: Arc<Expectation>, timeout: Duration) -> Reply {
    let Probe { endpoint, http, accept, .. } = &*probe;
    let mut reply = Reply { accepted: true, captured: None, problem: None, cut: false, output: Said::default() };
    let (response, mask) = match request::send_unmasked(endpoint, http, BODY_READ, timeout).await {
        Ok(answer) => answer,
        Err(error) => return Reply { accepted: error.accepted(), problem: Some(error.to_string()), ..reply },
    };
    let tail = response.body.len().saturating_sub(Said::LIMIT);
    reply.output.push(&mask.redact(&response.body[tail..]));
    reply.cut = response.body.len() >= BODY_READ;
    let status = response.status;
    if !accept.contains(status) {
        reply.problem = Some(format!("{endpoint} answered {status}, which --confirm-status does not accept"));
        return reply;
    }
    if expectation.matches.is_none() && expectation.changed.is_none() {
        return reply;
    }
    if let Some(why) = response.incomplete {
        reply.problem = Some(format!("{endpoint} answered {status}, and its body cannot be looked at: {why}"));
        return reply;
    }
    // A large body takes a while, and this thread has others to serve.
    let body = response.body;
    let looked = tokio::task::spawn_blocking(move || {
        let text = String::from_utf8_lossy(&body);
        let matches = match &expectation.matches {
            None => Ok(true),
            Some(Ok(regex)) => Ok(regex.is_match(&text)),
            Some(Err(error)) => Err(error.to_string()),
        };
        let found = expectation.changed.as_ref().and_then(|regex| regex.captures(&text));
        let found = found.and_then(|groups| groups.get(1).or_else(|| groups.get(0)));
        let captured = found.map(|found| {
            let mut hasher = Hasher::keyed(&expectation.key);
            hasher.field(b"confirm-changed");
            hasher.field(found.as_str().as_bytes());
            hasher.finish()
        });
        (matches, captured)
    });
    let (matches, captured) = looked.await.unwrap_or_else(|error| (Err(error.to_string()), None));
    reply.captured = captured;
    reply.problem = match matches {
        Ok(true) => None,
        Ok(false) => Some(format!("{endpoint} answered {status}, and its body does not match --confirm-match")),
        Err(error) => Some(format!("--confirm-match: {error}")),
    };
    reply
}

/// Asks `--confirm-url` again and again.
pub(super) struct Prober {
    probe: Arc<Probe>,
    expectation: Arc<Expectation>,
    timeout: Duration,
    /// What `--confirm-changed` must differ from.
    before: Option<Digest>,
    pub(super) asking: Option<Pin<Box<dyn Future<Output = Reply> + Send>>>,
    /// When the newest request began.
    pub(super) asked_at: Instant,
    /// When the next one is due.
    next: Instant,
    pause: Duration,
    /// Whether the last one was accepted.
    pub(super) accepts: bool,
    /// Whether one ever was since the reload, or just before.
    pub(super) was_reachable: bool,
    refused_since: Option<Instant>,
    /// When the request began whose answer was as expected, if the last one's was.
    content: Option<Instant>,
    /// What is not as expected.
    pub(super) problem: String,
    output: Said,
    /// When the subject was last as expected.
    settled: Option<Instant>,
    asked: bool,
}

impl Prober {
    pub(super) fn new(
        probe: &Probe,
        timeout: Duration,
        baseline: Option<&Baseline>,
        generation: Digest,
        key: &DigestKey,
    ) -> Self {
        let matches = probe.matches.as_ref().map(|pattern| pattern.of(generation));
        let now = Instant::now();
        Self {
            expectation: Arc::new(Expectation { matches, changed: probe.changed.clone(), key: key.clone() }),
            problem: format!("{} was not asked yet", probe.endpoint),
            probe: Arc::new(probe.clone()),
            timeout,
            before: baseline.and_then(|baseline| baseline.captured),
            asking: None,
            asked_at: now,
            next: now,
            pause: PAUSES.0,
            accepts: false,
            was_reachable: baseline.is_some_and(|baseline| baseline.reachable),
            refused_since: None,
            content: None,
            output: Said::default(),
            settled: None,
            asked: false,
        }
    }

    /// Asks when it is time to. `may_ask`: not while only an old process could answer, or nobody.
    pub(super) fn follow(&mut self, settled: Option<Instant>, may_ask: bool, now: Instant) {
        if settled.is_some() && self.settled.is_none() {
            self.next = now;
            self.pause = PAUSES.0;
        }
        self.settled = settled;
        if !may_ask {
            // Whoever comes gets the whole time.
            (self.asking, self.accepts, self.refused_since, self.next) = (None, false, None, now);
        } else if self.asking.is_none() && self.next <= now {
            self.asked_at = now;
            let limit = ASK.min(self.timeout);
            self.asking = Some(Box::pin(ask(self.probe.clone(), self.expectation.clone(), limit)));
        }
    }

    pub(super) fn take(&mut self, reply: Reply, now: Instant) {
        self.asking = None;
        self.asked = true;
        self.next = now + self.pause;
        self.pause = (self.pause * 3 / 2).min(PAUSES.1);
        self.accepts = reply.accepted;
        self.was_reachable |= reply.accepted;
        self.refused_since = if reply.accepted { None } else { Some(self.refused_since.unwrap_or(self.asked_at)) };
        let endpoint = &self.probe.endpoint;
        let mut problem = reply.problem.or_else(|| {
            self.expectation.changed.as_ref()?;
            match reply.captured {
                None => Some(format!("{endpoint} answered, and --confirm-changed captures nothing of its body")),
                captured if captured == self.before => {
                    Some(format!("what --confirm-changed captures of {endpoint} is as it was before the reload"))
                }
                Some(_) => None,
            }
        });
        self.content = problem.is_none().then_some(self.asked_at);
        if let Some(problem) = problem.as_mut().filter(|_| reply.cut) {
            problem.push_str(CUT);
        }
        self.problem = problem.unwrap_or_default();
        self.output = reply.output;
    }

    pub(super) fn has_asked(&self) -> bool {
        self.asked
    }

    /// Whether it answered as expected when asked since then.
    pub(super) fn is_content(&self, settled: Option<Instant>) -> bool {
        self.content.is_some_and(|asked| settled.is_some_and(|settled| asked >= settled))
    }

    pub(super) fn refused_for(&self, now: Instant) -> Duration {
        match self.refused_since {
            Some(since) if self.was_reachable => now.duration_since(since),
            _ => Duration::ZERO,
        }
    }

    pub(super) fn wake(&self, timeout: Duration) -> Option<Instant> {
        let next = self.asking.is_none().then_some(self.next);
        let dead = self.refused_since.filter(|_| self.was_reachable).map(|since| since + timeout);
        [next, dead].into_iter().flatten().min()
    }

    pub(super) fn rejection(&self) -> NotTaken {
        let Self { problem, timeout, .. } = self;
        let message = if problem.is_empty() {
            format!("{} did not answer again within {timeout:?} (--confirm-timeout)", self.probe.endpoint)
        } else {
            format!("{problem}, after {timeout:?} (--confirm-timeout)")
        };
        NotTaken::Refused { message, output: self.output.clone() }
    }

    pub(super) fn death(&self) -> NotTaken {
        let Self { problem, timeout, .. } = self;
        let message = format!(
            "{} accepted connections before, and has not for {timeout:?} (--confirm-timeout), so the main process is \
             taken to have died of the reload: {problem}",
            self.probe.endpoint
        );
        NotTaken::Refused { message, output: Said::default() }
    }
}
