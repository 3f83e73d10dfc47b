//! Named schedules, each of which broke an earlier draft of the protocol, and random ones.

use std::collections::BTreeMap;

use trimtab::rollout::{Dice, Reason, Why};

use super::world::{Harm, Kind, Moment, Number, Op, Person, Schedule, Sim, between, choice};

/// Its violations' codes, and how many Pods took a change before it was good.
fn run(schedule: &Schedule) -> Sim {
    Sim::new(schedule, false).run()
}

/// Of a schedule that fails: a smaller one that fails as well.
fn shrunk(schedule: &Schedule, code: &str) -> Schedule {
    let fails = |schedule: &Schedule| run(schedule).books.violations.iter().any(|(found, ..)| *found == code);
    let mut best = schedule.clone();
    loop {
        let mut tries = Vec::new();
        for i in 0..best.ops.len() {
            let mut fewer = best.clone();
            fewer.ops.remove(i);
            tries.push(fewer);
        }
        tries.extend((1..best.n).map(|n| Schedule { n, ..best.clone() }));
        if best.mount {
            tries.push(Schedule { mount: false, ..best.clone() });
        }
        match tries.into_iter().find(fails) {
            Some(smaller) => best = smaller,
            None => return best,
        }
    }
}

/// What happened in a schedule that fails, once it is as small as it goes.
fn story(schedule: &Schedule, code: &str) -> String {
    let small = shrunk(schedule, code);
    let sim = Sim::new(&small, true).run();
    let lines: Vec<_> =
        sim.trace.iter().map(|line| format!("  {:8.1} {:?} {}", line.t, line.what, line.text)).collect();
    format!("{small:#?}\n{}\n{:#?}", lines.join("\n"), sim.books.violations)
}

/// A random schedule.
fn random(seed: u64) -> Schedule {
    let mut dice = Dice::new(seed.wrapping_mul(7919) + 1);
    let r = &mut dice;
    let n = choice(r, &[1, 2, 2, 3, 3, 4, 5, 6, 8]);
    let mount = choice(r, &[false, false, true]);
    let spread = choice(r, &[60.0, 120.0, 300.0]);
    let mut kinds = BTreeMap::new();
    kinds.insert(0, if r.roll().is_multiple_of(10) { Kind::Reject } else { Kind::Good });
    let of = [Kind::Good, Kind::Good, Kind::Good, Kind::Reject, Kind::Some, Kind::Kill, Kind::Flaky, Kind::Evict];
    for content in 1..6 {
        kinds.insert(content, choice(r, &of));
    }
    let (mut ops, mut t, mut current) = (Vec::new(), 100.0, 0);
    for _ in 0..=r.roll() % 7 {
        let gap = choice(r, &[(0.0, 5.0), (0.0, 60.0), (0.0, 200.0), (100.0, 700.0)]);
        t += between(r, gap.0, gap.1);
        let length = choice(r, &[15.0, 45.0, 120.0]);
        let mut op = random_op(r, n, length, &mut current);
        if let Op::Fix(content) = op {
            ops.push((t, Op::Fix(content)));
            t += 5.0;
            op = Op::Person(Person::Retry);
        }
        if r.fraction() < 0.25 {
            op = random_trap(r, length);
        }
        ops.push((t, op));
    }
    if !ops.iter().any(|(_, op)| matches!(op, Op::Edit(_))) {
        ops.insert(0, (100.0, Op::Edit(1)));
    }
    Schedule { seed, ops, kinds, n, mount, spread, fleets: Vec::new() }
}

fn random_op(r: &mut Dice, n: usize, length: f64, current: &mut Number) -> Op {
    let pod = choice(r, &[0, 1, 2, 3, 4, 5, 6, 7]);
    // Of 515.
    match r.roll() % 515 {
        0..140 => {
            let content = choice(r, &[1, 2, 3, 4, 5]);
            *current = choice(r, &[0, *current, content, content]);
            Op::Edit(*current)
        }
        140..170 => Op::Person(choice(r, &[Person::Promote, Person::Stop, Person::Retry])),
        170..190 => Op::Down(choice(r, &[20.0, 45.0, 120.0])),
        190..200 => Op::Stale(choice(r, &[5.0, 20.0]), 120.0),
        200..204 => Op::DeleteLease,
        204..208 => Op::DeleteHistory,
        208..228 => Op::Scale(choice(r, &[0, 1, n, n + 2])),
        228..238 => Op::Templates(choice(r, &[0, 1])),
        238..245 => Op::Roll,
        245..265 => Op::KillHolder { soft: r.roll().is_multiple_of(2) },
        265..285 => Op::CrashHolder,
        285..305 => Op::PauseHolder(length),
        305..345 => Op::Hurt(pod, Harm::Crash),
        345..365 => Op::Hurt(pod, Harm::Kill),
        365..385 => Op::Hurt(pod, Harm::Delete),
        385..425 => Op::Hurt(pod, Harm::Pause(length)),
        425..465 => Op::Hurt(pod, Harm::Cut(length)),
        465..485 => Op::Hurt(pod, Harm::Sick(choice(r, &[60.0, 300.0, 9000.0]))),
        485..495 => Op::Hurt(pod, Harm::Broken(choice(r, &[60.0, 300.0]))),
        495..505 => Op::Hurt(pod, Harm::Wipe),
        _ => Op::Fix(*current),
    }
}

