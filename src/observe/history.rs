//! The last changes: which sources and keys, how long each step took, how it ended. Names and never values.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::machine::Milestone;
use crate::model::content::Content;
use crate::model::digest::Digest;
use crate::model::journal::Rejection;
use crate::model::object::Object;
use crate::model::snapshot::{Objects, Snapshot};
use crate::model::stage::Stage;

/// How many changes are kept in memory, and how many of those that have ended survive a restart.
const KEPT: usize = 20;
const STORED: usize = 5;
/// How many sources of a change, and keys of a source, are named.
const NAMED: usize = 8;

/// What changed in one source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Edit {
    /// `configmap/NS/NAME`, `dir/NAME`, `template/NAME`.
    pub source: String,
    /// Those that were added, changed or removed, the first ones by name.
    pub keys: Vec<String>,
    /// How many more.
    #[serde(default)]
    pub more_keys: usize,
    /// `resourceVersion`: null for a directory, and where the object did not exist.
    pub from: Option<String>,
    pub to: Option<String>,
}

/// How a change ended, or that it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    Working,
    InEffect,
    /// It was never visible.
    Rejected,
    /// It was published, rejected, and taken back.
    RolledBack,
    /// It was published and rejected, and there was no way back.
    Held,
    /// A newer one took its place.
    Superseded,
}

impl Fate {
    /// The word in `/status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Working => "working",
            Self::InEffect => "in-effect",
            Self::Rejected => "rejected",
            Self::RolledBack => "rolled-back",
            Self::Held => "held",
            Self::Superseded => "superseded",
        }
    }
}

/// One change: what was edited from one render to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// When the first of its edits was seen.
    pub at: Timestamp,
    pub sources: Vec<Edit>,
    /// How many more sources changed.
    #[serde(default)]
    pub more_sources: usize,
    /// The generation that was published of it.
    pub sequence: Option<u64>,
    pub result: Fate,
    /// Where and why it was rejected.
    pub stage: Option<Stage>,
    pub reason: Option<String>,
    /// From the edit to the end, in milliseconds.
    pub took_ms: Option<u64>,
    /// How long each step took, in milliseconds; of several attempts, the last.
    pub steps_ms: BTreeMap<Stage, u64>,
    /// Of the inputs.
    #[serde(skip)]
    digest: Option<Digest>,
    #[serde(skip)]
    since: Option<Instant>,
    /// Whether it has been rendered.
    #[serde(skip)]
    begun: bool,
}

impl Change {
    fn end(&mut self, fate: Fate) {
        self.result = fate;
        if fate == Fate::InEffect {
            // It was rejected before, and has got through.
            (self.stage, self.reason) = (None, None);
        }
        self.took_ms = self.since.map(|since| millis(since.elapsed())).or(self.took_ms);
    }

    fn reject(&mut self, rejection: &Rejection) {
        (self.stage, self.reason) = (Some(rejection.stage), Some(rejection.reason.clone()));
        self.end(Fate::Rejected);
    }

