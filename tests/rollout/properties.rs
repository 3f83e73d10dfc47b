//! What must hold in each schedule, checked as it happens and at its end.

use std::collections::{BTreeMap, BTreeSet};

use trimtab::rollout::{Lease, Reason, State, Why};

use super::world::{Began, Harm, Kind, Moment, Number, Op, Person, Sim, What, digest, number};

/// How old a read may be that a rename stands on, and what a rename takes.
const FRESH: f64 = 5.0;

/// What is known of a schedule beyond the world's state.
#[derive(Default)]
pub struct Books {
    pub ever_good: BTreeSet<Number>,
    pub ever_spread: BTreeSet<Number>,
    pub first_time: BTreeSet<Number>,
    /// Who claimed a change, and who published it.
    pub claims: BTreeMap<Number, BTreeSet<usize>>,
    pub took: BTreeMap<Number, BTreeSet<usize>>,
    pub stopped_by_person: BTreeSet<Number>,
    pub lease_deleted: bool,
    pub published: BTreeMap<(usize, Number), u32>,
    pub violations: Vec<(&'static str, f64, String)>,
    /// What happened that is allowed, and worth a count.
    pub notes: BTreeMap<&'static str, u32>,
}

impl Sim {
    pub fn violated(&mut self, code: &'static str, why: impl FnOnce() -> String) {
        let t = self.t;
        self.books.violations.push((code, t, why()));
    }

    fn note(&mut self, note: &'static str) {
        *self.books.notes.entry(note).or_default() += 1;
    }

    fn index(&self, uid: &str) -> Option<usize> {
        self.pods.iter().position(|pod| pod.me.uid == uid)
    }

    fn did(&self, is: impl Fn(&Op) -> bool, harm: impl Fn(&Harm) -> bool) -> bool {
        self.trace.iter().any(|line| match &line.what {
            What::Op(op) => is(op) || matches!(op, Op::Hurt(_, done) if harm(done)),
            What::Trap(done) => harm(done),
            _ => false,
        })
    }

    fn settled_for(&self, length: f64) -> bool {
        let since = self.t - length;
        let quiet = |what: &What| matches!(what, What::Op(Op::Scale(_)) | What::Publish);
        self.server.lease.as_ref().is_some_and(|lease| !lease.is_under_way())
            && self.server.log.last().is_some_and(|(at, ..)| *at < since)
            && self.trace.iter().all(|line| line.t < since || quiet(&line.what))
            && self.server.down_until <= since
    }

    fn undisturbed(&self, i: usize, since: f64) -> bool {
        let pod = &self.pods[i];
        let disturbed = [pod.paused, pod.cut, pod.sick, pod.up_at, self.server.down_until];
        pod.up && !pod.terminating && disturbed.iter().all(|until| *until < since)
    }

