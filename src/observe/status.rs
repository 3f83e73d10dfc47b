//! What `/status` answers: stable names, null where there is nothing, no secret anywhere.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::model::digest::Digest;
use crate::model::journal::{self, Generation};
use crate::model::snapshot::HeldBack;
use crate::model::stage::Stage;
use crate::reload::TargetStatus;

/// The status. Shared by the app, which writes it, and the servers, which read it.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
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
}

impl Published {
    /// This generation, at this time.
    #[must_use]
    pub fn new(generation: &Generation, at: Option<Timestamp>) -> Self {
        Self { digest: generation.digest, sequence: generation.sequence, at }
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
}

/// What is wrong at a stage.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// What failed, on what, why, and what to do.
    pub message: String,
    /// Since when.
    pub at: Timestamp,
}
