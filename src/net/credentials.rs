//! What a request carries that may be a secret: read from its file at each use, so that a rotated Secret counts at once.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};

use crate::os::file::read_regular;

/// The largest credential or header value in a file, in bytes.
const CREDENTIAL: u64 = 16 * 1024;
/// The largest body in a file, in bytes.
const BODY: u64 = 16 * 1024 * 1024;

/// A file that a flag names cannot be used. Nothing was sent.
#[derive(Debug, thiserror::Error)]
#[error("{flag} {}: {reason}", path.display())]
pub struct FileError {
    flag: String,
    path: PathBuf,
    reason: String,
}

impl FileError {
    pub(super) fn new(flag: &str, path: &Path, reason: impl Into<String>) -> Self {
        Self { flag: flag.to_owned(), path: path.to_owned(), reason: reason.into() }
    }
}

/// At most `limit` bytes of a regular file.
pub(super) fn read(flag: &str, path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    read_regular(path, limit).map(|(bytes, _)| bytes).map_err(|error| FileError::new(flag, path, error.to_string()))
}

/// A flag's value: as it stands, or `@FILE`, which is read at each use.
#[derive(Clone)]
pub enum LiteralOrFile {
    Literal(Bytes),
    File(PathBuf),
}

impl Default for LiteralOrFile {
    fn default() -> Self {
        Self::Literal(Bytes::new())
    }
}

impl From<String> for LiteralOrFile {
    fn from(text: String) -> Self {
        match text.strip_prefix('@') {
            Some(path) => Self::File(path.into()),
            None => Self::Literal(text.into()),
        }
    }
}

impl fmt::Debug for LiteralOrFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LiteralOrFile(…)")
    }
}

impl LiteralOrFile {
    fn read(&self, flag: &str, limit: u64) -> Result<Bytes, FileError> {
        match self {
            Self::Literal(bytes) => Ok(bytes.clone()),
            Self::File(path) => read(flag, path, limit).map(Bytes::from),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Literal(_) => Path::new(""),
            Self::File(path) => path,
        }
    }

    /// One line; the line ends at a file's end are not part of it.
    fn line(&self, flag: &str) -> Result<Bytes, FileError> {
        let bytes = self.read(flag, CREDENTIAL)?;
        let line = bytes.slice_ref(bytes.trim_ascii_end());
        if line.iter().any(u8::is_ascii_control) {
            return Err(FileError::new(flag, self.path(), "it is more than one line"));
        }
        Ok(line)
    }

    /// `--reload-body`.
    pub(super) fn body(&self) -> Result<Bytes, FileError> {
        self.read("--reload-body", BODY)
    }
}

/// A header of the request: `K: V`, or `K: @FILE`. `Debug` never shows a value.
#[derive(Clone, Debug)]
pub struct Header {
    name: HeaderName,
    value: LiteralOrFile,
}

/// Why a text is no [`Header`]. Fatal: it comes from the command line. The value is not repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseHeaderError {
    #[error("a header is 'Name: value' or 'Name: @FILE'")]
    NoColon,
    #[error("the header's name is empty or has characters that a name cannot have")]
    Name,
    #[error("the value of {0} has characters that a header cannot carry")]
    Value(HeaderName),
    #[error("{0} must come from a file ('{0}: @FILE'), as command lines are readable in a shared process namespace")]
    Credential(HeaderName),
    #[error("{0} is set by Trimtab itself")]
    Framing(HeaderName),
}

impl Header {
    /// One that is not the command line's.
    pub(super) fn sensitive(name: HeaderName, value: &[u8]) -> Self {
        Self { name, value: LiteralOrFile::Literal(Bytes::copy_from_slice(value)) }
    }

    /// In lower case.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Its name and its value; line ends at a file's end are not part of it.
    pub(super) fn read(&self, flag: &str) -> Result<(HeaderName, HeaderValue), FileError> {
        let bytes = self.value.read(flag, CREDENTIAL)?;
        let value = match &self.value {
            LiteralOrFile::File(path) => sensitive(flag, path, bytes.trim_ascii_end())?,
            // It was checked when it was parsed.
            LiteralOrFile::Literal(_) => sensitive(flag, Path::new(""), &bytes)?,
        };
        Ok((self.name.clone(), value))
    }
}

