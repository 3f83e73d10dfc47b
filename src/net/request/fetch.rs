//! One GET whose body counts as a whole or not at all: conditional, bounded in silence and size, redirected within one
//! server alone.

#[cfg(test)]
pub(crate) mod server;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::time::timeout;

use super::refused::Refused;
use super::{Attempt, HEAD, HttpConfig, HttpError, beside, prepare, reason, sign};
use crate::net::endpoint::Endpoint;
use crate::net::proxy::place;
use crate::net::store::kind::Kind;

/// How many redirects are followed.
const REDIRECTS: usize = 5;
/// How much of a body is held where the rest can be spilled, in bytes.
const PIECE: usize = 1 << 20;
/// What was modified so shortly before it was sent may be modified again without a new `Last-Modified`, or a new `ETag`
/// made of it, as nginx's is: both count in seconds (RFC 9110, section 8.8.2.2).
const SETTLED: i64 = 2;
/// The longest Retry-After that is heeded.
const LONGEST: Duration = Duration::from_hours(1);

/// How slow and how large an answer may be. The time of it all is for whoever asks.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Until there is a connection, TLS handshake included.
    pub connect: Duration,
    /// Without a byte.
    pub quiet: Duration,
    /// The body's length.
    pub bytes: u64,
}

/// By what a server recognises the body that we have. Whoever keeps them must keep that body as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    etag: Option<HeaderValue>,
    modified: Option<HeaderValue>,
    /// The only one that is wanted.
    only: Option<HeaderValue>,
}

impl Conditions {
    fn of(headers: &HeaderMap) -> Self {
        let [modified, date] = [header::LAST_MODIFIED, header::DATE].map(|name| headers.get(name));
        let settled = match (modified.and_then(time), date.and_then(time)) {
            (Some(modified), Some(date)) => date.as_second() - modified.as_second() >= SETTLED,
            // Without the server's clock nobody knows; without the first, the ETag is made of something else.
            (modified, _) => modified.is_none(),
        };
        if !settled {
            return Self::default();
        }
        Self { etag: headers.get(header::ETAG).cloned(), modified: modified.cloned(), only: None }
    }

    /// An object store's, which knows its objects by their content.
    fn of_object(headers: &HeaderMap) -> Self {
        Self { etag: headers.get(header::ETAG).cloned(), ..Self::default() }
    }

    /// What has this ETag, and nothing else: 412 otherwise.
    #[must_use]
    pub fn only(etag: &str) -> Option<Self> {
        Some(Self { only: Some(HeaderValue::from_str(etag).ok()?), ..Self::default() })
    }

    fn is_empty(&self) -> bool {
        self.etag.is_none() && self.modified.is_none()
    }

    fn add_to(&self, headers: &mut HeaderMap) {
        for (name, value) in [
            (header::IF_NONE_MATCH, &self.etag),
            (header::IF_MODIFIED_SINCE, &self.modified),
            (header::IF_MATCH, &self.only),
        ] {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
    }
}

/// Takes a body that is too large to be held.
pub trait Spill: Send {
    /// Whether it takes any.
    fn is_there(&self) -> bool;

    /// Takes the next piece; `false`: it could not, and knows why.
    fn take(&mut self, piece: Vec<u8>) -> impl Future<Output = bool> + Send;
}

/// All is held.
impl Spill for () {
    fn is_there(&self) -> bool {
        false
    }

    async fn take(&mut self, _: Vec<u8>) -> bool {
        false
    }
}

/// What a server has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched<B = Bytes> {
    /// The whole body, or what is left of it beside what was spilled, and how to ask whether there is another.
    New { body: B, conditions: Conditions },
    /// Still what the conditions stand for.
    NotModified,
    /// Nothing there: 404 or 410.
    Absent(u16),
}

