//! One look: what the protocol says of what is known, carried out.

use std::time::Duration;

use super::decide::{Action, Clock, Why, decide, part, share};
use super::driver::{AGAIN, Asked, EXPIRES, FRESH, RENEW, Rollout, SECOND, SLOW, SOON, TRUSTED, Turn};
use super::io::Effect;
use super::lease::{Lease, Reason, State};
use crate::model::digest::Digest;

/// The gate is believed when it has not agreed so often in a row.
const REFUSALS: u32 = 2;

impl Rollout {
    fn clock(&self, turn: &Turn) -> Clock {
        let (now, me, timing) = (turn.now, &turn.me, &self.timing);
        let state = self.lease.as_ref().map(|lease| lease.state);
        let since = now.saturating_sub(self.state_since);
        let expired = self.lease.as_ref().is_some_and(|lease| {
            let lost = if lease.holder.is_empty() {
                now >= self.hold_off
            } else {
                now.saturating_sub(self.same_since) >= EXPIRES
            };
            lease.is_under_way() && lease.holder != me.uid && lost
        });
        let spreading = state == Some(State::Spreading);
        let agreed = self.agreed || !timing.gated;
        let mine = me.newest.map_or(0.0, |newest| share(&me.uid, newest));
        Clock {
            expired,
            my_moment: spreading && since >= part(timing.spread, mine),
            baked: state == Some(State::Baking) && since >= timing.bake && agreed,
            spread_over: spreading && since >= timing.end_of_spread() && agreed,
            no_verdict: now.saturating_sub(self.claimed_at) >= 3 * timing.confirm,
            history: self.history,
        }
    }

    pub(super) fn act(&mut self, turn: &mut Turn) {
        if self.asked.is_some() {
            self.again = true;
            return;
        }
        let waiting = self.ready;
        if waiting.is_some() {
            // The question is whether it would still begin it.
            turn.me.busy = false;
        }
        let clock = self.clock(turn);
        let mut action = decide(&turn.me, self.lease.as_ref(), clock);
        if self.refusals >= REFUSALS
            && self.holds(&turn.me.uid)
            && let Some((lease, candidate)) = self.lease.as_ref().and_then(|lease| Some((lease, lease.candidate?)))
        {
            action = Action::Write(lease.stop(candidate), Reason::Gate);
        }
        if action != Action::PollSlowly {
            self.patience = SLOW.0 / 2;
        }
        // A stale answer may make me wait, nothing else.
        if !self.quorum && (waiting.is_some() || !matches!(action, Action::Poll | Action::PollSlowly | Action::Renew)) {
            self.read(turn, true);
            return;
        }
        if let Some(change) = waiting
            && !matches!(action, Action::Go(to, _) if to == change)
        {
            self.ready = None;
            turn.effects.push(Effect::Drop(change));
        }
        self.carry_out(turn, action);
    }

    fn carry_out(&mut self, turn: &mut Turn, action: Action) {
        let poll = self.timing.poll();
        match action {
            Action::Rest => {
                self.leads = false;
                let me = &mut turn.me;
                if me.reverted && !me.busy && me.confirmed && me.base == me.published {
                    me.reverted = false;
                    turn.effects.push(Effect::RevertIsKnown);
                }
            }
            Action::Poll => {
                let wait = self.dice.about(poll);
                self.wake(turn, wait);
            }
            Action::PollSlowly => {
                self.patience = (2 * self.patience).min(SLOW.1);
                let wait = self.dice.about(self.patience);
                self.wake(turn, wait);
            }
            Action::Renew => self.renew(turn),
            Action::Go(change, why) => self.go(turn, change, why),
            Action::Back => {
                turn.me.busy = true;
                turn.effects.push(Effect::Back);
                self.wake(turn, poll);
            }
            Action::Settle => {
                turn.me.base = turn.me.published;
                turn.effects.push(Effect::Settle);
                self.act(turn);
            }
            Action::ForgetRejection => {
                turn.me.rejected = None;
                turn.effects.push(Effect::ForgetRejection);
                self.wake(turn, 2 * SOON);
            }
            Action::Write(lease, reason) => self.write(turn, lease, reason),
            // My sources first.
            Action::WriteHistory(_) if turn.me.newest.is_none() => self.wake(turn, AGAIN.1),
            Action::WriteHistory(_) if turn.now < self.history_not_before => {
                let wait = self.history_not_before.saturating_sub(turn.now);
                self.wake(turn, wait);
            }
            Action::WriteHistory(change) => {
                self.asked = Some(Asked::WriteHistory);
                turn.effects.push(Effect::WriteHistory(change));
            }
            Action::StartFromHistory(change) => {
                turn.me.busy = true;
                turn.effects.push(Effect::StartFromHistory(change));
                self.wake(turn, SECOND);
            }
        }
    }

    fn renew(&mut self, turn: &mut Turn) {
        let due = self.renewed_at.map_or(Duration::ZERO, |at| (at + RENEW).saturating_sub(turn.now));
        if due.is_zero() {
            self.write_renewed(turn);
            return;
        }
        let length = match self.state {
            Some((_, State::Baking)) => self.timing.bake,
            Some((_, State::Spreading)) => self.timing.end_of_spread(),
            _ => Duration::ZERO,
        };
        let ends = (self.state_since + length).saturating_sub(turn.now);
        let wait = if ends.is_zero() { due } else { due.min(ends) };
        self.wake(turn, wait.max(4 * SOON));
    }

    fn write_renewed(&mut self, turn: &mut Turn) {
        if let Some(lease) = self.lease.as_ref().map(Lease::renewed) {
            self.write(turn, lease, Reason::Renew);
        }
    }

    fn go(&mut self, turn: &mut Turn, change: Digest, why: Why) {
        let now = turn.now;
        let age = self.read_at.map_or(Duration::MAX, |at| now.saturating_sub(at));
        if why == Why::Hold
            && (age > FRESH.saturating_sub(SECOND) || !self.is_trusted(now, TRUSTED.saturating_sub(FRESH)))
        {
            self.write_renewed(turn);
        } else if age > FRESH {
            self.read(turn, true);
        } else if self.ready.take().is_some() {
            turn.effects.push(Effect::Publish(change));
            self.wake(turn, self.timing.poll());
        } else {
            turn.me.busy = true;
            turn.effects.push(Effect::Go(change, why));
            self.wake(turn, self.timing.poll());
        }
    }
}
