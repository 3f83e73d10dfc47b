//! What surrounds the protocol: which answer is fresh enough for what, and when to look again.

use std::time::Duration;

use super::decide::Replica;
use super::dice::Dice;
use super::io::{Effect, Event, Reply, Timing, Version};
use super::lease::{Lease, Reason, State};
use crate::model::digest::Digest;

/// The holder renews each so long.
pub(super) const RENEW: Duration = Duration::from_secs(10);
/// It trusts what it wrote for so long, then reads first.
pub(super) const TRUSTED: Duration = Duration::from_secs(20);
/// Others take it for lost after so long without a new `resourceVersion`.
pub(super) const EXPIRES: Duration = Duration::from_secs(30);
/// How old a read may be that a rename stands on.
pub(super) const FRESH: Duration = Duration::from_secs(5);
/// What starting costs of that.
pub(super) const SECOND: Duration = Duration::from_secs(1);
/// The first poll in quarantine, and the slowest.
pub(super) const SLOW: (Duration, Duration) = (Duration::from_secs(15), Duration::from_mins(5));
/// Before a change that I gave up may be claimed again by me.
pub(super) const HOLD_OFF: Duration = Duration::from_mins(2);
/// After a request that failed.
pub(super) const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// No server is left alone for longer, whatever it asks for.
pub(super) const LONGEST: Duration = Duration::from_mins(1);
/// After what happened here.
pub(super) const SOON: Duration = Duration::from_millis(50);

/// The request in flight.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Read { quorum: bool, sent: Duration },
    Write { lease: Lease, reason: Reason, sent: Duration },
    ReadHistory,
    WriteHistory,
}

/// What a replica knows of the rollout, and forgets at a restart.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts: each has its own cause and its own end")]
pub struct Rollout {
    pub(super) timing: Timing,
    pub(super) dice: Dice,
    pub(super) lease: Option<Lease>,
    /// As last seen; `None` where there is no Lease.
    pub(super) version: Option<Version>,
    /// When the newest answer was asked for.
    pub(super) read_at: Option<Duration>,
    /// Whether that is from a quorum read or a write.
    pub(super) quorum: bool,
    /// A write's answer was lost, or a rename waits: the next answer must be a quorum read's.
    pub(super) must_read: bool,
    /// Since when the version has not changed while it could be seen.
    pub(super) same_since: Duration,
    /// The candidate and the state as last seen.
    pub(super) state: Option<(Option<Digest>, State)>,
    /// When they were first seen.
    pub(super) state_since: Duration,
    pub(super) last_look: Duration,
    pub(super) asked: Option<Asked>,
    /// Something happened during the request.
    pub(super) again: bool,
    /// Whether this replica holds the Lease, and knows it from its own write.
    pub(super) leads: bool,
    pub(super) renewed_at: Option<Duration>,
    pub(super) claimed_at: Duration,
    pub(super) hold_off: Duration,
    pub(super) wakes: Option<Duration>,
    pub(super) history: Option<Digest>,
    pub(super) patience: Duration,
    /// This change is ready, and waits for leave to be published.
    pub(super) ready: Option<Digest>,
    /// How often in a row the gate did not agree.
    pub(super) refusals: u32,
    /// Whether the gate has agreed since the state is what it is.
    pub(super) agreed: bool,
    /// Requests that failed in a row, and before when none is sent.
    pub(super) failures: u32,
    pub(super) not_before: Duration,
    /// The same of the history.
    pub(super) history_failures: u32,
    pub(super) history_not_before: Duration,
    pub(super) ending: bool,
}

/// One call of [`Rollout::on`].
pub(super) struct Turn {
    pub(super) now: Duration,
    pub(super) me: Replica,
    pub(super) effects: Vec<Effect>,
}

impl Rollout {
    /// `seed`: of the jitter, another one for each replica.
    #[must_use]
    pub fn new(timing: Timing, seed: u64) -> Self {
        Self {
            timing,
            dice: Dice::new(seed),
            lease: None,
            version: None,
            read_at: None,
            quorum: false,
            must_read: false,
            same_since: Duration::ZERO,
            state: None,
            state_since: Duration::ZERO,
            last_look: Duration::ZERO,
            asked: None,
            again: false,
            leads: false,
            renewed_at: None,
            claimed_at: Duration::ZERO,
            hold_off: Duration::ZERO,
            wakes: None,
            history: None,
            patience: SLOW.0 / 2,
            ready: None,
            refusals: 0,
            agreed: false,
            failures: 0,
            not_before: Duration::ZERO,
            history_failures: 0,
            history_not_before: Duration::ZERO,
            ending: false,
        }
    }

