//! What surrounds the rules: when something is asked, and which answer is fresh enough for what.

use std::time::Duration;

use super::driver::{AGAIN, EXPIRES, LONGEST, RENEW, SLOW};
use super::*;
use crate::model::digest::Digest;

const SECOND: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_secs(15);

fn change(n: u8) -> Digest {
    Digest::from_bytes([n; 32])
}

/// A replica that has 1, which the fleet knows to be good.
struct World {
    rollout: Rollout,
    now: Duration,
    me: Replica,
    /// What it asked for last.
    effects: Vec<Effect>,
    wakes: Option<Duration>,
    version: u32,
}

impl World {
    fn new(gated: bool) -> Self {
        let timing =
            Timing { bake: Duration::from_mins(1), spread: Duration::from_mins(5), confirm: 30 * SECOND, gated };
        let one = Some(change(1));
        let me =
            Replica { uid: "me".into(), newest: one, published: one, base: one, confirmed: true, ..Replica::default() };
        let (rollout, now) = (Rollout::new(timing, 7), Duration::from_hours(1));
        Self { rollout, now, me, effects: Vec::new(), wakes: None, version: 0 }
    }

    fn on(&mut self, event: Event) {
        self.effects = self.rollout.on(self.now, &self.me, event);
        for effect in &self.effects {
            match effect {
                Effect::Wake(at) => self.wakes = Some(*at),
                Effect::Claimed(claimed) => self.me.claimed = *claimed,
                Effect::Settle => self.me.base = self.me.published,
                _ => {}
            }
        }
    }

    /// Until it next wants to look; says how long that took.
    fn wake(&mut self) -> Duration {
        let at = self.wakes.take().expect("it wants to look again");
        let waited = at.saturating_sub(self.now);
        self.now = self.now.max(at);
        self.on(Event::Woke);
        waited
    }

    fn asks(&self) -> bool {
        self.effects.iter().any(|effect| matches!(effect, Effect::Read { .. } | Effect::Write { .. }))
    }

    fn reads(&self) -> bool {
        self.effects.iter().any(|effect| matches!(effect, Effect::Read { .. }))
    }

    fn writes(&self) -> Option<(Lease, Reason)> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Write { lease, reason, .. } => Some((lease.clone(), *reason)),
            _ => None,
        })
    }

    /// Somebody edits, and it looks.
    fn sees(&mut self, n: u8) {
        self.me.newest = Some(change(n));
        self.on(Event::Saw);
        self.wake();
        assert!(self.reads());
    }

    /// One that speaks of 2, and knows 1 to be good.
    fn lease(state: State, holder: &str) -> Lease {
        let lease = Lease::first(holder, change(1), State::Done).done(change(1));
        Lease { holder: holder.to_owned(), candidate: Some(change(2)), state, ..lease }
    }

    fn read(&mut self, lease: Option<Lease>) {
        let version = self.version.to_string();
        self.on(Event::Read(Reply::Answered(lease.map(|lease| (version, lease)))));
    }

    /// Its write is done; says what for.
    fn wrote(&mut self) -> Reason {
        let (_, reason) = self.writes().expect("it writes");
        self.version += 1;
        self.on(Event::Wrote(Reply::Answered(Some(self.version.to_string()))));
        reason
    }

    /// It holds 2, has it, and bakes.
    fn baking(gated: bool) -> Self {
        let mut world = Self::new(gated);
        world.sees(2);
        let done = World::lease(State::Done, "other").done(change(1));
        world.read(Some(done.clone()));
        world.read(Some(done));
        assert_eq!(world.wrote(), Reason::Claim);
        assert!(world.effects.contains(&Effect::Go(change(2), Why::Hold)));
        world.on(Event::Ready(change(2)));
        assert!(world.effects.contains(&Effect::Publish(change(2))));
        (world.me.published, world.me.confirmed, world.me.owes) = (Some(change(2)), false, true);
        world.on(Event::Verdict);
        (world.me.confirmed, world.me.owes) = (true, false);
        world.on(Event::Verdict);
        while world.writes().is_none() {
            world.wake();
        }
        assert_eq!(world.wrote(), Reason::Baking);
        world
    }

    /// Renews until it writes something else, or so long has passed.
    fn goes_on(&mut self, at_most: Duration) -> Option<Reason> {
        let end = self.now + at_most;
        while self.now < end {
            self.wake();
            if self.writes().is_some() {
                let reason = self.wrote();
                if reason != Reason::Renew {
                    return Some(reason);
                }
            }
        }
        None
    }
}

