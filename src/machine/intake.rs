//! The intake: newer inputs wait for quiet, for their pace, for their turn.

use super::work::{Next, Pause, Work};
use super::{Effect, Machine, Options, Timer, Wait};
use crate::model::digest::Digest;

/// How newer inputs wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intake {
    /// There are none.
    Calm,
    /// For quiet.
    Settling,
    /// For `--reload-min-interval`.
    Paced,
    /// For their part of `--reload-splay`.
    Splaying,
    /// For another try after a failed write.
    Again,
    /// For the step in flight.
    Ready,
}

impl Machine {
    pub(super) fn observed(&mut self, digest: Digest, effects: &mut Vec<Effect>) {
        let first = self.want.replace(digest).is_none();
        if !self.is_rejected() {
            self.journal.quarantine = None;
        }
        if self.is_rejected() && self.intake == Intake::Again {
            // While nothing is published, rejected inputs are tried again by themselves.
            return;
        }
        if (self.settled_on() == Some(digest) && !self.redo) || self.is_rejected() {
            self.calm(effects);
            return;
        }
        match self.intake {
            Intake::Calm if first => self.ready(effects),
            Intake::Calm if self.options.debounce.is_zero() => self.pace(effects),
            Intake::Calm => {
                self.intake = Intake::Settling;
                effects.push(Effect::Arm(Timer::Quiet, Wait::Exactly(self.options.debounce)));
                let Options { debounce, debounce_max, .. } = self.options;
                // What is left of it is for the work: a stream of edits leaves the main process no farther behind.
                let ceiling = debounce_max.saturating_sub(debounce).max(debounce);
                effects.push(Effect::Arm(Timer::Ceiling, Wait::Exactly(ceiling)));
            }
            Intake::Settling => effects.push(Effect::Arm(Timer::Quiet, Wait::Exactly(self.options.debounce))),
            Intake::Paced | Intake::Splaying | Intake::Again | Intake::Ready => {}
        }
    }

    pub(super) fn fired(&mut self, timer: Timer, effects: &mut Vec<Effect>) {
        match (timer, self.intake, &mut self.work) {
            (Timer::Quiet | Timer::Ceiling, Intake::Settling, _) => self.pace(effects),
            (Timer::Interval, intake, _) => {
                self.interval_open = true;
                if intake == Intake::Paced {
                    self.pace(effects);
                }
            }
            (Timer::Splay, Intake::Splaying, _) | (Timer::Again, Intake::Again, _) => self.ready(effects),
            (Timer::Retry, _, Work::Backoff(Next::Reload)) => {
                self.pause = Pause::None;
                self.reload(effects);
            }
            (Timer::Retry, ..) if self.pause == Pause::Running => self.pause = Pause::Over,
            (Timer::Refused, ..) => self.refused_long = true,
            (Timer::Backoff, _, Work::Backoff(Next::Clear)) => self.clear(effects),
            (Timer::Backoff, _, Work::Backoff(Next::Tidy)) => self.tidy(effects),
            (Timer::Patience, _, Work::Confirming { impatient, .. }) => {
                *impatient = true;
                self.go(effects);
            }
            _ => {}
        }
    }

    /// No inputs wait any more.
    pub(super) fn calm(&mut self, effects: &mut Vec<Effect>) {
        let timers: &[Timer] = match self.intake {
            Intake::Settling => &[Timer::Quiet, Timer::Ceiling],
            Intake::Splaying => &[Timer::Splay],
            Intake::Again => &[Timer::Again],
            Intake::Calm | Intake::Paced | Intake::Ready => &[],
        };
        effects.extend(timers.iter().copied().map(Effect::Disarm));
        self.intake = Intake::Calm;
    }

    /// The inputs are quiet: they go on at their pace. The first generation is not held up by a splay.
    pub(super) fn pace(&mut self, effects: &mut Vec<Effect>) {
        let splayed = self.intake == Intake::Splaying;
        self.calm(effects);
        if !self.interval_open {
            self.intake = Intake::Paced;
        } else if !self.options.splay.is_zero() && self.journal.current.is_some() && !splayed {
            self.intake = Intake::Splaying;
            effects.push(Effect::Arm(Timer::Splay, Wait::Within(self.options.splay)));
        } else {
            self.ready(effects);
        }
    }

    pub(super) fn ready(&mut self, effects: &mut Vec<Effect>) {
        self.calm(effects);
        self.intake = Intake::Ready;
        self.go(effects);
    }

    /// Takes waiting inputs in, if the step in flight allows it.
    pub(super) fn go(&mut self, effects: &mut Vec<Effect>) {
        if self.intake != Intake::Ready || self.stopping || !self.may_go() {
            return;
        }
        match self.work {
            Work::Waiting | Work::Backoff(Next::Reload) => self.render(effects),
            Work::Backoff(Next::Tidy) if !self.astray => self.render(effects),
            Work::Confirming { step, impatient: true } => effects.push(Effect::Hurry(step)),
            _ => {}
        }
    }
}
