//! *Go*, *wait* and *back*, step by step.

use super::super::{Disk, Event, Milestone, Options, Outcome, Verdict, Write, recover};
use super::*;
use crate::machine::tests::at_once;
use crate::model::journal::Journal;

fn digest(n: u8) -> Digest {
    Digest::from_bytes([n; 32])
}

fn leave(n: u8) -> Leave {
    Leave { inputs: digest(n), change: digest(100 + n), retries: 3, good: false, base: false }
}

fn rejection() -> Rejection {
    Rejection { stage: crate::model::stage::Stage::Confirm, reason: "no".to_owned(), at: jiff::Timestamp::UNIX_EPOCH }
}

/// A machine, and what it asked for that is not done yet.
struct World {
    machine: Machine,
    effects: Vec<Effect>,
    journal: Journal,
}

impl World {
    fn new() -> Self {
        let options = Options { rollout: true, ..at_once() };
        let (machine, effects) = recover(options, None, &Disk::default());
        let mut world = Self { machine, effects: Vec::new(), journal: Journal::default() };
        world.take(effects);
        world
    }

    /// Does what needs no decision here: writes, checks of the way back.
    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Write { step, writes } => {
                    let mut journals = writes.iter().filter_map(|write| match write {
                        Write::Journal(journal) => Some(journal),
                        _ => None,
                    });
                    if let Some(journal) = journals.next_back() {
                        self.journal = Journal::clone(journal);
                    }
                    self.on(Event::Written { step, done: writes.len(), at: None });
                }
                Effect::Verify { step, .. } => self.on(Event::Verified { step, sound: true, baseline: None }),
                other => self.effects.push(other),
            }
        }
    }

    fn on(&mut self, event: Event) {
        let effects = self.machine.on(event);
        self.take(effects);
    }

    fn found<T>(&mut self, is: impl Fn(&Effect) -> Option<T>) -> Option<T> {
        let at = self.effects.iter().position(|effect| is(effect).is_some())?;
        is(&self.effects.remove(at))
    }

    fn render(&mut self) -> Option<(Step, u64)> {
        self.found(|effect| match effect {
            Effect::Render { step, sequence, .. } => Some((*step, *sequence)),
            _ => None,
        })
    }

    fn staged(&mut self, n: u8) -> Step {
        let (step, sequence) = self.render().expect("it renders");
        let candidate = Generation::new(sequence, digest(n), digest(n), digest(n));
        self.on(Event::Rendered { step, outcome: Outcome::Staged { candidate, baseline: None } });
        self.found(|effect| if let Effect::Ask(step) = effect { Some(*step) } else { None }).expect("it asks")
    }

    fn reloaded(&mut self, verdict: Verdict) {
        let step = self.found(|effect| if let Effect::Reload { step, .. } = effect { Some(*step) } else { None });
        self.on(Event::Reloaded { step: step.expect("it reloads"), verdict });
    }

    fn leave(&mut self, n: u8) {
        self.on(Event::Go(leave(n)));
    }

    fn goes(&mut self, n: u8) {
        self.on(Event::Observed(digest(n)));
        assert_eq!(self.render(), None, "nothing goes without leave");
        self.leave(n);
        let step = self.staged(n);
        self.on(Event::Allowed { step, allowed: true });
    }

    /// It goes, the main process takes it, and the fleet knows it to be good.
    fn settles(&mut self, n: u8) {
        self.goes(n);
        self.reloaded(Verdict::Took);
        self.on(Event::Remember(Memory::Settle));
    }

    fn current(&self) -> Option<Digest> {
        self.journal.current.as_ref().map(|current| current.digest)
    }
}

#[test]
fn inputs_wait_for_leave_and_are_asked_for_again_before_the_rename() {
    let mut world = World::new();
    world.on(Event::Observed(digest(1)));
    assert!(world.render().is_none() && world.machine.waits_for_fleet() && !world.machine.is_settled());
    world.leave(1);
    let step = world.staged(1);
    world.on(Event::Allowed { step, allowed: false });
    assert_eq!(world.current(), None, "what may not go is not published");
    assert!(world.machine.waits_for_fleet() && world.render().is_none());
    world.leave(1);
    let step = world.staged(1);
    world.on(Event::Allowed { step, allowed: true });
    assert_eq!(world.current(), Some(digest(1)));
    assert_eq!(world.journal.current.as_ref().unwrap().change, Some(digest(101)));
    world.reloaded(Verdict::Took);
    assert!(world.machine.is_settled());
}

#[test]
fn leave_for_other_inputs_is_none() {
    let mut world = World::new();
    world.on(Event::Observed(digest(1)));
    world.leave(2);
    assert_eq!(world.render(), None);
}

