//! Each verdict, and what comes before what.

use super::*;
use crate::model::digest::Digest;
use crate::model::object::{Kind, ObjectRef};
use crate::model::snapshot::HeldBack;
use crate::observe::status::{Observed, Problem, Published, Quarantine, Wait};
use crate::observe::way::Stations;
use crate::reload::TargetStatus;

const OLD: Digest = Digest::from_bytes([1; 32]);
const NEW: Digest = Digest::from_bytes([2; 32]);

fn generation(sequence: u64, digest: Digest) -> Published {
    Published { digest, sequence, at: Some("2026-11-30T14:03:10.5Z".parse().unwrap()), fallback: false }
}

fn source(name: &str, lack: Option<Lack>, message: &str) -> Source {
    let message = Some(message).filter(|message| !message.is_empty()).map(str::to_owned);
    Source { name: name.to_owned(), resource_version: None, healthy: lack.is_none(), message, at: None, lack }
}

/// Generation 3 is in effect, and all is well.
fn well() -> Status {
    let stations = Stations { validate: true, reload: true, confirm: true };
    Status {
        phase: Phase::Idle.as_str(),
        ready: true,
        observed: Some(Observed { digest: OLD, at: Timestamp::UNIX_EPOCH }),
        published: Some(generation(3, OLD)),
        confirmed: Some(generation(3, OLD)),
        last_good: Some(generation(3, OLD)),
        sources: vec![source("configmap/shop/web", None, "")],
        stations,
        ..Status::default()
    }
}

fn fails(status: &mut Status, stage: &'static str, message: &str) {
    status.errors.insert(stage, Problem { message: message.to_owned(), at: Timestamp::UNIX_EPOCH });
}

/// The newest inputs were rejected, and those of before are in effect.
fn reject(status: &mut Status, stage: Stage, reason: &str) {
    status.observed = Some(Observed { digest: NEW, at: Timestamp::UNIX_EPOCH });
    let at = Timestamp::UNIX_EPOCH;
    status.quarantine = Some(Quarantine { digest: NEW, stage, reason: reason.to_owned(), at });
}

/// Generation 4 is published, and not taken.
fn publish(status: &mut Status) {
    status.observed = Some(Observed { digest: NEW, at: Timestamp::UNIX_EPOCH });
    status.published = Some(generation(4, NEW));
    status.debt = Some("publish");
    status.phase = Phase::Backoff.as_str();
}

fn nothing_published(status: &mut Status) {
    (status.published, status.confirmed, status.last_good) = (None, None, None);
    (status.observed, status.ready, status.phase) = (None, false, Phase::Syncing.as_str());
}

fn fleet(state: rollout::State) -> crate::observe::rollout::Rollout {
    crate::observe::rollout::Rollout {
        name: "web".to_owned(),
        state,
        leads: true,
        newest: Some(NEW),
        published: Some(OLD),
        base: Some(OLD),
        lease: None,
        problem: None,
        warning: None,
        history: None,
    }
}

type Change = fn(&mut Status);

/// What is the case, the word, the station, and what is said.
type Case = (Change, State, Station, &'static str, Option<&'static str>);

