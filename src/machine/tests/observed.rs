//! Tests of what the main process reads by itself: it makes a generation of its own, and is no part of a way back.

use jiff::Timestamp;

use super::*;
use crate::model::journal::{DebtKind, Generation, Rejection};
use crate::model::stage::Stage;

/// Inputs: what is written, and what the main process reads by itself.
fn inputs(files: u8, observed: u8) -> Digest {
    let mut bytes = [files; 32];
    bytes[16..].fill(observed);
    Digest::from_bytes(bytes)
}

fn part(of: u8) -> Digest {
    Digest::from_bytes([of; 32])
}

fn rejection() -> Rejection {
    Rejection { stage: Stage::Reload, reason: String::new(), at: Timestamp::UNIX_EPOCH }
}

/// A machine whose effects are carried out at once.
struct Play {
    machine: Machine,
    files: u8,
    observed: u8,
    /// What the main process does not take, be it written or not.
    poison: Option<u8>,
    /// What no validator lets pass.
    malformed: Option<u8>,
    directories: Vec<String>,
    link: Option<String>,
    /// What the main process had before it at each attempt.
    reloads: Vec<(u8, u8)>,
    held: u32,
}

impl Play {
    fn new() -> Self {
        let mut play = Self {
            machine: recover(at_once(), None, &Disk::default()).0,
            files: 0,
            observed: 0,
            poison: None,
            malformed: None,
            directories: Vec::new(),
            link: None,
            reloads: Vec::new(),
            held: 0,
        };
        play.start_again();
        play
    }

    fn start_again(&mut self) {
        let journal = Some(self.machine.journal().clone()).filter(|_| self.link.is_some());
        let disk = Disk { link: self.link.clone(), directories: self.directories.clone(), torn: None };
        let (machine, effects) = recover(at_once(), journal, &disk);
        self.machine = machine;
        self.carry_out(effects);
    }

    fn edit(&mut self, files: u8, observed: u8) {
        (self.files, self.observed) = (files, observed);
        self.on(Event::Observed(inputs(files, observed)));
    }

    fn on(&mut self, event: Event) {
        let effects = self.machine.on(event);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Render { step, sequence, unless } => {
                    let digest = inputs(self.files, self.observed);
                    let new = Generation::new(sequence, digest, digest, part(self.files));
                    let outcome = if [self.files, self.observed].iter().any(|it| self.malformed == Some(*it)) {
                        Outcome::Rejected(rejection())
                    } else {
                        assert_ne!(unless, Some(digest), "an edit in place renders to another generation");
                        let candidate = Generation { observed: Some(part(self.observed)), ..new };
                        self.directories.push(candidate.directory.clone());
                        Outcome::Staged { candidate, baseline: None }
                    };
                    self.on(Event::Rendered { step, outcome });
                }
                Effect::Write { step, writes } => {
                    let swapped = writes.iter().find_map(|write| match write {
                        Write::Swap(generation) => Some(generation.directory.clone()),
                        _ => None,
                    });
                    self.link = swapped.or(self.link.take());
                    self.on(Event::Written { step, done: writes.len(), at: None });
                }
                Effect::Reload { step, generation, .. } => {
                    let files = generation.content.as_bytes()[0];
                    self.reloads.push((files, self.observed));
                    let poisoned = [files, self.observed].iter().any(|it| self.poison == Some(*it));
                    let verdict = if poisoned { Verdict::Refused(rejection()) } else { Verdict::Took };
                    self.on(Event::Reloaded { step, verdict });
                }
                Effect::Verify { step, .. } => self.on(Event::Verified { step, sound: true, baseline: None }),
                Effect::Announce(Milestone::Held) => self.held += 1,
                _ => {}
            }
        }
    }

    /// Those since the last time.
    fn reloads(&mut self) -> Vec<(u8, u8)> {
        std::mem::take(&mut self.reloads)
    }
}

#[test]
fn an_edit_in_place_that_is_refused_is_held_and_its_undoing_is_reloaded() {
    let mut play = Play::new();
    play.edit(1, 1);
    assert_eq!(play.reloads(), [(1, 1)]);
    play.poison = Some(2);
    play.edit(1, 2);
    assert_eq!(play.reloads(), [(1, 2)], "to go back would change nothing");
    assert_eq!((play.machine.phase(), play.held), (Phase::Held, 1));
    assert!(play.machine.journal().is_due(DebtKind::Publish));
    // A restart knows it, and does not try the same again but as what is held.
    play.start_again();
    play.reloads();
    play.edit(1, 2);
    assert!(play.machine.is_held() && play.machine.is_rejected());
    play.reloads();
    play.edit(1, 1);
    assert_eq!(play.reloads(), [(1, 1)]);
    assert!(play.machine.is_settled() && !play.machine.is_held() && play.machine.journal().quarantine.is_none());
}

#[test]
fn an_edit_in_place_that_was_not_let_pass_is_undone_without_a_reload() {
    let mut play = Play::new();
    play.edit(1, 1);
    play.malformed = Some(2);
    play.reloads();
    play.edit(1, 2);
    assert!(play.machine.is_rejected() && !play.machine.is_held());
    play.edit(1, 1);
    assert!(play.machine.is_settled() && play.machine.journal().quarantine.is_none());
    assert_eq!(play.reloads(), [], "the main process was never notified");
}

#[test]
fn what_is_written_is_taken_back_and_what_is_not_is_known_to_be_another() {
    for restart in [false, true] {
        let mut play = Play::new();
        play.edit(1, 1);
        let good = play.link.clone();
        play.reloads();
        play.poison = Some(3);
        play.edit(3, 2);
        assert_eq!(play.reloads(), [(3, 2), (1, 2)]);
        assert_eq!(play.link, good);
        assert!(play.machine.is_rejected() && play.machine.journal().debt.is_none());
        if restart {
            play.start_again();
            play.edit(3, 2);
            assert_eq!(play.reloads(), []);
        }
        // The main process runs the first files beside the second ones of its own.
        play.edit(1, 1);
        assert_eq!(play.reloads(), [(1, 1)]);
        assert!(play.machine.is_settled());
    }
}

#[test]
fn a_way_back_that_ends_in_the_same_refusal_is_held_until_it_is_undone() {
    let mut play = Play::new();
    play.edit(1, 1);
    play.reloads();
    play.poison = Some(2);
    play.edit(3, 2);
    assert_eq!(play.reloads(), [(3, 2), (1, 2)]);
    assert!(play.machine.is_held() && play.machine.journal().is_due(DebtKind::Rollback));
    play.edit(3, 1);
    assert_eq!(play.reloads(), [(3, 1)]);
    assert!(play.machine.is_settled() && !play.machine.is_held());
}
