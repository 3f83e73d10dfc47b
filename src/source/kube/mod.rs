//! `ConfigMaps` and Secrets from the API server: list, then watch from there, for ever.
//!
//! Each [`watch`] lists in pages, sends the whole as one [`Seen::All`], and follows the changes. When the watch ends it
//! is resumed from the last resourceVersion seen, so that nothing is missed, deletions included; when the server has
//! forgotten that version (410), or on SIGHUP, everything is listed again. The position is the only thing remembered,
//! and each object's size: the objects themselves belong to whoever receives them.
//!
//! It is all asked for here, over a connection of `hyper` and `rustls`, and not with the `kube` crate: its watcher hides
//! bookmarks and the moment at which a watch is established, and thereby both the signs of life on a quiet watch and the
//! recovery of one, it logs whole bodies, and it makes the binary a quarter larger.

mod access;
mod client;
mod kubeconfig;
mod trouble;
mod wire;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::{self, Write as _};
use std::mem::{Discriminant, discriminant};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

pub use self::access::{Access, access};
use self::client::Answer;
pub use self::client::{ClientConfig, Clients, Deadlines, InCluster, KubeError, default_namespace};
pub use self::trouble::CreateError;
use self::trouble::{Failure, resource};
use self::wire::{Event, Page, PageMeta};
use crate::model::object::{Kind, Object, ObjectRef};
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

/// Which objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One, which need not exist.
    Named {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// All with these labels.
    Selected {
        /// A label selector, as `kubectl --selector` takes it.
        selector: String,
        /// The namespace; `None`: all.
        namespace: Option<String>,
    },
}

/// What one source watches. Prints as `configmap/NS/NAME`, `configmap/NS/[SELECTOR]` or `configmap/*/[SELECTOR]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The index that its updates carry.
    pub source: usize,
    /// `ConfigMap` or `Secret`.
    pub kind: Kind,
    /// Which of them.
    pub scope: Scope,
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Scope::Named { namespace, name } => write!(f, "{}/{namespace}/{name}", self.kind),
            Scope::Selected { selector, namespace } => {
                write!(f, "{}/{}/[{selector}]", self.kind, namespace.as_deref().unwrap_or("*"))
            }
        }
    }
}

impl Watch {
    /// The URL's path.
    fn path(&self) -> String {
        let (Scope::Named { namespace, .. } | Scope::Selected { namespace: Some(namespace), .. }) = &self.scope else {
            return format!("/api/v1/{}", resource(self.kind));
        };
        format!("/api/v1/namespaces/{namespace}/{}", resource(self.kind))
    }

    /// The field or the label selector. With `metadata.name` as the field, a Role with `resourceNames` suffices.
    fn selector(&self) -> (&'static str, String) {
        match &self.scope {
            Scope::Named { name, .. } => ("fieldSelector", format!("metadata.name={name}")),
            Scope::Selected { selector, .. } => ("labelSelector", selector.clone()),
        }
    }

    /// Path and query.
    fn target(&self, parameters: &[(&str, &str)]) -> String {
        let (selector, value) = self.selector();
        let mut target = format!("{}?{selector}={}", self.path(), Encoded(&value));
        for (name, value) in parameters {
            // A `String` takes everything.
            let _ = write!(target, "&{name}={}", Encoded(value));
        }
        target
    }
}

/// Prints as the value of a query (RFC 3986: percent-encoded but for what is unreserved).
struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                f.write_char(char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

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
        position: None,
        sizes: BTreeMap::new(),
        total: 0,
        page: 0,
        verb: "list",
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
                task.position = None;
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

struct Task {
    clients: Clients,
    watch: Watch,
    max_size: u64,
    spool: Option<Spool>,
    updates: mpsc::Sender<Update>,
    /// The resourceVersion to watch from; `None`: list first.
    position: Option<String>,
    /// What there is, and its size in bytes; and of all together.
    sizes: BTreeMap<ObjectRef, u64>,
    total: u64,
    /// Index into [`PAGE_SIZES`].
    page: usize,
    /// What is being asked for, for messages.
    verb: &'static str,
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
        if failure.lost_position() {
            self.position = None;
        }
        let synced = self.position.is_some();
        let kind = Some(discriminant(&failure));
        if self.last == kind || !failure.may_pass(synced) {
            self.wary = matches!(failure, Failure::Broken(_));
            self.tell(Err((failure.message(&self.watch, self.verb), failure.is_forbidden()))).await;
        }
        self.last = kind;
        self.patience = failure.patience(synced, self.clients.deadlines().answer);
        sleep(failure.delay(self.failures, synced)).await;
    }

    async fn run(&mut self) -> Result<Infallible, Failure> {
        loop {
            let position = match &self.position {
                Some(position) => position.clone(),
                None => self.list().await?,
            };
            self.follow(position).await?;
        }
    }

    /// Lists everything and sends it as a whole. Returns where a watch goes on from.
    async fn list(&mut self) -> Result<String, Failure> {
        self.verb = "list";
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
        self.position = Some(position.clone());
        Ok(position)
    }

    /// One page of the list: the first, or the one that `next` stands for.
    async fn page(&self, next: &str) -> Result<Listed, Failure> {
        let limit = PAGE_SIZES.get(self.page).map_or_else(String::new, u32::to_string);
        let parameters = [("limit", limit.as_str()), ("continue", next)];
        let used = if next.is_empty() { &parameters[..1] } else { &parameters[..] };
        let mut answer = self.clients.get(&self.watch.target(used), self.patience).await?;
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk(self.clients.deadlines().answer).await? {
            if text.len() + chunk.len() > PAGE_LIMIT {
                return Err(Failure::PageTooLarge);
            }
            text.extend_from_slice(&chunk);
        }
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
    async fn follow(&mut self, position: String) -> Result<(), Failure> {
        self.verb = "watch";
        let target = self.watch.target(&[
            ("watch", "true"),
            ("timeoutSeconds", &WATCH_TIMEOUT.to_string()),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", &position),
        ]);
        let mut lines = Lines::new(self.clients.get(&target, self.patience).await?, self.clients.deadlines().quiet);
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
        self.position = Some(position);
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
