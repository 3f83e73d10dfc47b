//! One PUT whose body comes in pieces and is never held as a whole.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request};
use tokio::sync::mpsc;

use super::{Attempt, HttpConfig, HttpError, prepare, sign};
use crate::net::endpoint::Endpoint;

/// A body of a length that is known before. Pieces that end before it break the connection, so that no server takes a
/// part for the whole.
pub struct Pieces {
    pub length: u64,
    pub pieces: mpsc::Receiver<Bytes>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.length == 0 {
            return Poll::Ready(None);
        }
        let piece = ready!(self.pieces.poll_recv(cx));
        let left = piece.as_ref().and_then(|piece| self.length.checked_sub(piece.len() as u64));
        Poll::Ready(Some(match (piece, left) {
            (Some(piece), Some(left)) => {
                self.length = left;
                Ok(Frame::data(piece))
            }
            _ => Err(io::Error::other("what is sent could not be read to its end")),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.length == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

/// How it ended, where the server has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there now.
    Done,
    /// It was there.
    Present,
    /// The server's status.
    Refused(u16),
}

/// How a body comes to be at a URL.
pub struct Upload {
    pub method: Method,
    pub endpoint: Endpoint,
    pub headers: HeaderMap,
}

impl Upload {
    /// As HTTP has it.
    #[must_use]
    pub fn put(endpoint: &Endpoint, if_absent: bool) -> Self {
        let absent = if_absent.then(|| (header::IF_NONE_MATCH, HeaderValue::from_static("*")));
        Self { method: Method::PUT, endpoint: endpoint.clone(), headers: absent.into_iter().collect() }
    }
}

/// Puts a body at a URL; with `if_absent`, only where nothing is. `timeout`: from the connect to the end of the answer.
/// Dropped, it closes the connection.
pub async fn put(
    endpoint: &Endpoint,
    config: &HttpConfig,
    body: Pieces,
    if_absent: bool,
    timeout: Duration,
) -> Result<Put, HttpError> {
    let Upload { method, endpoint, headers } = match &config.signer {
        Some(signer) => signer.kind().upload(endpoint, if_absent),
        None => Upload::put(endpoint, if_absent),
    };
    let attempt = Attempt::new(&endpoint, timeout);
    let (request, _) = prepare(&endpoint, config)?;
    let (mut head, _) = request.into_parts();
    head.method = method;
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.length));
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/gzip"));
    head.headers.extend(headers);
    let mut request = Request::from_parts(head, body);
    sign(&endpoint, config, &mut request).await?;
    let socket = attempt.connect(config).await?;
    let response = attempt.exchange(socket, request, 0).await?;
    Ok(match response.status {
        200..=299 => Put::Done,
        // Stores say 409 where another one puts it at the same time, and some where it is there.
        412 | 409 if if_absent => Put::Present,
        status => Put::Refused(status),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::request::fetch::server::Server;

    const LONG: Duration = Duration::from_secs(30);

    fn body(length: u64, pieces: &[&'static str]) -> Pieces {
        let (send, receive) = mpsc::channel(8);
        for piece in pieces {
            send.try_send(Bytes::from_static(piece.as_bytes())).unwrap();
        }
        Pieces { length, pieces: receive }
    }

    #[tokio::test]
    async fn statuses_are_distinguished_and_a_condition_is_sent_where_it_is_asked_for() {
        for (status, if_absent, ended) in [
            (201, true, Put::Done),
            (204, false, Put::Done),
            (412, true, Put::Present),
            (409, true, Put::Present),
            (409, false, Put::Refused(409)),
            (412, false, Put::Refused(412)),
            (301, true, Put::Refused(301)),
            (507, true, Put::Refused(507)),
        ] {
            let server = Server::start(&format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"));
            let endpoint: Endpoint = server.url("/a/b.tar.gz?sig=canary").parse().unwrap();
            let put = put(&endpoint, &HttpConfig::default(), body(6, &["abc", "def"]), if_absent, LONG).await.unwrap();
            assert_eq!(put, ended, "{status}");
            let head = server.heads().remove(0).to_ascii_lowercase();
            assert!(head.starts_with("put /a/b.tar.gz?sig=canary "), "{head}");
            assert!(head.contains("\r\ncontent-length: 6\r\n"), "{head}");
            assert_eq!(head.contains("\r\nif-none-match: *\r\n"), if_absent, "{head}");
        }
    }

    #[tokio::test]
    async fn body_that_ends_early_or_is_too_long_is_no_upload() {
        let server = Server::start("");
        let endpoint: Endpoint = server.url("/x").parse().unwrap();
        for pieces in [&["ab"][..], &["abcd"]] {
            let error = put(&endpoint, &HttpConfig::default(), body(3, pieces), false, LONG).await.unwrap_err();
            assert!(error.to_string().contains("could not be read") || error.to_string().contains("closed"), "{error}");
        }
    }
}
