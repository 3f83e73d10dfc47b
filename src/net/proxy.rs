//! Which servers are reached through a proxy, and the connection to it: for the API server's client and for sources behind URLs.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
pub use hyper_util::client::proxy::matcher::Intercept;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::rustls::{self, ClientConfig};
use tower::{BoxError, Service, ServiceExt as _};

use super::connect::tcp;
use super::tls;

/// Which servers are reached through a proxy. The default is what the environment says: `HTTPS_PROXY`, `HTTP_PROXY` for a
/// server without TLS, and `NO_PROXY`, each also in lower case.
#[derive(Clone)]
pub struct Proxies(Arc<Matcher>);

impl Default for Proxies {
    fn default() -> Self {
        let first = |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default();
        Self::new(
            first(["HTTPS_PROXY", "https_proxy"]),
            first(["HTTP_PROXY", "http_proxy"]),
            first(["NO_PROXY", "no_proxy"]),
        )
    }
}

/// A proxy's URL may hold a password.
impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxies(…)")
    }
}

impl Proxies {
    /// For servers with TLS, for those without, and the servers that none is for, each as the variables have it.
    #[must_use]
    pub fn new(https: String, http: String, none: String) -> Self {
        Self(Arc::new(Matcher::builder().https(https).http(http).no(none).build()))
    }

    /// The proxy for this server. Like Go, and so like kubectl, none for this very machine.
    #[must_use]
    pub fn of(&self, server: &Uri) -> Option<Intercept> {
        let (host, _) = host_and_port(server);
        let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if local { None } else { self.0.intercept(server) }
    }
}

/// Without the brackets of an IPv6 address.
#[must_use]
pub fn host_and_port(url: &Uri) -> (&str, u16) {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = match url.scheme_str() {
        Some("https") => 443,
        Some("socks5" | "socks5h") => 1080,
        _ => 80,
    };
    (host, url.port_u16().unwrap_or(port))
}

/// `host:port` of a proxy's URL.
#[must_use]
pub fn place(proxy: &Uri) -> String {
    let (host, port) = host_and_port(proxy);
    format!("{host}:{port}")
}

fn is_socks(proxy: &Intercept) -> bool {
    proxy.uri().scheme_str().is_some_and(|scheme| scheme.starts_with("socks"))
}

/// Whether it is sent requests to servers without TLS itself, each with its whole URL. Many a proxy opens tunnels to port 443
/// alone.
#[must_use]
pub fn forwards(proxy: &Intercept) -> bool {
    !is_socks(proxy)
}

/// A connection to the host and port of a URL, waited for so long at most.
#[derive(Clone)]
pub struct Tcp(pub Duration);

impl Service<Uri> for Tcp {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Boxed<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let patience = self.0;
        Box::pin(async move {
            let (host, port) = host_and_port(&url);
            Ok(TokioIo::new(tcp(host, port, patience).await?))
        })
    }
}

type Boxed<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// The way to the server's port.
#[derive(Clone)]
pub enum Dialer {
    Direct(Tcp),
    /// By CONNECT. The proxy itself may speak TLS.
    Tunnel(String, Tunnel<HttpsConnector<Tcp>>),
    Socks(String, SocksV5<Tcp>),
    /// To the proxy's own port.
    Forward(Uri, Tcp),
    ForwardByTls(Uri, HttpsConnector<Tcp>),
}

/// Why there is none through a proxy.
#[derive(Debug, thiserror::Error)]
#[error("the proxy at {proxy} gives no connection")]
pub struct NoTunnel {
    /// `host:port`.
    pub proxy: String,
    #[source]
    why: BoxError,
}

impl Dialer {
    /// To the server itself.
    #[must_use]
    pub fn through(proxy: &Intercept, direct: Tcp, tls: &Arc<ClientConfig>) -> Self {
        if is_socks(proxy) {
            return Self::socks(proxy, direct);
        }
        let tunnel = Tunnel::new(proxy.uri().clone(), HttpsConnector::from((direct, Arc::clone(tls))));
        Self::Tunnel(
            place(proxy.uri()),
            match proxy.basic_auth() {
                Some(header) => tunnel.with_auth(header.clone()),
                None => tunnel,
            },
        )
    }

