//! The journal: what must be remembered across a crash, as it is stored in the output directory.
//!
//! It is written before the rename that it announces, and again when the debt is paid. What it means after a crash is
//! decided by [`crate::machine::recover`]; this module knows only its form.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::digest::Digest;
use crate::model::made_of::MadeOf;
use crate::model::stage::Stage;

/// The version that this program writes, and the only one that it reads.
pub const VERSION: u32 = 1;

/// Start of every generation directory's name.
pub const DIRECTORY_PREFIX: &str = "..trimtab-";

/// A generation as the journal names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Generation {
    /// Counts publishes of this output; no two generations that were visible share one.
    pub sequence: u64,
    /// The published digest of the inputs. All zeros where it is not known.
    pub digest: Digest,
    /// The keyed digest of the tree: `content`, and which paths are secret. All zeros where it is not known.
    pub tree: Digest,
    /// The keyed digest of paths and bytes alone, which can be read back from the disk. All zeros where it is not known.
    pub content: Digest,
    /// The directory's name in the output.
    pub directory: String,
    /// Whether an object of the inputs was held back: the generation has it only as it was before, or not at all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// What it was made of. `None` where that is not known: an earlier version of Trimtab published it, or the journal
    /// is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_of: Option<MadeOf>,
    /// The digest of what people edit, where a rollout asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Digest>,
    /// The keyed digest of what the main process read by itself with this generation, if it does. `tree` covers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<Digest>,
}

impl Generation {
    /// A generation, with its directory's name: `..trimtab-000042-9f2c01ab77d3`.
    #[must_use]
    pub fn new(sequence: u64, digest: Digest, tree: Digest, content: Digest) -> Self {
        let directory = format!("{DIRECTORY_PREFIX}{sequence:06}-{}", digest.short());
        Self {
            sequence,
            digest,
            tree,
            content,
            directory,
            partial: false,
            made_of: Some(MadeOf::default()),
            change: None,
            observed: None,
        }
    }

    /// The same files, beside what the main process reads by itself now: no inputs have led to both.
    #[must_use]
    pub fn beside(self, observed: Option<Digest>) -> Self {
        if self.observed == observed { self } else { Self { tree: Digest::UNKNOWN, observed, ..self } }
    }

    /// The inputs that led to all of it; unknown where none are known to.
    #[must_use]
    pub fn inputs(&self) -> Digest {
        if self.tree == Digest::UNKNOWN { Digest::UNKNOWN } else { self.digest }
    }

    /// Whether it is from `--fallback-url`, and nothing of it from the sources.
    #[must_use]
    pub fn is_fallback(&self) -> bool {
        self.made_of.as_ref().is_some_and(MadeOf::is_fallback)
    }

    /// A generation of which only the directory was found; `None` if the name is not of our pattern.
    #[must_use]
    pub fn found(directory: &str) -> Option<Self> {
        let sequence = sequence_of(directory)?;
        let (digest, tree, content) = (Digest::UNKNOWN, Digest::UNKNOWN, Digest::UNKNOWN);
        let directory = directory.to_owned();
        Some(Self {
            sequence,
            digest,
            tree,
            content,
            directory,
            partial: false,
            made_of: None,
            change: None,
            observed: None,
        })
    }
}

/// The sequence number in a generation directory's name; `None` if the name is not of our pattern.
#[must_use]
pub fn sequence_of(directory: &str) -> Option<u64> {
    let (sequence, digest) = directory.strip_prefix(DIRECTORY_PREFIX)?.split_once('-')?;
    let ours = sequence.len() >= 6
        && sequence.bytes().all(|c| c.is_ascii_digit())
        && digest.len() == 12
        && digest.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    if ours { sequence.parse().ok() } else { None }
}

/// A moment that survives a restart of the container and is comparable to a process's start: never the wall clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Moment {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Clock ticks since boot (`CLOCK_BOOTTIME`), in the unit of field 22 of `/proc/PID/stat`.
    pub ticks: u64,
}

/// A publish or a rollback that was begun and is not known to be finished: the main process may not have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Debt {
    /// What was begun.
    pub kind: DebtKind,
    /// A moment after the rename; `None` where it was not written down before a crash.
    pub published: Option<Moment>,
    /// What `--confirm-url` said before the rename; `None` where it was not asked, or is not known any more.
    pub baseline: Option<Baseline>,
}

/// What a debt is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DebtKind {
    /// The current generation was published.
    #[default]
    Publish,
    /// The current generation is the last good one, gone back to after a rejection.
    Rollback,
}

impl DebtKind {
    /// The name in `/status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Rollback => "rollback",
        }
    }
}

