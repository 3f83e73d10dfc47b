//! The start without the sources: a bundle of an archive is published where nothing else is, until they answer.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::App;
use crate::machine::{Event, Machine};
use crate::model::made_of::{MadeOf, Parts};
use crate::model::object::Object;
use crate::model::snapshot::{Snapshot, Taken};
use crate::model::spool::Spool;
use crate::os::backoff;
use crate::render::{Inputs, Settings};
use crate::source::url::{self, Found, Known};

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
    /// When it is asked for.
    due: Option<Instant>,
    answers: Option<mpsc::Receiver<Result<Arc<Object>, String>>>,
    /// Whether its files are the newest inputs.
    in_use: bool,
    failing: bool,
}

impl Fallback {
    /// `None`, where a generation is published.
    pub(super) fn start(config: FallbackConfig, machine: &Machine, spool: Option<Spool>) -> Option<Self> {
        if machine.journal().current.is_some() {
            return None;
        }
        let due = Some(Instant::now() + config.after);
        Some(Self { config, spool, due, answers: None, in_use: false, failing: false })
    }

    pub(super) fn wakes(&self) -> Option<Instant> {
        self.due
    }

    /// What is behind the URL; for ever, where that is not asked for.
    pub(super) async fn next(fallback: &mut Option<Box<Self>>) -> Result<Arc<Object>, String> {
        let answer = match fallback.as_mut().and_then(|fallback| fallback.answers.as_mut()) {
            Some(answers) => answers.recv().await,
            None => None,
        };
        match answer {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    /// What the sources hold is not known, whatever is published.
    pub(super) fn is_in_use(&self) -> bool {
        self.in_use
    }
}

/// Asks until something is there, or nobody waits for it any more.
async fn ask(
    config: FallbackConfig,
    urls: Arc<url::Config>,
    retry: (Duration, Duration),
    spool: Option<Spool>,
    answers: mpsc::Sender<Result<Arc<Object>, String>>,
) {
    let gone = answers.clone();
    let asking = async {
        for failures in 1.. {
            let answer = match url::look(&urls, &config.source, spool.as_ref(), &Known::default()).await {
                Ok(Found::Object(object, _)) => Ok(object),
                Ok(Found::Absent(code)) => Err(format!("{} answered {code}: nothing is there", config.source.endpoint)),
                // Nothing was known.
                Ok(Found::NotModified) => Err(format!("{} answered that nothing has changed", config.source.endpoint)),
                Err(error) => Err(error.to_string()),
            };
            let found = answer.is_ok();
            if answers.send(answer).await.is_err() || found {
                return;
            }
            sleep(backoff::delay(failures, retry.0, retry.1, 0.5)).await;
        }
    };
    tokio::select! {
        () = gone.closed() => {}
        () = asking => {}
    }
}

impl App {
    /// Asks for the fallback, if it is time to.
    pub(super) fn fall_back(&mut self) {
        let Some(fallback) = &mut self.fallback else { return };
        if fallback.due.is_none_or(|due| Instant::now() < due) {
            return;
        }
        fallback.due = None;
        let (send, answers) = mpsc::channel(1);
        fallback.answers = Some(answers);
        let FallbackConfig { source, after } = &fallback.config;
        warn!("the sources have not answered for {after:?}: asking --fallback-url {} until they do", source.endpoint);
        let (config, spool) = (fallback.config.clone(), fallback.spool.clone());
        self.steps.spawn(ask(config, self.config.urls.clone(), self.config.retry, spool, send));
    }

    /// What is behind the URL is published, as if it were what the sources hold.
    pub(super) fn fell_back(&mut self, answer: Result<Arc<Object>, String>) {
        let Some(fallback) = &mut self.fallback else { return };
        let object = match answer {
            Ok(object) => object,
            Err(why) => {
                if !std::mem::replace(&mut fallback.failing, true) {
                    warn!("--fallback-url has nothing to start from: {why}; attempts go on");
                }
                return;
            }
        };
        fallback.in_use = true;
        let snapshot = Snapshot {
            objects: [Taken { object, selected: false }].into_iter().collect(),
            made_of: MadeOf::new([(MadeOf::FALLBACK.to_owned(), Parts::new())]),
            ..Snapshot::default()
        };
        let inputs = Inputs { snapshot, settings: Arc::new(Settings::as_they_are(&self.settings)) };
        let digest = inputs.digest(&self.steps.key);
        self.inputs = Some(inputs);
        self.observed = Some((digest, Timestamp::now(), Instant::now()));
        self.on(Event::Observed(digest));
    }
}
