//! The two layouts of an output, and what each has to know how to do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::PublishError;
use super::dir::Dir;
use super::read_back::{Among, MayAccess, PublishedFile, Take};
use crate::model::tree::Tree;

/// `--layout`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// The kubelet's: all files change by one rename.
    #[default]
    Atomic,
    /// Each file is renamed into place, in a directory that others may write to as well.
    Files,
}

/// How a layout publishes. A generation goes by the name of its directory, which was checked to be of our pattern.
pub(super) trait Publisher<'a> {
    /// Where generations have their directories. Only [`super::Output::inspect`] can find no such place.
    fn home(&self) -> Option<&'a Dir>;

    /// The directory that is current, whether it exists or not.
    fn current(&self) -> Result<Option<String>, PublishError>;

    /// Ends a swap that was cut off, so that what is current is whole. The strings say what is not as it was published.
    fn finish(&self) -> Result<Vec<String>, PublishError>;

    /// An error if something that is not ours is where the tree needs to be.
    fn refuse_foreign(&self, tree: &Tree) -> Result<(), PublishError>;

    /// Writes a candidate; with all its files, if programs are to look at it. Refuses
    /// what [`Publisher::refuse_foreign`] does.
    fn write(&self, name: &str, tree: &Tree, whole: bool) -> Result<(), PublishError>;

    /// Where a program finds the candidate's files.
    fn candidate(&self, name: &str) -> PathBuf;

    /// Whether the candidate is what would be published, after programs have looked at it.
    fn is_intact(&self, name: &str, tree: &Tree) -> Result<bool, PublishError>;

    /// See [`super::Output::link`].
    fn link(&self, name: &str) -> Result<(), PublishError>;

    /// See [`super::Output::swap`].
    fn swap(&self, name: &str) -> Result<(), PublishError>;

    /// See [`super::Output::unlink`].
    fn unlink(&self, name: &str) -> Result<(), PublishError>;

    /// See [`super::Output::each`].
    fn each(&self, name: &str, take: Take<'_>) -> Result<(), PublishError>;

    /// See [`super::Output::unreadable_by`].
    fn unreadable_by(&self, may: MayAccess<'_>, name: &str) -> Result<Option<String>, PublishError>;

    /// See [`super::Output::published_among`]; of the current generation.
    fn published(
        &self,
        name: &str,
        among: Among<'_>,
        limit: u64,
    ) -> Result<BTreeMap<String, PublishedFile>, PublishError>;
}
