//! The machine in a world of random edits, verdicts, failures and kills, the same world with a mutated machine, and the
//! single cases worth a name.

mod observed;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use super::work::{Next, Work};
use super::*;
use crate::model::digest::Digest;
use crate::model::journal::{Debt, DebtKind, Generation, Journal, Moment, Rejection, sequence_of};
use crate::model::made_of::MadeOf;
use crate::model::stage::Stage;

/// Those of a machine that waits for nothing, and tries once.
pub(crate) fn at_once() -> Options {
    Options {
        debounce: Duration::ZERO,
        debounce_max: Duration::ZERO,
        min_interval: Duration::ZERO,
        splay: Duration::ZERO,
        attempts: 1,
        reload: true,
        confirm: false,
        rollout: false,
        rollback: true,
        gate: Digest::from_bytes([1; 32]),
    }
}

fn options() -> Options {
    Options {
        debounce: Duration::from_millis(200),
        debounce_max: Duration::from_secs(2),
        min_interval: Duration::ZERO,
        splay: Duration::ZERO,
        attempts: 3,
        reload: true,
        confirm: true,
        rollout: false,
        rollback: true,
        gate: inputs(0),
    }
}

/// Digests that are not all zeros, which stands for an unknown one.
fn inputs(number: u8) -> Digest {
    Digest::from_bytes([number + 100; 32])
}

fn number(digest: Digest) -> u8 {
    digest.as_bytes()[0] - 100
}

/// Inputs that do not render.
fn is_bad(digest: Digest) -> bool {
    number(digest) % 5 == 4
}

/// What the main process makes of a tree.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Poison {
    None,
    /// It says no.
    Refused,
    /// It says yes, and turns out to have died or not to have taken it.
    Deadly,
}

fn poison(options: &Options, digest: Digest) -> Poison {
    match number(digest) % 10 {
        7 => Poison::Refused,
        8 if options.confirm => Poison::Deadly,
        _ => Poison::None,
    }
}

fn rejection(stage: Stage) -> Rejection {
    Rejection { stage, reason: String::new(), at: Timestamp::UNIX_EPOCH }
}

/// An object of these inputs is held back.
fn holds_back(digest: Digest) -> bool {
    number(digest) % 10 == 3
}

/// Several inputs render to one tree: 10 and 20 to the tree of 0.
fn tree_of(digest: Digest) -> Digest {
    inputs(number(digest) % 10)
}

#[derive(Clone, Debug)]
enum Op {
    Render { step: Step, sequence: u64, unless: Option<Digest>, digest: Digest },
    Write { step: Step, writes: Vec<Write>, done: usize },
    Reload { step: Step, published: Option<Moment> },
    Confirm { step: Step, hurried: bool },
    Verify { step: Step, generation: Generation },
}

/// A way to break the machine, done to what goes in and out of it: the world must notice each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutation {
    /// The journal announces nothing: it is written after the rename.
    JournalAfterSwap,
    /// The journal is never written before a rename.
    JournalLost,
    /// A publish leaves no debt.
    DebtForgotten,
    /// A rollback leaves no debt.
    RollbackDebtForgotten,
    /// The older debt is not kept beside the newer one.
    PrevDebtForgotten,
    /// A rollback is journalled as if it were a publish.
    RollbackTakenForPublish,
    /// The rollback journals the debt, and never renames back.
    NotTurnedBack,
    /// The old generation is made current again, and nobody is notified.
    OldOneNotReloaded,
    /// A refusal counts as success.
    RefusalIgnored,
    /// A death counts as a confirmation.
    DeathIgnored,
    /// What is not confirmed is taken for the last good one.
    LastGoodTooEarly,
    /// The last good generation is not kept.
    LastGoodPruned,
    /// The current generation is not kept.
    CurrentPruned,
    /// The quarantine is not written down.
    QuarantineForgotten,
    /// Left-overs are never removed.
    NothingPruned,
    /// Inputs that do not render are published.
    BadInputsStaged,
    /// The next sequence number is not written down.
    SequenceReused,
    /// A failed write counts as done.
    FailureIgnored,
    /// A timer is never armed.
    TimerLost(Timer),
    /// `--reload-min-interval` is not kept.
    IntervalIgnored,
    /// The newest inputs are forgotten at times.
    InputsForgotten,
    /// That something was held back is not written down.
    HeldBackForgotten,
}

const MUTATIONS: &[Mutation] = &[
    Mutation::JournalAfterSwap,
    Mutation::JournalLost,
    Mutation::DebtForgotten,
    Mutation::RollbackDebtForgotten,
    Mutation::PrevDebtForgotten,
    Mutation::RollbackTakenForPublish,
    Mutation::NotTurnedBack,
    Mutation::OldOneNotReloaded,
    Mutation::RefusalIgnored,
    Mutation::DeathIgnored,
    Mutation::LastGoodTooEarly,
    Mutation::LastGoodPruned,
    Mutation::CurrentPruned,
    Mutation::QuarantineForgotten,
    Mutation::NothingPruned,
    Mutation::BadInputsStaged,
    Mutation::SequenceReused,
    Mutation::FailureIgnored,
    Mutation::TimerLost(Timer::Backoff),
    Mutation::TimerLost(Timer::Retry),
    Mutation::TimerLost(Timer::Refused),
    Mutation::HeldBackForgotten,
    Mutation::TimerLost(Timer::Again),
    Mutation::TimerLost(Timer::Interval),
    Mutation::TimerLost(Timer::Splay),
    Mutation::IntervalIgnored,
    Mutation::InputsForgotten,
];

/// Everything around the machine: the disk, the main process, the sources.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
struct World {
    options: Options,
    machine: Machine,
    timers: BTreeSet<Timer>,
    op: Option<Op>,
    exited: bool,
    /// Since the last publish, somebody has asked to try at once.
    asked: bool,
    // What survives a kill.
    inputs: Digest,
    journal: Option<Journal>,
    link: Option<String>,
    directories: BTreeMap<String, Digest>,
    loaded: Option<String>,
    started: u64,
    ticks: u64,
    reloads: u32,
    /// How often the main process was handed a tree that it does not take, since the last edit, kill or request.
    poisoned: u32,
    /// The main process died of what it was handed.
    dead: bool,
    /// It has started with what was there, and there was no confirmation that could see what it makes of it.
    blind: bool,
    /// Every generation that was visible.
    visible: BTreeMap<u64, String>,
    /// A journal was lost.
    forgetful: bool,
    /// The last journal that was to be written alone could not be.
    unwritten: bool,
    /// Since the last edit, kill or request.
    announced: Vec<Milestone>,
    mutation: Option<Mutation>,
}

