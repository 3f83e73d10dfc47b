//! The process that was notified, or the one that took its place.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::Config;
use crate::reload::Notified;
use crate::reload::process::{self, ChildId, Selector, Signal, Target};

/// How often a process that is not there is looked for, and workers are counted: one that ends at once is to be seen.
const LOOK: Duration = Duration::from_millis(20);
/// But a pause is at least this many times as long as the look before it took, however many processes there are.
const LOOK_SHARE: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It was notified, and is to live on.
    Notified,
    /// It was sent a signal to end.
    Leaving,
    /// It took the place of another, or was not there at first.
    Replacement,
}

struct Tracked {
    target: Target,
    role: Role,
    /// What its life is counted from.
    since: Instant,
}

/// The process that is looked at.
pub(super) struct Subject<'a> {
    config: &'a Config,
    selector: Option<Selector>,
    tracked: Option<Tracked>,
    /// Whether the process that was asked to end has not been replaced yet.
    was_ended: bool,
    /// Who was there before the reload: no replacement, and no new worker.
    children: BTreeSet<ChildId>,
    /// Nor is what started before this tick.
    floor: Option<u64>,
    /// The signal that was sent.
    signal: Option<Signal>,
    /// Whether a new worker of the tracked one lived long enough.
    has_worker: bool,
    /// The new workers that were seen.
    workers: BTreeSet<ChildId>,
    /// Since when it is as expected.
    settled: Option<Instant>,
    /// How long until the next look.
    pause: Duration,
    /// Who was tracked before, if nobody is.
    left: String,
    /// Why nobody is tracked.
    missing: String,
}

impl<'a> Subject<'a> {
    pub(super) fn new(config: &'a Config, notified: Notified) -> Self {
        let Notified { selector, target, started_after, children, ticks, signal, at, .. } = notified;
        let role = match signal {
            Some(signal) if signal.ends() => Role::Leaving,
            _ if started_after => Role::Replacement,
            _ => Role::Notified,
        };
        // Whoever was not found then may have been there all the same.
        let floor = ticks.filter(|_| target.is_some() && !started_after);
        let tracked = target.map(|target| {
            let since = if started_after { started(&target) } else { at };
            Tracked { target, role, since }
        });
        Self {
            config,
            selector,
            was_ended: role == Role::Leaving && tracked.is_some(),
            tracked,
            children,
            floor,
            signal,
            has_worker: false,
            workers: BTreeSet::new(),
            settled: None,
            pause: LOOK,
            left: String::new(),
            missing: String::new(),
        }
    }

    pub(super) fn role(&self) -> Option<Role> {
        match &self.tracked {
            Some(tracked) => Some(tracked.role),
            // Between the two.
            None => self.was_ended.then_some(Role::Leaving),
        }
    }

    pub(super) fn exists(&self) -> bool {
        self.tracked.is_some()
    }

    /// Whether nothing can be said before somebody is there.
    pub(super) fn is_awaited(&self) -> bool {
        self.tracked.is_none() && self.config.needs_target()
    }

    /// Whether an answer of the URL could only be an old one's, or nobody's.
    pub(super) fn is_unready(&self) -> bool {
        self.is_awaited() || self.tracked.as_ref().is_some_and(|tracked| tracked.role == Role::Leaving)
    }

    /// Sees who is there; an error is a rejection.
    pub(super) fn look(&mut self) -> Result<(), String> {
        self.see_exit()?;
        let began = Instant::now();
        if self.tracked.is_none() {
            self.find();
        }
        if self.config.workers && !self.has_worker {
            self.count_workers();
        }
        self.pause = LOOK.max(began.elapsed() * LOOK_SHARE);
        Ok(())
    }

