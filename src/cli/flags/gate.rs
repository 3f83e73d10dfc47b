//! The identity of the flags that inputs can be rejected by: with other flags, a quarantine no longer holds.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use clap::ValueEnum;

use crate::model::digest::{Digest, Hasher};

/// Flags by name, each with its values. A flag without a value adds nothing, so that a new one changes no digest.
pub(super) struct Gate(Hasher);

impl Default for Gate {
    fn default() -> Self {
        Self(Hasher::plain())
    }
}

impl Gate {
    pub fn texts(&mut self, flag: &str, values: impl IntoIterator<Item = impl AsRef<OsStr>>) {
        for value in values {
            self.0.field(flag.as_bytes());
            self.0.field(value.as_ref().as_bytes());
        }
    }

    pub fn time(&mut self, flag: &str, value: Option<Duration>) {
        self.texts(flag, value.map(|value| value.as_millis().to_string()));
    }

    pub fn choice(&mut self, flag: &str, value: &impl ValueEnum) {
        self.texts(flag, value.to_possible_value().map(|value| value.get_name().to_owned()));
    }

    pub fn finish(self) -> Digest {
        self.0.finish()
    }
}
