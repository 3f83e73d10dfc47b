//! One source: everything is listed and sent as one [`Seen::All`], and what follows is watched.
//!
//! When the watch ends it is resumed from the last resourceVersion seen, so that nothing is missed, deletions included;
//! when the server has forgotten that version (410), when its history went back behind it, or on SIGHUP, everything is
//! listed again. The position is remembered, and each object's size and version: the objects themselves belong to whoever
//! receives them.

use std::convert::Infallible;
use std::iter::repeat_with;
use std::mem::{Discriminant, discriminant};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kube::api::ListParams;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::client::Clients;
use super::failure::Failure;
use super::holdings::{Holdings, Intake, is_before};
use super::lines::Lines;
use super::wire::{self, Event, Item, Page, PageHead, PageMeta};
use super::{Scope, Watch};
use crate::model::object::{Marks, Object};
use crate::model::spool::Spool;
use crate::source::{Seen, Update, changed};

/// Objects in a page of a list. The next size is taken when a page exceeds [`PAGE_LIMIT`].
const PAGE_SIZES: [u32; 3] = [50, 5, 1];
/// The most that is held of a page, or of one event, before it is parsed, in bytes. An object has at most 1 MiB of
/// content (apis/core/validation: `MaxSecretSize`), which is longer in JSON.
pub(super) const PAGE_LIMIT: usize = 10 << 20;
/// How long the server lets a watch live, in seconds.
const WATCH_TIMEOUT: u32 = 290;
/// A watch that was resumed and stays silent for this long is checked: does the server know where it stands?
const DOUBT: Duration = Duration::from_secs(1);

/// Watches until the receiver of `updates` is gone. `max_size`: the most that the source's keys and values may take up,
/// in bytes; `spool`: where its values are kept, if not in memory. Each change of `refresh` makes it list again, at once.
pub async fn watch(
    clients: Clients,
    watch: Watch,
    max_size: u64,
    spool: Option<Spool>,
    mut refresh: tokio::sync::watch::Receiver<u64>,
    updates: mpsc::Sender<Update>,
) {
    let gone = updates.clone();
    let answer = clients.deadlines().answer;
    let mut task = Task {
        clients,
        watch,
        spool,
        updates,
        state: State::List,
        holdings: Holdings::new(max_size),
        page: 0,
        failures: 0,
        patience: answer,
        last: None,
        reported: None,
        wary: false,
    };
    loop {
        tokio::select! {
            () = gone.closed() => return,
            () = changed(&mut refresh) => {
                task.state = State::List;
                task.failures = 0;
                task.patience = answer;
            }
            () = task.attempt() => {}
        }
    }
}

/// What is asked for next.
#[derive(Clone, Debug)]
enum State {
    /// Everything: nothing is known yet, or where the watch stood is lost.
    List,
    /// What has changed since this resourceVersion.
    Watch(String),
    /// The same after a watch that was cut. Its server may have been restored from a backup since, and know nothing of
    /// that version yet: then a watch stays silent until it does.
    Resume(String),
}

impl State {
    /// As RBAC has it.
    fn verb(&self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Watch(_) | Self::Resume(_) => "watch",
        }
    }

    fn position(&self) -> Option<&str> {
        match self {
            Self::List => None,
            Self::Watch(position) | Self::Resume(position) => Some(position),
        }
    }
}

struct Task {
    clients: Clients,
    watch: Watch,
    spool: Option<Spool>,
    updates: mpsc::Sender<Update>,
    state: State,
    holdings: Holdings,
    /// Index into [`PAGE_SIZES`].
    page: usize,
    /// Since the watch was last healthy.
    failures: u32,
    /// How long a connection is waited for.
    patience: Duration,
    /// The last failure since then.
    last: Option<Discriminant<Failure>>,
    /// The last report on the source's health: the trouble and whether it is a permission that is missing, or none.
    /// `None`: no report yet.
    reported: Option<Result<(), (String, bool)>>,
    /// Watches have been breaking: that the next one begins is no proof that it works.
    wary: bool,
}

impl Task {
    /// Lists and watches until something fails, says so, and waits as long as it should before the next attempt.
    async fn attempt(&mut self) {
        let Err(failure) = self.run().await;
        self.failures = self.failures.saturating_add(1);
        let verb = self.state.verb();
        if failure.lost_position() {
            self.state = State::List;
        }
        let synced = self.state.position().is_some();
        if matches!(failure, Failure::Broken(_)) {
            self.cut().await;
        }
        let kind = Some(discriminant(&failure));
        if self.last == kind || !failure.may_pass(synced) {
            self.wary = matches!(failure, Failure::Broken(_));
            self.report(Err((failure.message(&self.watch, verb), failure.is_forbidden()))).await;
        }
        self.last = kind;
        self.patience = failure.patience(synced, self.clients.deadlines().answer);
        sleep(failure.delay(self.failures, synced)).await;
    }

