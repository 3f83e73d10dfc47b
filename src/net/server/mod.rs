//! Who may ask `--listen`: TLS, client certificates, users. Whatever their files hold, it is never served without.

mod newest;
mod tls;
mod users;

use std::path::PathBuf;
use std::time::Duration;

use hyper::header::HeaderValue;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use self::newest::Newest;
pub use self::tls::TlsConfig;
use self::users::Users;
use super::credentials::FileError;

/// How long a client may take to agree on TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How each record of a handshake begins (RFC 8446, section 5.1).
const OF_A_HANDSHAKE: u8 = 22;
/// As Go's servers answer.
const NO_TLS: &[u8] = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// `--listen-cert-file`, `--listen-users-file` and what goes with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardConfig {
    pub tls: Option<TlsConfig>,
    pub users_file: Option<PathBuf>,
}

/// What [`GuardConfig`]'s files hold, as new as it makes sense.
pub struct Guard {
    tls: Option<Newest<ServerConfig>>,
    users: Option<Users>,
}

impl Guard {
    /// Fails where a file is of no use.
    pub fn load(config: &GuardConfig) -> Result<Self, FileError> {
        Ok(Self {
            tls: config.tls.as_ref().map(tls::load).transpose()?,
            users: config.users_file.as_deref().map(Users::load).transpose()?,
        })
    }

    #[must_use]
    pub const fn speaks_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The same connection within TLS; `None` where the client does not get that far, or in time.
    pub async fn handshake(&self, mut stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let tls = self.tls.as_ref()?;
        let agreed = async {
            let mut first = [0];
            if stream.peek(&mut first).await.ok()? == 1 && first[0] != OF_A_HANDSHAKE {
                // What is not read would make the end of the connection overtake the answer.
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(NO_TLS).await;
                return None;
            }
            TlsAcceptor::from(tls.get()).accept(stream).await.ok()
        };
        timeout(HANDSHAKE, agreed).await.ok().flatten()
    }

    /// Whether a request with this header `Authorization` is answered.
    pub async fn admits(&self, authorization: Option<&HeaderValue>) -> bool {
        match &self.users {
            None => true,
            Some(users) => users.admit(authorization).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_agree_on_tls_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("both");
        let own = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap();
        std::fs::write(&path, own.cert.pem() + &own.signing_key.serialize_pem()).unwrap();
        let tls = TlsConfig { cert_file: path, key_file: None, client_ca_file: None, newest_only: false };
        let guard = Guard::load(&GuardConfig { tls: Some(tls), users_file: None }).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for said in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            client.write_all(said).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let began = Instant::now();
            assert!(guard.handshake(stream).await.is_none());
            assert_eq!(began.elapsed().as_secs(), HANDSHAKE.as_secs());
        }
    }
}
