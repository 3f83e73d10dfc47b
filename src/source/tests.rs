//! Tests of what a deletion, an absence and an order mean, whatever comes before.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::model::object::Kind;
use crate::model::snapshot::Versions;

fn spec(role: Role) -> Spec {
    Spec { name: "x".into(), apply_deletes: role == Role::Selected, role, required: true, may_be_empty: false }
}

fn object(name: &str, created: i64, keys: &[(&str, &str)]) -> Arc<Object> {
    let id = ObjectRef { kind: Kind::ConfigMap, namespace: "ns".into(), name: name.into() };
    let data =
        keys.iter().map(|(key, value)| ((*key).to_owned(), Bytes::copy_from_slice(value.as_bytes()).into())).collect();
    Arc::new(Object::new(id, "1".into(), created, false, data))
}

fn all(objects: &[Arc<Object>]) -> Seen {
    Seen::All(objects.iter().map(|object| (object.id.clone(), object.clone())).collect())
}

fn names(sources: &Sources) -> Vec<String> {
    sources.clone().snapshot().objects.iter().map(|taken| taken.object.id.name.to_string()).collect()
}

#[test]
fn deleted_named_object_keeps_its_last_content() {
    let mut sources = Sources::new([spec(Role::Named)]);
    let web = object("web", 0, &[("a", "1")]);
    assert!(sources.take(Update { source: 0, seen: all(std::slice::from_ref(&web)) }));
    for seen in [Seen::Gone(web.id.clone()), all(&[]), all(&[object("web", 0, &[])])] {
        assert!(!sources.take(Update { source: 0, seen }), "absence is no change");
        assert_eq!(names(&sources), ["web"]);
        assert!(sources.views()[0].message().unwrap().contains("--on-delete"));
        assert!(sources.waits_for().is_empty());
    }
    assert!(sources.take(Update { source: 0, seen: all(&[object("web", 0, &[("a", "2")])]) }));
    assert_eq!(sources.views()[0].message(), None);
}

#[test]
fn deleted_selected_object_is_gone() {
    let mut sources = Sources::new([spec(Role::Selected)]);
    sources.take(Update { source: 0, seen: all(&[object("a", 0, &[("k", "v")]), object("b", 0, &[("l", "v")])]) });
    let gone = object("a", 0, &[]).id.clone();
    assert!(sources.take(Update { source: 0, seen: Seen::Gone(gone) }));
    assert_eq!(names(&sources), ["b"]);
}

#[test]
fn missing_source_is_waited_for_by_name_unless_optional() {
    let mut sources = Sources::new([spec(Role::Named)]);
    assert!(sources.waits_for()[0].contains("has not been read yet"));
    sources.take(Update {
        source: 0,
        seen: Seen::Trouble { message: "no route".into(), forbidden: false, held_back: Vec::new() },
    });
    assert!(sources.waits_for()[0].contains("no route"));
    sources.take(Update { source: 0, seen: all(&[]) });
    assert!(sources.waits_for()[0].contains("does not exist"));
    let mut optional = Sources::new([Spec { required: false, ..spec(Role::Named) }]);
    assert!(!optional.waits_for().is_empty(), "unreachable is not absent");
    assert!(optional.take(Update { source: 0, seen: all(&[]) }));
    assert!(optional.waits_for().is_empty());
}

#[test]
fn a_warning_is_said_of_a_source_that_can_be_read() {
    let mut sources = Sources::new([spec(Role::Named)]);
    sources.take(Update { source: 0, seen: all(&[object("a", 0, &[("k", "v")])]) });
    for seen in [Seen::Warning("never updated".into()), Seen::Healthy] {
        assert!(!sources.take(Update { source: 0, seen }));
        let view = &sources.views()[0];
        assert!(view.is_up());
        assert_eq!(view.message().as_deref(), Some("never updated"));
    }
}

#[test]
fn versions_of_named_objects_hold_nothing_of_the_snapshot() {
    for role in [Role::Named, Role::Selected] {
        let mut sources = Sources::new([spec(role.clone())]);
        sources.take(Update { source: 0, seen: all(&[object("a", 0, &[("k", "v")])]) });
        let snapshot = sources.snapshot();
        let versions = Versions::of(&snapshot);
        let object = Arc::downgrade(&snapshot.objects.iter().next().unwrap().object);
        drop((snapshot, sources));
        assert_eq!(object.upgrade().is_some(), role == Role::Selected);
        assert_eq!(versions.is_empty(), role == Role::Named);
    }
}

#[test]
fn same_bytes_again_are_no_change() {
    let mut sources = Sources::new([spec(Role::Named)]);
    sources.take(Update { source: 0, seen: all(&[object("a", 0, &[("k", "v")])]) });
    assert!(!sources.take(Update { source: 0, seen: all(&[object("a", 0, &[("k", "v")])]) }));
    assert!(!sources.take(Update { source: 0, seen: Seen::Changed(object("a", 0, &[("k", "v")])) }));
    assert!(sources.take(Update { source: 0, seen: Seen::Changed(object("a", 0, &[("k", "w")])) }));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_snapshot_is_the_same_whatever_came_before_it(
        steps in proptest::collection::vec((0..3usize, 0..4u8, "[a-d]", 0..2i64, 0..3u8), 0..40),
    ) {
        let mut sources = Sources::new([spec(Role::Named), spec(Role::Selected), spec(Role::Selected)]);
        for (source, what, name, created, value) in steps {
            let data = [("k", "v"), ("k", "w"), ("l", "v")];
            let new = object(&name, created, &data[usize::from(value)..][..1]);
            let seen = match what {
                0 => all(&[new, object("c", 0, &[("k", "v")])]),
                1 => Seen::Gone(new.id.clone()),
                _ => Seen::Changed(new),
            };
            sources.take(Update { source, seen });
            let objects = sources.snapshot().objects;
            let afresh = sources.in_order();
            let same = objects.iter().zip(afresh.iter()).all(|(one, other)| {
                Arc::ptr_eq(&one.object, &other.object) && one.selected == other.selected
            });
            prop_assert!(same && objects.len() == afresh.len());
            let contents = |objects: &Objects| objects.groups().map(|group| group.content).collect::<Vec<_>>();
            prop_assert_eq!(contents(&objects), contents(&afresh));
            prop_assert_eq!(sources.snapshot().made_of, sources.made_of());
        }
    }
}

#[test]
fn selected_objects_come_by_age_and_named_ones_once() {
    let mut sources = Sources::new([spec(Role::Named), spec(Role::Selected), spec(Role::Selected)]);
    sources.take(Update { source: 0, seen: all(&[object("both", 5, &[("k", "v")])]) });
    sources.take(Update { source: 2, seen: all(&[object("old", 1, &[("k", "v")])]) });
    let selected = [object("both", 5, &[("k", "v")]), object("young", 9, &[("k", "v")]), object("old", 1, &[])];
    sources.take(Update { source: 1, seen: all(&selected) });
    assert_eq!(names(&sources), ["both", "old", "young"]);
}