    async fn run(&mut self) -> Result<Infallible, Failure> {
        loop {
            match self.state.clone() {
                State::List => self.list().await?,
                State::Watch(position) => self.follow(&position, false).await?,
                State::Resume(position) => self.follow(&position, true).await?,
            }
        }
    }

    /// Lists everything and sends it as a whole; where that is too large, all but what adds most.
    async fn list(&mut self) -> Result<(), Failure> {
        let mut intake = Intake::default();
        let mut next = String::new();
        let position = loop {
            let page = match self.page(&next).await {
                Err(Failure::PageTooLarge) if self.page + 1 < PAGE_SIZES.len() => {
                    self.page += 1;
                    continue;
                }
                page => page?,
            };
            let Listed { objects, metadata } = page;
            for object in objects {
                intake.add(object, &self.holdings);
            }
            next = metadata.next;
            if next.is_empty() {
                break metadata.resource_version;
            }
        };
        if position.is_empty() {
            return Err(Failure::Malformed("a list without a resourceVersion".to_owned()));
        }
        if let (Scope::Named { .. }, Some(excess)) = (&self.watch.scope, intake.absent(&self.holdings)) {
            // Sent as a list without it, it would be taken for absent.
            return Err(excess);
        }
        let (news, holdings) = self.holdings.after(intake);
        for seen in news {
            self.send(seen).await;
        }
        self.holdings = holdings;
        self.state = if self.holdings.has_room() { State::List } else { State::Watch(position) };
        Ok(())
    }

    /// One page of the list: the first, or the one that `next` stands for.
    async fn page(&self, next: &str) -> Result<Listed, Failure> {
        let parameters = ListParams {
            limit: PAGE_SIZES.get(self.page).copied(),
            continue_token: (!next.is_empty()).then(|| next.to_owned()),
            ..self.watch.list()
        };
        let mut answer = self.clients.send(self.watch.resource().list(&parameters), self.patience).await?;
        let text = answer.text(PAGE_LIMIT, self.clients.deadlines().answer).await?.ok_or(Failure::PageTooLarge)?;
        let (kind, wanted) = (self.watch.kind, self.watch.marks.clone());
        self.decode(move |spool| {
            let page: Page = serde_json::from_slice(&text).map_err(|error| Failure::json(&error))?;
            let marks = wire::marks_of_page(&text, &wanted).map_err(|error| Failure::json(&error))?;
            drop(text);
            let items = page.items.into_iter().flatten().zip(marks.into_iter().chain(repeat_with(Marks::new)));
            let object = |(item, marks): (Item, Marks)| Ok::<_, Failure>(item.into_object(kind, spool)?.marked(marks));
            let objects = items.map(object).collect::<Result<_, _>>()?;
            Ok(Listed { objects, metadata: page.metadata })
        })
        .await
    }

    /// Decodes what came; where values are written to a disk, where that holds up nobody.
    async fn decode<T: Send + 'static>(
        &self,
        work: impl FnOnce(Option<&Spool>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let Some(spool) = self.spool.clone() else { return work(None) };
        let decoded = tokio::task::spawn_blocking(move || work(Some(&spool))).await;
        // It fails when the runtime ends, or by a panic in a build that survives it.
        decoded.unwrap_or(Err(Failure::Ended))
    }

