//! Every order of events for small fleets: edits, what each replica sees, each step of the protocol, verdicts, restarts,
//! lost Pods, holders taken for lost, people, deletions. No time: whatever may happen, happens. A read, its decision and
//! its write are one step: compare-and-swap makes it one; what is checked right before a rename counts as checked with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use trimtab::model::digest::Digest;
use trimtab::rollout::{Action, Clock, Lease, Reason, Replica, State, Why, decide};

use super::world::{Kind, Person, digest, number};

type Change = u8;

/// What is tried.
#[derive(Clone, Debug, Default)]
struct Fleet {
    n: u8,
    edits: Vec<Change>,
    kinds: BTreeMap<Change, Kind>,
    /// How often each of these happens.
    crash: u8,
    kill: u8,
    expiry: u8,
    lease_gone: u8,
    gone: u8,
    history_gone: u8,
    people: Vec<Person>,
    /// A restart may lose the disk.
    wipe: bool,
    /// Nothing was ever published.
    fresh: bool,
}

/// Why something is being confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Began {
    Go(Why),
    History,
    Again,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Rep {
    uid: u8,
    alive: bool,
    /// How many edits it has seen.
    seen: u8,
    published: Option<Change>,
    base: Option<Change>,
    confirmed: bool,
    /// Confirmed here last.
    last: Option<Change>,
    rejected: Option<Change>,
    at: u8,
    busy: Option<(Change, Began)>,
    claimed: bool,
    reverted: Option<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    lease: Option<Lease>,
    history: Option<Change>,
    reps: Vec<Rep>,
    edits: u8,
    crash: u8,
    kill: u8,
    expiry: u8,
    people: u8,
    lease_gone: u8,
    gone: u8,
    history_gone: u8,
    good: BTreeSet<Change>,
    spread: BTreeSet<Change>,
    claims: BTreeMap<Change, u8>,
    next: u8,
}

