//! How far the newest change is in a fleet, as this replica knows it: for `/status`, people, metrics and Events.

use serde::Serialize;

use crate::model::digest::Digest;
use crate::rollout::{Lease, State};

/// The longest that is shown of what the Lease says for people, in characters.
const LONGEST: usize = 300;

/// The rollout that this replica takes part in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rollout {
    pub name: String,
    /// Where the newest change stands.
    pub state: State,
    /// Whether this replica goes first.
    pub leads: bool,
    /// The change of the newest sources.
    pub newest: Option<Digest>,
    /// The one that is published here.
    pub published: Option<Digest>,
    /// The one that a rejection leads back to.
    pub base: Option<Digest>,
    /// As it was read last: it is not while there is nothing to wait for.
    pub lease: Option<Seen>,
    /// Why the Lease cannot be read or written.
    pub problem: Option<String>,
    /// What is wrong with the fleet, though the Lease can be read.
    pub warning: Option<String>,
    /// Why nothing is kept for new Pods, or this one has nothing to start from.
    pub history: Option<String>,
}

/// What the Lease said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    pub state: &'static str,
    /// The change that it speaks of.
    pub candidate: Option<Digest>,
    /// The Pod that went first.
    pub first: Option<String>,
    /// The Pod or the person that wrote this.
    pub by: Option<String>,
    /// Where a replica rejected it.
    pub stage: Option<String>,
    pub reason: Option<String>,
    pub since: Option<String>,
    #[serde(skip)]
    pub uid: String,
}

impl Seen {
    /// `value`: of an annotation that is for people. Whoever may write the Lease chose it.
    #[must_use]
    pub fn new(lease: &Lease, uid: String, value: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name| value(name).map(|text| plain(&text)).filter(|text| !text.is_empty());
        Self {
            state: lease.state.as_str(),
            candidate: lease.candidate,
            first: value("canary"),
            by: value("by"),
            stage: value("stage"),
            reason: value("reason"),
            since: value("since"),
            uid,
        }
    }
}

/// In one line, and not too long.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect()
}

/// What became of a rollout, from one look to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// This replica goes first.
    Started,
    /// The newest change was stopped.
    Stopped,
    /// It held here, and went to all.
    Done,
}

/// Where the newest change stands.
#[must_use]
pub fn state(
    newest: Option<Digest>,
    published: Option<Digest>,
    base: Option<Digest>,
    lease: Option<&Lease>,
    blind: bool,
) -> State {
    let Some(newest) = newest else { return State::None };
    if published == Some(newest) && base == Some(newest) {
        return State::Done;
    }
    match lease.filter(|_| !blind) {
        Some(lease) if lease.stopped.contains(&newest) => State::Stopped,
        Some(lease) if lease.good.contains(&newest) => State::Done,
        Some(lease) if lease.is_under_way() => lease.state,
        None | Some(_) => State::None,
    }
}

impl Rollout {
    /// What is new since `before`.
    #[must_use]
    pub fn news(&self, before: Option<&Self>) -> Option<News> {
        let candidate = |rollout: &Self| rollout.lease.as_ref().and_then(|lease| lease.candidate);
        let leads = |rollout: &Self| rollout.leads && candidate(rollout) == candidate(self);
        let led = before.is_some_and(leads);
        let known = before.is_some_and(|before| before.state == State::Stopped && before.newest == self.newest);
        if self.state == State::Stopped && !known {
            return Some(News::Stopped);
        }
        if self.leads && !led && self.lease_is(State::Claimed) {
            return Some(News::Started);
        }
        (led && !self.leads && self.lease_is(State::Done)).then_some(News::Done)
    }

    /// How the candidate ended, if it has since `before` and it is this replica that counts it: the one that wrote the end,
    /// or where a person did, the one that led.
    #[must_use]
    pub fn ended(&self, before: Option<&Self>, pod: &str) -> Option<State> {
        let (now, then) = (self.lease.as_ref()?, before?.lease.as_ref()?);
        let led = before?.leads && then.candidate == now.candidate;
        let mine = now.by.as_deref() == Some(pod);
        let another = then.state != now.state || then.candidate != now.candidate;
        match now.state {
            _ if !another => None,
            "done" if led && !self.leads => Some(State::Done),
            "stopped" if mine || led && now.stage.is_none() => Some(State::Stopped),
            _ => None,
        }
    }

    fn lease_is(&self, state: State) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.state == state.as_str())
    }

    /// What stopped the newest change, and who: as it goes on after 'it was stopped'.
    #[must_use]
    pub fn cause(&self) -> String {
        let ended = self.lease.as_ref().filter(|lease| lease.candidate == self.newest && self.lease_is(State::Stopped));
        let Some(lease) = ended else { return " before".to_owned() };
        let part = |before: &str, text: &Option<String>| text.as_ref().map(|text| format!("{before}{text}"));
        let parts = [part(" by ", &lease.by), part(" at ", &lease.stage), part(": ", &lease.reason)];
        parts.into_iter().flatten().collect()
    }

    /// In one sentence, for whoever reads only that. `pod`: this one.
    #[must_use]
    pub fn note(&self, news: News, pod: &str) -> String {
        let name = &self.name;
        let change = self.lease.as_ref().and_then(|lease| lease.candidate).or(self.newest);
        let change = if news == News::Stopped { self.newest } else { change }.map(|it| it.short()).unwrap_or_default();
        match news {
            News::Started => {
                format!("Rollout {name}: {pod} takes change {change} first, the others follow when it has held")
            }
            News::Done => format!("Rollout {name}: change {change} went to all replicas; {pod} took it first"),
            News::Stopped => format!(
                "Rollout {name}: change {change} was stopped{}. What was good goes on. Publish another change, or let this one \
                 be tried again: trimtab rollout retry {name}",
                self.cause().trim_end_matches('.')
            ),
        }
    }

    /// For people: what, and whether it is bad news.
    #[must_use]
    pub fn rows(&self, pod: &str) -> Vec<(&'static str, String, bool)> {
        let short = |change: Option<Digest>| change.map_or_else(|| "none".to_owned(), |change| change.short());
        let stopped = self.state == State::Stopped;
        let cause = if stopped { self.cause() } else { String::new() };
        let mut rows = vec![
            ("Rollout", format!("{}: {}{cause}", self.name, self.state.as_str()), stopped),
            ("Newest change", short(self.newest), false),
            ("Change here", short(self.published), false),
            ("Goes back to", short(self.base), false),
        ];
        let under_way = self.lease.as_ref().filter(|lease| matches!(lease.state, "claimed" | "baking" | "spreading"));
        if let Some(lease) = under_way {
            let first = match &lease.first {
                Some(first) if self.leads => format!("{first} (this Pod)"),
                Some(first) => first.clone(),
                None if self.leads => format!("{pod} (this Pod)"),
                None => "nobody now".to_owned(),
            };
            rows.push(("Goes first", format!("{first}, with {}: {}", short(lease.candidate), lease.state), false));
        }
        for (name, text) in [("Not known", &self.problem), ("Warning", &self.warning), ("History", &self.history)] {
            rows.extend(text.clone().map(|text| (name, text, true)));
        }
        rows
    }
}

#[cfg(test)]
mod tests;