const CASES: &[Case] = &[
    (|_| {}, State::InEffect, Station::Done, "Generation 3 is in effect: the main process has confirmed it.", None),
    (
        |status| status.stations.confirm = false,
        State::InEffect,
        Station::Done,
        "Generation 3 is in effect: the main process was notified, and took it.",
        None,
    ),
    (
        |status| status.stations = Stations::default(),
        State::InEffect,
        Station::Done,
        "Generation 3 is published: the main process is not notified, and reads it by itself.",
        None,
    ),
    (
        |status| status.phase = Phase::Rendering.as_str(),
        State::Working,
        Station::Render,
        "The newest edit is being rendered and validated.",
        None,
    ),
    (
        |status| {
            publish(status);
            status.phase = Phase::Confirming.as_str();
        },
        State::Working,
        Station::Confirm,
        "The newest edit is published, and its confirmation is waited for.",
        None,
    ),
    (nothing_published, State::Working, Station::Source, "The sources are read for the first time.", None),
    (
        |status| reject(status, Stage::Render, "template a.j2, line 3: `nope` is not defined"),
        State::Rejected,
        Station::Render,
        "The newest edit is not in effect, it was rejected: template a.j2, line 3: `nope` is not defined. The \
         configuration of 2026-11-30T14:03:10Z (generation 3) is running.",
        Some("Fix the template or the key that it names; a newer edit is tried at once."),
    ),
    (
        |status| {
            nothing_published(status);
            reject(status, Stage::Validate, "a.json, line 2");
        },
        State::Rejected,
        Station::Validate,
        "The newest edit is not in effect, it was rejected: a.json, line 2. Nothing is published yet.",
        Some("Fix the inputs; a newer edit is tried at once."),
    ),
    (
        |status| {
            reject(status, Stage::Confirm, "nginx started no new worker within 5s");
            status.debt = Some("rollback");
            status.phase = Phase::Backoff.as_str();
            fails(status, "reload", "no process matches");
        },
        State::Rejected,
        Station::Confirm,
        "The newest edit is not in effect, it was rejected: nginx started no new worker within 5s. Generation 3 is \
         current again, and the main process has not taken it yet: no process matches.",
        Some("Fix the inputs; or fix the main process, and run `trimtab retry`."),
    ),
    (
        |status| {
            reject(status, Stage::Reload, "it answered 500");
            status.rollout = Some(fleet(rollout::State::Claimed));
        },
        State::Rejected,
        Station::Reload,
        "The newest edit is not in effect, it was rejected: it answered 500. The configuration of 2026-11-30T14:03:10Z \
         (generation 3) is running.",
        Some("Fix the inputs; or fix the main process, and run `trimtab rollout retry web`."),
    ),
    (
        |status| {
            publish(status);
            reject(status, Stage::Reload, "it answered 500");
            (status.held, status.phase) = (true, Phase::Reloading.as_str());
            fails(status, "reload", "refused: it answered 500");
        },
        State::Held,
        Station::Reload,
        "Generation 4 was rejected and stays published, as there is no way back: refused: it answered 500. The main \
         process took generation 3 last.",
        Some("Fix the inputs, or fix the main process: attempts go on, and `trimtab retry` makes one now."),
    ),
    (
        |status| {
            reject(status, Stage::Reload, "it answered 500");
            (status.held, status.debt) = (true, Some("rollback"));
        },
        State::Held,
        Station::Reload,
        "Generation 3, the last good one, is current again, and the main process does not take it either: it answered \
         500.",
        Some("Look at the main container, whose log says why; attempts go on, and `trimtab retry` makes one now."),
    ),
    (
        |status| {
            nothing_published(status);
            status.sources = vec![
                source("configmap/shop/web", Some(Lack::Missing), "configmap/shop/web: it does not exist"),
                source("dir/etc", Some(Lack::Unreadable), "no"),
            ];
        },
        State::Waiting,
        Station::Source,
        "Nothing is published yet: waiting for configmap/shop/web: it does not exist. The same may hold for 1 more source.",
        Some("Create it; Trimtab notices at once."),
    ),
    (
        |status| {
            publish(status);
            fails(status, "reload", "--process nginx: no process matches");
            let state = TargetState::Missing;
            status.target = Some(TargetStatus { state, pid: None, name: None, message: None });
        },
        State::Waiting,
        Station::Reload,
        "Generation 4 is published, and the main process has not taken it: --process nginx: no process matches.",
        Some(
            "Start the main process, or correct the flag that names it; attempts go on, and `trimtab retry` makes one now.",
        ),
    ),
    (
        |status| fails(status, "publish", "write /conf/a: No space left on device"),
        State::Waiting,
        Station::Publish,
        "The newest edit is not in effect, it cannot be written: write /conf/a: No space left on device. The \
         configuration of 2026-11-30T14:03:10Z (generation 3) is running.",
        Some("Make room in the volume, or make it writable; it is tried again by itself."),
    ),
    (
        |status| {
            status.phase = Phase::Settling.as_str();
            status.waits_for = Some(Wait { reason: "--reload-min-interval".to_owned(), next: None });
        },
        State::Waiting,
        Station::Source,
        "The newest edit is not in effect yet, it waits for --reload-min-interval. The configuration of \
         2026-11-30T14:03:10Z (generation 3) is running.",
        None,
    ),
    (
        |status| {
            nothing_published(status);
            status.observed = None;
            let reason = "configmap/shop/web: what http://files/a has for its key \"a.url\"".to_owned();
            status.waits_for = Some(Wait { reason, next: None });
        },
        State::Waiting,
        Station::Source,
        "The sources are read for the first time, which waits for configmap/shop/web: what http://files/a has for its \
         key \"a.url\".",
        None,
    ),
    (
        |status| {
            nothing_published(status);
            fails(status, "lock", "another Trimtab holds the output's lock");
        },
        State::Waiting,
        Station::Source,
        "Nothing is read or written: another Trimtab holds the output's lock.",
        Some("End the other Trimtab, or give each an --output of its own."),
    ),
    (
        |status| {
            let id = ObjectRef { kind: Kind::ConfigMap, namespace: "shop".into(), name: "extra".into() };
            status.held_back = vec![HeldBack { source: id, key: None, reason: "a.json, line 2".to_owned() }];
        },
        State::Rejected,
        Station::Validate,
        "The newest version of configmap/shop/extra is not in effect, it is held back: a.json, line 2. All other objects \
         are in effect.",
        Some("Fix configmap/shop/extra; or fix what refuses it, and run `trimtab retry`. All other objects flow."),
    ),
    (
        |status| {
            let message = "forbidden (403): app may not list configmaps";
            status.sources = vec![source("configmap/shop/web", Some(Lack::Forbidden), message)];
        },
        State::Stale,
        Station::Source,
        "What is in effect may be older than its source: configmap/shop/web: forbidden (403): app may not list \
         configmaps. The configuration of 2026-11-30T14:03:10Z (generation 3) is running.",
        Some("Add the rule to the Role and bind it; Trimtab notices within half a minute."),
    ),
    (
        |status| {
            (status.observed, status.phase) = (None, Phase::Syncing.as_str());
            status.confirmed = Some(Published { at: None, ..status.confirmed.take().unwrap() });
            status.sources = vec![source("configmap/shop/web", Some(Lack::Unreadable), "no connection")];
        },
        State::Stale,
        Station::Source,
        "No edit is seen: waiting for configmap/shop/web: no connection. Generation 3, found at start, is running.",
        Some(
            "Look at the API server and the way to it (a NetworkPolicy?); Trimtab reads again by itself, and no edit is \
             lost.",
        ),
    ),
    (
        |status| fails(status, "access", "nginx (pid 7) has mounted a published file by itself"),
        State::Stale,
        Station::Confirm,
        "Generation 3 is published, and the main process may not have it: nginx (pid 7) has mounted a published file by \
         itself.",
        Some(
            "Change the Pod: one fsGroup or runAsUser for both containers, and no subPath in the main container's mounts.",
        ),
    ),
];

