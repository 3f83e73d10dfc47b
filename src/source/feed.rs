//! The feed: one loop that reads the sources, for the sidecar and for its dry runs.
//!
//! It owns the watchers' channel and the sources, and reports each trouble once.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::url::keys::Keys;
use super::{Published, ReadBack, Seen, Sources, Spec, Update, View, files, kube, url};
use crate::model::made_of::Parts;
use crate::model::object::ObjectRef;
use crate::model::snapshot::Snapshot;
use crate::model::spool::Spool;

/// How many reports of the watchers may wait.
const QUEUE: usize = 64;

/// The sources, as they are read.
pub struct Feed {
    sources: Sources,
    updates: mpsc::Receiver<Update>,
    /// `None` without `--url-hosts`.
    keys: Option<Keys>,
    /// Whether a snapshot was taken: before that, `.url` keys are waited for.
    begun: bool,
    /// Each change of it makes the watchers read everything again.
    refresh: watch::Sender<u64>,
    /// Each change of it makes the URLs be asked at once.
    fetch: watch::Sender<u64>,
    /// Whether each source was there when that was last logged; `None` before it was.
    was_up: Vec<Option<bool>>,
    waited_for: Vec<String>,
    /// Whether the snapshot has changed since it was last taken.
    changed: bool,
}

/// Where values are kept, if not in memory.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// Those of the API server.
    pub api: Option<Spool>,
    /// Those of URLs.
    pub urls: Option<Spool>,
    /// Those of URLs that are secret.
    pub secret_urls: Option<Spool>,
}

impl Keep {
    /// Where the values of this one are kept.
    #[must_use]
    pub fn of(&self, source: &url::Source) -> Option<&Spool> {
        if source.secret { self.secret_urls.as_ref() } else { self.urls.as_ref() }
    }
}

/// What sources reported, by their indices.
#[derive(Debug, Default)]
pub struct News {
    /// Those that reported content, with repetitions.
    pub heard: Vec<usize>,
    /// Those that became readable, unreadable, or are gone.
    pub up: Vec<(usize, bool)>,
    /// How many watches were cut before their time.
    pub cut: usize,
    /// What is worth a line in the log.
    pub notes: Vec<Note>,
}

/// Something that a source reported, for the log.
#[derive(Clone, Debug)]
pub struct Note {
    /// Its name; empty where `message` has it.
    pub source: String,
    pub message: String,
    /// Whether it is good news.
    pub good: bool,
}

impl Note {
    fn new(source: &str, message: impl Into<String>, good: bool) -> Self {
        Self { source: source.to_owned(), message: message.into(), good }
    }

    pub fn log(&self) {
        let Self { source, message, good } = self;
        match (source.as_str(), good) {
            ("", _) => warn!("{message}"),
            (source, true) => info!(source, "{message}"),
            (source, false) => warn!(source, "{message}"),
        }
    }
}

impl Feed {
    /// Starts a task for the directories, and one for each URL and each of the API server's `watches`. `max_size`: the largest source at
    /// the API server, in bytes.
    pub fn start(
        tasks: &mut JoinSet<()>,
        specs: &[Spec],
        files: &files::Config,
        urls: &Arc<url::Config>,
        api: Option<(kube::Clients, &[kube::Watch])>,
        max_size: u64,
        keep: &Keep,
    ) -> Self {
        let (reports, updates) = mpsc::channel(QUEUE);
        let [refresh, fetch] = [watch::Sender::new(0), watch::Sender::new(0)];
        if !files.roots.is_empty() {
            tasks.spawn(files::watch(files.clone(), refresh.subscribe(), reports.clone()));
        }
        for source in &urls.sources {
            let (urls, source, spool) = (Arc::clone(urls), source.clone(), keep.of(source).cloned());
            tasks.spawn(url::watch(urls, source, spool, fetch.subscribe(), reports.clone()));
        }
        if let Some((clients, watches)) = api {
            for watch in watches {
                let (clients, watch, spool) = (clients.clone(), watch.clone(), keep.api.clone());
                tasks.spawn(kube::watch(clients, watch, max_size, spool, refresh.subscribe(), reports.clone()));
            }
        }
        Self {
            sources: Sources::new(specs.iter().cloned()),
            updates,
            keys: Keys::new(urls, specs, keep.api.as_ref(), fetch.subscribe()),
            begun: false,
            refresh,
            fetch,
            was_up: vec![None; specs.len()],
            waited_for: Vec::new(),
            changed: false,
        }
    }

    /// As [`Sources::on_top_of`].
    #[must_use]
    pub fn on_top_of(mut self, published: Published, plain: bool) -> Self {
        if let Some(keys) = self.keys.as_mut().filter(|_| !matches!(published, Published::Nothing)) {
            keys.on_top();
        }
        Self { sources: self.sources.on_top_of(published, plain), ..self }
    }

    /// As [`Sources::absent`], and what `.url` keys stand for.
    pub fn absent(&mut self, news: &mut News) -> Parts {
        let mut absent = self.sources.absent();
        for (id, part) in self.keys.iter_mut().filter(|_| !self.begun).flat_map(Keys::absent) {
            absent.entry(id).or_insert(part);
        }
        self.note_what_is_waited_for(news);
        absent
    }

    /// As [`Sources::restore`].
    pub fn restore(&mut self, read_back: &ReadBack) -> News {
        let mut news = News::default();
        for source in self.sources.restore(read_back) {
            let view = &self.views()[source];
            news.notes.push(Note::new(&view.spec.name, view.message().unwrap_or_default(), false));
            self.changed = true;
        }
        for update in self.keys.iter_mut().flat_map(|keys| keys.restore(read_back)) {
            self.changed |= self.sources.take(update);
        }
        news
    }