    pub fn watch_lease(&mut self, old: Option<&Lease>, new: Option<&Lease>, who: Option<&str>, reason: Option<Reason>) {
        let Some(lease) = new else {
            self.say(What::Lease(None, None), || "deleted".to_owned());
            return;
        };
        let who = who.and_then(|uid| self.index(uid));
        let candidate = lease.candidate.map(number);
        let t = self.t;
        if reason != Some(Reason::Renew) {
            self.say(What::Lease(reason, candidate), || {
                let list = |changes: &[_]| changes.iter().map(|change| number(*change)).collect::<Vec<_>>();
                format!(
                    "{who:?} {reason:?} {candidate:?} {:?} held by {:?} points={} good={:?} stopped={:?}",
                    lease.state,
                    lease.holder,
                    lease.points,
                    list(&lease.good),
                    list(&lease.stopped)
                )
            });
        }
        if let (State::Spreading, Some(candidate)) = (lease.state, candidate) {
            self.books.ever_spread.insert(candidate);
        }
        if lease.good.iter().any(|change| lease.stopped.contains(change)) {
            self.violated("BOTH", || format!("{lease:?}"));
        }
        if let (Some(Reason::Claim), Some(i)) = (reason, who)
            && self.pods[i].me.owes
            && self.pods[i].me.published != lease.candidate
        {
            self.violated("UNFIT", || format!("{i} claims {candidate:?} without a verdict for what it has"));
        }
        if matches!(reason, Some(Reason::Claim | Reason::HoldersLost))
            && let Some(old) = old.filter(|old| old.is_under_way())
            && let Some(h) = self.index(&old.holder).filter(|h| Some(*h) != who)
        {
            let pod = &self.pods[h];
            let disturbed = [pod.paused, pod.cut, pod.up_at, pod.broken].into_iter().fold(0.0, f64::max);
            let lives = pod.alive && pod.up && t - pod.wiped > 60.0 && t - disturbed > 16.0;
            if lives && self.server.stale.0 <= t {
                self.violated("TAKEN", || format!("{} lives and was taken for lost by {who:?}", old.holder));
            }
        }
        if let (Some(Reason::Claim | Reason::Replaced), Some(candidate), Some(i)) = (reason, candidate, who) {
            self.books.claims.entry(candidate).or_default().insert(i);
        }
        if let (State::Done, Some(candidate)) = (lease.state, candidate) {
            if let (Some(Reason::Done), Some(i)) = (reason, who)
                && self.pods[i].me.published != lease.candidate
            {
                self.violated("NOT-GOOD", || format!("{candidate} done, and its holder does not have it"));
            }
            self.books.ever_good.insert(candidate);
        }
        if let (State::Stopped, Some(change)) = (lease.state, lease.candidate)
            && old.is_none_or(|old| !old.stopped.contains(&change))
        {
            self.push(t + 3.0 * self.poll + 30.0, move |sim| sim.are_back(number(change), t));
        }
        if reason == Some(Reason::HoldersLost) {
            self.note("stopped: holders lost");
        }
        if reason == Some(Reason::Rejected) && old.is_some_and(|old| old.state == State::Done) {
            self.violated("UNDONE", || format!("{candidate:?} stopped after done"));
        }
        if let (Some(Reason::Done | Reason::First | Reason::Reverted), Some(candidate), Some(i)) =
            (reason, candidate, who)
        {
            self.push(t + 30.0, move |sim| sim.is_kept(candidate, i, t));
        }
        if let Some(reason) = reason.filter(|reason| *reason != Reason::Renew) {
            self.happened(Moment::Wrote(reason), who);
        }
    }

    fn are_back(&mut self, change: Number, since: f64) {
        if self.books.lease_deleted {
            return;
        }
        let stopped = self.server.lease.as_ref().is_some_and(|lease| lease.stopped.contains(&digest(change)));
        for i in self.living() {
            let pod = &self.pods[i];
            let has_it = pod.me.published == Some(digest(change))
                && pod.me.base.is_some()
                && pod.me.base != pod.me.published
                && !pod.is_busy();
            if stopped && has_it && self.undisturbed(i, since) && self.server.stale.0 < since {
                self.violated("P2-late", || format!("{i} still has {change}, stopped at {since:.0}"));
            }
        }
    }

    pub fn went_back(&mut self, fleet: usize, content: Number, since: f64) {
        let meddled = |line: &super::world::Line| {
            line.t >= since
                && matches!(line.what, What::Op(Op::Person(_) | Op::Hurt(_, Harm::Person(_))) | What::Trap(_))
        };
        if self.trace.iter().any(meddled) || self.truths[fleet].last() != Some(&(since, content)) {
            return;
        }
        for i in self.living() {
            let pod = &self.pods[i];
            let change = Some(digest(content * 10 + pod.templates));
            let is_good =
                self.server.lease.as_ref().is_some_and(|lease| change.is_some_and(|c| lease.good.contains(&c)));
            let lacks = pod.me.published.is_some() && pod.me.published != change && pod.me.rejected != change;
            if pod.fleet == fleet && is_good && lacks && self.undisturbed(i, since) && pod.broken < since {
                self.violated("P6", || format!("{i} does not have {content}, known to be good, edited at {since:.0}"));
            }
        }
    }

    fn is_kept(&mut self, change: Number, i: usize, since: f64) {
        let is_done = self
            .server
            .lease
            .as_ref()
            .is_some_and(|lease| lease.state == State::Done && lease.candidate == Some(digest(change)));
        let pod = &self.pods[i];
        let has_it = pod.alive && pod.me.newest == Some(digest(change)) && pod.me.published == pod.me.newest;
        let deleted = self.books.lease_deleted || self.did(|op| *op == Op::DeleteHistory, |_| false);
        let kept = self.server.history.is_some_and(|(_, known, _)| known == change);
        if is_done && has_it && self.undisturbed(i, since) && pod.broken < since && !deleted && !kept {
            let history = self.server.history;
            self.violated("HISTORY-late", || format!("{change} done at {since:.0}, the history has {history:?}"));
        }
    }