#[test]
fn each_state_has_its_word_its_station_its_sentence_and_its_remedy() {
    let mut seen = std::collections::BTreeSet::new();
    for (change, state, at, summary, next) in CASES {
        let mut status = well();
        change(&mut status);
        let verdict = Verdict::of(&status);
        assert_eq!((verdict.state, verdict.at), (*state, *at), "{summary}");
        assert_eq!((verdict.summary.as_str(), verdict.next.as_deref()), (*summary, *next));
        let cause = verdict.cause.unwrap_or_default();
        assert!(verdict.summary.contains(&cause) && (cause.is_empty() || !verdict.consequence.contains(&cause)));
        assert_eq!(State::parse(state.as_str()), Some(*state));
        seen.insert(*state);
    }
    assert_eq!(seen.len(), State::ALL.len(), "each has a case");
}

/// A turn that comes by itself is no trouble; what waits for people, or for a Lease that cannot be read, is one.
#[test]
fn what_waits_for_people_is_a_trouble() {
    let mut status = well();
    (status.phase, status.rollout) = (Phase::Settling.as_str(), Some(fleet(rollout::State::Baking)));
    status.waits_for = Some(Wait { reason: "its turn".to_owned(), next: None });
    assert!(Verdict::of(&status).calm);
    status.rollout.as_mut().unwrap().problem = Some("forbidden (403)".to_owned());
    assert!(!Verdict::of(&status).calm);
    status.rollout = Some(fleet(rollout::State::Stopped));
    status.waits_for = Some(Wait { reason: "people".to_owned(), next: Some("Publish another change.".to_owned()) });
    assert!(!Verdict::of(&status).calm);
}

#[test]
fn what_was_rejected_matters_only_while_it_is_the_newest() {
    let mut status = well();
    reject(&mut status, Stage::Render, "no");
    status.observed = Some(Observed { digest: OLD, at: Timestamp::UNIX_EPOCH });
    assert_eq!(Verdict::of(&status).state, State::InEffect);
    // After a restart, until the sources are read.
    status.observed = None;
    assert_eq!(Verdict::of(&status).state, State::Rejected);
}

#[test]
fn the_worse_comes_first() {
    let mut status = well();
    let steps: [(Change, State); 5] = [
        (|status| fails(status, "access", "it cannot read a.conf"), State::Stale),
        (|status| status.phase = Phase::Rendering.as_str(), State::Working),
        (
            |status| {
                publish(status);
                fails(status, "reload", "no connection");
            },
            State::Waiting,
        ),
        (|status| reject(status, Stage::Reload, "it answered 500"), State::Rejected),
        (|status| status.held = true, State::Held),
    ];
    for (change, state) in steps {
        change(&mut status);
        assert_eq!(Verdict::of(&status).state, state);
    }
}
