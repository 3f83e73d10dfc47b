//! `.url` keys: a key `x.url` stands for a file `x`, which has what is behind the URL that the key holds.
//!
//! They are followed between the sources and what those mean: an object comes in with `x.url`, and goes out with `x`.
//! Each key has a poller as a `--watch-url` has. What was fetched last stays, whatever the server or the key says then.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch as channel};
use tokio::task::{AbortHandle, JoinSet};

use super::{Hosts, Source, watch};
use crate::model::content::Content;
use crate::model::digest::Digest;
use crate::model::made_of::{Part, Parts};
use crate::model::object::{Held, Kind, Object, ObjectRef};
use crate::model::spool::Spool;
use crate::net::credentials::LiteralOrFile;
use crate::net::endpoint::Endpoint;
use crate::net::proxy::Proxies;
use crate::net::request::{HttpConfig, Owner};
use crate::source::{ReadBack, Role, Seen, Spec, Update};

/// What the name of such a key ends with.
const SUFFIX: &str = ".url";
/// The longest URL, in bytes.
const LONGEST: usize = 8 * 1024;
/// How many reports of pollers may wait.
const QUEUE: usize = 64;

/// Which `.url` keys are followed.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--url-hosts`.
    pub hosts: Hosts,
    /// `--url-ca-file`. No credential is sent but those in a URL.
    pub ca_file: Option<PathBuf>,
    pub proxies: Proxies,
    /// As [`Source::may_be_empty`].
    pub may_be_empty: bool,
}

/// An object by its source's index.
type Place = (usize, ObjectRef);

/// The `.url` keys of all sources.
pub struct Keys {
    config: Arc<super::Config>,
    /// The sources whose objects may have them.
    sources: BTreeSet<usize>,
    objects: BTreeMap<Place, Followed>,
    /// Of the next poller.
    number: usize,
    reports: mpsc::Sender<Update>,
    updates: mpsc::Receiver<Update>,
    fetch: channel::Receiver<u64>,
    spool: Option<Spool>,
    tasks: JoinSet<()>,
    /// Whether what they stand for may be published from before this start.
    read_back: bool,
}

/// An object that has such keys.
struct Followed {
    /// As its source has it.
    object: Arc<Object>,
    /// By the whole key.
    links: BTreeMap<String, Link>,
    read_back: ReadingBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadingBack {
    /// To be asked for.
    Wanted,
    Asked,
    Done,
}

struct Link {
    /// What its poller reports by.
    number: usize,
    value: Digest,
    /// Without a credential.
    endpoint: Option<Endpoint>,
    /// Why it is not asked.
    refused: Option<String>,
    /// What was fetched last.
    content: Option<Content>,
    /// Whether it was asked, or never will be.
    answered: bool,
    /// That the server has nothing there.
    absent: bool,
    /// Why it is not known what the server has.
    trouble: Option<String>,
    task: Option<Task>,
}

/// Ends with its link.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Keys {
    /// Of these sources, if `--url-hosts` is given. Each change of `fetch` makes them all be fetched at once.
    #[must_use]
    pub fn new(
        config: &Arc<super::Config>,
        specs: &[Spec],
        spool: Option<&Spool>,
        fetch: channel::Receiver<u64>,
    ) -> Option<Self> {
        config.keys.as_ref()?;
        let (reports, updates) = mpsc::channel(QUEUE);
        let of_objects = |(_, spec): &(usize, &Spec)| matches!(spec.role, Role::Named | Role::Selected);
        Some(Self {
            config: config.clone(),
            sources: specs.iter().enumerate().filter(of_objects).map(|(index, _)| index).collect(),
            objects: BTreeMap::new(),
            number: 0,
            reports,
            updates,
            fetch,
            spool: spool.cloned(),
            tasks: JoinSet::new(),
            read_back: false,
        })
    }

    /// Something may be published from before this start.
    pub fn on_top(&mut self) {
        self.read_back = true;
    }

    /// What a poller reports. May be dropped at any time without a loss.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }

    /// What one has reported already.
    pub fn try_next(&mut self) -> Option<Update> {
        self.updates.try_recv().ok()
    }

    /// The same report with each object as its `.url` keys make it. From now on those are asked.
    pub fn follow(&mut self, Update { source, seen }: Update) -> Update {
        while self.tasks.try_join_next().is_some() {}
        if !self.sources.contains(&source) {
            return Update { source, seen };
        }
        let seen = match seen {
            Seen::All(objects) => {
                self.objects.retain(|(of, id), _| *of != source || objects.contains_key(id));
                Seen::All(objects.into_iter().map(|(id, object)| (id, self.object(source, object))).collect())
            }
            Seen::Changed(object) => Seen::Changed(self.object(source, object)),
            Seen::Gone(id) => {
                self.objects.remove(&(source, id.clone()));
                Seen::Gone(id)
            }
            seen => seen,
        };
        Update { source, seen }
    }

