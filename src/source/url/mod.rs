//! Files and bundles behind URLs: each is asked for every `--url-poll`, and counts as a whole or not at all.
//!
//! One task for each. It holds no content: that belongs to whoever receives it. What it keeps to ask by (`ETag`,
//! `Last-Modified`) it keeps as long as that content, and in memory alone: so after a restart everything is fetched whole, and
//! no name for a content outlives it.

mod bundle;
mod hosts;
pub mod keys;
mod prefix;
mod signature;
mod spill;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch as channel};
use tokio::time::{sleep, timeout};

use self::bundle::BundleError;
pub use self::bundle::Packing;
#[cfg(fuzzing)]
pub use self::bundle::unpack as unpack_bundle;
pub use self::hosts::{Hosts, ParseHostsError};
pub use self::prefix::Prefix;
use self::prefix::Whole;
use self::signature::SignatureError;
pub use self::signature::Signed;
use self::spill::Spilled;
use super::{Seen, Update};
use crate::model::content::Content;
use crate::model::digest::Digest;
use crate::model::object::{Kind, Object, ObjectRef};
use crate::model::spool::{Spool, SpoolError};
use crate::net::endpoint::Endpoint;
use crate::net::request::HttpConfig;
use crate::net::request::fetch::{Conditions, FetchError, Fetched, Limits, fetch, fetch_into};
use crate::net::store::listing::ListingError;
use crate::os::backoff;

/// A poll comes so much sooner or later than `--url-poll` says: a fleet does not ask at one instant.
const JITTER: f64 = 0.1;
/// A failed fetch is tried again after the first, then after twice as long, up to the second, as at the API server.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
const CONNECT: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_secs(30);

/// What one URL is.
#[derive(Clone, Debug)]
pub struct Source {
    /// The index that its updates carry.
    pub source: usize,
    /// NAME of `--watch-url NAME=URL`: the object's name.
    pub name: String,
    pub endpoint: Endpoint,
    /// What the file, or the bundle, is called.
    pub key: String,
    /// Where it is all that is below a prefix: by which way.
    pub prefix: Option<Prefix>,
    /// What is sent with it, and who is trusted.
    pub http: Arc<HttpConfig>,
    /// `--url-key`: what is used of it must be signed.
    pub signed: Option<Signed>,
    /// `--secret-url`.
    pub secret: bool,
    /// Whether an empty body is a content, and not an absence.
    pub may_be_empty: bool,
    /// Of a `.url` key: the body is the file, whatever it holds, and whoever follows the key says what is wrong with it.
    pub linked: bool,
}

/// What [`watch`] does.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub sources: Vec<Source>,
    /// `--url-poll`.
    pub poll: Duration,
    /// `--url-timeout`.
    pub timeout: Duration,
    /// `--max-size`: the largest body of each, and what its keys and values may take up, in bytes.
    pub max_size: u64,
    /// `--url-hosts`.
    pub keys: Option<keys::Config>,
}

/// Why it is not known what is behind a URL. Each is retried: what was known stays.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("{endpoint}: {error}")]
    Unsigned { endpoint: String, error: SignatureError },
    #[error("{endpoint}: {error}; nothing of the bundle is used")]
    Bundle { endpoint: String, error: BundleError },
    #[error("{endpoint}: {error}; nothing below the prefix is used")]
    Listing { endpoint: String, error: ListingError },
    #[error("{0}")]
    NotKept(#[from] SpoolError),
    /// The runtime ends.
    #[error("it was not read to its end")]
    Ended,
}

impl UrlError {
    /// Whether a credential is missing, or not the right one.
    #[must_use]
    pub fn forbidden(&self) -> bool {
        matches!(self, Self::Fetch(error) if error.forbidden())
    }

    /// Whether it was fetched, and a signature is missing or not the right one.
    #[must_use]
    pub fn unsigned(&self) -> bool {
        matches!(self, Self::Unsigned { .. })
    }

    fn is_lasting(&self) -> bool {
        match self {
            Self::Fetch(error) => error.is_lasting(),
            Self::Listing { error, .. } => error.is_lasting(),
            Self::Unsigned { .. } | Self::Bundle { .. } => true,
            Self::NotKept(_) | Self::Ended => false,
        }
    }
}

/// What stands for a content that somebody has.
#[derive(Clone, Debug, Default)]
pub struct Known {
    conditions: Conditions,
    whole: Option<Arc<Whole>>,
}

/// What is behind a URL.
#[derive(Debug)]
pub enum Found {
    Object(Arc<Object>, Known),
    /// What is known.
    NotModified,
    /// Nothing: the server's status, which is 200 where the body is empty.
    Absent(u16),
}

