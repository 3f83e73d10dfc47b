//! The attempts to make the main process take what is published: reloads, confirmations, and the way back.

use std::time::Duration;

use super::work::{Pause, Work};
use super::{Effect, Intake, Machine, Milestone, Step, Timer, Verdict, Wait};
use crate::model::digest::Digest;
use crate::model::journal::{Baseline, Debt, DebtKind, Quarantine, Rejection};

/// How long a confirmation that has nobody to ask holds up newer inputs.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a main process must have gone on refusing before `--reload-attempts` refusals are final: a program that
/// starts or reloads often answers with an error for a second or two.
const REFUSED_FOR: Duration = Duration::from_secs(3);

impl Machine {
    pub(super) fn reload_is_due(&self) -> bool {
        self.journal.debt.is_some() && self.options.reload && !self.stopping
    }

    /// Nothing was tried yet of what is current now.
    pub(super) fn start_afresh(&mut self, effects: &mut Vec<Effect>) {
        if self.refusals > 0 && !self.refused_long {
            effects.push(Effect::Disarm(Timer::Refused));
        }
        (self.attempts, self.refusals, self.failures) = (0, 0, 0);
        (self.held, self.refused_long) = (false, false);
        self.end_pause(effects);
    }

    fn end_pause(&mut self, effects: &mut Vec<Effect>) {
        if std::mem::replace(&mut self.pause, Pause::None) == Pause::Running {
            effects.push(Effect::Disarm(Timer::Retry));
        }
    }

    pub(super) fn reload(&mut self, effects: &mut Vec<Effect>) {
        let Some(generation) = self.journal.current.clone() else { return };
        let published = self.published.clone();
        self.end_pause(effects);
        let step = self.step();
        self.attempts = self.attempts.saturating_add(1);
        self.work = Work::Reloading(step);
        effects.push(Effect::Reload { step, generation, published });
    }

    pub(super) fn reloaded(&mut self, step: Step, verdict: Verdict, effects: &mut Vec<Effect>) {
        if self.work != Work::Reloading(step) {
            return;
        }
        match verdict {
            Verdict::Took if self.options.confirm => self.confirm(effects),
            Verdict::Took => self.clear(effects),
            Verdict::Unreachable => self.note_debt(effects),
            Verdict::Died(rejection) => self.reject(rejection, effects),
            Verdict::Refused(rejection) => {
                self.refusals = self.refusals.saturating_add(1);
                // Who allows one attempt wants no second one.
                let final_at_once = self.options.attempts <= 1;
                if self.refusals >= self.options.attempts && (self.refused_long || final_at_once) {
                    self.reject(rejection, effects);
                    return;
                }
                if self.refusals == 1 {
                    effects.push(Effect::Arm(Timer::Refused, Wait::Exactly(REFUSED_FOR)));
                }
                self.note_debt(effects);
            }
        }
    }

    fn confirm(&mut self, effects: &mut Vec<Effect>) {
        let Some(current) = &self.journal.current else { return };
        let digest = current.digest;
        let baseline = self.journal.debt.as_ref().and_then(|debt| debt.baseline.clone());
        let step = self.step();
        self.work = Work::Confirming { step, impatient: false };
        effects.push(Effect::Confirm { step, digest, baseline });
        effects.push(Effect::Arm(Timer::Patience, Wait::Exactly(PATIENCE)));
    }

    pub(super) fn confirmed(&mut self, step: Step, verdict: Verdict, effects: &mut Vec<Effect>) {
        if !matches!(self.work, Work::Confirming { step: awaited, .. } if awaited == step) {
            return;
        }
        effects.push(Effect::Disarm(Timer::Patience));
        match verdict {
            Verdict::Took => self.clear(effects),
            Verdict::Unreachable => self.note_debt(effects),
            Verdict::Refused(rejection) | Verdict::Died(rejection) => self.reject(rejection, effects),
        }
    }