    fn object(&mut self, source: usize, object: Arc<Object>) -> Arc<Object> {
        let place = (source, object.id.clone());
        let before = self.objects.remove(&place);
        let mut keys = object.data.keys().filter(|key| key.ends_with(SUFFIX)).peekable();
        // What a server sends names no other server.
        if object.id.kind == Kind::Url || keys.peek().is_none() {
            return object;
        }
        let wanted = if self.read_back { ReadingBack::Wanted } else { ReadingBack::Done };
        let (was_secret, mut before, read_back) = before
            .map_or((false, BTreeMap::new(), wanted), |before| (before.object.secret, before.links, before.read_back));
        let mut links = BTreeMap::new();
        for key in keys {
            let link = match before.remove(key) {
                Some(link) if link.value == object.data[key].digest() && was_secret == object.secret => link,
                other => self.begin(&object, key, other.and_then(|other| other.content)),
            };
            links.insert(key.clone(), link);
        }
        let followed = Followed { object, links, read_back };
        let object = followed.object();
        self.objects.insert(place, followed);
        object
    }

    fn begin(&mut self, object: &Object, key: &str, content: Option<Content>) -> Link {
        self.number += 1;
        let mut link = Link {
            number: self.number,
            value: object.data[key].digest(),
            endpoint: None,
            refused: None,
            content,
            answered: false,
            absent: false,
            trouble: None,
            task: None,
        };
        match self.source(object, key) {
            Ok(source) => {
                link.endpoint = Some(source.endpoint.clone());
                let watch =
                    watch(self.config.clone(), source, self.spool.clone(), self.fetch.clone(), self.reports.clone());
                link.task = Some(Task(self.tasks.spawn(watch)));
            }
            Err(refused) => {
                link.refused = Some(refused);
                link.answered = true;
            }
        }
        link
    }

    /// What is to be asked; else why nobody is. Shows nothing of the value but a host.
    fn source(&self, object: &Object, key: &str) -> Result<Source, String> {
        let file = file_of(key);
        if file.is_empty() || file.ends_with('/') {
            return Err(format!("nothing stands before {SUFFIX} to call its file by; rename it"));
        }
        let value = &object.data[key];
        let bytes = if value.len() > LONGEST { None } else { Some(value.read().map_err(|error| error.to_string())?) };
        let text = bytes.as_deref().and_then(|bytes| str::from_utf8(bytes).ok()).map(str::trim);
        let text = text.ok_or("its value is no URL; put one there, or rename the key")?;
        let no_url = |why: &dyn std::fmt::Display| format!("{why}; put a URL there, or rename the key");
        let (endpoint, user) = Endpoint::with_user(text).map_err(|error| no_url(&error))?;
        let Some((host, _)) = endpoint.host() else { return Err(no_url(&"a URL starts with http:// or https://")) };
        let Some(config) = self.config.keys.as_ref().filter(|config| config.hosts.allow(&endpoint)) else {
            return Err(format!(
                "its URL names {host}, and nothing is fetched from hosts that --url-hosts (TRIMTAB_URL_HOSTS) does not name; \
                 add the host there, or put the content itself into the object"
            ));
        };
        let literal = |bytes: Vec<u8>| LiteralOrFile::Literal(bytes.into());
        let http = HttpConfig {
            owner: Owner::Url,
            user: user.map(|(user, password)| (literal(user), literal(password))),
            ca_file: config.ca_file.clone(),
            proxies: Some(config.proxies.clone()),
            ..HttpConfig::default()
        };
        Ok(Source {
            source: self.number,
            name: format!("{} {key:?}", object.id),
            endpoint: if object.secret { endpoint.secret() } else { endpoint },
            key: file.to_owned(),
            prefix: None,
            http: Arc::new(http),
            signed: None,
            secret: object.secret,
            may_be_empty: config.may_be_empty,
            linked: true,
        })
    }

    /// What a poller's report makes of its object.
    pub fn answered(&mut self, Update { source: number, seen }: Update) -> Option<Update> {
        let is_of = |followed: &Followed| followed.links.values().any(|link| link.number == number);
        // One whose key is gone or has changed meanwhile says nothing any more.
        let (place, followed) = self.objects.iter_mut().find(|(_, followed)| is_of(followed))?;
        let link = followed.links.values_mut().find(|link| link.number == number)?;
        match seen {
            Seen::All(objects) => {
                link.trouble = None;
                let content = objects.into_values().next().and_then(|object| object.data.values().next().cloned());
                link.absent = content.is_none();
                link.content = content.or(link.content.take());
            }
            Seen::Trouble { message, .. } => link.trouble = Some(message),
            Seen::Healthy => link.trouble = None,
            Seen::Changed(_) | Seen::Fetched(_) | Seen::Gone(_) | Seen::Warning(_) | Seen::Interrupted => return None,
        }
        link.answered = true;
        Some(Update { source: place.0, seen: Seen::Fetched(followed.object()) })
    }