    pub fn watch_publish(&mut self, i: usize, change: Number, began: Began) {
        let count = self.books.published.entry((i, change)).or_default();
        *count += 1;
        if *count == 9 {
            self.violated("FLAPS", || format!("{i} publishes {change} again and again"));
        }
        self.happened(Moment::Publish, Some(i));
        let from = self.pods[i].me.published.map(number);
        self.say(What::Publish, || format!("{i} {change} {began:?} from {from:?}"));
        match began {
            Began::Back | Began::Resume => return,
            Began::Go(Why::First) => {
                self.books.first_time.insert(change);
                if self.pods[i].me.base.is_some() {
                    self.violated("FIRST", || format!("{i} goes {change} as if nobody had anything"));
                }
                return;
            }
            Began::History => {
                self.watch_history(i, change);
                return;
            }
            Began::Go(Why::Hold | Why::Spread | Why::Good) => {}
        }
        let t = self.t;
        let stopped = |lease: &Option<Lease>| lease.as_ref().is_some_and(|l| l.stopped.contains(&digest(change)));
        if stopped(&self.server.lease) {
            let since = self.server.log.iter().rev().take_while(|(.., lease)| stopped(lease)).last();
            if since.is_some_and(|(at, ..)| t - at <= FRESH + 1.0) {
                self.note("published within 6 s of the stop");
            } else {
                self.violated("P2", || format!("{i} publishes {change} ({began:?}) after it was stopped"));
            }
        }
        let claimed = self.books.claims.get(&change).map_or(0, BTreeSet::len).max(1);
        let known = |books: &Books| books.ever_good.contains(&change) || books.first_time.contains(&change);
        if !known(&self.books) && !self.books.ever_spread.contains(&change) {
            let having = |o: &&usize| {
                let me = &self.pods[**o].me;
                **o != i && me.published == Some(digest(change)) && me.published != me.base
            };
            let count = 1 + self.living().iter().filter(having).count();
            if count > claimed {
                if self.books.lease_deleted {
                    self.note("Lease deleted: two have it");
                } else {
                    self.violated("P1", || format!("{change} on {count} living Pods, {claimed} claimed it"));
                }
            }
        }
        let took = self.books.took.entry(change).or_default();
        took.insert(i);
        let took = took.len();
        let harms = matches!(self.kinds.get(&(change / 10)), Some(Kind::Reject | Kind::Kill | Kind::Evict));
        if harms && !known(&self.books) && !self.books.lease_deleted && took > claimed {
            self.violated("P1-harm", || format!("{took} Pods took bad {change}, {claimed} claimed it"));
        }
    }

    fn watch_history(&mut self, i: usize, change: Number) {
        let fleet = usize::try_from(change / 1000).unwrap();
        if fleet != self.pods[i].fleet {
            self.violated("FOREIGN", || format!("{i} starts from what another fleet has"));
        } else if !self.books.ever_good.iter().any(|good| good / 10 == change / 10) {
            self.violated("HISTORY", || format!("{i} starts from {change}, which never was good"));
        } else if self.settled_for(120.0) {
            let others = self.living().into_iter().filter(|o| *o != i);
            let bases: BTreeSet<_> =
                others.filter_map(|o| self.pods[o].me.base).map(|base| number(base) / 10).collect();
            if !bases.is_empty() && !bases.contains(&(change / 10)) {
                self.violated("HISTORY-old", || format!("{i} starts from {change}, and nobody has that"));
            }
        }
    }

