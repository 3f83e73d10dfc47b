//! The Lease of a rollout: what the fleet knows, and its form in annotations. All of it is read as hostile input.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::model::digest::Digest;
use crate::model::object::{Kind, Object};

/// Start of every annotation's name.
pub const PREFIX: &str = "trimtab.dev/";

/// How many changes `good` and `stopped` remember.
pub(super) const LISTED: usize = 5;

/// No value that the protocol reads is longer: [`LISTED`] digests with commas.
const VALUE_LIMIT: usize = LISTED * 65;

/// The annotation with the [`versions`] of the candidate, and that with those of what was last done.
pub const OF_CANDIDATE: &str = "versions";
pub const OF_DONE: &str = "done-versions";

/// A Pod's UID is shorter.
const HOLDER_LIMIT: usize = 253;

/// What the fleet knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The UID of the Pod that claimed the candidate, or that wrote `done`; empty when nobody holds it.
    pub holder: String,
    /// The change that it speaks of.
    pub candidate: Option<Digest>,
    pub state: State,
    /// What the holders that were lost cost the candidate.
    pub points: u32,
    /// Changes that the whole fleet took, newest last.
    pub good: Vec<Digest>,
    /// Changes that somebody rejected, newest last.
    pub stopped: Vec<Digest>,
    /// Raised by people's `retry` and `promote`.
    pub retries: u64,
    /// Raised by each write.
    pub renewals: u64,
    /// Whether its last holder gave it back.
    pub returned: bool,
}

/// Where a candidate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A replica goes first.
    Claimed,
    /// It has confirmed, and must hold that.
    Baking,
    /// The others follow.
    Spreading,
    /// The fleet has it.
    Done,
    /// Somebody rejected it.
    Stopped,
    /// There is no candidate.
    None,
}

/// Why a Lease is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The first thing that this fleet has.
    First,
    Claim,
    /// Its holders were lost: it is stopped.
    HoldersLost,
    Renew,
    /// The holder sees something newer.
    Replaced,
    /// What the holder sees now needs no rollout.
    Abandoned,
    /// The holder cannot find out whether its main process took it.
    GivenUp,
    /// The holder ends.
    GivenBack,
    Baking,
    Spreading,
    Done,
    /// Something good was gone back to.
    Reverted,
    Rejected,
    /// `--rollout-gate-url` says no.
    Gate,
}

/// Why a Lease cannot be read. Nobody goes, and nobody overwrites it: a person deletes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseLeaseError {
    #[error("its annotation {PREFIX}{0} is missing")]
    Missing(&'static str),
    #[error("its annotation {PREFIX}{name} is not {expected}")]
    Malformed { name: &'static str, expected: &'static str },
    #[error("its holderIdentity is longer than {HOLDER_LIMIT} bytes, or holds control characters")]
    Holder,
    #[error("its annotations contradict one another: {0}")]
    Contradiction(&'static str),
}

impl State {
    /// Whether a replica leads and others wait for it.
    #[must_use]
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Claimed | Self::Baking | Self::Spreading)
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Baking => "baking",
            Self::Spreading => "spreading",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::None => "none",
        }
    }

    /// All of them.
    pub const ALL: [Self; 6] = [Self::Claimed, Self::Baking, Self::Spreading, Self::Done, Self::Stopped, Self::None];
}

/// The name of a fleet's Lease; `fleet`: the NAME of `--rollout`.
#[must_use]
pub fn lease_name(fleet: &str) -> String {
    format!("trimtab-{fleet}")
}

/// The open `ConfigMaps` among these, each with the start of its content's digest: what a person who edited one can find
/// again. Of what is secret, nothing.
pub fn versions<'a>(objects: impl Iterator<Item = &'a Object>) -> String {
    let open = objects.filter(|object| object.id.kind == Kind::ConfigMap && !object.secret);
    open.map(|object| format!("{}@{}", object.id, object.content().short())).collect::<Vec<_>>().join(" ")
}

