//! The machine's vocabulary: what happens to it and what it asks for.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::model::digest::Digest;
use crate::model::journal::{Baseline, Generation, Journal, Moment, Quarantine, Rejection};
use crate::model::made_of::MadeOf;

/// What the machine needs to know of the flags.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag, or follows from some")]
pub struct Options {
    pub debounce: Duration,
    pub debounce_max: Duration,
    /// `--reload-min-interval`.
    pub min_interval: Duration,
    /// `--reload-splay`.
    pub splay: Duration,
    /// `--reload-attempts`.
    pub attempts: u32,
    /// Whether somebody is notified or asked: if not, and with `--once`, a publish leaves no debt.
    pub reload: bool,
    /// Whether a reload that was taken is confirmed as well.
    pub confirm: bool,
    /// `--on-reject rollback`.
    pub rollback: bool,
    /// `--rollout`: inputs wait until the fleet lets them go.
    pub rollout: bool,
    /// Of the flags by which inputs are rejected: a quarantine by others is forgotten at start.
    pub gate: Digest,
}

/// The identity of one step; answers carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step(pub(super) u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Every source is known, and this is the digest of all inputs. Sent on each change.
    Observed(Digest),
    /// An armed timer fired.
    Fired(Timer),
    /// The answer to [`Effect::Render`].
    Rendered { step: Step, outcome: Outcome },
    /// The answer to [`Effect::Write`].
    Written {
        step: Step,
        /// How many of the writes were done; fewer than asked for where one failed.
        done: usize,
        /// The moment after the last of them.
        at: Option<Moment>,
    },
    /// The answer to [`Effect::Reload`].
    Reloaded { step: Step, verdict: Verdict },
    /// The answer to [`Effect::Confirm`]. One refusal is final here.
    Confirmed { step: Step, verdict: Verdict },
    /// The answer to [`Effect::Verify`].
    Verified {
        step: Step,
        /// Whether the generation is on the disk as it was published.
        sound: bool,
        /// What `--confirm-url` says now.
        baseline: Option<Baseline>,
    },
    /// The fleet lets these inputs go.
    Go(Leave),
    /// The answer to [`Effect::Ask`].
    Allowed { step: Step, allowed: bool },
    /// The fleet does not take what is published: back to what is known to be good.
    Back,
    /// What is published was confirmed, and is rejected after all: it went first, and has not held.
    NotHeld {
        rejection: Rejection,
        /// How often people have asked for another try.
        retries: u64,
    },
    /// What must be remembered of the rollout.
    Remember(Memory),
    /// Somebody asks: forget the rejection, and try at once what waits.
    Retry,
    /// Finish the step in flight, then exit.
    Shutdown,
}

/// Leave to go, until the fleet is asked once more, right before the rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave {
    pub inputs: Digest,
    /// Of which change they are.
    pub change: Digest,
    /// How often people have asked for another try.
    pub retries: u64,
    /// Whether the change is known to be good.
    pub good: bool,
    /// Whether it is what new Pods start from: it is what is gone back to from the moment it is published.
    pub base: bool,
}

/// What must be remembered of the rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// What is published is known to be good.
    Settle,
    /// Whether the last claim is this replica's.
    Claimed(bool),
    /// The fleet knows what was gone back to.
    RevertIsKnown,
    /// What was rejected may be tried again.
    ForgetRejection,
}

/// What came of a render.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The candidate is complete and validated in its directory, which nothing names yet.
    Staged {
        candidate: Generation,
        /// What `--confirm-url` says now.
        baseline: Option<Baseline>,
    },
    /// It rendered to the very tree that is published; the rest as in [`Generation`].
    Same { partial: bool, made_of: MadeOf },
    /// The inputs are bad. Nothing of them is left.
    Rejected(Rejection),
    /// The candidate could not be written; worth trying again.
    Failed,
}

