//! Seeing for oneself that the main process took a generation: that it lives on, that it has new workers, and what it
//! answers. [`confirm`] watches until there is a [`Verdict`]; what follows from that is the machine's to decide.
//!
//! Two things are watched at once. The *subject* is the process that was told, or the one that took its place: held by
//! pidfd, so that its exit is known at once and for certain. The *probe* is `--confirm-url`. What the probe hears counts
//! once the subject is as expected: until then an old process could answer.
//!
//! The clock of `--confirm-timeout` runs while there is somebody to ask. Every wait is on a monotonic clock.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use regex_lite::Regex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::model::digest::{Digest, DigestKey, Hasher};
use crate::model::journal::Baseline;
use crate::net::endpoint::{Endpoint, StatusCodes};
use crate::net::request::{self, BODY_READ, HttpConfig};
use crate::os::mask::Said;
use crate::reload::Notified;
use crate::reload::process::{self, Child, Selector, Target};

/// Said of a body of which only the first [`BODY_READ`] bytes were looked at.
const CUT: &str = " (only the first MiB of the body was looked at)";
/// `--confirm-alive` without the flag, where there is a target; and how long a worker must live when it is off.
pub const DEFAULT_ALIVE: Duration = Duration::from_secs(2);
/// How often a process that is not there is looked for, and workers are counted: one that ends at once is to be seen.
const LOOK: Duration = Duration::from_millis(20);
/// But a pause is at least this many times as long as the look before it took, however many processes there are.
const LOOK_SHARE: u32 = 10;
/// The longest that one request of the probe takes; also that before a reload.
const ASK: Duration = Duration::from_secs(5);
/// The pauses between requests: they grow from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

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
    /// The URL.
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

/// What came of it. Messages are fit for logs, `/status` and Events; output only through a mask, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All that is expected was seen.
    Took,
    /// The main process died, or was not as expected in time.
    Rejected {
        /// What was expected, what was seen, by which flag.
        message: String,
        /// What the URL answered last.
        output: Said,
    },
    /// There is nobody to ask, and no time to wait. Nothing is known.
    Absent {
        /// Who is missing.
        message: String,
    },
}

/// What `--confirm-url` says before a reload, within 5 s; `None` without one. What `--confirm-changed` captures is kept
/// as a keyed digest alone.
pub async fn baseline(config: &Config, key: &DigestKey) -> Option<Baseline> {
    let probe = config.url.as_ref()?;
    let looking = Arc::new(Looking { matches: None, changed: probe.changed.clone(), key: key.clone() });
    let heard = ask(Arc::new(probe.clone()), looking, ASK).await;
    Some(Baseline { reachable: heard.accepted, captured: heard.captured })
}

