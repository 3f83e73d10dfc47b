//! The stages of a change. A rejection in the journal names the stage that rejected it.

use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Templates and copies, staged.
    Render,
    /// Syntax, and programs that look at the candidate.
    Validate,
    /// Journal, links, rename.
    Publish,
    /// The main process is notified.
    Reload,
    /// Whether it took it.
    Confirm,
    /// Back to the last good generation.
    Rollback,
}

impl Stage {
    /// The name in metrics and `/status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Render => "render",
            Self::Validate => "validate",
            Self::Publish => "publish",
            Self::Reload => "reload",
            Self::Confirm => "confirm",
            Self::Rollback => "rollback",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
