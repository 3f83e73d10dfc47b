//! What a verdict may find, the consequence and the next step of each.

use jiff::Timestamp;

use super::status::{Lack, Source, Status};
use super::verdict::{State, Verdict};
use super::way::Station;
use crate::machine::Phase;
use crate::model::journal::DebtKind;
use crate::model::stage::Stage;
use crate::reload::TargetState;
use crate::rollout;

/// What was found, in parts.
pub(super) struct Finding {
    state: State,
    at: Station,
    /// The consequence, without its full stop.
    what: String,
    /// What leads from it to the cause.
    link: &'static str,
    cause: Option<String>,
    /// A sentence on what is running meanwhile; may be empty.
    meanwhile: String,
    next: Option<String>,
    calm: bool,
}

impl Finding {
    pub fn of(status: &Status) -> Self {
        // The worst first; what lasts before what passes.
        let findings = [locked, held, rejected, not_taken, unread, unwritten, held_back, its_turn, working, stale];
        findings.iter().find_map(|finding| finding(status)).unwrap_or_else(|| in_effect(status))
    }

    pub fn calm(state: State, at: Station, what: impl Into<String>) -> Self {
        Self { state, at, what: what.into(), link: ":", cause: None, meanwhile: String::new(), next: None, calm: true }
    }

    pub fn verdict(self) -> Verdict {
        let Self { state, at, what, link, cause, meanwhile, next, calm } = self;
        let gap = if meanwhile.is_empty() { "" } else { " " };
        let consequence = format!("{what}.{gap}{meanwhile}");
        let summary = match &cause {
            Some(cause) => format!("{what}{link} {}.{gap}{meanwhile}", cause.trim_end_matches('.')),
            None => consequence.clone(),
        };
        Verdict { state, summary, since: Timestamp::now(), next, cause, consequence, at, calm }
    }
}

const RETRY: &str = "attempts go on, and `trimtab retry` makes one now";

fn locked(status: &Status) -> Option<Finding> {
    let problem = status.errors.get("lock")?;
    Some(Finding {
        cause: Some(problem.message.clone()),
        next: Some("End the other Trimtab, or give each an --output of its own.".to_owned()),
        calm: false,
        ..Finding::calm(State::Waiting, Station::Source, "Nothing is read or written")
    })
}

fn held(status: &Status) -> Option<Finding> {
    if !status.held {
        return None;
    }
    let (at, cause) = refusal(status).unwrap_or((Station::Reload, None));
    let sequence = published(status);
    let edited = edited_in_place(status);
    let (what, next) = if status.debt == Some(DebtKind::Rollback.as_str()) {
        (
            format!("{sequence}, the last good one, is current again, and the main process does not take it either"),
            format!("Look at the main container, whose log says why; {RETRY}."),
        )
    } else if let Some(edited) = &edited {
        (
            format!(
                "The edit of {edited} was rejected and cannot be taken back, as the main process reads that by itself"
            ),
            format!("Fix {edited}: the next edit is tried at once; {RETRY}."),
        )
    } else {
        (
            format!("{sequence} was rejected and stays published, as there is no way back"),
            format!("{}, or fix the main process: {RETRY}.", fix(status)),
        )
    };
    let meanwhile = status.confirmed.as_ref().filter(|_| status.debt != Some(DebtKind::Rollback.as_str()));
    let meanwhile = meanwhile.map(|good| format!("The main process took generation {} last.", good.sequence));
    Some(Finding {
        state: State::Held,
        at,
        what,
        link: ":",
        cause,
        meanwhile: match edited.filter(|_| status.debt == Some(DebtKind::Rollback.as_str())) {
            Some(edited) => stays(&edited),
            None => meanwhile.unwrap_or_default(),
        },
        next: Some(next),
        calm: false,
    })
}

/// What was rejected and cannot be taken back, if there is such.
fn edited_in_place(status: &Status) -> Option<String> {
    match &status.edited_in_place[..] {
        [] => None,
        [first] => Some(first.clone()),
        [first, second] => Some(format!("{first} and {second}")),
        [first, second, more @ ..] => Some(format!("{first}, {second} and {} more", more.len())),
    }
}

fn stays(edited: &str) -> String {
    format!(
        "{edited}, which the main process reads by itself, stays as it was edited: a restart of it would take that."
    )
}