    fn see_exit(&mut self) -> Result<(), String> {
        let Some(Tracked { target, role, .. }) = self.tracked.take_if(|tracked| !tracked.target.is_alive()) else {
            return Ok(());
        };
        let who = format!("PID {} ({})", target.pid, target.name);
        (self.has_worker, self.settled) = (false, None);
        self.workers.clear();
        self.left = match (role, self.config.alive) {
            (Role::Leaving, _) => {
                format!("{who} has ended on {}, and no other process has taken its place yet; ", self.signal_name())
            }
            // That is no fault of the configuration, which whoever takes its place will read.
            (Role::Notified, _) if self.signal.is_some_and(|signal| target.was_ended_by(signal) == Some(true)) => {
                let signal = self.signal_name();
                warn!(
                    "{who} was ended by {signal}: does it handle it? Choose another --signal, or use --reload-url or \
                     --reload-exec; who takes its place is confirmed"
                );
                self.was_ended = true;
                format!("{who} was ended by {signal}: does it handle it? No other process has taken its place yet; ")
            }
            (Role::Notified, Some(alive)) => {
                let signal = self.signal.map(|signal| format!(", unless {signal} itself ended it: does it handle it?"));
                return Err(format!(
                    "{who} exited after it was notified, before it was confirmed (--confirm-alive {alive:?}): its \
                     own log should say why{}",
                    signal.unwrap_or_default()
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
        Ok(())
    }

    fn signal_name(&self) -> String {
        self.signal.map(|signal| signal.to_string()).unwrap_or_default()
    }

    fn find(&mut self) {
        let Some(selector) = &self.selector else { return };
        match process::find(selector) {
            Ok(target) if self.is_newer(&target) => {
                let since = started(&target);
                self.tracked = Some(Tracked { target, role: Role::Replacement, since });
                self.was_ended = false;
            }
            Ok(older) => self.missing = format!("PID {} ({}) was there before the reload", older.pid, older.name),
            Err(error) => self.missing = error.to_string(),
        }
    }

    fn count_workers(&mut self) {
        let Some(Tracked { target, role: Role::Notified | Role::Replacement, .. }) = &self.tracked else { return };
        // Where they cannot be listed now, they are listed again.
        let Ok(mut children) = target.children() else { return };
        children.retain(|child| {
            !self.children.contains(child) && self.floor.is_none_or(|floor| child.start_ticks >= floor)
        });
        self.has_worker = children.iter().any(|child| child.age() >= self.config.worker_life());
        self.workers.extend(children);
    }

    fn is_newer(&self, target: &Target) -> bool {
        let child = ChildId { pid: target.pid, start_ticks: target.start_ticks };
        !self.children.contains(&child) && self.floor.is_none_or(|floor| target.start_ticks >= floor)
    }

    /// Since when it is as expected; `None` if it is not.
    pub(super) fn settle(&mut self, now: Instant) -> Option<Instant> {
        let settled = match &self.tracked {
            Some(Tracked { role: Role::Leaving, .. }) => false,
            Some(tracked) => {
                let lives = self.config.alive.is_none_or(|alive| now >= tracked.since + alive);
                lives && (self.has_worker || !self.config.workers)
            }
            None => !self.config.needs_target(),
        };
        self.settled = settled.then(|| self.settled.unwrap_or(now));
        self.settled
    }

    /// What is not as expected.
    pub(super) fn complaint(&self) -> String {
        let timeout = self.config.timeout;
        let Some(Tracked { target, role, .. }) = &self.tracked else {
            return format!("nobody is there to confirm by: {}{}", self.left, self.missing);
        };
        let who = format!("PID {} ({})", target.pid, target.name);
        if *role == Role::Leaving {
            let signal = self.signal_name();
            return format!("{who} has not ended on {signal} within {timeout:?} (--confirm-timeout)");
        }
        let life = self.config.worker_life();
        match self.workers.len() {
            0 => format!(
                "{who} started no new worker within {timeout:?} of the reload (--confirm-workers, --confirm-timeout); its \
                 own log should say why"
            ),
            seen => format!(
                "{who} started {seen} new workers, and none of them lived for {life:?} (--confirm-workers) within \
                 {timeout:?} of the reload (--confirm-timeout); its own log should say why"
            ),
        }
    }

    /// When to look again, beside the tracked one's exit.
    pub(super) fn wake(&self, now: Instant) -> Option<Instant> {
        let Some(tracked) = &self.tracked else { return self.selector.is_some().then(|| now + self.pause) };
        if tracked.role == Role::Leaving {
            return None;
        }
        let lives = self.config.alive.map(|alive| tracked.since + alive).filter(|at| *at > now);
        let works = (self.config.workers && !self.has_worker).then(|| now + self.pause);
        [lives, works].into_iter().flatten().min()
    }

    /// Completes when the tracked one has exited.
    pub(super) async fn exited(&self) {
        match &self.tracked {
            Some(tracked) => tracked.target.exited().await,
            None => std::future::pending().await,
        }
    }
}

/// When it started, at the latest.
fn started(target: &Target) -> Instant {
    let now = Instant::now();
    now.checked_sub(target.age()).unwrap_or(now)
}