impl World {
    fn new(options: Options) -> Self {
        Self::mutated(options, None)
    }

    fn mutated(options: Options, mutation: Option<Mutation>) -> Self {
        let (machine, effects) = recover(options.clone(), None, &Disk::default());
        let mut world = Self {
            options,
            machine,
            timers: BTreeSet::new(),
            op: None,
            exited: false,
            asked: false,
            inputs: inputs(0),
            journal: None,
            link: None,
            directories: BTreeMap::new(),
            loaded: None,
            started: 0,
            ticks: 1,
            reloads: 0,
            poisoned: 0,
            dead: false,
            blind: false,
            visible: BTreeMap::new(),
            forgetful: false,
            unwritten: false,
            announced: Vec::new(),
            mutation,
        };
        world.carry_out(effects);
        world
    }

    fn disk(&self) -> Disk {
        Disk { link: self.link.clone(), directories: self.directories.keys().cloned().collect(), torn: None }
    }

    fn now(&mut self) -> Moment {
        self.ticks += 1;
        Moment { boot_id: String::new(), ticks: self.ticks }
    }

    fn on(&mut self, event: Event) {
        let event = match event {
            Event::Retry => {
                (self.asked, self.poisoned) = (true, 0);
                self.announced.clear();
                event
            }
            Event::Written { step, at, .. } if self.is(Mutation::FailureIgnored) => {
                Event::Written { step, done: usize::MAX, at }
            }
            Event::Observed(digest) if self.is(Mutation::InputsForgotten) && number(digest) % 3 == 1 => return,
            Event::Reloaded { step, verdict: Verdict::Refused(_) } if self.is(Mutation::RefusalIgnored) => {
                Event::Reloaded { step, verdict: Verdict::Took }
            }
            Event::Confirmed { step, verdict: Verdict::Refused(_) } if self.is(Mutation::DeathIgnored) => {
                Event::Confirmed { step, verdict: Verdict::Took }
            }
            event => event,
        };
        if let Event::Fired(timer) = &event {
            self.timers.remove(timer);
        }
        if !self.exited {
            let effects = self.machine.on(event);
            self.carry_out(effects);
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Ask(_) => unreachable!("there is no rollout"),
                Effect::Arm(timer, _) if self.is(Mutation::TimerLost(timer)) => {}
                Effect::Arm(timer, _) => {
                    self.timers.insert(timer);
                    self.machine.interval_open |= self.is(Mutation::IntervalIgnored);
                }
                Effect::Disarm(timer) => {
                    self.timers.remove(&timer);
                }
                Effect::Render { step, sequence, unless } => {
                    self.start(Op::Render { step, sequence, unless, digest: self.machine.want.unwrap() });
                }
                Effect::Write { step, writes } => {
                    let writes = self.mutate(writes);
                    self.start(Op::Write { step, writes, done: 0 });
                }
                Effect::Confirm { step, .. } => self.start(Op::Confirm { step, hurried: false }),
                Effect::Verify { step, generation } => self.start(Op::Verify { step, generation }),
                Effect::Reload { step, published, .. } => self.start(Op::Reload { step, published }),
                Effect::Hurry(_) => match &mut self.op {
                    Some(Op::Confirm { hurried, .. }) => *hurried = true,
                    other => panic!("hurried {other:?}"),
                },
                Effect::Announce(milestone) => self.announced.push(milestone),
                Effect::Exit => self.exited = true,
            }
        }
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Breaks the writes as the mutation says. Each stays in its place, so that the machine counts them right.
    fn mutate(&self, mut writes: Vec<Write>) -> Vec<Write> {
        let Some(mutation) = self.mutation else { return writes };
        let swap = writes.iter().position(|write| matches!(write, Write::Swap(_)));
        for (at, write) in writes.iter_mut().enumerate() {
            match write {
                Write::Journal(journal) => match mutation {
                    Mutation::JournalLost if swap.is_some_and(|swap| at < swap) => {
                        let old = self.journal.clone().unwrap_or_default();
                        *write = Write::Journal(Box::new(old));
                    }
                    Mutation::DebtForgotten if swap.is_some() => journal.debt = None,
                    Mutation::RollbackDebtForgotten => {
                        journal.debt = journal.debt.take().filter(|debt| debt.kind != DebtKind::Rollback);
                    }
                    Mutation::PrevDebtForgotten => journal.prev_debt = None,
                    Mutation::RollbackTakenForPublish => {
                        if let Some(debt) = &mut journal.debt {
                            debt.kind = DebtKind::Publish;
                        }
                    }
                    Mutation::LastGoodTooEarly => journal.last_good.clone_from(&journal.current),
                    Mutation::QuarantineForgotten => journal.quarantine = None,
                    Mutation::SequenceReused => journal.next_sequence = 1,
                    Mutation::HeldBackForgotten => {
                        journal.current.iter_mut().for_each(|current| current.partial = false);
                    }
                    _ => {}
                },
                Write::Swap(generation)
                    if mutation == Mutation::NotTurnedBack
                        && Some(generation.sequence) < self.link.as_deref().and_then(sequence_of) =>
                {
                    *write = Write::Unlink(generation.clone());
                }
                Write::Prune(keep) => match mutation {
                    Mutation::LastGoodPruned => {
                        let good = self.journal.as_ref().and_then(|journal| journal.last_good.as_ref());
                        keep.retain(|name| Some(name) != good.map(|good| &good.directory));
                    }
                    Mutation::CurrentPruned => keep.clear(),
                    Mutation::NothingPruned => keep.extend(self.directories.keys().cloned()),
                    _ => {}
                },
                _ => {}
            }
        }
        if let Some(swap) = swap.filter(|_| mutation == Mutation::JournalAfterSwap)
            && let Some(journal) = writes.iter().position(|write| matches!(write, Write::Journal(_)))
        {
            writes.swap(journal, swap);
        }
        writes
    }

    fn start(&mut self, op: Op) {
        assert!(self.op.is_none(), "two steps at once: {:?} and {op:?}", self.op);
        self.op = Some(op);
    }