/// Why it is not known what the server has. Holds no word of the server's but a host and numbers.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("{endpoint}: the server answered {code}{}", hint(*code))]
    Status {
        endpoint: String,
        code: u16,
        /// Its Retry-After.
        after: Option<Duration>,
    },
    #[error("{endpoint}: {refused}")]
    Refused {
        endpoint: String,
        refused: Refused,
        /// Its Retry-After.
        after: Option<Duration>,
    },
    #[error(
        "{endpoint}: the server sends us to {to}, and only redirects within one scheme, host and port are followed, so that no \
         credential goes astray; give the URL that it leads to"
    )]
    Elsewhere {
        endpoint: String,
        /// Scheme, host and port.
        to: String,
    },
    #[error("{endpoint}: more than {REDIRECTS} redirects, one after the other; give the URL that they lead to")]
    Circle { endpoint: String },
    #[error("{endpoint}: the body broke off: {reason}; a part of it is not used")]
    Cut { endpoint: String, reason: String },
    #[error("{endpoint}: not a byte came for {quiet:?}; is the server overloaded, or a proxy in the way?")]
    Silent { endpoint: String, quiet: Duration },
    #[error("{endpoint}: not all of it came within {whole:?}; raise --url-timeout, or serve it from nearer by")]
    Slow { endpoint: String, whole: Duration },
    #[error(
        "{endpoint}: the answer has neither a Content-Length nor chunks, so that nobody could see if a part is missing; let the \
         server send one of them, as any static file server does"
    )]
    Endless { endpoint: String },
    #[error(
        "{endpoint}: the body has more than {limit} bytes; raise --max-size (and give the volume of --output room)"
    )]
    TooLarge { endpoint: String, limit: u64 },
    #[error(
        "{endpoint}: the server sent it with a Content-Encoding, which was not asked for; let it serve the file as it is \
         (an object's metadata may say so)"
    )]
    Encoded { endpoint: String },
    #[error("{endpoint}: the body could not be kept")]
    NotKept { endpoint: String },
}

impl FetchError {
    /// How long the server wants to be left alone.
    #[must_use]
    pub fn after(&self) -> Option<Duration> {
        match self {
            Self::Status { after, .. } | Self::Refused { after, .. } => *after,
            _ => None,
        }
    }

    /// Whether a credential is missing, or not the right one.
    #[must_use]
    pub fn forbidden(&self) -> bool {
        matches!(self.code(), Some(401 | 403)) || matches!(self, Self::Http(HttpError::Unsigned { .. }))
    }

    /// The server's status, if that is why.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
            Self::Refused { refused, .. } => Some(refused.code),
            _ => None,
        }
    }

    /// Whether the next answer will hardly be another one, so that it is not worth asking sooner than usual.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Http(HttpError::Unsigned { error, .. }) => error.lasting,
            Self::Http(_) | Self::Cut { .. } | Self::Silent { .. } | Self::NotKept { .. } => false,
            Self::Status { code, .. } | Self::Refused { refused: Refused { code, .. }, .. } => {
                *code < 500 && ![408, 412, 425, 429].contains(code)
            }
            Self::Elsewhere { .. }
            | Self::Circle { .. }
            | Self::Slow { .. }
            | Self::Endless { .. }
            | Self::TooLarge { .. }
            | Self::Encoded { .. } => true,
        }
    }
}

/// What to do about a status.
fn hint(code: u16) -> &'static str {
    match code {
        401 | 403 => {
            "; it wants another credential (--url-header, --url-cert-file; for a .url key a user and a password in the URL), \
             or does not let this Pod's address in"
        }
        407 => ": the proxy wants a user; give one in its URL, as http://USER:PASSWORD@HOST:PORT, from a Secret",
        304 => " to a question without a condition; is a broken cache in the way?",
        429 | 503 => "; trying again as it asks",
        500.. => "; trying again, and its own log says why",
        _ => ", and only 200 has what was asked for; is this the URL?",
    }
}

/// Fetches a body as a whole, and holds it. Dropped, it closes the connection.
pub async fn fetch(
    endpoint: &Endpoint,
    config: &HttpConfig,
    limits: &Limits,
    conditions: &Conditions,
) -> Result<Fetched, FetchError> {
    fetch_into(&mut (), endpoint, config, limits, conditions).await
}