/// What `--confirm-url` said before a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Baseline {
    /// Whether it accepted a connection.
    pub reachable: bool,
    /// The keyed digest of what `--confirm-changed` captured; `None` if nothing.
    pub captured: Option<Digest>,
}

/// Inputs that were rejected: not tried again until they differ, or somebody asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Quarantine {
    pub digest: Digest,
    /// Of the flags by which they were rejected: under others they are tried again.
    pub gate: Digest,
    pub rejection: Rejection,
}

/// Why inputs were rejected. Fit for logs, `/status` and Events: it holds no content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rejection {
    /// `render`, `validate`, `reload` or `confirm`.
    pub stage: Stage,
    /// What failed, on what, why, and what to do.
    pub reason: String,
    /// When, for people: nothing is decided by it.
    pub at: Timestamp,
}

/// What a replica must remember of a rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Fleet {
    /// The newest generation published here that the fleet knows to be good: what is gone back to.
    pub base: Option<Generation>,
    /// Whether this replica wrote the last claim that it knows of.
    pub claimed: bool,
    /// The change that it went to because it was known to be good, until the fleet knows that.
    pub reverted: Option<Digest>,
    /// The change that it rejected.
    pub rejected: Option<Digest>,
    /// How often people had asked for another try by then.
    pub retries: u64,
}

/// The journal's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Journal {
    pub version: u32,
    /// The sequence number of the next generation.
    pub next_sequence: u64,
    /// The generation that `..data` names, or is about to name.
    pub current: Option<Generation>,
    /// What `..data` named before.
    pub from: Option<Generation>,
    /// The newest confirmed generation.
    pub last_good: Option<Generation>,
    /// Set until the main process has taken `current`.
    pub debt: Option<Debt>,
    /// The debt of `from` when `current` was begun: due again if `..data` turns out to name `from`.
    pub prev_debt: Option<Debt>,
    /// The inputs that were rejected last.
    pub quarantine: Option<Quarantine>,
    /// With `--rollout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<Fleet>,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            version: VERSION,
            next_sequence: 1,
            current: None,
            from: None,
            last_good: None,
            debt: None,
            prev_debt: None,
            quarantine: None,
            fleet: None,
        }
    }
}

/// Why a journal cannot be used. It is set aside, and a reload is taken to be due.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// It is not JSON of the expected form: empty, cut short, or somebody else's.
    #[error("it is empty, cut short, or not a journal (line {line}, column {column})")]
    Malformed { line: usize, column: usize },
    /// Another version of Trimtab wrote it.
    #[error("it has version {0}, and this program reads version {VERSION}")]
    Version(u32),
    /// It names a directory that is none of ours, and is not followed.
    #[error("it names a directory that is not of the form {DIRECTORY_PREFIX}SEQUENCE-DIGEST")]
    Directory,
}

