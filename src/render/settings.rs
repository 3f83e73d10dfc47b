//! What rendering depends on beside the sources.

use std::collections::BTreeMap;

use super::{EnvVar, PathPattern, Pod};

/// What rendering depends on beside the sources.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether there are templates; else keys are written as files.
    pub templated: bool,
    /// `--path`.
    pub path: PathPattern,
    /// `--env` and `--secret-env`: those that are set.
    pub env: BTreeMap<String, EnvVar>,
    /// `pod`, without labels and annotations.
    pub pod: Pod,
    /// `--max-size`.
    pub max_size: u64,
    /// `--allow-empty`.
    pub allow_empty: bool,
    /// The flags that change the result, as one text for the inputs digest.
    pub flags: String,
}
