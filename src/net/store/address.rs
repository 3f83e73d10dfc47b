//! `s3://bucket/key`, `gs://bucket/key`, `az://container/key`: what an object store's URL names.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::kind::Kind;

/// An object, or all objects below a prefix. What a `%` stands before is meant as it is, as with the stores' own tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub kind: Kind,
    pub bucket: String,
    /// Ends in `/`, or is empty, where it is a prefix.
    pub key: String,
}

/// Why a text is no [`Address`]. The text is not repeated: it may hold a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseAddressError {
    #[error("an object store's URL is {}, without a user, a port or a query: {}", .0.form(), .0.elsewhere())]
    Extra(Kind),
    #[error("the bucket is missing, or has characters that a bucket's name cannot have")]
    Bucket,
    #[error("the object's key has an empty segment, '.' or '..': write it as the store lists it")]
    Key,
}

impl Address {
    /// `None`: it is another scheme's.
    #[must_use]
    pub fn parse(text: &str) -> Option<Result<Self, ParseAddressError>> {
        let (scheme, rest) = text.split_once("://")?;
        Kind::of_scheme(scheme).map(|kind| Self::of(kind, rest))
    }

    fn of(kind: Kind, rest: &str) -> Result<Self, ParseAddressError> {
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.contains(['@', ':', '?', '#']) || key.contains(['?', '#']) {
            return Err(ParseAddressError::Extra(kind));
        }
        let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        // Azure's own containers have it, as $web.
        let plain = bucket.strip_prefix('$').filter(|_| kind == Kind::Az).unwrap_or(bucket);
        if !plain.bytes().any(|byte| byte.is_ascii_alphanumeric()) || !plain.bytes().all(named) {
            return Err(ParseAddressError::Bucket);
        }
        let inner = key.strip_suffix('/').unwrap_or(key);
        if !key.is_empty() && inner.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(ParseAddressError::Key);
        }
        Ok(Self { kind, bucket: bucket.to_owned(), key: key.to_owned() })
    }

    /// Whether it is all that is below.
    #[must_use]
    pub fn is_prefix(&self) -> bool {
        self.key.is_empty() || self.key.ends_with('/')
    }

    /// The last segment of the key, or of the prefix; of a whole bucket, its name.
    #[must_use]
    pub fn last_segment(&self) -> &str {
        let key = self.key.strip_suffix('/').unwrap_or(&self.key);
        key.rsplit('/').next().filter(|last| !last.is_empty()).unwrap_or(&self.bucket)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.kind.scheme(), self.bucket, self.key)
    }
}

/// What does not stand for itself in a URL, as a signature counts it (RFC 3986, section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same of a path.
const RESERVED_IN_PATH: &AsciiSet = &RESERVED.remove(b'/');

/// As a URL has it: `/` stands for itself where `slash` says so.
pub(super) fn encoded(text: &str, slash: bool) -> String {
    utf8_percent_encode(text, if slash { RESERVED_IN_PATH } else { RESERVED }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused_without_being_quoted() {
        let read = |text: &str| Address::parse(text).unwrap();
        let web = read("s3://web/conf/a b.tar.gz").unwrap();
        assert_eq!((web.bucket.as_str(), web.key.as_str()), ("web", "conf/a b.tar.gz"));
        assert!(
            !web.is_prefix() && web.last_segment() == "a b.tar.gz" && web.to_string() == "s3://web/conf/a b.tar.gz"
        );
        for (prefix, last) in [("s3://web", "web"), ("S3://web/", "web"), ("s3://web/all/conf/", "conf")] {
            let prefix = read(prefix).unwrap();
            assert!(prefix.is_prefix() && prefix.last_segment() == last, "{prefix}");
        }
        assert_eq!(
            read("gs://web/conf/").map(|web| (web.kind, web.to_string())),
            Ok((Kind::Gs, "gs://web/conf/".to_owned()))
        );
        assert_eq!(read("az://$web/a").unwrap().bucket, "$web");
        assert_eq!(Address::parse("https://host/a"), None);
        for (text, error) in [
            ("s3://canary@web/a", ParseAddressError::Extra(Kind::S3)),
            ("gs://canary@web/a", ParseAddressError::Extra(Kind::Gs)),
            ("s3://web:9000/a", ParseAddressError::Extra(Kind::S3)),
            ("s3://web/a?canary", ParseAddressError::Extra(Kind::S3)),
            ("az://web/a?canary", ParseAddressError::Extra(Kind::Az)),
            ("s3:///a", ParseAddressError::Bucket),
            ("s3://$web/a", ParseAddressError::Bucket),
            ("s3://../a", ParseAddressError::Bucket),
            ("s3://we b/a", ParseAddressError::Bucket),
            ("s3://web//a", ParseAddressError::Key),
            ("s3://web/a//", ParseAddressError::Key),
            ("s3://web/../a", ParseAddressError::Key),
        ] {
            assert_eq!(read(text), Err(error), "{text}");
        }
        assert_eq!((encoded("a b/ü~", true), encoded("a/b", false)), ("a%20b/%C3%BC~".to_owned(), "a%2Fb".to_owned()));
    }
}