impl Journal {
    /// Reads a journal. Believes nothing in it that could lead out of the output directory.
    pub fn parse(bytes: &[u8]) -> Result<Self, JournalError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let malformed =
            |error: &serde_json::Error| JournalError::Malformed { line: error.line(), column: error.column() };
        let Version { version } = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
        if version != VERSION {
            return Err(JournalError::Version(version));
        }
        let journal: Self = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
        if journal.generations().any(|generation| sequence_of(&generation.directory).is_none()) {
            return Err(JournalError::Directory);
        }
        Ok(journal)
    }

    /// The generations that it names.
    pub fn generations(&self) -> impl Iterator<Item = &Generation> {
        let base = self.fleet.as_ref().and_then(|fleet| fleet.base.as_ref());
        [&self.current, &self.from, &self.last_good].into_iter().flatten().chain(base)
    }

    /// Whether a reload of this kind is due.
    #[must_use]
    pub fn is_due(&self, kind: DebtKind) -> bool {
        self.debt.as_ref().is_some_and(|debt| debt.kind == kind)
    }

    /// The text to be written.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings, numbers and options of them: there is nothing that serde_json could refuse.
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::made_of::{self, Part, Parts};
    use crate::model::object::Marks;
    use crate::model::object::ObjectRef;

    fn journal() -> Journal {
        let digest = Digest::from_bytes([7; 32]);
        Journal {
            next_sequence: 43,
            current: Some(Generation::new(42, digest, digest, digest)),
            debt: Some(Debt {
                kind: DebtKind::Rollback,
                published: Some(Moment { boot_id: "b".into(), ticks: 9 }),
                baseline: Some(Baseline { reachable: true, captured: Some(digest) }),
            }),
            quarantine: Some(Quarantine {
                digest,
                gate: digest,
                rejection: Rejection { stage: Stage::Confirm, reason: "it died".into(), at: Timestamp::UNIX_EPOCH },
            }),
            ..Journal::default()
        }
    }

    #[test]
    fn journal_round_trips() {
        assert_eq!(Journal::parse(&journal().to_bytes()), Ok(journal()));
        assert_eq!(journal().current.unwrap().directory, "..trimtab-000042-070707070707");
    }

    #[test]
    fn what_a_generation_was_made_of_round_trips_and_may_be_unknown() {
        let id: ObjectRef = "configmap/ns/web".parse().unwrap();
        let part = Part { created: 7, secret: true, keys: vec!["a b".to_owned()], marks: Marks::new() };
        let mut journal = journal();
        let current = journal.current.as_mut().unwrap();
        current.made_of = Some(MadeOf::new([("web".to_owned(), [(id, part)].into()), ("label".to_owned(), [].into())]));
        assert_eq!(Journal::parse(&journal.to_bytes()), Ok(journal.clone()));
        journal.current.as_mut().unwrap().made_of = None;
        assert!(!String::from_utf8(journal.to_bytes()).unwrap().contains("madeOf"));
        assert_eq!(Journal::parse(&journal.to_bytes()), Ok(journal));
    }

    #[test]
    fn largest_journal_can_be_read_again() {
        let id = |number: usize| -> ObjectRef { format!("configmap/ns/{number}").parse().unwrap() };
        let marks = Marks::from([("label:\u{1}".to_owned(), "\"".repeat(9))]);
        let part = || Part {
            created: i64::MIN,
            secret: false,
            keys: vec!["\u{1}\"\\x".repeat(9), "k".to_owned()],
            marks: marks.clone(),
        };
        let parts = |count: usize| (0..count).map(|number| (id(number), part())).collect::<Parts>();
        let length = |made_of: MadeOf| {
            let mut journal = journal();
            journal.current.as_mut().unwrap().made_of = Some(made_of);
            journal.to_bytes().len()
        };
        let few = MadeOf::new([("few".to_owned(), parts(1500)), ("many".to_owned(), parts(1500))]);
        assert!(!few.parts("few").is_empty() && few.parts("many").is_empty() && few.has("many"));
        let empty = length(MadeOf::default());
        assert!(length(few) - empty < made_of::LIMIT);
    }

    #[test]
    fn without_a_rollout_not_a_byte_is_added_and_with_one_it_round_trips() {
        let text = String::from_utf8(journal().to_bytes()).unwrap();
        assert!(!text.contains("fleet") && !text.contains("change"), "{text}");
        let mut rolled = journal();
        let base = Generation { change: Some(Digest::from_bytes([8; 32])), ..rolled.current.clone().unwrap() };
        rolled.fleet = Some(Fleet { base: Some(base), claimed: true, retries: 3, ..Fleet::default() });
        assert_eq!(Journal::parse(&rolled.to_bytes()), Ok(rolled.clone()));
        let hostile = String::from_utf8(rolled.to_bytes()).unwrap();
        let (before, after) = hostile.split_once("\"fleet\"").unwrap();
        let hostile = format!("{before}\"fleet\"{}", after.replace("..trimtab-000042-070707070707", "../../etc"));
        assert_eq!(Journal::parse(hostile.as_bytes()), Err(JournalError::Directory));
    }

    #[test]
    fn journal_cut_short_at_any_byte_is_refused() {
        let bytes = journal().to_bytes();
        for end in 0..bytes.len() - 2 {
            assert!(matches!(Journal::parse(&bytes[..end]), Err(JournalError::Malformed { .. })), "cut at {end}");
        }
    }

    #[test]
    fn foreign_version_and_foreign_directory_are_refused() {
        let text = String::from_utf8(journal().to_bytes()).unwrap();
        let newer = text.replace("\"version\": 1", "\"version\": 2");
        assert_eq!(Journal::parse(newer.as_bytes()), Err(JournalError::Version(2)));
        for directory in ["..data", "../../etc", "..trimtab-000042-../../etc/pas", "..trimtab-42-070707070707"] {
            let hostile = text.replace("..trimtab-000042-070707070707", directory);
            assert_eq!(Journal::parse(hostile.as_bytes()), Err(JournalError::Directory), "{directory}");
        }
    }

    #[test]
    fn sequences_beyond_six_digits_keep_the_pattern() {
        let generation = Generation::new(12_345_678, Digest::UNKNOWN, Digest::UNKNOWN, Digest::UNKNOWN);
        assert_eq!(sequence_of(&generation.directory), Some(12_345_678));
        assert_eq!(sequence_of("..trimtab-99999999999999999999-070707070707"), None);
    }
}
