//! One question to a service that hands out credentials, over our connections: bounded, and without a word of the answer in
//! an error.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;

use crate::net::credentials::{Header, LiteralOrFile};
use crate::net::endpoint::Endpoint;
use crate::net::request::{HttpConfig, SignError, refused, send_unmasked};

/// The largest answer, in bytes.
const ANSWER: usize = 64 * 1024;
/// How long a service of the cloud is waited for, and how long one of the node's own, which is quick where it is there.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(2));

/// What is asked.
pub(super) struct Ask {
    pub endpoint: Endpoint,
    /// Whether it is beyond this node: then a proxy may be on the way.
    pub is_remote: bool,
    pub method: Method,
    pub headers: Vec<Header>,
    pub body: Bytes,
    /// What may be wrong where it is refused.
    pub hint: &'static str,
}

impl Ask {
    /// The body of a 200. `http`: who is trusted, and the proxies.
    pub(super) async fn send(self, http: &HttpConfig) -> Result<Vec<u8>, SignError> {
        let Self { endpoint, is_remote, method, headers, body, hint } = self;
        let config = HttpConfig {
            method,
            owner: http.owner,
            body: LiteralOrFile::Literal(body),
            headers,
            ca_file: http.ca_file.clone(),
            proxies: http.proxies.clone().filter(|_| is_remote),
            ..HttpConfig::default()
        };
        let patience = if is_remote { PATIENCE.0 } else { PATIENCE.1 };
        let failed = |reason: String| SignError::passing(format!("asking for credentials: {reason}"));
        let answer =
            send_unmasked(&endpoint, &config, ANSWER, patience).await.map_err(|error| failed(error.to_string()))?;
        let (answer, _) = answer;
        if answer.status != 200 {
            let name = name(&answer.body).map(|name| format!(" {name}")).unwrap_or_default();
            let hint = if answer.status < 500 && answer.status != 429 { hint } else { "trying again" };
            return Err(failed(format!("{endpoint} answered {}{name}; {hint}", answer.status)));
        }
        if let Some(why) = answer.incomplete {
            return Err(failed(format!("{endpoint}: the answer broke off: {why}")));
        }
        Ok(answer.body)
    }
}

/// What an error is called: in XML, or in JSON as OAuth (RFC 6749, section 5.2), with Microsoft's number, or
/// Google's services have it.
fn name(body: &[u8]) -> Option<String> {
    refused::name(body).or_else(|| {
        let value: serde_json::Value = serde_json::from_slice(body).ok()?;
        let error = &value["error"];
        let name = refused::harmless(error.as_str().or_else(|| error["status"].as_str())?)?;
        let number = value["error_codes"][0].as_u64().map(|number| format!(", AADSTS{number}"));
        Some(name + &number.unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_called_by_their_names_and_by_nothing_else() {
        for (body, called) in [
            (&b"<Error><Code>AccessDenied</Code><Message>canary</Message></Error>"[..], Some("AccessDenied")),
            (br#"{"error":"invalid_grant","error_description":"canary"}"#, Some("invalid_grant")),
            (
                br#"{"error":"invalid_client","error_description":"canary","error_codes":[700213]}"#,
                Some("invalid_client, AADSTS700213"),
            ),
            (br#"{"error":{"code":403,"status":"PERMISSION_DENIED","message":"canary"}}"#, Some("PERMISSION_DENIED")),
            (br#"{"error":"canary text"}"#, None),
            (br#"{"error":{"code":403}}"#, None),
            (b"canary", None),
        ] {
            assert_eq!(name(body).as_deref(), called);
        }
    }
}