impl Lease {
    /// What the first replica that has something writes.
    pub(super) fn first(holder: &str, candidate: Digest, state: State) -> Self {
        Self {
            holder: holder.to_owned(),
            candidate: Some(candidate),
            state,
            points: 0,
            good: Vec::new(),
            stopped: Vec::new(),
            retries: 0,
            renewals: 0,
            returned: false,
        }
    }

    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.state.is_under_way()
    }

    /// The same, once more renewed.
    #[must_use]
    pub fn renewed(&self) -> Self {
        Self { renewals: self.renewals.wrapping_add(1), ..self.clone() }
    }

    /// The candidate is stopped.
    #[must_use]
    pub fn stop(&self, change: Digest) -> Self {
        let stopped = added(&self.stopped, change);
        let good = without(&self.good, change);
        Self { state: State::Stopped, holder: String::new(), stopped, good, ..self.renewed() }
    }

    /// The fleet has this change.
    #[must_use]
    pub fn done(&self, change: Digest) -> Self {
        Self {
            state: State::Done,
            candidate: Some(change),
            good: added(&self.good, change),
            stopped: without(&self.stopped, change),
            ..self.renewed()
        }
    }

    /// What the holder leaves when it ends.
    #[must_use]
    pub fn given_back(&self) -> Self {
        Self { holder: String::new(), returned: true, ..self.renewed() }
    }

    /// There is no candidate any more.
    pub(super) fn abandoned(&self) -> Self {
        Self { state: State::None, candidate: None, holder: String::new(), ..self.renewed() }
    }

    /// A person says that the candidate is good.
    #[must_use]
    pub fn promoted(&self) -> Option<Self> {
        let done = self.done(self.candidate?);
        Some(Self { retries: self.retries.wrapping_add(1), ..done })
    }

    /// A person stops what is under way.
    #[must_use]
    pub fn stopped_by_person(&self) -> Option<Self> {
        if self.is_under_way() { Some(self.stop(self.candidate?)) } else { None }
    }

    /// A person asks for another try.
    #[must_use]
    pub fn retried(&self) -> Self {
        let again = Self { retries: self.retries.wrapping_add(1), ..self.renewed() };
        match self.candidate.filter(|_| self.state == State::Stopped) {
            Some(change) => {
                let stopped = without(&self.stopped, change);
                Self { state: State::None, candidate: None, holder: String::new(), stopped, ..again }
            }
            None => again,
        }
    }

    /// Reads what the protocol needs.
    pub fn parse(holder: Option<&str>, annotations: &BTreeMap<String, String>) -> Result<Self, ParseLeaseError> {
        let holder = holder.unwrap_or_default();
        if holder.len() > HOLDER_LIMIT || holder.chars().any(char::is_control) {
            return Err(ParseLeaseError::Holder);
        }
        let value = |name: &'static str| {
            let value = annotations.get(&format!("{PREFIX}{name}")).map(String::as_str);
            match value {
                Some(value) if value.len() > VALUE_LIMIT => {
                    Err(ParseLeaseError::Malformed { name, expected: "as short as this program writes it" })
                }
                value => value.ok_or(ParseLeaseError::Missing(name)),
            }
        };
        let number = |name: &'static str| {
            let malformed = ParseLeaseError::Malformed { name, expected: "a number" };
            let text = value(name)?;
            if text.bytes().all(|c| c.is_ascii_digit()) {
                text.parse::<u64>().map_err(|_| malformed)
            } else {
                Err(malformed)
            }
        };
        let changes = |name: &'static str| {
            let malformed = || ParseLeaseError::Malformed { name, expected: "at most five digests, each once" };
            let text = value(name)?;
            let texts = text.split(',').filter(|_| !text.is_empty());
            let changes: Vec<Digest> = texts.map(str::parse).collect::<Result<_, _>>().map_err(|_| malformed())?;
            let once = changes.iter().enumerate().all(|(i, change)| !changes[..i].contains(change));
            if changes.len() <= LISTED && once { Ok(changes) } else { Err(malformed()) }
        };
        let state = value("state")?;
        let state = State::ALL.into_iter().find(|known| known.as_str() == state);
        let state = state.ok_or(ParseLeaseError::Malformed {
            name: "state",
            expected: "claimed, baking, spreading, done, stopped or none",
        })?;
        let candidate = match value("candidate")? {
            "" => None,
            text => Some(
                text.parse()
                    .map_err(|_| ParseLeaseError::Malformed { name: "candidate", expected: "a digest, or empty" })?,
            ),
        };
        let returned = match value("returned")? {
            "true" => true,
            "false" => false,
            _ => return Err(ParseLeaseError::Malformed { name: "returned", expected: "true or false" }),
        };
        let points = u32::try_from(number("points")?)
            .map_err(|_| ParseLeaseError::Malformed { name: "points", expected: "a small number" })?;
        let (retries, renewals) = (number("retries")?, number("renewals")?);
        let (good, stopped) = (changes("good")?, changes("stopped")?);
        if candidate.is_none() != (state == State::None) {
            return Err(ParseLeaseError::Contradiction("there is a candidate exactly when the state is not none"));
        }
        if good.iter().any(|change| stopped.contains(change)) {
            return Err(ParseLeaseError::Contradiction("a change is both good and stopped"));
        }
        Ok(Self { holder: holder.to_owned(), candidate, state, points, good, stopped, retries, renewals, returned })
    }

    /// As annotations, without those that are for people alone.
    #[must_use]
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let values = [
            ("candidate", self.candidate.map(|change| change.to_string()).unwrap_or_default()),
            ("state", self.state.as_str().to_owned()),
            ("points", self.points.to_string()),
            ("retries", self.retries.to_string()),
            ("renewals", self.renewals.to_string()),
            ("returned", self.returned.to_string()),
            ("good", joined(&self.good)),
            ("stopped", joined(&self.stopped)),
        ];
        values.into_iter().map(|(name, value)| (format!("{PREFIX}{name}"), value)).collect()
    }
}