    /// What has not been asked for yet, or is being read back, each with its source.
    pub fn waiting(&self) -> impl Iterator<Item = (usize, String)> {
        self.objects.iter().filter_map(|((source, _), followed)| {
            let reading = followed.read_back == ReadingBack::Asked && followed.links.values().any(Link::is_bare);
            let mut waiting = followed.links.iter().filter(|(_, link)| !link.answered || (reading && link.is_bare()));
            let (key, link) = waiting.next()?;
            let from = link.endpoint.as_ref().map(ToString::to_string).unwrap_or_default();
            let waited = format!(
                "{}: what {from} has for its key {key:?}, until it has answered or --url-timeout is over",
                followed.object.id
            );
            Some((*source, waited))
        })
    }

    /// What was fetched, by its object: from where, and how much.
    #[must_use]
    pub fn fetched(&self) -> Vec<(ObjectRef, String)> {
        let of = |followed: &Followed| {
            let said = |(key, link): (&String, &Link)| {
                let (endpoint, content) = (link.endpoint.as_ref()?, link.content.as_ref()?);
                let said = format!("{endpoint} has {} bytes, for key {key:?}", content.len());
                Some((followed.object.id.clone(), said))
            };
            followed.links.iter().filter_map(said).collect::<Vec<_>>()
        };
        self.objects.values().flat_map(of).collect()
    }

    /// What is to be read back of what was published; each is asked for once.
    pub fn absent(&mut self) -> Parts {
        let wanted = self.objects.values_mut().filter(|followed| followed.read_back == ReadingBack::Wanted);
        let parts = wanted.map(|followed| {
            followed.read_back = ReadingBack::Asked;
            let keys = followed.links.keys().map(|key| file_of(key).to_owned()).filter(|file| !file.is_empty());
            (followed.object.id.clone(), Part { keys: keys.collect(), ..Part::of(&followed.object, true) })
        });
        parts.collect()
    }

    /// What was published of them counts as fetched, until something is.
    pub fn restore(&mut self, read_back: &ReadBack) -> Vec<Update> {
        let mut restored = Vec::new();
        for ((source, id), followed) in &mut self.objects {
            let Some(published) = read_back.get(id).filter(|_| followed.read_back == ReadingBack::Asked) else {
                continue;
            };
            followed.read_back = ReadingBack::Done;
            for (key, link) in &mut followed.links {
                let content = published.as_ref().and_then(|published| published.data.get(file_of(key)));
                link.content = link.content.take().or_else(|| content.cloned());
            }
            restored.push(Update { source: *source, seen: Seen::Fetched(followed.object()) });
        }
        restored
    }
}

fn file_of(key: &str) -> &str {
    key.strip_suffix(SUFFIX).unwrap_or(key)
}

impl Followed {
    /// With what was fetched in the place of the keys that name it.
    fn object(&self) -> Arc<Object> {
        let Object { id, resource_version, created, secret, data, .. } = &*self.object;
        let mut data = data.clone();
        let mut held = Held::new();
        for (key, link) in &self.links {
            data.remove(key);
            let file = file_of(key);
            let wrong = if self.object.data.contains_key(file) {
                Some(format!("the object has a key {file:?} as well, which is published; take one of them away"))
            } else {
                if let Some(content) = &link.content {
                    data.insert(file.to_owned(), content.clone());
                }
                link.wrong()
            };
            held.extend(wrong.map(|wrong| (key.clone(), format!("key {key:?}: {wrong}"))));
        }
        let object = Object::new(id.clone(), resource_version.clone(), *created, *secret, data);
        Arc::new(object.marked(self.object.marks().cloned().unwrap_or_default()).holding(held))
    }
}

impl Link {
    fn is_bare(&self) -> bool {
        self.content.is_none()
    }

    /// Why it is not as it should be.
    fn wrong(&self) -> Option<String> {
        let absent = || {
            let endpoint = self.endpoint.as_ref().filter(|_| self.absent)?;
            Some(format!("{endpoint}: nothing is there (404), or it is empty; put it there, or correct the URL"))
        };
        let wrong = self.refused.clone().or_else(|| self.trouble.clone()).or_else(absent)?;
        Some(if self.is_bare() { wrong } else { format!("{wrong}; what was fetched before stays") })
    }
}