/// Where the main process does not take what is published, and what is known of it.
fn refusal(status: &Status) -> Option<(Station, Option<String>)> {
    let stages =
        [(Stage::Rollback, Station::Confirm), (Stage::Confirm, Station::Confirm), (Stage::Reload, Station::Reload)];
    let problem = stages.into_iter().find_map(|(stage, at)| {
        let problem = status.errors.get(stage.as_str())?;
        Some((at, Some(problem.message.clone())))
    });
    let rejected = || status.quarantine.as_ref().map(|it| (it.stage.into(), Some(it.reason.clone())));
    problem.or_else(rejected)
}

/// What lets the same inputs be tried again: in a fleet that stops them, for the fleet.
fn retry(status: &Status) -> String {
    let fleet = status.rollout.as_ref().filter(|it| !matches!(it.state, rollout::State::Done | rollout::State::None));
    fleet.map_or_else(|| "trimtab retry".to_owned(), |fleet| format!("trimtab rollout retry {}", fleet.name))
}

fn rejected(status: &Status) -> Option<Finding> {
    let quarantine = status.quarantine.as_ref()?;
    if status.observed.as_ref().is_some_and(|observed| observed.digest != quarantine.digest) {
        return None;
    }
    let next = match quarantine.stage {
        Stage::Render => "Fix the template or the key that it names; a newer edit is tried at once.".to_owned(),
        Stage::Validate => format!("{}; a newer edit is tried at once.", fix(status)),
        Stage::Publish | Stage::Reload | Stage::Confirm | Stage::Rollback => {
            format!("{}; or fix the main process, and run `{}`.", fix(status), retry(status))
        }
    };
    let turned = || status.published.as_ref().map(|it| it.sequence) == status.last_good.as_ref().map(|it| it.sequence);
    let meanwhile = if status.debt == Some(DebtKind::Rollback.as_str()) && !turned() {
        "The last good configuration is being made current again.".to_owned()
    } else if status.debt == Some(DebtKind::Rollback.as_str()) {
        let why = status.errors.get(Stage::Reload.as_str()).map(|problem| format!(": {}", problem.message));
        let why = why.unwrap_or_default();
        format!("{} is current again, and the main process has not taken it yet{why}.", published(status))
    } else {
        running(status)
    };
    let meanwhile = match edited_in_place(status) {
        Some(edited) => format!("{meanwhile} {}", stays(&edited)),
        None => meanwhile,
    };
    Some(Finding {
        state: State::Rejected,
        at: quarantine.stage.into(),
        what: format!("{} is not in effect", edit(status)),
        link: ", it was rejected:",
        cause: Some(quarantine.reason.clone()),
        meanwhile,
        next: Some(next),
        calm: false,
    })
}

/// Not all sources were read since the start.
fn unread(status: &Status) -> Option<Finding> {
    if status.observed.is_some() {
        return None;
    }
    let running = if status.published.is_some() { running(status) } else { String::new() };
    let Some((source, cause, more)) = troubled(status) else {
        if status.published.as_ref().is_some_and(|published| published.fallback) {
            let stale =
                Finding::calm(State::Stale, Station::Source, "No edit is seen, as the sources have not answered yet");
            return Some(Finding { meanwhile: running, calm: false, ..stale });
        }
        let read = Finding::calm(State::Working, Station::Source, "The sources are read for the first time");
        let Some(wait) = &status.waits_for else { return Some(read) };
        return Some(Finding {
            state: State::Waiting,
            link: ", which waits for",
            cause: Some(wait.reason.clone()),
            meanwhile: running,
            next: wait.next.clone(),
            ..read
        });
    };
    let (state, what) = match &status.published {
        None => (State::Waiting, "Nothing is published yet"),
        Some(_) => (State::Stale, "No edit is seen"),
    };
    Some(Finding {
        state,
        at: Station::Source,
        what: what.to_owned(),
        link: ": waiting for",
        cause: Some(cause),
        meanwhile: sentences([more, running]),
        next: remedy(source),
        calm: false,
    })
}

fn unwritten(status: &Status) -> Option<Finding> {
    let problem = status.errors.get(Stage::Publish.as_str())?;
    Some(Finding {
        state: State::Waiting,
        at: Station::Publish,
        what: format!("{} is not in effect", edit(status)),
        link: ", it cannot be written:",
        cause: Some(problem.message.clone()),
        meanwhile: running(status),
        next: Some("Make room in the volume, or make it writable; it is tried again by itself.".to_owned()),
        calm: false,
    })
}