fn random_trap(r: &mut Dice, length: f64) -> Op {
    let moments = [
        Moment::Start(Why::Hold),
        Moment::Start(Why::Spread),
        Moment::Start(Why::Good),
        Moment::StartHistory,
        Moment::StartBack,
        Moment::Publish,
        Moment::Reject,
        Moment::Wrote(Reason::Claim),
        Moment::Wrote(Reason::Baking),
        Moment::Wrote(Reason::Spreading),
        Moment::Wrote(Reason::Done),
        Moment::Wrote(Reason::Rejected),
        Moment::Wrote(Reason::Replaced),
        Moment::Wrote(Reason::Abandoned),
        Moment::Wrote(Reason::First),
        Moment::Wrote(Reason::Reverted),
    ];
    let harms = [
        Harm::Crash,
        Harm::Crash,
        Harm::Wipe,
        Harm::Kill,
        Harm::Delete,
        Harm::Pause(length),
        Harm::Cut(length),
        Harm::Down(length),
        Harm::Person(Person::Stop),
        Harm::Person(Person::Promote),
        Harm::Edit(0),
        Harm::Edit(5),
        Harm::PauseAndStop(length),
    ];
    Op::Trap(choice(r, &moments), choice(r, &harms))
}

fn number_of(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is a number")),
        Err(_) => default,
    }
}

#[test]
fn no_random_schedule_breaks_a_property() {
    let wanted = number_of("TRIMTAB_ROLLOUT_STEPS", 1_200_000);
    let first = number_of("TRIMTAB_ROLLOUT_SEED", 1);
    let (mut steps, mut schedules, mut notes) = (0, 0, BTreeMap::new());
    let mut failed: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    while steps < wanted {
        let seed = first + schedules;
        let sim = run(&random(seed));
        steps += sim.steps;
        schedules += 1;
        for (note, count) in sim.books.notes {
            *notes.entry(note).or_insert(0) += count;
        }
        for (code, ..) in sim.books.violations {
            let seeds = failed.entry(code).or_default();
            if seeds.last() != Some(&seed) {
                seeds.push(seed);
            }
        }
    }
    println!("{schedules} schedules, {steps} steps; {notes:#?}");
    let stories: Vec<_> = failed.iter().map(|(code, seeds)| story(&random(seeds[0]), code)).collect();
    assert!(failed.is_empty(), "{failed:?}\n{}", stories.join("\n\n"));
}

/// A named schedule: what happens, what contents do to a main process, how many replicas.
struct Named {
    name: &'static str,
    ops: Vec<(f64, Op)>,
    kinds: &'static [(Number, Kind)],
    n: usize,
    spread: f64,
    fleets: Vec<usize>,
}