    /// What changed, in words; `None` where that is not known.
    #[must_use]
    pub fn what(&self) -> Option<String> {
        let mut parts: Vec<String> = self.sources.iter().map(Edit::to_string).collect();
        if self.more_sources > 0 {
            parts.push(format!("{} more sources", self.more_sources));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// The newest change first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct History {
    changes: VecDeque<Change>,
    /// The inputs that are rendered, published or confirmed now, or were last.
    #[serde(skip)]
    work: Option<Digest>,
    /// Whether one has ended since [`History::unstored`] was last asked.
    #[serde(skip)]
    unstored: bool,
}

impl History {
    /// What [`History::unstored`] gave in an earlier life; nothing, if that cannot be read.
    #[must_use]
    pub fn restored(bytes: &[u8]) -> Self {
        let mut changes: VecDeque<Change> = serde_json::from_slice(bytes).unwrap_or_default();
        changes.truncate(STORED);
        Self { changes, ..Self::default() }
    }

    /// What is to be stored, if that has changed since this was last asked.
    pub fn unstored(&mut self) -> Option<Vec<u8>> {
        std::mem::take(&mut self.unstored).then_some(())?;
        let ended = self.changes.iter().filter(|change| change.result != Fate::Working).take(STORED);
        serde_json::to_vec(&ended.collect::<Vec<_>>()).ok()
    }

    /// The newest change first.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter()
    }

    /// The newest change.
    #[must_use]
    pub fn newest(&self) -> Option<&Change> {
        self.changes.front()
    }

    /// Newer inputs were seen. Until they are rendered, further edits belong to the same change.
    pub fn observed(&mut self, digest: Digest, edits: Vec<Edit>) {
        let waiting = |change: &&mut Change| change.result == Fate::Working && !change.begun;
        if let Some(change) = self.changes.front_mut().filter(waiting) {
            change.digest = Some(digest);
            for edit in edits {
                match change.sources.iter_mut().find(|known| known.source == edit.source) {
                    Some(known) => known.merge(edit),
                    None => change.sources.push(edit),
                }
            }
            change.bound();
            return;
        }
        let mut change = Change {
            at: Timestamp::now(),
            sources: edits,
            more_sources: 0,
            sequence: None,
            result: Fate::Working,
            stage: None,
            reason: None,
            took_ms: None,
            steps_ms: BTreeMap::new(),
            digest: Some(digest),
            since: Some(Instant::now()),
            begun: false,
        };
        change.bound();
        self.changes.push_front(change);
        self.changes.truncate(KEPT);
    }

    /// These inputs are rendered. The change, if this is the first time.
    pub fn began(&mut self, digest: Digest) -> Option<&Change> {
        self.work = Some(digest);
        let change = self.changes.iter_mut().find(|change| change.digest == Some(digest))?;
        let first = !std::mem::replace(&mut change.begun, true);
        if change.result != Fate::Working {
            // Somebody asked for another try.
            (change.result, change.stage, change.reason) = (Fate::Working, None, None);
            change.steps_ms.clear();
        }
        first.then_some(&*change)
    }

    /// A step of what is in work has ended. What follows a rejection are the steps of the way back.
    pub fn step(&mut self, stage: Stage, took: Duration) {
        let is_way_back = |change: &Change| matches!(change.result, Fate::Rejected | Fate::RolledBack);
        if let Some(change) = self.in_work().filter(|change| !is_way_back(change)) {
            change.steps_ms.insert(stage, millis(took));
        }
    }

    /// What is in work does not render or validate.
    pub fn rejected(&mut self, rejection: &Rejection) {
        if let Some(change) = self.in_work() {
            change.reject(rejection);
            self.unstored = true;
        }
    }

    pub fn announce(&mut self, milestone: &Milestone) {
        match milestone {
            Milestone::Published(generation) => {
                let work = self.work;
                for change in self.changes.iter_mut().filter(|change| change.result == Fate::Working && change.begun) {
                    if change.digest == work {
                        change.sequence = Some(generation.sequence);
                    } else {
                        change.end(Fate::Superseded);
                    }
                }
            }
            Milestone::Confirmed { generation, again: false } => {
                self.end(|change| change.sequence == Some(generation.sequence), Fate::InEffect);
            }
            Milestone::Rejected(quarantine) => {
                if let Some(change) = self.changes.iter_mut().find(|change| change.digest == Some(quarantine.digest)) {
                    change.reject(&quarantine.rejection);
                }
            }
            Milestone::RolledBack { from, .. } => {
                self.end(|change| change.sequence == Some(*from), Fate::RolledBack);
            }
            Milestone::Held => self.end(|change| change.sequence.is_some(), Fate::Held),
            Milestone::Settled => {
                // An edit that was undone before it was rendered, or that renders to what is published.
                self.end(|change| change.result == Fate::Working, Fate::InEffect);
            }
            Milestone::TurnedBack(_) | Milestone::Confirmed { again: true, .. } => return,
        }
        self.unstored = true;
    }

    fn in_work(&mut self) -> Option<&mut Change> {
        let work = self.work?;
        self.changes.iter_mut().find(|change| change.digest == Some(work))
    }

    /// The newest of this kind ends so.
    fn end(&mut self, is: impl Fn(&Change) -> bool, fate: Fate) {
        if let Some(change) = self.changes.iter_mut().find(|change| is(change)) {
            change.end(fate);
        }
    }
}

impl Change {
    fn bound(&mut self) {
        self.more_sources += self.sources.len().saturating_sub(NAMED);
        self.sources.truncate(NAMED);
    }
}

impl Edit {
    fn of(source: String, old: Option<&Object>, new: Option<&Object>) -> Self {
        let version = |object: Option<&Object>| {
            object.map(|object| object.resource_version.clone()).filter(|version| !version.is_empty())
        };
        // All keys of what is new or gone say nothing.
        let mut keys: Vec<String> = match (old, new) {
            (Some(old), Some(new)) => {
                let names: BTreeSet<&String> = old.data.keys().chain(new.data.keys()).collect();
                let digest = |object: &Object, key: &str| object.data.get(key).map(Content::digest);
                names.into_iter().filter(|key| digest(old, key) != digest(new, key)).cloned().collect()
            }
            _ => Vec::new(),
        };
        let more_keys = keys.len().saturating_sub(NAMED);
        keys.truncate(NAMED);
        Self { source, keys, more_keys, from: version(old), to: version(new) }
    }