/// The same, of which a large body goes into `spill`, but for its last piece. What an error leaves there is no body.
pub async fn fetch_into(
    spill: &mut impl Spill,
    endpoint: &Endpoint,
    config: &HttpConfig,
    limits: &Limits,
    conditions: &Conditions,
) -> Result<Fetched, FetchError> {
    let mut at = endpoint.clone();
    for _ in 0..=REDIRECTS {
        match ask(spill, &at, config, limits, conditions).await? {
            Answer::Here(fetched) => return Ok(fetched),
            Answer::There(next) => at = next,
        }
    }
    Err(FetchError::Circle { endpoint: endpoint.to_string() })
}

enum Answer {
    Here(Fetched),
    /// Another path of the same server.
    There(Endpoint),
}

async fn ask(
    spill: &mut impl Spill,
    endpoint: &Endpoint,
    config: &HttpConfig,
    limits: &Limits,
    conditions: &Conditions,
) -> Result<Answer, FetchError> {
    let attempt = Attempt::new(endpoint, limits.connect);
    let (mut request, _) = prepare(endpoint, config).map_err(HttpError::from)?;
    let headers = request.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    // What is compressed on the way would have to be unpacked within bounds, and has another ETag.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    conditions.add_to(headers);
    sign(endpoint, config, &mut request).await?;
    let socket = attempt.connect(config).await?;
    let handshake = hyper::client::conn::http1::Builder::new().max_buf_size(HEAD).handshake(TokioIo::new(socket)).await;
    let (mut sender, connection) = handshake.map_err(|error| attempt.broken(&error))?;
    let answer = async {
        let head = send(&mut sender, request, limits, endpoint, &attempt).await?;
        if let Some(signer) = &config.signer {
            let head = permitted(signer.kind(), head, endpoint, limits, conditions).await?;
            return match head {
                Some(head) => take(head, spill, endpoint, limits, conditions, Conditions::of_object).await,
                None => Ok(Answer::Here(Fetched::Absent(404))),
            };
        }
        take(head, spill, endpoint, limits, conditions, Conditions::of).await
    };
    let answer = beside(connection, answer).await;
    match (answer, config.forwarder(endpoint)) {
        // The answer may be the proxy's own.
        (Err(FetchError::Status { endpoint, code, after }), Some(proxy)) => {
            let endpoint = format!("{endpoint} through the proxy at {} (HTTP_PROXY)", place(proxy.uri()));
            Err(FetchError::Status { endpoint, code, after })
        }
        (answer, _) => answer,
    }
}

async fn send(
    sender: &mut hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
    limits: &Limits,
    endpoint: &Endpoint,
    attempt: &Attempt<'_>,
) -> Result<Response<Incoming>, FetchError> {
    match timeout(limits.quiet, sender.send_request(request)).await {
        Ok(Ok(head)) => Ok(head),
        Ok(Err(error)) => Err(attempt.broken(&error).into()),
        Err(_) => Err(silent(endpoint, limits)),
    }
}

fn silent(endpoint: &Endpoint, limits: &Limits) -> FetchError {
    FetchError::Silent { endpoint: endpoint.to_string(), quiet: limits.quiet }
}

/// An object store's answer, if it has what was asked for; `None`: there is no such object.
async fn permitted(
    kind: Kind,
    head: Response<Incoming>,
    endpoint: &Endpoint,
    limits: &Limits,
    conditions: &Conditions,
) -> Result<Option<Response<Incoming>>, FetchError> {
    let ((StatusCode::OK, _) | (StatusCode::NOT_MODIFIED, false)) = (head.status(), conditions.is_empty()) else {
        let (head, body) = head.into_parts();
        let after = head.headers.get(header::RETRY_AFTER).and_then(|after| pause(after, Timestamp::now()));
        let refused = Refused::read(kind, &head, body, limits.quiet).await;
        if refused.is_absence() {
            return Ok(None);
        }
        return Err(FetchError::Refused { endpoint: endpoint.to_string(), refused, after });
    };
    Ok(Some(head))
}

