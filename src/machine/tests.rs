//! The machine in a world of random edits, failures and kills, and the single cases worth a name.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn options() -> Options {
    Options {
        debounce: Duration::from_millis(200),
        debounce_max: Duration::from_secs(2),
        min_interval: Duration::ZERO,
        splay: Duration::ZERO,
        attempts: 3,
        reload: true,
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

/// Several inputs render to one tree: 10 and 20 to the tree of 0.
fn tree_of(digest: Digest) -> Digest {
    inputs(number(digest) % 10)
}

#[derive(Clone, Debug)]
enum Op {
    Render { step: Step, sequence: u64, unless: Option<Digest>, digest: Digest },
    Write { step: Step, writes: Vec<Write>, done: usize },
    Reload { step: Step, published: Option<Moment>, abandoned: bool },
}

/// Everything around the machine: the disk, the main process, the sources.
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
}

impl World {
    fn new(options: Options) -> Self {
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
        };
        world.carry_out(effects);
        world
    }

    fn disk(&self) -> Disk {
        Disk { link: self.link.clone(), directories: self.directories.keys().cloned().collect() }
    }

    fn now(&mut self) -> Moment {
        self.ticks += 1;
        Moment { boot_id: String::new(), ticks: self.ticks }
    }

    fn on(&mut self, event: Event) {
        self.asked |= event == Event::Retry;
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
                Effect::Arm(timer, _) => {
                    self.timers.insert(timer);
                }
                Effect::Disarm(timer) => {
                    self.timers.remove(&timer);
                }
                Effect::Render { step, sequence, unless } => {
                    self.start(Op::Render { step, sequence, unless, digest: self.machine.want.unwrap() });
                }
                Effect::Write { step, writes } => self.start(Op::Write { step, writes, done: 0 }),
                Effect::Reload { step, published, .. } => self.start(Op::Reload { step, published, abandoned: false }),
                Effect::Abandon(_) => match &mut self.op {
                    Some(Op::Reload { abandoned, .. }) => *abandoned = true,
                    other => panic!("abandoned {other:?}"),
                },
                Effect::Exit => self.exited = true,
            }
        }
    }

    fn start(&mut self, op: Op) {
        assert!(self.op.is_none(), "two steps at once: {:?} and {op:?}", self.op);
        self.op = Some(op);
    }

    fn write(&mut self, write: &Write) {
        match write {
            Write::Journal(journal) => self.journal = Some((**journal).clone()),
            Write::Swap(generation) => {
                assert!(self.directories.contains_key(&generation.directory), "swapped to nothing");
                let newer = Some(generation.sequence) > self.link.as_deref().and_then(sequence_of);
                let early = newer && self.timers.contains(&Timer::Interval);
                assert!(!early || self.asked, "published sooner than --reload-min-interval allows");
                self.asked &= !newer;
                self.link = Some(generation.directory.clone());
            }
            Write::Prune(keep) => {
                self.directories.retain(|name, _| keep.contains(name) || Some(name) == self.link.as_ref());
            }
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
                let outcome = if is_bad(digest) {
                    Outcome::Rejected
                } else if unless == Some(tree_of(digest)) {
                    Outcome::Same
                } else if fail {
                    Outcome::Failed
                } else {
                    let generation = Generation::new(sequence, digest, tree_of(digest), tree_of(digest));
                    assert_ne!(self.link.as_ref(), Some(&generation.directory), "staged over the current one");
                    self.directories.insert(generation.directory.clone(), digest);
                    Outcome::Staged(generation)
                };
                self.on(Event::Rendered { step, outcome });
            }
            Some(Op::Write { step, writes, done }) => {
                if !fail {
                    self.write(&writes[done]);
                } else if refuse {
                    // The worst failure: it happened, and was reported not to have (a failed fsync after a rename).
                    self.write(&writes[done]);
                }
                let done = done + usize::from(!fail);
                if fail || done == writes.len() {
                    let at = Some(self.now());
                    self.on(Event::Written { step, done, at });
                } else {
                    self.op = Some(Op::Write { step, writes, done });
                }
            }
            Some(Op::Reload { step, published, abandoned }) => {
                let verdict = if published.is_some_and(|published| self.started > published.ticks) {
                    Verdict::Took
                } else if fail {
                    if refuse && !abandoned { Verdict::Refused } else { Verdict::Unreachable }
                } else {
                    self.loaded = self.link.clone();
                    self.reloads += 1;
                    Verdict::Took
                };
                self.on(Event::Reloaded { step, verdict });
            }
        }
    }

    fn edit(&mut self, to: Digest) {
        self.inputs = to;
        self.on(Event::Observed(to));
    }

    fn fire(&mut self, index: usize) {
        if let Some(timer) = self.timers.iter().copied().nth(index % self.timers.len().max(1)) {
            self.on(Event::Fired(timer));
        }
    }

    /// SIGKILL, and a new start; what was under way is lost.
    fn kill(&mut self, journal_lost: bool) {
        if journal_lost {
            self.journal = None;
        }
        self.op = None;
        self.exited = false;
        self.timers.clear();
        let (machine, effects) = recover(self.options.clone(), self.journal.clone(), &self.disk());
        self.machine = machine;
        self.carry_out(effects);
    }

    /// The main process restarts, and reads what is published.
    fn restart_target(&mut self) {
        self.started = self.now().ticks;
        self.loaded = self.link.clone();
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
        assert!(self.directories.len() <= 5, "guarantee 9: {:?}", self.directories);
        let idle = matches!(self.machine.work, Work::Waiting | Work::Backoff(Next::Reload));
        assert!(!(idle && self.machine.intake == Intake::Ready), "guarantee 10: newer inputs wait for nothing");
        let waits = self.op.is_some() || !self.timers.is_empty() || self.exited;
        assert!(waits || self.machine.want.is_none() || !self.is_behind(), "nothing will ever happen again");
    }

    fn is_behind(&self) -> bool {
        let debt = self.machine.journal.debt.is_some();
        let newer = self.machine.want != self.machine.have && !self.machine.is_rejected();
        debt || newer
    }

    /// From here on all goes well: the newest good inputs must be published, loaded and confirmed.
    fn settle(&mut self) {
        self.on(Event::Observed(self.inputs));
        for _ in 0..200 {
            self.check();
            if self.op.is_some() {
                self.progress(false, false);
            } else if self.timers.is_empty() {
                break;
            } else {
                self.fire(0);
            }
        }
        self.check();
        let published = self.link.as_ref().map(|link| tree_of(self.directories[link]));
        if is_bad(self.inputs) {
            assert!(self.machine.is_rejected());
        } else {
            assert_eq!(published, Some(tree_of(self.inputs)), "guarantee 10: the newest is published");
            assert!(self.machine.is_settled(), "{:?}", self.machine);
        }
        let journal = self.machine.journal();
        assert_eq!(journal.debt, None);
        // A first generation whose rename failed may be linked all the same: there is nothing to turn back to.
        if journal.current.is_some() {
            let (restarted, _) = recover(self.options.clone(), self.journal.clone(), &self.disk());
            assert_eq!(restarted.journal.current, journal.current, "a restart changes nothing");
            assert_eq!(restarted.journal.debt, None, "a restart changes nothing");
            assert_eq!(journal.current, journal.last_good);
            if self.options.reload {
                assert_eq!(self.loaded, self.link, "guarantee 3: the main process has it");
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
    (duration(), duration(), duration(), prop::bool::weighted(0.8)).prop_map(
        |(debounce, min_interval, splay, reload)| Options { debounce, min_interval, splay, reload, ..options() },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_events_and_kills_loses_a_reload(
        options in any_options(),
        actions in prop::collection::vec(action(), 0..400),
    ) {
        let mut world = World::new(options);
        for action in actions {
            match action {
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
        prop_assert!(world.directories.len() <= 3, "guarantee 9: {:?}", world.directories);
    }

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
            prop_assert!(steps < 12);
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
fn hanging_attempt_is_abandoned_for_newer_inputs_but_not_at_once() {
    let mut world = settled_on(0, options());
    world.edit(inputs(1));
    world.fire(0);
    while !matches!(world.op, Some(Op::Reload { .. })) {
        world.progress(false, false);
    }
    world.edit(inputs(2));
    world.on(Event::Fired(Timer::Quiet));
    assert!(matches!(world.op, Some(Op::Reload { abandoned: false, .. })));
    world.on(Event::Fired(Timer::Patience));
    assert!(matches!(world.op, Some(Op::Reload { abandoned: true, .. })));
    world.progress(true, false);
    assert_eq!(world.machine.phase(), Phase::Rendering);
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

#[test]
fn refusals_are_reported_as_held_and_tried_on() {
    let mut world = settled_on(0, options());
    world.edit(inputs(1));
    world.fire(0);
    for _ in 0..3 {
        while !matches!(world.op, Some(Op::Reload { .. })) {
            world.progress(false, false);
        }
        assert_ne!(world.machine.phase(), Phase::Held);
        world.progress(true, true);
        finish(&mut world);
        if world.machine.phase() == Phase::Backoff {
            world.fire(0);
        }
    }
    assert_eq!(world.machine.phase(), Phase::Held);
    assert!(world.machine.journal().debt.is_some());
    world.settle();
}

#[test]
fn publishes_are_no_closer_than_the_interval_and_what_comes_sooner_is_joined() {
    let mut world = settled_on(0, Options { min_interval: Duration::from_secs(60), ..options() });
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
    let mut world = settled_on(0, Options { min_interval: Duration::from_secs(60), ..options() });
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
    let disk = |link: &Generation| Disk { link: Some(link.directory.clone()), directories: directories.clone() };
    let (machine, _) = recover(options(), Some(journal.clone()), &disk(&old));
    assert_eq!(machine.journal.current, Some(old));
    assert_eq!(machine.journal.debt, journal.prev_debt);
    let (machine, _) = recover(options(), Some(journal.clone()), &disk(&new));
    assert_eq!(machine.journal.current, Some(new));
    assert_eq!(machine.journal.debt, journal.debt);
}

#[test]
fn without_a_journal_what_is_linked_is_owed_and_its_sequence_is_not_reused() {
    let directory = "..trimtab-000041-51aa03c2be10".to_owned();
    let disk = Disk { link: Some(directory.clone()), directories: vec![directory] };
    let (machine, _) = recover(options(), None, &disk);
    assert_eq!(machine.journal.debt, Some(Debt::default()));
    assert_eq!(machine.journal.next_sequence, 42);
}
