//! What goes wrong between Trimtab and the API server: what to say about it, and how long to wait.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use tokio_rustls::rustls;

use super::Watch;
use super::config::KubeError;
use super::rbac::{Rule, resource};
use super::wire::{NotBase64, Status};
use crate::model::spool::SpoolError;
use crate::net::proxy::NoTunnel;
use crate::net::tls;
use crate::os::backoff;

/// The first retry comes within this time, and every further one within the double, up to [`MAX_DELAY`].
const FIRST_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(30);
/// The same of a source that was read before: nobody waits for it to start, but a whole fleet may be in its place.
const FIRST_SPREAD: Duration = Duration::from_secs(12);
/// How long the first connection after an outage is waited for; after each that took longer, the double.
const FIRST_PATIENCE: Duration = Duration::from_millis(500);
/// A permission is granted by people: asking more often than this only fills the server's audit log.
const FORBIDDEN_DELAY: Duration = Duration::from_secs(10);
/// To find out that a source is still too large, all of it has to be fetched.
const TOO_LARGE_DELAY: Duration = Duration::from_mins(1);

/// Why a list or a watch failed. All of them are retried; none holds a byte of an object's content.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no client.
    Setup(KubeError),
    /// No connection, or one that broke: to where, and the system's or the TLS library's own words.
    Unreachable { server: Option<String>, why: String },
    /// The server's certificate was not accepted, or it did not accept ours.
    Untrusted { server: Option<String>, why: String },
    /// The server accepted the connection, and for this long not a byte came.
    Silent(Duration),
    /// 401.
    Unauthorized,
    /// 403, for the user that the server took us for.
    Forbidden { user: Option<String> },
    /// 410: the position to watch from, or to go on listing from, is too old. The remedy is a fresh list.
    Expired,
    /// The server's history is shorter than where the watch stood. The remedy is a fresh list.
    WentBack,
    /// Any other answer.
    Refused { code: u16, reason: String, after: Option<Duration> },
    /// An answer that is not what the API promises, described by places alone.
    Malformed(String),
    /// A page of a list exceeds what is held of one at a time, in bytes.
    PageTooLarge,
    /// The source exceeds `--max-size`, in bytes, by these, in words.
    TooLarge { limit: u64, held_back: String },
    /// A value cannot be kept on the disk. What was known stays.
    NotKept(SpoolError),
    /// A watch ended before it had lived for long, without a word.
    Ended,
    /// A watch that was running broke.
    Broken(Box<Failure>),
}

impl From<KubeError> for Failure {
    fn from(error: KubeError) -> Self {
        Self::Setup(error)
    }
}

impl From<SpoolError> for Failure {
    fn from(error: SpoolError) -> Self {
        Self::NotKept(error)
    }
}

impl From<NotBase64> for Failure {
    fn from(NotBase64(key): NotBase64) -> Self {
        Self::Malformed(format!("the value of key {key:?} is not base64"))
    }
}

impl Failure {
    /// An answer that is not JSON of the expected shape. `serde_json`'s own text may quote it: place only.
    pub(super) fn json(error: &serde_json::Error) -> Self {
        Self::Malformed(format!("unexpected JSON at line {}, column {}", error.line(), error.column()))
    }

    /// What the server said no with. `header`: its Retry-After, in seconds.
    pub(super) fn status(status: Status, header: Option<u64>) -> Self {
        let causes = status.details.as_ref().and_then(|details| details.causes.as_ref());
        // apimachinery/pkg/api/errors: `NewTooLargeResourceVersionError`.
        if causes.is_some_and(|causes| causes.iter().any(|cause| cause.reason == "ResourceVersionTooLarge")) {
            return Self::WentBack;
        }
        match status.code {
            401 => Self::Unauthorized,
            403 => Self::Forbidden { user: user(&status.message) },
            410 => Self::Expired,
            code => {
                let after = header.or(status.details.map(|details| details.retry_after_seconds));
                // A word such as `TooManyRequests`; whatever else stands there is not the API server's.
                let word = !status.reason.is_empty()
                    && status.reason.len() <= 40
                    && status.reason.bytes().all(|byte| byte.is_ascii_alphanumeric());
                let reason = if word { status.reason } else { String::new() };
                Self::Refused { code, reason, after: after.map(Duration::from_secs) }
            }
        }
    }