fn not_taken(status: &Status) -> Option<Finding> {
    status.debt?;
    let stages = [(Stage::Confirm, Station::Confirm), (Stage::Reload, Station::Reload)];
    let (at, problem) = stages.iter().find_map(|(stage, at)| Some((*at, status.errors.get(stage.as_str())?)))?;
    let target = status.target.as_ref().map(|target| target.state).filter(|_| at == Station::Reload);
    let next = match target {
        Some(TargetState::Missing) => "Start the main process, or correct the flag that names it",
        Some(TargetState::Ambiguous) => "Name one of the processes by --process-args or --pid-file",
        Some(TargetState::Forbidden) => "Give both containers one runAsUser",
        Some(TargetState::NotHandling) => "Wait until the main process has started, or choose another --signal",
        Some(TargetState::Found) | None => "Look at the main container, whose log says why",
    };
    Some(Finding {
        state: State::Waiting,
        at,
        what: format!("{} is published, and the main process has not taken it", published(status)),
        link: ":",
        cause: Some(problem.message.clone()),
        meanwhile: String::new(),
        next: Some(format!("{next}; {RETRY}.")),
        calm: false,
    })
}

fn held_back(status: &Status) -> Option<Finding> {
    let held = status.held_back.first()?;
    let more = match status.held_back.len() - 1 {
        0 => "All other objects are in effect.".to_owned(),
        more => format!("{more} more are held back; all others are in effect."),
    };
    Some(Finding {
        state: State::Rejected,
        at: Station::Validate,
        what: format!("The newest version of {} is not in effect", held.source),
        link: ", it is held back:",
        cause: Some(held.reason.clone()),
        meanwhile: more,
        next: Some(format!(
            "Fix {}; or fix what refuses it, and run `trimtab retry`. All other objects flow.",
            held.source
        )),
        calm: false,
    })
}

/// What goes well, and is not this Pod's turn; or what waits for people.
fn its_turn(status: &Status) -> Option<Finding> {
    let wait = status.waits_for.as_ref()?;
    Some(Finding {
        calm: wait.next.is_none() && status.rollout.as_ref().is_none_or(|fleet| fleet.problem.is_none()),
        cause: Some(wait.reason.clone()),
        meanwhile: running(status),
        next: wait.next.clone(),
        link: ", it waits for",
        ..Finding::calm(State::Waiting, Station::Source, format!("{} is not in effect yet", edit(status)))
    })
}

fn working(status: &Status) -> Option<Finding> {
    let phases = [
        (Phase::Settling, Station::Source, "was seen, and waits until the sources are quiet"),
        (Phase::Rendering, Station::Render, "is being rendered and validated"),
        (Phase::Committing, Station::Publish, "is being published"),
        (Phase::Reloading, Station::Reload, "is published, and the main process is being notified"),
        (Phase::Confirming, Station::Confirm, "is published, and its confirmation is waited for"),
        (Phase::Backoff, Station::Reload, "is published, and the main process is notified again soon"),
    ];
    let (_, at, what) = phases.into_iter().find(|(phase, ..)| phase.as_str() == status.phase)?;
    Some(Finding::calm(State::Working, at, format!("{} {what}", edit(status))))
}

/// All that was seen is in effect, and it is not known whether that is all.
fn stale(status: &Status) -> Option<Finding> {
    if let Some((source, cause, more)) = troubled(status) {
        return Some(Finding {
            state: State::Stale,
            at: Station::Source,
            what: "What is in effect may be older than its source".to_owned(),
            link: ":",
            meanwhile: sentences([more, running(status)]),
            next: remedy(source),
            cause: Some(cause),
            calm: false,
        });
    }
    let problem = status.errors.get("access")?;
    Some(Finding {
        state: State::Stale,
        at: Station::Confirm,
        what: format!("{} is published, and the main process may not have it", published(status)),
        link: ":",
        cause: Some(problem.message.clone()),
        meanwhile: String::new(),
        next: Some("Change the Pod: one fsGroup or runAsUser for both containers, and no subPath in the main container's mounts.".to_owned()),
        calm: false,
    })
}