    fn write(&mut self, write: &Write) {
        match write {
            Write::Journal(journal) => {
                self.journal = Some((**journal).clone());
                self.unwritten = false;
            }
            Write::Swap(generation) => {
                assert!(self.directories.contains_key(&generation.directory), "swapped to nothing");
                let newer = Some(generation.sequence) > self.link.as_deref().and_then(sequence_of);
                let early = newer && self.timers.contains(&Timer::Interval);
                assert!(!early || self.asked, "published sooner than --reload-min-interval allows");
                self.asked &= !newer;
                let known = self.visible.insert(generation.sequence, generation.directory.clone());
                let same = known.is_none_or(|known| known == generation.directory);
                assert!(same || self.forgetful, "two generations that were visible share a sequence number");
                self.link = Some(generation.directory.clone());
            }
            Write::Prune(keep) => {
                self.directories.retain(|name, _| keep.contains(name) || Some(name) == self.link.as_ref());
            }
            Write::Sync => {}
            Write::Link(generation) | Write::Unlink(generation) => {
                assert!(self.directories.contains_key(&generation.directory), "linked to nothing");
            }
        }
    }

    /// One step of the operation in flight; fails where `fail` says so.
    fn progress(&mut self, fail: bool, refuse: bool) {
        match self.op.take() {
            None => {}
            Some(Op::Render { step, sequence, unless, digest }) => {
                let outcome = if is_bad(digest) && !self.is(Mutation::BadInputsStaged) {
                    Outcome::Rejected(rejection(Stage::Render))
                } else if unless == Some(tree_of(digest)) {
                    Outcome::Same { partial: holds_back(digest), made_of: MadeOf::default() }
                } else if fail {
                    Outcome::Failed
                } else {
                    let new = Generation::new(sequence, digest, tree_of(digest), tree_of(digest));
                    let generation = Generation { partial: holds_back(digest), ..new };
                    assert_ne!(self.link.as_ref(), Some(&generation.directory), "staged over the current one");
                    self.directories.insert(generation.directory.clone(), digest);
                    Outcome::Staged { candidate: generation, baseline: None }
                };
                self.on(Event::Rendered { step, outcome });
            }
            Some(Op::Write { step, writes, done }) => {
                if !fail {
                    self.write(&writes[done]);
                } else if refuse {
                    // The worst failure: it happened, and was reported not to have (a failed fsync after a rename).
                    let asked = self.asked;
                    self.write(&writes[done]);
                    self.asked = asked;
                }
                self.unwritten |= fail && matches!(writes[..], [Write::Journal(_)]);
                let done = done + usize::from(!fail);
                if fail || done == writes.len() {
                    let at = Some(self.now());
                    self.on(Event::Written { step, done, at });
                } else {
                    self.op = Some(Op::Write { step, writes, done });
                }
            }
            Some(Op::Reload { step, published }) => {
                let digest = self.link.as_ref().map(|link| self.directories[link]);
                let poison = digest.map_or(Poison::None, |digest| poison(&self.options, digest));
                let spared = self.is(Mutation::OldOneNotReloaded) && self.rollback_is_due();
                let verdict = if spared || published.is_some_and(|published| self.started > published.ticks) {
                    Verdict::Took
                } else if fail {
                    if refuse { Verdict::Refused(rejection(Stage::Reload)) } else { Verdict::Unreachable }
                } else if poison == Poison::Refused {
                    self.poisoned += u32::from(!self.machine.held);
                    Verdict::Refused(rejection(Stage::Reload))
                } else {
                    self.loaded = self.link.clone();
                    self.dead = poison == Poison::Deadly;
                    self.poisoned += u32::from(self.dead && !self.machine.held);
                    self.reloads += 1;
                    Verdict::Took
                };
                self.on(Event::Reloaded { step, verdict });
            }
            Some(Op::Confirm { step, hurried }) => {
                let verdict = if self.dead {
                    Verdict::Refused(rejection(Stage::Confirm))
                } else if fail {
                    let refused = refuse && !hurried;
                    if refused { Verdict::Refused(rejection(Stage::Confirm)) } else { Verdict::Unreachable }
                } else {
                    Verdict::Took
                };
                self.on(Event::Confirmed { step, verdict });
            }
            Some(Op::Verify { step, generation }) => {
                let sound = !fail && self.directories.contains_key(&generation.directory);
                self.on(Event::Verified { step, sound, baseline: None });
            }
        }
    }

    fn rollback_is_due(&self) -> bool {
        self.machine.journal.is_due(DebtKind::Rollback)
    }

    fn edit(&mut self, to: Digest) {
        self.inputs = to;
        self.poisoned = 0;
        self.announced.clear();
        self.on(Event::Observed(to));
    }

    fn fire(&mut self, index: usize) {
        // So many attempts, with a backoff, take longer than it runs.
        if self.machine.refusals >= self.options.attempts && self.timers.contains(&Timer::Refused) {
            self.on(Event::Fired(Timer::Refused));
        }
        if let Some(timer) = self.timers.iter().copied().nth(index % self.timers.len().max(1)) {
            self.on(Event::Fired(timer));
        }
    }

    /// SIGKILL, and a new start; what was under way is lost.
    fn kill(&mut self, journal_lost: bool) {
        if journal_lost {
            self.journal = None;
            self.forgetful = true;
        }
        self.op = None;
        self.exited = false;
        self.poisoned = 0;
        self.announced.clear();
        self.timers.clear();
        let (machine, effects) = recover(self.options.clone(), self.journal.clone(), &self.disk());
        self.machine = machine;
        self.carry_out(effects);
    }

    /// The main process restarts, and reads what is published.
    fn restart_target(&mut self) {
        self.started = self.now().ticks;
        self.loaded = self.link.clone();
        let digest = self.link.as_ref().map(|link| self.directories[link]);
        self.dead = digest.is_some_and(|digest| poison(&self.options, digest) != Poison::None) && self.options.confirm;
        self.blind |= !self.options.confirm;
    }

    fn check(&self) {
        if let Some(link) = &self.link {
            let digest = *self.directories.get(link).expect("the current generation exists");
            assert!(!is_bad(digest), "guarantee 2: {digest:?} is published");
        }
        if self.options.reload && self.link.is_some() && self.loaded != self.link {
            let (machine, _) = recover(self.options.clone(), self.journal.clone(), &self.disk());
            assert!(machine.journal.debt.is_some(), "guarantee 3: a kill now would lose the reload");
        }
        if let Some(good) = &self.machine.journal.last_good {
            assert!(self.directories.contains_key(&good.directory), "guarantee 4: there is no way back");
            let poison = poison(&self.options, self.directories[&good.directory]);
            assert!(
                !self.options.reload || self.blind || poison == Poison::None,
                "guarantee 4: {good:?} was never good"
            );
        }
        // The last of the attempts comes when the refusals have gone on for long enough, and may be one more.
        assert!(
            self.poisoned <= 2 * (self.options.attempts + 1) + 1,
            "guarantee 4: what was rejected is tried again and again"
        );
        assert!(self.directories.len() <= 5, "guarantee 9: {:?}", self.directories);
        self.check_announcements();
        let idle = matches!(self.machine.work, Work::Waiting | Work::Backoff(Next::Reload));
        assert!(!(idle && self.machine.intake == Intake::Ready), "guarantee 10: newer inputs wait for nothing");
        let waits = self.op.is_some() || !self.timers.is_empty() || self.exited;
        assert!(
            waits || self.machine.want.is_none() || !self.is_behind(),
            "nothing will ever happen again: {:?}",
            self.machine
        );
    }

