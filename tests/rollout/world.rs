//! A world that misbehaves: clocks that drift, lost answers whose write happened, stale reads, outages, pauses, kills
//! between any two steps, rolling updates, deleted Leases, and people.
//!
//! A change is a number: content * 10 + version of the templates. Seconds everywhere, virtual ones.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use trimtab::model::digest::{Digest, Hasher};
use trimtab::rollout::{Dice, Effect, Event, Found, Lease, Reason, Replica, Reply, Rollout, State, Timing, Why};

/// `--confirm-timeout`.
pub const CONFIRM: f64 = 30.0;

/// A change as a number.
pub type Number = u32;

pub fn digest(change: Number) -> Digest {
    let mut bytes = [1; 32];
    bytes[..4].copy_from_slice(&change.to_be_bytes());
    Digest::from_bytes(bytes)
}

pub fn number(change: Digest) -> Number {
    let bytes = change.as_bytes();
    Number::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// What a content does to a main process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Good,
    /// Its confirmation fails.
    Reject,
    /// That fails at half of the Pods.
    Some,
    /// Confirmed, and fails in the bake.
    Flaky,
    /// The Pod dies of it.
    Kill,
    /// The Pod is evicted for it, with SIGTERM.
    Evict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Person {
    Promote,
    Stop,
    Retry,
}

/// What happens to one Pod, and sometimes to all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Harm {
    Crash,
    /// It loses its disk as well.
    Wipe,
    Kill,
    Delete,
    Pause(f64),
    PauseAndStop(f64),
    /// No network.
    Cut(f64),
    /// Its main process cannot be reached.
    Sick(f64),
    /// It sees no sources.
    Broken(f64),
    Down(f64),
    Person(Person),
    Edit(Number),
}

/// What somebody does, or what happens, at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    Edit(Number),
    Person(Person),
    Down(f64),
    Stale(f64, f64),
    DeleteLease,
    DeleteHistory,
    Scale(usize),
    Templates(Number),
    Roll,
    KillHolder {
        soft: bool,
    },
    CrashHolder,
    PauseHolder(f64),
    ScaleAwayHolder,
    /// What a content does to a main process becomes good.
    Fix(Number),
    Hurt(usize, Harm),
    /// When this happens next, that.
    Trap(Moment, Harm),
}

/// What a trap waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Start(Why),
    StartHistory,
    StartBack,
    Publish,
    Reject,
    Wrote(Reason),
}

/// A schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub seed: u64,
    pub ops: Vec<(f64, Op)>,
    pub kinds: BTreeMap<Number, Kind>,
    pub n: usize,
    /// Mounted volumes: each replica sees an edit at a time of its own.
    pub mount: bool,
    pub spread: f64,
    /// Several fleets with one NAME, and how many replicas each has.
    pub fleets: Vec<usize>,
}

/// A line of what happened.
#[derive(Clone, Debug)]
pub struct Line {
    pub t: f64,
    pub what: What,
    /// Only where somebody looks.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum What {
    Op(Op),
    Trap(Harm),
    Lease(Option<Reason>, Option<Number>),
    Publish,
    Reject,
}

/// The API server: the Lease, the history, and a log from which stale reads are answered.
pub struct Server {
    pub lease: Option<Lease>,
    pub version: u64,
    pub log: Vec<(f64, u64, Option<Lease>)>,
    /// Content, change and fleet.
    pub history: Option<(Number, Number, usize)>,
    pub down_until: f64,
    pub stale: (f64, f64),
}

/// Why a transaction began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Began {
    Go(Why),
    Back,
    History,
    Resume,
}

#[derive(Clone, Copy, Debug)]
struct Transaction {
    id: u64,
    change: Number,
    began: Began,
}

/// One replica.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
pub struct Pod {
    pub templates: Number,
    pub fleet: usize,
    dice: Dice,
    rate: f64,
    pub alive: bool,
    pub up: bool,
    pub up_at: f64,
    pub terminating: bool,
    epoch: u64,
    pub paused: f64,
    pub cut: f64,
    pub sick: f64,
    pub broken: f64,
    pub wiped: f64,
    seen: Option<usize>,
    /// What is on its disk, and `newest`.
    pub me: Replica,
    confirmed_last: Option<Digest>,
    reverted_to: Option<Digest>,
    rollout: Rollout,
    started: f64,
    transaction: Option<Transaction>,
    retrying: bool,
    arm: u64,
}