/// What the main process made of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It took the generation, or had started after the publish.
    Took,
    /// It refused, or did not confirm in time.
    Refused(Rejection),
    /// It died of the notification or soon after. Unlike a refusal, it is not asked again.
    Died(Rejection),
    /// It was not there to answer, or is busy.
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
    /// Before the same inputs are rendered again after a failed write, or a rejection while nothing is published.
    Again,
    /// Before the next reload attempt. It runs on while newer inputs are rendered.
    Retry,
    /// Since the first refusal of a reload. Until it fires, no number of refusals is final.
    Refused,
    /// Before the next try to write.
    Backoff,
    /// How long a confirmation that has nobody to ask holds up newer inputs.
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
        step: Step,
        sequence: u64,
        /// The published tree's digest.
        unless: Option<Digest>,
    },
    /// Ask the fleet whether what is staged may be published now.
    Ask(Step),
    /// Carry out these writes in order; stop at the first that fails.
    Write {
        step: Step,
        writes: Vec<Write>,
    },
    /// Make one attempt to reload.
    Reload {
        step: Step,
        /// The current one.
        generation: Generation,
        /// A moment after it was published, if known.
        published: Option<Moment>,
    },
    /// Find out whether the main process took what the last attempt notified it of.
    Confirm {
        step: Step,
        /// Of the current generation.
        digest: Digest,
        /// What `--confirm-url` said before it was published, if known.
        baseline: Option<Baseline>,
    },
    /// Check whether a generation is on the disk as it was published.
    Verify {
        step: Step,
        generation: Generation,
    },
    /// Let this confirmation end if it has nobody to ask; it is answered all the same.
    Hurry(Step),
    /// Report what happened.
    Announce(Milestone),
    Exit,
}

/// What is reported to people and other systems. Each is announced once, when it has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Milestone {
    /// A newer generation is current.
    Published(Generation),
    /// A commit failed half way, and the generation from before it is current again.
    TurnedBack(Generation),
    /// Inputs were rejected, and are not tried again until they differ or somebody asks.
    Rejected(Quarantine),
    /// After a rejection, the last good generation is current again.
    RolledBack {
        /// The sequence number of the one that was rejected.
        from: u64,
        to: Generation,
    },
    /// The main process has the current generation, which is the last good one from now on.
    Confirmed {
        generation: Generation,
        /// Whether it had been current before, and was gone back to.
        again: bool,
    },
    /// The current generation was rejected, and there is no way back.
    Held,
    /// The newest inputs are published, and the main process has them.
    Settled,
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
    /// Wait until the current generation is on the disk, and the journal that names it.
    Sync,
    /// Remove all generation directories but these, and what a crash left.
    Prune(Vec<String>),
}

/// The kinds of [`Write`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    Journal,
    Link,
    Swap,
    Unlink,
    Sync,
    Prune,
}

impl Write {
    #[must_use]
    pub fn kind(&self) -> WriteKind {
        match self {
            Self::Journal(_) => WriteKind::Journal,
            Self::Link(_) => WriteKind::Link,
            Self::Swap(_) => WriteKind::Swap,
            Self::Unlink(_) => WriteKind::Unlink,
            Self::Sync => WriteKind::Sync,
            Self::Prune(_) => WriteKind::Prune,
        }
    }
}

impl WriteKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Journal => "journal",
            Self::Link => "link",
            Self::Swap => "swap",
            Self::Unlink => "unlink",
            Self::Sync => "sync",
            Self::Prune => "prune",
        }
    }
}

/// What is in the output directory at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// The generation directory that `..data` names, if it is of our pattern and exists.
    pub link: Option<String>,
    /// All directories of our pattern.
    pub directories: Vec<String>,
    /// Those of them that are not as the journal has them; `None` where nothing can have been lost: nothing but a power
    /// loss loses what was written.
    pub torn: Option<BTreeSet<String>>,
}

/// What `/status` calls a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A source has not been read yet.
    Syncing,
    /// The newest inputs are published, and the main process has them.
    Idle,
    /// Newer inputs wait for quiet or for their pace.
    Settling,
    /// Inputs are rendered and staged.
    Rendering,
    /// The output directory is changed.
    Committing,
    /// The main process is being notified.
    Reloading,
    /// The main process is being asked or watched.
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