fn named(name: &'static str, n: usize, kinds: &'static [(Number, Kind)], ops: Vec<(f64, Op)>) -> Named {
    Named { name, ops, kinds, n, spread: 120.0, fleets: Vec::new() }
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn all_named() -> Vec<Named> {
    use Op::{CrashHolder, DeleteHistory, DeleteLease, Down, Edit, Fix, Hurt, PauseHolder, Scale, Templates, Trap};
    let person = |person| Op::Person(person);
    let reject: &[_] = &[(1, Kind::Reject)];
    vec![
        named("the bake fails", 2, &[(1, Kind::Flaky)], vec![(100.0, Edit(1))]),
        named(
            "B confirmed at the holder, C replaces it and is rejected",
            3,
            &[(2, Kind::Reject)],
            vec![(100.0, Edit(1)), (130.0, Edit(2))],
        ),
        named(
            "B half spread, C replaces it and is rejected",
            5,
            &[(2, Kind::Reject)],
            vec![(100.0, Edit(1)), (240.0, Edit(2))],
        ),
        named("the holder's container restarts in the bake", 1, &[], vec![(100.0, Edit(1)), (130.0, CrashHolder)]),
        named(
            "followers' containers restart in the spread, then stop",
            3,
            &[],
            vec![
                (100.0, Edit(1)),
                (280.0, Hurt(0, Harm::Crash)),
                (281.0, Hurt(1, Harm::Crash)),
                (282.0, Hurt(2, Harm::Crash)),
                (310.0, person(Person::Stop)),
            ],
        ),
        named(
            "all have it, the holder is scaled away before done",
            3,
            &[],
            vec![(100.0, Edit(1)), (310.0, PauseHolder(600.0)), (320.0, Op::ScaleAwayHolder)],
        ),
        named("reverted while the holder bakes", 3, &[], vec![(100.0, Edit(1)), (130.0, Edit(0))]),
        named("Lease deleted, then a bad edit", 3, reject, vec![(90.0, DeleteLease), (100.0, Edit(1))]),
        named("Lease deleted in the bake", 3, &[(1, Kind::Flaky)], vec![(100.0, Edit(1)), (130.0, DeleteLease)]),
        named(
            "scaled to 0, edited, back, no history",
            3,
            &[],
            vec![(90.0, DeleteHistory), (100.0, Scale(0)), (150.0, Edit(1)), (200.0, Scale(3))],
        ),
        named("the first edit ever is bad, then scaled up", 2, reject, vec![(100.0, Edit(1)), (200.0, Scale(4))]),
        named(
            "rejected, container killed before that is written",
            3,
            reject,
            vec![(100.0, Edit(1)), (101.0, Trap(Moment::Reject, Harm::Crash))],
        ),
        named(
            "rejected by two Pods that slept through the spread",
            6,
            &[(1, Kind::Some)],
            vec![(100.0, Edit(1)), (140.0, Hurt(0, Harm::Pause(500.0))), (141.0, Hurt(1, Harm::Pause(500.0)))],
        ),
        named(
            "reads spreading, is paused, stopped, goes on",
            3,
            &[],
            vec![(100.0, Edit(1)), (101.0, Trap(Moment::Start(Why::Spread), Harm::PauseAndStop(120.0)))],
        ),
        named(
            "claims, is paused, another claims, it wakes",
            3,
            &[],
            vec![(100.0, Edit(1)), (101.0, Trap(Moment::Start(Why::Hold), Harm::Pause(120.0)))],
        ),
        named("two API outages of 45 s", 4, &[], vec![(100.0, Edit(1)), (125.0, Down(45.0)), (230.0, Down(45.0))]),
        Named {
            spread: 1200.0,
            ..named(
                "an API outage of 100 s while polls are long",
                4,
                &[],
                vec![(100.0, Edit(1)), (190.0, Down(100.0)), (700.0, Down(100.0))],
            )
        },
        named(
            "main processes that cannot be reached",
            3,
            &[],
            vec![(90.0, Hurt(0, Harm::Sick(9000.0))), (91.0, Hurt(1, Harm::Sick(9000.0))), (100.0, Edit(1))],
        ),
        named(
            "B half spread, stopped, C comes at once",
            6,
            &[],
            vec![(100.0, Edit(1)), (260.0, person(Person::Stop)), (261.0, Edit(2))],
        ),
        named(
            "stop, retry",
            3,
            &[],
            vec![(100.0, Edit(1)), (130.0, person(Person::Stop)), (300.0, person(Person::Retry))],
        ),
        named(
            "rejected, fixed elsewhere, retry",
            3,
            reject,
            vec![(100.0, Edit(1)), (300.0, Fix(1)), (301.0, person(Person::Retry))],
        ),
        named(
            "good B reverted, bad C stopped, scaled up",
            3,
            &[(2, Kind::Reject)],
            vec![(100.0, Edit(1)), (800.0, Edit(0)), (1300.0, Edit(2)), (1500.0, Scale(5))],
        ),
        named(
            "a lagging replica sees the old change late",
            3,
            &[],
            vec![(100.0, Hurt(0, Harm::Broken(1500.0))), (101.0, Edit(1)), (102.0, Edit(2))],
        ),
        named("new templates while a bad edit is stopped", 3, reject, vec![(100.0, Edit(1)), (300.0, Templates(1))]),
        named("a change that gets its Pod evicted", 3, &[(1, Kind::Evict)], vec![(100.0, Edit(1))]),
        Named {
            fleets: vec![2, 2],
            ..named(
                "misuse: two fleets with one NAME",
                4,
                &[(101, Kind::Reject)],
                vec![
                    (100.0, Edit(1)),
                    (1000.0, Edit(101)),
                    (1200.0, Hurt(3, Harm::Kill)),
                    (1210.0, Hurt(0, Harm::Kill)),
                ],
            )
        },
    ]
}

#[test]
fn no_named_schedule_breaks_a_property() {
    let mut failed = Vec::new();
    for Named { name, ops, kinds, n, spread, fleets } in all_named() {
        let mut codes: BTreeMap<&str, (u32, String)> = BTreeMap::new();
        let mut took = 0;
        for seed in 0..40 {
            let kinds = kinds.iter().copied().collect();
            let schedule = Schedule { seed, ops: ops.clone(), kinds, n, mount: false, spread, fleets: fleets.clone() };
            let sim = run(&schedule);
            took = took.max(sim.books.took.values().map(std::collections::BTreeSet::len).max().unwrap_or(0));
            let is_misuse = !fleets.is_empty();
            let mut found: Vec<_> = sim.books.violations.iter().map(|(code, ..)| *code).collect();
            // With another fleet's history a new Pod waits, and asks; it must not start from that.
            found.retain(|code| !(is_misuse && matches!(*code, "WAITS" | "P5")));
            found.dedup();
            for code in found {
                codes.entry(code).or_insert_with(|| (0, story(&schedule, code))).0 += 1;
            }
        }
        println!("{name}: {codes:?}; at most {took} Pods took one change");
        failed.extend(codes.into_iter().map(|(code, (count, story))| format!("{name}: {count} × {code}\n{story}")));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