impl Reason {
    /// In the annotation `reason`, for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "the first that this fleet has",
            Self::Claim => "this replica goes first",
            Self::HoldersLost => "the replicas that went first were lost without a word",
            Self::Renew => "renewed",
            Self::Replaced => "a newer change took its place",
            Self::Abandoned => "the replica that went first has gone on to something that needs no rollout",
            Self::GivenUp => "the first replica cannot find out whether its main process took it",
            Self::GivenBack => "the first replica ends",
            Self::Baking => "the first replica has confirmed it",
            Self::Spreading => "it has held on the first replica",
            Self::Done => "the spread is over",
            Self::Reverted => "a change that is known to be good was gone back to",
            Self::Rejected => "a replica rejected it",
            Self::Gate => "--rollout-gate-url does not agree",
        }
    }
}

fn joined(changes: &[Digest]) -> String {
    let mut text = String::new();
    for (i, change) in changes.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        // Writing to a String does not fail.
        let _ = write!(text, "{comma}{change}");
    }
    text
}

fn added(changes: &[Digest], change: Digest) -> Vec<Digest> {
    let mut changes = without(changes, change);
    changes.push(change);
    let surplus = changes.len().saturating_sub(LISTED);
    changes.drain(..surplus);
    changes
}

fn without(changes: &[Digest], change: Digest) -> Vec<Digest> {
    changes.iter().copied().filter(|known| *known != change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(n: u8) -> Digest {
        Digest::from_bytes([n; 32])
    }

    fn lease() -> Lease {
        Lease {
            holder: "u1".into(),
            candidate: Some(change(3)),
            state: State::Baking,
            points: 5,
            good: vec![change(1), change(2)],
            stopped: vec![change(4)],
            retries: 7,
            renewals: u64::MAX,
            returned: true,
        }
    }

    #[test]
    fn a_lease_round_trips() {
        for lease in [lease(), lease().abandoned(), lease().done(change(3)), lease().renewed()] {
            assert_eq!(Lease::parse(Some(&lease.holder), &lease.annotations()), Ok(lease));
        }
    }

    #[test]
    fn each_annotation_is_needed_and_each_is_checked() {
        let annotations = lease().annotations();
        let long = "1".repeat(VALUE_LIMIT + 1);
        let six = joined(&(10..16).map(change).collect::<Vec<_>>());
        for name in annotations.keys() {
            let mut fewer = annotations.clone();
            fewer.remove(name);
            assert!(matches!(Lease::parse(Some("u1"), &fewer), Err(ParseLeaseError::Missing(_))), "{name}");
            let twice = joined(&[change(9), change(9)]);
            for hostile in ["-1", "+1", " 1", "NaN", "\u{0}", ",", "99999999999999999999999", "é", &long, &six, &twice]
            {
                let mut changed = annotations.clone();
                changed.insert(name.clone(), hostile.to_owned());
                assert!(
                    matches!(Lease::parse(Some("u1"), &changed), Err(ParseLeaseError::Malformed { .. })),
                    "{name}: {hostile}"
                );
            }
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let with = |name: &str, value: String| {
            let mut annotations = lease().annotations();
            annotations.insert(format!("{PREFIX}{name}"), value);
            Lease::parse(Some("u1"), &annotations)
        };
        assert!(matches!(with("candidate", String::new()), Err(ParseLeaseError::Contradiction(_))));
        assert!(matches!(with("state", "none".into()), Err(ParseLeaseError::Contradiction(_))));
        assert!(matches!(with("stopped", change(1).to_string()), Err(ParseLeaseError::Contradiction(_))));
        for holder in ["a\nb".to_owned(), "x".repeat(254)] {
            assert_eq!(Lease::parse(Some(&holder), &lease().annotations()), Err(ParseLeaseError::Holder));
        }
    }

    #[test]
    fn five_of_each_are_remembered_newest_last() {
        let many = (10..17).fold(lease(), |lease, n| lease.done(change(n)));
        assert_eq!(many.good, (12..17).map(change).collect::<Vec<_>>());
        let again = many.done(change(13));
        assert_eq!(again.good, [12, 14, 15, 16, 13].map(change));
    }

    #[test]
    fn people_promote_stop_and_retry() {
        let promoted = lease().promoted().unwrap();
        assert_eq!((promoted.state, promoted.retries), (State::Done, 8));
        assert!(promoted.good.contains(&change(3)));
        let stopped = lease().stopped_by_person().unwrap();
        assert_eq!((stopped.state, stopped.holder.as_str()), (State::Stopped, ""));
        assert_eq!(stopped.stopped, [change(4), change(3)]);
        assert_eq!(stopped.stopped_by_person(), None, "nothing is under way");
        let retried = stopped.retried();
        assert_eq!((retried.state, retried.candidate, retried.retries), (State::None, None, 8));
        assert_eq!(retried.stopped, [change(4)]);
        assert_eq!(lease().retried().state, State::Baking, "in any other state it only counts");
        assert_eq!(retried.promoted(), None, "there is no candidate");
    }
}