    /// A request or a body that did not get through, by the innermost cause that is known to be safe to print.
    pub(super) fn transport(error: &(dyn Error + 'static), server: Option<&str>) -> Self {
        let server = server.map(str::to_owned);
        let mut next = Some(error);
        let (mut why, mut proxy) = (None, None);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<rustls::Error>() {
                return Self::Untrusted { server, why: tls::in_words(error) };
            }
            if let Some(error) = error.downcast_ref::<NoTunnel>() {
                proxy = Some(&error.proxy);
            }
            next = error.source();
            if let Some(error) = error.downcast_ref::<io::Error>() {
                match error.get_ref() {
                    // `source` would skip what an `io::Error` wraps.
                    Some(inner) => next = Some(inner),
                    None => why = Some(error.to_string()),
                }
                // The resolver's errors have no number of their own.
                let text = error.to_string();
                if text.starts_with("failed to lookup address information") {
                    why = Some(text);
                }
            }
        }
        let why = match proxy {
            None => why.unwrap_or_else(|| "the connection broke".to_owned()),
            Some(proxy) => {
                let why = why.unwrap_or_else(|| "it gives no connection".to_owned());
                format!("the proxy at {proxy} (proxy-url, or HTTPS_PROXY and NO_PROXY): {why}")
            }
        };
        Self::Unreachable { server, why }
    }

    /// How long to wait before the attempt that follows this one, the `failures`th in a row (from 1); `synced`, if the
    /// source was read before.
    ///
    /// A server that is restarted, or fails over, breaks the watches of a whole fleet in one moment. So waits of sources
    /// that were read before are spread evenly: less than a quarter of a fleet comes back in any one second, however
    /// long the outage takes.
    pub(super) fn delay(&self, failures: u32, synced: bool) -> Duration {
        let (first, least) = if synced { (FIRST_SPREAD, 0.0) } else { (FIRST_DELAY, 0.25) };
        let delay = backoff::delay(failures, first, MAX_DELAY, least);
        match self {
            Self::Forbidden { .. } if !synced => delay.max(FORBIDDEN_DELAY),
            Self::TooLarge { .. } => TOO_LARGE_DELAY,
            Self::Refused { after: Some(after), .. } => delay.saturating_add(*after).min(MAX_DELAY),
            Self::Broken(inner) => inner.delay(failures, synced),
            _ => delay,
        }
    }

    /// How long the attempt that follows this one waits for its connection, TLS handshake included; `answer`: how long
    /// an answer is waited for.
    ///
    /// A server that is restarted has its port open for seconds before it serves, and answers all who wait there at one
    /// instant. Who gives up and comes back is spread out, and what is closed is no request. A server that is merely
    /// slow is reached as well, by the patience that grows.
    pub(super) fn patience(&self, synced: bool, answer: Duration) -> Duration {
        match self {
            _ if !synced => answer,
            Self::Silent(patience) => patience.saturating_mul(2).min(answer),
            _ => FIRST_PATIENCE.min(answer),
        }
    }

    /// Whether it may pass by itself, so that it is no trouble unless it comes twice in a row. Servers restart, and
    /// proxies cut long connections. A server that has just started knows no RoleBindings for a moment: 403.
    pub(super) fn may_pass(&self, synced: bool) -> bool {
        match self {
            Self::Broken(_) | Self::Expired | Self::WentBack => true,
            Self::Forbidden { .. } => synced,
            _ => false,
        }
    }

    /// Whether to list afresh instead of going on from where the watch stood.
    pub(super) fn lost_position(&self) -> bool {
        matches!(self, Self::Expired | Self::WentBack | Self::Malformed(_) | Self::TooLarge { .. })
    }

    /// Whether it is a permission that is missing.
    pub(super) fn is_forbidden(&self) -> bool {
        match self {
            Self::Forbidden { .. } => true,
            Self::Broken(inner) => inner.is_forbidden(),
            _ => false,
        }
    }

    /// What people read: which source, the cause, the remedy. The same failure gives the same words.
    pub(super) fn message(&self, watch: &Watch, verb: &str) -> String {
        format!("{watch}: {}", InWords { failure: self, watch, verb })
    }
}

