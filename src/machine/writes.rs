//! The steps that write: a commit, the tidying of what one left, and a debt that is written off.

use super::work::{Next, Work};
use super::{Effect, Intake, Machine, Milestone, Step, Timer, Wait, Write, WriteKind};
use crate::model::digest::Digest;
use crate::model::journal::{Baseline, Debt, DebtKind, Generation, Journal, Moment};

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
            fleet: self.announced(&candidate),
            ..self.journal
        };
        let mut writes = vec![
            Write::Journal(Box::new(journal.clone())),
            Write::Link(candidate.clone()),
            Write::Swap(candidate.clone()),
            Write::Unlink(candidate),
        ];
        // The last good generation stays until one that is on the disk takes its place: a power loss may take all others.
        if journal.debt.is_none() {
            writes.push(Write::Sync);
        }
        if prunes(&journal) {
            writes.push(Write::Prune(keep(&journal)));
        }
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
        let base = journal.fleet.as_ref().and_then(|fleet| fleet.base.clone());
        if let Some(fleet) = self.journal.fleet.as_mut().filter(|_| base == journal.current) {
            fleet.base = base;
        }
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

    /// Takes a journal that was written for what is on the disk now. The quarantine is of the newest inputs, which may
    /// have changed since it was made: what is known of them stays, unless they were taken after all.
    fn adopt(&mut self, journal: Journal) {
        let quarantine = self.journal.quarantine.take().filter(|quarantine| Some(quarantine.digest) != self.have);
        // What was remembered meanwhile is newer.
        let fleet = self.journal.fleet.take();
        self.journal = Journal { quarantine, fleet, ..journal };
    }

    /// Writes the journal, unless newer inputs are about to.
    pub(super) fn note(&mut self, effects: &mut Vec<Effect>) {
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
        // What is called good is on the disk.
        let writes = vec![Write::Sync, Write::Journal(journal.clone()), Write::Prune(keep(&journal))];
        let step = self.step();
        self.work = Work::Clearing(step, Asked::for_writes(&writes), journal);
        effects.push(Effect::Write { step, writes });
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
    let mut keep: Vec<_> = journal.generations().map(|generation| generation.directory.clone()).collect();
    keep.sort_unstable();
    keep.dedup();
    keep
}
