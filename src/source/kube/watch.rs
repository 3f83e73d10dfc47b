//! One source: everything is listed and sent as one [`Seen::All`], and what follows is watched.
//!
//! When the watch ends it is resumed from the last resourceVersion seen, so that nothing is missed, deletions included;
//! when the server has forgotten that version (410), or on SIGHUP, everything is listed again. The position is the only
//! thing remembered, and each object's size: the objects themselves belong to whoever receives them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::mem::{Discriminant, discriminant};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kube::api::ListParams;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::Watch;
use super::client::{Answer, Clients};
use super::failure::Failure;
use super::wire::{Event, Page, PageMeta};
use crate::model::object::{Object, ObjectRef};
use crate::model::spool::Spool;
use crate::source::{Seen, Update};

/// Objects in a page of a list. The next size is taken when a page exceeds [`PAGE_LIMIT`].
const PAGE_SIZES: [u32; 3] = [50, 5, 1];
/// The most that is held of a page, or of one event, before it is parsed, in bytes. An object has at most 1 MiB of
/// content (apis/core/validation: `MaxSecretSize`), which is longer in JSON.
const PAGE_LIMIT: usize = 10 << 20;
/// How long the server lets a watch live, in seconds.
const WATCH_TIMEOUT: u32 = 290;
/// A watch that lived for this long was a healthy one.
const SETTLED: Duration = Duration::from_secs(30);

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
        max_size,
        spool,
        updates,
        state: State::List,
        sizes: BTreeMap::new(),
        total: 0,
        page: 0,
        failures: 0,
        patience: answer,
        last: None,
        told: None,
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

/// Waits for a change; for ever, if none can come any more.
async fn changed(refresh: &mut tokio::sync::watch::Receiver<u64>) {
    if refresh.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What is asked for next.
#[derive(Clone, Debug)]
enum State {
    /// Everything: nothing is known yet, or where the watch stood is lost.
    List,
    /// What has changed since this resourceVersion.
    Watch(String),
}

impl State {
    /// As RBAC has it.
    fn verb(&self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Watch(_) => "watch",
        }
    }
}

