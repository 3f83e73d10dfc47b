//! Digests: the identity of inputs, of a generation, of a tree.

use std::fmt;
use std::str::FromStr;

use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// 32 bytes of SHA-256 or HMAC-SHA256. Prints as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Stands for one that is not known: all zeros.
    pub const UNKNOWN: Self = Self([0; 32]);

    /// A digest of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// SHA-256 of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits, in ASCII.
    fn digits(&self) -> [u8; 64] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut digits = [0; 64];
        for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
        }
        digits
    }

    /// The first 12 hex digits: enough for people and directory names.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.digits()).unwrap_or_default())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// The text is not 64 lower-case hex digits.
#[derive(Debug, thiserror::Error)]
#[error("a digest is 64 lower-case hex digits")]
pub struct ParseDigestError;

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.as_bytes();
        if text.len() != 64 || !text.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ParseDigestError);
        }
        let nibble = |c: u8| if c.is_ascii_digit() { c - b'0' } else { c - b'a' + 10 };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The key that makes published digests useless for testing guesses at a secret. Never printed.
#[derive(Clone)]
pub struct DigestKey([u8; 32]);

impl DigestKey {
    /// A key of these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A key from a file's bytes of any length.
    #[must_use]
    pub fn derive(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::plain();
        hasher.field(bytes);
        Self(hasher.finish().0)
    }
}

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestKey(…)")
    }
}

/// Takes a digest over fields; each is prefixed by its length, so that no two sequences of fields give the same input.
pub struct Hasher {
    inner: Inner,
    /// What is not hashed yet: thousands of small fields go faster in large pieces.
    buffer: Vec<u8>,
}

/// How much is hashed in one go, in bytes.
const PIECE: usize = 1024;

enum Inner {
    Plain(Sha256),
    Keyed(Box<Hmac<Sha256>>),
}

impl Hasher {
    /// SHA-256: for what holds no secret, or stays in memory.
    #[must_use]
    pub fn plain() -> Self {
        Self { inner: Inner::Plain(Sha256::new()), buffer: Vec::new() }
    }

    /// HMAC-SHA256: for what is written down or shown.
    #[must_use]
    pub fn keyed(key: &DigestKey) -> Self {
        // RFC 2104 pads a shorter key with zeros to the block's length.
        let mut block = [0; 64];
        block[..key.0.len()].copy_from_slice(&key.0);
        Self { inner: Inner::Keyed(Box::new(Hmac::new(&block.into()))), buffer: Vec::new() }
    }

    /// Adds one field.
    pub fn field(&mut self, bytes: &[u8]) {
        self.begin(bytes.len() as u64);
        self.more(bytes);
    }

    /// Begins a field of so many bytes, which [`Hasher::more`] adds.
    pub fn begin(&mut self, length: u64) {
        self.more(&length.to_be_bytes());
    }

    /// Adds bytes of the field that was begun.
    pub fn more(&mut self, bytes: &[u8]) {
        if bytes.len() < PIECE {
            self.buffer.extend_from_slice(bytes);
            if self.buffer.len() >= PIECE {
                self.flush();
            }
        } else {
            self.flush();
            self.inner.update(bytes);
        }
    }

    fn flush(&mut self) {
        self.inner.update(&self.buffer);
        self.buffer.clear();
    }

    /// The digest over all fields.
    #[must_use]
    pub fn finish(mut self) -> Digest {
        self.flush();
        Digest(match self.inner {
            Inner::Plain(hasher) => hasher.finalize().into(),
            Inner::Keyed(hasher) => hasher.finalize().into_bytes().into(),
        })
    }
}

impl Inner {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Plain(hasher) => hasher.update(bytes),
            Self::Keyed(hasher) => hasher.update(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_text_round_trips() {
        let digest = Hasher::plain().finish();
        assert_eq!(digest.to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        for bad in ["", "e3b0", &"E".repeat(64), &"é".repeat(32)] {
            assert!(bad.parse::<Digest>().is_err());
        }
    }

    #[test]
    fn fields_cannot_be_shifted_into_one_another() {
        let digest = |fields: &[&str]| {
            let mut hasher = Hasher::plain();
            for field in fields {
                hasher.field(field.as_bytes());
            }
            hasher.finish()
        };
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
        assert_ne!(digest(&["a", ""]), digest(&["a"]));
    }

    #[test]
    fn keyed_digest_depends_on_the_key() {
        let digest = |key| Hasher::keyed(&DigestKey::new([key; 32])).finish();
        assert_ne!(digest(1), digest(2));
        assert_ne!(digest(1), Hasher::plain().finish());
    }
}
