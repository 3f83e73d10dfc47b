//! The archive: each confirmed generation as a bundle behind a URL, after its confirmation and beside everything else.
//!
//! One task. It holds one bundle at a time, in a file without a name: what waits to be tried again gives way to what is
//! newer. A note in the state directory says what was archived last, so that a kill loses no upload and a restart repeats
//! none.

mod pack;

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tracing::{debug, info, warn};

pub use self::pack::{PackError, Packed, Packer};
use crate::model::content::Content;
use crate::model::digest::{Digest, DigestKey, Hasher};
use crate::model::journal::Generation;
use crate::model::spool::SpoolError;
use crate::model::tree::ContentHasher;
use crate::net::endpoint::Endpoint;
use crate::net::request::put::{Pieces, Put, put};
use crate::net::request::{HttpConfig, HttpError};
use crate::net::store::kind::Kind;
use crate::os::backoff;
use crate::os::fault::Faults;
use crate::publish::{Output, PublishError, Unread};

/// What is always the newest one.
const LATEST: &str = "latest";
/// How many pieces of a bundle are read ahead of the connection.
const AHEAD: usize = 2;

/// `--archive`.
#[derive(Clone, Debug)]
pub struct Config {
    /// What bundles are below.
    pub at: Endpoint,
    /// What is sent with them, and who is trusted.
    pub http: Arc<HttpConfig>,
    /// `--archive-secrets`.
    pub secrets: bool,
    /// `--url-timeout`.
    pub timeout: Duration,
    /// `--retry-min` and `--retry-max`.
    pub retry: (Duration, Duration),
    /// Whether it is what the main process writes that is archived, and not an output.
    pub observed: bool,
}

impl Config {
    /// Where a bundle goes; `None`: the URL would be too long.
    #[must_use]
    pub fn place(&self, name: &str) -> Option<Endpoint> {
        let gap = if self.at.has_slash() { "" } else { "/" };
        self.at.with_suffix(&format!("{gap}{name}.tar.gz"))
    }
}

/// A generation to be archived.
#[derive(Clone, Debug)]
pub struct Order {
    pub generation: Generation,
    /// Whether a secret went into it.
    pub secret: bool,
    /// What the main process wrote; `None`: the generation's own files.
    pub files: Option<Vec<(String, Content)>>,
}

/// What was archived last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Archived {
    /// Where to, without a credential.
    pub to: String,
    /// The generation's directory.
    pub directory: String,
    /// Of what the main process wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<Digest>,
    pub sequence: u64,
    /// The bundle's name below the URL; `None`: there was nothing in it.
    pub name: Option<String>,
    pub at: Timestamp,
}

impl Archived {
    /// What an earlier life has archived, if that is known.
    #[must_use]
    pub fn found(output: &Output) -> Option<Self> {
        serde_json::from_slice(&output.read_archived()).ok()
    }

    /// Whether it is this generation, at the same place.
    #[must_use]
    pub fn is(&self, generation: &Generation, to: &Endpoint) -> bool {
        self.directory == generation.directory && self.observed == generation.observed && self.to == to.to_string()
    }
}

/// What became of an order.
#[derive(Clone, Debug)]
pub enum News {
    Archived(Archived),
    /// It is tried again.
    Failed {
        message: String,
    },
}

/// Why a generation is not archived. Each is retried.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("it cannot be read: {0}")]
    Publish(#[from] PublishError),
    #[error("the bundle cannot be kept beside the journal: {0}; it needs about as much room as what is published")]
    NotKept(SpoolError),
    #[error("it was changed since it was published; the next change is archived as it is published")]
    Changed,
    /// What the main process wrote.
    #[error("{path} was changed while it was read; it is archived when it is quiet")]
    Busy { path: String },
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("{at}: the server answered {code} to a PUT{}", hint(*code, *store))]
    Refused {
        at: String,
        code: u16,
        /// Where it is an object store.
        store: Option<Kind>,
    },
    /// It comes from the command line, whose check has seen a shorter one.
    #[error("the URL of --archive is too long")]
    TooLong,
    /// The runtime ends.
    #[error("it was not sent to its end")]
    Ended,
}

