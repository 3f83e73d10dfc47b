//! What became of a request, its lost answer included.

use std::time::Duration;

use super::decide::Replica;
use super::driver::{AGAIN, Asked, HOLD_OFF, Rollout, SOON, Turn};
use super::io::{Effect, Found, Reply, Version};
use super::lease::{Lease, Reason, State};

impl Rollout {
    pub(super) fn answered(&mut self, turn: &mut Turn, end: impl FnOnce(&mut Self, &mut Turn, Asked)) {
        let Some(asked) = self.asked.take() else { return };
        end(self, turn, asked);
        if self.again && self.asked.is_none() {
            self.again = false;
            self.wake(turn, 2 * SOON);
        }
    }

    pub(super) fn read_ended(&mut self, turn: &mut Turn, asked: &Asked, reply: Reply<Option<(Version, Lease)>>) {
        let Asked::Read { quorum, sent } = *asked else { return };
        let found = match reply {
            Reply::Answered(found) => found,
            failed => {
                self.try_again(turn, &failed);
                return;
            }
        };
        // I was blind until now: the holder's time starts anew.
        let was_blind = std::mem::take(&mut self.failures) > 0;
        self.must_read = false;
        self.saw(turn, found, quorum);
        if was_blind {
            self.same_since = turn.now;
        }
        (self.quorum, self.read_at) = (quorum, Some(sent));
        let me = &turn.me;
        if self.ending {
            self.give_back(turn);
        } else if self.wants_history(me, turn.now) {
            self.asked = Some(Asked::ReadHistory);
            turn.effects.push(Effect::ReadHistory);
        } else {
            self.act(turn);
        }
    }

    /// Whether what new Pods start from may help: it has nothing that was good, and its newest is not known to be.
    fn wants_history(&self, me: &Replica, now: Duration) -> bool {
        let may_use = me.base.is_none() && !me.confirmed && self.lease.is_some();
        let needs = me.newest.is_none_or(|newest| !self.knows_good(newest));
        may_use && needs && self.history.is_none() && now >= self.history_not_before
    }

    pub(super) fn history_read(&mut self, turn: &mut Turn, reply: &Reply<Option<Found>>) {
        let found = match reply {
            Reply::Answered(found) => found,
            Reply::Denied => {
                // Nobody knows for how long: it goes on as where there is none.
                self.history_failed(turn, reply);
                self.act(turn);
                return;
            }
            Reply::Failed(_) | Reply::Lost(_) => {
                self.try_again(turn, reply);
                return;
            }
        };
        self.history_failures = 0;
        let usable = |found: &Found| {
            let stopped = self.lease.as_ref().is_some_and(|lease| lease.stopped.contains(&found.mine));
            found.is_ours && self.knows_good(found.change) && !stopped
        };
        self.history = found.as_ref().filter(|found| usable(found)).map(|found| found.mine);
        self.act(turn);
    }

    pub(super) fn write_ended(&mut self, turn: &mut Turn, asked: Asked, reply: Reply<Option<Version>>) {
        let Asked::Write { lease, reason, sent } = asked else { return };
        let version = match reply {
            Reply::Answered(Some(version)) => version,
            Reply::Answered(None) => {
                self.failures = 0;
                self.must_read |= self.ending;
                self.read(turn, true);
                return;
            }
            Reply::Failed(least) | Reply::Lost(least) if least.is_zero() && self.failures == 0 => {
                // Whether it was done is seen at once.
                (self.must_read, self.failures) = (true, 1);
                self.wake(turn, 6 * SOON);
                return;
            }
            failed => {
                self.must_read = true;
                self.try_again(turn, &failed);
                return;
            }
        };
        self.failures = 0;
        let mine = lease.holder == turn.me.uid;
        self.saw(turn, Some((version, lease)), true);
        (self.quorum, self.read_at) = (true, Some(sent));
        if mine {
            (self.renewed_at, self.leads) = (Some(sent), true);
            if matches!(reason, Reason::Claim | Reason::Replaced) {
                self.claimed_at = turn.now;
                self.refusals = 0;
            }
        }
        match reason {
            Reason::Reverted => {
                turn.me.reverted = false;
                turn.effects.push(Effect::RevertIsKnown);
            }
            Reason::GivenUp => {
                self.leads = false;
                self.hold_off = turn.now + HOLD_OFF;
                if turn.me.is_unproven() && turn.me.base.is_some() {
                    turn.me.busy = true;
                    turn.effects.push(Effect::Back);
                }
                self.wake(turn, AGAIN.1);
                return;
            }
            _ => {}
        }
        if self.ending { self.give_back(turn) } else { self.act(turn) }
    }

    fn saw(&mut self, turn: &mut Turn, found: Option<(Version, Lease)>, quorum: bool) {
        let now = turn.now;
        let (version, lease) = found.unzip();
        // After a gap, the holder's time starts anew.
        if version != self.version || now.saturating_sub(self.last_look) > self.timing.poll().mul_f64(2.5) {
            self.same_since = now;
        }
        self.last_look = now;
        let state = lease.as_ref().map(|lease| (lease.candidate, lease.state));
        if state != self.state {
            (self.state, self.state_since, self.agreed) = (state, now, false);
        }
        (self.version, self.lease) = (version, lease);
        if self.holds(&turn.me.uid) {
            return;
        }
        self.leads = false;
        let me = &turn.me;
        let ended_by_me = self.lease.as_ref().is_some_and(|lease| {
            let same = me.newest.is_none() || me.newest == lease.candidate;
            lease.state == State::Done && lease.holder == me.uid && same
        });
        if quorum && !ended_by_me {
            turn.set_claimed(false);
        }
    }
}