    /// As [`Sources::let_go`].
    pub fn let_go(&mut self) -> News {
        let mut news = News::default();
        for source in self.sources.let_go() {
            news.notes.push(Note::new(
                &self.views()[source].spec.name,
                "going on without what is gone, as asked",
                true,
            ));
            self.look(source, &mut news);
            self.changed = true;
        }
        news
    }

    /// Waits until a source reports something, and takes in all that is there. May be dropped at any time without a loss.
    pub async fn next(&mut self) -> News {
        let mut news = News::default();
        let of_keys = async {
            match &mut self.keys {
                Some(keys) => keys.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(first) = self.updates.recv() => self.take(first, &mut news),
            Some(first) = of_keys => self.answered(first),
            else => return std::future::pending().await,
        }
        // What is there already is one change.
        while let Ok(update) = self.updates.try_recv() {
            self.take(update, &mut news);
        }
        while let Some(update) = self.keys.as_mut().and_then(Keys::try_next) {
            self.answered(update);
        }
        self.note_what_is_waited_for(&mut news);
        news
    }

    /// Lets all sources be read again.
    pub fn refresh(&self) {
        self.refresh.send_modify(|count| *count += 1);
        self.fetch.send_modify(|count| *count += 1);
    }

    /// Lets the URLs be asked at once, and says whether there are any.
    #[must_use]
    pub fn fetch(&self) -> bool {
        self.fetch.send_modify(|count| *count += 1);
        self.fetch.receiver_count() > 0
    }

    /// The snapshot, if every source is known and it has changed since the last call.
    pub fn changed(&mut self) -> Option<Snapshot> {
        if !self.changed || !self.waits_for().is_empty() {
            return None;
        }
        (self.changed, self.begun) = (false, true);
        Some(self.sources.snapshot())
    }

    /// Each source as it is known.
    #[must_use]
    pub fn views(&self) -> &[View] {
        self.sources.views()
    }

    /// What is waited for before anything can be rendered.
    #[must_use]
    pub fn waits_for(&self) -> Vec<String> {
        let mut waits_for = self.sources.waits_for();
        waits_for.extend(self.fetches().map(|(_, waited)| waited));
        waits_for
    }

    /// What is waited for of that though nothing is wrong, with its source: servers that `.url` keys name, before the
    /// first snapshot.
    pub fn fetches(&self) -> impl Iterator<Item = (usize, String)> {
        self.keys.iter().filter(|_| !self.begun).flat_map(Keys::waiting)
    }

    /// As [`Keys::fetched`].
    #[must_use]
    pub fn fetched(&self) -> Vec<(ObjectRef, String)> {
        self.keys.as_ref().map(Keys::fetched).unwrap_or_default()
    }

    /// Whether a source cannot be read for lack of a permission.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.views().iter().any(View::is_forbidden)
    }

    fn answered(&mut self, update: Update) {
        let update = self.keys.as_mut().and_then(|keys| keys.answered(update));
        self.changed |= update.is_some_and(|update| self.sources.take(update));
    }

    fn take(&mut self, update: Update, news: &mut News) {
        let update = match &mut self.keys {
            Some(keys) => keys.follow(update),
            None => update,
        };
        let source = update.source;
        let Some(view) = self.views().get(source) else { return };
        match &update.seen {
            Seen::Trouble { message, .. } | Seen::Warning(message) => {
                news.notes.push(Note::new(&view.spec.name, message, false));
            }
            Seen::Healthy => {}
            Seen::Interrupted => {
                debug!(source = view.spec.name, "its watch was cut");
                news.cut += 1;
            }
            Seen::All(_) | Seen::Changed(_) | Seen::Gone(_) | Seen::Fetched(_) => news.heard.push(source),
        }
        let selected_nothing = view.selects_nothing();
        self.changed |= self.sources.take(update);
        let view = &self.views()[source];
        if view.selects_nothing() && !selected_nothing {
            news.notes.push(Note::new(&view.spec.name, view.message().unwrap_or_default(), true));
        }
        self.look(source, news);
    }

    /// Reports whether a source is there, if that is news.
    fn look(&mut self, source: usize, news: &mut News) {
        let Some(view) = self.sources.views().get(source) else { return };
        let up = view.is_up() && !view.is_kept() && !view.is_gone();
        let was_up = self.was_up[source].replace(up);
        if was_up != Some(up) {
            match view.message() {
                _ if up && was_up == Some(false) => {
                    news.notes.push(Note::new(&view.spec.name, "it can be read again", true));
                }
                // A trouble was reported when it came; and what is gone may be read back, or is waited for.
                Some(message) if view.is_up() && !up && !view.is_gone() => {
                    news.notes.push(Note::new(&view.spec.name, message, false));
                }
                _ => {}
            }
            news.up.push((source, up));
        }
    }

    fn note_what_is_waited_for(&mut self, news: &mut News) {
        let waits_for = self.sources.waits_for();
        // Until each has been read once, and back, it would be true for a moment alone.
        let is_known = |view: &View| view.is_known() && (!view.is_gone() || view.is_lost());
        if waits_for == self.waited_for || !self.views().iter().all(is_known) || self.fetches().next().is_some() {
            return;
        }
        for waited in waits_for.iter().filter(|waited| !self.waited_for.contains(waited)) {
            // A trouble was reported when it came.
            let is_trouble = |view: &View| !view.is_up() && view.waits_for().as_ref() == Some(waited);
            if !self.views().iter().any(is_trouble) {
                news.notes.push(Note::new("", format!("waiting for {waited}"), false));
            }
        }
        self.waited_for = waits_for;
    }
}
