//! An access token, kept until shortly before its end.

use std::time::Duration;

use hyper::header::HeaderValue;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::net::request::SignError;

/// So long before its end a token is renewed. A shorter one is renewed in its middle.
const MARGIN: Duration = Duration::from_mins(5);

/// What a service hands out. Never printed.
pub(super) struct Token {
    /// As `Authorization` has it.
    value: HeaderValue,
    /// From when on another one is asked for, and from when on it counts no more.
    renew: Instant,
    end: Instant,
}

impl Token {
    /// `None`: it is no token.
    pub(super) fn bearer(text: &str, life: Duration) -> Option<Self> {
        let mut value = HeaderValue::from_str(&format!("Bearer {text}")).ok().filter(|_| !text.is_empty())?;
        value.set_sensitive(true);
        let now = Instant::now();
        let end = now.checked_add(life)?;
        Some(Self { value, renew: end - MARGIN.min(life / 2), end })
    }
}

/// The last one.
#[derive(Default)]
pub(super) struct Tokens(Mutex<Option<Token>>);

impl Tokens {
    /// The one that is there, or by `fresh` a new one. Who comes meanwhile waits for the same one.
    pub(super) async fn get(
        &self,
        fresh: impl Future<Output = Result<Token, SignError>>,
    ) -> Result<HeaderValue, SignError> {
        let mut last = self.0.lock().await;
        if let Some(token) = last.as_ref().filter(|token| Instant::now() < token.renew) {
            return Ok(token.value.clone());
        }
        match (fresh.await, last.as_ref().filter(|token| Instant::now() < token.end)) {
            (Ok(token), _) => Ok(last.insert(token).value.clone()),
            (Err(error), Some(token)) => {
                tracing::debug!("the old token is used for its last minutes: {error}");
                Ok(token.value.clone())
            }
            (Err(error), None) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, life: u64) -> Token {
        Token::bearer(text, Duration::from_secs(life)).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn token_is_renewed_before_its_end_and_used_until_then_where_that_fails() {
        let tokens = Tokens::default();
        let failed = || Err(SignError::passing("no"));
        assert!(tokens.get(async { failed() }).await.is_err());
        assert_eq!(tokens.get(async { Ok(token("a", 3600)) }).await.unwrap(), "Bearer a");
        tokio::time::advance(Duration::from_secs(3299)).await;
        assert_eq!(tokens.get(async { Ok(token("b", 3600)) }).await.unwrap(), "Bearer a");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(tokens.get(async { failed() }).await.unwrap(), "Bearer a");
        assert_eq!(tokens.get(async { Ok(token("b", 100)) }).await.unwrap(), "Bearer b");
        tokio::time::advance(Duration::from_secs(51)).await;
        assert_eq!(tokens.get(async { Ok(token("c", 1)) }).await.unwrap(), "Bearer c");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(tokens.get(async { failed() }).await.is_err());
        assert!(Token::bearer("", Duration::from_secs(1)).is_none() && Token::bearer("a\nb", MARGIN).is_none());
        assert!(Token::bearer("canary", MARGIN).unwrap().value.is_sensitive());
    }
}
