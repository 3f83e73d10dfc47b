//! All objects below a prefix, of one moment: listed, fetched by the listed `ETag`s, and listed again.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};

use super::{Conditions, Found, Known, Source, UrlError};
use crate::model::content::Content;
use crate::model::object::Object;
use crate::model::spool::Spool;
use crate::net::request::fetch::{FetchError, Fetched, Limits, fetch};
use crate::net::store::Store;
use crate::net::store::listing::{Entry, ListingError, folders};

/// The most objects.
const MOST: usize = 10_000;
/// How often it is listed again before the next poll.
const AGAIN: usize = 3;
/// How many objects are fetched at a time.
const AT_ONCE: usize = 4;
/// The largest page of a list, in bytes: a thousand keys of a kilobyte each, and as much around them.
const PAGE: u64 = 4 << 20;

type Listing = BTreeMap<String, Entry>;

/// Where it is.
#[derive(Clone, Debug)]
pub struct Prefix {
    pub store: Store,
    /// Ends in `/`, or is empty.
    pub key: String,
}

/// What was found there.
#[derive(Clone, Debug)]
pub struct Whole {
    listing: Listing,
    object: Arc<Object>,
}

impl Prefix {
    /// Asks once.
    pub(super) async fn look(
        &self,
        source: &Source,
        limits: &Limits,
        spool: Option<&Spool>,
        known: Option<&Whole>,
    ) -> Result<Found, UrlError> {
        let mut listing = self.list(source, limits).await?;
        if known.is_some_and(|known| known.listing == listing) {
            return Ok(Found::NotModified);
        }
        // By key and entry: what has the same name for its content is not fetched again.
        let mut had: BTreeMap<String, (Entry, Content)> = BTreeMap::new();
        if let Some(Whole { listing, object }) = known {
            let contents = listing.iter().zip(object.data.values());
            had.extend(contents.map(|((key, entry), content)| (key.clone(), (entry.clone(), content.clone()))));
        }
        for _ in 0..AGAIN {
            had.retain(|key, (entry, _)| listing.get(key) == Some(entry));
            let missing = listing.iter().filter(|(key, _)| !had.contains_key(*key));
            let mut each = Vec::new();
            for (key, entry) in missing {
                each.push(self.fetch(source, limits, spool, key, entry).boxed());
            }
            let fetched: Vec<_> = futures_util::stream::iter(each).buffer_unordered(AT_ONCE).try_collect().await?;
            had.extend(fetched.into_iter().flatten());
            let again = self.list(source, limits).await?;
            if again == listing && had.len() == listing.len() {
                if listing.is_empty() {
                    return Ok(Found::Absent(200));
                }
                let data = had.into_iter().map(|(key, (_, content))| (key, content)).collect();
                let object = source.of(data);
                let whole = Whole { listing, object: Arc::clone(&object) };
                return Ok(Found::Object(object, Known { whole: Some(Arc::new(whole)), ..Known::default() }));
            }
            listing = again;
        }
        Err(Self::refused(source, ListingError::Restless))
    }

    fn refused(source: &Source, error: ListingError) -> UrlError {
        UrlError::Listing { endpoint: source.endpoint.to_string(), error }
    }

    async fn list(&self, source: &Source, limits: &Limits) -> Result<Listing, UrlError> {
        let refused = |error| Self::refused(source, error);
        let (limit, mut left) = (limits.bytes, limits.bytes);
        let (mut listing, mut next) = (Listing::new(), None);
        loop {
            let at = self.store.list(&self.key, next.as_deref()).ok_or_else(|| refused(self.store.broken()))?;
            let limits = Limits { bytes: PAGE, ..*limits };
            let Fetched::New { body, .. } = fetch(&at, self.store.http(), &limits, &Conditions::default()).await?
            else {
                return Err(refused(self.store.broken()));
            };
            let page = self.store.page(&body, &self.key).map_err(refused)?;
            for (key, entry) in page.entries {
                left = left
                    .checked_sub(entry.size.saturating_add(key.len() as u64))
                    .ok_or_else(|| refused(ListingError::TooLarge { limit }))?;
                if listing.insert(key.clone(), entry).is_some() {
                    return Err(refused(ListingError::Twice { key }));
                }
                if listing.len() > MOST {
                    return Err(refused(ListingError::TooMany));
                }
            }
            match page.next {
                None => {
                    folders(listing.keys().map(String::as_str)).map_err(refused)?;
                    return Ok(listing);
                }
                next_page => next = next_page,
            }
        }
    }

    /// `None`: it is not there any more as it was listed.
    async fn fetch(
        &self,
        source: &Source,
        limits: &Limits,
        spool: Option<&Spool>,
        key: &str,
        entry: &Entry,
    ) -> Result<Option<(String, (Entry, Content))>, UrlError> {
        let full = format!("{}{key}", self.key);
        let at = self.store.object(&full).zip(Conditions::only(&entry.etag));
        let (at, only) = at.ok_or_else(|| Self::refused(source, self.store.broken()))?;
        let body = match source.fetch_once(&at, limits, spool, &only).await {
            Ok(Fetched::New { body, .. }) => body,
            Ok(Fetched::Absent(_) | Fetched::NotModified) => return Ok(None),
            Err(UrlError::Fetch(error @ FetchError::Refused { .. })) if error.code() == Some(412) => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_whole = body.len() as u64 == entry.size;
        Ok(is_whole.then(|| (key.to_owned(), (entry.clone(), body))))
    }
}
