//! One source: everything is listed and sent as one [`Seen::All`], and what follows is watched.
//!
//! When the watch ends it is resumed from the last resourceVersion seen, so that nothing is missed, deletions included;
//! when the server has forgotten that version (410), when its history went back behind it, or on SIGHUP, everything is
//! listed again. The position is remembered, and each object's size and version: the objects themselves belong to whoever
//! receives them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::mem::{Discriminant, discriminant};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kube::api::ListParams;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::client::{Answer, Clients};
use super::failure::Failure;
use super::wire::{Event, Page, PageHead, PageMeta};
use super::{Scope, Watch};
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
/// A watch that was resumed and stays silent for this long is checked: does the server know where it stands?
const DOUBT: Duration = Duration::from_secs(1);
/// How many objects that are held back are named.
const NAMED: usize = 3;

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
        held: BTreeMap::new(),
        total: 0,
        too_large: BTreeMap::new(),
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

/// What the receiver has of an object.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// In bytes.
    size: u64,
    version: Option<u64>,
}

impl Held {
    fn of(object: &Object) -> Self {
        Self { size: object.size(), version: object.resource_version.parse().ok() }
    }
}

/// Whether a resourceVersion is older than another one. They can be compared, where they are numbers.
fn is_before(version: &str, other: &str) -> bool {
    matches!((version.parse::<u64>(), other.parse::<u64>()), (Ok(version), Ok(other)) if version < other)
}

struct Task {
    clients: Clients,
    watch: Watch,
    max_size: u64,
    spool: Option<Spool>,
    updates: mpsc::Sender<Update>,
    state: State,
    /// What the receiver has, and the size of it all, in bytes.
    held: BTreeMap<ObjectRef, Held>,
    total: u64,
    /// What does not fit in as it is now, and its size in bytes. An earlier version of it may be held.
    too_large: BTreeMap<ObjectRef, u64>,
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
        let synced = self.state.position().is_some();
        if matches!(failure, Failure::Broken(_)) {
            self.cut().await;
        }
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
                State::Watch(position) => self.follow(&position, false).await?,
                State::Resume(position) => self.follow(&position, true).await?,
            }
        }
    }

    /// Lists everything and sends it as a whole; where that is too large, all but what adds most.
    async fn list(&mut self) -> Result<(), Failure> {
        let mut all = BTreeMap::new();
        let mut too_large = BTreeMap::new();
        // What is held has its room for as long as it is not known to be gone.
        let mut total = self.total;
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
                total = total - self.held_size(&object.id) + object.size();
                all.insert(object.id.clone(), Arc::new(object));
                while total > self.max_size
                    && let Some(object) = self.largest(&mut all)
                {
                    total = total - object.size() + self.held_size(&object.id);
                    too_large.insert(object.id.clone(), object.size());
                }
            }
            next = metadata.next;
            if next.is_empty() {
                break metadata.resource_version;
            }
        };
        if position.is_empty() {
            return Err(Failure::Malformed("a list without a resourceVersion".to_owned()));
        }
        if let Scope::Named { .. } = self.watch.scope
            && self.held.is_empty()
            && !too_large.is_empty()
        {
            // Sent as a list without it, it would be taken for absent.
            return Err(self.excess(&too_large));
        }
        self.list_sent(all, &too_large).await;
        self.too_large = too_large;
        self.state = if self.has_room() { State::List } else { State::Watch(position) };
        Ok(())
    }

    /// Takes out the object that adds most to what is held; `None` if none adds to it.
    fn largest(&self, all: &mut BTreeMap<ObjectRef, Arc<Object>>) -> Option<Arc<Object>> {
        let added = |object: &Object| object.size().saturating_sub(self.held_size(&object.id));
        let largest = all.values().max_by_key(|object| added(object)).filter(|object| added(object) > 0)?.id.clone();
        all.remove(&largest)
    }

    fn held_size(&self, id: &ObjectRef) -> u64 {
        self.held.get(id).map_or(0, |held| held.size)
    }

    /// Whether something that did not fit in would now.
    fn has_room(&self) -> bool {
        self.too_large.iter().any(|(id, size)| self.total - self.held_size(id) + size <= self.max_size)
    }

    /// Sends a list. What does not fit in is not in it: where the receiver has an earlier version, which it is to keep,
    /// each difference is sent instead.
    async fn list_sent(&mut self, all: BTreeMap<ObjectRef, Arc<Object>>, too_large: &BTreeMap<ObjectRef, u64>) {
        let mut held: BTreeMap<_, _> = all.iter().map(|(id, object)| (id.clone(), Held::of(object))).collect();
        let kept = too_large.keys().filter_map(|id| Some((id.clone(), *self.held.get(id)?)));
        let kept: BTreeMap<_, _> = kept.collect();
        if kept.is_empty() {
            self.send(Seen::All(all)).await;
        } else {
            let gone = self.held.keys().filter(|id| !all.contains_key(id) && !kept.contains_key(id));
            for id in gone {
                self.send(Seen::Gone(id.clone())).await;
            }
            let is_new = |object: &Object| {
                let (old, new) = (self.held.get(&object.id), Held::of(object));
                new.version.is_none() || old.is_none_or(|old| old.version != new.version)
            };
            for object in all.into_values().filter(|object| is_new(object)) {
                self.send(Seen::Changed(object)).await;
            }
        }
        held.extend(kept);
        self.total = held.values().map(|held| held.size).sum();
        self.held = held;
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

    /// Watches from `position` on, until there is a reason to do something else at once, or it breaks.
    async fn follow(&mut self, position: &str, mut doubtful: bool) -> Result<(), Failure> {
        let request = self.watch.resource().watch(&self.watch.follow().timeout(WATCH_TIMEOUT), position);
        let answer = self.clients.send(request, self.patience).await?;
        let mut lines = Lines::new(answer, self.clients.deadlines().quiet);
        if !self.wary {
            self.tell_health().await;
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
            if self.has_room() {
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
                let object = self.decode(move |spool| item.into_object(kind, spool)).await?;
                self.changed(object).await;
            }
            Event::Deleted(item) => {
                let id = item.id(kind);
                self.total -= self.held.remove(&id).map_or(0, |held| held.size);
                self.too_large.remove(&id);
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

    async fn changed(&mut self, object: Object) {
        let total = self.total - self.held_size(&object.id) + object.size();
        if total > self.max_size {
            self.too_large.insert(object.id.clone(), object.size());
            return;
        }
        self.too_large.remove(&object.id);
        self.held.insert(object.id.clone(), Held::of(&object));
        self.total = total;
        self.send(Seen::Changed(Arc::new(object))).await;
    }

    /// Why these are held back.
    fn excess(&self, too_large: &BTreeMap<ObjectRef, u64>) -> Failure {
        let names: Vec<_> = too_large.keys().take(NAMED).map(ToString::to_string).collect();
        let more = too_large.len() - names.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Failure::TooLarge { limit: self.max_size, held_back: names.join(", ") + &more }
    }

    /// A watch broke.
    async fn cut(&self) {
        self.send(Seen::Interrupted).await;
    }

    async fn tell_health(&mut self) {
        let health = if self.too_large.is_empty() {
            Ok(())
        } else {
            Err((self.excess(&self.too_large).message(&self.watch, self.state.verb()), false))
        };
        self.tell(health).await;
    }

    /// The watch has proved itself.
    async fn settled(&mut self) {
        self.failures = 0;
        self.patience = self.clients.deadlines().answer;
        self.last = None;
        self.wary = false;
        self.tell_health().await;
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
