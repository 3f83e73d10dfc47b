//! What `/status` answers: stable names, null where there is nothing, no secret anywhere.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::model::digest::Digest;
use crate::model::journal::{self, Generation};
use crate::model::snapshot::HeldBack;
use crate::model::stage::Stage;
use crate::observe::history::History;
use crate::observe::rollout::Rollout;
use crate::observe::verdict::Verdict;
use crate::observe::way::Stations;
use crate::reload::TargetStatus;

/// The status. Shared by the app, which writes it, and the servers, which read it.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// What all the rest comes to.
    pub verdict: Verdict,
    /// See [`crate::machine::Phase`].
    pub phase: &'static str,
    /// Whether a generation is published, also one found at start. It latches.
    pub ready: bool,
    /// The newest inputs.
    pub observed: Option<Observed>,
    /// The generation that `..data` names.
    pub published: Option<Published>,
    /// The newest generation that a reload succeeded for.
    pub reloaded: Option<Published>,
    /// The newest generation that is confirmed.
    pub confirmed: Option<Published>,
    /// What a rollback would go back to.
    pub last_good: Option<Published>,
    /// `publish` or `rollback`: a reload of the published generation is pending.
    pub debt: Option<&'static str>,
    /// The inputs that were rejected.
    pub quarantine: Option<Quarantine>,
    /// Objects that hold back themselves alone.
    pub held_back: Vec<HeldBack>,
    /// The process to be signalled, as it was last found.
    pub target: Option<TargetStatus>,
    pub sources: Vec<Source>,
    /// Stage to what is wrong there at the moment.
    pub errors: BTreeMap<&'static str, Problem>,
    /// What the newest inputs wait for although all goes well.
    pub waits_for: Option<Wait>,
    /// The last changes, the newest first.
    pub history: History,
    /// Of this program.
    pub version: &'static str,
    pub pod: Pod,
    /// With `--rollout`: how far the newest change is in the fleet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// With `--archive`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<Archive>,
    /// Whether the published generation was rejected, and there is no way back: also while it is tried once more.
    #[serde(skip)]
    pub held: bool,
    /// What was rejected and cannot be taken back, as the main process reads it by itself: files, or whole directories.
    #[serde(skip)]
    pub edited_in_place: Vec<String>,
    /// Which stations the flags ask for.
    #[serde(skip)]
    pub stations: Stations,
}

/// How far the archive is.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Archive {
    /// Without a credential.
    pub to: String,
    /// What was archived last.
    pub archived: Option<Archived>,
    /// The sequence number of the confirmed generation that is to be archived.
    pub pending: Option<u64>,
    /// Why it is not, and since when that fails.
    pub problem: Option<Problem>,
    /// Why the newest one will not be.
    pub withheld: Option<&'static str>,
}

/// A generation in the archive.
#[derive(Clone, Debug, Serialize)]
pub struct Archived {
    pub sequence: u64,
    /// Of the bundle.
    pub name: String,
    pub at: Timestamp,
}

impl Archive {
    /// How it stands, in a line.
    #[must_use]
    pub fn line(&self) -> String {
        let archived = self.archived.as_ref().map(|it| format!("generation {} as {}", it.sequence, it.name));
        let archived = archived.unwrap_or_else(|| "nothing yet".to_owned());
        let pending = match (&self.pending, &self.problem, self.withheld) {
            (Some(pending), Some(problem), _) => {
                format!("; generation {pending} is not archived since {:.0}: {}", problem.at, problem.message)
            }
            (Some(pending), None, _) => format!("; generation {pending} is on its way"),
            (None, _, Some(withheld)) => format!("; the newest generation is not archived: {withheld}"),
            (None, ..) => String::new(),
        };
        format!("{archived}, at {}{pending}", self.to)
    }

    /// Whether somebody should look.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        self.pending.is_some() && self.problem.is_some()
    }
}

/// Where this runs, as far as the environment says it; empty where it does not.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pod {
    pub name: String,
    pub namespace: String,
    pub node: Option<String>,
}

/// What the newest inputs wait for, though nothing is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wait {
    /// As it goes on after 'it waits for'.
    pub reason: String,
    /// What somebody who will not wait can do.
    pub next: Option<String>,
}

/// Inputs, and when they were seen.
#[derive(Clone, Debug, Serialize)]
pub struct Observed {
    /// Of the inputs.
    pub digest: Digest,
    /// Since when.
    pub at: Timestamp,
}

/// A generation, and when it got there.
#[derive(Clone, Debug, Serialize)]
pub struct Published {
    /// Of the inputs.
    pub digest: Digest,
    pub sequence: u64,
    /// Null where it was found at start.
    pub at: Option<Timestamp>,
    /// Whether what is published is from `--fallback-url`, and nothing of it from the sources.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fallback: bool,
}

impl Published {
    /// This generation, at this time.
    #[must_use]
    pub fn new(generation: &Generation, at: Option<Timestamp>) -> Self {
        Self { digest: generation.digest, sequence: generation.sequence, at, fallback: false }
    }

    #[must_use]
    pub fn is(&self, generation: &Generation) -> bool {
        (self.sequence, self.digest) == (generation.sequence, generation.digest)
    }
}

/// Rejected inputs.
#[derive(Clone, Debug, Serialize)]
pub struct Quarantine {
    /// Of the inputs.
    pub digest: Digest,
    /// Where they were rejected.
    pub stage: Stage,
    pub reason: String,
    pub at: Timestamp,
}

impl From<&journal::Quarantine> for Quarantine {
    fn from(quarantine: &journal::Quarantine) -> Self {
        let journal::Rejection { stage, reason, at } = quarantine.rejection.clone();
        Self { digest: quarantine.digest, stage, reason, at }
    }
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// `configmap/NS/NAME`, `dir/NAME`, …
    pub name: String,
    /// Of a named object.
    pub resource_version: Option<String>,
    /// Whether it can be read.
    pub healthy: bool,
    /// What is wrong, and what to do.
    pub message: Option<String>,
    /// When it last reported something.
    pub at: Option<Timestamp>,
    /// What kind of thing is wrong, if `message` is no mere note.
    #[serde(skip)]
    pub lack: Option<Lack>,
}

/// What is wrong with a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// A permission.
    Forbidden,
    /// It cannot be read now.
    Unreadable,
    /// It does not exist, or is empty, and is waited for.
    Missing,
    /// It is gone or empty, and its last content stays.
    Deleted,
    /// It is mounted so that it never changes.
    Frozen,
}

/// What is wrong at a stage.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// What failed, on what, why, and what to do.
    pub message: String,
    /// Since when.
    pub at: Timestamp,
}
