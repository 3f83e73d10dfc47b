//! `--listen-cert-file`: how a server speaks TLS.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::newest::Newest;
use crate::net::credentials::FileError;
use crate::net::tls;

const CERTIFICATE: &str = "--listen-cert-file";
const KEY: &str = "--listen-key-file";
const CLIENTS: &str = "--listen-client-ca-file";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM, the leaf first.
    pub cert_file: PathBuf,
    /// PEM. Without it, the key is in `cert_file`.
    pub key_file: Option<PathBuf>,
    /// Clients must show a certificate that one in here has signed.
    pub client_ca_file: Option<PathBuf>,
    /// TLS 1.2 is refused.
    pub newest_only: bool,
}

pub(super) fn load(config: &TlsConfig) -> Result<Newest<ServerConfig>, FileError> {
    let key = config.key_file.clone().map_or((CERTIFICATE, config.cert_file.clone()), |path| (KEY, path));
    let mut files = vec![(CERTIFICATE, config.cert_file.clone()), key];
    files.extend(config.client_ca_file.clone().map(|path| (CLIENTS, path)));
    let (named, newest_only) = (files.clone(), config.newest_only);
    Newest::load(files, Box::new(move |bytes| server(&named, bytes, newest_only)))
}

/// `bytes`: of each file.
fn server(files: &[(&'static str, PathBuf)], bytes: &[Vec<u8>], newest_only: bool) -> Result<ServerConfig, FileError> {
    let unusable = |index: usize, why: &dyn ToString| {
        let (flag, path) = &files[index];
        FileError::new(flag, path, why.to_string())
    };
    let chain = tls::certificates(&bytes[0]).map_err(|error| unusable(0, &error))?;
    let key = tls::private_key(&bytes[1]).map_err(|error| unusable(1, &error))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let versions = [&TLS13, &TLS12];
    let builder = builder.with_protocol_versions(if newest_only { &versions[..1] } else { &versions });
    let builder = builder.map_err(|_| unusable(0, &"no TLS is spoken by these flags"))?;
    let builder = match bytes.get(2) {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            let given = tls::certificates(pem).map_err(|error| unusable(2, &error))?;
            roots.add_parsable_certificates(given);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|_| unusable(2, &"its certificates cannot be used"))?)
        }
    };
    let why = "its key does not belong to the certificate, or is of a kind not supported";
    let mut tls = builder.with_single_cert(chain, key).map_err(|_| unusable(1, &why))?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Probes and scrapes are few: what would be kept of each for the next one costs more than it saves.
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    Ok(tls)
}
