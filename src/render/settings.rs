//! What rendering depends on beside the sources.

use std::collections::BTreeMap;
use std::fmt;

use super::{Delimiters, PathPattern, Pod};

#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether there are templates; else keys are written as files.
    pub templated: bool,
    pub path: PathPattern,
    pub on_collision: OnCollision,
    /// `--refuse-keys`: a key that ends so is held back.
    pub refuse_keys: Option<String>,
    /// `--template-suffix`: of a directory, only files that end so are templates.
    pub suffix: Option<String>,
    /// `--template-delimiters`.
    pub delimiters: Delimiters,
    /// `--env` and `--secret-env`: those that are set.
    pub env: BTreeMap<String, EnvVar>,
    /// `pod`, without labels and annotations.
    pub pod: Pod,
    /// `--max-size`: the most bytes that all files may have together.
    pub max_size: u64,
    pub allow_empty: bool,
    /// Whether there is a selector: it may select nothing.
    pub selects: bool,
    /// The flags that change the result, as one text for the inputs' digest.
    pub flags: String,
}

/// Whose a file is that keys of two objects are to become: `--on-collision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCollision {
    /// The named object's, or the oldest one's; the other key is held back.
    Hold,
    /// That of the object which comes last in the merged view.
    Last,
}

impl Settings {
    /// Where files are as they were rendered before.
    #[must_use]
    pub fn as_they_are(settings: &Self) -> Self {
        Self { templated: false, path: PathPattern::default(), refuse_keys: None, selects: false, ..settings.clone() }
    }
}

#[cfg(test)]
impl Settings {
    /// Keys are written as files, each at its own name.
    pub(crate) fn plain(max_size: u64, allow_empty: bool) -> Self {
        Self {
            templated: false,
            path: "{key}".parse().unwrap(),
            on_collision: OnCollision::Hold,
            refuse_keys: None,
            suffix: None,
            delimiters: Delimiters::default(),
            env: BTreeMap::new(),
            pod: Pod::default(),
            max_size,
            allow_empty,
            selects: false,
            flags: String::new(),
        }
    }
}

/// A variable that `--env` or `--secret-env` lets templates read.
#[derive(Clone, PartialEq, Eq)]
pub struct EnvVar {
    pub value: String,
    /// Whether it came by `--secret-env`.
    pub secret: bool,
}

impl fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnvVar({} bytes, secret: {})", self.value.len(), self.secret)
    }
}