async fn take(
    head: Response<Incoming>,
    spill: &mut impl Spill,
    endpoint: &Endpoint,
    limits: &Limits,
    conditions: &Conditions,
    named: fn(&HeaderMap) -> Conditions,
) -> Result<Answer, FetchError> {
    let (head, body) = head.into_parts();
    let code = head.status.as_u16();
    match head.status {
        StatusCode::OK => {
            // The second is Google's, of what it unpacks on the way: its size is not the listed one.
            let coding = [header::CONTENT_ENCODING.as_str(), "x-goog-stored-content-encoding"];
            let mut coding = coding.iter().filter_map(|name| head.headers.get(*name));
            if coding.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
                return Err(FetchError::Encoded { endpoint: endpoint.to_string() });
            }
            let chunked = head.headers.contains_key(header::TRANSFER_ENCODING);
            let conditions = named(&head.headers);
            let body = whole(body, chunked, spill, endpoint, limits).await?;
            Ok(Answer::Here(Fetched::New { body, conditions }))
        }
        StatusCode::NOT_MODIFIED if !conditions.is_empty() => Ok(Answer::Here(Fetched::NotModified)),
        StatusCode::NOT_FOUND | StatusCode::GONE => Ok(Answer::Here(Fetched::Absent(code))),
        StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT => {
            let location = head.headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
            let next = location.and_then(|location| endpoint.redirected(location));
            let Some(next) = next else {
                return Err(FetchError::Status { endpoint: endpoint.to_string(), code, after: None });
            };
            if next.origin() == endpoint.origin() {
                Ok(Answer::There(next))
            } else {
                Err(FetchError::Elsewhere { endpoint: endpoint.to_string(), to: next.origin() })
            }
        }
        _ => {
            let after = head.headers.get(header::RETRY_AFTER).and_then(|after| pause(after, Timestamp::now()));
            Err(FetchError::Status { endpoint: endpoint.to_string(), code, after })
        }
    }
}

/// Reads a body to its end. Hyper fails where a body ends before its Content-Length, or its last chunk.
async fn whole(
    mut rest: Incoming,
    chunked: bool,
    spill: &mut impl Spill,
    endpoint: &Endpoint,
    limits: &Limits,
) -> Result<Bytes, FetchError> {
    let too_large = || FetchError::TooLarge { endpoint: endpoint.to_string(), limit: limits.bytes };
    let length = rest.size_hint().exact();
    match length {
        Some(length) if length > limits.bytes => return Err(too_large()),
        None if !chunked => return Err(FetchError::Endless { endpoint: endpoint.to_string() }),
        _ => {}
    }
    let most = if spill.is_there() { PIECE } else { usize::MAX };
    let mut body = Vec::with_capacity(usize::try_from(length.unwrap_or(0)).unwrap_or(0).min(most));
    let mut taken = 0;
    loop {
        let frame = timeout(limits.quiet, rest.frame()).await.map_err(|_| silent(endpoint, limits))?;
        let Some(frame) = frame else { return Ok(Bytes::from(body.into_boxed_slice())) };
        let cut = |error| FetchError::Cut { endpoint: endpoint.to_string(), reason: reason(&error) };
        let data = frame.map_err(cut)?.into_data().unwrap_or_default();
        taken += data.len() as u64;
        if taken > limits.bytes {
            return Err(too_large());
        }
        if body.len() + data.len() > most {
            let piece = std::mem::replace(&mut body, Vec::with_capacity(most));
            if !spill.take(piece).await {
                return Err(FetchError::NotKept { endpoint: endpoint.to_string() });
            }
        }
        body.extend_from_slice(&data);
    }
}

/// Of a date as HTTP has it.
fn time(value: &HeaderValue) -> Option<Timestamp> {
    Some(jiff::fmt::rfc2822::parse(value.to_str().ok()?).ok()?.timestamp())
}

/// Of a Retry-After: seconds, or a date.
fn pause(value: &HeaderValue, now: Timestamp) -> Option<Duration> {
    let seconds = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    let pause = match seconds {
        Some(seconds) => Duration::from_secs(seconds),
        None => time(value)?.duration_since(now).try_into().unwrap_or_default(),
    };
    Some(pause.min(LONGEST))
}
