//! The verdict: where the newest change stands, in one word and one sentence, with its consequence and the next step.
//!
//! A pure function of what `/status` holds. A new reason to wait goes to [`Status::waits_for`].

use jiff::Timestamp;
use serde::Serialize;

use super::findings::Finding;
use super::status::Status;
use super::way::Station;

/// The word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The newest inputs are published, and the main process has them, as far as the flags let anyone know.
    InEffect,
    /// A change is on its way, and nothing is in its way.
    #[default]
    Working,
    /// The newest inputs, or an object of them, did not pass; what was good before is running.
    Rejected,
    /// What is published was rejected, and there is no way back.
    Held,
    /// Something else must come first: a source, room in the volume, the main process, its turn.
    Waiting,
    /// What is in effect may be older than what the sources hold, and nothing is on its way.
    Stale,
}

impl State {
    pub const ALL: [Self; 6] = [Self::InEffect, Self::Working, Self::Rejected, Self::Held, Self::Waiting, Self::Stale];

    /// The word in `/status` and the metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InEffect => "in-effect",
            Self::Working => "working",
            Self::Rejected => "rejected",
            Self::Held => "held",
            Self::Waiting => "waiting",
            Self::Stale => "stale",
        }
    }

    /// The word of [`State::as_str`].
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// What is said of the newest change. Holds no content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub state: State,
    /// The consequence, the cause, and what is running.
    pub summary: String,
    /// Since when the word is this one.
    pub since: Timestamp,
    /// What to do, where there is something.
    pub next: Option<String>,
    /// The cause as it stands in `summary`.
    #[serde(skip)]
    pub cause: Option<String>,
    /// `summary` without the cause.
    #[serde(skip)]
    pub consequence: String,
    /// Where the change stands.
    #[serde(skip)]
    pub at: Station,
    /// Whether nobody needs to do anything.
    #[serde(skip)]
    pub calm: bool,
}

impl Default for Verdict {
    fn default() -> Self {
        Finding::calm(State::Working, Station::Source, "Trimtab is starting").verdict()
    }
}

impl Verdict {
    /// The verdict on this status, as of now.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        Finding::of(status).verdict()
    }

    /// What it says to whoever reads only this: for Events, whose cause is given without content.
    #[must_use]
    pub fn advice(&self) -> String {
        self.with_next(&self.consequence)
    }

    /// All of it in one line.
    #[must_use]
    pub fn line(&self) -> String {
        self.with_next(&self.summary)
    }

    fn with_next(&self, text: &str) -> String {
        [Some(text), self.next.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}
