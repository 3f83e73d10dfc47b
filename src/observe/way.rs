//! The way of a change, station by station, and where the newest one stands.

use crate::model::stage::Stage;

/// Where a change can stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Station {
    Source,
    Render,
    Validate,
    Publish,
    Reload,
    Confirm,
    /// It has come to the end.
    Done,
}

impl Station {
    /// Those of a way, in their order.
    pub const WAY: [Self; 6] = [Self::Source, Self::Render, Self::Validate, Self::Publish, Self::Reload, Self::Confirm];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Render => "render",
            Self::Validate => "validate",
            Self::Publish => "publish",
            Self::Reload => "reload",
            Self::Confirm => "confirm",
            Self::Done => "done",
        }
    }
}

impl From<Stage> for Station {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Render => Self::Render,
            Stage::Validate => Self::Validate,
            Stage::Publish => Self::Publish,
            Stage::Reload => Self::Reload,
            Stage::Confirm | Stage::Rollback => Self::Confirm,
        }
    }
}

/// Which of the stations that not everybody has there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stations {
    /// `--syntax`, `--validate`.
    pub validate: bool,
    pub reload: bool,
    pub confirm: bool,
}
