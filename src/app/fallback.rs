//! The start without the sources: a bundle of an archive is published where nothing else is, until they answer.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::warn;

use super::{App, received};
use crate::machine::{Event, Machine};
use crate::model::made_of::MadeOf;
use crate::model::snapshot::{Snapshot, Taken};
use crate::model::spool::Spool;
use crate::render::{Inputs, Settings};
use crate::source::{Seen, Update, url};

/// `--fallback-url`.
#[derive(Clone, Debug)]
pub struct FallbackConfig {
    pub source: url::Source,
    /// `--fallback-after`.
    pub after: Duration,
}

/// Until the sources have answered.
pub(super) struct Fallback {
    config: FallbackConfig,
    spool: Option<Spool>,
    state: State,
}

enum State {
    /// It is asked from then on.
    Waiting(Instant),
    /// Like any other source behind a URL.
    Asking(mpsc::Receiver<Update>),
    /// Its files are the newest inputs.
    InUse,
}

impl Fallback {
    /// `None`, where a generation is published.
    pub(super) fn start(config: FallbackConfig, machine: &Machine, spool: Option<Spool>) -> Option<Self> {
        let state = State::Waiting(Instant::now() + config.after);
        machine.journal().current.is_none().then_some(Self { config, spool, state })
    }

    pub(super) fn wakes(&self) -> Option<Instant> {
        if let State::Waiting(until) = self.state { Some(until) } else { None }
    }

    /// What is behind the URL; for ever, where that is not asked for.
    pub(super) async fn next(fallback: &mut Option<Box<Self>>) -> Update {
        let asking = fallback.as_mut().and_then(|fallback| match &mut fallback.state {
            State::Asking(updates) => Some(updates),
            State::Waiting(_) | State::InUse => None,
        });
        received(asking).await
    }

    /// What the sources hold is not known, whatever is published.
    pub(super) fn is_in_use(&self) -> bool {
        matches!(self.state, State::InUse)
    }
}

impl App {
    /// Asks for the fallback, if it is time to.
    pub(super) fn fall_back(&mut self) {
        let Some(fallback) = &mut self.fallback else { return };
        if fallback.wakes().is_none_or(|until| Instant::now() < until) {
            return;
        }
        let FallbackConfig { source, after } = &fallback.config;
        warn!("the sources have not answered for {after:?}: asking --fallback-url {} until they do", source.endpoint);
        let (send, updates) = mpsc::channel(1);
        // Nobody asks for more than its polls.
        let (_, refresh) = watch::channel(0);
        let (urls, source, spool) = (self.config.urls.clone(), source.clone(), fallback.spool.clone());
        self.steps.spawn(url::watch(urls, source, spool, refresh, send));
        fallback.state = State::Asking(updates);
    }

    /// What is behind the URL is published, as if it were what the sources hold.
    pub(super) fn fell_back(&mut self, update: Update) {
        let object = match update.seen {
            Seen::All(objects) => objects.into_values().next(),
            Seen::Trouble { message, .. } => {
                warn!("--fallback-url has nothing to start from: {message}; attempts go on");
                None
            }
            _ => None,
        };
        let (Some(object), Some(fallback)) = (object, &mut self.fallback) else { return };
        fallback.state = State::InUse;
        let snapshot = Snapshot {
            objects: [Taken { object, selected: false }].into_iter().collect(),
            made_of: MadeOf::fallback(),
            ..Snapshot::default()
        };
        let inputs = Inputs { snapshot, settings: Arc::new(Settings::as_they_are(&self.settings)) };
        let digest = inputs.digest(&self.steps.key);
        self.inputs = Some(inputs);
        self.observed = Some((digest, Timestamp::now(), Instant::now()));
        self.on(Event::Observed(digest));
    }
}
