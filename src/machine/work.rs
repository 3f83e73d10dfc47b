//! The work: one step at a time on what was taken in, or a wait between two attempts.

use std::time::Duration;

use super::{Effect, Intake, Machine, Milestone, Outcome, Step, Timer, Verdict, Wait, Write, WriteKind};
use crate::model::digest::Digest;
use crate::model::journal::{Baseline, Debt, DebtKind, Generation, Journal, Moment, Quarantine, Rejection};
use crate::model::made_of::MadeOf;
use crate::model::stage::Stage;

/// How long a confirmation that has nobody to ask holds up newer inputs.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a main process must have gone on refusing before `--reload-attempts` refusals are final: a program that
/// starts or reloads often answers with an error for a second or two.
const REFUSED_FOR: Duration = Duration::from_secs(3);

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
    /// The main process is being asked or watched. Impatient: newer inputs have waited for [`PATIENCE`].
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

/// The writes that a step asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked(Vec<WriteKind>);

impl Asked {
    fn for_writes(writes: &[Write]) -> Self {
        Self(writes.iter().map(Write::kind).collect())
    }

    /// Whether this write was among the first `done`.
    fn did(&self, done: usize, kind: WriteKind) -> bool {
        self.0.iter().take(done).any(|asked| *asked == kind)
    }

    /// Whether this write was the first that was not done: it may have happened all the same.
    fn failed_at(&self, done: usize, kind: WriteKind) -> bool {
        self.0.get(done) == Some(&kind)
    }