    fn merge(&mut self, newer: Self) {
        self.to = newer.to;
        self.more_keys += newer.more_keys;
        for key in newer.keys {
            if self.keys.contains(&key) {
                continue;
            }
            if self.keys.len() < NAMED { self.keys.push(key) } else { self.more_keys += 1 }
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        let mut gap = ": ";
        if !self.keys.is_empty() {
            let s = if self.keys.len() + self.more_keys > 1 { "s" } else { "" };
            write!(f, "{gap}key{s} {}", self.keys.join(", "))?;
            gap = ", ";
        }
        if self.more_keys > 0 {
            write!(f, " and {} more", self.more_keys)?;
        }
        match (&self.from, &self.to) {
            (Some(from), Some(to)) => write!(f, "{gap}version {from} → {to}"),
            (None, Some(to)) => write!(f, "{gap}version {to}"),
            (Some(from), None) => write!(f, "{gap}version {from} is gone"),
            (None, None) => Ok(()),
        }
    }
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// What differs between two snapshots. Without an older one, each source that there is.
#[must_use]
pub fn edits(before: Option<&Snapshot>, now: &Snapshot) -> Vec<Edit> {
    let nothing = Snapshot::default();
    let before = before.unwrap_or(&nothing);
    let mut found: BTreeMap<String, (Option<&Object>, Option<&Object>)> = BTreeMap::new();
    for object in apart(&before.objects, &now.objects) {
        found.entry(object.id.to_string()).or_default().0 = Some(object);
    }
    for object in apart(&now.objects, &before.objects) {
        found.entry(object.id.to_string()).or_default().1 = Some(object);
    }
    for (snapshot, is_new) in [(before, false), (now, true)] {
        let templates = snapshot.templates.iter().map(|(object, _)| (format!("template/{}", object.id.name), object));
        let filled = snapshot.envsubst.iter().map(|(object, _)| (format!("envsubst/{}", object.id.name), object));
        let observed = snapshot.observed.iter().map(|observed| (observed.object.id.to_string(), &observed.object));
        let podinfo = snapshot.podinfo.iter().map(|object| ("podinfo".to_owned(), object));
        let others = templates.chain(filled).chain(observed).chain(podinfo);
        for (name, object) in others {
            let entry = found.entry(name).or_default();
            *(if is_new { &mut entry.1 } else { &mut entry.0 }) = Some(object.as_ref());
        }
    }
    let differs =
        |(old, new): &(Option<&Object>, Option<&Object>)| old.map(Object::content) != new.map(Object::content);
    let changed = found.into_iter().filter(|(_, pair)| differs(pair));
    changed.map(|(source, (old, new))| Edit::of(source, old, new)).collect()
}

/// The objects of one side, without those groups that the other side shares with it.
fn apart<'a>(one: &'a Objects, other: &'a Objects) -> impl Iterator<Item = &'a Object> {
    let shared: BTreeSet<_> = other.groups().map(Arc::as_ptr).collect();
    let groups = one.groups().filter(move |group| !shared.contains(&Arc::as_ptr(group)));
    groups.flat_map(|group| &group.taken).map(|taken| taken.object.as_ref())
}

#[cfg(test)]
mod tests;