/// What to do about a status.
fn hint(code: u16, store: Option<Kind>) -> &'static str {
    if let (401 | 403, Some(store)) = (code, store) {
        return store.needed_to_put();
    }
    match code {
        300..=399 => ", and an upload follows no redirect; give the URL that it leads to",
        401 | 403 => "; it wants another credential (--url-header 'archive=Authorization: @FILE', --url-cert-file)",
        404 | 409 => "; is the folder or bucket there?",
        405 | 501 => "; it takes no uploads there (nginx: dav_methods PUT)",
        411 => "; it wants a length, which was sent; is a proxy in the way?",
        413 => "; it is too large for the server (nginx: client_max_body_size)",
        507 => "; its disk is full",
        429 | 500.. => "; trying again, and its own log says why",
        _ => "",
    }
}

/// Archives each order, the newest first, until nobody can give one any more. Each change of `orders` ends a pause.
pub async fn work(
    config: Config,
    output: Arc<Output>,
    key: DigestKey,
    mut orders: watch::Receiver<Option<Arc<Order>>>,
    news: mpsc::Sender<News>,
) {
    let mut done: Option<Arc<Order>> = None;
    let mut packed: Option<(Arc<Order>, Packed)> = None;
    let (mut failures, faults) = (0, Faults::from_env());
    loop {
        let is_new = |order: &Option<Arc<Order>>| match (order, &done) {
            (Some(order), Some(done)) => !Arc::ptr_eq(order, done),
            (order, _) => order.is_some(),
        };
        let Ok(order) = orders.wait_for(is_new).await.map(|order| order.clone()) else { return };
        let Some(order) = order else { continue };
        let sequence = order.generation.sequence;
        if let Some((before, _)) = packed.take_if(|(before, _)| !Arc::ptr_eq(before, &order)) {
            let before = before.generation.sequence;
            info!("generation {before} is not archived: generation {sequence} is newer, and goes in its place");
        }
        match archive(&config, &output, &key, &order, &mut packed, &faults).await {
            Ok(archived) => {
                note(&output, &archived).await;
                if std::mem::take(&mut failures) > 0 {
                    info!(sequence, "the archive works again");
                }
                (done, packed) = (Some(order), None);
                // The app may have ended.
                let _ = news.send(News::Archived(archived)).await;
            }
            // What was pruned is no loss: something newer was confirmed.
            Err(_) if orders.borrow().as_ref().is_some_and(|newer| !Arc::ptr_eq(newer, &order)) => {
                debug!(sequence, "not archived, and something newer is there");
            }
            Err(error) => {
                failures += 1;
                let message = error.to_string();
                if failures == 1 {
                    warn!(sequence, "generation {sequence} is not archived: {message}; attempts go on");
                }
                let _ = news.send(News::Failed { message }).await;
                orders.mark_unchanged();
                let pause = backoff::delay(failures, config.retry.0, config.retry.1, 0.5);
                tokio::select! {
                    () = sleep(pause) => {}
                    changed = orders.changed() => if changed.is_err() { return },
                }
            }
        }
    }
}

async fn archive(
    config: &Config,
    output: &Arc<Output>,
    key: &DigestKey,
    order: &Arc<Order>,
    packed: &mut Option<(Arc<Order>, Packed)>,
    faults: &Faults,
) -> Result<Archived, ArchiveError> {
    let generation = &order.generation;
    let archived = |name: Option<String>| Archived {
        to: config.at.to_string(),
        directory: generation.directory.clone(),
        observed: generation.observed,
        sequence: generation.sequence,
        name,
        at: Timestamp::now(),
    };
    let bundle = if let Some((_, bundle)) = packed {
        bundle
    } else {
        let (output, key, order) = (output.clone(), key.clone(), order.clone());
        let made = tokio::task::spawn_blocking(move || make(&output, &key, &order).map(|made| (order, made))).await;
        &packed.insert(made.map_err(|_| ArchiveError::Ended)??).1
    };
    faults.point("packed");
    if bundle.files == 0 {
        // As everywhere: empty is absence, and takes nothing away.
        info!(sequence = generation.sequence, "nothing is in it to archive, and what was archived before stays");
        return Ok(archived(None));
    }
    let name = bundle.digest.to_string();
    let present = send(config, &name, bundle, true).await?;
    faults.point("uploaded");
    send(config, LATEST, bundle, false).await?;
    faults.point("archived");
    let (sequence, size) = (generation.sequence, bundle.content.len());
    let there = if present { ", which was there" } else { "" };
    info!(sequence, "archived generation {sequence} as {name}.tar.gz ({size} bytes){there}");
    Ok(archived(Some(format!("{name}.tar.gz"))))
}