    /// For a server without TLS: to a proxy that [`forwards`], or through another. `tls`: for a proxy that speaks it.
    #[must_use]
    pub fn towards(proxy: &Intercept, direct: Tcp, tls: Option<&Arc<ClientConfig>>) -> Self {
        let url = proxy.uri().clone();
        match tls {
            _ if is_socks(proxy) => Self::socks(proxy, direct),
            Some(tls) => Self::ForwardByTls(url, HttpsConnector::from((direct, Arc::clone(tls)))),
            None => Self::Forward(url, direct),
        }
    }

    fn socks(proxy: &Intercept, direct: Tcp) -> Self {
        let socks = SocksV5::new(proxy.uri().clone(), direct);
        Self::Socks(
            place(proxy.uri()),
            match proxy.raw_auth() {
                Some((user, password)) => socks.with_auth(user.to_owned(), password.to_owned()),
                None => socks,
            },
        )
    }
}

impl Service<Uri> for Dialer {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = Boxed<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            let none = |proxy: String, why: BoxError| BoxError::from(NoTunnel { proxy, why });
            match dialer {
                Self::Direct(direct) => Ok(MaybeHttpsStream::Http(direct.oneshot(url).await?)),
                Self::Tunnel(proxy, tunnel) => tunnel.oneshot(url).await.map_err(|why| none(proxy, why.into())),
                Self::Socks(proxy, socks) => {
                    let stream = socks.oneshot(url).await.map_err(|why| none(proxy, why.into()))?;
                    Ok(MaybeHttpsStream::Http(stream))
                }
                Self::Forward(proxy, direct) => {
                    let stream = direct.oneshot(proxy.clone()).await.map_err(|why| none(place(&proxy), why.into()))?;
                    Ok(MaybeHttpsStream::Http(stream))
                }
                Self::ForwardByTls(proxy, direct) => {
                    direct.oneshot(proxy.clone()).await.map_err(|why| none(place(&proxy), why))
                }
            }
        })
    }
}

/// Why a [`Dialer`] gave no connection: the innermost cause that is known to be safe to print.
#[must_use]
pub fn explain(error: &BoxError) -> String {
    let tunnel = error.downcast_ref::<NoTunnel>();
    let mut next: Option<&(dyn Error + 'static)> = Some(&**error);
    let mut why = None;
    while let Some(error) = next {
        next = error.source();
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            why = Some(tls::in_words(error));
        } else if let Some(error) = error.downcast_ref::<io::Error>() {
            match error.get_ref() {
                // `source` would skip what an `io::Error` wraps.
                Some(inner) if inner.is::<rustls::Error>() => next = Some(inner),
                _ => why = Some(error.to_string()),
            }
        } else if error.to_string().ends_with("proxy authorization required") {
            why = Some(
                "it wants a user; give one in its URL, as http://USER:PASSWORD@HOST:PORT, from a Secret".to_owned(),
            );
        }
    }
    let Some(NoTunnel { proxy, .. }) = tunnel else { return why.unwrap_or_else(|| "the connection broke".to_owned()) };
    let why =
        why.unwrap_or_else(|| "it refuses; see its log, and whether it lets this Pod reach that server".to_owned());
    format!("the proxy at {proxy} (HTTPS_PROXY or HTTP_PROXY; NO_PROXY names the servers that need none): {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_says_which_servers_have_a_proxy() {
        let some = Proxies::new(
            "http://user:canary@proxy:3128".to_owned(),
            "plain:80".to_owned(),
            "10.0.0.0/8,.svc,example.org".to_owned(),
        );
        assert!(!format!("{some:?}").contains("canary"));
        let of = |server: &str| some.of(&server.parse().unwrap()).map(|proxy| place(proxy.uri()));
        assert_eq!(of("https://api.example.com:6443").as_deref(), Some("proxy:3128"));
        assert_eq!(of("http://api.example.com").as_deref(), Some("plain:80"));
        for direct in [
            "https://10.1.2.3",
            "https://kubernetes.default.svc",
            "https://example.org:1",
            "https://127.0.0.1",
            "https://localhost:6443",
            "https://[::1]:6443",
        ] {
            assert_eq!(of(direct), None, "{direct}");
        }
        let none = Proxies::new(String::new(), String::new(), String::new());
        assert!(none.of(&"https://api.example.com".parse().unwrap()).is_none());
    }
}
