//! The contract as a program, and the rules of this one: the same action in each of many random states.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use trimtab::model::digest::Digest;
use trimtab::rollout::{Action, Clock, Dice, Lease, Reason, Replica, State, Why, decide};

use super::world::{choice, digest, number};

/// Each of them takes microseconds.
const STATES: usize = 40_000;
/// Few changes and few Pods, so that they are often the same.
const CHANGES: u32 = 4;

fn one(dice: &mut Dice) -> Digest {
    digest(u32::try_from(dice.roll() % u64::from(CHANGES)).unwrap())
}

fn maybe(dice: &mut Dice) -> Option<Digest> {
    (!dice.roll().is_multiple_of(4)).then(|| one(dice))
}

fn coin(dice: &mut Dice) -> bool {
    dice.roll().is_multiple_of(2)
}

fn replica(dice: &mut Dice) -> Replica {
    Replica {
        uid: "u0".to_owned(),
        newest: maybe(dice),
        published: maybe(dice),
        base: maybe(dice),
        confirmed: coin(dice),
        rejected: maybe(dice).filter(|_| coin(dice)),
        rejected_at: dice.roll() % 2,
        busy: dice.roll().is_multiple_of(4),
        owes: dice.roll().is_multiple_of(4),
        claimed: coin(dice),
        reverted: coin(dice),
    }
}

fn lease(dice: &mut Dice) -> Option<Lease> {
    if dice.roll().is_multiple_of(6) {
        return None;
    }
    let state = choice(dice, &State::ALL);
    let (mut good, mut stopped) = (Vec::new(), Vec::new());
    for change in 0..CHANGES {
        match dice.roll() % 4 {
            0 => good.push(digest(change)),
            1 => stopped.push(digest(change)),
            _ => {}
        }
    }
    Some(Lease {
        holder: choice(dice, &["", "u0", "u0", "u1"]).to_owned(),
        candidate: (state != State::None).then(|| one(dice)),
        state,
        points: choice(dice, &[0, 2, 5, 8]),
        good,
        stopped,
        retries: dice.roll() % 2,
        renewals: dice.roll() % 100,
        returned: coin(dice),
    })
}

fn clock(dice: &mut Dice) -> Clock {
    Clock {
        expired: coin(dice),
        my_moment: coin(dice),
        baked: coin(dice),
        spread_over: coin(dice),
        no_verdict: coin(dice),
        history: maybe(dice).filter(|_| coin(dice)),
    }
}

fn of(change: Option<Digest>) -> Value {
    change.map_or(Value::Null, |change| number(change).into())
}

fn of_lease(lease: &Lease) -> Value {
    let all = |changes: &[Digest]| changes.iter().map(|change| number(*change)).collect::<Vec<_>>();
    let Lease { holder, candidate, state, points, good, stopped, retries, renewals, returned } = lease;
    json!([holder, of(*candidate), state.as_str(), points, all(good), all(stopped), retries, renewals, returned])
}

fn asked(me: &Replica, lease: Option<&Lease>, clock: Clock) -> Value {
    let Replica { uid, newest, published, base, confirmed, rejected, rejected_at, busy, owes, claimed, reverted } = me;
    let rejected = of(*rejected);
    let (newest, published, base) = (of(*newest), of(*published), of(*base));
    let me = json!([uid, newest, published, base, confirmed, rejected, rejected_at, busy, owes, claimed, reverted]);
    let Clock { expired, my_moment, baked, spread_over, no_verdict, history } = clock;
    json!([
        me,
        lease.map_or(Value::Null, of_lease),
        [json!(expired), json!(my_moment), json!(baked), json!(spread_over), json!(no_verdict), of(history)]
    ])
}

/// In the contract's words.
fn answer(action: &Action) -> Value {
    match action {
        Action::Rest => json!(["rest"]),
        Action::Poll => json!(["poll"]),
        Action::PollSlowly => json!(["poll slowly"]),
        Action::Renew => json!(["renew"]),
        Action::Back => json!(["back"]),
        Action::Settle => json!(["settle"]),
        Action::ForgetRejection => json!(["forget rejection"]),
        Action::WriteHistory(change) => json!(["write history", number(*change)]),
        Action::StartFromHistory(change) => json!(["start from history", number(*change)]),
        Action::Go(change, why) => {
            let why = match why {
                Why::First => "first",
                Why::Hold => "hold",
                Why::Spread => "spread",
                Why::Good => "good",
            };
            json!(["go", number(*change), why])
        }
        Action::Write(lease, reason) => {
            let reason = match reason {
                Reason::First => "first",
                Reason::Claim => "claim",
                Reason::HoldersLost => "holders lost",
                Reason::Renew => "renew",
                Reason::Replaced => "replaced",
                Reason::Abandoned => "abandoned",
                Reason::GivenUp => "given up",
                Reason::GivenBack => "given back",
                Reason::Baking => "baking",
                Reason::Spreading => "spreading",
                Reason::Done => "done",
                Reason::Reverted => "reverted",
                Reason::Rejected => "rejected",
                Reason::Gate => "gate",
            };
            json!(["write", of_lease(lease), reason])
        }
    }
}

#[test]
fn the_rules_do_what_the_contract_does() {
    let mut dice = Dice::new(1);
    let mut python = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rollout/protocol.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3, which the contract is written in");
    let states: Vec<_> = (0..STATES).map(|_| (replica(&mut dice), lease(&mut dice), clock(&mut dice))).collect();
    let questions: String =
        states.iter().map(|(me, lease, clock)| asked(me, lease.as_ref(), *clock).to_string() + "\n").collect();
    let mut to = python.stdin.take().unwrap();
    // While its answers are read, or both would wait.
    let writer = std::thread::spawn(move || to.write_all(questions.as_bytes()));
    let output = python.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), STATES);
    let mut reached: BTreeMap<String, usize> = BTreeMap::new();
    for (line, (me, lease, clock)) in text.lines().zip(&states) {
        let expected: Value = serde_json::from_str(line).unwrap();
        let found = answer(&decide(me, lease.as_ref(), *clock));
        assert_eq!(found, expected, "\n{me:#?}\n{lease:#?}\n{clock:#?}");
        let words = expected.as_array().unwrap().iter().filter_map(Value::as_str).collect::<Vec<_>>().join(": ");
        *reached.entry(words).or_default() += 1;
    }
    println!("{reached:#?}");
    // Eleven kinds of action, of which *go* has four reasons and *write* eleven.
    assert!(reached.len() == 24 && reached.values().all(|count| *count > 10), "{reached:#?}");
}