struct Task {
    clients: Clients,
    watch: Watch,
    max_size: u64,
    spool: Option<Spool>,
    updates: mpsc::Sender<Update>,
    state: State,
    /// What there is, and its size in bytes; and of all together.
    sizes: BTreeMap<ObjectRef, u64>,
    total: u64,
    /// Index into [`PAGE_SIZES`].
    page: usize,
    /// Since the watch was last healthy.
    failures: u32,
    /// How long a connection is waited for.
    patience: Duration,
    /// The last failure since then.
    last: Option<Discriminant<Failure>>,
    /// The last word on the source's health: the trouble and whether it is a permission that is missing, or none.
    /// `None`: no word yet.
    told: Option<Result<(), (String, bool)>>,
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
        let synced = matches!(self.state, State::Watch(_));
        let kind = Some(discriminant(&failure));
        if self.last == kind || !failure.may_pass(synced) {
            self.wary = matches!(failure, Failure::Broken(_));
            self.tell(Err((failure.message(&self.watch, verb), failure.is_forbidden()))).await;
        }
        self.last = kind;
        self.patience = failure.patience(synced, self.clients.deadlines().answer);
        sleep(failure.delay(self.failures, synced)).await;
    }

    async fn run(&mut self) -> Result<Infallible, Failure> {
        loop {
            match self.state.clone() {
                State::List => self.list().await?,
                State::Watch(position) => self.follow(&position).await?,
            }
        }
    }

    /// Lists everything and sends it as a whole.
    async fn list(&mut self) -> Result<(), Failure> {
        let mut all = BTreeMap::new();
        let mut sizes = BTreeMap::new();
        let mut total = 0;
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
                total += object.size();
                if total > self.max_size {
                    return Err(Failure::TooLarge(self.max_size));
                }
                sizes.insert(object.id.clone(), object.size());
                all.insert(object.id.clone(), Arc::new(object));
            }
            next = metadata.next;
            if next.is_empty() {
                break metadata.resource_version;
            }
        };
        if position.is_empty() {
            return Err(Failure::Malformed("a list without a resourceVersion".to_owned()));
        }
        self.send(Seen::All(all)).await;
        self.sizes = sizes;
        self.total = total;
        self.state = State::Watch(position);
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
        let kind = self.watch.kind;
        self.decode(move |spool| {
            let page: Page = serde_json::from_slice(&text).map_err(|error| Failure::json(&error))?;
            drop(text);
            let items = page.items.into_iter().flatten();
            let objects = items.map(|item| item.into_object(kind, spool)).collect::<Result<_, _>>()?;
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

    /// Watches from `position` on, until the server ends it in the ordinary way, or it breaks.
    async fn follow(&mut self, position: &str) -> Result<(), Failure> {
        let request = self.watch.resource().watch(&self.watch.follow().timeout(WATCH_TIMEOUT), position);
        let answer = self.clients.send(request, self.patience).await?;
        let mut lines = Lines::new(answer, self.clients.deadlines().quiet);
        if !self.wary {
            self.tell(Ok(())).await;
        }
        let started = Instant::now();
        let end = loop {
            match lines.next().await {
                Ok(Some(line)) => {
                    if let Err(failure) = self.take(line).await {
                        break failure;
                    }
                }
                Ok(None) => break Failure::Ended,
                Err(failure) => break failure,
            }
        };
        if started.elapsed() >= SETTLED {
            self.settled().await;
            if matches!(end, Failure::Ended) {
                return Ok(());
            }
        }
        Err(match end {
            Failure::Expired | Failure::Malformed(_) | Failure::TooLarge(_) | Failure::NotKept(_) => end,
            end => Failure::Broken(Box::new(end)),
        })
    }

    /// Takes in one line of a watch.
    async fn take(&mut self, line: Bytes) -> Result<(), Failure> {
        let kind = self.watch.kind;
        let event: Event = serde_json::from_slice(&line).map_err(|error| Failure::json(&error))?;
        drop(line);
        let position = match &event {
            Event::Added(item) | Event::Modified(item) | Event::Deleted(item) | Event::Bookmark(item) => {
                item.metadata.resource_version.clone()
            }
            Event::Error(_) => String::new(),
        };
        match event {
            Event::Added(item) | Event::Modified(item) => {
                let object = self.decode(move |spool| item.into_object(kind, spool)).await?;
                self.changed(object).await?;
            }
            Event::Deleted(item) => {
                let id = item.id(kind);
                self.total -= self.sizes.remove(&id).unwrap_or_default();
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

    async fn changed(&mut self, object: Object) -> Result<(), Failure> {
        let known = self.sizes.get(&object.id).copied().unwrap_or(0);
        let total = self.total - known + object.size();
        if total > self.max_size {
            return Err(Failure::TooLarge(self.max_size));
        }
        self.sizes.insert(object.id.clone(), object.size());
        self.total = total;
        self.send(Seen::Changed(Arc::new(object))).await;
        Ok(())
    }

    /// The watch has proved itself.
    async fn settled(&mut self) {
        self.failures = 0;
        self.patience = self.clients.deadlines().answer;
        self.last = None;
        self.wary = false;
        self.tell(Ok(())).await;
    }

    /// Says how the source is, if that is news.
    async fn tell(&mut self, health: Result<(), (String, bool)>) {
        if self.told.as_ref() == Some(&health) {
            return;
        }
        self.send(match &health {
            Ok(()) => Seen::Healthy,
            Err((message, forbidden)) => Seen::Trouble { message: message.clone(), forbidden: *forbidden },
        })
        .await;
        self.told = Some(health);
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

/// The lines of a watch's body.
struct Lines {
    answer: Answer,
    patience: Duration,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line end.
    searched: usize,
}

impl Lines {
    fn new(answer: Answer, patience: Duration) -> Self {
        Self { answer, patience, buffer: BytesMut::new(), searched: 0 }
    }

    /// The next line; `None` at the end of the body. A last line without its end is dropped: it is cut off.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + end + 1);
                self.searched = 0;
                return Ok(Some(line.freeze()));
            }
            self.searched = self.buffer.len();
            if self.buffer.is_empty() {
                // A quiet watch holds no memory for the largest event that it has seen.
                self.buffer = BytesMut::new();
            }
            let Some(chunk) = self.answer.chunk(self.patience).await? else { return Ok(None) };
            if self.buffer.len() + chunk.len() > PAGE_LIMIT {
                return Err(Failure::PageTooLarge);
            }
            self.buffer.extend_from_slice(&chunk);
        }
    }
}
