//! The machine: what to do next, as a pure function of what happened. No I/O, no clock, no tokio.
//!
//! [`Machine::on`] takes an [`Event`] and returns the [`Effect`]s that the app must carry out, in order. Whatever takes
//! time answers with an event that carries the step's id; an answer to a step that is no longer awaited is ignored.
//!
//! Two things go on side by side:
//!
//! - the [`Intake`]: newer inputs were seen, and wait for quiet, for their pace, for their turn;
//! - the [`Work`]: one step at a time on what was taken in (render, commit, reload, confirm, and the way back), or a
//!   wait between two attempts.
//!
//! What must outlive a crash is in the [`Journal`]; [`recover`] makes a machine of it and of what lies on the disk.

use std::time::Duration;

use crate::model::digest::Digest;
use crate::model::journal::{
    Baseline, Debt, DebtKind, Generation, Journal, Moment, Quarantine, Rejection, sequence_of,
};

/// A reload attempt that newer inputs wait behind is let run for this long before it is abandoned, so that edits which
/// come faster than a reload takes do not keep every reload from ending. A confirmation as well, where there is nobody
/// to ask.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// What the machine needs to know of the flags.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--debounce`.
    pub debounce: Duration,
    /// `--debounce-max`.
    pub debounce_max: Duration,
    /// `--reload-min-interval`.
    pub min_interval: Duration,
    /// `--reload-splay`.
    pub splay: Duration,
    /// `--reload-attempts`.
    pub attempts: u32,
    /// Whether there is anybody to tell or to ask: if not, and with `--once`, a publish leaves no debt.
    pub reload: bool,
    /// Whether there is more to ask than whether the reload was taken.
    pub confirm: bool,
    /// `--on-reject rollback`.
    pub rollback: bool,
    /// Of the flags by which inputs are rejected: a quarantine by others is forgotten at start.
    pub gate: Digest,
}

/// The identity of one step; answers carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step(u64);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Every source is known, and this is the digest of all inputs. Sent on each change.
    Observed(Digest),
    /// An armed timer fired.
    Fired(Timer),
    /// The answer to [`Effect::Render`].
    Rendered {
        /// The step of the effect.
        step: Step,
        /// What came of it.
        outcome: Outcome,
    },
    /// The answer to [`Effect::Write`].
    Written {
        /// The step of the effect.
        step: Step,
        /// How many of the writes were done; fewer than asked for where one failed.
        done: usize,
        /// The moment after the last of them.
        at: Option<Moment>,
    },
    /// The answer to [`Effect::Reload`].
    Reloaded {
        /// The step of the effect.
        step: Step,
        /// How it went.
        verdict: Verdict,
    },
    /// The answer to [`Effect::Confirm`].
    Confirmed {
        /// The step of the effect.
        step: Step,
        /// What is to be seen of the main process. One refusal is final here.
        verdict: Verdict,
    },
    /// The answer to [`Effect::Verify`].
    Verified {
        /// The step of the effect.
        step: Step,
        /// Whether the generation lies on the disk as it was published.
        sound: bool,
        /// What `--confirm-url` says now.
        baseline: Option<Baseline>,
    },
    /// Somebody asks: forget the rejection, and try at once what waits.
    Retry,
    /// Finish the step in flight, then exit.
    Shutdown,
}

/// What came of a render.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The candidate lies complete, synced and validated in its directory, which nothing names yet.
    Staged {
        /// The candidate.
        candidate: Generation,
        /// What `--confirm-url` says now.
        baseline: Option<Baseline>,
    },
    /// It rendered to the very tree that is published.
    Same,
    /// The inputs are bad. Nothing of them is left.
    Rejected(Rejection),
    /// The candidate could not be written; worth trying again.
    Failed,
}

/// What the main process said to a reload, or what is to be seen of it afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It took the generation, or had started after the publish.
    Took,
    /// It refused, died, or did not confirm in time.
    Refused(Rejection),
    /// It died of being told. Unlike a refusal, it is not asked again.
    Died(Rejection),
    /// It was not there to answer, or the attempt was abandoned.
    Unreachable,
}

