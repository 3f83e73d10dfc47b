//! The connection below kube's layers: to the server, or through a proxy, and then by TLS.

use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::Connection;
use hyper_util::rt::TokioExecutor;
use kube::Config;
use kube::client::{Body, ClientBuilder, ConfigExt as _, RustlsTlsError};
use rustls_pki_types::ServerName;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::client::Resumption;
use tower::util::option_layer;
use tower::{BoxError, Service, ServiceExt as _};

use crate::net::proxy::{Dialer, Intercept, Tcp};

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

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll};

    use http_body_util::BodyExt as _;
    use hyper::Request;
    use hyper_util::client::legacy::connect::Connected;
    use hyper_util::rt::TokioIo;
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