type Found = BTreeMap<&'static str, (Rc<World>, String)>;
/// Makes a world with another replica in the place of one.
type With<'a> = dyn Fn(&dyn Fn(&mut Rep)) -> World + 'a;
type Moves = Vec<(&'static str, World)>;

fn change(of: Digest) -> Change {
    Change::try_from(number(of)).unwrap()
}

fn to(of: Change) -> Digest {
    digest(of.into())
}

fn holder(uid: u8) -> String {
    format!("u{uid}")
}

fn fresh(uid: u8, seen: u8) -> Rep {
    Rep {
        uid,
        alive: true,
        seen,
        published: None,
        base: None,
        confirmed: false,
        last: None,
        rejected: None,
        at: 0,
        busy: None,
        claimed: false,
        reverted: None,
    }
}

impl Fleet {
    fn truth(&self, seen: u8) -> Change {
        if seen == 0 { 0 } else { self.edits[usize::from(seen) - 1] }
    }

    fn count(&self) -> u8 {
        u8::try_from(self.edits.len()).unwrap()
    }

    fn kind(&self, of: Change, uid: u8) -> Kind {
        match self.kinds.get(&of).copied().unwrap_or(Kind::Good) {
            Kind::Some if uid % 2 == 1 => Kind::Reject,
            Kind::Some => Kind::Good,
            kind => kind,
        }
    }

    fn start(&self) -> World {
        let old = |uid| Rep { published: Some(0), base: Some(0), confirmed: true, last: Some(0), ..fresh(uid, 0) };
        let reps = (0..self.n).map(|uid| if self.fresh { fresh(uid, 0) } else { old(uid) }).collect();
        let lease = Lease {
            holder: holder(0),
            candidate: Some(to(0)),
            state: State::Done,
            points: 0,
            good: vec![to(0)],
            stopped: Vec::new(),
            retries: 0,
            renewals: 0,
            returned: false,
        };
        World {
            lease: (!self.fresh).then_some(lease),
            history: (!self.fresh).then_some(0),
            reps,
            edits: 0,
            crash: self.crash,
            kill: self.kill,
            expiry: self.expiry,
            people: 0,
            lease_gone: self.lease_gone,
            gone: self.gone,
            history_gone: self.history_gone,
            good: if self.fresh { BTreeSet::new() } else { BTreeSet::from([0]) },
            spread: BTreeSet::new(),
            claims: BTreeMap::new(),
            next: self.n,
        }
    }

    fn publish(&self, s: &Rc<World>, i: usize, of: Change, began: Option<Began>, bad: &mut Found) -> World {
        let mut violated = |code, why| {
            bad.entry(code).or_insert_with(|| (Rc::clone(s), why));
        };
        let rep = &s.reps[i];
        match began {
            Some(Began::Go(Why::First)) if rep.base.is_some() => violated("FIRST", format!("{} {of}", rep.uid)),
            Some(Began::History) if !s.good.contains(&of) => violated("HISTORY", format!("{} {of}", rep.uid)),
            Some(Began::Go(Why::Hold | Why::Spread | Why::Good)) => {
                if s.lease.as_ref().is_some_and(|lease| lease.stopped.contains(&to(of))) {
                    violated("P2", format!("{} {of}", rep.uid));
                }
                let having =
                    |(j, o): &(usize, &Rep)| *j != i && o.alive && o.published == Some(of) && o.base != Some(of);
                let have = 1 + s.reps.iter().enumerate().filter(having).count();
                let claimed = usize::from(s.claims.get(&of).copied().unwrap_or(0)).max(1);
                let known = s.good.contains(&of) || s.spread.contains(&of);
                if !known && have > claimed && s.lease_gone == self.lease_gone && !self.fresh {
                    violated("P1", format!("{of} on {have}, claimed {claimed}"));
                }
            }
            _ => {}
        }
        let mut next = World::clone(s);
        let rep = &mut next.reps[i];
        if began == Some(Began::Go(Why::Good)) && rep.published.is_some() {
            rep.reverted = Some(of);
        }
        if matches!(began, None | Some(Began::History)) {
            rep.base = Some(of);
        }
        rep.published = Some(of);
        rep.confirmed = began.is_none();
        rep.busy = began.map(|began| (of, began));
        next
    }

    /// What the replicas do by themselves.
    fn steps(&self, s: &Rc<World>, bad: &mut Found) -> Moves {
        let mut moves = Vec::new();
        for i in 0..s.reps.len() {
            if s.reps[i].alive && !self.verdicts(s, i, &mut moves) {
                self.decisions(s, i, bad, &mut moves);
            }
        }
        moves
    }

    /// Verdicts; whether nothing else happens here before.
    fn verdicts(&self, s: &Rc<World>, i: usize, moves: &mut Moves) -> bool {
        let rep = &s.reps[i];
        let lease = s.lease.as_ref();
        let with = |change_rep: &dyn Fn(&mut Rep)| {
            let mut next = World::clone(s);
            change_rep(&mut next.reps[i]);
            next
        };
        let retries = lease.map_or(0, |lease| u8::try_from(lease.retries).unwrap());
        if let Some((of, began)) = rep.busy {
            match self.kind(of, rep.uid) {
                Kind::Kill if began != Began::History => {
                    let mut next = World::clone(s);
                    if s.next < self.n + 4 {
                        next.reps[i] = fresh(s.next, s.edits);
                        next.next += 1;
                    } else {
                        next.reps[i].alive = false;
                    }
                    moves.push(("dies", next));
                }
                Kind::Reject => {
                    let back = rep.base.filter(|base| *base != of);
                    let back = back.or(rep.last.filter(|last| rep.base.is_none() && *last != of));
                    moves.push((
                        "rejects",
                        with(&|rep| {
                            (rep.busy, rep.rejected, rep.at) = (None, Some(of), retries);
                            rep.confirmed = back.is_some();
                            rep.published = back.or(rep.published);
                        }),
                    ));
                }
                _ => {
                    let good = lease.is_some_and(|lease| lease.good.contains(&to(of)));
                    moves.push((
                        "confirmed",
                        with(&|rep| {
                            (rep.busy, rep.confirmed, rep.last) = (None, true, Some(of));
                            rep.base = if good { Some(of) } else { rep.base };
                        }),
                    ));
                }
            }
        } else if let (Some(published), Some(lease)) = (rep.published, lease)
            && self.kinds.get(&published) == Some(&Kind::Flaky)
            && lease.state == State::Baking
            && lease.holder == holder(rep.uid)
            && lease.candidate == Some(to(published))
            && rep.base != Some(published)
            && rep.rejected != Some(published)
        {
            moves.push((
                "fails late",
                with(&|rep| {
                    (rep.rejected, rep.at) = (Some(published), retries);
                    rep.confirmed = rep.base.is_some();
                    rep.published = rep.base.or(rep.published);
                }),
            ));
            return true;
        }
        false
    }

    #[expect(clippy::too_many_lines, reason = "a table of the actions")]
    fn decisions(&self, s: &Rc<World>, i: usize, bad: &mut Found, moves: &mut Moves) {
        let rep = &s.reps[i];
        let newest = self.truth(rep.seen);
        if rep.base == Some(newest) && rep.published != rep.base && rep.busy.is_none() {
            moves.push(("undone", self.publish(s, i, newest, None, bad)));
            return;
        }
        let reverted = rep.reverted.is_some() && rep.reverted == rep.published;
        let pending = Some(newest) != rep.published
            || rep.published != rep.base
            || rep.claimed
            || rep.rejected.is_some()
            || reverted;
        if !pending {
            return;
        }
        let me = Replica {
            uid: holder(rep.uid),
            newest: Some(to(newest)),
            published: rep.published.map(to),
            base: rep.base.map(to),
            confirmed: rep.confirmed,
            rejected: rep.rejected.map(to),
            rejected_at: rep.at.into(),
            busy: rep.busy.is_some(),
            owes: rep.busy.is_some(),
            claimed: rep.claimed,
            reverted,
        };
        let lease = s.lease.as_ref();
        let under_way = lease.filter(|lease| lease.is_under_way());
        let lives = lease.is_some_and(|l| s.reps.iter().any(|o| o.alive && holder(o.uid) == l.holder));
        let expired: &[bool] = match under_way {
            Some(lease) if lease.holder == me.uid => &[false],
            Some(_) if !lives => &[true],
            Some(_) if s.expiry > 0 => &[false, true],
            _ => &[false],
        };
        let spreading = lease.is_some_and(|lease| lease.state == State::Spreading);
        let moments: &[bool] = if spreading { &[false, true] } else { &[false] };
        let usable = s.history.filter(|h| {
            let lease_knows = lease.is_some_and(|l| l.good.contains(&to(*h)) && !l.stopped.contains(&to(*h)));
            rep.base.is_none() && !rep.confirmed && lease_knows
        });
        let holds = under_way.is_some_and(|lease| lease.holder == me.uid);
        let ended =
            lease.is_some_and(|l| l.state == State::Done && l.holder == me.uid && l.candidate == Some(to(newest)));
        for (expired, my_moment) in expired.iter().flat_map(|e| moments.iter().map(move |m| (*e, *m))) {
            let clock = Clock {
                expired,
                my_moment,
                baked: true,
                spread_over: true,
                no_verdict: false,
                history: usable.map(to),
            };
            let action = decide(&me, lease, clock);
            let with = |change_rep: &dyn Fn(&mut Rep)| {
                let mut next = World::clone(s);
                let rep = &mut next.reps[i];
                rep.claimed &= holds || ended;
                change_rep(rep);
                next
            };
            match action {
                Action::Poll | Action::PollSlowly | Action::Renew => {}
                Action::Rest => moves.push((
                    "rests",
                    with(&|rep| {
                        if rep.confirmed && rep.busy.is_none() {
                            rep.reverted = None;
                        }
                    }),
                )),
                Action::ForgetRejection => moves.push((
                    "forgets",
                    with(&|rep| {
                        rep.rejected = None;
                        if let Some(published) = rep.published
                            && published == newest
                            && !rep.confirmed
                            && rep.busy.is_none()
                        {
                            rep.busy = Some((published, Began::Again));
                        }
                    }),
                )),
                Action::Settle => moves.push(("settles", with(&|rep| rep.base = rep.published))),
                Action::WriteHistory(of) => {
                    let mut next = with(&|rep| rep.claimed = false);
                    next.history = Some(change(of));
                    moves.push(("writes the history", next));
                }
                Action::Go(of, why) => {
                    moves.push(("goes", self.publish(s, i, change(of), Some(Began::Go(why)), bad)));
                }
                Action::Back => {
                    if let Some(base) = rep.base {
                        moves.push(("goes back", self.publish(s, i, base, None, bad)));
                    }
                }
                Action::StartFromHistory(of) => {
                    moves.push(("history", self.publish(s, i, change(of), Some(Began::History), bad)));
                }
                Action::Write(written, reason) => {
                    let lost = expired && lives;
                    moves.push((reason.as_str(), written_to(s, i, written, reason, lost, &with, bad)));
                }
            }
        }
    }

    /// What the world does.
    fn world(&self, s: &Rc<World>) -> Moves {
        let mut moves = Vec::new();
        let mut add = |what, change_world: &dyn Fn(&mut World)| {
            let mut next = World::clone(s);
            change_world(&mut next);
            moves.push((what, next));
        };
        if s.edits < self.count() {
            add("edit", &|next| next.edits += 1);
        }
        for (i, rep) in s.reps.iter().enumerate().filter(|(_, rep)| rep.alive) {
            if rep.seen < s.edits {
                add("sees", &|next| {
                    let rep = &mut next.reps[i];
                    rep.seen += 1;
                    rep.rejected = rep.rejected.filter(|rejected| *rejected == self.truth(rep.seen));
                });
            }
            if s.crash > 0 {
                if let Some((of, Began::Go(_))) = rep.busy {
                    add("restarts", &|next| {
                        next.crash -= 1;
                        next.reps[i].busy = Some((of, Began::Again));
                    });
                }
                if self.wipe && rep.published.is_some() {
                    add("loses its disk", &|next| {
                        next.crash -= 1;
                        next.reps[i] = fresh(next.reps[i].uid, next.edits);
                    });
                }
            }
            if s.gone > 0 && s.reps.iter().filter(|rep| rep.alive).count() > 1 {
                add("scaled away", &|next| {
                    next.gone -= 1;
                    next.reps[i].alive = false;
                });
            }
            if s.kill > 0 && s.next < self.n + 4 {
                add("replaced by a new Pod", &|next| {
                    next.kill -= 1;
                    next.reps[i] = fresh(next.next, next.edits);
                    next.next += 1;
                });
            }
        }
        if s.lease_gone > 0 && s.lease.is_some() {
            add("Lease deleted", &|next| {
                next.lease_gone -= 1;
                (next.lease, next.history) = (None, None);
            });
        }
        if s.history_gone > 0 && s.history.is_some() {
            add("history deleted", &|next| {
                next.history_gone -= 1;
                next.history = None;
            });
        }
        if let (Some(person), Some(lease)) = (self.people.get(usize::from(s.people)), &s.lease)
            && let Some(candidate) = lease.candidate
        {
            let of = change(candidate);
            match person {
                Person::Promote => add("promote", &|next| {
                    next.people += 1;
                    next.lease = lease.promoted();
                    next.good.insert(of);
                }),
                Person::Stop if lease.is_under_way() => add("stop", &|next| {
                    next.people += 1;
                    next.lease = lease.stopped_by_person();
                }),
                Person::Retry if lease.state == State::Stopped => add("retry", &|next| {
                    next.people += 1;
                    next.lease = Some(lease.retried());
                    next.spread.remove(&of);
                    next.claims.values_mut().for_each(|count| *count += 1);
                }),
                _ => {}
            }
        }
        for (_, next) in &mut moves {
            // What only grows would make the search endless.
            if let Some(lease) = &mut next.lease {
                lease.renewals = 0;
            }
        }
        moves
    }

    /// Nothing moves any more, and everybody has seen everything.
    fn at_the_end(&self, s: &Rc<World>, bad: &mut Found) {
        let live: Vec<_> = s.reps.iter().filter(|rep| rep.alive).collect();
        if live.is_empty() || live.iter().any(|rep| rep.seen != s.edits) {
            return;
        }
        let mut violated = |code, why| {
            bad.entry(code).or_insert_with(|| (Rc::clone(s), why));
        };
        let newest = self.truth(s.edits);
        let kind = self.kinds.get(&newest).copied().unwrap_or(Kind::Good);
        let have: BTreeSet<_> = live.iter().map(|rep| rep.published).collect();
        let stopped = s.lease.as_ref().map(|lease| lease.stopped.clone()).unwrap_or_default();
        let is_stopped = |of: Change| stopped.contains(&to(of));
        if let Some(lease) = s.lease.as_ref().filter(|lease| lease.is_under_way())
            && (live.iter().any(|rep| holder(rep.uid) == lease.holder) || lease.candidate == Some(to(newest)))
        {
            violated("P3-endless", String::new());
        }
        let undeleted = s.history_gone == self.history_gone && s.lease_gone == self.lease_gone;
        for rep in &live {
            let way_back = rep.base.is_some() && rep.base != rep.published;
            match rep.published {
                Some(of) if is_stopped(of) && way_back => violated("P2-stays", format!("{} {of}", rep.uid)),
                Some(of) if s.lease.is_some() && !s.good.contains(&of) && way_back => {
                    violated("KEEPS", format!("{} {of}", rep.uid));
                }
                None if undeleted && s.history.is_some() => violated("WAITS", format!("{}", rep.uid)),
                _ => {}
            }
        }
        if kind == Kind::Good && !is_stopped(newest) && have != BTreeSet::from([Some(newest)]) {
            violated("P3", format!("{have:?}"));
        }
        let known: BTreeSet<_> = have.iter().flatten().copied().collect();
        if kind != Kind::Good && known.len() > 1 && !known.is_subset(&s.good) && !self.fresh && undeleted {
            violated("P3-apart", format!("{have:?}"));
        }
    }

    /// How many states there are, and the shortest way to each violation.
    fn explore(&self, limit: usize) -> (usize, BTreeMap<&'static str, String>) {
        let start = Rc::new(self.start());
        let mut ways: HashMap<Rc<World>, Option<(Rc<World>, &'static str)>> = HashMap::new();
        ways.insert(Rc::clone(&start), None);
        let (mut todo, mut bad) = (vec![start], Found::new());
        while let (false, true) = (todo.is_empty(), ways.len() <= limit) {
            let mut after = Vec::new();
            for s in todo {
                let own = self.steps(&s, &mut bad);
                let moves: Vec<_> = own.into_iter().filter(|(_, next)| *next != *s).collect();
                if moves.is_empty() {
                    self.at_the_end(&s, &mut bad);
                }
                for (what, next) in moves.into_iter().chain(self.world(&s)) {
                    if !ways.contains_key(&next) {
                        let next = Rc::new(next);
                        ways.insert(Rc::clone(&next), Some((Rc::clone(&s), what)));
                        after.push(next);
                    }
                }
            }
            todo = after;
        }
        let mut found: BTreeMap<_, _> = bad
            .into_iter()
            .map(|(code, (end, why))| {
                let (mut at, mut way) = (&end, Vec::new());
                while let Some(Some((before, what))) = ways.get(at) {
                    way.push(*what);
                    at = before;
                }
                way.reverse();
                (code, format!("{why}: {}", way.join(" · ")))
            })
            .collect();
        if ways.len() > limit {
            found.insert("CUT", "more states than are tried".to_owned());
        }
        (ways.len(), found)
    }
}

fn written_to(
    s: &Rc<World>,
    i: usize,
    mut written: Lease,
    reason: Reason,
    lost: bool,
    with: &With,
    bad: &mut Found,
) -> World {
    let mut violated = |code| {
        bad.entry(code).or_insert_with(|| (Rc::clone(s), format!("{:?}", written.candidate)));
    };
    let rep = &s.reps[i];
    if reason == Reason::Done && rep.published.map(to) != written.candidate {
        violated("NOT-GOOD");
    }
    if reason == Reason::Rejected && s.lease.as_ref().is_some_and(|lease| lease.state == State::Done) {
        violated("UNDONE");
    }
    if written.good.iter().any(|good| written.stopped.contains(good)) {
        violated("BOTH");
    }
    written.renewals = 0;
    let mine = written.holder == holder(rep.uid);
    let mut next = with(&|rep| {
        rep.claimed = mine;
        if reason == Reason::Reverted {
            rep.reverted = None;
        }
    });
    if let Some(of) = written.candidate.map(change) {
        if matches!(reason, Reason::Claim | Reason::Replaced) {
            *next.claims.entry(of).or_default() += 1;
        }
        if written.state == State::Done {
            next.good.insert(of);
        }
        if written.state == State::Spreading {
            next.spread.insert(of);
        }
    }
    next.lease = Some(written);
    next.expiry -= u8::from(lost);
    next
}

fn fleet(n: u8, edits: &[Change], kinds: &[(Change, Kind)]) -> Fleet {
    Fleet { n, edits: edits.to_vec(), kinds: kinds.iter().copied().collect(), ..Fleet::default() }
}

fn all() -> Vec<Fleet> {
    use Kind::{Flaky, Good, Kill, Reject, Some as Part};
    let mut fleets = Vec::new();
    for kind in [Good, Reject, Part, Flaky, Kill] {
        let two = || fleet(2, &[1], &[(1, kind)]);
        fleets.push(Fleet { crash: 1, kill: 1, ..two() });
        fleets.push(Fleet { expiry: 2, ..two() });
        fleets.push(Fleet { people: vec![Person::Stop, Person::Retry], ..two() });
        fleets.push(Fleet { people: vec![Person::Promote], crash: 1, ..two() });
        fleets.push(Fleet { crash: 1, ..fleet(2, &[1, 0], &[(1, kind)]) });
        fleets.push(fleet(3, &[1], &[(1, kind)]));
    }
    for k2 in [Good, Reject, Part, Flaky] {
        for k1 in [Good, Reject, Flaky] {
            let kinds = &[(1, k1), (2, k2)];
            for edits in [&[1, 2][..], &[1, 2, 0], &[1, 2, 1]] {
                fleets.push(fleet(2, edits, kinds));
            }
            fleets.push(fleet(2, &[1, 0, 1], &[(1, k1)]));
            fleets.push(Fleet { kill: 1, ..fleet(2, &[1, 2], kinds) });
            fleets.push(Fleet { crash: 1, ..fleet(2, &[1, 2], kinds) });
        }
    }
    for kind in [Good, Reject, Part, Flaky] {
        let two = || fleet(2, &[1], &[(1, kind)]);
        fleets.push(Fleet { gone: 1, crash: 1, ..two() });
        fleets.push(Fleet { wipe: true, crash: 1, ..two() });
        fleets.push(Fleet { lease_gone: 1, ..two() });
        fleets.push(Fleet { kill: 2, ..two() });
        fleets.push(Fleet { history_gone: 1, kill: 1, ..two() });
        fleets.push(Fleet { wipe: true, crash: 1, ..fleet(2, &[1, 2], &[(1, kind)]) });
        fleets.push(Fleet { gone: 1, ..fleet(3, &[1], &[(1, kind)]) });
        fleets.push(Fleet { gone: 1, ..fleet(2, &[1, 0], &[(1, kind)]) });
        fleets.push(Fleet { kill: 1, ..fleet(2, &[1, 0, 2], &[(1, kind), (2, Reject)]) });
    }
    for k2 in [Good, Reject, Flaky] {
        for k1 in [Good, Reject] {
            let kinds = &[(1, k1), (2, k2)];
            fleets.push(fleet(3, &[1, 2], kinds));
            fleets.push(Fleet { crash: 1, kill: 1, ..fleet(2, &[1, 2], kinds) });
            let people = vec![Person::Stop, Person::Retry];
            fleets.push(Fleet { expiry: 1, people, ..fleet(2, &[1, 2], kinds) });
            fleets.push(Fleet { crash: 1, expiry: 1, ..fleet(2, &[1, 2, 0], kinds) });
        }
    }
    fleets.push(Fleet { fresh: true, crash: 1, kill: 1, ..fleet(2, &[1], &[]) });
    fleets.push(Fleet { fresh: true, ..fleet(3, &[1], &[]) });
    fleets.push(Fleet { fresh: true, ..fleet(2, &[1], &[(0, Reject)]) });
    fleets
}

/// Fleets with few states in each run; all of them with TRIMTAB_ROLLOUT_ALL.
#[test]
fn no_order_of_events_breaks_a_property() {
    let every = std::env::var_os("TRIMTAB_ROLLOUT_ALL").is_some();
    let limit = if every { 400_000 } else { 4_000 };
    let (mut states, mut count, mut cut, mut failed) = (0, 0, 0, Vec::new());
    for fleet in all() {
        let (found_states, mut found) = fleet.explore(limit);
        states += found_states;
        count += 1;
        // What was reached of a larger fleet counts as well: the search goes by the length of the way.
        cut += u32::from(found.contains_key("CUT") && !every);
        if !every {
            found.remove("CUT");
        }
        failed.extend(found.into_iter().map(|(code, way)| format!("{code} {fleet:?}\n    {way}")));
    }
    println!("{count} fleets, {cut} of them cut short, {states} states");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