    /// Watches from `position` on, until there is a reason to do something else at once, or it breaks.
    async fn follow(&mut self, position: &str, mut doubtful: bool) -> Result<(), Failure> {
        let request = self.watch.resource().watch(&self.watch.follow().timeout(WATCH_TIMEOUT), position);
        let answer = self.clients.send(request, self.patience).await?;
        let mut lines = Lines::new(answer, self.clients.deadlines().quiet);
        if !self.wary {
            self.report_health().await;
        }
        let started = Instant::now();
        let end = loop {
            let line = if std::mem::take(&mut doubtful) {
                let Ok(line) = timeout(DOUBT, lines.next()).await else {
                    match self.verify(position).await {
                        Ok(()) => continue,
                        Err(failure) => break failure,
                    }
                };
                line
            } else {
                lines.next().await
            };
            let taken = match line {
                Ok(Some(line)) => self.take(line).await,
                Ok(None) => Err(Failure::Ended),
                Err(failure) => Err(failure),
            };
            if let Err(failure) = taken {
                break failure;
            }
            if self.holdings.has_room() {
                self.state = State::List;
                return Ok(());
            }
        };
        let lived = started.elapsed();
        match end {
            Failure::Expired | Failure::WentBack | Failure::Malformed(_) | Failure::NotKept(_) => return Err(end),
            Failure::Ended if lived + DOUBT >= Duration::from_secs(WATCH_TIMEOUT.into()) => {
                self.settled().await;
                return Ok(());
            }
            _ => {}
        }
        if let Some(position) = self.state.position() {
            self.state = State::Resume(position.to_owned());
        }
        if lived < self.clients.deadlines().brief {
            return Err(Failure::Broken(Box::new(end)));
        }
        // A load balancer cuts what is idle: whoever waited now would be blind meanwhile, each time.
        self.cut().await;
        self.settled().await;
        self.patience = end.patience(true, self.clients.deadlines().answer);
        Ok(())
    }

    /// Whether the server's history reaches `position`: what it lists now is not older.
    async fn verify(&self, position: &str) -> Result<(), Failure> {
        let parameters = ListParams { limit: Some(1), ..self.watch.list() };
        let mut answer = self.clients.send(self.watch.resource().list(&parameters), self.patience).await?;
        let text = answer.text(PAGE_LIMIT, self.clients.deadlines().answer).await?.ok_or(Failure::PageTooLarge)?;
        let page: PageHead = serde_json::from_slice(&text).map_err(|error| Failure::json(&error))?;
        if is_before(&page.metadata.resource_version, position) { Err(Failure::WentBack) } else { Ok(()) }
    }

    /// Takes in one line of a watch.
    async fn take(&mut self, line: Bytes) -> Result<(), Failure> {
        let kind = self.watch.kind;
        let event: Event = serde_json::from_slice(&line).map_err(|error| Failure::json(&error))?;
        let marks = wire::marks_of_event(&line, &self.watch.marks).map_err(|error| Failure::json(&error))?;
        drop(line);
        let position = match &event {
            Event::Added(item) | Event::Modified(item) | Event::Deleted(item) | Event::Bookmark(item) => {
                item.metadata.resource_version.clone()
            }
            Event::Error(_) => String::new(),
        };
        if self.state.position().is_some_and(|stood| is_before(&position, stood)) {
            return Err(Failure::WentBack);
        }
        match event {
            Event::Added(item) | Event::Modified(item) => {
                let object = self.decode(move |spool| item.into_object(kind, spool)).await?.marked(marks);
                if self.holdings.change(&object) {
                    self.send(Seen::Changed(Arc::new(object))).await;
                }
            }
            Event::Deleted(item) => {
                let id = item.id(kind);
                self.holdings.remove(&id);
                self.send(Seen::Gone(id)).await;
            }
            Event::Bookmark(_) => {}
            Event::Error(status) => return Err(Failure::status(status, None)),
        }
        if position.is_empty() {
            return Err(Failure::Malformed("an event without a resourceVersion".to_owned()));
        }
        // After the update is sent: were this future dropped in between, the event would come again.
        self.state = State::Watch(position);
        self.settled().await;
        Ok(())
    }

    /// A watch broke.
    async fn cut(&self) {
        self.send(Seen::Interrupted).await;
    }

    async fn report_health(&mut self) {
        let excess = self.holdings.excess();
        let health = excess.map_or(Ok(()), |excess| Err((excess.message(&self.watch, self.state.verb()), false)));
        self.report(health).await;
    }

    /// The watch has proved itself.
    async fn settled(&mut self) {
        self.failures = 0;
        self.patience = self.clients.deadlines().answer;
        self.last = None;
        self.wary = false;
        self.report_health().await;
    }

    /// Reports how the source is, if that is news.
    async fn report(&mut self, health: Result<(), (String, bool)>) {
        if self.reported.as_ref() == Some(&health) {
            return;
        }
        self.send(match &health {
            Ok(()) => Seen::Healthy,
            Err((message, forbidden)) => {
                Seen::Trouble { message: message.clone(), forbidden: *forbidden, held_back: self.holdings.too_large() }
            }
        })
        .await;
        self.reported = Some(health);
    }

    async fn send(&self, seen: Seen) {
        // It fails when the receiver is gone: `watch` sees that for itself, and ends.
        let _gone = self.updates.send(Update { source: self.watch.source, seen }).await;
    }
}

/// A page, decoded.
struct Listed {
    objects: Vec<Object>,
    metadata: PageMeta,
}