#[test]
fn a_request_that_fails_is_repeated_ever_later_but_within_a_poll() {
    let mut world = World::new(false);
    world.sees(2);
    let mut waits = Vec::new();
    for _ in 0..8 {
        world.on(Event::Read(Reply::Failed(Duration::ZERO)));
        assert!(!world.asks(), "not at once");
        waits.push(world.wake());
        assert!(world.reads());
    }
    assert!((AGAIN.0..=AGAIN.1).contains(&waits[0]), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= POLL) && waits[4..].iter().all(|wait| *wait == POLL), "{waits:?}");
    // What answers once is asked as before.
    world.read(Some(World::lease(State::Baking, "other")));
    world.wake();
    world.on(Event::Read(Reply::Failed(Duration::ZERO)));
    assert!(world.wake() <= AGAIN.1);
}

#[test]
fn a_server_that_asks_to_be_left_alone_is_and_an_edit_changes_nothing_about_it() {
    let mut world = World::new(false);
    world.sees(2);
    world.on(Event::Read(Reply::Failed(40 * SECOND)));
    let until = world.now + 40 * SECOND;
    for n in 3..9 {
        world.me.newest = Some(change(n));
        world.on(Event::Saw);
        while world.wakes.is_some_and(|at| at < until) {
            world.wake();
            assert!(!world.asks(), "{:?} before its time", until.saturating_sub(world.now));
        }
    }
    assert_eq!(world.wakes, Some(until));
    world.wake();
    assert!(world.reads());
    world.on(Event::Read(Reply::Failed(Duration::MAX)));
    assert_eq!(world.wake(), LONGEST);
}

#[test]
fn what_is_forbidden_is_asked_for_ever_more_rarely_until_somebody_asks() {
    let mut world = World::new(false);
    world.sees(2);
    let mut waits = Vec::new();
    for _ in 0..8 {
        world.on(Event::Read(Reply::Denied));
        waits.push(world.wake());
    }
    assert!(waits[0] >= SLOW.0.mul_f64(0.75) && waits[0] <= SLOW.0.mul_f64(1.25), "{waits:?}");
    assert!(waits[6..].iter().all(|wait| *wait >= SLOW.1.mul_f64(0.75)), "{waits:?}");
    world.on(Event::Read(Reply::Denied));
    world.on(Event::Refresh);
    assert!(world.reads(), "somebody asked");
}

#[test]
fn who_leads_asks_again_in_time_and_the_end_waits_for_nothing() {
    let mut world = World::baking(false);
    while world.writes().is_none() {
        world.wake();
    }
    world.on(Event::Wrote(Reply::Lost(Duration::ZERO)));
    let mut waits = Vec::new();
    for _ in 0..6 {
        waits.push(world.wake());
        assert!(world.reads(), "whether it was written is looked at");
        world.on(Event::Read(Reply::Failed(LONGEST)));
    }
    assert!(waits[0] < SECOND && waits[1..].iter().all(|wait| *wait <= RENEW), "{waits:?}");
    world.on(Event::Ending);
    assert!(world.reads(), "the Lease is given back now");
    world.read(Some(World::lease(State::Baking, "me")));
    assert_eq!(world.writes().map(|(lease, reason)| (lease.holder, reason)), Some((String::new(), Reason::GivenBack)));
}

#[test]
fn after_an_outage_the_holder_has_its_whole_time_again() {
    let mut world = World::new(false);
    world.sees(2);
    let lease = World::lease(State::Baking, "other");
    let began = world.now;
    while world.now < began + EXPIRES.mul_f64(0.6) {
        world.read(Some(lease.clone()));
        world.wake();
    }
    // It is short, and yet nobody knows what happened meanwhile.
    world.on(Event::Read(Reply::Failed(Duration::ZERO)));
    world.wake();
    let seen = world.now;
    while world.now < seen + EXPIRES {
        world.read(Some(lease.clone()));
        assert_eq!(world.writes(), None, "{:?} after it could see again", world.now.saturating_sub(seen));
        world.wake();
    }
    // As the last answer is from the cache: a quorum read, and then it claims.
    world.read(Some(lease.clone()));
    world.read(Some(lease));
    assert_eq!(world.writes().map(|(lease, reason)| (lease.points, reason)), Some((5, Reason::Claim)));
}