/// Asks once.
pub async fn look(config: &Config, source: &Source, spool: Option<&Spool>, known: &Known) -> Result<Found, UrlError> {
    // A list with its objects, and a body with its signature, redirects included, come within the time of one.
    let slow = |_| UrlError::from(FetchError::Slow { endpoint: source.endpoint.to_string(), whole: config.timeout });
    let limits = Limits { connect: CONNECT, quiet: QUIET, bytes: config.max_size };
    if let Some(prefix) = &source.prefix {
        let found = prefix.look(source, &limits, spool, known.whole.as_deref());
        return timeout(config.timeout, found).await.map_err(slow)?;
    }
    let fetched = timeout(config.timeout, source.fetch(&limits, spool, &known.conditions)).await;
    let (body, conditions) = match fetched.map_err(slow)?? {
        Fetched::New { body, conditions } => (body, conditions),
        Fetched::NotModified => return Ok(Found::NotModified),
        Fetched::Absent(code) => return Ok(Found::Absent(code)),
    };
    let (source, spool, limit) = (source.clone(), spool.cloned(), config.max_size);
    // Megabytes are unpacked and digested.
    let object = tokio::task::spawn_blocking(move || source.object(body, limit, spool.as_ref())).await;
    Ok(Found::Object(object.unwrap_or(Err(UrlError::Ended))?, Known { conditions, whole: None }))
}

impl Source {
    /// What is there, as it may be used: verified where it is to be signed, and absent where it is empty.
    async fn fetch(
        &self,
        limits: &Limits,
        spool: Option<&Spool>,
        conditions: &Conditions,
    ) -> Result<Fetched<Content>, UrlError> {
        let mut fetched = self.fetch_once(&self.endpoint, limits, spool, conditions).await?;
        let mut again = true;
        loop {
            let (body, conditions) = match fetched {
                Fetched::New { body, .. } if body.is_empty() && !self.may_be_empty => return Ok(Fetched::Absent(200)),
                Fetched::New { body, conditions } => (body, conditions),
                nothing => return Ok(nothing),
            };
            match self.verify(&body, limits).await {
                Ok(()) => return Ok(Fetched::New { body, conditions }),
                // One of the two may have been replaced after the other was fetched.
                Err(UrlError::Unsigned { error, .. }) if again && error.may_be_of_two_versions() => again = false,
                Err(error) => return Err(error),
            }
            fetched = match self.fetch_once(&self.endpoint, limits, spool, &conditions).await? {
                Fetched::NotModified => Fetched::New { body, conditions },
                newer => newer,
            };
        }
    }

    async fn fetch_once(
        &self,
        endpoint: &Endpoint,
        limits: &Limits,
        spool: Option<&Spool>,
        conditions: &Conditions,
    ) -> Result<Fetched<Content>, UrlError> {
        let mut spilled = Spilled::new(spool.cloned(), limits.bytes);
        let fetched = fetch_into(&mut spilled, endpoint, &self.http, limits, conditions).await;
        if let Some(error) = spilled.error {
            return Err(error.into());
        }
        match fetched? {
            Fetched::New { body, conditions } => {
                let body = tokio::task::spawn_blocking(move || spilled.end(body)).await;
                Ok(Fetched::New { body: body.map_err(|_| UrlError::Ended)??, conditions })
            }
            Fetched::NotModified => Ok(Fetched::NotModified),
            Fetched::Absent(code) => Ok(Fetched::Absent(code)),
        }
    }

    async fn verify(&self, body: &Content, limits: &Limits) -> Result<(), UrlError> {
        let Some(signed) = &self.signed else { return Ok(()) };
        let unsigned = |error| UrlError::Unsigned { endpoint: self.endpoint.to_string(), error };
        let at = || signed.at.to_string();
        let limits = Limits { bytes: signature::LIMIT, ..*limits };
        let signature = match fetch(&signed.at, &self.http, &limits, &Conditions::default()).await {
            Ok(Fetched::New { body, .. }) => body,
            Ok(Fetched::Absent(code)) => return Err(unsigned(SignatureError::Missing { at: at(), code })),
            Ok(Fetched::NotModified) | Err(FetchError::TooLarge { .. }) => {
                return Err(unsigned(SignatureError::Unreadable { at: at() }));
            }
            Err(error) => return Err(error.into()),
        };
        let (signed, body) = (signed.clone(), body.clone());
        let verified = tokio::task::spawn_blocking(move || signed.verify(&body, &signature)).await;
        verified.map_err(|_| UrlError::Ended)?.map_err(|error| match error {
            SignatureError::NotKept(error) => error.into(),
            error => unsigned(error),
        })
    }