    /// Takes an event and returns what to do. `now`: on the replica's own monotonic clock, since its start. `me`: as the
    /// journal and the sources are now.
    pub fn on(&mut self, now: Duration, me: &Replica, event: Event) -> Vec<Effect> {
        let mut turn = Turn { now, me: me.clone(), effects: Vec::new() };
        let turn_ref = &mut turn;
        match event {
            Event::Started => self.wake(turn_ref, Duration::from_millis(2500)),
            Event::Saw => {
                let at_once = self.leads || me.newest.is_some() && me.newest == me.base;
                let poll = self.timing.poll();
                let wait = if at_once { 4 * SOON } else { self.dice.between(Duration::ZERO, poll) };
                self.wake(turn_ref, wait);
            }
            Event::Woke => {
                self.wakes = None;
                self.step(turn_ref);
            }
            Event::Ready(change) => {
                self.ready = Some(change);
                if !self.is_fresh(now) {
                    self.must_read = true;
                }
                self.act_or_read(turn_ref);
            }
            Event::Verdict => {
                let me = &mut turn_ref.me;
                let good = me.published.is_some_and(|change| self.knows_good(change));
                if me.confirmed && good && me.base != me.published {
                    me.base = me.published;
                    turn_ref.effects.push(Effect::Settle);
                }
                self.wake(turn_ref, SOON);
            }
            Event::Gate(agrees) => {
                self.agreed |= agrees;
                self.refusals = if agrees { 0 } else { self.refusals.saturating_add(1) };
                self.wake(turn_ref, SOON);
            }
            Event::HistoryRejected => {
                self.history = None;
                self.history_not_before = now + SLOW.1;
                self.wake(turn_ref, SOON);
            }
            Event::Refresh => {
                (self.not_before, self.history_not_before) = (now, now);
                self.step(turn_ref);
            }
            Event::Ending => {
                self.ending = true;
                self.step(turn_ref);
            }
            Event::Read(reply) => {
                self.answered(turn_ref, |rollout, turn, asked| rollout.read_ended(turn, &asked, reply));
            }
            Event::Wrote(reply) => {
                self.answered(turn_ref, |rollout, turn, asked| rollout.write_ended(turn, asked, reply));
            }
            Event::HistoryRead(reply) => {
                self.answered(turn_ref, |rollout, turn, _| rollout.history_read(turn, &reply));
            }
            Event::HistoryWritten(reply) => {
                self.answered(turn_ref, |rollout, turn, _| match reply {
                    Reply::Answered(()) => {
                        rollout.history_failures = 0;
                        turn.set_claimed(false);
                        rollout.act(turn);
                    }
                    failed => rollout.history_failed(turn, &failed),
                });
            }
        }
        turn.effects
    }