    /// What is reported is so, and is reported once.
    fn check_announcements(&self) {
        let mut rejected = None;
        for milestone in &self.announced {
            match milestone {
                Milestone::Published(generation) => {
                    assert!(self.visible.contains_key(&generation.sequence), "reported and not visible");
                    rejected = None;
                }
                Milestone::Rejected(quarantine) => {
                    assert_ne!(rejected.replace(quarantine.digest), Some(quarantine.digest), "reported twice");
                }
                _ => rejected = None,
            }
        }
    }

    fn is_behind(&self) -> bool {
        let debt = self.machine.journal.debt.is_some();
        let newer = self.machine.want != self.machine.have && !self.machine.is_rejected();
        debt || newer
    }

    /// Nothing fails any more, until nothing happens any more; what is held is tried on without an end.
    fn run(&mut self) {
        for _ in 0..200 {
            self.check();
            if self.op.is_some() {
                self.progress(false, false);
            } else if self.timers.is_empty() || self.is_held_for_good() {
                break;
            } else {
                self.fire(0);
            }
        }
        self.check();
    }

    /// Nothing that could happen by itself would change anything.
    fn is_held_for_good(&self) -> bool {
        let poisoned = |link| poison(&self.options, self.directories[link]) != Poison::None;
        let Journal { current, last_good, .. } = &self.machine.journal;
        let way_back = self.options.rollback && last_good.is_some() && last_good != current;
        let held = self.machine.held && self.machine.intake == Intake::Calm;
        held && !way_back && self.link.as_ref().is_some_and(poisoned)
    }

