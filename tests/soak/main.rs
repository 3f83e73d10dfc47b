//! `make soak`: sidecars beside sources and main processes that misbehave at random, from a seed, for an hour. What a
//! sidecar holds at the end it must have held soon after the start, and nobody may ever see what is bad.
//!
//! Round by round: actions, then peace. In peace all that was broken is put right and good content is written; once
//! each main process serves it, and each sidecar says that it has nothing to do, what is in the outputs is looked at,
//! and what the sidecars hold. All waiting is for a condition.

mod figures;
mod main_process;
#[allow(dead_code, reason = "the bench stands on it, too")]
#[path = "../rig/mod.rs"]
mod rig;
mod sidecar;
mod sources;

use std::collections::BTreeMap;
use std::env;
use std::path::Path;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use main_process::{Kind, Mark, Mood, Reader};
use rig::measure::now;
use rig::trimtab;
use sidecar::{Main, Sidecar};
use sources::{OBJECTS, Sources};

/// Until a condition must hold, however busy the machine is.
const DEADLINE: Duration = Duration::from_mins(2);
/// Actions of a round.
const ACTIONS: u64 = 20;
/// Between two of them at most: less than the debounce, so that some are joined, or more.
const PAUSE: u64 = 600;
/// What is measured before is not counted: what is made once is made by then.
const WARM_UP: Duration = Duration::from_mins(1);
/// Rounds that are counted, at least: three thirds of two.
const ROUNDS: usize = 6;

/// What is done, how often (of all these), and to what.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    EditSite(Mark),
    LargeSite,
    StripSite,
    TouchSite,
    DeleteSite,
    EditSecret,
    DeleteSecret,
    Swap(Mark),
    SwapSame,
    LargeSwap,
    EmptyVolume,
    EditObject(Mark),
    DeleteObject,
    Outage,
    ServerMood,
    KillTarget,
    Kill,
    End,
    HangUp,
    Retry,
}

const OF_THE_SERVER: [(Action, u64, &str); 12] = [
    (Action::EditSite(Mark::Good), 10, "ConfigMap edited"),
    (Action::EditSite(Mark::Invalid), 4, "ConfigMap does not validate"),
    (Action::EditSite(Mark::Refused), 4, "ConfigMap is refused, rolled back"),
    (Action::EditSite(Mark::Silent), 2, "ConfigMap is not confirmed, rolled back"),
    (Action::StripSite, 3, "ConfigMap does not render"),
    (Action::LargeSite, 3, "ConfigMap of 400 kB"),
    (Action::TouchSite, 3, "ConfigMap with the same bytes"),
    (Action::DeleteSite, 2, "ConfigMap deleted"),
    (Action::EditSecret, 4, "Secret edited"),
    (Action::DeleteSecret, 1, "Secret deleted"),
    (Action::EditObject(Mark::Good), 6, "selected object edited"),
    (Action::EditObject(Mark::Invalid), 3, "selected object is malformed"),
];
const OF_THE_NODE: [(Action, u64, &str); 12] = [
    (Action::Swap(Mark::Good), 6, "volume swapped"),
    (Action::Swap(Mark::Invalid), 2, "volume is malformed"),
    (Action::Swap(Mark::Deadly), 2, "main process dies of the volume"),
    (Action::SwapSame, 3, "volume with the same bytes"),
    (Action::LargeSwap, 2, "volume of 800 kB"),
    (Action::EmptyVolume, 2, "volume emptied"),
    (Action::ServerMood, 5, "main process closes, answers 503, answers"),
    (Action::KillTarget, 2, "main process killed"),
    (Action::Kill, 4, "sidecar killed, started"),
    (Action::End, 2, "sidecar ended, started"),
    (Action::HangUp, 3, "SIGHUP to the sidecar"),
    (Action::Retry, 3, "trimtab retry"),
];
const RARE: [(Action, u64, &str); 2] =
    [(Action::DeleteObject, 3, "selected object deleted"), (Action::Outage, 1, "API server killed, started")];

/// splitmix64: all that is thrown comes from its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    /// One of these, by their weights.
    fn choose(&mut self, among: &[(Action, u64, &'static str)]) -> (Action, &'static str) {
        let mut at = self.below(among.iter().map(|(_, weight, _)| weight).sum());
        for (action, weight, what) in among {
            if at < *weight {
                return (*action, what);
            }
            at -= weight;
        }
        unreachable!("it is below the sum")
    }

    fn of<'a, T>(&mut self, among: &'a mut [T]) -> &'a mut T {
        let at = self.below(among.len() as u64);
        &mut among[usize::try_from(at).unwrap_or_default()]
    }
}