    /// As last seen.
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// The Lease's `retries` as last seen.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.lease.as_ref().map_or(0, |lease| lease.retries)
    }

    /// Whether this replica leads, and must go on watching what is published.
    #[must_use]
    pub fn bakes(&self, uid: &str, published: Digest) -> bool {
        let candidate = self.lease.as_ref().filter(|lease| lease.state == State::Baking);
        self.leads && self.holds(uid) && candidate.is_some_and(|lease| lease.candidate == Some(published))
    }

    /// Whether the fleet knows this change to be good, as last seen.
    #[must_use]
    pub fn knows_good(&self, change: Digest) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.good.contains(&change))
    }

    /// Whether a candidate under way is this replica's, as last seen.
    #[must_use]
    pub fn holds(&self, uid: &str) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.is_under_way() && lease.holder == uid)
    }

    /// Whether this replica leads, and knows it from its own write.
    #[must_use]
    pub fn leads(&self, uid: &str) -> bool {
        self.leads && self.holds(uid)
    }

    /// Whether a request is in flight.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.asked.is_some()
    }

    pub(super) fn wake(&mut self, turn: &mut Turn, wait: Duration) {
        let at = turn.now + wait;
        if self.wakes.is_none_or(|known| at < known) {
            self.wakes = Some(at);
            turn.effects.push(Effect::Wake(at));
        }
    }

    pub(super) fn is_fresh(&self, now: Duration) -> bool {
        self.quorum && self.read_at.is_some_and(|at| now.saturating_sub(at) <= FRESH)
    }

    /// After a request that failed: ever later, but a poll at most, and who holds the Lease must renew it in time. What
    /// only a person changes is asked for as rarely as in quarantine.
    pub(super) fn try_again<T>(&mut self, turn: &mut Turn, failed: &Reply<T>) {
        let doubled = 1 << self.failures.min(6);
        self.failures = self.failures.saturating_add(1);
        let wait = match *failed {
            Reply::Denied => self.dice.about((SLOW.0 * doubled).min(SLOW.1)),
            Reply::Failed(least) | Reply::Lost(least) => {
                let (most, longest) =
                    if self.leads { (AGAIN.1, RENEW) } else { (self.timing.poll().max(AGAIN.1), LONGEST) };
                let wait = (self.dice.between(AGAIN.0, AGAIN.1) * doubled).min(most);
                wait.max(least.min(longest))
            }
            Reply::Answered(_) => Duration::ZERO,
        };
        self.not_before = turn.now + wait;
        self.wake(turn, wait);
    }

    /// After a request for the history that failed. Nobody waits for it but who has nothing to start from.
    pub(super) fn history_failed<T>(&mut self, turn: &mut Turn, failed: &Reply<T>) {
        let first = if matches!(failed, Reply::Denied) { SLOW.0 } else { 2 * SECOND };
        let wait = (first * (1 << self.history_failures.min(8))).min(SLOW.1);
        self.history_failures = self.history_failures.saturating_add(1);
        let least = if let Reply::Failed(least) | Reply::Lost(least) = failed { (*least).min(LONGEST) } else { first };
        let wait = self.dice.about(wait).max(least);
        self.history_not_before = turn.now + wait;
        self.wake(turn, wait);
    }

    /// Whether the Lease is as this replica wrote it, without a look.
    pub(super) fn is_trusted(&self, now: Duration, length: Duration) -> bool {
        self.renewed_at.is_some_and(|at| now.saturating_sub(at) < length)
    }

    fn step(&mut self, turn: &mut Turn) {
        if turn.me.newest.is_none() && turn.me.published.is_none() {
            return;
        }
        if self.asked.is_some() {
            self.again = true;
            return;
        }
        if self.ending {
            self.give_back(turn);
            return;
        }
        let me = &turn.me;
        // The edit was undone: no need to ask.
        if me.base.is_some() && me.newest == me.base && me.published != me.base && !me.busy {
            turn.me.busy = true;
            turn.effects.push(Effect::Back);
        }
        let me = &turn.me;
        let newer = me.newest.is_some() && me.newest != me.published;
        let pending = newer || me.is_unproven() || me.rejected.is_some() || me.claimed || me.reverted;
        if pending || self.leads || self.ready.is_some() {
            self.act_or_read(turn);
        }
    }

    fn act_or_read(&mut self, turn: &mut Turn) {
        if self.asked.is_some() {
            self.again = true;
            return;
        }
        let holds = self.leads && self.holds(&turn.me.uid);
        let known = holds && self.is_trusted(turn.now, TRUSTED) || self.ready.is_some() && self.is_fresh(turn.now);
        if known && !self.must_read {
            self.act(turn);
        } else {
            self.read(turn, self.must_read || holds || self.ready.is_some());
        }
    }

    /// Whether requests wait, as earlier ones failed. Not at the end: then there is no later.
    fn holds_back(&mut self, turn: &mut Turn) -> bool {
        let wait = self.not_before.saturating_sub(turn.now);
        if wait.is_zero() || self.ending {
            return false;
        }
        self.wake(turn, wait);
        true
    }

    pub(super) fn read(&mut self, turn: &mut Turn, quorum: bool) {
        if self.holds_back(turn) {
            return;
        }
        self.asked = Some(Asked::Read { quorum, sent: turn.now });
        turn.effects.push(Effect::Read { quorum });
    }

    pub(super) fn write(&mut self, turn: &mut Turn, lease: Lease, reason: Reason) {
        if self.holds_back(turn) {
            return;
        }
        // Before the request: its answer can be lost.
        if lease.holder == turn.me.uid {
            turn.set_claimed(true);
        }
        self.asked = Some(Asked::Write { lease: lease.clone(), reason, sent: turn.now });
        turn.effects.push(Effect::Write { lease, version: self.version.clone(), reason });
    }

    pub(super) fn give_back(&mut self, turn: &mut Turn) {
        if !self.holds(&turn.me.uid) {
            return;
        }
        if self.must_read {
            self.read(turn, true);
        } else if let Some(lease) = self.lease.clone() {
            self.write(turn, lease.given_back(), Reason::GivenBack);
        }
    }
}

impl Replica {
    /// Whether it has what the fleet is not known to have taken.
    pub(super) fn is_unproven(&self) -> bool {
        self.published.is_some() && self.published != self.base
    }
}

impl Turn {
    pub(super) fn set_claimed(&mut self, claimed: bool) {
        if self.me.claimed != claimed {
            self.me.claimed = claimed;
            self.effects.push(Effect::Claimed(claimed));
        }
    }
}
