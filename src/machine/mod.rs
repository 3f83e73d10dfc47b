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
//! What must outlive a crash is in the [`Journal`]; [`recover`] makes a machine of it and of what is on the disk.

mod attempts;
mod intake;
mod io;
mod recover;
mod rollout;
mod work;
mod writes;

#[cfg(test)]
pub(crate) mod tests;

use self::intake::Intake;
pub use self::io::{
    Disk, Effect, Event, Leave, Memory, Milestone, Options, Outcome, Phase, Step, Timer, Verdict, Wait, Write,
    WriteKind,
};
pub use self::recover::recover;
use self::work::{Next, Pause, Work};
use crate::model::digest::Digest;
use crate::model::journal::{Journal, Moment};

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts: each has its own cause and its own end")]
pub struct Machine {
    options: Options,
    /// As it is on the disk, as far as that is known.
    journal: Journal,
    /// The newest inputs.
    want: Option<Digest>,
    /// The inputs that led to what is published.
    have: Option<Digest>,
    /// The inputs that the fleet lets go.
    leave: Option<Leave>,
    intake: Intake,
    work: Work,
    /// A moment after the current generation was published.
    published: Option<Moment>,
    /// Attempts to pay the present debt.
    attempts: u32,
    /// How many of them were refused.
    refusals: u32,
    /// Whether they have gone on for long enough to be final.
    refused_long: bool,
    /// Before the next of them.
    pause: Pause,
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
    /// Whether the newest inputs are rendered once more though they are published: something of them was held back.
    redo: bool,
    /// Whether it was announced that the newest inputs are in effect.
    settled: bool,
    stopping: bool,
    last_step: u64,
}

impl Machine {
    /// Takes an event and returns what to do.
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
            Event::Go(leave) => self.let_go(leave, &mut effects),
            Event::Allowed { step, allowed } => self.allowed(step, allowed, &mut effects),
            Event::Back => self.back(&mut effects),
            Event::NotHeld { rejection, retries } => self.not_held(rejection, retries, &mut effects),
            Event::Remember(memory) => self.remember(memory, &mut effects),
            Event::Retry => self.retry(&mut effects),
            Event::Shutdown => self.shutdown(&mut effects),
        }
        let settled = self.is_settled();
        if settled && !self.settled {
            effects.push(Effect::Announce(Milestone::Settled));
        }
        self.settled = settled;
        effects
    }

    /// Where the machine stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match &self.work {
            Work::Rendering(..) | Work::Asking(..) => Phase::Rendering,
            Work::Tidying(..) | Work::Committing(..) | Work::Noting(_) | Work::Clearing(..) => Phase::Committing,
            Work::Reloading(_) => Phase::Reloading,
            Work::Confirming { .. } | Work::Verifying(..) => Phase::Confirming,
            Work::Backoff(_) if self.held => Phase::Held,
            Work::Backoff(_) => Phase::Backoff,
            Work::Waiting | Work::Exited if self.want.is_none() => Phase::Syncing,
            Work::Waiting | Work::Exited if self.intake != Intake::Calm => Phase::Settling,
            Work::Waiting | Work::Exited => Phase::Idle,
        }
    }

    /// Whether the way back from what is published is being looked at.
    #[must_use]
    pub fn is_turning_back(&self) -> bool {
        matches!(self.work, Work::Verifying(..))
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

    /// Whether the newest inputs are published but for objects that were held back.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.journal.current.as_ref().is_some_and(|current| current.partial)
    }

    /// Whether the current generation was rejected, and there is no way back.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Whether the output may name another generation than the current one.
    #[must_use]
    pub fn is_astray(&self) -> bool {
        self.astray
    }

    /// The flag whose pace the newest inputs wait for, if they do.
    #[must_use]
    pub fn paced_by(&self) -> Option<&'static str> {
        match self.intake {
            Intake::Paced => Some("--reload-min-interval"),
            Intake::Splaying => Some("--reload-splay"),
            Intake::Calm | Intake::Settling | Intake::Again | Intake::Ready => None,
        }
    }

    fn step(&mut self) -> Step {
        self.last_step += 1;
        Step(self.last_step)
    }

    /// The inputs that the step in flight will have published, or that are published.
    fn settled_on(&self) -> Option<Digest> {
        match &self.work {
            Work::Rendering(_, digest) | Work::Asking(_, digest, ..) | Work::Committing(_, _, digest, _) => {
                Some(*digest)
            }
            _ => self.have,
        }
    }
}
