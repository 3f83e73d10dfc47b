//! What an object store says of a request that it refuses: names and numbers, and no other word of its own. Its texts quote
//! keys, tokens and the request.

use std::fmt;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::response::Parts;
use jiff::Timestamp;

use crate::net::store::kind::Kind;

/// How much of an answer is looked into, in bytes.
const LONGEST: usize = 16 * 1024;
/// How far clocks may be apart, as AWS and Azure have it.
const SKEW: Duration = Duration::from_mins(15);

/// Of a request that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    kind: Kind,
    pub code: u16,
    /// Its `Code`, as `AccessDenied`.
    pub name: Option<String>,
    /// The number by which the store's owner finds it.
    request: Option<String>,
    /// Where the bucket is, if the store says so.
    region: Option<String>,
    /// Whether the store's clock says another time than this machine's, by which no store takes a signature.
    skewed: bool,
}

/// Short, and of harmless characters.
pub(in crate::net) fn harmless(text: &str) -> Option<String> {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-._+/=".contains(&byte);
    (!text.is_empty() && text.len() <= 128 && text.bytes().all(harmless)).then(|| text.to_owned())
}

/// What an error's XML calls it.
#[must_use]
pub fn name(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let (name, _) = text.split_once("<Code>")?.1.split_once("</Code>")?;
    harmless(name.trim())
}

/// Whether an answer's Date is too far away.
fn is_skewed(headers: &HeaderMap) -> bool {
    let date = headers.get(header::DATE).and_then(|date| jiff::fmt::rfc2822::parse(date.to_str().ok()?).ok());
    date.is_some_and(|date| date.timestamp().duration_since(Timestamp::now()).unsigned_abs() > SKEW)
}

impl Refused {
    #[must_use]
    pub fn of(kind: Kind, code: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        let header = |name: &str| headers.get(name).and_then(|value: &HeaderValue| harmless(value.to_str().ok()?));
        Self {
            kind,
            code,
            name: header("x-ms-error-code").or_else(|| name(body)),
            request: header(kind.request()),
            region: header("x-amz-bucket-region"),
            skewed: is_skewed(headers),
        }
    }

    /// With the start of a body, waited for so long.
    pub(super) async fn read(kind: Kind, head: &Parts, mut rest: Incoming, quiet: Duration) -> Self {
        let mut body = Vec::new();
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(quiet, rest.frame()).await {
            body.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if body.len() >= LONGEST {
                break;
            }
        }
        Self::of(kind, head.status.as_u16(), &head.headers, &body)
    }

    /// Whether there is no such object, in a bucket that is there.
    pub(in crate::net) fn is_absence(&self) -> bool {
        self.kind.is_absence(self.name.as_deref().unwrap_or_default(), self.code)
    }

    /// What to do about it.
    fn hint(&self) -> &'static str {
        // Not every store has a name for it.
        let named = self.name.as_deref() == Some("RequestTimeTooSkewed");
        if named || (self.skewed && matches!(self.code, 401 | 403)) {
            return "; this machine's clock and the store's are minutes apart: set the node's clock (NTP)";
        }
        self.kind.hint(self.name.as_deref().unwrap_or_default(), self.code)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store answered {}", self.code)?;
        if let Some(name) = &self.name {
            write!(f, " {name}")?;
        }
        if let Some(request) = &self.request {
            write!(f, " (request {request})")?;
        }
        f.write_str(self.hint())?;
        self.region.as_ref().map_or(Ok(()), |region| write!(f, " ({region})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_has_names_and_numbers_and_nothing_else_that_the_store_says() {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-request-id", HeaderValue::from_static("17F0A/b+c="));
        let body = b"<?xml version='1.0'?><Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>canary</AWSAccessKeyId></Error>";
        let text = Refused::of(Kind::S3, 403, &headers, body).to_string();
        assert!(
            text.starts_with("the store answered 403 InvalidAccessKeyId (request 17F0A/b+c=); it does not know"),
            "{text}"
        );
        assert!(!text.contains("canary"));
        headers.insert("x-amz-request-id", HeaderValue::from_static("canary canary"));
        for body in
            [&b"<Code>can ary</Code>"[..], b"<Code>canary", b"<Code><canary></Code>", b"canary", b"\xff<Code></Code>"]
        {
            let text = Refused::of(Kind::S3, 403, &headers, body).to_string();
            assert!(text.starts_with("the store answered 403; this identity needs") && !text.contains("can"), "{text}");
        }
        headers.insert("x-amz-bucket-region", HeaderValue::from_static("eu-west-1"));
        let text = Refused::of(Kind::S3, 301, &headers, b"<Code>PermanentRedirect</Code>").to_string();
        assert!(text.ends_with("set AWS_REGION to its own (eu-west-1)"), "{text}");
        let text = Refused::of(Kind::S3, 403, &HeaderMap::new(), b"<Code>RequestTimeTooSkewed</Code>").to_string();
        assert!(text.contains("clock"), "{text}");
        headers.insert("date", HeaderValue::from_static("Fri, 26 Jun 2015 23:39:12 GMT"));
        for (code, is_said) in [(403, true), (404, false)] {
            assert_eq!(Refused::of(Kind::Az, code, &headers, b"").to_string().contains("clock"), is_said, "{code}");
        }
        assert!(Refused::of(Kind::S3, 404, &headers, b"<Code>NoSuchKey</Code>").is_absence());
        for body in [&b"<Code>NoSuchBucket</Code>"[..], b"<html>404</html>"] {
            assert!(!Refused::of(Kind::S3, 404, &headers, body).is_absence());
        }
    }
}