fn in_effect(status: &Status) -> Finding {
    let sequence = published(status);
    let stations = status.stations;
    let what = if stations.confirm {
        format!("{sequence} is in effect: the main process has confirmed it")
    } else if stations.reload {
        format!("{sequence} is in effect: the main process was notified, and took it")
    } else {
        format!("{sequence} is published: the main process is not notified, and reads it by itself")
    };
    Finding::calm(State::InEffect, Station::Done, what)
}

/// Those that say something.
fn sentences<const N: usize>(all: [String; N]) -> String {
    all.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ")
}

/// `The newest edit of configmap/shop/web`.
fn edit(status: &Status) -> String {
    let sources = status.history.newest().map(|change| (&change.sources[..], change.more_sources));
    match sources {
        None | Some(([], _)) => "The newest edit".to_owned(),
        Some(([one], 0)) => format!("The newest edit of {}", one.source),
        Some(([one, other], 0)) => format!("The newest edit of {} and {}", one.source, other.source),
        Some(([one, rest @ ..], more)) => format!("The newest edit of {} and {} more", one.source, rest.len() + more),
    }
}

/// `Fix the ConfigMap`.
fn fix(status: &Status) -> String {
    let change = status.history.newest().filter(|change| change.more_sources == 0);
    let source = change.and_then(|change| match &change.sources[..] {
        [one] => Some(one.source.as_str()),
        _ => None,
    });
    match source.and_then(|source| source.split_once('/')) {
        Some(("configmap", _)) => "Fix the ConfigMap".to_owned(),
        Some(("secret", _)) => "Fix the Secret".to_owned(),
        Some(("template", name)) => format!("Fix the template {name}"),
        Some(("dir", name)) => format!("Fix the files of {name}"),
        Some(("url", name)) => format!("Fix what the URL of {name} has"),
        _ => "Fix the inputs".to_owned(),
    }
}

fn published(status: &Status) -> String {
    status.published.as_ref().map_or_else(|| "Nothing".to_owned(), |it| format!("Generation {}", it.sequence))
}

fn running(status: &Status) -> String {
    let fallback = status.published.as_ref().is_some_and(|published| published.fallback);
    let from = if fallback { " It is from --fallback-url, until the sources answer." } else { "" };
    let running = match (&status.confirmed, &status.published) {
        (Some(good), _) => match good.at {
            Some(at) => format!("The configuration of {at:.0} (generation {}) is running.", good.sequence),
            None => format!("Generation {}, found at start, is running.", good.sequence),
        },
        (None, Some(published)) => format!("Generation {} is published.", published.sequence),
        (None, None) => "Nothing is published yet.".to_owned(),
    };
    format!("{running}{from}")
}

/// The first source that something is wrong with, what that is, and how many more there are.
fn troubled(status: &Status) -> Option<(&Source, String, String)> {
    let mut troubled = status.sources.iter().filter(|source| source.lack.is_some());
    let source = troubled.next()?;
    let message = source.message.clone().unwrap_or_default();
    // A message may begin with the name already.
    let cause = if message.starts_with(&source.name) { message } else { format!("{}: {message}", source.name) };
    let more = match troubled.count() {
        0 => String::new(),
        1 => "The same may hold for 1 more source.".to_owned(),
        more => format!("The same may hold for {more} more sources."),
    };
    Some((source, cause, more))
}

fn remedy(source: &Source) -> Option<String> {
    let from_api = ["configmap/", "secret/"].iter().any(|kind| source.name.starts_with(kind));
    let remedy = match source.lack? {
        Lack::Forbidden if from_api => "Add the rule to the Role and bind it; Trimtab notices within half a minute.",
        Lack::Forbidden => "Fix the permissions that it names; Trimtab notices by itself.",
        Lack::Missing if from_api => "Create it; Trimtab notices at once.",
        Lack::Missing => "Create it, or mount it in this container (volumeMounts); Trimtab notices by itself.",
        Lack::Unreadable if from_api => {
            "Look at the API server and the way to it (a NetworkPolicy?); Trimtab reads again by itself, and no edit is \
             lost."
        }
        Lack::Unreadable => "Fix what it names; Trimtab reads again by itself.",
        Lack::Deleted => "Create it again, or take its flag away.",
        Lack::Frozen => "Mount the whole volume in a directory of its own, without subPath.",
    };
    Some(remedy.to_owned())
}

#[cfg(test)]
mod tests;
