//! What becomes of a change, and what is kept of it.

use bytes::Bytes;

use super::*;
use crate::model::journal::{Generation, Quarantine};
use crate::model::object::{Kind, ObjectRef};
use crate::model::snapshot::Taken;

fn digest(number: u8) -> Digest {
    Digest::from_bytes([number; 32])
}

fn generation(sequence: u64) -> Generation {
    Generation::new(sequence, Digest::UNKNOWN, Digest::UNKNOWN, Digest::UNKNOWN)
}

fn object(name: &str, version: &str, keys: &[(&str, &str)]) -> Arc<Object> {
    let id = ObjectRef { kind: Kind::ConfigMap, namespace: "shop".into(), name: name.into() };
    let data = keys.iter().map(|(key, value)| ((*key).to_owned(), Bytes::copy_from_slice(value.as_bytes()).into()));
    Arc::new(Object::new(id, version.to_owned(), 0, false, data.collect()))
}

fn snapshot(objects: &[Arc<Object>]) -> Snapshot {
    let taken = objects.iter().map(|object| Taken { object: object.clone(), selected: false });
    Snapshot { objects: taken.collect(), ..Snapshot::default() }
}

fn edit(source: &str) -> Edit {
    Edit { source: source.to_owned(), keys: vec!["a".to_owned()], more_keys: 0, from: None, to: Some("2".to_owned()) }
}

fn rejection() -> Rejection {
    Rejection { stage: Stage::Confirm, reason: "it died".to_owned(), at: Timestamp::UNIX_EPOCH }
}

fn lines(history: &History) -> Vec<(Fate, Option<u64>)> {
    history.changes().map(|change| (change.result, change.sequence)).collect()
}

#[test]
fn an_edit_names_source_keys_and_versions_and_no_value() {
    let old = snapshot(&[
        object("web", "811", &[("nginx.conf", "hunter1"), ("b", "same"), ("gone", "x")]),
        object("old", "3", &[("k", "v")]),
        object("same", "4", &[("k", "v")]),
    ]);
    let new = snapshot(&[
        object("web", "829", &[("nginx.conf", "hunter2"), ("b", "same"), ("new", "x")]),
        object("same", "5", &[("k", "v")]),
        object("more", "6", &[("k", "v")]),
    ]);
    let said: Vec<String> = edits(Some(&old), &new).iter().map(Edit::to_string).collect();
    assert_eq!(
        said,
        [
            "configmap/shop/more: version 6",
            "configmap/shop/old: version 3 is gone",
            "configmap/shop/web: keys gone, new, nginx.conf, version 811 → 829",
        ]
    );
    assert_eq!(edits(None, &old).len(), 3);
    assert!(edits(Some(&old), &old.clone()).is_empty());
    let json = serde_json::to_string(&edits(Some(&old), &new)).unwrap();
    assert!(!json.contains("hunter"), "{json}");
    let directory = Edit { source: "dir/etc".to_owned(), to: None, ..edit("") };
    assert_eq!(directory.to_string(), "dir/etc: key a");
}

#[test]
fn edits_before_a_render_are_one_change_and_later_ones_another() {
    let mut history = History::default();
    history.observed(digest(1), vec![edit("configmap/shop/web")]);
    history.observed(digest(2), vec![Edit { to: Some("3".to_owned()), ..edit("configmap/shop/web") }, edit("dir/x")]);
    assert_eq!(lines(&history), [(Fate::Working, None)]);
    let begun = history.began(digest(2)).expect("for the first time");
    assert_eq!(begun.what().unwrap(), "configmap/shop/web: key a, version 3; dir/x: key a, version 2");
    assert!(history.began(digest(2)).is_none());
    history.observed(digest(3), vec![edit("dir/x")]);
    history.step(Stage::Render, Duration::from_millis(3));
    history.announce(&Milestone::Published(generation(7)));
    history.announce(&Milestone::Confirmed { generation: generation(7), again: false });
    assert_eq!(lines(&history), [(Fate::Working, None), (Fate::InEffect, Some(7))]);
    let ended = history.changes().nth(1).unwrap();
    assert_eq!(ended.steps_ms[&Stage::Render], 3);
    assert!(ended.took_ms.is_some());
}

