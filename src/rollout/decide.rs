//! The protocol: what a replica does with what it knows. The first rule that applies decides.

use std::time::Duration;

use super::lease::{Lease, Reason, State};
use crate::model::digest::Digest;

/// Points of a candidate for a holder that was lost without a word.
const LOST: u32 = 5;
/// For one that gave the Lease back: a rolling update, a preemptible node.
const RETURNED: u32 = 2;
/// So many stop it.
const LIMIT: u32 = 10;

/// What a replica knows of itself. All but `newest` and `busy` is in its journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts: each has its own cause and its own end")]
pub struct Replica {
    /// The Pod's UID.
    pub uid: String,
    /// The change of the newest sources that it has seen since its start.
    pub newest: Option<Digest>,
    /// The change in the output.
    pub published: Option<Digest>,
    /// The change that it goes back to: the newest published one that the fleet knows to be good.
    pub base: Option<Digest>,
    /// Whether what is published is confirmed.
    pub confirmed: bool,
    /// The change that this replica itself rejected.
    pub rejected: Option<Digest>,
    /// The Lease's `retries` at that time.
    pub rejected_at: u64,
    /// Whether a transaction is under way: not one that waits for a process that cannot be reached.
    pub busy: bool,
    /// Whether what is published has no verdict yet.
    pub owes: bool,
    /// Whether this replica wrote the last claim it knows of.
    pub claimed: bool,
    /// Whether it went to what is published because that is known to be good.
    pub reverted: bool,
}

/// What the replica's own monotonic clock says, and what the history holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts: each has its own cause and its own end")]
pub struct Clock {
    /// Something is under way that is not mine, and nobody holds it, or nobody renewed it while I could see it.
    pub expired: bool,
    /// `spreading` is longer ago than my share of the spread.
    pub my_moment: bool,
    /// `baking` is longer ago than `--rollout-bake`.
    pub baked: bool,
    /// The spread, a confirmation and two polls have passed.
    pub spread_over: bool,
    /// I lead since three confirmation timeouts and have no verdict.
    pub no_verdict: bool,
    /// What the history renders to, if it may be used.
    pub history: Option<Digest>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing, until something happens.
    Rest,
    /// Look again.
    Poll,
    /// Look again, ever more rarely: only a person changes this.
    PollSlowly,
    /// Go on leading.
    Renew,
    /// Take this change.
    Go(Digest, Why),
    /// Go back to the base.
    Back,
    /// What is published is the base from now on.
    Settle,
    /// Try again what was rejected here.
    ForgetRejection,
    /// Write the Lease.
    Write(Lease, Reason),
    /// Keep the sources of this change for new Pods.
    WriteHistory(Digest),
    /// Take what the history has.
    StartFromHistory(Digest),
}

/// Why a replica goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// There is no Lease, and it never had anything.
    First,
    /// It holds the Lease.
    Hold,
    /// The spread has come to it.
    Spread,
    /// The fleet knows it to be good.
    Good,
}

/// One action.
#[must_use]
pub fn decide(me: &Replica, lease: Option<&Lease>, clock: Clock) -> Action {
    // Sources not seen since the start: what I published stands for them.
    let Some(newest) = me.newest.or(me.published) else { return Action::Rest };
    let under_way = lease.is_some_and(Lease::is_under_way);
    let is_good = |change: Digest| lease.is_some_and(|lease| lease.good.contains(&change));
    let is_stopped = |change: Digest| lease.is_some_and(|lease| lease.stopped.contains(&change));
    // What I published before it was known to be good.
    let unproven = me.published.filter(|published| Some(*published) != me.base);

    // 1 People asked for another try.
    if let (Some(lease), Some(rejected)) = (lease, me.rejected)
        && !is_stopped(rejected)
        && me.rejected_at != lease.retries
    {
        return Action::ForgetRejection;
    }
    // 2 What I rejected, the fleet must know.
    if let (Some(lease), Some(rejected)) = (lease, me.rejected)
        && under_way
        && lease.candidate == Some(rejected)
        && me.rejected_at == lease.retries
    {
        return Action::Write(lease.stop(rejected), Reason::Rejected);
    }
    // 3 What I published before it was known to be good.
    if let Some(published) = unproven
        && (lease.is_some() || me.base.is_some())
    {
        if is_good(published) {
            if me.confirmed {
                return Action::Settle;
            }
        } else if me.base.is_some() && !me.busy {
            let abandoned = !under_way || clock.expired && newest != published;
            let leaves_anyway = is_good(newest) && Some(newest) != me.rejected;
            if is_stopped(published) || abandoned && !leaves_anyway {
                return Action::Back;
            }
        }
    }
    // 4 A revert to something good is the newest state of the fleet.
    if let (Some(lease), true) = (lease, me.reverted && !under_way && !me.busy)
        && Some(newest) == me.published
        && me.published == me.base
        && lease.candidate != me.published
        && is_good(newest)
    {
        let done = Lease { holder: me.uid.clone(), ..lease.done(newest) };
        return Action::Write(done, Reason::Reverted);
    }
    // 5 Who ended it keeps it for new Pods.
    if let (Some(lease), true) = (lease, me.claimed)
        && lease.state == State::Done
        && lease.holder == me.uid
        && Some(newest) == me.published
        && me.published == lease.candidate
    {
        return Action::WriteHistory(newest);
    }
    // 6 The first time.
    if let (None, None, Some(published), true) = (lease, me.base, me.published, me.confirmed) {
        let first = Lease { good: vec![published], ..Lease::first(&me.uid, published, State::Done) };
        return Action::Write(first, Reason::First);
    }
    // 7 A new Pod, or one that never had anything good, starts where the fleet stands.
    if let Some(history) = clock.history.filter(|_| lease.is_some() && me.base.is_none() && !me.confirmed)
        && !is_good(newest)
        && !me.busy
    {
        return Action::StartFromHistory(history);
    }
    // 8 The holder.
    if let Some(lease) = lease.filter(|lease| under_way && lease.holder == me.uid) {
        return lead(me, newest, lease, clock);
    }
    // 9 Nothing newer for me.
    if me.published == Some(newest) {
        if unproven.is_none() {
            return Action::Rest;
        }
        let my_own_verdict = !me.confirmed && (lease.is_none() || me.rejected == me.published);
        if !me.busy && (is_good(newest) || is_stopped(newest) || my_own_verdict) {
            return Action::PollSlowly;
        }
        if !me.busy && (clock.expired || !under_way) {
            return claim(me, newest, lease);
        }
        return Action::Poll;
    }
    // 10 Something newer.
    if me.busy {
        return Action::Poll;
    }
    let patience = if unproven.is_some() && me.base.is_some() { Action::Poll } else { Action::PollSlowly };
    if me.rejected == Some(newest) {
        return patience;
    }
    if lease.is_none() && me.base.is_none() {
        return Action::Go(newest, Why::First);
    }
    if is_good(newest) {
        return Action::Go(newest, Why::Good);
    }
    if is_stopped(newest) {
        return patience;
    }
    if let Some(lease) = lease.filter(|_| under_way && !clock.expired) {
        if lease.candidate == Some(newest) && lease.state == State::Spreading && clock.my_moment {
            return Action::Go(newest, Why::Spread);
        }
        return Action::Poll;
    }
    claim(me, newest, lease)
}