    fn object(&self, body: Content, limit: u64, spool: Option<&Spool>) -> Result<Arc<Object>, UrlError> {
        let refused = |error| match error {
            BundleError::NotKept(error) => error.into(),
            error => UrlError::Bundle { endpoint: self.endpoint.to_string(), error },
        };
        let data = match Packing::of(&self.key).filter(|_| !self.linked) {
            None => BTreeMap::from([(self.key.clone(), body)]),
            Some(packing) => bundle::unpack(body.reader(), packing, limit, spool).map_err(refused)?,
        };
        Ok(self.of(data))
    }

    fn of(&self, data: BTreeMap<String, Content>) -> Arc<Object> {
        let id = ObjectRef { kind: Kind::Url, namespace: Arc::default(), name: self.name.as_str().into() };
        Arc::new(Object::new(id, String::new(), 0, self.secret, data))
    }
}

/// Polls until the receiver of `updates` is gone. Each change of `refresh` makes it fetch everything at once, whatever it
/// has.
pub async fn watch(
    config: Arc<Config>,
    source: Source,
    spool: Option<Spool>,
    mut refresh: channel::Receiver<u64>,
    updates: mpsc::Sender<Update>,
) {
    let gone = updates.clone();
    let mut poller = Poller {
        config,
        source,
        spool,
        updates,
        known: Known::default(),
        sent: Sent::Nothing,
        failures: 0,
        trouble: None,
        healthy: false,
    };
    let poll = async {
        loop {
            let asked = async {
                let pause = poller.ask().await;
                sleep(pause).await;
            };
            let refreshed = tokio::select! {
                () = asked => false,
                () = super::changed(&mut refresh) => true,
            };
            if refreshed {
                poller.known = Known::default();
                poller.failures = 0;
            }
        }
    };
    tokio::select! {
        () = gone.closed() => {}
        () = poll => {}
    }
}

/// What the receiver has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Nothing,
    /// That nothing is there.
    Absence,
    Content(Digest),
}

struct Poller {
    config: Arc<Config>,
    source: Source,
    spool: Option<Spool>,
    updates: mpsc::Sender<Update>,
    /// What stands for the content that was last sent; none where it is to be fetched whole.
    known: Known,
    /// What was last sent.
    sent: Sent,
    /// In a row.
    failures: u32,
    /// The one that was reported.
    trouble: Option<String>,
    healthy: bool,
}

impl Poller {
    /// Asks, reports what is new, and says how long to wait.
    async fn ask(&mut self) -> Duration {
        let poll = backoff::spread(self.config.poll.mul_f64(1.0 + JITTER), (1.0 - JITTER) / (1.0 + JITTER));
        match look(&self.config, &self.source, self.spool.as_ref(), &self.known).await {
            Ok(found) => {
                self.failures = 0;
                self.take(found).await;
                poll
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                let retry = backoff::delay(self.failures, RETRY.0, RETRY.1, 0.25);
                let after = if let UrlError::Fetch(error) = &error { error.after() } else { None };
                let pause = if error.is_lasting() { retry.max(poll) } else { retry };
                self.report(&error).await;
                pause.saturating_add(after.unwrap_or_default())
            }
        }
    }

    async fn take(&mut self, found: Found) {
        let (object, known) = match found {
            Found::NotModified => (None, None),
            Found::Absent(code) => {
                if self.sent != Sent::Absence && !self.source.linked {
                    let why = if code == 200 { "it is empty" } else { "nothing is there" };
                    tracing::warn!(source = self.source.name, "{} answered {code}: {why}", self.source.endpoint);
                }
                (Some(None), None)
            }
            Found::Object(object, known) => (Some(Some(object)), Some(known)),
        };
        if let Some(object) = object {
            let sent = object.as_ref().map_or(Sent::Absence, |object| Sent::Content(object.content()));
            if self.sent != sent {
                // Until it has arrived nothing is known of it.
                self.known = Known::default();
                let objects = object.into_iter().map(|object| (object.id.clone(), object));
                self.send(Seen::All(objects.collect())).await;
                self.sent = sent;
            }
            self.known = known.unwrap_or_default();
        }
        if !std::mem::replace(&mut self.healthy, true) {
            self.trouble = None;
            self.send(Seen::Healthy).await;
        }
    }

    async fn report(&mut self, error: &UrlError) {
        let stays = if !self.source.linked && matches!(self.sent, Sent::Content(_)) {
            "; what was fetched before stays"
        } else {
            ""
        };
        let message = format!("{error}{stays}");
        if self.trouble.as_ref() != Some(&message) {
            self.healthy = false;
            self.trouble = Some(message.clone());
            self.send(Seen::Trouble { message, forbidden: error.forbidden(), held_back: Vec::new() }).await;
        }
    }

    async fn send(&self, seen: Seen) {
        // That nobody receives it ends the task.
        let _ = self.updates.send(Update { source: self.source.source, seen }).await;
    }
}