    /// From here on all goes well: the newest inputs are published, loaded and confirmed, or rejected and taken back.
    fn settle(&mut self) {
        self.on(Event::Observed(self.inputs));
        self.run();
        let poison = poison(&self.options, self.inputs);
        if self.machine.is_rejected() && !is_bad(self.inputs) && (poison == Poison::None || !self.options.reload) {
            // The main process refused it by chance: somebody asks.
            self.on(Event::Retry);
            self.run();
        }
        let journal = self.machine.journal().clone();
        let published = self.link.as_ref().map(|link| tree_of(self.directories[link]));
        if is_bad(self.inputs) {
            assert!(self.machine.is_rejected(), "guarantee 2: {:?}", self.machine);
        } else if poison != Poison::None && self.options.reload {
            assert!(self.machine.is_rejected() || self.machine.held || self.blind, "guarantee 4: {:?}", self.machine);
        } else {
            assert_eq!(published, Some(tree_of(self.inputs)), "guarantee 10: the newest is published");
            assert!(self.machine.is_settled(), "{:?}", self.machine);
            assert_eq!(journal.quarantine, None);
            assert!(
                self.unwritten || self.machine.is_partial() == holds_back(self.inputs),
                "fault: {:?}",
                self.machine
            );
            if holds_back(self.inputs) && !self.unwritten {
                let (restarted, _) = recover(self.options.clone(), self.journal.clone(), &self.disk());
                assert!(restarted.redo, "what is held back is forgotten by a restart");
            }
        }
        // Where nothing is published, a restart tries again.
        if self.machine.is_rejected() && !self.unwritten && journal.current.is_some() {
            let (restarted, _) = recover(self.options.clone(), self.journal.clone(), &self.disk());
            let quarantined = |journal: &Journal| journal.quarantine.as_ref().map(|quarantine| quarantine.digest);
            assert_eq!(quarantined(&restarted.journal), Some(self.inputs), "guarantee 4: rejected for a while alone");
        }
        if self.machine.held {
            // Only what has no way back is left with the main process that does not take it.
            assert!(journal.debt.is_some());
            let good = journal.last_good.filter(|good| Some(good) != journal.current.as_ref());
            assert!(good.is_none() || !self.options.rollback, "guarantee 4: {:?}", self.machine);
            return;
        }
        assert_eq!(journal.debt, None);
        // A first generation whose rename failed may be linked all the same: there is nothing to turn back to.
        if journal.current.is_some() {
            let (restarted, _) = recover(self.options.clone(), self.journal.clone(), &self.disk());
            assert_eq!(restarted.journal.current, journal.current, "a restart changes nothing");
            assert_eq!(restarted.journal.debt, None, "a restart changes nothing");
            assert_eq!(journal.current, journal.last_good);
            if self.options.reload {
                assert_eq!(self.loaded, self.link, "guarantee 3: the main process has it");
                assert!(!self.dead, "guarantee 4: the main process is dead of it");
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Action {
    Edit(u8),
    Fire(usize),
    Progress,
    Fail,
    Refuse,
    Kill { journal_lost: bool, heard: bool },
    RestartTarget,
    Retry,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..25u8).prop_map(Action::Edit),
        6 => (0..8usize).prop_map(Action::Fire),
        12 => Just(Action::Progress),
        2 => Just(Action::Fail),
        2 => Just(Action::Refuse),
        1 => (prop::bool::weighted(0.1), any::<bool>())
            .prop_map(|(journal_lost, heard)| Action::Kill { journal_lost, heard }),
        1 => Just(Action::RestartTarget),
        1 => Just(Action::Retry),
    ]
}

fn any_options() -> impl Strategy<Value = Options> {
    let duration = || prop_oneof![Just(Duration::ZERO), Just(Duration::from_secs(1))];
    let often = || prop::bool::weighted(0.8);
    (duration(), duration(), duration(), often(), often(), often()).prop_map(
        |(debounce, min_interval, splay, reload, confirm, rollback)| Options {
            debounce,
            min_interval,
            splay,
            reload,
            confirm: confirm && reload,
            rollback,
            ..options()
        },
    )
}

/// Lives through the actions, and then through better times; says how many steps that took.
fn live(options: Options, actions: &[Action], mutation: Option<Mutation>) {
    let mut world = World::mutated(options, mutation);
    for action in actions {
        match *action {
            Action::Edit(number) => world.edit(inputs(number)),
            Action::Fire(index) => world.fire(index),
            Action::Progress => world.progress(false, false),
            Action::Fail => world.progress(true, false),
            Action::Refuse => world.progress(true, true),
            Action::Kill { journal_lost, heard } => {
                world.kill(journal_lost);
                if heard {
                    world.on(Event::Observed(world.inputs));
                }
            }
            Action::RestartTarget => world.restart_target(),
            Action::Retry => world.on(Event::Retry),
        }
        world.check();
    }
    world.settle();
    world.edit(inputs(if world.inputs == inputs(1) { 2 } else { 1 }));
    world.settle();
    assert!(world.directories.len() <= 3, "guarantee 9: {:?}", world.directories);
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    prop::collection::vec(action(), 0..400)
}

#[test]
fn no_order_of_events_verdicts_and_kills_breaks_a_guarantee() {
    let steps = Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: 6000, failure_persistence: None, ..Config::default() });
    let result = runner.run(&(any_options(), actions()), |(options, actions)| {
        steps.set(steps.get() + actions.len());
        live(options, &actions, None);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    println!("machine: {} random steps, and as many again until all is settled", steps.get());
    assert!(steps.get() >= 1_000_000);
}

#[test]
fn every_mutation_of_the_machine_is_noticed() {
    // What the mutants panic with is of no interest.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut survivors = Vec::new();
    for &mutation in MUTATIONS {
        let config = Config { cases: 2000, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let lived = runner.run(&(any_options(), actions()), |(options, actions)| {
            catch_unwind(AssertUnwindSafe(|| live(options, &actions, Some(mutation))))
                .map_err(|_| TestCaseError::fail("noticed"))
        });
        match lived {
            Err(TestError::Fail(..)) => {}
            _ => survivors.push(mutation),
        }
    }
    std::panic::set_hook(hook);
    assert!(survivors.is_empty(), "nobody noticed {survivors:?}");
    println!("machine: {} mutations, each noticed", MUTATIONS.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shutdown_always_ends_and_starts_no_new_step(actions in prop::collection::vec(action(), 0..60)) {
        let mut world = World::new(options());
        for action in actions {
            match action {
                Action::Edit(number) => world.edit(inputs(number)),
                Action::Fire(index) => world.fire(index),
                Action::Fail => world.progress(true, false),
                _ => world.progress(false, false),
            }
        }
        world.on(Event::Shutdown);
        let mut steps = 0;
        while !world.exited {
            prop_assert!(world.op.is_some(), "neither exited nor under way: {:?}", world.machine);
            world.progress(false, false);
            steps += 1;
            prop_assert!(steps < 16);
        }
    }
}

/// A world in which `number` is published, loaded and confirmed.
fn settled_on(number: u8, options: Options) -> World {
    let mut world = World::new(options);
    world.edit(inputs(number));
    world.settle();
    world
}

fn finish(world: &mut World) {
    while world.op.is_some() {
        world.progress(false, false);
    }
}

#[test]
fn first_inputs_do_not_wait_for_quiet() {
    let mut world = World::new(options());
    finish(&mut world);
    world.edit(inputs(1));
    assert_eq!(world.machine.phase(), Phase::Rendering);
}

#[test]
fn burst_is_one_reload_of_the_last_content() {
    let mut world = settled_on(0, options());
    let before = world.reloads;
    for number in [1, 2, 3, 5] {
        world.edit(inputs(number));
        assert!(world.op.is_none());
    }
    world.settle();
    assert_eq!(world.reloads, before + 1);
    assert_eq!(world.directories[world.link.as_ref().unwrap()], inputs(5));
}

#[test]
fn change_back_to_the_published_inputs_is_no_change() {
    let mut world = settled_on(0, options());
    world.edit(inputs(1));
    assert_eq!(world.machine.phase(), Phase::Settling);
    world.edit(inputs(0));
    assert_eq!(world.machine.phase(), Phase::Idle);
    assert!(world.timers.is_empty(), "{:?}", world.timers);
}

#[test]
fn other_inputs_of_the_same_tree_are_not_published() {
    let mut world = settled_on(0, options());
    let (link, reloads) = (world.link.clone(), world.reloads);
    world.edit(inputs(10));
    world.settle();
    assert_eq!((world.link, world.reloads), (link, reloads));
}

#[test]
fn rejected_inputs_are_not_rendered_again_until_they_differ_or_somebody_asks() {
    let mut world = settled_on(0, options());
    world.edit(inputs(4));
    world.settle();
    assert!(world.machine.is_rejected());
    world.edit(inputs(4));
    assert_eq!(world.machine.phase(), Phase::Idle);
    world.on(Event::Retry);
    assert_eq!(world.machine.phase(), Phase::Rendering);
}

#[test]
fn newer_inputs_do_not_wait_behind_retries_of_older_ones() {
    let mut world = settled_on(0, options());
    world.edit(inputs(1));
    world.fire(0);
    while !matches!(world.op, Some(Op::Reload { .. })) {
        world.progress(false, false);
    }
    world.progress(true, false);
    finish(&mut world);
    assert_eq!(world.machine.phase(), Phase::Backoff);
    world.edit(inputs(2));
    world.on(Event::Fired(Timer::Quiet));
    assert_eq!(world.machine.phase(), Phase::Rendering);
}

#[test]
fn attempt_in_flight_ends_by_itself_and_the_newest_inputs_follow() {
    let mut world = settled_on(0, options());
    world.edit(inputs(1));
    world.fire(0);
    until_reload(&mut world);
    world.edit(inputs(2));
    world.on(Event::Fired(Timer::Quiet));
    world.on(Event::Fired(Timer::Patience));
    assert!(matches!(world.op, Some(Op::Reload { .. })));
    // It did not answer: nothing newer waits behind the next attempt.
    world.progress(true, false);
    assert_eq!(world.machine.phase(), Phase::Rendering);
}

#[test]
fn edits_do_not_put_off_a_pending_reload() {
    let mut world = settled_on(0, options());
    world.edit(inputs(1));
    world.fire(0);
    until_reload(&mut world);
    world.progress(true, false);
    finish(&mut world);
    assert!(world.timers.contains(&Timer::Retry));
    // Nothing that is read changes: 11 renders to the tree of 1.
    for number in [11, 1, 21] {
        world.edit(inputs(number));
        world.on(Event::Fired(Timer::Quiet));
        assert_eq!(world.machine.phase(), Phase::Rendering);
        let armed = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Arm(Timer::Retry, _)));
        let Some(Op::Render { step, .. }) = world.op.take() else { panic!() };
        let effects = world
            .machine
            .on(Event::Rendered { step, outcome: Outcome::Same { partial: false, made_of: MadeOf::default() } });
        assert!(!armed(&effects), "{effects:?}");
    }
    world.edit(inputs(31 % 25));
    world.on(Event::Fired(Timer::Quiet));
    // The pause is over while something else is in flight.
    world.on(Event::Fired(Timer::Retry));
    assert_eq!(world.machine.phase(), Phase::Rendering);
    let Some(Op::Render { step, .. }) = world.op.take() else { panic!() };
    world.on(Event::Rendered { step, outcome: Outcome::Same { partial: false, made_of: MadeOf::default() } });
    assert!(matches!(world.op, Some(Op::Reload { .. })), "{:?}", world.machine);
}

#[test]
fn refusals_of_half_a_second_are_not_final() {
    let mut world = settled_on(0, options());
    let good = world.link.clone();
    world.edit(inputs(1));
    world.fire(0);
    for _ in 0..8 {
        until_reload(&mut world);
        world.progress(true, true);
        while world.op.is_some() {
            world.progress(false, false);
        }
        assert_eq!(world.machine.phase(), Phase::Backoff, "{:?}", world.machine);
        world.on(Event::Fired(Timer::Retry));
    }
    world.on(Event::Fired(Timer::Refused));
    until_reload(&mut world);
    world.progress(true, true);
    finish(&mut world);
    assert_eq!(world.link, good);
    assert!(world.machine.is_rejected());
}

#[test]
fn where_one_attempt_is_allowed_its_refusal_is_final() {
    let mut world = settled_on(0, Options { attempts: 1, ..options() });
    let good = world.link.clone();
    world.edit(inputs(1));
    world.fire(0);
    until_reload(&mut world);
    world.progress(true, true);
    finish(&mut world);
    assert_eq!(world.link, good);
}

#[test]
fn a_validator_is_asked_again_as_long_as_nothing_is_published() {
    let mut world = World::new(options());
    finish(&mut world);
    world.edit(inputs(1));
    for _ in 0..2 {
        let Some(Op::Render { step, .. }) = world.op.take() else { panic!("{:?}", world.machine) };
        world.on(Event::Rendered { step, outcome: Outcome::Rejected(rejection(Stage::Validate)) });
        finish(&mut world);
        assert!(world.machine.is_rejected());
        assert_eq!(world.announced.len(), 1, "{:?}", world.announced);
        world.on(Event::Observed(inputs(1)));
        world.on(Event::Fired(Timer::Again));
    }
    world.kill(false);
    finish(&mut world);
    world.on(Event::Observed(inputs(1)));
    assert_eq!(world.machine.phase(), Phase::Rendering, "a restart asks at once");
    world.settle();
    assert!(world.machine.is_settled());
    // From then on a rejection is final.
    world.edit(inputs(2));
    world.on(Event::Fired(Timer::Quiet));
    let Some(Op::Render { step, .. }) = world.op.take() else { panic!("{:?}", world.machine) };
    world.on(Event::Rendered { step, outcome: Outcome::Rejected(rejection(Stage::Validate)) });
    finish(&mut world);
    assert!(world.timers.is_empty(), "{:?}", world.timers);
}

#[test]
fn what_a_generation_was_made_of_is_journalled_also_where_its_tree_stays() {
    let mut world = settled_on(1, options());
    let made_of = |journal: &Option<Journal>| journal.as_ref().unwrap().current.as_ref().unwrap().made_of.clone();
    let other = MadeOf::new([("dir/web".to_owned(), BTreeMap::new())]);
    for (edit, made_of_now) in [(2, other.clone()), (3, other.clone())] {
        world.edit(inputs(edit));
        world.on(Event::Fired(Timer::Quiet));
        let Some(Op::Render { step, .. }) = world.op.take() else { panic!("{:?}", world.machine) };
        world.on(Event::Rendered { step, outcome: Outcome::Same { partial: false, made_of: made_of_now } });
        assert_eq!(world.op.is_some(), edit == 2, "written once");
        finish(&mut world);
        assert_eq!(made_of(&world.journal), Some(other.clone()));
        assert_eq!(world.journal.as_ref().unwrap().last_good, world.journal.as_ref().unwrap().current);
    }

    // An earlier version of Trimtab did not write it down: the first inputs are rendered for it.
    world.journal.as_mut().unwrap().current.as_mut().unwrap().made_of = None;
    world.kill(false);
    finish(&mut world);
    let current = world.journal.as_ref().unwrap().current.as_ref().unwrap().digest;
    world.on(Event::Observed(current));
    assert_eq!(world.machine.phase(), Phase::Rendering);
}

#[test]
fn what_was_held_back_is_rendered_again_when_somebody_asks_and_after_a_restart() {
    let mut world = settled_on(3, options());
    assert!(world.machine.is_partial());
    world.on(Event::Retry);
    assert_eq!(world.machine.phase(), Phase::Rendering);
    // The cause is gone.
    let Some(Op::Render { step, .. }) = world.op.take() else { panic!() };
    world.on(Event::Rendered { step, outcome: Outcome::Same { partial: false, made_of: MadeOf::default() } });
    finish(&mut world);
    assert!(!world.machine.is_partial() && !world.journal.as_ref().unwrap().current.as_ref().unwrap().partial);
    world.on(Event::Retry);
    assert!(world.op.is_none());

    let mut world = settled_on(3, options());
    world.kill(false);
    finish(&mut world);
    world.on(Event::Observed(inputs(3)));
    assert_eq!(world.machine.phase(), Phase::Rendering);
    world.settle();
}

#[test]
fn milestones_come_once_and_in_order() {
    let mut world = settled_on(0, options());
    world.edit(inputs(8));
    world.settle();
    let names: Vec<_> = world
        .announced
        .iter()
        .map(|milestone| match milestone {
            Milestone::Published(_) => "published",
            Milestone::Rejected(_) => "rejected",
            Milestone::RolledBack { from: 2, .. } => "rolled back",
            Milestone::Confirmed { again: true, .. } => "confirmed again",
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names, ["published", "rejected", "rolled back", "confirmed again"]);
    world.edit(inputs(1));
    world.settle();
    assert!(
        matches!(
            world.announced[..],
            [Milestone::Published(_), Milestone::Confirmed { again: false, .. }, Milestone::Settled]
        ),
        "{:?}",
        world.announced
    );
}

#[test]
fn moment_of_the_publish_is_noted_when_the_debt_lasts() {
    let mut world = settled_on(0, options());
    world.edit(inputs(1));
    world.fire(0);
    while !matches!(world.op, Some(Op::Reload { .. })) {
        world.progress(false, false);
    }
    let before = world.ticks;
    world.progress(true, false);
    finish(&mut world);
    let debt = world.journal.clone().unwrap().debt.unwrap();
    assert_eq!(debt.published.as_ref().map(|moment| moment.ticks), Some(before));
    world.restart_target();
    let reloads = world.reloads;
    world.kill(false);
    world.settle();
    assert_eq!(world.reloads, reloads, "a target that started after the publish needs no reload");
}

#[test]
fn failed_write_leaves_the_room_to_the_next_try() {
    let mut world = settled_on(0, options());
    world.edit(inputs(1));
    world.settle();
    assert_eq!(world.directories.len(), 2);
    world.edit(inputs(2));
    world.fire(0);
    world.progress(true, false);
    finish(&mut world);
    assert_eq!(world.directories.keys().collect::<Vec<_>>(), [world.link.as_ref().unwrap()]);
    world.settle();
}

/// Goes on until the machine waits for a reload attempt.
fn until_reload(world: &mut World) {
    while !matches!(world.op, Some(Op::Reload { .. })) {
        assert!(world.op.is_some(), "{:?}", world.machine);
        world.progress(false, false);
    }
}

#[test]
fn refusals_of_a_first_generation_are_reported_as_held_and_tried_on() {
    let mut world = World::new(options());
    finish(&mut world);
    world.edit(inputs(1));
    for _ in 0..3 {
        until_reload(&mut world);
        assert_ne!(world.machine.phase(), Phase::Held);
        world.progress(true, true);
        finish(&mut world);
        if world.machine.phase() == Phase::Backoff {
            world.on(Event::Fired(Timer::Refused));
            world.fire(0);
        }
    }
    assert_eq!(world.machine.phase(), Phase::Held);
    assert_eq!(world.machine.journal().debt.as_ref().map(|debt| debt.kind), Some(DebtKind::Publish));
    assert_eq!(world.journal.as_ref().unwrap().quarantine.as_ref().unwrap().digest, inputs(1));
    let first = world.link.clone();
    world.kill(false);
    world.on(Event::Observed(inputs(1)));
    assert_eq!((world.machine.held, &world.link), (true, &first));
    // It is taken after all.
    finish(&mut world);
    world.settle();
    assert_eq!(world.machine.phase(), Phase::Idle);
    assert_eq!(world.journal.unwrap().quarantine, None);
}

#[test]
fn death_by_the_request_is_rejected_at_once() {
    let mut world = settled_on(0, options());
    let good = world.link.clone();
    world.edit(inputs(1));
    world.fire(0);
    until_reload(&mut world);
    let Some(Op::Reload { step, .. }) = world.op.take() else { panic!() };
    world.on(Event::Reloaded { step, verdict: Verdict::Died(rejection(Stage::Reload)) });
    finish(&mut world);
    assert_eq!(world.link, good);
    assert_eq!(world.journal.unwrap().quarantine.unwrap().digest, inputs(1));
}

#[test]
fn rejected_generation_is_taken_back_and_the_old_one_reloaded_and_confirmed() {
    let mut world = settled_on(0, options());
    let good = world.link.clone();
    for poisoned in [7, 8] {
        let reloads = world.reloads;
        world.edit(inputs(poisoned));
        world.settle();
        assert_eq!((&world.link, &world.loaded), (&good, &good));
        assert!(world.reloads > reloads);
        assert!(world.machine.is_rejected());
        assert_eq!(world.machine.phase(), Phase::Idle);
        let poisoned_before = world.poisoned;
        world.on(Event::Observed(inputs(poisoned)));
        world.kill(false);
        world.settle();
        assert_eq!(world.poisoned, 0, "the quarantine survives a restart; {poisoned_before} before");
    }
}

#[test]
fn inputs_that_were_rejected_come_again_after_others_and_are_not_forgotten() {
    let mut world = World::new(Options { debounce: Duration::ZERO, reload: false, confirm: false, ..options() });
    finish(&mut world);
    world.edit(inputs(0));
    finish(&mut world);
    world.kill(true);
    world.edit(inputs(4));
    // What was found is written off while the newer inputs, which were rejected, are already others.
    while !matches!(world.machine.work, Work::Clearing(..)) {
        assert!(world.op.is_some(), "{:?}", world.machine);
        world.progress(false, false);
    }
    assert!(world.machine.is_rejected());
    world.edit(inputs(1));
    while !matches!(world.machine.work, Work::Rendering(..)) {
        assert!(world.op.is_some(), "{:?}", world.machine);
        world.progress(false, false);
    }
    world.edit(inputs(4));
    finish(&mut world);
    world.check();
    assert!(world.machine.is_rejected(), "they were looked at again: {:?}", world.machine);
    assert_eq!(world.directories[world.link.as_ref().unwrap()], inputs(1));
}

#[test]
fn quarantine_by_other_flags_is_forgotten_at_start() {
    let mut world = settled_on(0, options());
    world.edit(inputs(7));
    world.settle();
    world.options.gate = inputs(1);
    world.kill(false);
    assert!(world.machine.journal().quarantine.is_none());
}

#[test]
fn on_reject_hold_leaves_the_rejected_generation_published() {
    let mut world = settled_on(0, Options { rollback: false, ..options() });
    world.edit(inputs(8));
    world.settle();
    assert_eq!(world.machine.phase(), Phase::Held);
    assert_eq!(world.directories[world.link.as_ref().unwrap()], inputs(8));
    assert!(world.machine.is_rejected());
    world.edit(inputs(1));
    world.settle();
    assert_eq!(world.machine.phase(), Phase::Idle);
}

#[test]
fn damaged_last_good_generation_is_not_gone_back_to() {
    let mut world = settled_on(0, options());
    world.edit(inputs(8));
    world.fire(0);
    while !matches!(world.op, Some(Op::Verify { .. })) {
        world.progress(false, false);
    }
    world.progress(true, false);
    finish(&mut world);
    assert_eq!(world.machine.phase(), Phase::Held);
    assert_eq!(world.directories[world.link.as_ref().unwrap()], inputs(8));
}

#[test]
fn rollback_that_is_refused_is_held_and_tried_on() {
    let mut world = settled_on(0, options());
    world.edit(inputs(8));
    world.fire(0);
    while !world.rollback_is_due() {
        world.progress(false, false);
    }
    for _ in 0..3 {
        until_reload(&mut world);
        world.progress(true, true);
        finish(&mut world);
        if world.machine.phase() == Phase::Backoff {
            world.on(Event::Fired(Timer::Refused));
            world.fire(0);
        }
    }
    assert_eq!(world.machine.phase(), Phase::Held);
    assert_eq!(world.machine.journal().debt.as_ref().map(|debt| debt.kind), Some(DebtKind::Rollback));
    assert_eq!(world.machine.journal().quarantine.as_ref().unwrap().digest, inputs(8));
    let effects = world.machine.on(Event::Fired(Timer::Retry));
    assert!(matches!(effects[..], [Effect::Reload { .. }]), "{effects:?}");
}

#[test]
fn death_while_asked_to_end_is_not_the_configurations_fault() {
    let mut world = settled_on(0, options());
    world.edit(inputs(1));
    world.fire(0);
    while !matches!(world.op, Some(Op::Confirm { .. })) {
        world.progress(false, false);
    }
    world.on(Event::Shutdown);
    assert!(matches!(world.op, Some(Op::Confirm { hurried: true, .. })));
    world.progress(true, true);
    finish(&mut world);
    assert!(world.exited);
    world.kill(false);
    world.settle();
    assert!(world.machine.is_settled());
}

#[test]
fn newer_inputs_end_a_confirmation_that_nobody_answers() {
    let mut world = settled_on(0, options());
    world.edit(inputs(1));
    world.fire(0);
    while !matches!(world.op, Some(Op::Confirm { .. })) {
        world.progress(false, false);
    }
    world.edit(inputs(2));
    world.on(Event::Fired(Timer::Quiet));
    assert!(matches!(world.op, Some(Op::Confirm { hurried: false, .. })));
    world.on(Event::Fired(Timer::Patience));
    assert!(matches!(world.op, Some(Op::Confirm { hurried: true, .. })));
    world.progress(true, false);
    assert_eq!(world.machine.phase(), Phase::Rendering);
}

#[test]
fn publishes_are_no_closer_than_the_interval_and_what_comes_sooner_is_joined() {
    let mut world = settled_on(0, Options { min_interval: Duration::from_mins(1), ..options() });
    world.edit(inputs(1));
    world.on(Event::Fired(Timer::Quiet));
    finish(&mut world);
    let reloads = world.reloads;
    for number in [2, 3] {
        world.edit(inputs(number));
        world.on(Event::Fired(Timer::Quiet));
        assert_eq!(world.machine.phase(), Phase::Settling);
    }
    world.on(Event::Fired(Timer::Interval));
    finish(&mut world);
    assert_eq!(world.reloads, reloads + 1);
    assert_eq!(world.directories[world.link.as_ref().unwrap()], inputs(3));
}

#[test]
fn what_is_ready_before_a_publish_is_done_waits_for_the_interval_too() {
    let mut world = settled_on(0, Options { min_interval: Duration::from_mins(1), ..options() });
    world.edit(inputs(1));
    world.on(Event::Fired(Timer::Quiet));
    world.edit(inputs(2));
    world.on(Event::Fired(Timer::Quiet));
    finish(&mut world);
    assert_eq!(world.directories[world.link.as_ref().unwrap()], inputs(1));
    assert_eq!(world.machine.phase(), Phase::Settling);
    world.on(Event::Fired(Timer::Interval));
    finish(&mut world);
    assert_eq!(world.directories[world.link.as_ref().unwrap()], inputs(2));
}

#[test]
fn a_stream_of_edits_is_cut_early_enough_to_be_published_in_time() {
    let ceiling = |debounce, debounce_max| {
        let mut world = settled_on(1, Options { debounce, debounce_max, ..options() });
        let effects = world.machine.on(Event::Observed(inputs(2)));
        effects.into_iter().find_map(|effect| match effect {
            Effect::Arm(Timer::Ceiling, Wait::Exactly(wait)) => Some(wait),
            _ => None,
        })
    };
    let [short, long, most] = [200, 1500, 2000].map(Duration::from_millis);
    assert_eq!(ceiling(short, most), Some(Duration::from_millis(1800)));
    assert_eq!(ceiling(long, most), Some(long), "there is always time for quiet");
    assert_eq!(ceiling(most, most), Some(most));
}

#[test]
fn a_commit_prunes_only_where_no_confirmation_will_do_it_or_a_debt_lasts() {
    let prunes = |world: &mut World| {
        world.edit(inputs(2));
        world.on(Event::Fired(Timer::Quiet));
        world.progress(false, false);
        let Some(Op::Write { writes, .. }) = &world.op else { panic!("no commit: {:?}", world.op) };
        writes.iter().any(|write| matches!(write, Write::Prune(_)))
    };
    assert!(!prunes(&mut settled_on(1, options())), "it would keep the main process waiting");
    assert!(prunes(&mut settled_on(1, Options { reload: false, confirm: false, ..options() })));
}

#[test]
fn splay_comes_after_quiet_and_not_before_the_first_generation() {
    let splay = Duration::from_secs(30);
    let mut world = World::new(Options { splay, ..options() });
    finish(&mut world);
    world.edit(inputs(0));
    assert_eq!(world.machine.phase(), Phase::Rendering);
    finish(&mut world);
    world.edit(inputs(1));
    let effects = world.machine.on(Event::Fired(Timer::Quiet));
    assert!(effects.contains(&Effect::Arm(Timer::Splay, Wait::Within(splay))));
}

#[test]
fn debt_of_the_older_generation_is_due_again_if_the_rename_did_not_happen() {
    let digest = inputs(1);
    let (old, new) = (Generation::new(1, digest, digest, digest), Generation::new(2, inputs(2), inputs(2), inputs(2)));
    let journal = Journal {
        next_sequence: 3,
        current: Some(new.clone()),
        from: Some(old.clone()),
        debt: Some(Debt::default()),
        prev_debt: Some(Debt { published: Some(Moment { boot_id: "b".into(), ticks: 3 }), ..Debt::default() }),
        ..Journal::default()
    };
    let directories = vec![old.directory.clone(), new.directory.clone()];
    let disk =
        |link: &Generation| Disk { link: Some(link.directory.clone()), directories: directories.clone(), torn: None };
    let (machine, _) = recover(options(), Some(journal.clone()), &disk(&old));
    assert_eq!(machine.journal.current, Some(old));
    assert_eq!(machine.journal.debt, journal.prev_debt);
    let (machine, _) = recover(options(), Some(journal.clone()), &disk(&new));
    assert_eq!(machine.journal.current, Some(new));
    assert_eq!(machine.journal.debt, journal.debt);
}

#[test]
fn without_a_journal_what_is_linked_is_due_and_its_sequence_is_not_reused() {
    let directory = "..trimtab-000041-51aa03c2be10".to_owned();
    let disk = Disk { link: Some(directory.clone()), directories: vec![directory], torn: None };
    let (machine, _) = recover(options(), None, &disk);
    assert_eq!(machine.journal.debt, Some(Debt::default()));
    assert_eq!(machine.journal.next_sequence, 42);
}