/// Packs what is to be archived. A name that is made of secrets is made with the key.
fn make(output: &Output, key: &DigestKey, order: &Order) -> Result<Packed, ArchiveError> {
    let spool = output.scratch()?;
    let mut packer = Packer::new(&spool, if order.secret { Hasher::keyed(key) } else { Hasher::plain() });
    match &order.files {
        None => own(output, key, &order.generation, &mut packer)?,
        Some(files) => {
            for (path, content) in files {
                let added = packer.add(path.as_bytes(), content.len() as u64, content.reader());
                match added {
                    Ok(digest) if digest == content.digest() => {}
                    Ok(_) | Err(PackError::Changing | PackError::Read(_)) => {
                        return Err(ArchiveError::Busy { path: path.clone() });
                    }
                    Err(PackError::Write(error)) => return Err(ArchiveError::NotKept(error)),
                }
            }
        }
    }
    packer.end().map_err(ArchiveError::NotKept)
}

/// The generation's files, as they were confirmed.
fn own(output: &Output, key: &DigestKey, generation: &Generation, packer: &mut Packer) -> Result<(), ArchiveError> {
    let mut content = ContentHasher::new(key);
    let mut full = None;
    let read = output.each(generation, &mut |path, size, file| match packer.add(path, size, File::from(file)) {
        Ok(digest) => {
            content.file(path, digest);
            Ok(())
        }
        Err(PackError::Changing) => Err(Unread::Changing),
        Err(PackError::Read(error)) => {
            Err(Unread::Failed(error.raw_os_error().map_or(nix::errno::Errno::EIO, nix::errno::Errno::from_raw)))
        }
        Err(PackError::Write(error)) => {
            full = Some(error);
            // Nothing is wrong with the file: what is said is that there is no room.
            Err(Unread::Changing)
        }
    });
    if let Some(error) = full {
        return Err(ArchiveError::NotKept(error));
    }
    read?;
    if generation.content != Digest::UNKNOWN && content.finish() != generation.content {
        return Err(ArchiveError::Changed);
    }
    Ok(())
}

/// Uploads a bundle under a name; says whether it was there.
async fn send(config: &Config, name: &str, bundle: &Packed, if_absent: bool) -> Result<bool, ArchiveError> {
    let at = config.place(name).ok_or(ArchiveError::TooLong)?;
    let (pieces, receive) = mpsc::channel(AHEAD);
    let content = bundle.content.clone();
    let length = content.len() as u64;
    // It ends with the connection.
    tokio::task::spawn_blocking(move || {
        let fed = content.pieces(|piece| pieces.blocking_send(Bytes::copy_from_slice(piece)).map_err(|_| Unsent::Gone));
        if let Err(Unsent::Unread(error)) = fed {
            debug!("a bundle cannot be read again: {error}");
        }
    });
    match put(&at, &config.http, Pieces { length, pieces: receive }, if_absent, config.timeout).await? {
        Put::Done => Ok(false),
        Put::Present => Ok(true),
        Put::Refused(code) => {
            let store = config.http.signer.as_ref().map(|signer| signer.kind());
            Err(ArchiveError::Refused { at: at.to_string(), code, store })
        }
    }
}

enum Unsent {
    /// Nobody receives it any more.
    Gone,
    Unread(SpoolError),
}

impl From<SpoolError> for Unsent {
    fn from(error: SpoolError) -> Self {
        Self::Unread(error)
    }
}

/// Remembers what was archived. Where that fails, the next start archives it once more.
async fn note(output: &Arc<Output>, archived: &Archived) {
    let (output, bytes) = (output.clone(), serde_json::to_vec(archived).unwrap_or_default());
    let written = tokio::task::spawn_blocking(move || output.write_archived(&bytes)).await;
    if let Ok(Err(error)) = written {
        debug!("after a restart this is archived once more: {error}");
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.at.fmt(f)
    }
}