#[test]
fn back_leads_to_the_base_without_a_quarantine_and_the_newer_inputs_wait() {
    let mut world = World::new();
    world.settles(1);
    world.goes(2);
    world.reloaded(Verdict::Took);
    assert_eq!(world.journal.fleet.as_ref().unwrap().base.as_ref().unwrap().digest, digest(1));
    let kept = world.journal.clone();
    world.on(Event::Back);
    assert_eq!((world.current(), world.journal.quarantine.as_ref()), (Some(digest(1)), None));
    assert!(world.effects.contains(&Effect::Announce(Milestone::RolledBack {
        from: kept.current.as_ref().unwrap().sequence,
        to: world.journal.current.clone().unwrap(),
    })));
    world.reloaded(Verdict::Took);
    assert!(world.machine.waits_for_fleet() && world.render().is_none());
}

#[test]
fn a_rejection_leads_to_the_base_and_is_remembered_in_the_journal_of_the_way_back() {
    let mut world = World::new();
    world.settles(1);
    world.goes(2);
    world.reloaded(Verdict::Took);
    world.goes(3);
    let rejection = Rejection {
        stage: crate::model::stage::Stage::Reload,
        reason: "no".to_owned(),
        at: jiff::Timestamp::UNIX_EPOCH,
    };
    world.reloaded(Verdict::Refused(rejection));
    assert_eq!(world.current(), Some(digest(1)), "the base, not what was confirmed here last");
    let fleet = world.journal.fleet.clone().unwrap();
    assert_eq!((fleet.rejected, fleet.retries), (Some(digest(103)), 3));
    assert_eq!(Journal::parse(&world.journal.to_bytes()), Ok(world.journal.clone()), "it survives a restart");
    world.reloaded(Verdict::Took);
    assert!(world.machine.is_rejected() && world.render().is_none());
    world.on(Event::Remember(Memory::ForgetRejection));
    assert!(world.machine.waits_for_fleet(), "it may be tried again, once the fleet says so");
}

#[test]
fn what_confirmed_and_did_not_hold_is_rejected_as_if_it_never_had() {
    let mut world = World::new();
    world.settles(1);
    world.goes(2);
    world.on(Event::NotHeld { rejection: rejection(), retries: 7 });
    assert_eq!(world.current(), Some(digest(2)), "a verdict of its own is on its way");
    world.reloaded(Verdict::Took);
    world.on(Event::NotHeld { rejection: rejection(), retries: 7 });
    assert_eq!(world.current(), Some(digest(1)));
    let fleet = world.journal.fleet.clone().unwrap();
    assert_eq!((fleet.rejected, fleet.retries), (Some(digest(102)), 7));
    assert_eq!(world.journal.quarantine.as_ref().unwrap().rejection, rejection());
    world.reloaded(Verdict::Took);
    assert!(world.machine.is_rejected() && world.render().is_none());
}

#[test]
fn what_the_fleet_had_is_the_base_from_its_publish_on() {
    let mut world = World::new();
    world.on(Event::Observed(digest(2)));
    assert_eq!(world.render(), None);
    world.on(Event::Observed(digest(1)));
    world.on(Event::Go(Leave { base: true, ..leave(1) }));
    let step = world.staged(1);
    world.on(Event::Allowed { step, allowed: true });
    let base = world.journal.fleet.clone().unwrap().base.expect("the journal that announces it names the base");
    assert_eq!((base.digest, base.change), (digest(1), Some(digest(101))));
    // The newest inputs are back, and wait.
    world.on(Event::Observed(digest(2)));
    world.reloaded(Verdict::Took);
    assert!(world.machine.waits_for_fleet() && world.render().is_none());
    assert_eq!(world.journal.fleet.clone().unwrap().base, Some(base));
    // What goes next and is rejected leads there.
    world.leave(2);
    let step = world.staged(2);
    world.on(Event::Allowed { step, allowed: true });
    assert_eq!(world.current(), Some(digest(2)));
    world.reloaded(Verdict::Refused(rejection()));
    assert_eq!(world.current(), Some(digest(1)));
}

#[test]
fn a_change_that_renders_to_what_is_published_is_published() {
    let mut world = World::new();
    world.settles(1);
    world.on(Event::Observed(digest(2)));
    world.leave(2);
    let (step, _) = world.render().unwrap();
    let made_of = crate::model::made_of::MadeOf::default();
    world.on(Event::Rendered { step, outcome: Outcome::Same { partial: false, made_of } });
    let current = world.journal.current.clone().unwrap();
    assert_eq!((current.digest, current.change), (digest(1), Some(digest(102))));
    assert!(world.machine.is_settled());
    assert_eq!(world.journal.last_good, world.journal.current, "it is confirmed, as what is published is");
    let base = world.journal.fleet.as_ref().unwrap().base.as_ref().unwrap().change;
    assert_eq!(base, Some(digest(101)), "until the fleet knows it to be good");
}