/// What the holder does with a candidate that is under way.
fn lead(me: &Replica, newest: Digest, lease: &Lease, clock: Clock) -> Action {
    let Some(candidate) = lease.candidate else { return Action::Poll };
    if newest != candidate {
        let needs_none = lease.good.contains(&newest)
            || lease.stopped.contains(&newest)
            || Some(newest) == me.base
            || Some(newest) == me.rejected;
        if needs_none {
            return Action::Write(lease.abandoned(), Reason::Abandoned);
        }
        let replaced = Lease { candidate: Some(newest), state: State::Claimed, points: 0, ..lease.renewed() };
        return Action::Write(replaced, Reason::Replaced);
    }
    if me.published != Some(candidate) {
        let waits = me.busy || me.rejected == Some(candidate);
        return if waits { Action::Renew } else { Action::Go(candidate, Why::Hold) };
    }
    if !me.confirmed {
        if clock.no_verdict && !me.busy {
            let given_up = Lease { holder: String::new(), returned: false, ..lease.renewed() };
            return Action::Write(given_up, Reason::GivenUp);
        }
        return Action::Renew;
    }
    let next = |state| Lease { state, ..lease.renewed() };
    match lease.state {
        State::Claimed => Action::Write(next(State::Baking), Reason::Baking),
        State::Baking if clock.baked => Action::Write(next(State::Spreading), Reason::Spreading),
        State::Spreading if clock.spread_over => Action::Write(lease.done(candidate), Reason::Done),
        _ => Action::Renew,
    }
}

/// Takes the newest change, or takes over what its holder left.
fn claim(me: &Replica, newest: Digest, lease: Option<&Lease>) -> Action {
    // First my own verdict.
    if me.owes {
        return Action::Poll;
    }
    let Some(lease) = lease else {
        return Action::Write(Lease::first(&me.uid, newest, State::Claimed), Reason::Claim);
    };
    let mut points = 0;
    if lease.candidate == Some(newest) && lease.is_under_way() {
        points = lease.points.saturating_add(if lease.returned { RETURNED } else { LOST });
        if points >= LIMIT {
            return Action::Write(lease.stop(newest), Reason::HoldersLost);
        }
    }
    let claimed = Lease {
        holder: me.uid.clone(),
        candidate: Some(newest),
        state: State::Claimed,
        points,
        returned: false,
        ..lease.renewed()
    };
    Action::Write(claimed, Reason::Claim)
}

/// A replica's share of the spread, from 0 to just below 1: the same at each look, and another at each change.
pub(super) fn share(uid: &str, change: Digest) -> f64 {
    let mut hasher = crate::model::digest::Hasher::plain();
    hasher.field(uid.as_bytes());
    hasher.field(change.as_bytes());
    let [a, b, c, d, ..] = *hasher.finish().as_bytes();
    f64::from(u32::from_be_bytes([a, b, c, d])) / (f64::from(u32::MAX) + 1.0)
}

/// This part of a length.
pub(super) fn part(length: Duration, share: f64) -> Duration {
    length.mul_f64(share)
}
