//! A body that is too large for memory, on its way to the spool.

use bytes::Bytes;

use crate::model::content::Content;
use crate::model::spool::{Spool, SpoolError, Writing};
use crate::net::request::fetch::Spill;

/// Takes a body to the spool, if there is one and as soon as it is large.
pub(super) struct Spilled {
    spool: Option<Spool>,
    /// The longest body, in bytes.
    most: u64,
    writing: Option<Writing>,
    /// Why it was not kept.
    pub error: Option<SpoolError>,
}

impl Spilled {
    pub fn new(spool: Option<Spool>, most: u64) -> Self {
        Self { spool, most, writing: None, error: None }
    }

    /// The body, of which this is the rest. Blocks.
    pub fn end(self, rest: Bytes) -> Result<Content, SpoolError> {
        match (self.writing, self.spool) {
            (Some(mut writing), _) => {
                writing.add(&rest)?;
                Ok(writing.end().into())
            }
            (None, Some(spool)) => Content::keep(rest, &spool),
            (None, None) => Ok(rest.into()),
        }
    }
}

impl Spill for Spilled {
    fn is_there(&self) -> bool {
        self.spool.is_some()
    }

    async fn take(&mut self, piece: Vec<u8>) -> bool {
        let Some(spool) = &self.spool else { return false };
        let mut writing = self.writing.take().unwrap_or_else(|| spool.begin(self.most));
        // A disk may be slow.
        let written = tokio::task::spawn_blocking(move || writing.add(&piece).map(|()| writing)).await;
        match written {
            Ok(Ok(writing)) => self.writing = Some(writing),
            Ok(Err(error)) => self.error = Some(error),
            // The runtime ends.
            Err(_) => {}
        }
        self.writing.is_some()
    }
}