type Job = Box<dyn FnOnce(&mut Sim)>;

struct Due(f64, u64, Job);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

/// A fleet and its world.
pub struct Sim {
    pub t: f64,
    pub dice: Dice,
    queue: BinaryHeap<Reverse<Due>>,
    pushed: u64,
    pub steps: u64,
    pub bake: f64,
    pub spread: f64,
    pub poll: f64,
    pub mount: bool,
    pub kinds: BTreeMap<Number, Kind>,
    pub truths: Vec<Vec<(f64, Number)>>,
    templates: Number,
    pub server: Server,
    pub pods: Vec<Pod>,
    pub requests: Vec<Vec<f64>>,
    pub trace: Vec<Line>,
    traps: Vec<(Moment, Harm)>,
    target: usize,
    pub until: f64,
    pub loud: bool,
    seed: u64,
    pub books: super::properties::Books,
}

pub fn between(dice: &mut Dice, low: f64, high: f64) -> f64 {
    low + (high - low) * dice.fraction()
}

pub fn choice<T: Copy>(dice: &mut Dice, of: &[T]) -> T {
    of[usize::try_from(dice.roll() % of.len() as u64).unwrap()]
}

/// A number that depends on these words alone.
fn hash(words: &[&str]) -> u64 {
    let mut hasher = Hasher::plain();
    for word in words {
        hasher.field(word.as_bytes());
    }
    u64::from_be_bytes(hasher.finish().as_bytes()[..8].try_into().unwrap())
}

impl Server {
    fn get(&self, t: f64, lag: f64) -> (u64, Option<Lease>) {
        let found = self.log.iter().rev().find(|(at, ..)| *at <= t - lag);
        found.map(|(_, version, lease)| (*version, lease.clone())).unwrap_or_default()
    }
}

impl Pod {
    pub fn is_busy(&self) -> bool {
        self.transaction.is_some() && !self.retrying
    }

    fn now(&self, t: f64) -> Duration {
        Duration::from_secs_f64(((t - self.started) * self.rate).max(0.0))
    }

    /// As the rollout is given it.
    fn facts(&self) -> Replica {
        let reverted = self.reverted_to.is_some() && self.reverted_to == self.me.published;
        Replica { busy: self.is_busy(), reverted, ..self.me.clone() }
    }
}

impl Sim {
    pub fn new(schedule: &Schedule, loud: bool) -> Self {
        let spread = schedule.spread;
        let mut sim = Self {
            t: 0.0,
            dice: Dice::new(schedule.seed.wrapping_mul(2).wrapping_add(1)),
            queue: BinaryHeap::new(),
            pushed: 0,
            steps: 0,
            bake: 60.0,
            spread,
            poll: (spread / 20.0).clamp(5.0, 60.0),
            mount: schedule.mount,
            kinds: schedule.kinds.clone(),
            truths: Vec::new(),
            templates: 0,
            server: Server {
                lease: None,
                version: 0,
                log: vec![(0.0, 0, None)],
                history: None,
                down_until: 0.0,
                stale: (0.0, 0.0),
            },
            pods: Vec::new(),
            requests: Vec::new(),
            trace: Vec::new(),
            traps: Vec::new(),
            target: 0,
            until: 0.0,
            loud,
            seed: schedule.seed,
            books: super::properties::Books::default(),
        };
        let fleets = if schedule.fleets.is_empty() { vec![schedule.n] } else { schedule.fleets.clone() };
        for (fleet, count) in fleets.into_iter().enumerate() {
            sim.truths.push(vec![(0.0, 100 * Number::try_from(fleet).unwrap())]);
            for _ in 0..count {
                sim.new_pod(fleet);
            }
        }
        sim.target = sim.pods.len();
        let mut last: f64 = 0.0;
        for (t, op) in schedule.ops.clone() {
            sim.push(t, move |sim| sim.op(op));
            last = last.max(t + op.length());
        }
        sim.until = last + 300.0 + 6.0 * (sim.bake + spread + CONFIRM + 3.0 * sim.poll + 30.0);
        sim
    }

    pub fn run(mut self) -> Self {
        while self.queue.peek().is_some_and(|Reverse(due)| due.0 <= self.until) {
            let Some(Reverse(Due(t, _, job))) = self.queue.pop() else { break };
            self.t = t;
            job(&mut self);
            self.steps += 1;
            if self.steps > 400_000 {
                self.violated("LOOP", String::new);
                break;
            }
        }
        self.t = self.until;
        for fleet in 0..self.truths.len() {
            self.at_the_end(fleet);
        }
        self
    }

