//! The way of a change, station by station, and where the newest one stands.

use super::status::Status;
use super::verdict::State;
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

/// How the newest change stands at a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Done,
    /// It is here.
    Here,
    /// It came no further.
    Failed,
    /// It waits here.
    Waits,
    /// It is not known whether this is all.
    Doubtful,
    Later,
    /// The flags do not ask for it.
    Absent,
}

impl Mark {
    #[must_use]
    pub fn sign(self) -> char {
        match self {
            Self::Done => '✓',
            Self::Here => '●',
            Self::Failed => '✗',
            Self::Waits => '…',
            Self::Doubtful => '!',
            Self::Later => '○',
            Self::Absent => '–',
        }
    }

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Here => "now",
            Self::Failed => "failed",
            Self::Waits => "waiting",
            Self::Doubtful => "in doubt",
            Self::Later => "not yet",
            Self::Absent => "off",
        }
    }
}

/// A station, how the newest change stands there, and how long it took there, in milliseconds.
pub type Stop = (Station, Mark, Option<u64>);

/// Where the newest change stands, by the verdict.
#[must_use]
pub fn way(status: &Status) -> [Stop; 6] {
    let verdict = &status.verdict;
    let Stations { validate, reload, confirm } = status.stations;
    Station::WAY.map(|station| {
        let there_is = match station {
            Station::Validate => validate,
            Station::Reload => reload,
            Station::Confirm => confirm,
            Station::Source | Station::Render | Station::Publish | Station::Done => true,
        };
        let mark = match verdict.state {
            State::Working if station == verdict.at => Mark::Here,
            State::Rejected | State::Held if station == verdict.at => Mark::Failed,
            State::Waiting if station == verdict.at => Mark::Waits,
            State::Stale if station == verdict.at => Mark::Doubtful,
            _ if !there_is => Mark::Absent,
            State::Stale | State::InEffect => Mark::Done,
            _ if station < verdict.at => Mark::Done,
            _ => Mark::Later,
        };
        let step = [Stage::Render, Stage::Validate, Stage::Publish, Stage::Reload, Stage::Confirm]
            .into_iter()
            .find(|stage| Station::from(*stage) == station);
        let took = step.and_then(|stage| status.history.newest()?.steps_ms.get(&stage).copied());
        (station, mark, took.filter(|_| matches!(mark, Mark::Done | Mark::Failed)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(state: State, at: Station) -> String {
        let stations = Stations { validate: true, reload: true, confirm: false };
        let mut status = Status { stations, ..Status::default() };
        (status.verdict.state, status.verdict.at) = (state, at);
        way(&status).map(|(_, mark, _)| mark.sign()).iter().collect()
    }

    #[test]
    fn each_station_has_its_mark() {
        for (state, at, marks) in [
            (State::InEffect, Station::Done, "✓✓✓✓✓–"),
            (State::Working, Station::Source, "●○○○○–"),
            (State::Working, Station::Publish, "✓✓✓●○–"),
            (State::Rejected, Station::Validate, "✓✓✗○○–"),
            (State::Held, Station::Reload, "✓✓✓✓✗–"),
            (State::Waiting, Station::Reload, "✓✓✓✓…–"),
            (State::Stale, Station::Source, "!✓✓✓✓–"),
            // What is found out without a flag.
            (State::Stale, Station::Confirm, "✓✓✓✓✓!"),
        ] {
            assert_eq!(signs(state, at), marks, "{state:?} at {at:?}");
        }
    }
}