/// Why an object was not created. None holds a word of the server's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// 403: worth trying again once somebody has granted it.
    #[error("{} may not create it (403)", user.as_deref().unwrap_or("this user"))]
    Forbidden {
        /// Whom the server took us for.
        user: Option<String>,
    },
    /// Another answer, which the same object would be given again.
    #[error("the API server refused it (HTTP {0}); are POD_NAME and POD_NAMESPACE those of this Pod?")]
    Refused(u16),
    /// No answer, or not now: worth trying again.
    #[error("{0}; trying again later")]
    Later(String),
}

impl From<Failure> for CreateError {
    fn from(failure: Failure) -> Self {
        let at = |server: Option<String>| server.map(|server| format!(" at {server}")).unwrap_or_default();
        Self::Later(match failure {
            Failure::Forbidden { user } => return Self::Forbidden { user },
            Failure::Refused { code, .. } if code != 429 && code < 500 => return Self::Refused(code),
            Failure::Refused { code, .. } => format!("the API server answered {code}"),
            Failure::Setup(error) => error.to_string(),
            Failure::Unreachable { server, why } => format!("cannot reach the API server{}: {why}", at(server)),
            Failure::Untrusted { server, why } => {
                format!("no trusted connection to the API server{}: {why}", at(server))
            }
            Failure::Silent(patience) => format!("the API server has not answered for {} s", patience.as_secs_f64()),
            Failure::Unauthorized => "the API server does not accept our credentials (401)".to_owned(),
            Failure::Expired
            | Failure::WentBack
            | Failure::Malformed(_)
            | Failure::PageTooLarge
            | Failure::TooLarge { .. }
            | Failure::NotKept(_)
            | Failure::Ended
            | Failure::Broken(_) => "the API server gave no proper answer".to_owned(),
        })
    }
}

struct InWords<'a> {
    failure: &'a Failure,
    watch: &'a Watch,
    /// `list` or `watch`.
    verb: &'a str,
}

impl fmt::Display for InWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = |server: &Option<String>| server.as_ref().map(|server| format!(" at {server}")).unwrap_or_default();
        match self.failure {
            Failure::Setup(error) => write!(f, "{error}"),
            Failure::Unreachable { server, why } => {
                write!(f, "cannot reach the API server{}: {why}; trying again", to(server))
            }
            Failure::Untrusted { server, why } => write!(
                f,
                "no trusted connection to the API server{}: {why}; the CA (ca.crt, or certificate-authority in the \
                 kubeconfig) must be the one that signed the server's certificate, for the name it is called by",
                to(server)
            ),
            // Not for how long: that grows, and would be reported each time.
            Failure::Silent(_) => f.write_str(
                "the API server does not answer; is it overloaded, or is a proxy or network policy in the way?",
            ),
            Failure::Unauthorized => f.write_str(
                "the API server does not accept our credentials (401): the token is missing, expired or of another \
                 cluster; it is read again on each attempt",
            ),
            Failure::Forbidden { user } => {
                let (user, resource) = (user.as_deref().unwrap_or("this user"), resource(self.watch.kind));
                let rule = Rule::to_read(self.watch);
                write!(f, "forbidden (403): {user} may not {} {resource}. It needs {rule}", self.verb)
            }
            Failure::Expired => f.write_str("the API server has forgotten where the watch stood (410); listing again"),
            Failure::WentBack => f.write_str(
                "the API server's history went back behind where the watch stood: was its etcd restored from a backup? \
                 Listing again",
            ),
            Failure::Refused { code, reason, .. } => {
                let reason = if reason.is_empty() { String::new() } else { format!(" {reason}") };
                write!(f, "the API server refused to {} (HTTP {code}{reason}); ", self.verb)?;
                f.write_str(match code {
                    400 | 422 => "is the selector, or the name, valid?",
                    404 => "is this the URL of a Kubernetes API server?",
                    429 => "it is overloaded or throttles us; trying again as it asks",
                    500.. => "trying again",
                    _ => "its own log says why",
                })
            }
            Failure::Malformed(what) => {
                write!(f, "the API server sent something unusable: {what}; is a proxy in the way?")
            }
            Failure::PageTooLarge => f.write_str("the API server sent a single object that exceeds every limit"),
            Failure::TooLarge { limit, held_back } => write!(
                f,
                "more than {limit} bytes, the limit of --max-size: {held_back} held back; narrow the selector, or raise the \
                 limit (and the container's memory). What was known of that stays, and the rest goes on",
            ),
            Failure::NotKept(error) => write!(f, "{error}. What was known before stays; trying again"),
            Failure::Ended => f.write_str("the watch ends as soon as it begins; is a proxy in the way?"),
            Failure::Broken(inner) => write!(
                f,
                "the watch breaks again and again: {}",
                InWords { failure: inner, watch: self.watch, verb: self.verb }
            ),
        }
    }
}