/// The timers. Arming one again replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// Since the last change, `--debounce`.
    Quiet,
    /// Since the first change: `--debounce-max`, less one `--debounce` for the work.
    Ceiling,
    /// Since the last publish, `--reload-min-interval`.
    Interval,
    /// A random part of `--reload-splay`.
    Splay,
    /// Before the same inputs are tried again after a failed write.
    Again,
    /// Before the next reload attempt.
    Backoff,
    /// How long a reload attempt is let run while newer inputs wait.
    Patience,
}

/// How long a timer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// This long.
    Exactly(Duration),
    /// A random part of this.
    Within(Duration),
    /// The jittered backoff after this many attempts, at least 1.
    Backoff(u32),
}

/// What the app must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start a timer, or start it again.
    Arm(Timer, Wait),
    /// Stop a timer, if it runs.
    Disarm(Timer),
    /// Render the newest inputs and stage them under this sequence number, unless they render to the tree `unless`.
    Render {
        /// To be answered with.
        step: Step,
        /// The candidate's sequence number.
        sequence: u64,
        /// The published tree's digest.
        unless: Option<Digest>,
    },
    /// Carry out these writes in order; stop at the first that fails.
    Write {
        /// To be answered with.
        step: Step,
        /// The writes.
        writes: Vec<Write>,
    },
    /// Make one attempt to reload.
    Reload {
        /// To be answered with.
        step: Step,
        /// The current generation's sequence number.
        sequence: u64,
        /// A moment after it was published, if known.
        published: Option<Moment>,
    },
    /// See whether the main process took what the last attempt told it.
    Confirm {
        /// To be answered with.
        step: Step,
        /// Of the current generation.
        digest: Digest,
        /// What `--confirm-url` said before it was published, if known.
        baseline: Option<Baseline>,
    },
    /// Check whether a generation lies on the disk as it was published.
    Verify {
        /// To be answered with.
        step: Step,
        /// The generation.
        generation: Generation,
    },
    /// Give the reload attempt up if it can be given up, or the confirmation if there is nobody to ask; it is answered
    /// all the same.
    Abandon(Step),
    /// Leave.
    Exit,
}

/// One change in the output directory. Each may be repeated without harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Write the journal.
    Journal(Box<Journal>),
    /// Add the missing top-level links of this generation.
    Link(Generation),
    /// Rename `..data` to this generation.
    Swap(Generation),
    /// Remove the top-level links that this generation has no name for.
    Unlink(Generation),
    /// Remove all generation directories but these, and what a crash left.
    Prune(Vec<String>),
}

impl Write {
    /// In a word.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Journal(_) => "journal",
            Self::Link(_) => "link",
            Self::Swap(_) => "swap",
            Self::Unlink(_) => "unlink",
            Self::Prune(_) => "prune",
        }
    }
}

/// What lies in the output directory at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// The generation directory that `..data` names, if it is of our pattern and exists.
    pub link: Option<String>,
    /// All directories of our pattern.
    pub directories: Vec<String>,
}

/// How newer inputs wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intake {
    /// There are none.
    Calm,
    /// For quiet.
    Settling,
    /// For `--reload-min-interval`.
    Paced,
    /// For their part of `--reload-splay`.
    Splaying,
    /// For another try after a failed write.
    Again,
    /// For the step in flight.
    Ready,
}

/// The step in flight, or the wait between two.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Work {
    /// Nothing to do.
    Waiting,
    /// Links are redone and left-overs removed, after a start or a failed commit; `..data` is turned back if need be.
    Tidying(Step, usize),
    /// These inputs are rendered and staged.
    Rendering(Step, Digest),
    /// The candidate of these inputs is published, and this journal announces it.
    Committing(Step, Digest, Box<Journal>),
    /// The main process is told.
    Reloading { step: Step, impatient: bool },
    /// It is looked whether the main process took it.
    Confirming { step: Step, impatient: bool },
    /// The last good generation is checked, as the current one was rejected.
    Verifying(Step, Rejection),
    /// A quarantine is written down, or the moment of a publish whose debt will last.
    Noting(Step),
    /// The debt is written off.
    Clearing(Step, Box<Journal>),
    /// Until the next try.
    Backoff(Next),
    /// All is said and done.
    Exited,
}

