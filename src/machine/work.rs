//! The work: one step at a time on what was taken in, or a wait between two attempts.

use super::writes::Asked;
use super::{Effect, Intake, Machine, Outcome, Step, Timer, Wait};
use crate::model::digest::Digest;
use crate::model::journal::{Baseline, Generation, Journal, Rejection};
use crate::model::made_of::MadeOf;
use crate::model::stage::Stage;

/// The step in flight, or the wait between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Nothing to do.
    Waiting,
    /// Links are redone and left-overs removed, after a start or a failed commit; `..data` is turned back if need be.
    Tidying(Step, Asked),
    /// These inputs are rendered and staged.
    Rendering(Step, Digest),
    /// The candidate of these inputs is staged, and the fleet is asked whether it may be published.
    Asking(Step, Digest, Box<(Generation, Option<Baseline>)>),
    /// The candidate of these inputs is published, and this journal announces it.
    Committing(Step, Asked, Digest, Box<Journal>),
    /// The main process is being notified.
    Reloading(Step),
    /// The main process is being asked or watched. Impatient: newer inputs have waited for long.
    Confirming { step: Step, impatient: bool },
    /// The last good generation is checked, as the current one was rejected, here or (without a word why) elsewhere.
    Verifying(Step, Option<Rejection>),
    /// A quarantine is written down, or the moment of a publish whose debt will last.
    Noting(Step),
    /// The debt is written off.
    Clearing(Step, Asked, Box<Journal>),
    /// Until the next try.
    Backoff(Next),
    /// After [`Effect::Exit`].
    Exited,
}

/// What a backoff is followed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The next reload attempt.
    Reload,
    /// The next try to write the debt off.
    Clear,
    /// The next try to put the output in order. Before `..data` names the current generation, nobody is notified.
    Tidy,
}

/// The pause before the next reload attempt. It runs on while newer inputs are rendered, or edits that come faster than
/// the backoff would keep a pending reload from ever being tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// No attempt failed, or one is in flight.
    None,
    /// Its timer runs.
    Running,
    /// It was over while something else was in flight.
    Over,
}

impl Machine {
    pub(super) fn render(&mut self, effects: &mut Vec<Effect>) {
        let Some(want) = self.want else { return };
        if matches!(self.work, Work::Backoff(Next::Tidy)) {
            effects.push(Effect::Disarm(Timer::Backoff));
        }
        if self.dirty {
            self.tidy(effects);
            return;
        }
        self.intake = Intake::Calm;
        let step = self.step();
        self.work = Work::Rendering(step, want);
        let unless = self.journal.current.as_ref().map(|current| current.tree);
        effects.push(Effect::Render { step, sequence: self.journal.next_sequence, unless });
    }

    pub(super) fn rendered(&mut self, step: Step, outcome: Outcome, effects: &mut Vec<Effect>) {
        let Work::Rendering(awaited, digest) = self.work else { return };
        if awaited != step {
            return;
        }
        match outcome {
            Outcome::Staged { candidate, baseline } if !self.stopping && self.options.rollout => {
                self.ask(digest, candidate, baseline, effects);
            }
            Outcome::Staged { candidate, baseline } if !self.stopping => {
                self.commit(digest, candidate, baseline, effects);
            }
            // What was staged is junk now: the next start removes it.
            Outcome::Staged { .. } => self.resume(effects),
            Outcome::Same { partial, made_of } => {
                self.have = Some(digest);
                self.failures = 0;
                self.redo = false;
                if self.take_over(partial, made_of) {
                    self.write_journal(effects);
                } else {
                    self.resume(effects);
                }
            }
            Outcome::Rejected(rejection) => {
                // A validator may fail for a reason that passes, such as a name that does not resolve yet. As long as
                // nothing is published, giving up would keep the Pod from ever becoming ready.
                let again = self.journal.current.is_none() && rejection.stage == Stage::Validate;
                self.quarantine(digest, rejection, effects);
                if again && self.intake == Intake::Calm {
                    self.postpone(effects);
                } else {
                    self.failures = 0;
                }
                self.note(effects);
            }
            Outcome::Failed => self.again(effects),
        }
    }

