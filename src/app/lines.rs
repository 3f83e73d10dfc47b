//! The lines that a turn of the loop has for the log. They wait until the verdict on it is known, so that a trouble is
//! one line: with its consequence, its cause and the next step.

use std::collections::VecDeque;

use tracing::{error, info, warn};

use crate::model::digest::Digest;
use crate::observe::verdict::{State, Verdict};
use crate::source::feed::Note;

/// Where a line comes from.
enum From {
    Stage(&'static str),
    Source(Note),
}

struct Line {
    from: From,
    message: String,
    /// What others said of it, for a line of its own.
    said: Option<String>,
}

/// What was said last: the word, the cause, and which inputs were rejected.
type Known = (State, Option<String>, Option<Digest>);

#[derive(Default)]
pub(super) struct Lines {
    waiting: Vec<Line>,
    /// Until all is well again.
    known: Option<Known>,
    /// What was said before the verdict was about it, the last few.
    said: VecDeque<String>,
}

/// How many of them.
const SAID: usize = 16;

impl Lines {
    pub(super) fn of_stage(&mut self, stage: &'static str, message: impl Into<String>, said: Option<String>) {
        self.waiting.push(Line { from: From::Stage(stage), message: message.into(), said });
    }

    pub(super) fn of_source(&mut self, note: Note, said: Option<String>) {
        self.waiting.push(Line { message: note.message.clone(), from: From::Source(note), said });
    }

    /// Writes them. `changed`: whether the verdict's word is another one than before; `rejected`: the rejected inputs.
    pub(super) fn write(&mut self, verdict: &Verdict, changed: bool, rejected: Option<Digest>) {
        let is_about = |message: &str| {
            verdict.cause.as_ref().is_some_and(|cause| cause.contains(message) || message.contains(cause.as_str()))
        };
        let about = |line: &Line| is_about(&line.message);
        let is_said = !matches!(verdict.state, State::Working | State::InEffect);
        let known = (verdict.state, verdict.cause.clone(), rejected);
        let is_news = self.waiting.iter().any(about) || (changed && self.known.as_ref() != Some(&known));
        match verdict.state {
            State::Working => {}
            State::InEffect => {
                self.said.clear();
                if changed && self.known.take().is_some() {
                    info!(verdict = verdict.state.as_str(), "{}", verdict.line());
                }
            }
            State::Rejected | State::Held | State::Waiting | State::Stale => {
                if is_news {
                    let repeats = self.said.iter().any(|said| is_about(said));
                    log(verdict, &if repeats { verdict.advice() } else { verdict.line() });
                    self.known = Some(known);
                }
            }
        }
        for line in self.waiting.drain(..) {
            let in_verdict = about(&line) && is_said;
            match &line.from {
                _ if in_verdict => {}
                From::Stage(stage) => warn!(stage, "{}", line.message),
                From::Source(note) => note.log(),
            }
            if !in_verdict {
                self.said.truncate(SAID - 1);
                self.said.push_front(line.message);
            }
            match (&line.from, line.said) {
                (_, None) => {}
                (From::Stage(stage), Some(said)) => warn!(stage, "{said}"),
                (From::Source(note), Some(said)) => warn!(source = note.source, "{said}"),
            }
        }
    }
}

fn log(verdict: &Verdict, line: &str) {
    let (word, stage) = (verdict.state.as_str(), verdict.at.as_str());
    match verdict.state {
        State::Held => error!(verdict = word, stage, "{line}"),
        _ if verdict.calm => info!(verdict = word, stage, "{line}"),
        _ => warn!(verdict = word, stage, "{line}"),
    }
}