/// Waits for a condition, which says what it misses; `Err` in it is an end at once.
fn until(what: &str, mut holds: impl FnMut() -> Result<Result<(), String>>) -> Result<()> {
    let deadline = now() + DEADLINE;
    loop {
        match holds()? {
            Ok(()) => return Ok(()),
            Err(missing) if now() > deadline => bail!("no {what} within {DEADLINE:?}: {missing}"),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn setting<T: FromStr>(name: &str, default: T) -> Result<T> {
    match env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().ok().with_context(|| format!("{name}={text} is no number")),
        _ => Ok(default),
    }
}

/// All that takes part.
struct Soak {
    dice: Dice,
    sidecars: Vec<Sidecar>,
    sources: Sources,
    counts: BTreeMap<&'static str, u64>,
    actions: u64,
}

fn main() -> Result<()> {
    // This program again, as a main process.
    if let ["target", output] = *env::args().skip(1).collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>()
    {
        return main_process::run(output.as_ref());
    }
    soak()
}

/// Soaks, prints the table, and fails on growth or on what should not be.
fn soak() -> Result<()> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
    let seed: u64 = setting("SOAK_SEED", u64::from(clock))?;
    let seconds: u64 = setting("SOAK_SECONDS", 3600)?;
    let time = Duration::from_secs(seconds);
    println!("soak: SOAK_SEED={seed} SOAK_SECONDS={seconds}");
    let begin = now();
    let mut soak = Soak::start(seed)?;
    let ended = soak.turn(time);
    let took = now().saturating_sub(begin).as_secs();
    println!("soak: SOAK_SEED={seed} SOAK_SECONDS={seconds}: {} actions in {took} s", soak.actions);
    for (what, count) in &soak.counts {
        println!("  {count:>6}  {what}");
    }
    let rounds = ended.with_context(|| format!("SOAK_SEED={seed} repeats the actions; action {}", soak.actions))?;
    figures::judge(&soak.sidecars, &rounds)
}

impl Soak {
    fn start(seed: u64) -> Result<Self> {
        let (disk, memory) = (Path::new(env!("CARGO_TARGET_TMPDIR")), Path::new("/dev/shm"));
        let binary = trimtab()?;
        let sources = Sources::start(memory)?;
        let mut sidecars = Vec::new();
        for is_steady in [true, false] {
            for (kind, below) in [(Kind::Rendered, disk), (Kind::Plain, memory)] {
                sidecars.push(Sidecar::start(&binary, below, kind, is_steady, &sources.flags(kind))?);
            }
        }
        Ok(Self { dice: Dice(seed), sidecars, sources, counts: BTreeMap::new(), actions: 0 })
    }

    /// Round by round until the time is over; what the sidecars held after each that counts.
    fn turn(&mut self, time: Duration) -> Result<Vec<figures::Round>> {
        let _reader = Reader::start(self.sidecars.iter().map(|sidecar| sidecar.watched.clone()).collect());
        let begin = now();
        self.peace()?;
        let warm = begin + WARM_UP.min(time / 3).max(time / 10);
        let mut rounds: Vec<figures::Round> = Vec::new();
        while now() < begin + time || rounds.len() < ROUNDS {
            for _ in 0..ACTIONS {
                let (action, what) = match self.dice.below(20) {
                    0 => self.dice.choose(&RARE),
                    1..12 => self.dice.choose(&OF_THE_SERVER),
                    _ => self.dice.choose(&OF_THE_NODE),
                };
                self.act(action, what)?;
            }
            let round = self.peace()?;
            eprintln!(
                "soak: {:.0} s, {} actions: {}",
                now().saturating_sub(begin).as_secs_f64(),
                self.actions,
                figures::brief(&round)
            );
            if now() > warm {
                rounds.push(round);
            }
        }
        Ok(rounds)
    }

    fn pause(&mut self) {
        // Often nothing, so that things meet.
        let pause = self.dice.below(PAUSE * 3 / 2).saturating_sub(PAUSE / 2);
        thread::sleep(Duration::from_millis(pause));
    }

    fn act(&mut self, action: Action, what: &'static str) -> Result<()> {
        *self.counts.entry(what).or_default() += 1;
        self.actions += 1;
        let Self { dice, sidecars, sources, .. } = self;
        let at = usize::try_from(dice.below(OBJECTS as u64))?;
        match action {
            Action::EditSite(mark) => sources.edit_site(mark, false)?,
            Action::LargeSite => sources.edit_site(Mark::Good, true)?,
            Action::StripSite => sources.strip_site()?,
            Action::TouchSite => sources.touch_site()?,
            Action::DeleteSite => sources.delete_site()?,
            Action::EditSecret => sources.edit_secret()?,
            Action::DeleteSecret => sources.delete_secret()?,
            Action::Swap(mark) => sources.swap(mark, false)?,
            Action::SwapSame => sources.swap_same()?,
            Action::LargeSwap => sources.swap(Mark::Good, true)?,
            Action::EmptyVolume => sources.empty_volume()?,
            Action::EditObject(mark) => sources.edit_object(at, mark)?,
            Action::DeleteObject => sources.delete_object(at)?,
            Action::Outage => {
                sources.cluster.server.kill();
                for _ in 0..self.dice.below(6) {
                    let (action, what) = self.dice.choose(&OF_THE_NODE);
                    self.act(action, what)?;
                }
                self.sources.cluster.start_again();
            }
            Action::ServerMood => {
                let mood = *dice.of(&mut [Mood::Up, Mood::Deaf, Mood::Busy]);
                if let Main::Server(server) = &dice.of(of_kind(sidecars, Kind::Rendered).as_mut_slice()).main {
                    server.set_mood(mood);
                }
            }
            Action::KillTarget => {
                if let Main::Signalled(process) = &mut dice.of(of_kind(sidecars, Kind::Plain).as_mut_slice()).main {
                    process.kill();
                }
            }
            Action::Kill | Action::End => {
                let mut mortal: Vec<_> = sidecars.iter_mut().filter(|sidecar| !sidecar.is_steady).collect();
                let at_once = dice.below(2) == 0;
                let sidecar = dice.of(&mut mortal);
                let runs = sidecar.runs();
                match action {
                    Action::Kill => sidecar.kill()?,
                    _ => sidecar.end()?,
                }
                if at_once || !runs {
                    sidecar.run()?;
                }
            }
            Action::HangUp => dice.of(sidecars).hang_up()?,
            Action::Retry => dice.of(sidecars).retry()?,
        }
        self.pause();
        self.sidecars.iter_mut().try_for_each(Sidecar::tend)
    }

    /// Puts all right, writes good content, waits until it is everywhere, and measures.
    fn peace(&mut self) -> Result<figures::Round> {
        self.sidecars.iter_mut().try_for_each(Sidecar::put_right)?;
        // What came last may be bad: it must be settled too.
        self.wait("end of the work", |sidecar, _| sidecar.is_idle())?;
        self.sources.settle()?;
        self.delivery()?;
        // Two generations are kept: what is large goes with the second edit after it, and what is in the output of
        // single files depends on what the last two have changed.
        for _ in 0..2 {
            self.sources.edit_site(Mark::Good, false)?;
            self.sources.edit_object(0, Mark::Good)?;
            self.delivery()?;
        }
        for sidecar in &self.sidecars {
            sidecar.watched.set_floor(&self.sources.expected(sidecar.kind));
        }
        let actions = self.actions;
        let samples = self.sidecars.iter();
        samples.map(|sidecar| sidecar.sample(actions)).collect()
    }

    fn delivery(&mut self) -> Result<()> {
        self.wait("delivery", |sidecar, sources| sidecar.has_delivered(&sources.expected(sidecar.kind)))
    }

    fn wait(&mut self, what: &str, holds: impl Fn(&Sidecar, &Sources) -> Result<(), String>) -> Result<()> {
        let Self { sidecars, sources, .. } = self;
        until(what, || {
            sidecars.iter_mut().try_for_each(Sidecar::tend)?;
            let missing = sidecars.iter().find_map(|sidecar| {
                let missing = holds(sidecar, sources).err()?;
                Some(format!("{}: {missing}\n{}", sidecar.name(), sidecar.tail()))
            });
            Ok(missing.map_or(Ok(()), Err))
        })
    }
}

fn of_kind(sidecars: &mut [Sidecar], kind: Kind) -> Vec<&mut Sidecar> {
    sidecars.iter_mut().filter(|sidecar| sidecar.kind == kind).collect()
}