    /// The main process will not have the current generation: back to the last good one, if there is a way back.
    fn reject(&mut self, rejection: Rejection, effects: &mut Vec<Effect>) {
        // A Pod that ends takes its main process along, which then looks as if it had died of its configuration. The
        // debt stays, and the next start notifies it again.
        if self.stopping {
            self.resume(effects);
            return;
        }
        let good = self.way_back();
        match good {
            Some(generation) if self.options.rollback && self.journal.is_due(DebtKind::Publish) => {
                let step = self.step();
                self.work = Work::Verifying(step, Some(rejection));
                effects.push(Effect::Verify { step, generation });
            }
            _ => self.hold(rejection, effects),
        }
    }

    pub(super) fn verified(&mut self, step: Step, sound: bool, baseline: Option<Baseline>, effects: &mut Vec<Effect>) {
        let rejection = match std::mem::replace(&mut self.work, Work::Waiting) {
            Work::Verifying(awaited, rejection) if awaited == step => rejection,
            other => {
                self.work = other;
                return;
            }
        };
        if self.stopping {
            self.resume(effects);
        } else if sound {
            self.roll_back(rejection, baseline, effects);
        } else if let Some(rejection) = rejection {
            self.hold(rejection, effects);
        } else {
            self.resume(effects);
        }
    }

    fn roll_back(&mut self, rejection: Option<Rejection>, baseline: Option<Baseline>, effects: &mut Vec<Effect>) {
        let Some(good) = self.way_back() else { return };
        let by_fleet = rejection.is_none();
        if let (Some(rejected), Some(rejection)) = (self.have, rejection) {
            self.quarantine(rejected, rejection, effects);
        }
        if by_fleet && self.want != Some(good.inputs()) && self.intake == Intake::Calm {
            // They wait until the fleet lets them go.
            self.intake = Intake::Ready;
        }
        self.have = Some(good.inputs());
        self.redo = good.partial;
        self.journal.from = self.journal.current.replace(good);
        self.journal.debt = Some(Debt { kind: DebtKind::Rollback, published: None, baseline });
        self.journal.prev_debt = None;
        self.published = None;
        self.start_afresh(effects);
        self.astray = true;
        self.tidy(effects);
    }

    /// There is no way back: it stays, is reported, and reloaded again at the slowest pace. So does a rollback that
    /// failed.
    fn hold(&mut self, rejection: Rejection, effects: &mut Vec<Effect>) {
        let first = !std::mem::replace(&mut self.held, true);
        // Without a debt it was confirmed, and has not held.
        let rejected = self.have.filter(|_| first && !self.journal.is_due(DebtKind::Rollback));
        if let Some(rejected) = rejected {
            self.quarantine(rejected, rejection, effects);
        }
        if first {
            effects.push(Effect::Announce(Milestone::Held));
        }
        if rejected.is_some() {
            self.set_moment();
            self.note(effects);
        } else {
            self.note_debt(effects);
        }
    }

    /// Only the newest inputs are worth it: others are not tried again anyway.
    pub(super) fn quarantine(&mut self, digest: Digest, rejection: Rejection, effects: &mut Vec<Effect>) {
        self.remember_rejection(digest);
        let is_known = |known: &Quarantine| {
            let Rejection { stage, reason, at: _ } = &known.rejection;
            known.digest == digest && (*stage, reason) == (rejection.stage, &rejection.reason)
        };
        if self.want.is_some_and(|want| want != digest) || self.journal.quarantine.as_ref().is_some_and(is_known) {
            return;
        }
        let quarantine = Quarantine { digest, gate: self.options.gate, rejection };
        self.journal.quarantine = Some(quarantine.clone());
        effects.push(Effect::Announce(Milestone::Rejected(quarantine)));
    }

    /// Writes down when the current generation was published, if that is not known yet: only a debt that lasts is worth
    /// a write, and until then a crash costs one reload too many, and no more.
    fn note_debt(&mut self, effects: &mut Vec<Effect>) {
        if self.set_moment() { self.note(effects) } else { self.resume(effects) }
    }

    fn set_moment(&mut self) -> bool {
        let published = self.published.clone();
        self.journal
            .debt
            .as_mut()
            .is_some_and(|debt| std::mem::replace(&mut debt.published, published.clone()) != published)
    }
}