    pub fn push(&mut self, t: f64, job: impl FnOnce(&mut Self) + 'static) {
        self.pushed += 1;
        self.queue.push(Reverse(Due(t, self.pushed, Box::new(job))));
    }

    pub fn say(&mut self, what: What, text: impl FnOnce() -> String) {
        let text = if self.loud { text() } else { String::new() };
        self.trace.push(Line { t: self.t, what, text });
    }

    pub fn kind(&self, change: Number, pod: usize) -> Kind {
        let content = change / 10;
        match self.kinds.get(&content).copied().unwrap_or(Kind::Good) {
            Kind::Some if hash(&[&self.pods[pod].me.uid, &content.to_string()]).is_multiple_of(2) => Kind::Reject,
            Kind::Some => Kind::Good,
            kind => kind,
        }
    }

    pub fn living(&self) -> Vec<usize> {
        (0..self.pods.len()).filter(|i| self.pods[*i].alive).collect()
    }

    // Pods.

    fn timing(&self) -> Timing {
        let seconds = Duration::from_secs_f64;
        Timing { bake: seconds(self.bake), spread: seconds(self.spread), confirm: seconds(CONFIRM), gated: false }
    }

    fn new_pod(&mut self, fleet: usize) -> usize {
        let i = self.pods.len();
        let uid = format!("u{}", i + 1);
        let mut dice = Dice::new(hash(&[&self.seed.to_string(), &uid]));
        let rate = between(&mut dice, 0.98, 1.02);
        let rollout = Rollout::new(self.timing(), dice.roll());
        self.pods.push(Pod {
            templates: self.templates,
            fleet,
            dice,
            rate,
            alive: true,
            up: true,
            up_at: self.t,
            terminating: false,
            epoch: 0,
            paused: 0.0,
            cut: 0.0,
            sick: 0.0,
            broken: 0.0,
            wiped: -99.0,
            seen: None,
            me: Replica { uid, ..Replica::default() },
            confirmed_last: None,
            reverted_to: None,
            rollout,
            started: self.t,
            transaction: None,
            retrying: false,
            arm: 0,
        });
        self.requests.push(Vec::new());
        let wait = self.dice_of(i, 1.0, 5.0);
        self.after(i, wait, move |sim| sim.first_sync(i));
        i
    }

    fn dice_of(&mut self, i: usize, low: f64, high: f64) -> f64 {
        between(&mut self.pods[i].dice, low, high)
    }

    /// Does something in a Pod, if it still lives then, once it is not paused.
    fn after(&mut self, i: usize, delay: f64, job: impl FnOnce(&mut Self) + 'static) {
        let (t, epoch) = (self.t + delay / self.pods[i].rate, self.pods[i].epoch);
        self.at(i, t, epoch, job);
    }

    fn at(&mut self, i: usize, t: f64, epoch: u64, job: impl FnOnce(&mut Self) + 'static) {
        self.push(t, move |sim| sim.fire(i, epoch, job));
    }

    fn fire(&mut self, i: usize, epoch: u64, job: impl FnOnce(&mut Self) + 'static) {
        let pod = &self.pods[i];
        if !pod.alive || pod.epoch != epoch {
            return;
        }
        if pod.paused > self.t {
            let until = pod.paused;
            self.at(i, until, epoch, job);
        } else {
            job(self);
        }
    }

    fn first_sync(&mut self, i: usize) {
        let truth = &self.truths[self.pods[i].fleet];
        let mut version = truth.len() - 1;
        if self.mount && version > 0 && self.t - truth[version].0 < 60.0 && self.pods[i].dice.fraction() < 0.3 {
            version -= 1;
            let wait = self.dice_of(i, 5.0, 60.0);
            self.after(i, wait, move |sim| {
                let newest = sim.truths[sim.pods[i].fleet].len() - 1;
                sim.see(i, newest);
            });
        }
        let version = version.max(self.pods[i].seen.unwrap_or(0));
        self.see(i, version);
        let pod = &self.pods[i];
        if pod.me.owes && pod.transaction.is_none() && pod.me.published.is_some() {
            self.resume(i);
        }
    }

    fn resume(&mut self, i: usize) {
        let me = &self.pods[i].me;
        let Some(published) = me.published else { return };
        let began = if me.base == Some(published) { Began::Back } else { Began::Resume };
        let transaction = self.begin(i, number(published), began);
        self.judge(i, transaction);
    }

