//! The words between the rollout and the app: what happens to it and what it asks for.

use std::time::Duration;

use super::decide::Why;
use super::lease::{Lease, Reason};
use crate::model::digest::Digest;

/// What the flags say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// `--rollout-bake`.
    pub bake: Duration,
    /// `--rollout-spread`.
    pub spread: Duration,
    /// `--confirm-timeout`.
    pub confirm: Duration,
    /// Whether there is a `--rollout-gate-url`.
    pub gated: bool,
}

impl Timing {
    /// How often the Lease is read while there is something to wait for.
    #[must_use]
    pub fn poll(&self) -> Duration {
        (self.spread / 20).clamp(Duration::from_secs(5), Duration::from_mins(1))
    }

    /// Since `spreading`: how long until each has had its moment, and a verdict.
    pub(super) fn end_of_spread(&self) -> Duration {
        self.spread + self.confirm + 2 * self.poll()
    }
}

/// A Lease's `resourceVersion`.
pub type Version = String;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<T> {
    Answered(T),
    /// Nobody was reached, or not now: nothing was written. The server asks to be left alone for so long.
    Failed(Duration),
    /// It was refused until a person changes something: nothing was written.
    Denied,
    /// No answer came. What was asked for may have been done. The server asks to be left alone for so long.
    Lost(Duration),
}

impl<T> Reply<T> {
    pub fn map<U>(self, answer: impl FnOnce(T) -> U) -> Reply<U> {
        match self {
            Self::Answered(found) => Reply::Answered(answer(found)),
            Self::Failed(after) => Reply::Failed(after),
            Self::Denied => Reply::Denied,
            Self::Lost(after) => Reply::Lost(after),
        }
    }
}

/// What the history holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The change that it is labelled with.
    pub change: Digest,
    /// The change that it is with this replica's templates.
    pub mine: Digest,
    /// Whether its sources are this replica's.
    pub is_ours: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The replica starts.
    Started,
    /// Its sources are another change than before.
    Saw,
    /// [`Effect::Wake`].
    Woke,
    /// The answer to [`Effect::Read`].
    Read(Reply<Option<(Version, Lease)>>),
    /// The answer to [`Effect::Write`]: the new version, or `None` where another was faster.
    Wrote(Reply<Option<Version>>),
    /// The answer to [`Effect::ReadHistory`].
    HistoryRead(Reply<Option<Found>>),
    /// The answer to [`Effect::WriteHistory`].
    HistoryWritten(Reply<()>),
    /// What this replica was to go to is ready: may it be published?
    Ready(Digest),
    /// There is a verdict for what is published, or the main process cannot be reached.
    Verdict,
    /// What the history renders to was rejected here.
    HistoryRejected,
    /// Whether `--rollout-gate-url` agrees.
    Gate(bool),
    /// Somebody asks to look now, whatever was waited for.
    Refresh,
    /// The replica ends.
    Ending,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send [`Event::Woke`] at this moment. Replaces the one before.
    Wake(Duration),
    /// Read the Lease; not `quorum`: from the watch cache.
    Read {
        quorum: bool,
    },
    /// Write the Lease, if it still has this version; create it where that is `None`.
    Write {
        lease: Lease,
        version: Option<Version>,
        reason: Reason,
    },
    ReadHistory,
    /// Keep the sources of this change for new Pods.
    WriteHistory(Digest),
    /// Make this change ready, ask by [`Event::Ready`], publish it when [`Effect::Publish`] says so.
    Go(Digest, Why),
    /// What was asked for by [`Event::Ready`] may be published, now.
    Publish(Digest),
    /// It may not: drop it.
    Drop(Digest),
    /// Go back to the base.
    Back,
    /// Publish what the history has, which becomes the base.
    StartFromHistory(Digest),
    /// Journal that what is published is the base.
    Settle,
    /// Journal that the rejection is forgotten; what is published without a verdict is confirmed anew.
    ForgetRejection,
    /// Journal this, before the effects that follow.
    Claimed(bool),
    /// Journal that the revert needs nothing any more.
    RevertIsKnown,
}
