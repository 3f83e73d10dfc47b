//! The machine: what to do next, as a pure function of what happened. No I/O, no clock, no tokio.
//!
//! [`Machine::on`] takes an [`Event`] and returns the [`Effect`]s that the app must carry out, in order. Whatever takes
//! time answers with an event that carries the step's id; an answer to a step that is no longer awaited is ignored.
//!
//! Two things go on side by side:
//!
//! - the [`Intake`]: newer inputs were seen, and wait for quiet, for their pace, for their turn;
//! - the [`Work`]: one step at a time on what was taken in (render, commit, reload), or a wait between two attempts.
//!
//! What must outlive a crash is in the [`Journal`]; [`recover`] makes a machine of it and of what lies on the disk.

use std::time::Duration;

use crate::digest::Digest;
use crate::journal::{Debt, Generation, Journal, Moment, sequence_of};

/// A reload attempt that newer inputs wait behind is let run for this long before it is abandoned, so that edits which
/// come faster than a reload takes do not keep every reload from ending.
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
    /// Whether there is anybody to tell: without a reload flag, and with `--once`, a publish leaves no debt.
    pub reload: bool,
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
    /// Somebody asks: forget the rejection, and try at once what waits.
    Retry,
    /// Finish the step in flight, then exit.
    Shutdown,
}

/// What came of a render.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The candidate lies complete and synced in its directory, which nothing names yet.
    Staged(Generation),
    /// It rendered to the very tree that is published.
    Same,
    /// The inputs are bad. Nothing was written.
    Rejected,
    /// The candidate could not be written; worth trying again.
    Failed,
}

/// What the main process said to a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It took the generation, or had started after the publish.
    Took,
    /// It answered, and refused.
    Refused,
    /// It was not there to answer, or the attempt was abandoned.
    Unreachable,
}

