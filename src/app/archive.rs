//! What is archived, and what is said of it: beside the machine, which knows nothing of it.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::warn;

use super::ledger::Ledger;
use super::report::Reporter;
use super::{App, received};
use crate::archive::{self, Archived, Config, News, Order};
use crate::model::digest::DigestKey;
use crate::model::journal::Generation;
use crate::observe::status::{self, Problem};
use crate::publish::Output;

/// Why a generation is not archived, in `/status` and the log.
const WITHHELD: &str = "a secret went into it; --archive-secrets archives it all the same";

pub(super) struct Archivist {
    config: Config,
    orders: watch::Sender<Option<Arc<Order>>>,
    news: mpsc::Receiver<News>,
    /// The newest good generation that was ordered, withheld, or archived by an earlier life.
    newest: Option<Generation>,
    withheld: bool,
}

impl Archivist {
    /// Starts its task.
    pub(super) fn start(
        config: Config,
        output: &Arc<Output>,
        key: &DigestKey,
        good: Option<&Generation>,
        report: &Reporter,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let archived = Archived::found(output);
        let known = archived.as_ref().zip(good).filter(|(archived, good)| archived.is(good, &config.at));
        let newest = known.map(|(_, good)| good.clone());
        let archived = archived.filter(|_| newest.is_some()).and_then(shown);
        report.shared.update(|status| {
            status.archive = Some(status::Archive { to: config.to_string(), archived, ..status::Archive::default() });
        });
        let orders = watch::Sender::new(None);
        let (send, news) = mpsc::channel(4);
        tasks.spawn(archive::work(config.clone(), output.clone(), key.clone(), orders.subscribe(), send));
        Self { config, orders, news, newest, withheld: false }
    }

    /// What became of an order; for ever, where there is no archive.
    pub(super) async fn next(archivist: &mut Option<Self>) -> News {
        received(archivist.as_mut().map(|archivist| &mut archivist.news)).await
    }

    /// Tries again at once what waits to be tried again.
    pub(super) fn retry(&self) {
        self.orders.send_modify(|_| {});
    }

    /// Orders the newest good generation, if it is news.
    fn order(&mut self, good: &Generation, ledger: &Ledger, report: &Reporter) {
        let known = |newest: &Generation| (&newest.directory, newest.observed) == (&good.directory, good.observed);
        if self.newest.as_ref().is_some_and(known) {
            return;
        }
        // Of one from before this start both are known as soon as its inputs are seen.
        let Some(secret) = ledger.is_good_secret() else { return };
        let files = match self.config.observed.then(|| ledger.good_observed()) {
            None => None,
            Some(None) => return,
            Some(Some(observed)) => {
                let objects = observed.iter().map(|observed| &observed.object);
                Some(objects.flat_map(|object| object.data.clone()).collect())
            }
        };
        self.newest = Some(good.clone());
        let withheld = secret && !self.config.secrets;
        if withheld && !std::mem::replace(&mut self.withheld, withheld) {
            warn!(sequence = good.sequence, "generation {} is not archived: {WITHHELD}", good.sequence);
        }
        if !withheld {
            self.withheld = false;
            self.orders.send_replace(Some(Arc::new(Order { generation: good.clone(), secret, files })));
        }
        report.shared.metrics.archive_pending(!withheld);
        report.shared.update(|status| {
            if let Some(archive) = &mut status.archive {
                archive.pending = (!withheld).then_some(good.sequence);
                archive.withheld = withheld.then_some(WITHHELD);
            }
        });
    }
}

impl App {
    /// Orders what is new in the archive.
    pub(super) fn archive(&mut self) {
        // What came from there may be older than what another has put there since.
        let good = self.machine.journal().last_good.as_ref().filter(|good| !good.is_fallback());
        if let Some((archivist, good)) = self.archivist.as_mut().zip(good) {
            archivist.order(good, &self.ledger, &self.report);
        }
    }

    /// An upload has ended.
    pub(super) fn archived(&mut self, news: News) {
        let metrics = &self.report.shared.metrics;
        metrics.archived(matches!(news, News::Archived(_)));
        self.report.shared.update(|status| {
            let Some(archive) = &mut status.archive else { return };
            match news {
                News::Failed { message } => {
                    // Since when it fails, whatever it says.
                    let at = archive.problem.as_ref().map_or_else(Timestamp::now, |problem| problem.at);
                    archive.problem = Some(Problem { message, at });
                }
                News::Archived(archived) => {
                    archive.problem = None;
                    if archive.pending == Some(archived.sequence) {
                        archive.pending = None;
                        metrics.archive_pending(false);
                    }
                    archive.archived = shown(archived).or(archive.archived.take());
                }
            }
        });
    }
}

fn shown(archived: Archived) -> Option<status::Archived> {
    let Archived { sequence, name, at, .. } = archived;
    Some(status::Archived { sequence, name: name?, at })
}
