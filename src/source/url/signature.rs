//! Minisign signatures: whether the holder of a key has signed what is behind a URL.

#[cfg(test)]
pub(super) mod tests;

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minisign_verify::{Error, PublicKey, Signature};

use crate::model::content::Content;
use crate::model::spool::SpoolError;
use crate::net::endpoint::Endpoint;
use crate::os::file::read_regular;

/// The largest signature, and the largest file of keys, in bytes.
pub(super) const LIMIT: u64 = 16 * 1024;
/// What a signature is called beside what it is of.
const SUFFIX: &str = ".minisig";
const COMMENT: &str = "untrusted comment:";

/// Who may sign what is behind a URL: `--url-key`.
#[derive(Clone, Debug)]
pub struct Signed {
    keys: PathBuf,
    /// Where the signature is.
    pub(super) at: Endpoint,
}

/// Why what was fetched counts as signed by nobody.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("--url-key {path}: {reason}; nothing is used unverified")]
    File { path: String, reason: String },
    #[error("--url-key {path}: it holds no public key of minisign; give the file that minisign -G -p wrote")]
    NoKey { path: String },
    #[error("--url-key {path}: its line {line} is no public key of minisign; give the file that minisign -G -p wrote")]
    Malformed { path: String, line: usize },
    #[error(
        "it is not signed: {at} answers {code}, and --url-key wants a signature there; sign it with minisign -S, and upload the \
         .minisig first"
    )]
    Missing { at: String, code: u16 },
    #[error(
        "{at} is no signature of minisign's, or it is not whole; sign it with minisign -S, and upload the .minisig again"
    )]
    Unreadable { at: String },
    #[error(
        "it is signed with the key {signer}, and --url-key {path} has only {keys}; sign it with one of these, or add the public key \
         of {signer} to that file if you trust it"
    )]
    Stranger { signer: String, path: String, keys: String },
    #[error(
        "the signature at {at} is of another content: one of the two is older, or was altered on its way; sign what is there, and \
         upload the .minisig first"
    )]
    Mismatch { at: String },
    /// What was fetched cannot be read again.
    #[error(transparent)]
    NotKept(#[from] SpoolError),
}

impl SignatureError {
    /// Whether content and signature may be of two versions, with an upload between the two requests.
    pub(super) fn may_be_of_two_versions(&self) -> bool {
        matches!(self, Self::Mismatch { .. } | Self::Stranger { .. })
    }
}

impl Signed {
    /// By one of the keys in this file; `None`: the URL is too long to have a signature beside it.
    #[must_use]
    pub fn by(keys: PathBuf, what: &Endpoint) -> Option<Self> {
        Some(Self { keys, at: what.with_suffix(SUFFIX)? })
    }

    /// Reads the keys, anew each time: one that is rotated counts at once. `signature`: as it was fetched.
    pub(super) fn verify(&self, content: &Content, signature: &[u8]) -> Result<(), SignatureError> {
        let (keys, parsed) = (self.keys()?, self.parsed(signature)?);
        let mut known = false;
        for (_, key) in &keys {
            match checked(key, content, &parsed)? {
                Ok(()) => return Ok(()),
                Err(Error::UnexpectedKeyId) => {}
                Err(_) => known = true,
            }
        }
        if known {
            return Err(SignatureError::Mismatch { at: self.at.to_string() });
        }
        let text = String::from_utf8_lossy(signature);
        let signer = text.lines().nth(1).and_then(id).unwrap_or_default();
        let keys: Vec<_> = keys.into_iter().map(|(id, _)| id).collect();
        Err(SignatureError::Stranger { signer, path: shown(&self.keys), keys: keys.join(", ") })
    }

    fn parsed(&self, signature: &[u8]) -> Result<Signature, SignatureError> {
        let text = std::str::from_utf8(signature).ok();
        let parsed = text.and_then(|text| Signature::decode(text).ok());
        parsed.ok_or_else(|| SignatureError::Unreadable { at: self.at.to_string() })
    }

    fn keys(&self) -> Result<Vec<(String, PublicKey)>, SignatureError> {
        let path = shown(&self.keys);
        let file = |reason: String| SignatureError::File { path: path.clone(), reason };
        let (bytes, _) = read_regular(&self.keys, LIMIT).map_err(|error| file(error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| SignatureError::NoKey { path: path.clone() })?;
        let mut keys = Vec::new();
        for (index, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with(COMMENT) {
                continue;
            }
            let malformed = || SignatureError::Malformed { path: path.clone(), line: index + 1 };
            let key = PublicKey::from_base64(line).map_err(|_| malformed())?;
            keys.push((id(line).ok_or_else(malformed)?, key));
        }
        if keys.is_empty() { Err(SignatureError::NoKey { path }) } else { Ok(keys) }
    }
}

/// Piece by piece, but for what minisign's legacy mode has signed: that signs the content itself, and not a hash of it.
fn checked(key: &PublicKey, content: &Content, signature: &Signature) -> Result<Result<(), Error>, SpoolError> {
    let mut stream = match key.verify_stream(signature) {
        Ok(stream) => stream,
        Err(Error::UnsupportedLegacyMode) => return Ok(key.verify(&content.read()?, signature, true)),
        Err(error) => return Ok(Err(error)),
    };
    content.pieces(|piece| {
        stream.update(piece);
        Ok::<_, SpoolError>(())
    })?;
    Ok(stream.finalize())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A key's number as minisign shows it: in keys and in signatures eight bytes, the lowest first, after two for the algorithm.
fn id(line: &str) -> Option<String> {
    let bytes = STANDARD.decode(line.trim()).ok()?;
    Some(format!("{:016X}", u64::from_le_bytes(bytes.get(2..10)?.try_into().ok()?)))
}
