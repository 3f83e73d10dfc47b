//! Any journal is read or refused, and with any directory beside it, and whatever happens then, the machine goes on.
//!
//! The input is the journal's text, a NUL, and what happens. Where there is no text, the journal is made of the rest.
#![no_main]

use arbitrary::{Arbitrary as _, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use trimtab::machine::{Disk, Effect, Event, Machine, Options, Outcome, Timer, Verdict, Write, recover};
use trimtab::model::digest::Digest;
use trimtab::model::journal::{Baseline, Debt, DebtKind, Generation, Journal, Moment, Quarantine, Rejection};
use trimtab::model::made_of::{MadeOf, Part, Parts};
use trimtab::model::object::{Kind, ObjectRef};
use trimtab::model::stage::Stage;

type Bytes<'a> = Unstructured<'a>;

/// One of a few, so that two are often the same.
fn digest(u: &mut Bytes<'_>) -> Result<Digest> {
    Ok(Digest::from_bytes([u.int_in_range(0..=3)?; 32]))
}

fn sequence(u: &mut Bytes<'_>) -> Result<u64> {
    let near_the_end = u64::MAX - u64::from(u.int_in_range(0..=2_u8)?);
    Ok(if u.ratio(1, 4)? { near_the_end } else { u.int_in_range(0..=5)? })
}

fn generation(u: &mut Bytes<'_>) -> Result<Generation> {
    let new = Generation::new(sequence(u)?, digest(u)?, digest(u)?, digest(u)?);
    Ok(Generation { made_of: maybe(u, made_of)?, ..new })
}

fn made_of(u: &mut Bytes<'_>) -> Result<MadeOf> {
    let id = ObjectRef { kind: Kind::ConfigMap, namespace: "ns".into(), name: "web".into() };
    let marks = maybe(u, |u| Ok((String::arbitrary(u)?, String::arbitrary(u)?)))?.into_iter().collect();
    let (created, secret) = (i64::arbitrary(u)?, bool::arbitrary(u)?);
    let part = Part { created, secret, keys: vec![String::arbitrary(u)?], marks };
    let parts = if bool::arbitrary(u)? { Parts::from([(id, part)]) } else { Parts::new() };
    Ok(MadeOf::new([("source".to_owned(), parts)]))
}

fn moment(u: &mut Bytes<'_>) -> Result<Moment> {
    Ok(Moment { boot_id: "boot".into(), ticks: u64::arbitrary(u)? })
}

fn baseline(u: &mut Bytes<'_>) -> Result<Baseline> {
    Ok(Baseline { reachable: bool::arbitrary(u)?, captured: maybe(u, digest)? })
}

fn debt(u: &mut Bytes<'_>) -> Result<Debt> {
    let kind = if bool::arbitrary(u)? { DebtKind::Publish } else { DebtKind::Rollback };
    Ok(Debt { kind, published: maybe(u, moment)?, baseline: maybe(u, baseline)? })
}

fn rejection(u: &mut Bytes<'_>) -> Result<Rejection> {
    let stage = *u.choose(&[Stage::Render, Stage::Validate, Stage::Reload, Stage::Confirm])?;
    Ok(Rejection { stage, reason: "why".into(), at: jiff::Timestamp::UNIX_EPOCH })
}

fn quarantine(u: &mut Bytes<'_>) -> Result<Quarantine> {
    Ok(Quarantine { digest: digest(u)?, gate: digest(u)?, rejection: rejection(u)? })
}

fn maybe<T>(u: &mut Bytes<'_>, some: impl FnOnce(&mut Bytes<'_>) -> Result<T>) -> Result<Option<T>> {
    if bool::arbitrary(u)? { some(u).map(Some) } else { Ok(None) }
}

fn journal(u: &mut Bytes<'_>) -> Result<Journal> {
    Ok(Journal {
        next_sequence: sequence(u)?,
        current: maybe(u, generation)?,
        from: maybe(u, generation)?,
        last_good: maybe(u, generation)?,
        debt: maybe(u, debt)?,
        prev_debt: maybe(u, debt)?,
        quarantine: maybe(u, quarantine)?,
        ..Journal::default()
    })
}

fn options(u: &mut Bytes<'_>) -> Result<Options> {
    let duration = |u: &mut Bytes<'_>| Ok(std::time::Duration::from_secs(u.int_in_range(0..=1)?));
    Ok(Options {
        debounce: duration(u)?,
        debounce_max: duration(u)?,
        min_interval: duration(u)?,
        splay: duration(u)?,
        attempts: u.int_in_range(1..=3)?,
        reload: bool::arbitrary(u)?,
        confirm: bool::arbitrary(u)?,
        rollback: bool::arbitrary(u)?,
        gate: digest(u)?,
        rollout: false,
    })
}

/// What the journal names and what it does not, each there or not.
fn disk(u: &mut Bytes<'_>, journal: Option<&Journal>) -> Result<Disk> {
    let named = journal.into_iter().flat_map(|journal| [&journal.current, &journal.from, &journal.last_good]);
    let mut directories: Vec<_> = named.flatten().map(|generation| generation.directory.clone()).collect();
    directories.push(generation(u)?.directory);
    directories.retain(|_| !u.ratio(1, 4).unwrap_or(false));
    directories.sort();
    directories.dedup();
    let link = if directories.is_empty() || u.ratio(1, 4)? { None } else { Some(u.choose(&directories)?.clone()) };
    let torn = |u: &mut Bytes<'_>| {
        let mut torn = directories.clone();
        torn.retain(|_| u.ratio(1, 2).unwrap_or(false));
        Ok(torn.into_iter().collect())
    };
    Ok(Disk { torn: maybe(u, torn)?, link, directories })
}