#[test]
fn a_gate_that_does_not_agree_twice_in_a_row_stops_the_change() {
    let mut world = World::baking(true);
    for agrees in [false, true, false, true] {
        world.on(Event::Gate(agrees));
        assert_eq!(world.goes_on(SECOND), None, "not by one no");
    }
    world.on(Event::Gate(false));
    world.on(Event::Gate(false));
    let written = world.goes_on(2 * SECOND);
    assert_eq!(written, Some(Reason::Gate));
    assert!(world.rollout.lease().unwrap().stopped.contains(&change(2)));
    assert!(world.effects.contains(&Effect::Back));
}

#[test]
fn without_its_gates_consent_a_change_does_not_go_on() {
    let mut world = World::baking(true);
    assert_eq!(world.goes_on(Duration::from_mins(3)), None, "the bake is over, and the gate was not heard");
    world.on(Event::Gate(true));
    assert_eq!(world.goes_on(15 * SECOND), Some(Reason::Spreading));
    assert_eq!(world.goes_on(Duration::from_mins(15)), None, "the spread is over, and the gate was not heard since");
    world.on(Event::Gate(true));
    assert_eq!(world.goes_on(15 * SECOND), Some(Reason::Done));
}

#[test]
fn without_a_gate_bake_and_spread_take_their_time_and_the_history_follows() {
    let mut world = World::baking(false);
    let began = world.now;
    assert_eq!(world.goes_on(Duration::from_mins(2)), Some(Reason::Spreading));
    assert!(world.now.saturating_sub(began) >= Duration::from_mins(1));
    let began = world.now;
    assert_eq!(world.goes_on(Duration::from_mins(15)), Some(Reason::Done));
    assert!(world.now.saturating_sub(began) >= Duration::from_mins(6), "spread, a confirmation and two polls");
    assert!(world.effects.contains(&Effect::WriteHistory(change(2))));
    // Forbidden: asked for as rarely as in quarantine, and a newer change does not wait for it.
    world.on(Event::HistoryWritten(Reply::Denied));
    let wait = world.wakes.unwrap().saturating_sub(world.now);
    assert!(wait >= SLOW.0.mul_f64(0.75) && wait <= SLOW.0.mul_f64(1.25), "{wait:?}");
    world.on(Event::Verdict);
    world.wake();
    while world.reads() {
        let lease = world.rollout.lease().cloned();
        world.read(lease);
    }
    assert!(!world.effects.contains(&Effect::WriteHistory(change(2))), "not before its time");
    world.sees(3);
    let lease = world.rollout.lease().cloned();
    world.read(lease.clone());
    world.read(lease);
    assert_eq!(world.writes().map(|(_, reason)| reason), Some(Reason::Claim));
}

#[test]
fn a_new_pod_reads_the_history_only_where_that_can_help_and_waits_for_an_answer() {
    let mut world = World::new(false);
    world.me = Replica { uid: "new".into(), newest: Some(change(2)), ..Replica::default() };
    world.on(Event::Saw);
    world.wake();
    let stopped = World::lease(State::Baking, "other").stop(change(2));
    world.read(Some(stopped.clone()));
    assert!(world.effects.contains(&Effect::ReadHistory));
    world.on(Event::HistoryRead(Reply::Failed(Duration::ZERO)));
    world.wake();
    world.read(Some(stopped.clone()));
    let found = Found { change: change(1), mine: change(1), is_ours: true };
    for unusable in
        [Found { is_ours: false, ..found }, Found { change: change(9), ..found }, Found { mine: change(2), ..found }]
    {
        world.on(Event::HistoryRead(Reply::Answered(Some(unusable))));
        assert!(!world.effects.iter().any(|effect| matches!(effect, Effect::StartFromHistory(_))), "{unusable:?}");
        world.wake();
        world.read(Some(stopped.clone()));
        assert!(world.effects.contains(&Effect::ReadHistory));
    }
    world.on(Event::HistoryRead(Reply::Answered(Some(found))));
    world.read(Some(stopped.clone()));
    assert!(world.effects.contains(&Effect::StartFromHistory(change(1))));
    world.on(Event::HistoryRejected);
    world.wake();
    world.read(Some(stopped));
    assert!(!world.effects.contains(&Effect::ReadHistory), "what was rejected here is not read again at once");

    // What the fleet knows to be good is gone to, without a look at the history.
    let mut world = World::new(false);
    world.me = Replica { uid: "new".into(), newest: Some(change(1)), ..Replica::default() };
    world.on(Event::Saw);
    world.wake();
    let done = World::lease(State::Done, "other");
    world.read(Some(done.clone()));
    assert!(!world.effects.contains(&Effect::ReadHistory));
    world.read(Some(done));
    assert!(world.effects.contains(&Effect::Go(change(1), Why::Good)));
}
