//! The connection below kube's layers: to the server, or through a proxy, and then by TLS.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::Connection;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::Intercept;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::Config;
use kube::client::{Body, ClientBuilder, ConfigExt as _, RustlsTlsError};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::client::Resumption;
use tower::util::option_layer;
use tower::{BoxError, Service, ServiceExt as _};

use crate::net::connect::tcp;

/// What is read of an answer at once, in bytes, and its longest head. By itself hyper reads 400 kB at once after a large
/// object, and keeps that room as long as the watch lives.
const BUFFER: usize = 64 << 10;

/// A client for these settings. Reads the system's CAs if it needs them: blocks. `patience`: how long a connection is
/// waited for at most.
pub(super) fn client(
    config: &Config,
    proxy: Option<&Intercept>,
    patience: Duration,
) -> Result<kube::Client, kube::Error> {
    let mut tls = config.rustls_client_config()?;
    // Connections are few and long: what would be kept of each for the next one costs more than it saves.
    tls.resumption = Resumption::disabled();
    let tls = Arc::new(tls);
    let direct = Tcp(patience);
    let dialer = match proxy {
        None => Dialer::Direct(direct),
        Some(proxy) => Dialer::through(proxy, direct, &tls),
    };
    let mut https = HttpsConnectorBuilder::new().with_tls_config(ClientConfig::clone(&tls)).https_or_http();
    if let Some(name) = config.tls_server_name.clone() {
        let name =
            ServerName::try_from(name).map_err(RustlsTlsError::InvalidServerName).map_err(kube::Error::RustlsTls)?;
        https = https.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    over(config, https.enable_http1().wrap_connector(dialer))
}

/// The same over any connection.
fn over<C>(config: &Config, connector: C) -> Result<kube::Client, kube::Error>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + hyper::rt::Read + hyper::rt::Write + Send + Unpin,
    C::Future: Send + Unpin,
    C::Error: Into<BoxError>,
{
    let hyper: legacy::Client<_, Body> =
        legacy::Client::builder(TokioExecutor::new()).http1_max_buf_size(BUFFER).build(connector);
    // No `default_retry`, which waits by itself, and no layer that logs.
    let client = ClientBuilder::new(hyper.map_err(BoxError::from), config.default_namespace.clone());
    let client = client.with_layer(&config.extra_headers_layer()?).with_layer(&option_layer(config.auth_layer()?));
    Ok(client.with_layer(&config.base_uri_layer()).build())
}

/// A connection to the host and port of a URL.
#[derive(Clone)]
struct Tcp(Duration);

impl Service<Uri> for Tcp {
    type Response = TokioIo<TcpStream>;
    type Error = std::io::Error;
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

/// Without the brackets of an IPv6 address.
pub(super) fn host_and_port(url: &Uri) -> (&str, u16) {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = match url.scheme_str() {
        Some("https") => 443,
        Some("socks5" | "socks5h") => 1080,
        _ => 80,
    };
    (host, url.port_u16().unwrap_or(port))
}

/// The way to the server's port.
#[derive(Clone)]
enum Dialer {
    Direct(Tcp),
    /// By CONNECT. The proxy itself may speak TLS.
    Tunnel(String, Tunnel<HttpsConnector<Tcp>>),
    Socks(String, SocksV5<Tcp>),
}

/// Why there is none through a proxy.
#[derive(Debug, thiserror::Error)]
#[error("the proxy at {proxy} gives no connection")]
pub(super) struct NoTunnel {
    /// `host:port`.
    pub(super) proxy: String,
    #[source]
    why: BoxError,
}

impl Dialer {
    fn through(proxy: &Intercept, direct: Tcp, tls: &Arc<ClientConfig>) -> Self {
        let url = proxy.uri().clone();
        let (host, port) = host_and_port(&url);
        let place = format!("{host}:{port}");
        if url.scheme_str().is_some_and(|scheme| scheme.starts_with("socks")) {
            let socks = SocksV5::new(url, direct);
            return Self::Socks(
                place,
                match proxy.raw_auth() {
                    Some((user, password)) => socks.with_auth(user.to_owned(), password.to_owned()),
                    None => socks,
                },
            );
        }
        let tunnel = Tunnel::new(url, HttpsConnector::from((direct, Arc::clone(tls))));
        Self::Tunnel(
            place,
            match proxy.basic_auth() {
                Some(header) => tunnel.with_auth(header.clone()),
                None => tunnel,
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
        match self.clone() {
            Self::Direct(direct) => Box::pin(async move { Ok(MaybeHttpsStream::Http(direct.oneshot(url).await?)) }),
            Self::Tunnel(proxy, tunnel) => {
                Box::pin(
                    async move { tunnel.oneshot(url).await.map_err(|why| NoTunnel { proxy, why: why.into() }.into()) },
                )
            }
            Self::Socks(proxy, socks) => Box::pin(async move {
                let stream = socks.oneshot(url).await.map_err(|why| NoTunnel { proxy, why: why.into() })?;
                Ok(MaybeHttpsStream::Http(stream))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::BodyExt as _;
    use hyper::Request;
    use hyper_util::client::legacy::connect::Connected;
    use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex};
    use tower::service_fn;

    use super::*;

    /// A stream that notes the room of the largest read.
    struct Roomy(DuplexStream, Arc<AtomicUsize>);

    impl AsyncRead for Roomy {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.1.fetch_max(buf.remaining(), Ordering::SeqCst);
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Roomy {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    impl Connection for Roomy {
        fn connected(&self) -> Connected {
            Connected::new()
        }
    }

    #[tokio::test]
    async fn large_answer_leaves_no_large_buffer_to_its_connection() {
        const SIZE: usize = 4 << 20;
        let (ours, mut theirs) = duplex(1 << 20);
        let most = Arc::new(AtomicUsize::new(0));
        let server = tokio::spawn(async move {
            theirs.read_u8().await.unwrap();
            theirs.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes()).await.unwrap();
            theirs.write_all(&vec![b'x'; SIZE]).await.unwrap();
        });
        let stream = Arc::new(std::sync::Mutex::new(Some(Roomy(ours, most.clone()))));
        let connector = service_fn(move |_: Uri| {
            let stream = stream.lock().unwrap().take();
            Box::pin(async move { Ok::<_, io::Error>(TokioIo::new(stream.expect("one connection"))) })
        });
        let client = over(&Config::new("http://server".parse().unwrap()), connector).unwrap();
        let answer = client.send(Request::new(Body::empty())).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), SIZE);
        server.await.unwrap();
        let most = most.load(Ordering::SeqCst);
        assert!(most <= 2 * BUFFER, "room for {most} bytes");
    }
}
