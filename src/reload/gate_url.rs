//! `--rollout-gate-url`: whether whoever watches the fleet agrees that a change goes on.

use std::time::Duration;

use crate::net::endpoint::Endpoint;
use crate::net::request::{self, HttpConfig};

/// How long an answer is waited for.
const ASK: Duration = Duration::from_secs(5);

/// Whom to ask, by GET. Believed as `--confirm-url` is.
#[derive(Clone, Debug)]
pub struct GateUrl {
    pub endpoint: Endpoint,
    pub http: HttpConfig,
}

impl GateUrl {
    /// Asks once; an error says why it does not agree. No answer is no agreement.
    pub async fn ask(&self) -> Result<(), String> {
        match request::send(&self.endpoint, &self.http, ASK).await {
            Ok(response) if (200..300).contains(&response.status) => Ok(()),
            Ok(response) => Err(format!("{} answered {}", self.endpoint, response.status)),
            Err(error) => Err(error.to_string()),
        }
    }
}