/// Watches until there is a verdict. `notified`: as the reload says. `baseline`: what the URL said before it; where that is
/// not known, any capture of `--confirm-changed` counts as a change, as the reload itself was a success. `generation`:
/// for `{digest}`. `impatient` becomes true when newer inputs wait or Trimtab is to end: then nobody is waited for who
/// is not there, but whoever is there gets the time of `--confirm-timeout`.
pub async fn confirm(
    config: &Config,
    notified: Notified,
    baseline: Option<&Baseline>,
    generation: Digest,
    key: &DigestKey,
    mut impatient: watch::Receiver<bool>,
) -> Verdict {
    let mut subject = Subject::new(config, notified);
    let mut asker = config.url.as_ref().map(|probe| Asker::new(probe, config.timeout, baseline, generation, key));
    let mut clock = Clock { spent: Duration::ZERO, at: Instant::now(), runs: false };
    loop {
        let now = Instant::now();
        clock.advance(now);
        let before = subject.role();
        if let Err(message) = subject.look() {
            return Verdict::Rejected { message, output: Said::default() };
        }
        if before == Some(Role::Leaving) && subject.role() == Some(Role::Replacement) {
            // What the old one took to leave is not the new one's fault.
            clock.spent = Duration::ZERO;
        }
        let settled = subject.settle(now);
        if let Some(asker) = &mut asker {
            asker.follow(settled, !subject.is_unready(), now);
        }
        if settled.is_some() && asker.as_ref().is_none_or(|asker| asker.is_content(settled)) {
            return Verdict::Took;
        }
        let listens = asker.as_ref().is_some_and(|asker| asker.accepts);
        clock.runs = if subject.is_awaited() { false } else { subject.exists() || listens };
        if clock.spent >= config.timeout {
            return match &asker {
                Some(asker) if settled.is_some() => asker.rejection(),
                _ => Verdict::Rejected { message: subject.complaint(), output: Said::default() },
            };
        }
        if let Some(asker) = asker.as_ref().filter(|asker| asker.refused_for(now) >= config.timeout) {
            return asker.death();
        }
        let hurried = *impatient.borrow();
        let may_be_there = asker.as_ref().is_some_and(|asker| !asker.has_asked() || asker.was_reachable);
        if hurried && !clock.runs && (subject.is_awaited() || !may_be_there) {
            let message = match &asker {
                Some(asker) if !subject.is_awaited() => asker.problem.clone(),
                _ => subject.complaint(),
            };
            return Verdict::Absent { message };
        }
        let expiry = clock.runs.then(|| now + config.timeout.saturating_sub(clock.spent));
        let asker_wake = asker.as_ref().and_then(|asker| asker.wake(config.timeout));
        let wake = [expiry, subject.wake(now), asker_wake].into_iter().flatten().min();
        tokio::select! {
            biased;
            () = subject.exited() => {}
            heard = hear(&mut asker) => {
                let now = Instant::now();
                clock.advance(now);
                if let Some(asker) = &mut asker {
                    if heard.accepted && !clock.runs && !subject.is_awaited() {
                        // It was there while it was asked, though that is known only now.
                        clock.spent += now.duration_since(asker.asked_at);
                    }
                    asker.heard(heard, now);
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

async fn hear(asker: &mut Option<Asker>) -> Heard {
    match asker.as_mut().and_then(|asker| asker.asking.as_mut()) {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

/// How much of `--confirm-timeout` is spent.
struct Clock {
    spent: Duration,
    at: Instant,
    runs: bool,
}

impl Clock {
    fn advance(&mut self, now: Instant) {
        if self.runs {
            self.spent += now.duration_since(self.at);
        }
        self.at = now;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It was told, and is to live on.
    Told,
    /// It was told to end.
    Leaving,
    /// It took the place of another, or was not there at first.
    Replacement,
}

struct Held {
    target: Target,
    role: Role,
    /// What its life is counted from.
    since: Instant,
}

/// The process that is looked at.
struct Subject<'a> {
    config: &'a Config,
    selector: Option<Selector>,
    held: Option<Held>,
    /// Whether who was told to end has not been replaced yet.
    was_ended: bool,
    /// Who was there before the reload: no replacement, and no new worker.
    children: BTreeSet<Child>,
    /// Nor is what started before this tick.
    floor: Option<u64>,
    /// The signal that ends it, for messages.
    signal: String,
    /// Whether a new worker of the held one lived long enough.
    has_worker: bool,
    /// The new workers that were seen.
    workers: BTreeSet<Child>,
    /// Since when it is as expected.
    settled: Option<Instant>,
    /// How long until the next look.
    pause: Duration,
    /// Who was held before, if nobody is.
    left: String,
    /// Why nobody is held.
    missing: String,
}

impl<'a> Subject<'a> {
    fn new(config: &'a Config, notified: Notified) -> Self {
        let Notified { selector, target, started_after, children, ticks, ended_by, at, .. } = notified;
        let role = match ended_by {
            Some(_) => Role::Leaving,
            None if started_after => Role::Replacement,
            None => Role::Told,
        };
        // Whoever was not found then may have been there all the same.
        let floor = ticks.filter(|_| target.is_some() && !started_after);
        let held = target.map(|target| {
            let since = if started_after { started(&target) } else { at };
            Held { target, role, since }
        });
        Self {
            config,
            selector,
            was_ended: role == Role::Leaving && held.is_some(),
            held,
            children,
            floor,
            signal: ended_by.map(|signal| signal.to_string()).unwrap_or_default(),
            has_worker: false,
            workers: BTreeSet::new(),
            settled: None,
            pause: LOOK,
            left: String::new(),
            missing: String::new(),
        }
    }

    fn role(&self) -> Option<Role> {
        match &self.held {
            Some(held) => Some(held.role),
            // Between the two.
            None => self.was_ended.then_some(Role::Leaving),
        }
    }

    fn exists(&self) -> bool {
        self.held.is_some()
    }

    /// Whether nothing can be said before somebody is there.
    fn is_awaited(&self) -> bool {
        self.held.is_none() && self.config.needs_target()
    }

    /// Whether an answer of the URL could only be an old one's, or nobody's.
    fn is_unready(&self) -> bool {
        self.is_awaited() || self.held.as_ref().is_some_and(|held| held.role == Role::Leaving)
    }

    /// Sees who is there; an error is a rejection.
    fn look(&mut self) -> Result<(), String> {
        self.see_exit()?;
        let began = Instant::now();
        if self.held.is_none() {
            self.find();
        }
        if self.config.workers && !self.has_worker {
            self.count_workers();
        }
        self.pause = LOOK.max(began.elapsed() * LOOK_SHARE);
        Ok(())
    }

    fn see_exit(&mut self) -> Result<(), String> {
        if let Some(Held { target, role, .. }) = self.held.take_if(|held| !held.target.is_alive()) {
            let who = format!("PID {} ({})", target.pid, target.name);
            (self.has_worker, self.settled) = (false, None);
            self.workers.clear();
            self.left = match (role, self.config.alive) {
                (Role::Leaving, _) => {
                    format!("{who} has ended on {}, and no other process has taken its place yet; ", self.signal)
                }
                (Role::Told, Some(alive)) => {
                    return Err(format!(
                        "{who} exited after it was told to reload, before it was confirmed (--confirm-alive {alive:?}): \
                         its own log should say why"
                    ));
                }
                (Role::Replacement, Some(alive)) => {
                    return Err(format!(
                        "{who}, which started after the publish, exited before it was confirmed (--confirm-alive \
                         {alive:?}): its own log should say why"
                    ));
                }
                (_, None) => format!("{who} has exited, and no other process has taken its place yet; "),
            };
        }
        Ok(())
    }

    fn find(&mut self) {
        let Some(selector) = &self.selector else { return };
        match process::find(selector) {
            Ok(target) if self.is_newer(&target) => {
                let since = started(&target);
                self.held = Some(Held { target, role: Role::Replacement, since });
                self.was_ended = false;
            }
            Ok(older) => self.missing = format!("PID {} ({}) was there before the reload", older.pid, older.name),
            Err(error) => self.missing = error.to_string(),
        }
    }

    fn count_workers(&mut self) {
        let Some(Held { target, role: Role::Told | Role::Replacement, .. }) = &self.held else { return };
        // Where they cannot be listed now, they are listed again.
        let Ok(mut children) = target.children() else { return };
        children.retain(|child| {
            !self.children.contains(child) && self.floor.is_none_or(|floor| child.start_ticks >= floor)
        });
        self.has_worker = children.iter().any(|child| child.age() >= self.config.worker_life());
        self.workers.extend(children);
    }

    fn is_newer(&self, target: &Target) -> bool {
        let child = Child { pid: target.pid, start_ticks: target.start_ticks };
        !self.children.contains(&child) && self.floor.is_none_or(|floor| target.start_ticks >= floor)
    }

    /// Since when it is as expected; `None` if it is not.
    fn settle(&mut self, now: Instant) -> Option<Instant> {
        let settled = match &self.held {
            Some(Held { role: Role::Leaving, .. }) => false,
            Some(held) => {
                let lives = self.config.alive.is_none_or(|alive| now >= held.since + alive);
                lives && (self.has_worker || !self.config.workers)
            }
            None => !self.config.needs_target(),
        };
        self.settled = settled.then(|| self.settled.unwrap_or(now));
        self.settled
    }

    /// What is not as expected.
    fn complaint(&self) -> String {
        let timeout = self.config.timeout;
        let Some(Held { target, role, .. }) = &self.held else {
            return format!("nobody is there to confirm by: {}{}", self.left, self.missing);
        };
        let who = format!("PID {} ({})", target.pid, target.name);
        if *role == Role::Leaving {
            let signal = &self.signal;
            return format!("{who} has not ended on {signal} within {timeout:?} (--confirm-timeout)");
        }
        let life = self.config.worker_life();
        let seen = match self.workers.len() {
            0 => "none was seen".to_owned(),
            seen => format!("{seen} newer came, and none of them lived so long"),
        };
        format!(
            "{who} has no child that is newer than the reload and has lived for {life:?} (--confirm-workers) within \
             {timeout:?} (--confirm-timeout): {seen}; its own log should say why"
        )
    }

    /// When to look again, beside the held one's exit.
    fn wake(&self, now: Instant) -> Option<Instant> {
        let Some(held) = &self.held else { return self.selector.is_some().then(|| now + self.pause) };
        if held.role == Role::Leaving {
            return None;
        }
        let lives = self.config.alive.map(|alive| held.since + alive).filter(|at| *at > now);
        let works = (self.config.workers && !self.has_worker).then(|| now + self.pause);
        [lives, works].into_iter().flatten().min()
    }

    /// Completes when the held one has exited.
    async fn exited(&self) {
        match &self.held {
            Some(held) => held.target.exited().await,
            None => std::future::pending().await,
        }
    }
}

/// When it started, at the latest.
fn started(target: &Target) -> Instant {
    let now = Instant::now();
    now.checked_sub(target.age()).unwrap_or(now)
}

/// What answers are looked at for.
struct Looking {
    matches: Option<Result<Regex, regex_lite::Error>>,
    changed: Option<Regex>,
    key: DigestKey,
}

/// An answer, or none.
struct Heard {
    /// Whether the connection was accepted.
    accepted: bool,
    captured: Option<Digest>,
    /// What is not as expected, of that which needs no baseline.
    problem: Option<String>,
    /// Whether the body was longer than what was looked at.
    cut: bool,
    output: Said,
}

/// Asks once.
async fn ask(probe: Arc<Probe>, looking: Arc<Looking>, timeout: Duration) -> Heard {
    let Probe { endpoint, http, accept, .. } = &*probe;
    let mut heard = Heard { accepted: true, captured: None, problem: None, cut: false, output: Said::default() };
    let (response, mask) = match request::send_unmasked(endpoint, http, BODY_READ, timeout).await {
        Ok(answer) => answer,
        Err(error) => return Heard { accepted: error.accepted(), problem: Some(error.to_string()), ..heard },
    };
    let tail = response.body.len().saturating_sub(Said::LIMIT);
    heard.output.push(&mask.redact(&response.body[tail..]));
    heard.cut = response.body.len() >= BODY_READ;
    let status = response.status;
    if !accept.contains(status) {
        heard.problem = Some(format!("{endpoint} answered {status}, which --confirm-status does not accept"));
        return heard;
    }
    if looking.matches.is_none() && looking.changed.is_none() {
        return heard;
    }
    if let Some(why) = response.incomplete {
        heard.problem = Some(format!("{endpoint} answered {status}, and its body cannot be looked at: {why}"));
        return heard;
    }
    // A large body takes a while, and this thread has others to serve.
    let body = response.body;
    let looked = tokio::task::spawn_blocking(move || {
        let text = String::from_utf8_lossy(&body);
        let matches = match &looking.matches {
            None => Ok(true),
            Some(Ok(regex)) => Ok(regex.is_match(&text)),
            Some(Err(error)) => Err(error.to_string()),
        };
        let found = looking.changed.as_ref().and_then(|regex| regex.captures(&text));
        let found = found.and_then(|groups| groups.get(1).or_else(|| groups.get(0)));
        let captured = found.map(|found| {
            let mut hasher = Hasher::keyed(&looking.key);
            hasher.field(b"confirm-changed");
            hasher.field(found.as_str().as_bytes());
            hasher.finish()
        });
        (matches, captured)
    });
    let (matches, captured) = looked.await.unwrap_or_else(|error| (Err(error.to_string()), None));
    heard.captured = captured;
    heard.problem = match matches {
        Ok(true) => None,
        Ok(false) => Some(format!("{endpoint} answered {status}, and its body does not match --confirm-match")),
        Err(error) => Some(format!("--confirm-match: {error}")),
    };
    heard
}

/// Asks `--confirm-url` again and again.
struct Asker {
    probe: Arc<Probe>,
    looking: Arc<Looking>,
    timeout: Duration,
    /// What `--confirm-changed` must differ from.
    before: Option<Digest>,
    asking: Option<Pin<Box<dyn Future<Output = Heard> + Send>>>,
    /// When the newest request began.
    asked_at: Instant,
    /// When the next one is due.
    next: Instant,
    pause: Duration,
    /// Whether the last one was accepted.
    accepts: bool,
    /// Whether one ever was since the reload, or just before.
    was_reachable: bool,
    refused_since: Option<Instant>,
    /// When the request began whose answer was as expected, if the last one's was.
    content: Option<Instant>,
    /// What is not as expected.
    problem: String,
    output: Said,
    /// When the subject was last seen to be as expected.
    settled: Option<Instant>,
    asked: bool,
}

impl Asker {
    fn new(probe: &Probe, timeout: Duration, baseline: Option<&Baseline>, generation: Digest, key: &DigestKey) -> Self {
        let matches = probe.matches.as_ref().map(|pattern| pattern.of(generation));
        let now = Instant::now();
        Self {
            looking: Arc::new(Looking { matches, changed: probe.changed.clone(), key: key.clone() }),
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
    fn follow(&mut self, settled: Option<Instant>, may_ask: bool, now: Instant) {
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
            self.asking = Some(Box::pin(ask(self.probe.clone(), self.looking.clone(), limit)));
        }
    }

    fn heard(&mut self, heard: Heard, now: Instant) {
        self.asking = None;
        self.asked = true;
        self.next = now + self.pause;
        self.pause = (self.pause * 3 / 2).min(PAUSES.1);
        self.accepts = heard.accepted;
        self.was_reachable |= heard.accepted;
        self.refused_since = if heard.accepted { None } else { Some(self.refused_since.unwrap_or(self.asked_at)) };
        let endpoint = &self.probe.endpoint;
        let mut problem = heard.problem.or_else(|| {
            self.looking.changed.as_ref()?;
            match heard.captured {
                None => Some(format!("{endpoint} answered, and --confirm-changed captures nothing of its body")),
                captured if captured == self.before => {
                    Some(format!("what --confirm-changed captures of {endpoint} is as it was before the reload"))
                }
                Some(_) => None,
            }
        });
        self.content = problem.is_none().then_some(self.asked_at);
        if let Some(problem) = problem.as_mut().filter(|_| heard.cut) {
            problem.push_str(CUT);
        }
        self.problem = problem.unwrap_or_default();
        self.output = heard.output;
    }

    fn has_asked(&self) -> bool {
        self.asked
    }

    /// Whether it answered as expected when asked since then.
    fn is_content(&self, settled: Option<Instant>) -> bool {
        self.content.is_some_and(|asked| settled.is_some_and(|settled| asked >= settled))
    }

    fn refused_for(&self, now: Instant) -> Duration {
        match self.refused_since {
            Some(since) if self.was_reachable => now.duration_since(since),
            _ => Duration::ZERO,
        }
    }

    fn wake(&self, timeout: Duration) -> Option<Instant> {
        let next = self.asking.is_none().then_some(self.next);
        let dead = self.refused_since.filter(|_| self.was_reachable).map(|since| since + timeout);
        [next, dead].into_iter().flatten().min()
    }

    fn rejection(&self) -> Verdict {
        let Self { problem, timeout, .. } = self;
        let message = if problem.is_empty() {
            format!("{} did not answer again within {timeout:?} (--confirm-timeout)", self.probe.endpoint)
        } else {
            format!("{problem}, after {timeout:?} (--confirm-timeout)")
        };
        Verdict::Rejected { message, output: self.output.clone() }
    }

    fn death(&self) -> Verdict {
        let Self { problem, timeout, .. } = self;
        let message = format!(
            "{} accepted connections before, and has not for {timeout:?} (--confirm-timeout), so the main process is \
             taken to have died of the reload: {problem}",
            self.probe.endpoint
        );
        Verdict::Rejected { message, output: Said::default() }
    }
}

#[cfg(test)]
mod tests;