    fn did_all(&self, done: usize) -> bool {
        done >= self.0.len()
    }
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
        let same = Generation { partial, made_of: Some(made_of), ..current.clone() };
        for generation in [&mut self.journal.current, &mut self.journal.last_good].into_iter().flatten() {
            if *generation == current {
                generation.clone_from(&same);
            }
        }
        same != current
    }

    pub(super) fn commit(
        &mut self,
        digest: Digest,
        candidate: Generation,
        baseline: Option<Baseline>,
        effects: &mut Vec<Effect>,
    ) {
        let debt = self.options.reload.then(|| Debt { baseline, ..Debt::default() });
        let journal = Journal {
            next_sequence: candidate.sequence.saturating_add(1),
            from: self.journal.current.clone(),
            last_good: if debt.is_some() { self.journal.last_good.clone() } else { Some(candidate.clone()) },
            prev_debt: self.journal.debt.clone(),
            current: Some(candidate.clone()),
            debt,
            quarantine: None,
            fleet: self.journal.fleet.clone(),
            ..self.journal
        };
        let prune = prunes(&journal).then(|| Write::Prune(keep(&journal)));
        let mut writes = vec![
            Write::Journal(Box::new(journal.clone())),
            Write::Link(candidate.clone()),
            Write::Swap(candidate.clone()),
            Write::Unlink(candidate),
        ];
        writes.extend(prune);
        let step = self.step();
        self.work = Work::Committing(step, Asked::for_writes(&writes), digest, Box::new(journal));
        effects.push(Effect::Write { step, writes });
    }

    pub(super) fn written(&mut self, step: Step, done: usize, at: Option<Moment>, effects: &mut Vec<Effect>) {
        match std::mem::replace(&mut self.work, Work::Waiting) {
            Work::Tidying(awaited, asked) if awaited == step => {
                self.dirty = !asked.did_all(done);
                self.tidied(asked.did(done, WriteKind::Swap), at, effects);
            }
            Work::Committing(awaited, asked, digest, journal) if awaited == step => {
                if asked.did(done, WriteKind::Swap) {
                    self.dirty = !asked.did_all(done);
                    self.committed(digest, *journal, at, effects);
                } else {
                    self.not_committed(asked.failed_at(done, WriteKind::Swap), &journal, effects);
                }
            }
            // Where it was not written, a crash costs one signal, or one rejection, too many.
            Work::Noting(awaited) if awaited == step => self.resume(effects),
            Work::Clearing(awaited, asked, journal) if awaited == step => {
                if asked.did(done, WriteKind::Journal) {
                    self.dirty |= !asked.did_all(done);
                    self.cleared(*journal, effects);
                } else {
                    self.attempts = self.attempts.saturating_add(1);
                    self.back_off(Next::Clear, self.attempts, effects);
                    self.exit_if_stopping(effects);
                }
            }
            other => self.work = other,
        }
    }

    /// `turned`: whether `..data` was renamed to the current generation.
    fn tidied(&mut self, turned: bool, at: Option<Moment>, effects: &mut Vec<Effect>) {
        if self.astray && !turned {
            self.failures = self.failures.saturating_add(1);
            self.back_off(Next::Tidy, self.failures, effects);
            self.exit_if_stopping(effects);
            return;
        }
        if self.dirty && self.intake == Intake::Ready {
            self.postpone(effects);
        }
        if !turned {
            self.resume(effects);
            return;
        }
        self.astray = false;
        self.published = at;
        if let Some(current) = self.journal.current.clone() {
            // What a rename that failed may have made current was not rejected: nothing is kept of it.
            let milestone = match &self.journal.from {
                Some(from) => Milestone::RolledBack { from: from.sequence, to: current },
                None => Milestone::TurnedBack(current),
            };
            effects.push(Effect::Announce(milestone));
        }
        // As after a commit.
        if self.reload_is_due() { self.reload(effects) } else { self.resume(effects) }
    }

    fn committed(&mut self, digest: Digest, journal: Journal, at: Option<Moment>, effects: &mut Vec<Effect>) {
        self.have = Some(digest);
        self.redo = false;
        self.adopt(journal);
        self.published = at;
        self.start_afresh(effects);
        if let Some(current) = self.journal.current.clone() {
            effects.push(Effect::Announce(Milestone::Published(current.clone())));
            if self.journal.debt.is_none() {
                effects.push(Effect::Announce(Milestone::Confirmed { generation: current, again: false }));
            }
        }
        if !self.options.min_interval.is_zero() {
            self.interval_open = false;
            effects.push(Effect::Arm(Timer::Interval, Wait::Exactly(self.options.min_interval)));
            // What was ready before this publish was done is to be paced by it as well.
            if matches!(self.intake, Intake::Splaying | Intake::Ready) {
                self.calm(effects);
                self.intake = Intake::Paced;
            }
        }
        // The reload of what was published comes before newer inputs, or endless edits would starve it.
        if self.reload_is_due() { self.reload(effects) } else { self.resume(effects) }
    }

    /// `at_swap`: the rename failed, and may have happened all the same.
    fn not_committed(&mut self, at_swap: bool, announced: &Journal, effects: &mut Vec<Effect>) {
        // The journal may have been written: it announces what the link does not name, which recovery undoes. But a
        // rename whose fsync failed may have happened, and somebody may have read what it made visible.
        if at_swap {
            self.journal.next_sequence = announced.next_sequence;
            self.astray = self.journal.current.is_some();
            self.published = None;
            if self.options.reload && self.astray {
                let debt = self.journal.debt.take();
                let kind = debt.map_or(DebtKind::Rollback, |debt| debt.kind);
                self.journal.debt = Some(Debt { kind, ..Debt::default() });
            }
        }
        self.again(effects);
    }

    fn cleared(&mut self, journal: Journal, effects: &mut Vec<Effect>) {
        let again = self.journal.is_due(DebtKind::Rollback);
        self.adopt(journal);
        self.start_afresh(effects);
        if let Some(generation) = self.journal.current.clone() {
            effects.push(Effect::Announce(Milestone::Confirmed { generation, again }));
        }
        self.resume(effects);
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

    fn back_off(&mut self, next: Next, attempts: u32, effects: &mut Vec<Effect>) {
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

    /// Takes a journal that was written for what is on the disk now. The quarantine is of the newest inputs, which may
    /// have changed since it was made: what is known of them stays, unless they were taken after all.
    fn adopt(&mut self, journal: Journal) {
        let quarantine = self.journal.quarantine.take().filter(|quarantine| Some(quarantine.digest) != self.have);
        // What was remembered meanwhile is newer.
        let fleet = self.journal.fleet.take();
        self.journal = Journal { quarantine, fleet, ..journal };
    }

    fn reload_is_due(&self) -> bool {
        self.journal.debt.is_some() && self.options.reload && !self.stopping
    }

    /// Nothing was tried yet of what is current now.
    fn start_afresh(&mut self, effects: &mut Vec<Effect>) {
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

    /// After a failed write: the output is put in order, the debt paid, and then the newest inputs are tried again.
    fn again(&mut self, effects: &mut Vec<Effect>) {
        // What was current before the current generation is kept for slow readers alone. It must not take the room that
        // the next try needs.
        self.journal.from = None;
        self.postpone(effects);
        self.tidy(effects);
    }

    fn postpone(&mut self, effects: &mut Vec<Effect>) {
        self.failures = self.failures.saturating_add(1);
        self.calm(effects);
        self.intake = Intake::Again;
        effects.push(Effect::Arm(Timer::Again, Wait::Backoff(self.failures)));
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
        if by_fleet && self.want != Some(good.digest) && self.intake == Intake::Calm {
            // They wait until the fleet lets them go.
            self.intake = Intake::Ready;
        }
        self.have = Some(good.digest);
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
        let rejected = self.have.filter(|_| first && self.journal.is_due(DebtKind::Publish));
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
    fn quarantine(&mut self, digest: Digest, rejection: Rejection, effects: &mut Vec<Effect>) {
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

    /// Writes the journal, unless newer inputs are about to.
    fn note(&mut self, effects: &mut Vec<Effect>) {
        let newer = self.intake == Intake::Ready && self.want != self.have && self.may_go();
        if newer { self.resume(effects) } else { self.write_journal(effects) }
    }

    pub(super) fn write_journal(&mut self, effects: &mut Vec<Effect>) {
        let step = self.step();
        effects.push(Effect::Write { step, writes: vec![Write::Journal(Box::new(self.journal.clone()))] });
        self.work = Work::Noting(step);
    }

    /// Writes the debt off: the current generation is confirmed.
    pub(super) fn clear(&mut self, effects: &mut Vec<Effect>) {
        let journal = Box::new(Journal {
            last_good: self.journal.current.clone(),
            debt: None,
            prev_debt: None,
            // What was held, and is taken after all.
            quarantine: self.journal.quarantine.clone().filter(|quarantine| Some(quarantine.digest) != self.have),
            ..self.journal.clone()
        });
        let writes = vec![Write::Journal(journal.clone()), Write::Prune(keep(&journal))];
        let step = self.step();
        self.work = Work::Clearing(step, Asked::for_writes(&writes), journal);
        effects.push(Effect::Write { step, writes });
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

    fn exit_if_stopping(&mut self, effects: &mut Vec<Effect>) {
        if self.stopping && matches!(self.work, Work::Waiting | Work::Backoff(_)) {
            self.work = Work::Exited;
            effects.push(Effect::Exit);
        }
    }

    /// Puts the output directory in order around the current generation: its links, and nothing that a crash or a
    /// failed commit left.
    pub(super) fn tidy(&mut self, effects: &mut Vec<Effect>) {
        let mut writes = Vec::new();
        if let Some(current) = &self.journal.current {
            if self.astray {
                writes.push(Write::Journal(Box::new(self.journal.clone())));
            }
            writes.push(Write::Link(current.clone()));
            if self.astray {
                writes.push(Write::Swap(current.clone()));
            }
            writes.push(Write::Unlink(current.clone()));
        }
        writes.push(Write::Prune(keep(&self.journal)));
        let step = self.step();
        self.work = Work::Tidying(step, Asked::for_writes(&writes));
        effects.push(Effect::Write { step, writes });
    }
}

/// Whether the commit to this journal removes what it does not need any more. Otherwise the step after its confirmation
/// does, and the main process need not wait for it; while a debt lasts, or where there is none, nobody else would.
fn prunes(journal: &Journal) -> bool {
    journal.debt.is_none() || journal.prev_debt.is_some()
}

/// The directories that must stay: at most three, or four with a rollout.
fn keep(journal: &Journal) -> Vec<String> {
    let base = journal.fleet.as_ref().map_or(&None, |fleet| &fleet.base);
    let mut keep: Vec<_> = [&journal.current, &journal.from, &journal.last_good, base]
        .into_iter()
        .flatten()
        .map(|generation| generation.directory.clone())
        .collect();
    keep.sort_unstable();
    keep.dedup();
    keep
}