/// The timers. Arming one again replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// Since the last change, `--debounce`.
    Quiet,
    /// Since the first change, `--debounce-max`.
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
    /// Give the reload attempt up if it can be given up; it is answered all the same.
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
    /// Links are redone and left-overs removed, after a start or a failed commit.
    Tidying(Step, usize),
    /// These inputs are rendered and staged.
    Rendering(Step, Digest),
    /// The candidate of these inputs is published; the journal that announces it.
    Committing(Step, Digest, Box<Journal>),
    /// The main process is told.
    Reloading { step: Step, impatient: bool },
    /// The moment of the publish is written down, since the debt will last.
    Noting(Step, Box<Journal>),
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
    /// The next try to turn `..data` back: before it names the current generation, nobody is told to read it.
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
    /// The main process could not be reached or refused; the next attempt waits.
    Backoff,
    /// The main process refused `--reload-attempts` times; attempts go on, at the slowest pace.
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
    /// The inputs that were rejected last, until they differ.
    rejected: Option<Digest>,
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
    /// Whether `..data` may name a generation whose commit failed: it is turned back to the current one.
    doubtful: bool,
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
    if !is_linked(&journal.current) {
        let announced = journal.current.take();
        if is_linked(&journal.from) {
            journal.current = journal.from.take();
            journal.debt = journal.prev_debt.take();
        } else {
            journal.current = disk.link.as_deref().and_then(Generation::found);
            journal.debt = journal.current.as_ref().map(|_| Debt::default());
        }
        if journal.last_good == announced {
            journal.last_good.clone_from(&journal.current);
        }
    }
    journal.prev_debt = None;
    journal.from = journal.from.filter(is_there);
    journal.last_good = journal.last_good.filter(is_there);
    let highest = disk.directories.iter().filter_map(|name| sequence_of(name)).max();
    journal.next_sequence = journal.next_sequence.max(highest.map_or(1, |sequence| sequence.saturating_add(1)));

    let mut machine = Machine {
        have: journal.current.as_ref().map(|current| current.digest),
        published: journal.debt.as_ref().and_then(|debt| debt.published.clone()),
        options,
        journal,
        want: None,
        rejected: None,
        intake: Intake::Calm,
        work: Work::Waiting,
        attempts: 0,
        refusals: 0,
        failures: 0,
        interval_open: true,
        dirty: false,
        doubtful: false,
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
            Work::Tidying(..) | Work::Committing(..) | Work::Noting(..) | Work::Clearing(..) => Phase::Committing,
            Work::Reloading { .. } => Phase::Reloading,
            Work::Backoff(_) if self.refusals >= self.options.attempts => Phase::Held,
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
        self.work == Work::Waiting && self.intake == Intake::Calm && self.want.is_some() && self.want == self.have
    }

    /// Whether the newest inputs were rejected.
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        self.rejected.is_some() && self.want == self.rejected
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
        if self.rejected != Some(digest) {
            self.rejected = None;
        }
        if self.settled_on() == Some(digest) || self.rejected.is_some() {
            self.calm(effects);
            return;
        }
        match self.intake {
            Intake::Calm if first => self.ready(effects),
            Intake::Calm if self.options.debounce.is_zero() => self.pace(effects),
            Intake::Calm => {
                self.intake = Intake::Settling;
                effects.push(Effect::Arm(Timer::Quiet, Wait::Exactly(self.options.debounce)));
                effects.push(Effect::Arm(Timer::Ceiling, Wait::Exactly(self.options.debounce_max)));
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
            (Timer::Patience, _, Work::Reloading { impatient, .. }) => {
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
            Work::Reloading { step, impatient: true } => effects.push(Effect::Abandon(step)),
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
            Outcome::Staged(candidate) if !self.stopping => self.commit(digest, candidate, effects),
            // What was staged is junk now: the next start removes it.
            Outcome::Staged(_) => self.resume(effects),
            Outcome::Same => {
                self.have = Some(digest);
                self.failures = 0;
                self.resume(effects);
            }
            Outcome::Rejected => {
                self.failures = 0;
                if self.want == Some(digest) {
                    self.rejected = Some(digest);
                }
                self.resume(effects);
            }
            Outcome::Failed => self.again(effects),
        }
    }

    fn commit(&mut self, digest: Digest, candidate: Generation, effects: &mut Vec<Effect>) {
        let debt = self.options.reload.then(Debt::default);
        let journal = Journal {
            next_sequence: candidate.sequence.saturating_add(1),
            from: self.journal.current.clone(),
            last_good: if debt.is_some() { self.journal.last_good.clone() } else { Some(candidate.clone()) },
            prev_debt: self.journal.debt.clone(),
            current: Some(candidate.clone()),
            debt,
            ..self.journal.clone()
        };
        let keep = keep(&journal);
        let step = self.step();
        self.work = Work::Committing(step, digest, Box::new(journal.clone()));
        effects.push(Effect::Write {
            step,
            writes: vec![
                Write::Prune(keep),
                Write::Journal(Box::new(journal)),
                Write::Link(candidate.clone()),
                Write::Swap(candidate.clone()),
                Write::Unlink(candidate),
            ],
        });
    }

    fn written(&mut self, step: Step, done: usize, at: Option<Moment>, effects: &mut Vec<Effect>) {
        // The number of writes of a commit up to and including the swap: what comes after is redone by the next one.
        const SWAPPED: usize = 4;
        match std::mem::replace(&mut self.work, Work::Waiting) {
            Work::Tidying(awaited, writes) if awaited == step => {
                self.dirty = done < writes;
                self.doubtful &= self.dirty;
                if self.doubtful {
                    self.failures = self.failures.saturating_add(1);
                    self.work = Work::Backoff(Next::Tidy);
                    effects.push(Effect::Arm(Timer::Backoff, Wait::Backoff(self.failures)));
                    self.exit_if_stopping(effects);
                    return;
                }
                if self.dirty && self.intake == Intake::Ready {
                    self.postpone(effects);
                }
                self.resume(effects);
            }
            Work::Committing(awaited, digest, journal) if awaited == step && done >= SWAPPED => {
                self.journal = *journal;
                self.have = Some(digest);
                self.published = at;
                (self.attempts, self.refusals, self.failures) = (0, 0, 0);
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
                if self.journal.debt.is_some() && !self.stopping { self.reload(effects) } else { self.resume(effects) }
            }
            Work::Committing(awaited, _, journal) if awaited == step => {
                // The journal may have been written: it announces what the link does not name, which recovery undoes.
                // But a rename whose fsync failed may have happened, and somebody may have read what it made visible.
                if done + 1 == SWAPPED {
                    self.journal.next_sequence = journal.next_sequence;
                    self.doubtful = self.journal.current.is_some();
                    self.journal.debt = self.journal.current.as_ref().and(self.options.reload.then(Debt::default));
                    self.published = None;
                }
                self.again(effects);
            }
            Work::Noting(awaited, journal) if awaited == step => {
                if done > 0 {
                    self.journal = *journal;
                }
                self.resume(effects);
            }
            Work::Clearing(awaited, journal) if awaited == step => {
                if done > 0 {
                    self.journal = *journal;
                    (self.attempts, self.refusals) = (0, 0);
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
                effects.push(Effect::Arm(Timer::Backoff, Wait::Backoff(self.attempts)));
            }
        }
        self.exit_if_stopping(effects);
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
        if verdict == Verdict::Took {
            self.clear(effects);
            return;
        }
        if verdict == Verdict::Refused {
            self.refusals = self.refusals.saturating_add(1);
        }
        // Only a debt that lasts is worth a write: until then a crash costs one reload too many, and no more.
        let noted = self.journal.debt.as_ref().is_none_or(|debt| debt.published == self.published);
        if noted || self.intake == Intake::Ready {
            self.resume(effects);
        } else {
            let debt = self.journal.debt.clone().map(|debt| Debt { published: self.published.clone(), ..debt });
            let journal = Box::new(Journal { debt, ..self.journal.clone() });
            let step = self.step();
            effects.push(Effect::Write { step, writes: vec![Write::Journal(journal.clone())] });
            self.work = Work::Noting(step, journal);
        }
    }

    /// Writes the debt off: the current generation is confirmed.
    fn clear(&mut self, effects: &mut Vec<Effect>) {
        let journal = Box::new(Journal {
            last_good: self.journal.current.clone(),
            debt: None,
            prev_debt: None,
            ..self.journal.clone()
        });
        let step = self.step();
        effects
            .push(Effect::Write { step, writes: vec![Write::Journal(journal.clone()), Write::Prune(keep(&journal))] });
        self.work = Work::Clearing(step, journal);
    }

    fn retry(&mut self, effects: &mut Vec<Effect>) {
        self.rejected = None;
        (self.attempts, self.refusals, self.failures) = (0, 0, 0);
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
            if self.doubtful {
                writes.push(Write::Journal(Box::new(self.journal.clone())));
                writes.push(Write::Swap(current.clone()));
            }
            writes.extend([Write::Link(current.clone()), Write::Unlink(current.clone())]);
        }
        writes.push(Write::Prune(keep(&self.journal)));
        let step = self.step();
        self.work = Work::Tidying(step, writes.len());
        effects.push(Effect::Write { step, writes });
    }
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
