//! How a run ends.

use std::time::Duration;

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Drained, or `--once` published.
    Done,
    /// A start-up failure that a restart may cure.
    StartUp,
    /// The flags make no sense here.
    Usage,
    /// `--once`: the inputs were rejected.
    Rejected,
    /// `--once`: a source did not come in time.
    Unavailable,
    /// The output cannot be written.
    CannotWrite,
    /// `--once`: a source was forbidden until the end.
    Forbidden,
    /// A second signal, or `--shutdown-grace`, ended it before the step in flight was done.
    Interrupted,
}

impl End {
    /// After a signal. `--once` was not done yet: were that a success, a Pod would start without its configuration.
    pub(super) fn by_signal(once: Option<Duration>) -> Self {
        if once.is_some() { Self::Interrupted } else { Self::Done }
    }
}
