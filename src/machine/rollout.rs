//! What the machine learns of a rollout: *go*, *wait* and *back*. Waiting is what inputs do until they may go.

use super::work::{Next, Work};
use super::{Effect, Intake, Leave, Machine, Memory, Step};
use crate::model::digest::Digest;
use crate::model::journal::{Baseline, DebtKind, Fleet, Generation, Rejection};

impl Machine {
    /// Whether a step is in flight: not where the main process cannot be reached, or nothing is to be done.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !matches!(self.work, Work::Waiting | Work::Backoff(_) | Work::Exited)
    }

    /// Whether the newest inputs are ready, and the fleet has not let them go.
    #[must_use]
    pub fn waits_for_fleet(&self) -> bool {
        !self.may_go() && matches!(self.intake, Intake::Ready) && self.want != self.have
    }

    /// Whether what is published has no verdict yet.
    #[must_use]
    pub fn owes_verdict(&self) -> bool {
        self.journal.debt.is_some() && !self.held
    }

    /// The generation that a rejection leads back to, with what the main process reads by itself as that is now: that is
    /// not taken back, and where nothing else has changed there is no way back.
    #[must_use]
    pub fn way_back(&self) -> Option<Generation> {
        let base = self.journal.fleet.as_ref().and_then(|fleet| fleet.base.as_ref());
        let good = base.or(self.journal.last_good.as_ref())?;
        let Some(current) = &self.journal.current else { return Some(good.clone()) };
        let same_files = good.content == current.content && good.content != Digest::UNKNOWN;
        let leads_back = good.directory != current.directory && (good.observed == current.observed || !same_files);
        leads_back.then(|| good.clone().beside(current.observed))
    }

    pub(super) fn may_go(&self) -> bool {
        !self.options.rollout || self.leave.is_some_and(|leave| Some(leave.inputs) == self.want)
    }

    pub(super) fn let_go(&mut self, leave: Leave, effects: &mut Vec<Effect>) {
        self.leave = Some(leave);
        self.go(effects);
    }

    /// The candidate is staged: may it still go?
    pub(super) fn ask(
        &mut self,
        digest: Digest,
        candidate: Generation,
        baseline: Option<Baseline>,
        effects: &mut Vec<Effect>,
    ) {
        let step = self.step();
        self.work = Work::Asking(step, digest, Box::new((candidate, baseline)));
        effects.push(Effect::Ask(step));
    }

    pub(super) fn allowed(&mut self, step: Step, allowed: bool, effects: &mut Vec<Effect>) {
        let (digest, staged) = match std::mem::replace(&mut self.work, Work::Waiting) {
            Work::Asking(awaited, digest, staged) if awaited == step => (digest, staged),
            other => {
                self.work = other;
                return;
            }
        };
        let leave = self.leave.filter(|leave| leave.inputs == digest);
        if let Some(leave) = leave.filter(|_| allowed && !self.stopping) {
            let (candidate, baseline) = *staged;
            if let Some(fleet) = &mut self.journal.fleet {
                // It counts only while this is what is published.
                fleet.reverted = (leave.good && self.have.is_some()).then_some(leave.change).or(fleet.reverted);
            }
            let change = Some(leave.change);
            self.commit(digest, Generation { change, ..candidate }, baseline, effects);
            return;
        }
        // What was staged is junk now.
        self.leave = None;
        self.dirty = true;
        if self.intake == Intake::Calm && self.want != self.have {
            self.intake = Intake::Ready;
        }
        self.resume(effects);
    }

    /// As after a rejection, but for the quarantine: it was not rejected here.
    pub(super) fn back(&mut self, effects: &mut Vec<Effect>) {
        let idle = matches!(self.work, Work::Waiting | Work::Backoff(Next::Reload));
        if let Some(generation) = self.way_back().filter(|_| idle && !self.stopping && !self.astray) {
            self.leave = None;
            let step = self.step();
            self.work = Work::Verifying(step, None);
            effects.push(Effect::Verify { step, generation });
        }
    }

    /// As a rejection of what the main process has just been notified of.
    pub(super) fn not_held(&mut self, rejection: Rejection, retries: u64, effects: &mut Vec<Effect>) {
        let idle = self.work == Work::Waiting && self.journal.debt.is_none();
        let Some(generation) = self.way_back().filter(|_| idle && !self.stopping && !self.astray) else { return };
        self.leave = None;
        if let Some(fleet) = &mut self.journal.fleet {
            fleet.retries = retries;
        }
        let step = self.step();
        self.work = Work::Verifying(step, Some(rejection));
        effects.push(Effect::Verify { step, generation });
    }

    /// What is published is this change as well, and nothing had to be written for it.
    pub(super) fn took_over(&mut self, leave: Leave, current: &Generation) {
        let Some(fleet) = &mut self.journal.fleet else { return };
        fleet.reverted = leave.good.then_some(leave.change).or(fleet.reverted);
        if leave.base {
            fleet.base = Some(current.clone());
        }
    }

    /// The fleet's part of the journal that announces a candidate.
    pub(super) fn announced(&self, candidate: &Generation) -> Option<Fleet> {
        let mut fleet = self.journal.fleet.clone()?;
        if self.leave.is_some_and(|leave| leave.base && Some(leave.change) == candidate.change) {
            fleet.base = Some(candidate.clone());
        }
        Some(fleet)
    }

    pub(super) fn remember(&mut self, memory: Memory, effects: &mut Vec<Effect>) {
        let current = self.journal.current.clone().filter(|_| self.journal.debt.is_none());
        let Some(fleet) = &mut self.journal.fleet else { return };
        let before = fleet.clone();
        match memory {
            Memory::Settle => fleet.base = current.or(fleet.base.take()),
            Memory::Claimed(claimed) => fleet.claimed = claimed,
            Memory::RevertIsKnown => fleet.reverted = None,
            Memory::ForgetRejection => fleet.rejected = None,
        }
        // A step in flight ends in a write of its own.
        let idle = matches!(self.work, Work::Waiting | Work::Backoff(Next::Reload)) && !self.stopping;
        if *fleet != before && idle {
            self.write_journal(effects);
        }
        if memory == Memory::ForgetRejection {
            self.retry(effects);
        }
    }

    /// These inputs were rejected: of which change, and after how many tries.
    pub(super) fn remember_rejection(&mut self, inputs: Digest) {
        let published = self.journal.current.as_ref().filter(|_| Some(inputs) == self.have);
        let change = published.and_then(|current| current.change);
        // Leave is for one try.
        let leave = self.leave.take_if(|leave| leave.inputs == inputs);
        let Some(fleet) = &mut self.journal.fleet else { return };
        if let Some(change) = change.or(leave.map(|leave| leave.change)) {
            let retries = leave.map_or(fleet.retries, |leave| leave.retries);
            *fleet = Fleet { rejected: Some(change), retries, ..fleet.clone() };
        }
    }

    /// What is published is of this change, though the journal does not say so: it is from before the rollout.
    pub fn know_change(&mut self, change: Digest) {
        if self.want.is_some() && self.want == self.have && !self.journal.is_due(DebtKind::Rollback) {
            for generation in [&mut self.journal.current, &mut self.journal.last_good].into_iter().flatten() {
                if Some(generation.digest) == self.have {
                    generation.change.get_or_insert(change);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
