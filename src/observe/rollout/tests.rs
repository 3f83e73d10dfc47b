//! What is said of a rollout, and by whom, look by look.

use super::*;

fn change(n: u8) -> Digest {
    Digest::from_bytes([n; 32])
}

fn lease(state: State, candidate: u8) -> Lease {
    Lease {
        holder: "u1".to_owned(),
        candidate: Some(change(candidate)),
        state,
        points: 0,
        good: vec![change(1)],
        stopped: vec![change(4)],
        retries: 0,
        renewals: 0,
        returned: false,
    }
}

/// A replica that wants change 2, and has change 1.
fn looks(lease: Option<&Lease>, leads: bool, by: &str) -> Rollout {
    let value = |name: &str| match name {
        "by" => Some(by.to_owned()),
        "canary" => Some("web-1".to_owned()),
        "stage" => Some("reload".to_owned()).filter(|_| by.starts_with("web")),
        "reason" => Some("it\nrefused".to_owned()),
        _ => None,
    };
    Rollout {
        name: "web".to_owned(),
        state: state(Some(change(2)), Some(change(1)), Some(change(1)), lease, false),
        leads,
        newest: Some(change(2)),
        published: Some(change(1)),
        base: Some(change(1)),
        lease: lease.map(|lease| Seen::new(lease, "l".to_owned(), value)),
        problem: None,
        warning: None,
        history: None,
    }
}

#[test]
fn state_is_the_newest_changes_and_not_the_leases() {
    let of = |newest, published, lease: Option<&Lease>, blind| {
        state(Some(change(newest)), Some(change(published)), Some(change(1)), lease, blind)
    };
    let baking = lease(State::Baking, 2);
    assert_eq!(of(2, 1, Some(&baking), false), State::Baking);
    assert_eq!(of(2, 2, Some(&baking), false), State::Baking, "it leads");
    assert_eq!(of(3, 1, Some(&baking), false), State::Baking, "it waits until that is over");
    assert_eq!(of(2, 1, Some(&baking), true), State::None, "it may be another one by now");
    assert_eq!(of(2, 1, None, false), State::None);
    assert_eq!(of(4, 1, Some(&baking), false), State::Stopped);
    assert_eq!(of(1, 2, Some(&baking), false), State::Done, "it is gone back to at once");
    assert_eq!(of(2, 1, Some(&lease(State::Stopped, 3)), false), State::None);
    // The edit was undone: what the Lease said last does not matter.
    assert_eq!(of(1, 1, Some(&lease(State::Stopped, 2)), false), State::Done);
    assert_eq!(state(None, None, None, Some(&baking), false), State::None);
}

#[test]
fn each_replica_says_once_what_stopped_the_fleet_and_one_counts_it() {
    let mut stopped = lease(State::Stopped, 2);
    stopped.stopped.push(change(2));
    let before = looks(Some(&lease(State::Spreading, 2)), false, "web-1");
    let now = looks(Some(&stopped), false, "web-3");
    assert_eq!(now.news(Some(&before)), Some(News::Stopped));
    assert_eq!(now.news(None), Some(News::Stopped), "a Pod that starts says so, too");
    assert_eq!(now.news(Some(&now)), None);
    let note = now.note(News::Stopped, "web-0");
    assert!(note.contains("change 020202020202 was stopped by web-3 at reload: it refused"), "{note}");
    assert_eq!(now.ended(Some(&before), "web-3"), Some(State::Stopped));
    assert_eq!(now.ended(Some(&before), "web-0"), None);
    // By a person: the one that led counts.
    let led = looks(Some(&lease(State::Spreading, 2)), true, "web-1");
    let by_person = looks(Some(&stopped), false, "alice");
    assert_eq!(by_person.ended(Some(&led), "web-1"), Some(State::Stopped));
    assert_eq!(by_person.ended(Some(&before), "web-0"), None);
    assert_eq!(now.ended(Some(&led), "web-1"), None, "the one that rejected it does");
    // Something else is under way meanwhile.
    let mut other = lease(State::Baking, 3);
    other.stopped.push(change(2));
    assert!(looks(Some(&other), false, "web-5").note(News::Stopped, "web-0").contains("was stopped before"));
}

#[test]
fn who_goes_first_says_so_and_says_when_it_is_everywhere() {
    let waits = looks(Some(&lease(State::Done, 1)), false, "web-0");
    let claimed = looks(Some(&lease(State::Claimed, 2)), true, "web-1");
    let spreading = looks(Some(&lease(State::Spreading, 2)), true, "web-1");
    let done = looks(Some(&lease(State::Done, 2)), false, "web-1");
    assert_eq!(claimed.news(Some(&waits)), Some(News::Started));
    assert_eq!(claimed.news(Some(&claimed)), None);
    assert_eq!(spreading.news(None), None, "it started before");
    assert_eq!(done.news(Some(&spreading)), Some(News::Done));
    assert_eq!(done.ended(Some(&spreading), "web-1"), Some(State::Done));
    assert_eq!(done.news(Some(&looks(Some(&lease(State::Spreading, 2)), false, ""))), None);
    let next = looks(Some(&lease(State::Claimed, 3)), true, "web-1");
    assert_eq!(next.news(Some(&spreading)), Some(News::Started), "a newer one in its place");
    let rows = claimed.rows("web-1");
    assert!(
        rows.contains(&("Goes first", "web-1 (this Pod), with 020202020202: claimed".to_owned(), false)),
        "{rows:?}"
    );
}
