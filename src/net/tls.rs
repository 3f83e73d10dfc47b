//! TLS as a client: who is trusted, who we are, and what went wrong in words.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// A certificate with its chain, and its key.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// What a server's certificate is checked by.
pub enum Trust {
    /// Nothing: any certificate will do.
    Anything,
    /// CAs, and certificates that are trusted by themselves, as curl's `--cacert` has it.
    Given(Vec<CertificateDer<'static>>),
    /// The system's CAs.
    System(RootCertStore),
}

/// Why PEM is of no use. Never holds a word of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    #[error("it is not PEM")]
    Malformed,
    #[error("it holds no certificate in PEM")]
    NoCertificate,
    #[error("it holds no unencrypted private key in PEM")]
    NoKey,
}

/// How to speak HTTP/1.1 over TLS. Fails where a certificate of ours and its key do not belong together, or where no
/// given certificate can be used.
pub fn client(trust: Trust, identity: Option<Identity>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match trust {
        Trust::Anything => builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnything(provider))),
        Trust::System(roots) => builder.with_root_certificates(roots),
        Trust::Given(certificates) => {
            let verifier = TrustGiven::new(certificates, provider)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let mut tls = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Connections are few and long: what would be kept of each for the next one costs more than it saves.
    tls.resumption = Resumption::disabled();
    Ok(tls)
}

/// The system's CAs; none in an image from scratch. Reads over a hundred files in a Debian image: blocks. What cannot
/// be read among them is missed only if it is needed.
#[must_use]
pub fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// The certificates in a text, at least one.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    // The library's error may quote the text.
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|_| PemError::Malformed)?;
    if certificates.is_empty() { Err(PemError::NoCertificate) } else { Ok(certificates) }
}

/// The first private key in a text.
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| PemError::NoKey)
}

/// What went wrong on a connection: the errno's text, or TLS's trouble in words. The library's own texts print types.
#[must_use]
pub fn explain(error: &io::Error) -> String {
    error.get_ref().and_then(|inner| inner.downcast_ref()).map_or_else(|| error.to_string(), in_words)
}

/// TLS's trouble in words.
#[must_use]
pub fn in_words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => untrusted(error),
        Error::AlertReceived(alert) => refused(*alert),
        Error::PeerIncompatible(_) => "the server has neither TLS 1.2 nor 1.3, or no cipher of theirs".to_owned(),
        Error::NoApplicationProtocol => "the server does not offer HTTP/1.1 over TLS".to_owned(),
        Error::InvalidMessage(_) | Error::PeerSentOversizedRecord => {
            "the server does not speak TLS here: is it http:// instead?".to_owned()
        }
        _ => "the TLS handshake failed, as the server broke TLS's rules".to_owned(),
    }
}

fn untrusted(error: &CertificateError) -> String {
    use CertificateError as Of;
    let why = match error {
        Of::Expired | Of::ExpiredContext { .. } => "certificate has expired: renew it, or set this node's clock",
        Of::NotValidYet | Of::NotValidYetContext { .. } => {
            "certificate is not valid yet: issue it anew, or set this node's clock"
        }
        Of::UnknownIssuer => "certificate is signed by none of the CAs that are trusted here",
        Of::NotValidForNameContext { expected, .. } => {
            let name = expected.to_str();
            return format!(
                "the server has a certificate not valid for name {name}: put it among the certificate's subject \
                 alternative names, or a name from there into the URL"
            );
        }
        Of::NotValidForName => "certificate is for other names than the URL's host",
        Of::InvalidPurpose | Of::InvalidPurposeContext { .. } => "certificate is not meant for a server",
        Of::Revoked => "certificate is revoked",
        Of::BadSignature => "certificate has a wrong signature",
        Of::UnsupportedSignatureAlgorithmContext { .. }
        | Of::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "certificate has a signature of a kind that is not supported"
        }
        Of::Other(_) => {
            "certificate is a CA's, or malformed: one that is signed by itself is trusted where the file of CAs holds \
             that very certificate"
        }
        _ => "certificate is malformed",
    };
    format!("the server's {why}")
}

fn refused(alert: AlertDescription) -> String {
    use AlertDescription as Of;
    let why = match alert {
        Of::CertificateRequired | Of::NoCertificate => "wants a client certificate",
        Of::BadCertificate
        | Of::UnsupportedCertificate
        | Of::CertificateRevoked
        | Of::CertificateExpired
        | Of::CertificateUnknown
        | Of::UnknownCA
        | Of::AccessDenied
        | Of::DecryptError => "does not accept the client certificate",
        Of::HandshakeFailure | Of::ProtocolVersion | Of::InsufficientSecurity => {
            "has neither TLS 1.2 nor 1.3, no cipher of theirs, or wants a client certificate"
        }
        Of::UnrecognisedName => "does not know the name that it was called by",
        Of::NoApplicationProtocol => "does not offer HTTP/1.1 over TLS",
        _ => return format!("the server ended TLS with alert {}", u8::from(alert)),
    };
    format!("the server {why}")
}

/// Trusts any certificate, and still wants the handshake's signatures to be right.
struct TrustAnything(Arc<CryptoProvider>);

impl fmt::Debug for TrustAnything {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrustAnything")
    }
}

impl ServerCertVerifier for TrustAnything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Trusts what the given certificates sign, and each of them by itself: `openssl req -x509` makes a server's certificate
/// that is its own CA, which webpki takes for a CA alone.
#[derive(Debug)]
struct TrustGiven {
    certificates: Vec<CertificateDer<'static>>,
    webpki: Arc<WebPkiServerVerifier>,
}

impl TrustGiven {
    fn new(certificates: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.iter().cloned());
        let webpki = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build();
        let webpki = webpki.map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        Ok(Self { certificates, webpki })
    }
}

impl ServerCertVerifier for TrustGiven {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        use CertificateError as Of;

        let verified = self.webpki.verify_server_cert(certificate, intermediates, name, ocsp, now);
        // `Other`: a CA's certificate in a server's place. Webpki looks at the dates before it comes to any of these
        // (verify_cert.rs, `check_issuer_independent_properties`), and at the name after them.
        let Err(Error::InvalidCertificate(Of::UnknownIssuer | Of::BadSignature | Of::Other(_))) = &verified else {
            return verified;
        };
        if !self.certificates.iter().any(|given| given == certificate) {
            return verified;
        }
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