impl FromStr for Header {
    type Err = ParseHeaderError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once(':').ok_or(ParseHeaderError::NoColon)?;
        let name: HeaderName = name.trim().parse().map_err(|_| ParseHeaderError::Name)?;
        if [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::UPGRADE, header::TE]
            .contains(&name)
        {
            return Err(ParseHeaderError::Framing(name));
        }
        let value = LiteralOrFile::from(value.trim().to_owned());
        if let LiteralOrFile::Literal(bytes) = &value {
            if [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION].contains(&name) {
                return Err(ParseHeaderError::Credential(name));
            }
            HeaderValue::from_bytes(bytes).map_err(|_| ParseHeaderError::Value(name.clone()))?;
        }
        Ok(Self { name, value })
    }
}

/// `Authorization` of `--reload-auth-file`, which holds `user:password`; and what of it is secret.
pub(super) fn basic(path: &Path) -> Result<(HeaderValue, Vec<Bytes>), FileError> {
    let flag = "--reload-auth-file";
    let bytes = Bytes::from(read(flag, path, CREDENTIAL)?);
    let pair = bytes.slice_ref(bytes.trim_ascii_end());
    let colon = pair.iter().position(|&byte| byte == b':').filter(|_| !pair.iter().any(u8::is_ascii_control));
    let colon = colon.ok_or_else(|| FileError::new(flag, path, "it does not hold user:password on one line"))?;
    let value = format!("Basic {}", STANDARD.encode(&pair));
    let password = pair.slice(colon + 1..);
    Ok((sensitive(flag, path, value.as_bytes())?, vec![pair, password]))
}

/// `Authorization` of `--reload-user` and `--reload-password`; and what of it is secret.
pub(super) fn user(user: &LiteralOrFile, password: &LiteralOrFile) -> Result<(HeaderValue, Vec<Bytes>), FileError> {
    let (user_flag, password_flag) = ("--reload-user", "--reload-password");
    let (name, secret) = (user.line(user_flag)?, password.line(password_flag)?);
    if name.contains(&b':') {
        return Err(FileError::new(user_flag, user.path(), "it holds a colon, which no user's name can have here"));
    }
    let value = format!("Basic {}", STANDARD.encode([&name[..], b":", &secret[..]].concat()));
    let encoded = Bytes::copy_from_slice(value.trim_start_matches("Basic ").as_bytes());
    Ok((sensitive(password_flag, password.path(), value.as_bytes())?, vec![encoded, secret]))
}

/// `Authorization` of `--reload-token-file`; and what of it is secret.
pub(super) fn bearer(path: &Path) -> Result<(HeaderValue, Vec<Bytes>), FileError> {
    let flag = "--reload-token-file";
    let bytes = Bytes::from(read(flag, path, CREDENTIAL)?);
    let token = bytes.slice_ref(bytes.trim_ascii());
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(FileError::new(flag, path, "it does not hold one token on one line"));
    }
    Ok((sensitive(flag, path, &[b"Bearer ", &token[..]].concat())?, vec![token]))
}

fn sensitive(flag: &str, path: &Path, bytes: &[u8]) -> Result<HeaderValue, FileError> {
    let value = HeaderValue::from_bytes(bytes);
    let mut value = value.map_err(|_| FileError::new(flag, path, "it holds characters that a header cannot carry"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_with_credentials_come_from_files_only() {
        for name in ["Authorization", "cookie", "PROXY-AUTHORIZATION"] {
            let error = format!("{name}: canary").parse::<Header>().unwrap_err();
            assert!(matches!(error, ParseHeaderError::Credential(_)));
            assert!(error.to_string().contains(": @FILE") && !error.to_string().contains("canary"), "{error}");
            assert!(format!("{name}: @/etc/token").parse::<Header>().is_ok());
        }
        assert_eq!("canary".parse::<Header>().unwrap_err(), ParseHeaderError::NoColon);
        for bad in ["a b: canary", ": canary", "X-A: can\nary", "Content-Length: 5", "Transfer-Encoding: chunked"] {
            let error = bad.parse::<Header>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
        }
        assert!(!format!("{:?}", "X-Key: canary".parse::<Header>()).contains("canary"));
    }
}
