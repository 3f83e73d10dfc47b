//! Notifying by requests, and when a main process that does not answer is presumed dead.

use std::time::Duration;

use tokio::time::Instant;

use super::NotTaken;
use crate::net::endpoint::{Endpoint, StatusCodes};
use crate::net::request::{self, HttpConfig, Response};
use crate::os::mask::Said;

/// Why an endpoint did not take a request.
#[derive(Debug)]
pub(super) struct CallFailure {
    pub(super) why: NotTaken,
    /// Whether the connection was accepted.
    accepted: bool,
}

/// The rule by which a main process is presumed dead: it was sent a request that it did not answer, or refused, and has
/// accepted no connection since for as long as `--confirm-timeout`.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    /// The generation of the request, and what came of it.
    request: Option<(u64, &'static str)>,
    /// When the first connection after it was not accepted.
    away_since: Option<Instant>,
}

impl Unanswered {
    /// Takes in what came of a request; `Died`, if the main process is presumed dead.
    pub(super) fn after(
        &mut self,
        generation: u64,
        answer: &Result<(), CallFailure>,
        presumed_dead_after: Option<Duration>,
    ) -> Option<NotTaken> {
        if self.request.is_none_or(|(known, _)| known != generation) {
            *self = Self::default();
        }
        match answer {
            Err(CallFailure { why: NotTaken::Unreachable { delivered: true, .. }, .. }) => {
                (self.request, self.away_since) = (Some((generation, "sent and not answered")), None);
            }
            // Prometheus, for one, goes on with what it had, and cannot load this if it starts again.
            Err(CallFailure { why: NotTaken::Refused { .. }, .. }) => {
                (self.request, self.away_since) = (Some((generation, "refused")), None);
            }
            Err(CallFailure { why: NotTaken::Unreachable { message, .. }, accepted: false }) => {
                let (_, outcome) = self.request?;
                let since = *self.away_since.get_or_insert_with(Instant::now);
                let patience = presumed_dead_after.filter(|patience| since.elapsed() >= *patience)?;
                *self = Self::default();
                let message = format!(
                    "a reload request was {outcome}, and no connection was accepted for {patience:?} (--confirm-timeout) \
                     since, so the main process is presumed to have died of the reload: {message}"
                );
                return Some(NotTaken::Died { message });
            }
            // Somebody is there, and will be notified again.
            _ => *self = Self::default(),
        }
        None
    }
}

/// Sends one request.
pub(super) async fn call(
    endpoint: &Endpoint,
    http: &HttpConfig,
    accept: &StatusCodes,
    timeout: Duration,
) -> Result<(), CallFailure> {
    let Response { status, body, .. } = match request::send(endpoint, http, timeout).await {
        Ok(response) => response,
        Err(error) => {
            let (message, delivered) = (error.to_string(), error.sent());
            let why = NotTaken::Unreachable { message, output: Said::default(), delivered };
            return Err(CallFailure { why, accepted: error.accepted() });
        }
    };
    if accept.contains(status) {
        return Ok(());
    }
    let mut output = Said::default();
    output.push(&body);
    let why = match status {
        // It is busy, or somebody in between has nobody to ask. None of it is about the configuration.
        408 | 409 | 423 | 425 | 429 | 502..=504 => {
            let message = format!("{endpoint} answered {status}: not now");
            NotTaken::Unreachable { message, output, delivered: false }
        }
        300..=399 => {
            let message = format!(
                "{endpoint} answered {status}, which --reload-status does not accept, and redirects are not followed: give \
                 --reload-url the final URL"
            );
            NotTaken::Refused { message, output }
        }
        _ => {
            let message = format!("{endpoint} answered {status}, which --reload-status does not accept");
            NotTaken::Refused { message, output }
        }
    };
    Err(CallFailure { why, accepted: true })
}