    #[expect(clippy::too_many_lines, reason = "a list of what is allowed to end otherwise")]
    pub fn at_the_end(&mut self, fleet: usize) {
        let lease = self.server.lease.clone();
        let live: Vec<_> = self.living();
        let live: Vec<_> =
            live.into_iter().filter(|i| self.pods[*i].sick <= self.t && self.pods[*i].fleet == fleet).collect();
        let Some((_, newest)) = self.truths[fleet].last().copied().filter(|_| !live.is_empty()) else { return };
        let kind = self.kinds.get(&newest).copied().unwrap_or(Kind::Good);
        let content = |change: Option<_>| change.map(|change| number(change) / 10);
        let contents: BTreeSet<_> = live.iter().map(|i| content(self.pods[*i].me.published)).collect();
        let none = contents.contains(&None);
        let all: BTreeSet<Number> = contents.iter().flatten().copied().collect();
        let in_lease = |list: fn(&Lease) -> &Vec<_>| lease.as_ref().map(list).cloned().unwrap_or_default();
        let stopped = in_lease(|lease| &lease.stopped);
        let stopped_contents: BTreeSet<_> = stopped.iter().map(|change| number(*change) / 10).collect();
        let contents_of =
            |changes: &BTreeSet<Number>| changes.iter().map(|change| change / 10).collect::<BTreeSet<_>>();
        let was_good = contents_of(&self.books.ever_good);
        let first_time = contents_of(&self.books.first_time);
        let by_person = contents_of(&self.books.stopped_by_person);
        let person = |which: Person| {
            self.did(
                |op| *op == Op::Person(which),
                |harm| *harm == Harm::Person(which) || which == Person::Stop && matches!(harm, Harm::PauseAndStop(_)),
            )
        };
        let (promoted, person_stopped) = (person(Person::Promote), person(Person::Stop));
        let fixed = self.did(|op| matches!(op, Op::Fix(_)), |_| false);
        let deleted = self.books.lease_deleted || self.did(|op| *op == Op::DeleteHistory, |_| false);
        if self.server.history.is_none() && live.iter().any(|i| self.pods[*i].me.base.is_none()) {
            self.note("never had anything good, no history");
            return;
        }
        for i in &live {
            let me = &self.pods[*i].me;
            let way_back = me.base.is_some() && me.base != me.published;
            if let Some(published) = me.published.filter(|published| stopped.contains(published) && way_back) {
                self.violated("P2-stays", || format!("{i} still has stopped {}", number(published)));
            }
        }
        let deadly = matches!(kind, Kind::Kill | Kind::Evict);
        if kind != Kind::Good && promoted && none || deadly && was_good.contains(&newest) {
            self.note("a person promoted a bad change");
            return;
        }
        if none {
            let unusable = self.server.history.is_none_or(|(content, ..)| {
                let waiting = live.iter().filter(|i| self.pods[**i].me.published.is_none());
                waiting.clone().all(|i| stopped.contains(&digest(content * 10 + self.pods[*i].templates)))
            });
            if deleted || unusable {
                self.note("no usable history: a new Pod waits");
            } else {
                self.violated("WAITS", || format!("of {live:?} some never got anything"));
            }
        }
        if deleted && (contents.len() > 1 || kind != Kind::Good) {
            self.note("Lease or history deleted");
            return;
        }
        if kind != Kind::Good && was_good.contains(&newest) {
            self.note("bad, seen only after done");
            return;
        }
        if fixed && live.iter().any(|i| self.pods[*i].me.rejected == self.pods[*i].me.newest) {
            self.note("fixed, and nobody asked for another try");
            return;
        }
        if contents.len() > 1 && !none {
            let known = all.iter().all(|content| was_good.contains(content) || first_time.contains(content));
            if (kind != Kind::Good || person_stopped) && known {
                self.note("two good states until the next good change");
            } else {
                self.violated("P3-apart", || format!("{contents:?}"));
            }
        }
        if kind == Kind::Good && !by_person.contains(&newest) {
            if stopped_contents.contains(&newest) {
                let lost = |line: &super::world::Line| matches!(line.what, What::Lease(Some(Reason::HoldersLost), Some(change)) if change / 10 == newest);
                if self.trace.iter().any(lost) {
                    self.note("good, stopped: two holders lost without a word");
                } else if !person_stopped && !fixed {
                    self.violated("P3-stopped", || format!("good {newest} was stopped"));
                }
            } else if !none && all != BTreeSet::from([newest]) {
                self.violated("P3", || format!("good {newest} did not reach all: {contents:?}"));
            }
        }
        let bad = matches!(kind, Kind::Reject | Kind::Kill | Kind::Flaky | Kind::Evict);
        if bad && all.contains(&newest) && !first_time.contains(&newest) && !was_good.contains(&newest) {
            self.violated("BAD", || format!("bad {newest} stays in use"));
        }
        if let Some(lease) = lease.filter(Lease::is_under_way) {
            let waits = |i: &usize| {
                let me = &self.pods[*i].me;
                me.uid == lease.holder && me.claimed || me.newest == lease.candidate && me.newest != me.base
            };
            if live.iter().any(waits) {
                self.violated("P3-endless", || format!("{:?} for ever", lease.state));
            } else {
                self.note("a dead holder's Lease, at rest");
            }
        }
        for i in live {
            let since = self.until - 250.0;
            let asked = self.requests[i].iter().filter(|at| **at > since).count();
            let me = &self.pods[i].me;
            let allowed = if me.newest != me.published || me.base.is_none() { 3 } else { 0 };
            if asked > allowed {
                let me = me.clone();
                self.violated("P5", || format!("{i} asked {asked} times in the last 250 s: {me:?}"));
                break;
            }
        }
    }
}