/// What a backoff is followed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The next reload attempt.
    Reload,
    /// The next try to write the debt off.
    Clear,
    /// The next try to put the output in order. Before `..data` names the current generation, nobody is told to read it.
    Tidy,
}

/// What `/status` calls a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A source has not been heard yet.
    Syncing,
    /// The newest inputs are published, and the main process has them.
    Idle,
    /// Newer inputs wait for quiet or for their pace.
    Settling,
    /// Inputs are rendered and staged.
    Rendering,
    /// The output directory is changed.
    Committing,
    /// The main process is told.
    Reloading,
    /// It is looked whether the main process took it.
    Confirming,
    /// The main process could not be reached or refused; the next attempt waits.
    Backoff,
    /// What is published was rejected, and there is no way back; attempts go on, at the slowest pace.
    Held,
}

impl Phase {
    /// The name in `/status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syncing => "syncing",
            Self::Idle => "idle",
            Self::Settling => "settling",
            Self::Rendering => "rendering",
            Self::Committing => "committing",
            Self::Reloading => "reloading",
            Self::Confirming => "confirming",
            Self::Backoff => "backoff",
            Self::Held => "held",
        }
    }
}

/// The machine.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts: each has its own cause and its own end")]
pub struct Machine {
    options: Options,
    /// As it lies on the disk, as far as that is known.
    journal: Journal,
    /// The newest inputs.
    want: Option<Digest>,
    /// The inputs that led to what is published.
    have: Option<Digest>,
    intake: Intake,
    work: Work,
    /// A moment after the current generation was published.
    published: Option<Moment>,
    /// Attempts to pay the present debt.
    attempts: u32,
    /// How many of them were refused.
    refusals: u32,
    /// Failed writes in a row.
    failures: u32,
    /// Whether `--reload-min-interval` has passed since the last publish.
    interval_open: bool,
    /// Whether the output directory could not be put in order: nothing is staged before it is, or junk would pile up.
    dirty: bool,
    /// Whether `..data` may name another generation than the current one, which was rejected or whose commit failed: it
    /// is turned back.
    astray: bool,
    /// Whether the current generation was rejected, and there is no way back.
    held: bool,
    stopping: bool,
    last_step: u64,
}

/// Makes a machine of the journal (`None`: there is none, or it could not be read) and of what lies on the disk.
///
/// The link decides which generation is current; the journal, whether it is owed. What the journal cannot explain is
/// taken to be owed: one reload too many is harmless, one too few is not.
#[must_use]
pub fn recover(options: Options, journal: Option<Journal>, disk: &Disk) -> (Machine, Vec<Effect>) {
    let mut journal = journal.unwrap_or_default();
    let is_linked = |generation: &Option<Generation>| {
        disk.link.is_some() && generation.as_ref().map(|g| &g.directory) == disk.link.as_ref()
    };
    let is_there = |generation: &Generation| disk.directories.contains(&generation.directory);
    let mut astray = false;
    if !is_linked(&journal.current) {
        let rolled_back = journal.owes(DebtKind::Rollback);
        if rolled_back && journal.current.as_ref().is_some_and(is_there) {
            astray = true;
        } else {
            let announced = journal.current.take();
            let from = if is_linked(&journal.from) { journal.from.take() } else { None };
            journal.debt = match &from {
                Some(_) if !rolled_back => journal.prev_debt.take(),
                _ => disk.link.as_ref().map(|_| Debt::default()),
            };
            journal.current = from.or_else(|| disk.link.as_deref().and_then(Generation::found));
            if announced.is_some() && journal.last_good == announced && !rolled_back {
                journal.last_good.clone_from(&journal.current);
            }
        }
    }
    journal.prev_debt = None;
    journal.from = journal.from.filter(is_there);
    journal.last_good = journal.last_good.filter(is_there);
    journal.quarantine = journal.quarantine.filter(|quarantine| quarantine.gate == options.gate);
    let highest = disk.directories.iter().filter_map(|name| sequence_of(name)).max();
    journal.next_sequence = journal.next_sequence.max(highest.map_or(1, |sequence| sequence.saturating_add(1)));

    let mut machine = Machine {
        have: journal.current.as_ref().map(|current| current.digest),
        published: journal.debt.as_ref().and_then(|debt| debt.published.clone()),
        held: journal.owes(DebtKind::Publish)
            && journal.quarantine.as_ref().map(|quarantine| quarantine.digest)
                == journal.current.as_ref().map(|current| current.digest),
        options,
        journal,
        want: None,
        intake: Intake::Calm,
        work: Work::Waiting,
        attempts: 0,
        refusals: 0,
        failures: 0,
        interval_open: true,
        dirty: false,
        astray,
        stopping: false,
        last_step: 0,
    };
    let mut effects = Vec::new();
    machine.tidy(&mut effects);
    (machine, effects)
}

