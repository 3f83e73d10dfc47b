//! What gzip files hold, within a bound.

use std::borrow::Cow;
use std::io::Read as _;

use flate2::read::MultiGzDecoder;

/// How each begins: two bytes of magic, and the only method that there is (RFC 1952, 2.3.1).
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// Why there is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GzipError {
    /// It is no gzip data, or is cut off.
    Malformed,
    TooLarge,
}

/// All members of it, if they have at most `limit` bytes.
pub(super) fn unpack(packed: &[u8], limit: u64) -> Result<Vec<u8>, GzipError> {
    let mut unpacked = Vec::new();
    let read = MultiGzDecoder::new(packed).take(limit.saturating_add(1)).read_to_end(&mut unpacked);
    read.map_err(|_| GzipError::Malformed)?;
    if unpacked.len() as u64 > limit { Err(GzipError::TooLarge) } else { Ok(unpacked) }
}

/// Whether it begins as gzip files do.
#[must_use]
pub fn is_packed(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// A file as it is, or what is in it if it begins as gzip files do. No text does: its second byte is no UTF-8.
pub(super) fn opened(bytes: &[u8], limit: u64) -> Result<Cow<'_, [u8]>, GzipError> {
    if is_packed(bytes) { unpack(bytes, limit).map(Cow::Owned) } else { Ok(Cow::Borrowed(bytes)) }
}