/// The user in a message such as `configmaps is forbidden: User "system:serviceaccount:web:app" cannot list …`
/// (apiserver/pkg/endpoints/handlers/responsewriters: `forbiddenMessage`).
fn user(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("User \"")?;
    let (user, _) = rest.split_once('"')?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":-._@/".contains(&byte);
    (!user.is_empty() && user.len() <= 253 && user.bytes().all(plain)).then(|| user.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::Scope;
    use super::*;
    use crate::model::object::Kind;

    const ANSWER: Duration = Duration::from_secs(30);

    fn named() -> Watch {
        let scope = Scope::Named { namespace: "web".to_owned(), name: "nginx".to_owned() };
        Watch { source: 0, kind: Kind::ConfigMap, scope, marks: [].into() }
    }

    #[test]
    fn retries_start_within_a_second_double_and_stay_within_half_a_minute() {
        let failure = Failure::Unauthorized;
        for _ in 0..200 {
            let first = failure.delay(1, false);
            assert!(first >= Duration::from_millis(250) && first <= Duration::from_secs(1), "{first:?}");
            let third = failure.delay(3, false);
            assert!(third >= Duration::from_secs(1) && third <= Duration::from_secs(4), "{third:?}");
            for failures in [0, 6, 7, 40, u32::MAX] {
                assert!(failure.delay(failures, false) <= MAX_DELAY);
            }
            assert!(failure.delay(u32::MAX, false) >= MAX_DELAY / 4);
        }
        let delays: Vec<_> = (0..20).map(|_| failure.delay(10, false)).collect();
        assert!(delays.iter().any(|delay| *delay != delays[0]), "no jitter");
    }

    /// When a member of a fleet is answered, if the server goes at 0, opens its port after `away`, and serves after
    /// `backlog` more. Its watch is resumed at once; what comes then is spread.
    fn answered(away: Duration, backlog: Duration) -> Duration {
        let serves = away + backlog;
        let mut failure = Failure::Broken(Box::new(Failure::Ended));
        let mut at = Duration::ZERO;
        for failures in 0.. {
            if failures > 0 {
                at += failure.delay(failures, true);
            }
            let patience = failure.patience(true, ANSWER);
            if at >= serves {
                break;
            } else if at < away {
                failure = Failure::Unreachable { server: None, why: String::new() };
            } else if at + patience < serves {
                at += patience;
                failure = Failure::Silent(patience);
            } else {
                return serves;
            }
        }
        at
    }

    #[test]
    fn a_quarter_of_a_fleet_at_most_comes_back_in_any_second_of_a_restart() {
        const FLEET: usize = 2000;
        for away in [0.0, 0.1, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0, 300.0] {
            for backlog in [0.0, 0.5, 1.0, 2.0, 4.0, 6.0] {
                // Which is no restart: connections were cut.
                if away == 0.0 && backlog <= FIRST_PATIENCE.as_secs_f64() {
                    continue;
                }
                let member = |_| answered(Duration::from_secs_f64(away), Duration::from_secs_f64(backlog));
                let mut all: Vec<_> = (0..FLEET).map(member).collect();
                all.sort_unstable();
                let until = |end: Duration| all.partition_point(|at| *at < end);
                let busiest =
                    all.iter().map(|from| until(*from + Duration::from_secs(1)) - until(*from)).max().unwrap();
                assert!(
                    busiest <= FLEET / 4,
                    "{busiest} of {FLEET} at once: away for {away} s, then silent for {backlog}"
                );
                let last = all.last().unwrap().as_secs_f64() - away - backlog;
                assert!(last <= MAX_DELAY.as_secs_f64(), "{last} s late");
            }
        }
    }

    #[test]
    fn a_slow_server_is_reached_and_the_first_start_is_as_patient_as_can_be() {
        let mut failure = Failure::Broken(Box::new(Failure::Silent(ANSWER)));
        let waited = [(); 8].map(|()| {
            let patience = failure.patience(true, ANSWER);
            failure = Failure::Silent(patience);
            patience
        });
        assert_eq!(waited, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000].map(Duration::from_millis));
        assert_eq!(Failure::Unauthorized.patience(true, ANSWER), FIRST_PATIENCE);
        assert_eq!(Failure::Silent(FIRST_PATIENCE).patience(false, ANSWER), ANSWER);
        assert_eq!(Failure::Ended.patience(true, Duration::from_millis(100)), Duration::from_millis(100));
    }

    #[test]
    fn a_forbidden_source_is_asked_for_at_most_every_ten_seconds() {
        for failures in 1..10 {
            let delay = Failure::Forbidden { user: None }.delay(failures, false);
            assert!(delay >= FORBIDDEN_DELAY && delay <= MAX_DELAY, "{delay:?}");
        }
    }

    #[test]
    fn retry_after_is_honoured_within_bounds() {
        let throttled = |header| Failure::status(Status { code: 429, ..Status::default() }, header);
        let delay = throttled(Some(7)).delay(1, false);
        assert!(delay > Duration::from_secs(7) && delay <= Duration::from_secs(8), "as asked, and spread: {delay:?}");
        assert_eq!(throttled(Some(u64::MAX)).delay(1, false), MAX_DELAY);
        assert!(throttled(Some(0)).delay(1, false) >= Duration::from_millis(250));
        assert!(throttled(None).delay(1, false) <= FIRST_DELAY);
    }

    #[test]
    fn a_403_names_the_user_and_the_rule_that_is_missing() {
        let message = "configmaps is forbidden: User \"system:serviceaccount:web:app\" cannot list resource".to_owned();
        let failure = Failure::status(Status { code: 403, message, ..Status::default() }, None);
        assert_eq!(
            failure.message(&named(), "list"),
            "configmap/web/nginx: forbidden (403): system:serviceaccount:web:app may not list configmaps. It needs a \
             Role in namespace web with the rule {apiGroups: [\"\"], resources: [\"configmaps\"], resourceNames: \
             [\"nginx\"], verbs: [\"list\", \"watch\"]}, and a RoleBinding to it"
        );
        assert!(failure.is_forbidden());
        assert!(failure.may_pass(true) && !failure.may_pass(false), "at the first start it is reported at once");
        assert!(Failure::Broken(Box::new(failure)).is_forbidden());
        assert!(!Failure::Unauthorized.is_forbidden());
        let scope = Scope::Selected { selector: "app=web".to_owned(), namespace: None };
        let wide = Watch { source: 0, kind: Kind::Secret, scope, marks: [].into() };
        assert_eq!(
            Failure::Forbidden { user: None }.message(&wide, "watch"),
            "secret/*/[app=web]: forbidden (403): this user may not watch secrets. It needs a ClusterRole with the \
             rule {apiGroups: [\"\"], resources: [\"secrets\"], verbs: [\"list\", \"watch\"]}, and a \
             ClusterRoleBinding to it"
        );
    }

    #[test]
    fn what_a_server_writes_is_never_repeated() {
        for message in ["User \"a\nb\" cannot", "User \"hunter2 and more\" x", "nothing", "User \"unclosed"] {
            assert_eq!(user(message), None, "{message}");
        }
        let status = Status {
            code: 500,
            reason: "hunter2 <html>".to_owned(),
            message: "hunter2".to_owned(),
            ..Status::default()
        };
        let failure = Failure::status(status, None);
        assert!(!failure.message(&named(), "list").contains("hunter2"));
        assert!(!format!("{failure:?}").contains("hunter2"));
        let error = serde_json::from_str::<u8>("\"hunter2\"").unwrap_err();
        assert!(error.to_string().contains("hunter2"), "serde_json has stopped quoting; good");
        let failure = Failure::json(&error);
        assert_eq!(
            failure.message(&named(), "list"),
            "configmap/web/nginx: the API server sent something unusable: unexpected JSON at line 1, column 9; is a \
             proxy in the way?"
        );
    }
}