    fn begin(&mut self, i: usize, change: Number, began: Began) -> Transaction {
        self.pushed += 1;
        let transaction = Transaction { id: self.pushed, change, began };
        self.pods[i].transaction = Some(transaction);
        self.pods[i].retrying = false;
        transaction
    }

    fn see(&mut self, i: usize, version: usize) {
        if self.pods[i].broken > self.t {
            let wait = self.pods[i].broken - self.t + 1.0;
            self.after(i, wait, move |sim| sim.see(i, version));
            return;
        }
        if self.pods[i].seen.is_some_and(|seen| version < seen) {
            return;
        }
        let content = self.truths[self.pods[i].fleet][version].1;
        let pod = &mut self.pods[i];
        pod.seen = Some(version);
        let newest = Some(digest(content * 10 + pod.templates));
        if newest == pod.me.newest {
            return;
        }
        pod.me.newest = newest;
        if pod.me.rejected != newest {
            pod.me.rejected = None;
        }
        self.on(i, Event::Saw);
    }

    // The rollout's machine.

    fn on(&mut self, i: usize, event: Event) {
        let pod = &mut self.pods[i];
        let (now, facts) = (pod.now(self.t), pod.facts());
        let effects = pod.rollout.on(now, &facts, event);
        let epoch = pod.epoch;
        for effect in effects {
            // Killed by a trap: what follows is not done.
            if self.pods[i].epoch != epoch {
                return;
            }
            self.carry_out(i, effect);
        }
    }

    fn carry_out(&mut self, i: usize, effect: Effect) {
        match effect {
            Effect::Wake(at) => {
                let pod = &mut self.pods[i];
                pod.arm += 1;
                let (arm, wait) = (pod.arm, (at.as_secs_f64() - pod.now(self.t).as_secs_f64()).max(0.0) + 1e-6);
                self.after(i, wait, move |sim| {
                    if sim.pods[i].arm == arm {
                        sim.on(i, Event::Woke);
                    }
                });
            }
            Effect::Read { quorum } => self.call(
                i,
                move |sim| {
                    let lag = if quorum {
                        0.0
                    } else if sim.t < sim.server.stale.0 {
                        sim.server.stale.1
                    } else {
                        choice(&mut sim.dice, &[0.0, 0.0, 0.0, 0.5, 2.0])
                    };
                    let (version, lease) = sim.server.get(sim.t, lag);
                    lease.map(|lease| (version.to_string(), lease))
                },
                Event::Read,
            ),
            Effect::Write { lease, version, reason } => {
                let (bytes, uid) = (lease.clone(), self.pods[i].me.uid.clone());
                self.call(
                    i,
                    move |sim| {
                        let known = sim.server.lease.is_some().then(|| sim.server.version.to_string());
                        if known != version {
                            return None;
                        }
                        // Another write may follow at once.
                        let written = sim.server.version + 1;
                        sim.set(Some(&bytes), Some(&uid), Some(reason));
                        Some(written.to_string())
                    },
                    Event::Wrote,
                );
            }
            Effect::ReadHistory => self.call(
                i,
                move |sim| {
                    let (content, change, fleet) = sim.server.history?;
                    let pod = &sim.pods[i];
                    let mine = digest(content * 10 + pod.templates);
                    Some(Found { change: digest(change), mine, is_ours: fleet == pod.fleet })
                },
                Event::HistoryRead,
            ),
            Effect::WriteHistory(change) => {
                let change = number(change);
                self.call(
                    i,
                    move |sim| sim.server.history = Some((change / 10, change, sim.pods[i].fleet)),
                    Event::HistoryWritten,
                );
            }
            Effect::Go(change, why) => self.start(i, change, Began::Go(why)),
            Effect::Back => {
                if let Some(base) = self.pods[i].me.base {
                    self.start(i, base, Began::Back);
                }
            }
            Effect::StartFromHistory(change) => self.start(i, change, Began::History),
            Effect::Publish(change) => {
                if let Some(transaction) = self.pods[i].transaction
                    && digest(transaction.change) == change
                {
                    self.publish(i, transaction);
                }
            }
            Effect::Drop(_) => self.pods[i].transaction = None,
            Effect::Settle => self.pods[i].me.base = self.pods[i].me.published,
            Effect::ForgetRejection => {
                let pod = &mut self.pods[i];
                pod.me.rejected = None;
                if pod.me.published == pod.me.newest && !pod.me.confirmed && pod.transaction.is_none() {
                    self.resume(i);
                }
            }
            Effect::Claimed(claimed) => self.pods[i].me.claimed = claimed,
            Effect::RevertIsKnown => self.pods[i].reverted_to = None,
        }
    }