impl Machine {
    /// Takes an event, and says what to do.
    pub fn on(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Observed(digest) => self.observed(digest, &mut effects),
            Event::Fired(timer) => self.fired(timer, &mut effects),
            Event::Rendered { step, outcome } => self.rendered(step, outcome, &mut effects),
            Event::Written { step, done, at } => self.written(step, done, at, &mut effects),
            Event::Reloaded { step, verdict } => self.reloaded(step, verdict, &mut effects),
            Event::Confirmed { step, verdict } => self.confirmed(step, verdict, &mut effects),
            Event::Verified { step, sound, baseline } => self.verified(step, sound, baseline, &mut effects),
            Event::Retry => self.retry(&mut effects),
            Event::Shutdown => self.shutdown(&mut effects),
        }
        effects
    }

    /// Where the machine stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match &self.work {
            Work::Rendering(..) => Phase::Rendering,
            Work::Tidying(..) | Work::Committing(..) | Work::Noting(_) | Work::Clearing(..) => Phase::Committing,
            Work::Reloading { .. } => Phase::Reloading,
            Work::Confirming { .. } | Work::Verifying(..) => Phase::Confirming,
            Work::Backoff(_) if self.held => Phase::Held,
            Work::Backoff(_) => Phase::Backoff,
            Work::Waiting | Work::Exited if self.want.is_none() => Phase::Syncing,
            Work::Waiting | Work::Exited if self.intake != Intake::Calm => Phase::Settling,
            Work::Waiting | Work::Exited => Phase::Idle,
        }
    }

    /// The journal as the machine knows it.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Whether the newest inputs are the published ones, and the main process has them.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let is_done = match self.work {
            Work::Waiting => true,
            Work::Backoff(Next::Tidy) => !self.astray,
            _ => false,
        };
        is_done && self.intake == Intake::Calm && self.want.is_some() && self.want == self.have
    }

    /// Whether the newest inputs were rejected.
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        self.journal.quarantine.as_ref().is_some_and(|quarantine| self.want == Some(quarantine.digest))
    }

    /// Whether `..data` may name another generation than the current one.
    #[must_use]
    pub fn is_astray(&self) -> bool {
        self.astray
    }

    /// Whether the current generation was rejected, and there is no way back.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held
    }

    fn step(&mut self) -> Step {
        self.last_step += 1;
        Step(self.last_step)
    }

    /// The inputs that the step in flight will have published, or that are published.
    fn settled_on(&self) -> Option<Digest> {
        match &self.work {
            Work::Rendering(_, digest) | Work::Committing(_, digest, _) => Some(*digest),
            _ => self.have,
        }
    }

    fn observed(&mut self, digest: Digest, effects: &mut Vec<Effect>) {
        let first = self.want.replace(digest).is_none();
        if !self.is_rejected() {
            self.journal.quarantine = None;
        }
        if self.settled_on() == Some(digest) || self.is_rejected() {
            self.calm(effects);
            return;
        }
        match self.intake {
            Intake::Calm if first => self.ready(effects),
            Intake::Calm if self.options.debounce.is_zero() => self.pace(effects),
            Intake::Calm => {
                self.intake = Intake::Settling;
                effects.push(Effect::Arm(Timer::Quiet, Wait::Exactly(self.options.debounce)));
                let Options { debounce, debounce_max, .. } = self.options;
                // What is left of it is for the work: a stream of edits leaves the main process no farther behind.
                let ceiling = debounce_max.saturating_sub(debounce).max(debounce);
                effects.push(Effect::Arm(Timer::Ceiling, Wait::Exactly(ceiling)));
            }
            Intake::Settling => effects.push(Effect::Arm(Timer::Quiet, Wait::Exactly(self.options.debounce))),
            Intake::Paced | Intake::Splaying | Intake::Again | Intake::Ready => {}
        }
    }

    fn fired(&mut self, timer: Timer, effects: &mut Vec<Effect>) {
        match (timer, self.intake, &mut self.work) {
            (Timer::Quiet | Timer::Ceiling, Intake::Settling, _) => self.pace(effects),
            (Timer::Interval, intake, _) => {
                self.interval_open = true;
                if intake == Intake::Paced {
                    self.pace(effects);
                }
            }
            (Timer::Splay, Intake::Splaying, _) | (Timer::Again, Intake::Again, _) => self.ready(effects),
            (Timer::Backoff, _, Work::Backoff(Next::Reload)) => self.reload(effects),
            (Timer::Backoff, _, Work::Backoff(Next::Clear)) => self.clear(effects),
            (Timer::Backoff, _, Work::Backoff(Next::Tidy)) => self.tidy(effects),
            (Timer::Patience, _, Work::Reloading { impatient, .. } | Work::Confirming { impatient, .. }) => {
                *impatient = true;
                self.go(effects);
            }
            _ => {}
        }
    }

    /// No inputs wait any more.
    fn calm(&mut self, effects: &mut Vec<Effect>) {
        let timers: &[Timer] = match self.intake {
            Intake::Settling => &[Timer::Quiet, Timer::Ceiling],
            Intake::Splaying => &[Timer::Splay],
            Intake::Again => &[Timer::Again],
            Intake::Calm | Intake::Paced | Intake::Ready => &[],
        };
        effects.extend(timers.iter().copied().map(Effect::Disarm));
        self.intake = Intake::Calm;
    }

    /// The inputs are quiet: they go on at their pace. The first generation is not held up by a splay.
    fn pace(&mut self, effects: &mut Vec<Effect>) {
        let splayed = self.intake == Intake::Splaying;
        self.calm(effects);
        if !self.interval_open {
            self.intake = Intake::Paced;
        } else if !self.options.splay.is_zero() && self.journal.current.is_some() && !splayed {
            self.intake = Intake::Splaying;
            effects.push(Effect::Arm(Timer::Splay, Wait::Within(self.options.splay)));
        } else {
            self.ready(effects);
        }
    }

    fn ready(&mut self, effects: &mut Vec<Effect>) {
        self.calm(effects);
        self.intake = Intake::Ready;
        self.go(effects);
    }

    /// Takes waiting inputs in, if the step in flight allows it.
    fn go(&mut self, effects: &mut Vec<Effect>) {
        if self.intake != Intake::Ready || self.stopping {
            return;
        }
        match self.work {
            Work::Waiting | Work::Backoff(Next::Reload) => self.render(effects),
            Work::Backoff(Next::Tidy) if !self.astray => self.render(effects),
            Work::Reloading { step, impatient: true } | Work::Confirming { step, impatient: true } => {
                effects.push(Effect::Abandon(step));
            }
            _ => {}
        }
    }

    fn render(&mut self, effects: &mut Vec<Effect>) {
        let Some(want) = self.want else { return };
        if matches!(self.work, Work::Backoff(_)) {
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

    fn rendered(&mut self, step: Step, outcome: Outcome, effects: &mut Vec<Effect>) {
        let Work::Rendering(awaited, digest) = self.work else { return };
        if awaited != step {
            return;
        }
        match outcome {
            Outcome::Staged { candidate, baseline } if !self.stopping => {
                self.commit(digest, candidate, baseline, effects);
            }
            // What was staged is junk now: the next start removes it.
            Outcome::Staged { .. } => self.resume(effects),
            Outcome::Same => {
                self.have = Some(digest);
                self.failures = 0;
                self.resume(effects);
            }
            Outcome::Rejected(rejection) => {
                self.failures = 0;
                self.quarantine(digest, rejection);
                self.note(effects);
            }
            Outcome::Failed => self.again(effects),
        }
    }

    fn commit(&mut self, digest: Digest, candidate: Generation, baseline: Option<Baseline>, effects: &mut Vec<Effect>) {
        let debt = self.options.reload.then(|| Debt { baseline, ..Debt::default() });
        let journal = Journal {
            next_sequence: candidate.sequence.saturating_add(1),
            from: self.journal.current.clone(),
            last_good: if debt.is_some() { self.journal.last_good.clone() } else { Some(candidate.clone()) },
            prev_debt: self.journal.debt.clone(),
            current: Some(candidate.clone()),
            debt,
            quarantine: None,
            ..self.journal
        };
        let prune = prunes(&journal).then(|| Write::Prune(keep(&journal)));
        let step = self.step();
        self.work = Work::Committing(step, digest, Box::new(journal.clone()));
        let mut writes = vec![
            Write::Journal(Box::new(journal)),
            Write::Link(candidate.clone()),
            Write::Swap(candidate.clone()),
            Write::Unlink(candidate),
        ];
        writes.extend(prune);
        effects.push(Effect::Write { step, writes });
    }

    fn written(&mut self, step: Step, done: usize, at: Option<Moment>, effects: &mut Vec<Effect>) {
        // The number of writes of a commit up to and including the swap: what comes after is redone by the next one.
        const SWAPPED: usize = 3;
        /// And the one after it.
        const UNLINKED: usize = 4;
        /// All writes that clear a debt.
        const CLEARED: usize = 2;
        // The same for a tidy that turns `..data` back.
        const TURNED: usize = 3;
        match std::mem::replace(&mut self.work, Work::Waiting) {
            Work::Tidying(awaited, writes) if awaited == step => {
                let turned = self.astray && done >= TURNED;
                self.dirty = done < writes;
                if self.astray && !turned {
                    self.failures = self.failures.saturating_add(1);
                    self.work = Work::Backoff(Next::Tidy);
                    effects.push(Effect::Arm(Timer::Backoff, Wait::Backoff(self.failures)));
                    self.exit_if_stopping(effects);
                    return;
                }
                if self.dirty && self.intake == Intake::Ready {
                    self.postpone(effects);
                }
                if turned {
                    self.astray = false;
                    self.published = at;
                }
                // As after a commit.
                if turned && self.owes() { self.reload(effects) } else { self.resume(effects) }
            }
            Work::Committing(awaited, digest, journal) if awaited == step && done >= SWAPPED => {
                self.have = Some(digest);
                self.dirty = done < UNLINKED + usize::from(prunes(&journal));
                self.adopt(*journal);
                self.published = at;
                self.start_afresh();
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
                if self.owes() { self.reload(effects) } else { self.resume(effects) }
            }
            Work::Committing(awaited, _, journal) if awaited == step => {
                // The journal may have been written: it announces what the link does not name, which recovery undoes.
                // But a rename whose fsync failed may have happened, and somebody may have read what it made visible.
                if done + 1 == SWAPPED {
                    self.journal.next_sequence = journal.next_sequence;
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
            // Where it was not written, a crash costs one signal, or one rejection, too many.
            Work::Noting(awaited) if awaited == step => self.resume(effects),
            Work::Clearing(awaited, journal) if awaited == step => {
                if done > 0 {
                    self.adopt(*journal);
                    self.start_afresh();
                    self.dirty |= done < CLEARED;
                    self.resume(effects);
                } else {
                    self.attempts = self.attempts.saturating_add(1);
                    self.work = Work::Backoff(Next::Clear);
                    effects.push(Effect::Arm(Timer::Backoff, Wait::Backoff(self.attempts)));
                    self.exit_if_stopping(effects);
                }
            }
            other => self.work = other,
        }
    }

    /// Goes on after a step: newer inputs first, then the debt.
    fn resume(&mut self, effects: &mut Vec<Effect>) {
        self.work = Work::Waiting;
        if self.want == self.have && self.intake != Intake::Calm {
            self.calm(effects);
        }
        self.go(effects);
        if self.work == Work::Waiting && self.journal.debt.is_some() && !self.stopping {
            if !self.options.reload {
                self.clear(effects);
            } else if self.attempts == 0 {
                self.reload(effects);
            } else {
                self.work = Work::Backoff(Next::Reload);
                let attempts = if self.held { u32::MAX } else { self.attempts };
                effects.push(Effect::Arm(Timer::Backoff, Wait::Backoff(attempts)));
            }
        }
        // What a failed write left is not left until newer inputs come.
        if self.work == Work::Waiting && self.intake == Intake::Calm && self.dirty && !self.stopping {
            self.failures = self.failures.saturating_add(1);
            self.work = Work::Backoff(Next::Tidy);
            effects.push(Effect::Arm(Timer::Backoff, Wait::Backoff(self.failures)));
        }
        self.exit_if_stopping(effects);
    }

    /// Takes a journal that was written for what is on the disk now. The quarantine is of the newest inputs, which may
    /// have changed since it was made: what is known of them stays, unless they were taken after all.
    fn adopt(&mut self, journal: Journal) {
        let quarantine = self.journal.quarantine.take().filter(|quarantine| Some(quarantine.digest) != self.have);
        self.journal = Journal { quarantine, ..journal };
    }

    fn owes(&self) -> bool {
        self.journal.debt.is_some() && self.options.reload && !self.stopping
    }

    /// Nothing was tried yet of what is current now.
    fn start_afresh(&mut self) {
        (self.attempts, self.refusals, self.failures, self.held) = (0, 0, 0, false);
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

    fn reload(&mut self, effects: &mut Vec<Effect>) {
        let Some(current) = &self.journal.current else { return };
        let (sequence, published) = (current.sequence, self.published.clone());
        let step = self.step();
        self.attempts = self.attempts.saturating_add(1);
        self.work = Work::Reloading { step, impatient: false };
        effects.push(Effect::Reload { step, sequence, published });
        effects.push(Effect::Arm(Timer::Patience, Wait::Exactly(PATIENCE)));
    }

    fn reloaded(&mut self, step: Step, verdict: Verdict, effects: &mut Vec<Effect>) {
        if !matches!(self.work, Work::Reloading { step: awaited, .. } if awaited == step) {
            return;
        }
        effects.push(Effect::Disarm(Timer::Patience));
        match verdict {
            Verdict::Took if self.options.confirm => self.confirm(effects),
            Verdict::Took => self.clear(effects),
            Verdict::Unreachable => self.note_debt(effects),
            Verdict::Died(rejection) => self.reject(rejection, effects),
            Verdict::Refused(rejection) => {
                self.refusals = self.refusals.saturating_add(1);
                if self.refusals < self.options.attempts {
                    self.note_debt(effects);
                } else {
                    self.reject(rejection, effects);
                }
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

    fn confirmed(&mut self, step: Step, verdict: Verdict, effects: &mut Vec<Effect>) {
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
        // debt stays, and the next start tells it again.
        if self.stopping {
            self.resume(effects);
            return;
        }
        let good = self.journal.last_good.clone().filter(|good| Some(good) != self.journal.current.as_ref());
        match good {
            Some(generation) if self.options.rollback && self.journal.owes(DebtKind::Publish) => {
                let step = self.step();
                self.work = Work::Verifying(step, rejection);
                effects.push(Effect::Verify { step, generation });
            }
            _ => self.hold(rejection, effects),
        }
    }

    fn verified(&mut self, step: Step, sound: bool, baseline: Option<Baseline>, effects: &mut Vec<Effect>) {
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
        } else {
            self.hold(rejection, effects);
        }
    }

    fn roll_back(&mut self, rejection: Rejection, baseline: Option<Baseline>, effects: &mut Vec<Effect>) {
        let Some(good) = self.journal.last_good.clone() else { return };
        if let Some(rejected) = self.have {
            self.quarantine(rejected, rejection);
        }
        self.have = Some(good.digest);
        self.journal.from = self.journal.current.replace(good);
        self.journal.debt = Some(Debt { kind: DebtKind::Rollback, published: None, baseline });
        self.journal.prev_debt = None;
        self.published = None;
        self.start_afresh();
        self.astray = true;
        self.tidy(effects);
    }

    /// There is no way back: it stays, is reported, and told again at the slowest pace. So does a rollback that failed.
    fn hold(&mut self, rejection: Rejection, effects: &mut Vec<Effect>) {
        let known = std::mem::replace(&mut self.held, true);
        let first = !known && self.journal.owes(DebtKind::Publish);
        if let Some(rejected) = self.have.filter(|_| first) {
            self.quarantine(rejected, rejection);
            self.set_moment();
            self.note(effects);
        } else {
            self.note_debt(effects);
        }
    }

    /// Only the newest inputs are worth it: others are not tried again anyway.
    fn quarantine(&mut self, digest: Digest, rejection: Rejection) {
        if self.want.is_none_or(|want| want == digest) {
            self.journal.quarantine = Some(Quarantine { digest, gate: self.options.gate, rejection });
        }
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
        if self.intake == Intake::Ready {
            self.resume(effects);
            return;
        }
        let step = self.step();
        effects.push(Effect::Write { step, writes: vec![Write::Journal(Box::new(self.journal.clone()))] });
        self.work = Work::Noting(step);
    }

    /// Writes the debt off: the current generation is confirmed.
    fn clear(&mut self, effects: &mut Vec<Effect>) {
        let journal = Box::new(Journal {
            last_good: self.journal.current.clone(),
            debt: None,
            prev_debt: None,
            // What was held, and is taken after all.
            quarantine: self.journal.quarantine.clone().filter(|quarantine| Some(quarantine.digest) != self.have),
            ..self.journal.clone()
        });
        let step = self.step();
        effects
            .push(Effect::Write { step, writes: vec![Write::Journal(journal.clone()), Write::Prune(keep(&journal))] });
        self.work = Work::Clearing(step, journal);
    }

    fn retry(&mut self, effects: &mut Vec<Effect>) {
        self.journal.quarantine = None;
        self.start_afresh();
        if self.want.is_some() && self.want != self.settled_on() {
            self.ready(effects);
        }
        if matches!(self.work, Work::Backoff(_)) {
            effects.push(Effect::Disarm(Timer::Backoff));
            self.fired(Timer::Backoff, effects);
        }
    }

    fn shutdown(&mut self, effects: &mut Vec<Effect>) {
        self.stopping = true;
        if let Work::Confirming { step, .. } = self.work {
            effects.push(Effect::Abandon(step));
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
    fn tidy(&mut self, effects: &mut Vec<Effect>) {
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
        self.work = Work::Tidying(step, writes.len());
        effects.push(Effect::Write { step, writes });
    }
}

/// Whether the commit to this journal removes what it does not need any more. Otherwise what follows its confirmation does,
/// and the main process need not wait for it; while a debt lasts, or where none is ever paid, nobody else would.
fn prunes(journal: &Journal) -> bool {
    journal.debt.is_none() || journal.prev_debt.is_some()
}

/// The directories that must stay: at most three.
fn keep(journal: &Journal) -> Vec<String> {
    let mut keep: Vec<_> = [&journal.current, &journal.from, &journal.last_good]
        .into_iter()
        .flatten()
        .map(|generation| generation.directory.clone())
        .collect();
    keep.sort_unstable();
    keep.dedup();
    keep
}

#[cfg(test)]
mod tests;