#[test]
fn a_change_ends_by_what_is_announced() {
    let mut history = History::default();
    let publish = |history: &mut History, number: u8| {
        history.observed(digest(number), vec![edit("dir/x")]);
        history.began(digest(number));
        history.announce(&Milestone::Published(generation(number.into())));
    };
    publish(&mut history, 1);
    publish(&mut history, 2);
    assert_eq!(lines(&history), [(Fate::Working, Some(2)), (Fate::Superseded, Some(1))]);
    let quarantine = Quarantine { digest: digest(2), gate: Digest::UNKNOWN, rejection: rejection() };
    history.announce(&Milestone::Rejected(quarantine));
    assert_eq!(lines(&history)[0].0, Fate::Rejected);
    history.step(Stage::Confirm, Duration::from_millis(3));
    assert!(!history.newest().unwrap().steps_ms.contains_key(&Stage::Confirm), "of the way back");
    history.announce(&Milestone::RolledBack { from: 2, to: generation(1) });
    history.announce(&Milestone::Confirmed { generation: generation(1), again: true });
    let change = history.newest().unwrap();
    assert_eq!((change.result, change.stage), (Fate::RolledBack, Some(Stage::Confirm)));
    assert_eq!(change.reason.as_deref(), Some("it died"));
    // Another try.
    history.began(digest(2));
    assert_eq!((lines(&history)[0].0, history.newest().unwrap().reason.clone()), (Fate::Working, None));
    history.announce(&Milestone::Published(generation(3)));
    history.announce(&Milestone::Held);
    assert_eq!(lines(&history)[0], (Fate::Held, Some(3)));
    history.announce(&Milestone::Rejected(Quarantine {
        digest: digest(2),
        gate: Digest::UNKNOWN,
        rejection: rejection(),
    }));
    history.announce(&Milestone::Confirmed { generation: generation(3), again: false });
    let change = history.newest().unwrap();
    assert_eq!((change.result, change.stage, &change.reason), (Fate::InEffect, None, &None));
    history.observed(digest(4), vec![edit("dir/x")]);
    history.began(digest(4));
    history.rejected(&Rejection { stage: Stage::Render, ..rejection() });
    assert_eq!(lines(&history)[0], (Fate::Rejected, None));
    // Undone before it was rendered.
    history.observed(digest(5), vec![edit("dir/x")]);
    history.announce(&Milestone::Settled);
    assert_eq!(lines(&history)[..2], [(Fate::InEffect, None), (Fate::Rejected, None)]);
}

#[test]
fn it_is_bounded_and_the_last_that_ended_survive_a_restart() {
    let mut history = History::default();
    assert_eq!(history.unstored(), None);
    for number in 0..50 {
        history.observed(digest(number), (0..20).map(|source| edit(&format!("dir/{source:02}"))).collect());
        history.began(digest(number));
        history.rejected(&rejection());
    }
    history.observed(digest(50), vec![edit("dir/x")]);
    assert_eq!(history.changes().count(), KEPT);
    let change = history.changes().nth(1).unwrap().clone();
    assert_eq!((change.sources.len(), change.more_sources), (NAMED, 20 - NAMED));
    assert!(change.what().unwrap().ends_with("; 12 more sources"));
    let stored = history.unstored().unwrap();
    assert_eq!(history.unstored(), None, "once");
    let restored = History::restored(&stored);
    assert_eq!(lines(&restored), [(Fate::Rejected, None); STORED]);
    assert_eq!(restored.newest().unwrap().what(), change.what());
    for end in 0..stored.len() {
        assert_eq!(History::restored(&stored[..end]), History::default(), "torn at {end}");
    }
}