    fn call<T: 'static>(
        &mut self,
        i: usize,
        work: impl FnOnce(&mut Self) -> T + 'static,
        event: impl FnOnce(Reply<T>) -> Event + 'static,
    ) {
        let t = self.t;
        self.requests[i].push(t);
        let (there, back) = (self.dice_of(i, 0.002, 0.1), self.dice_of(i, 0.002, 0.1));
        let pod = &mut self.pods[i];
        let (lost, applied) = (pod.dice.fraction() < 0.01, pod.dice.fraction() < 0.5);
        let epoch = pod.epoch;
        self.push(t + there, move |sim| {
            let t = sim.t;
            if sim.server.down_until > t || sim.pods[i].cut > t {
                sim.at(i, t + 1.0, epoch, move |sim| sim.on(i, event(Reply::Failed(Duration::ZERO))));
            } else if lost {
                if applied {
                    work(sim);
                }
                sim.at(i, t + 4.0, epoch, move |sim| sim.on(i, event(Reply::Lost(Duration::ZERO))));
            } else {
                let value = work(sim);
                sim.at(i, t + back, epoch, move |sim| sim.on(i, event(Reply::Answered(value))));
            }
        });
    }

    // The transaction, which is the first machine's.

    fn start(&mut self, i: usize, change: Digest, began: Began) {
        if Some(change) == self.pods[i].me.published && began == Began::Back {
            return;
        }
        let transaction = self.begin(i, number(change), began);
        let moment = match began {
            Began::Go(why) => Moment::Start(why),
            Began::Back | Began::Resume => Moment::StartBack,
            Began::History => Moment::StartHistory,
        };
        self.happened(moment, Some(i));
        let wait = self.dice_of(i, 0.05, 0.5);
        self.after(i, wait, move |sim| sim.prepared(i, transaction));
    }

    fn is_current(&self, i: usize, transaction: Transaction) -> bool {
        self.pods[i].transaction.is_some_and(|current| current.id == transaction.id)
    }

    fn prepared(&mut self, i: usize, transaction: Transaction) {
        if !self.is_current(i, transaction) {
            return;
        }
        if matches!(transaction.began, Began::Go(_)) {
            if self.pods[i].terminating {
                self.pods[i].transaction = None;
            } else {
                self.on(i, Event::Ready(digest(transaction.change)));
            }
        } else {
            self.publish(i, transaction);
        }
    }

    fn publish(&mut self, i: usize, transaction: Transaction) {
        let Transaction { change, began, .. } = transaction;
        if began == Began::Go(Why::Good) && self.pods[i].me.published.is_some() {
            self.pods[i].reverted_to = Some(digest(change));
        }
        let epoch = self.pods[i].epoch;
        self.watch_publish(i, change, began);
        // Killed right before the rename.
        if !self.pods[i].alive || self.pods[i].epoch != epoch || !self.is_current(i, transaction) {
            return;
        }
        let me = &mut self.pods[i].me;
        (me.published, me.confirmed, me.owes) = (Some(digest(change)), false, true);
        if matches!(began, Began::Back | Began::History) {
            me.base = Some(digest(change));
        }
        self.judge(i, transaction);
    }

    fn judge(&mut self, i: usize, transaction: Transaction) {
        let Transaction { change, began, .. } = transaction;
        let soft = match self.kind(change, i) {
            Kind::Kill => Some((0.5, 10.0, false)),
            Kind::Evict => Some((10.0, 45.0, true)),
            _ => None,
        };
        if let Some((low, high, soft)) = soft.filter(|_| began != Began::History) {
            let wait = self.dice_of(i, low, high);
            self.push(self.t + wait, move |sim| {
                if sim.pods[i].alive && sim.pods[i].me.published == Some(digest(change)) {
                    let back = sim.dice_of(i, 2.0, 20.0);
                    sim.kill(i, Some(back), soft);
                }
            });
        }
        let wait = self.dice_of(i, 2.0, 8.0);
        self.after(i, wait, move |sim| sim.verdict(i, transaction));
    }

    fn verdict(&mut self, i: usize, transaction: Transaction) {
        if !self.is_current(i, transaction) {
            return;
        }
        if self.pods[i].sick > self.t {
            self.pods[i].retrying = true;
            self.after(i, 5.0, move |sim| sim.verdict(i, transaction));
            self.on(i, Event::Verdict);
            return;
        }
        let Transaction { change, began, .. } = transaction;
        let kind = self.kind(change, i);
        (self.pods[i].transaction, self.pods[i].retrying) = (None, false);
        if kind == Kind::Reject && began != Began::Back {
            self.reject(i, change);
        } else {
            let pod = &mut self.pods[i];
            (pod.me.confirmed, pod.me.owes, pod.confirmed_last) = (true, false, Some(digest(change)));
            if kind == Kind::Flaky {
                let wait = self.dice_of(i, 10.0, 40.0);
                self.after(i, wait, move |sim| sim.fails_late(i, change));
            }
        }
        if self.pods[i].alive {
            self.on(i, Event::Verdict);
        }
    }

    /// What the holder sees in the bake.
    fn fails_late(&mut self, i: usize, change: Number) {
        let pod = &self.pods[i];
        let is_published = pod.me.published == Some(digest(change)) && pod.me.confirmed;
        if is_published && pod.rollout.bakes(&pod.me.uid, digest(change)) {
            self.reject(i, change);
            if self.pods[i].alive {
                self.on(i, Event::Verdict);
            }
        }
    }

    fn reject(&mut self, i: usize, change: Number) {
        let uid = self.pods[i].me.uid.clone();
        self.say(What::Reject, || format!("{uid} {change}"));
        let change = Some(digest(change));
        let pod = &mut self.pods[i];
        (pod.me.rejected, pod.me.rejected_at, pod.me.owes) = (change, pod.rollout.retries(), false);
        let back = pod.me.base.filter(|base| Some(*base) != change);
        let last = pod.confirmed_last.filter(|last| Some(*last) != change && pod.me.base.is_none());
        match back.or(last) {
            Some(good) => (pod.me.published, pod.me.confirmed) = (Some(good), true),
            None => pod.me.confirmed = false,
        }
        // After what must be one step: the rejection and what is gone back to are in one journal.
        self.happened(Moment::Reject, Some(i));
    }

    fn crash(&mut self, i: usize) {
        let pod = &mut self.pods[i];
        pod.epoch += 1;
        pod.up = false;
        pod.me.newest = None;
        pod.transaction = None;
        pod.retrying = false;
        let (epoch, wait) = (pod.epoch, between(&mut pod.dice, 0.5, 15.0));
        self.push(self.t + wait, move |sim| sim.restart(i, epoch));
    }

    fn restart(&mut self, i: usize, epoch: u64) {
        if !self.pods[i].alive || self.pods[i].epoch != epoch {
            return;
        }
        let (t, timing) = (self.t, self.timing());
        let pod = &mut self.pods[i];
        (pod.up, pod.up_at, pod.started) = (true, t + 5.0, t);
        pod.rollout = Rollout::new(timing, pod.dice.roll());
        self.on(i, Event::Started);
        let wait = self.dice_of(i, 0.2, 2.0);
        self.after(i, wait, move |sim| sim.first_sync(i));
    }

    // The world.

    pub fn set(&mut self, lease: Option<&Lease>, who: Option<&str>, reason: Option<Reason>) {
        self.server.version += 1;
        let old = std::mem::replace(&mut self.server.lease, lease.cloned());
        // What goes over the wire is what is read.
        if let Some(lease) = lease {
            let read = Lease::parse(Some(&lease.holder), &lease.annotations());
            if read.as_ref() != Ok(lease) {
                self.violated("UNREADABLE", || format!("{lease:?}"));
            }
        }
        self.server.log.push((self.t, self.server.version, lease.cloned()));
        self.watch_lease(old.as_ref(), lease, who, reason);
    }

    pub fn kill(&mut self, i: usize, back: Option<f64>, soft: bool) {
        if !self.pods[i].alive || self.pods[i].terminating {
            return;
        }
        if !soft {
            self.gone(i, back);
            return;
        }
        self.pods[i].terminating = true;
        if self.pods[i].up {
            self.after(i, 0.01, move |sim| sim.on(i, Event::Ending));
        }
        let wait = self.dice_of(i, 0.5, 3.0);
        self.push(self.t + wait, move |sim| sim.gone(i, back));
    }

    fn gone(&mut self, i: usize, back: Option<f64>) {
        if !self.pods[i].alive {
            return;
        }
        self.pods[i].alive = false;
        self.pods[i].epoch += 1;
        if let Some(back) = back.filter(|_| self.living().len() < self.target) {
            let fleet = self.pods[i].fleet;
            self.push(self.t + back, move |sim| {
                if sim.living().len() < sim.target {
                    sim.new_pod(fleet);
                }
            });
        }
    }

    fn holder(&self) -> Option<usize> {
        let lease = self.server.lease.as_ref().filter(|lease| lease.is_under_way())?;
        self.living().into_iter().find(|i| self.pods[*i].me.uid == lease.holder)
    }

    fn op(&mut self, op: Op) {
        let (pods, holder, t) = (self.living(), self.holder(), self.t);
        self.say(What::Op(op), || format!("{op:?}"));
        match op {
            Op::Trap(moment, harm) => self.traps.push((moment, harm)),
            Op::Edit(content) => self.edit(content),
            Op::Person(person) => self.person(person),
            Op::Down(length) => self.server.down_until = t + length,
            Op::Stale(lag, length) => self.server.stale = (t + length, lag),
            Op::DeleteLease => {
                if self.server.lease.is_some() {
                    self.books.lease_deleted = true;
                    self.set(None, None, None);
                    self.server.history = None;
                }
            }
            Op::DeleteHistory => self.server.history = None,
            Op::Scale(target) => {
                self.target = target;
                while self.living().len() < target {
                    self.new_pod(0);
                }
                for i in self.living().into_iter().skip(target) {
                    self.kill(i, None, true);
                }
            }
            Op::Templates(version) => {
                self.templates = version;
                self.push(t + 1.0, |sim| sim.roll(None));
            }
            Op::Roll => self.push(t + 1.0, move |sim| sim.roll(Some(pods))),
            Op::Fix(content) => {
                self.kinds.insert(content, Kind::Good);
            }
            Op::ScaleAwayHolder => {
                if let Some(i) = holder {
                    self.target -= 1;
                    self.kill(i, None, false);
                }
            }
            Op::KillHolder { soft } => {
                if let Some(i) = holder {
                    let back = self.dice_of(i, 3.0, 20.0);
                    self.kill(i, Some(back), soft);
                }
            }
            Op::CrashHolder => {
                if let Some(i) = holder {
                    self.crash(i);
                }
            }
            Op::PauseHolder(length) => {
                if let Some(i) = holder {
                    self.pods[i].paused = self.pods[i].paused.max(t + length);
                }
            }
            Op::Hurt(which, harm) => {
                if !pods.is_empty() {
                    self.hurt(pods[which % pods.len()], harm);
                }
            }
        }
    }

    fn edit(&mut self, content: Number) {
        let (t, fleet) = (self.t, usize::try_from(content / 100).unwrap());
        let changed = self.truths[fleet].last().is_none_or(|(_, before)| *before != content);
        self.truths[fleet].push((t, content));
        let version = self.truths[fleet].len() - 1;
        if !self.mount && changed {
            self.push(t + self.poll + 30.0, move |sim| sim.went_back(fleet, content, t));
        }
        for i in self.living().into_iter().filter(|i| self.pods[*i].fleet == fleet).collect::<Vec<_>>() {
            let (low, high) = if self.mount { (1.0, 90.0) } else { (0.02, 0.5) };
            let (wait, epoch) = (self.dice_of(i, low, high), self.pods[i].epoch);
            self.at(i, t + wait, epoch, move |sim| sim.see(i, version));
        }
    }

    fn hurt(&mut self, i: usize, harm: Harm) {
        let t = self.t;
        let back = self.dice_of(i, 3.0, 20.0);
        let pod = &mut self.pods[i];
        match harm {
            Harm::Crash => self.crash(i),
            Harm::Wipe => {
                self.crash(i);
                let pod = &mut self.pods[i];
                pod.wiped = t;
                pod.seen = None;
                pod.me = Replica { uid: std::mem::take(&mut pod.me.uid), ..Replica::default() };
                (pod.confirmed_last, pod.reverted_to) = (None, None);
            }
            Harm::Kill => self.kill(i, Some(back), false),
            Harm::Delete => self.kill(i, Some(back), true),
            Harm::Pause(length) => pod.paused = pod.paused.max(t + length),
            Harm::PauseAndStop(length) => {
                pod.paused = pod.paused.max(t + length);
                self.push(t + 0.05, |sim| sim.person(Person::Stop));
            }
            Harm::Cut(length) => pod.cut = t + length,
            Harm::Sick(length) => pod.sick = t + length,
            Harm::Broken(length) => pod.broken = t + length,
            Harm::Down(length) => self.server.down_until = t + length,
            Harm::Person(person) => self.person(person),
            Harm::Edit(content) => self.op(Op::Edit(content)),
        }
    }

    /// Springs the traps that wait for this.
    pub fn happened(&mut self, moment: Moment, i: Option<usize>) {
        let Some(i) = i.filter(|i| self.pods[*i].alive) else { return };
        if self.traps.is_empty() {
            return;
        }
        let (due, waiting) = self.traps.iter().partition::<Vec<_>, _>(|(at, _)| *at == moment);
        self.traps = waiting;
        for (_, harm) in due {
            let delay = choice(&mut self.dice, &[0.0, 0.0, 0.02, 0.06, 0.15, 0.4]);
            let spring = move |sim: &mut Self| {
                if sim.pods[i].alive {
                    let uid = sim.pods[i].me.uid.clone();
                    sim.say(What::Trap(harm), || format!("{moment:?} {uid}"));
                    sim.hurt(i, harm);
                }
            };
            if delay > 0.0 { self.push(self.t + delay, spring) } else { spring(self) }
        }
    }

    /// A rolling update: of those with older templates, or of these.
    fn roll(&mut self, which: Option<Vec<usize>>) {
        let old = |sim: &Self| {
            let is_old = |i: &usize| match &which {
                None => sim.pods[*i].templates != sim.templates,
                Some(which) => which.contains(i),
            };
            sim.living().into_iter().filter(|i| is_old(i) && !sim.pods[*i].terminating).collect::<Vec<_>>()
        };
        if !old(self).is_empty() {
            let new = self.new_pod(0);
            self.push(self.t + 5.0, move |sim| sim.rolled(new, which, 0));
        }
    }

    fn rolled(&mut self, new: usize, which: Option<Vec<usize>>, tries: u32) {
        let me = &self.pods[new].me;
        if me.published.is_none() || !me.confirmed {
            if tries <= 12 {
                self.push(self.t + 5.0, move |sim| sim.rolled(new, which, tries + 1));
            }
            return;
        }
        let old: Vec<usize> = self.living();
        let is_old = |i: &usize| match &which {
            None => self.pods[*i].templates != self.templates,
            Some(which) => which.contains(i),
        };
        let old: Vec<_> = old.into_iter().filter(|i| is_old(i) && !self.pods[*i].terminating).collect();
        if !old.is_empty() {
            let i = choice(&mut self.dice, &old);
            self.kill(i, None, true);
        }
        self.push(self.t + 1.0, move |sim| sim.roll(which));
    }

    fn person(&mut self, person: Person) {
        let Some(lease) = self.server.lease.clone() else { return };
        let (Some(candidate), false) = (lease.candidate, self.server.down_until > self.t) else { return };
        let candidate = number(candidate);
        match person {
            Person::Promote => {
                self.books.ever_good.insert(candidate);
                self.set(lease.promoted().as_ref(), None, None);
            }
            Person::Stop => {
                if let Some(stopped) = lease.stopped_by_person() {
                    self.books.stopped_by_person.insert(candidate);
                    self.set(Some(&stopped), None, None);
                }
            }
            Person::Retry => {
                self.set(Some(&lease.retried()), None, None);
                if lease.state == State::Stopped {
                    let having = |i: &usize| self.pods[*i].me.published == Some(digest(candidate));
                    let having: BTreeSet<_> = self.living().into_iter().filter(having).collect();
                    self.books.claims.insert(candidate, having.clone());
                    self.books.took.insert(candidate, having);
                    self.books.ever_spread.remove(&candidate);
                    self.books.stopped_by_person.remove(&candidate);
                }
            }
        }
    }
}

impl Op {
    /// How long it lasts, for the end of the schedule.
    fn length(self) -> f64 {
        match self {
            Self::Down(length) | Self::Stale(_, length) | Self::PauseHolder(length) => length,
            Self::Hurt(
                _,
                Harm::Pause(length)
                | Harm::PauseAndStop(length)
                | Harm::Cut(length)
                | Harm::Sick(length)
                | Harm::Broken(length),
            ) => length % 9000.0,
            Self::Trap(..) => 400.0,
            _ => 0.0,
        }
    }
}