fn verdict(u: &mut Bytes<'_>) -> Result<Verdict> {
    Ok(match u.int_in_range(0..=2)? {
        0 => Verdict::Took,
        1 => Verdict::Unreachable,
        _ => Verdict::Refused(rejection(u)?),
    })
}

fn answer(u: &mut Bytes<'_>, effect: &Effect) -> Result<Option<Event>> {
    Ok(Some(match effect {
        Effect::Render { step, sequence, .. } => {
            let outcome = match u.int_in_range(0..=3)? {
                0 => {
                    let new = Generation::new(*sequence, digest(u)?, digest(u)?, digest(u)?);
                    let candidate = Generation { partial: bool::arbitrary(u)?, made_of: maybe(u, made_of)?, ..new };
                    Outcome::Staged { candidate, baseline: maybe(u, baseline)? }
                }
                1 => Outcome::Same { partial: bool::arbitrary(u)?, made_of: made_of(u)? },
                2 => Outcome::Rejected(rejection(u)?),
                _ => Outcome::Failed,
            };
            Event::Rendered { step: *step, outcome }
        }
        Effect::Write { step, writes } => {
            Event::Written { step: *step, done: u.int_in_range(0..=writes.len())?, at: maybe(u, moment)? }
        }
        Effect::Reload { step, .. } => Event::Reloaded { step: *step, verdict: verdict(u)? },
        Effect::Confirm { step, .. } => Event::Confirmed { step: *step, verdict: verdict(u)? },
        Effect::Verify { step, .. } => {
            Event::Verified { step: *step, sound: bool::arbitrary(u)?, baseline: maybe(u, baseline)? }
        }
        // Without a rollout it is never asked for.
        Effect::Ask(_) => return Ok(None),
        Effect::Arm(..) | Effect::Disarm(_) | Effect::Hurry(_) | Effect::Announce(_) | Effect::Exit => return Ok(None),
    }))
}

/// Of the effects so far, the newest is answered most often; an older one stands for an answer that comes too late.
fn event(u: &mut Bytes<'_>, effects: &[Effect]) -> Result<Option<Event>> {
    const TIMERS: [Timer; 9] = [
        Timer::Quiet,
        Timer::Ceiling,
        Timer::Interval,
        Timer::Splay,
        Timer::Again,
        Timer::Retry,
        Timer::Refused,
        Timer::Backoff,
        Timer::Patience,
    ];
    Ok(match u.int_in_range(0..=15)? {
        0..=8 => match effects.last() {
            Some(effect) => answer(u, effect)?,
            None => None,
        },
        9 if !effects.is_empty() => {
            let effect = u.choose(effects)?;
            answer(u, effect)?
        }
        9..=11 => Some(Event::Fired(*u.choose(&TIMERS)?)),
        12 | 13 => Some(Event::Observed(digest(u)?)),
        14 => Some(Event::Retry),
        _ => Some(Event::Shutdown),
    })
}

/// What the machine would write must be what it can read, and it must never remove what is current.
fn check(machine: &Machine, effects: &[Effect]) {
    let writes =
        effects.iter().filter_map(|effect| if let Effect::Write { writes, .. } = effect { Some(writes) } else { None });
    for write in writes.flatten() {
        match write {
            Write::Journal(journal) => assert_eq!(Journal::parse(&journal.to_bytes()).as_ref(), Ok(&**journal)),
            Write::Prune(keep) => {
                let current = &machine.journal().current;
                assert!(current.as_ref().is_none_or(|current| keep.contains(&current.directory)), "{keep:?}");
                assert!(keep.len() <= 3, "{keep:?}");
            }
            Write::Link(_) | Write::Swap(_) | Write::Unlink(_) | Write::Sync => {}
        }
    }
}

fn run(text: &[u8], rest: &[u8]) -> Result<()> {
    let u = &mut Unstructured::new(rest);
    let journal = if text.is_empty() { Some(journal(u)?) } else { Journal::parse(text).ok() };
    if let Some(journal) = &journal {
        assert_eq!(Journal::parse(&journal.to_bytes()).as_ref(), Ok(journal));
    }
    let disk = disk(u, journal.as_ref())?;
    let (mut machine, mut effects) = recover(options(u)?, journal, &disk);
    check(&machine, &effects);
    while !u.is_empty() {
        let Some(event) = event(u, &effects)? else { continue };
        let new = machine.on(event);
        check(&machine, &new);
        let _ = (machine.phase(), machine.is_settled(), machine.is_rejected());
        let is_answered = |effect: &Effect| {
            !matches!(effect, Effect::Arm(..) | Effect::Disarm(_) | Effect::Hurry(_) | Effect::Announce(_))
        };
        effects.extend(new.into_iter().filter(is_answered));
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let (text, rest) = match data.iter().position(|&byte| byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[][..]),
    };
    // The bytes ran out: that was all that happened.
    let _ = run(text, rest);
});