    /// The current generation is the one that other inputs would make, too; says whether that changes the journal.
    fn take_over(&mut self, partial: bool, made_of: MadeOf) -> bool {
        let Some(current) = self.journal.current.clone() else { return false };
        let leave = self.leave.filter(|leave| Some(leave.inputs) == self.have);
        let change = leave.map(|leave| leave.change).or(current.change);
        let same = Generation { partial, made_of: Some(made_of), change, ..current.clone() };
        for generation in [&mut self.journal.current, &mut self.journal.last_good].into_iter().flatten() {
            if *generation == current {
                generation.clone_from(&same);
            }
        }
        let before = self.journal.fleet.clone();
        if let Some(leave) = leave {
            self.took_over(leave, &same);
        }
        same != current || self.journal.fleet != before
    }

    /// Goes on after a step: newer inputs first, then the pending reload.
    pub(super) fn resume(&mut self, effects: &mut Vec<Effect>) {
        self.work = Work::Waiting;
        if self.want == self.have && self.intake != Intake::Calm && !self.redo {
            self.calm(effects);
        }
        // Its deadline has passed: it waits for no further render.
        if self.pause == Pause::Over && self.reload_is_due() {
            self.reload(effects);
            return;
        }
        self.go(effects);
        if self.work == Work::Waiting && self.journal.debt.is_some() && !self.stopping {
            if !self.options.reload {
                self.clear(effects);
            } else if self.attempts == 0 {
                self.reload(effects);
            } else {
                let attempts = if self.held { u32::MAX } else { self.attempts };
                self.back_off(Next::Reload, attempts, effects);
            }
        }
        // What a failed write left is not left until newer inputs come.
        if self.work == Work::Waiting && self.intake == Intake::Calm && self.dirty && !self.stopping {
            self.failures = self.failures.saturating_add(1);
            self.back_off(Next::Tidy, self.failures, effects);
        }
        self.exit_if_stopping(effects);
    }

    pub(super) fn back_off(&mut self, next: Next, attempts: u32, effects: &mut Vec<Effect>) {
        self.work = Work::Backoff(next);
        match next {
            Next::Reload if self.pause != Pause::None => {}
            Next::Reload => {
                self.pause = Pause::Running;
                effects.push(Effect::Arm(Timer::Retry, Wait::Backoff(attempts)));
            }
            Next::Clear | Next::Tidy => effects.push(Effect::Arm(Timer::Backoff, Wait::Backoff(attempts))),
        }
    }

    /// After a failed write: the output is put in order, the debt paid, and then the newest inputs are tried again.
    pub(super) fn again(&mut self, effects: &mut Vec<Effect>) {
        // What was current before the current generation is kept for slow readers alone. It must not take the room that
        // the next try needs.
        self.journal.from = None;
        self.postpone(effects);
        self.tidy(effects);
    }

    pub(super) fn postpone(&mut self, effects: &mut Vec<Effect>) {
        self.failures = self.failures.saturating_add(1);
        self.calm(effects);
        self.intake = Intake::Again;
        effects.push(Effect::Arm(Timer::Again, Wait::Backoff(self.failures)));
    }

    pub(super) fn retry(&mut self, effects: &mut Vec<Effect>) {
        self.journal.quarantine = None;
        self.start_afresh(effects);
        self.redo = self.is_partial();
        if self.want.is_some() && (self.redo || self.want != self.settled_on()) {
            self.ready(effects);
        }
        match self.work {
            Work::Backoff(Next::Reload) => self.reload(effects),
            Work::Backoff(_) => {
                effects.push(Effect::Disarm(Timer::Backoff));
                self.fired(Timer::Backoff, effects);
            }
            _ => {}
        }
    }

    pub(super) fn shutdown(&mut self, effects: &mut Vec<Effect>) {
        self.stopping = true;
        if let Work::Asking(..) = self.work {
            self.work = Work::Waiting;
        }
        if let Work::Confirming { step, .. } = self.work {
            effects.push(Effect::Hurry(step));
        }
        self.exit_if_stopping(effects);
    }

    pub(super) fn exit_if_stopping(&mut self, effects: &mut Vec<Effect>) {
        if self.stopping && matches!(self.work, Work::Waiting | Work::Backoff(_)) {
            self.work = Work::Exited;
            effects.push(Effect::Exit);
        }
    }
}
