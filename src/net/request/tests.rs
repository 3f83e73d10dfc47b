use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream as Peer};
use std::os::unix::net::{UnixListener, UnixStream as UnixPeer};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};

use http_body_util::Full;
use hyper::Method;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::WebPkiClientVerifier;

use super::*;
use crate::net::proxy::Proxies;

const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(300);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// Head and body of a request with a Content-Length.
fn read_request(peer: &mut impl io::Read) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if peer.read(&mut byte).unwrap() == 0 {
            break;
        }
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    peer.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

/// A server for one connection: reads a request, hands it to the test, lets `answer` do the rest.
fn serve(answer: impl FnOnce(Peer) + Send + 'static) -> (Endpoint, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/-/reload?token=canary", listener.local_addr().unwrap());
    let (send, requests) = channel();
    std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        send.send(read_request(&mut peer)).unwrap();
        answer(peer);
    });
    (endpoint.parse().unwrap(), requests)
}

fn post() -> HttpConfig {
    HttpConfig { method: Method::POST, ..HttpConfig::default() }
}

/// Closing discards what is unsent, and sends RST.
fn reset_when_closed(peer: &Peer) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(peer, nix::sys::socket::sockopt::Linger, &linger).unwrap();
}

/// Stays until the client has gone.
fn hang(mut peer: impl io::Read) {
    let _ = io::copy(&mut peer, &mut io::sink());
}

#[tokio::test]
async fn a_request_carries_method_body_headers_and_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let key = file("key", "key-canary\n");
    let config = HttpConfig {
        method: Method::PUT,
        body: "all of it".to_owned().into(),
        headers: vec!["X-A: one".parse().unwrap(), format!("X-Key: @{}", key.display()).parse().unwrap()],
        auth_file: Some(file("auth", "user:pass-canary\n")),
        ..HttpConfig::default()
    };
    let (endpoint, requests) = serve(|mut peer| peer.write_all(OK).unwrap());
    let response = send(&endpoint, &config, LONG).await.unwrap();
    assert_eq!(response, Response { status: 200, body: b"hello".to_vec(), incomplete: None });
    let request_text = requests.recv().unwrap();
    assert!(request_text.starts_with("PUT /-/reload?token=canary HTTP/1.1\r\n"), "{request_text}");
    for line in ["x-a: one", "x-key: key-canary", "authorization: Basic dXNlcjpwYXNzLWNhbmFyeQ==", "connection: close"]
    {
        assert!(request_text.contains(&format!("\r\n{line}\r\n")), "{line}: {request_text}");
    }
    assert!(request_text.ends_with("all of it"));
    // The file is read on each call.
    file("key", "rotated\n");
    let token = HttpConfig { auth_file: None, token_file: Some(file("token", " tok-canary\n")), ..config };
    let (endpoint, requests) = serve(|mut peer| peer.write_all(OK).unwrap());
    send(&endpoint, &token, LONG).await.unwrap();
    let request_text = requests.recv().unwrap();
    assert!(request_text.contains("\r\nx-key: rotated\r\n"), "{request_text}");
    assert!(request_text.contains("\r\nauthorization: Bearer tok-canary\r\n"), "{request_text}");
}

#[tokio::test]
async fn credentials_that_a_server_echoes_are_masked() {
    let dir = tempfile::tempdir().unwrap();
    let auth = dir.path().join("auth");
    fs::write(&auth, "user:pass-canary\n").unwrap();
    let config = HttpConfig { auth_file: Some(auth), ..post() };
    let (endpoint, _requests) = serve(|mut peer| {
        let body = "you sent Basic dXNlcjpwYXNzLWNhbmFyeQ== that is pass-canary";
        write!(peer, "HTTP/1.1 500 No\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    });
    let response = send(&endpoint, &config, LONG).await.unwrap();
    assert_eq!(String::from_utf8(response.body).unwrap(), "you sent Basic ***== that is ***");
}

#[tokio::test]
async fn a_post_without_a_body_has_a_length_and_errors_are_answers() {
    for status in [200, 302, 429, 500, 503] {
        let (endpoint, requests) = serve(move |mut peer| {
            write!(peer, "HTTP/1.1 {status} X\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n").unwrap();
        });
        assert_eq!(send(&endpoint, &post(), LONG).await.unwrap().status, status);
        assert!(requests.recv().unwrap().contains("\r\ncontent-length: 0\r\n"));
    }
}

#[tokio::test]
async fn a_missing_file_is_named_with_its_flag_and_nothing_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint: Endpoint = "http://127.0.0.1:1/".parse().unwrap();
    let missing = Some(dir.path().join("missing"));
    let header = format!("X: @{}", dir.path().join("missing").display()).parse().unwrap();
    for (flag, config) in [
        ("--reload-header", HttpConfig { headers: vec![header], ..post() }),
        ("--reload-auth-file", HttpConfig { auth_file: missing.clone(), ..post() }),
        ("--reload-token-file", HttpConfig { token_file: missing.clone(), ..post() }),
    ] {
        let error = send(&endpoint, &config, LONG).await.unwrap_err();
        assert!(matches!(error, HttpError::File { .. }) && !error.sent());
        let error = error.to_string();
        assert!(error.contains(flag) && error.contains("/missing: No such file"), "{error}");
    }
    for content in ["no-colon-canary", "user:can\u{1}ary", ""] {
        let auth = dir.path().join("auth");
        fs::write(&auth, content).unwrap();
        let config = HttpConfig { auth_file: Some(auth), ..post() };
        let error = send(&endpoint, &config, LONG).await.unwrap_err();
        assert!(error.to_string().contains("user:password"), "{error}");
        assert!(!format!("{error} {error:?}").contains("canary"));
    }
}

#[tokio::test]
async fn it_is_known_whether_the_request_was_sent() {
    // Nobody listens.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint: Endpoint = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let error = send(&endpoint, &post(), LONG).await.unwrap_err();
    assert!(matches!(error, HttpError::Connect { .. }) && !error.sent(), "{error}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
    // No answer.
    let (endpoint, requests) = serve(hang);
    let error = send(&endpoint, &post(), SHORT).await.unwrap_err();
    assert!(matches!(error, HttpError::Timeout { .. }) && error.sent(), "{error}");
    assert!(!error.to_string().contains("canary"), "{error}");
    requests.recv().unwrap();
    // Closed, and reset, instead of an answer.
    let (endpoint, _requests) = serve(drop);
    let error = send(&endpoint, &post(), LONG).await.unwrap_err();
    assert!(matches!(error, HttpError::Broken { .. }) && error.sent(), "{error}");
    let (endpoint, _requests) = serve(|peer| {
        reset_when_closed(&peer);
    });
    let error = send(&endpoint, &post(), LONG).await.unwrap_err();
    assert!(matches!(error, HttpError::Broken { .. }) && error.sent(), "{error}");
    // A request that the server does not read to its end.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint: Endpoint = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let large = HttpConfig { body: "x".repeat(32 << 20).into(), ..post() };
    let error = send(&endpoint, &large, SHORT).await.unwrap_err();
    assert!(matches!(error, HttpError::Timeout { .. }) && !error.sent(), "{error}");
    // Not HTTP.
    let (endpoint, _requests) = serve(|mut peer| peer.write_all(b"canary\r\n\r\n").unwrap());
    let error = send(&endpoint, &post(), LONG).await.unwrap_err();
    assert!(error.to_string().contains("not HTTP"), "{error}");
    assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
}

#[tokio::test]
async fn large_answers_are_bounded() {
    let (endpoint, _requests) = serve(|mut peer| {
        let body = vec![b'x'; BODY_READ / 2];
        write!(peer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
        peer.write_all(&body).unwrap();
    });
    let response = send(&endpoint, &post(), LONG).await.unwrap();
    assert_eq!((response.status, response.body.len()), (200, BODY_KEPT));
    // Endless.
    let (endpoint, _requests) = serve(|mut peer| {
        peer.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        while peer.write_all(&[b'x'; 4096]).is_ok() {}
    });
    let response = send(&endpoint, &post(), LONG).await.unwrap();
    assert_eq!((response.status, response.body.len()), (200, BODY_KEPT));
    let (endpoint, _requests) = serve(|mut peer| {
        peer.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
        while peer.write_all(b"X-Canary: canary\r\n").is_ok() {}
    });
    let error = send(&endpoint, &post(), LONG).await.unwrap_err();
    assert!(matches!(error, HttpError::Broken { .. }), "{error}");
    assert!(!format!("{error} {error:?}").to_lowercase().contains("canary"), "{error:?}");
}

#[tokio::test]
async fn a_status_is_the_answer_whatever_becomes_of_the_body() {
    // Half of it, some bytes of it for ever, and less than was promised.
    let half: fn(Peer) = hang;
    let endless: fn(Peer) = |mut peer| {
        while peer.write_all(b"1\r\n.\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    for (rest, what) in
        [(half, "no end within 300ms"), (endless, "no end within 300ms"), (drop, "closed the connection")]
    {
        for status in [200, 500] {
            let (endpoint, _requests) = serve(move |mut peer| {
                write!(peer, "HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").unwrap();
                rest(peer);
            });
            let response = send(&endpoint, &post(), SHORT).await.unwrap();
            assert_eq!(response.status, status);
            assert!(response.body.starts_with(b"half"), "{response:?}");
            let why = response.incomplete.unwrap();
            assert!(why.contains(what), "{why}");
        }
    }
}

#[tokio::test]
async fn a_body_is_read_from_its_file_at_each_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("caddy.json");
    let config = HttpConfig { body: format!("@{}", path.display()).into(), ..post() };
    let (endpoint, _requests) = serve(|mut peer| peer.write_all(OK).unwrap());
    let error = send(&endpoint, &config, LONG).await.unwrap_err();
    assert!(matches!(error, HttpError::File(_)) && error.to_string().starts_with("--reload-body /"), "{error}");
    for content in ["{\"apps\": {}}\n", "{}"] {
        fs::write(&path, content).unwrap();
        let (endpoint, requests) = serve(|mut peer| peer.write_all(OK).unwrap());
        send(&endpoint, &config, LONG).await.unwrap();
        let request = requests.recv().unwrap();
        assert!(request.contains(&format!("\r\ncontent-length: {}\r\n", content.len())), "{request}");
        assert!(request.ends_with(&format!("\r\n\r\n{content}")), "{request}");
    }
}

#[tokio::test]
async fn dropping_the_future_closes_the_connection() {
    let (closed, hears) = channel();
    let (endpoint, requests) = serve(move |peer| {
        hang(peer);
        closed.send(()).unwrap();
    });
    assert!(tokio::time::timeout(SHORT, send(&endpoint, &post(), LONG)).await.is_err());
    requests.recv_timeout(LONG).unwrap();
    hears.recv_timeout(LONG).unwrap();
}

#[tokio::test]
async fn unix_sockets_are_spoken_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let endpoint: Endpoint = format!("unix://{}:/reload", path.display()).parse().unwrap();
    let error = send(&endpoint, &post(), LONG).await.unwrap_err().to_string();
    assert!(error.contains("a volume that both containers mount"), "{error}");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut peer, _): (UnixPeer, _) = listener.accept().unwrap();
        let request = read_request(&mut peer);
        peer.write_all(OK).unwrap();
        request
    });
    assert_eq!(send(&endpoint, &post(), LONG).await.unwrap().status, 200);
    let request = server.join().unwrap();
    assert!(
        request.starts_with("POST /reload HTTP/1.1\r\n") && request.contains("\r\nhost: localhost\r\n"),
        "{request}"
    );
}

/// A CA, and a server's and a client's certificate and key from it, all in one directory.
struct Pki {
    dir: TempDir,
    server: ServerConfig,
}

impl Pki {
    fn new(name: &str, ask_for_client: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(dir.path().join("ca.pem"), ca.pem()).unwrap();
        let issue = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
            (certificate, key)
        };
        let (client, client_key) = issue("client");
        fs::write(dir.path().join("client.pem"), client.pem()).unwrap();
        fs::write(dir.path().join("client.key"), client_key.serialize_pem()).unwrap();
        let (server, server_key) = issue(name);
        fs::write(dir.path().join("server.pem"), server.pem()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = if ask_for_client {
            let mut roots = RootCertStore::empty();
            roots.add(ca.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::try_from(server_key.serialize_der()).unwrap();
        let server = builder.with_single_cert(vec![server.der().clone()], key).unwrap();
        Self { dir, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn serve(&self) -> Endpoint {
        serve_tls(self.server.clone()).await
    }
}

/// Answers 200 to whoever gets through, until the test ends.
async fn serve_tls(config: ServerConfig) -> Endpoint {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        loop {
            let (peer, _) = listener.accept().await.unwrap();
            let Ok(peer) = acceptor.accept(peer).await else { continue };
            let answer = hyper::service::service_fn(async |_| {
                Ok::<_, std::convert::Infallible>(hyper::Response::new(Full::new(Bytes::from_static(b"hello"))))
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(peer), answer).await;
        }
    });
    endpoint
}

/// A server with a certificate that is signed by itself, and the file of that certificate.
async fn self_signed(dir: &TempDir, params: CertificateParams) -> (Endpoint, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let endpoint = serve_tls(presenting(vec![certificate.der().clone()], &key)).await;
    let path = dir.path().join("self-signed.pem");
    fs::write(&path, certificate.pem()).unwrap();
    (endpoint, path)
}

fn presenting(chain: Vec<rustls_pki_types::CertificateDer<'static>>, key: &KeyPair) -> ServerConfig {
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    builder.with_no_client_auth().with_single_cert(chain, key).unwrap()
}

/// As `openssl req -x509` has it: its own CA.
fn like_openssl(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// The error, which prints no type of a library's.
async fn refusal(endpoint: &Endpoint, config: &HttpConfig) -> String {
    let error = send(endpoint, config, LONG).await.unwrap_err();
    assert!(!error.sent() || matches!(error, HttpError::Broken { .. }), "{error}");
    let error = error.to_string();
    let camel = error.as_bytes().windows(2).any(|two| two[0].is_ascii_lowercase() && two[1].is_ascii_uppercase());
    assert!(!camel && !error.contains("rustls"), "{error}");
    error
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let given = |path: PathBuf| HttpConfig { ca_file: Some(path), ..post() };
    for params in [like_openssl("127.0.0.1"), CertificateParams::new(["127.0.0.1".to_owned()]).unwrap()] {
        let (endpoint, path) = self_signed(&dir, params).await;
        assert_eq!(send(&endpoint, &given(path), LONG).await.unwrap().status, 200);
    }
    // One that a CA has signed, which is not given.
    let pki = Pki::new("127.0.0.1", false);
    assert_eq!(send(&pki.serve().await, &given(pki.path("server.pem")), LONG).await.unwrap().status, 200);
    // Another one of the same name.
    let (endpoint, _) = self_signed(&dir, like_openssl("127.0.0.1")).await;
    let (_, other) = self_signed(&dir, like_openssl("127.0.0.1")).await;
    let error = refusal(&endpoint, &given(other)).await;
    assert!(error.contains("that very certificate"), "{error}");
    // The name and the dates count all the same.
    let (endpoint, path) = self_signed(&dir, like_openssl("elsewhere.example")).await;
    let error = refusal(&endpoint, &given(path)).await;
    assert!(error.contains("certificate not valid for name 127.0.0.1"), "{error}");
    let mut expired = like_openssl("127.0.0.1");
    expired.not_after = rcgen::date_time_ymd(2001, 2, 3);
    let (endpoint, path) = self_signed(&dir, expired).await;
    let error = refusal(&endpoint, &given(path)).await;
    assert!(error.contains("certificate has expired"), "{error}");
}

#[tokio::test]
async fn tls_trouble_is_said_in_words() {
    // No TLS at all.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let server = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        hang(peer);
    });
    let insecure = HttpConfig { insecure: true, ..post() };
    let error = refusal(&endpoint, &insecure).await;
    assert!(error.contains("is it http:// instead?"), "{error}");
    server.join().unwrap();
    // It wants to know who we are.
    let pki = Pki::new("127.0.0.1", true);
    let error = refusal(&pki.serve().await, &insecure).await;
    assert!(error.contains("wants a client certificate"), "{error}");
    // It wants to know better.
    let other = Pki::new("127.0.0.1", true);
    let config = HttpConfig {
        cert_file: Some(other.path("client.pem")),
        key_file: Some(other.path("client.key")),
        ..insecure.clone()
    };
    let error = refusal(&pki.serve().await, &config).await;
    assert!(error.contains("does not accept the client certificate"), "{error}");
    let config = HttpConfig { ca_file: Some(other.path("ca.pem")), ..post() };
    let error = refusal(&Pki::new("127.0.0.1", false).serve().await, &config).await;
    assert!(error.contains("the server's certificate"), "{error}");
}

#[tokio::test]
async fn a_server_is_believed_by_its_ca_alone() {
    let pki = Pki::new("127.0.0.1", false);
    let endpoint = pki.serve().await;
    let config = HttpConfig { ca_file: Some(pki.path("ca.pem")), ..post() };
    assert_eq!(send(&endpoint, &config, LONG).await.unwrap().body, b"hello");
    let insecure = HttpConfig { insecure: true, ..post() };
    assert_eq!(send(&endpoint, &insecure, LONG).await.unwrap().status, 200);
    let other = Pki::new("127.0.0.1", false);
    let config = HttpConfig { ca_file: Some(other.path("ca.pem")), ..post() };
    let error = send(&endpoint, &config, LONG).await.unwrap_err();
    assert!(!error.sent() && error.to_string().contains("certificate"), "{error}");
    // The system's own CAs, or none at all, in the case of an image from scratch.
    let error = send(&endpoint, &post(), LONG).await.unwrap_err();
    assert!(!error.sent(), "{error}");
    assert!(matches!(error, HttpError::Connect { .. } | HttpError::NoRoots { .. }), "{error}");
    let roots = HttpError::NoRoots { endpoint: String::new(), flag: Owner::Reload.flag("ca-file") };
    assert!(roots.to_string().contains("--reload-ca-file"));
    let misnamed = Pki::new("elsewhere.example", false);
    let endpoint = misnamed.serve().await;
    let config = HttpConfig { ca_file: Some(misnamed.path("ca.pem")), ..post() };
    let error = send(&endpoint, &config, LONG).await.unwrap_err();
    assert!(!error.sent() && error.to_string().contains("certificate not valid for name"), "{error}");
}

#[tokio::test]
async fn a_client_certificate_is_shown_when_given() {
    let pki = Pki::new("127.0.0.1", true);
    let endpoint = pki.serve().await;
    let with = |cert: Option<PathBuf>, key: Option<PathBuf>| HttpConfig {
        ca_file: Some(pki.path("ca.pem")),
        cert_file: cert,
        key_file: key,
        ..post()
    };
    let config = with(Some(pki.path("client.pem")), Some(pki.path("client.key")));
    assert_eq!(send(&endpoint, &config, LONG).await.unwrap().status, 200);
    let both = [fs::read(pki.path("client.key")), fs::read(pki.path("client.pem"))];
    fs::write(pki.path("both.pem"), both.map(Result::unwrap).concat()).unwrap();
    assert_eq!(send(&endpoint, &with(Some(pki.path("both.pem")), None), LONG).await.unwrap().status, 200);
    assert!(send(&endpoint, &with(None, None), LONG).await.is_err());
    fs::write(pki.path("bad.pem"), "-----BEGIN CERTIFICATE-----\ncanary!\n-----END CERTIFICATE-----").unwrap();
    fs::write(pki.path("none.pem"), "canary").unwrap();
    for (flag, config) in [
        ("--reload-key-file", with(None, Some(pki.path("client.key")))),
        ("--reload-key-file", with(Some(pki.path("client.pem")), Some(pki.path("ca.pem")))),
        ("--reload-cert-file", with(Some(pki.path("bad.pem")), Some(pki.path("client.key")))),
        ("--reload-cert-file", with(Some(pki.path("none.pem")), Some(pki.path("client.key")))),
        ("--reload-cert-file", with(Some(pki.path("client.pem")), None)),
        ("--reload-ca-file", HttpConfig { ca_file: Some(pki.path("none.pem")), ..post() }),
        ("--reload-ca-file", HttpConfig { ca_file: Some(pki.path("bad.pem")), ..post() }),
    ] {
        let error = send(&endpoint, &config, LONG).await.unwrap_err();
        assert!(error.to_string().starts_with(flag), "{error}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
    fs::write(pki.path("client.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let error = send(&endpoint, &config, LONG).await.unwrap_err();
    assert!(error.to_string().contains("does not belong"), "{error}");
}

/// A proxy by CONNECT that answers this and reaches the server whatever it is asked for, and the first request to it.
async fn tunnel(to: &Endpoint, answer: &'static str) -> (std::net::SocketAddr, tokio::sync::oneshot::Receiver<String>) {
    let Route::Tcp { port, .. } = to.route else { panic!("{to}") };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, request) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tokio::io::AsyncReadExt::read_u8(&mut client).await.unwrap());
        }
        let _ = asked.send(String::from_utf8(head).unwrap());
        let answer = format!("HTTP/1.1 {answer}\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut client, answer.as_bytes()).await.unwrap();
        let mut server = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    (address, request)
}

#[tokio::test]
async fn server_with_tls_is_reached_through_a_tunnel_that_sees_nothing_of_it() {
    let pki = Pki::new("no-such-host.invalid", false);
    let server = pki.serve().await;
    let through = async |answer| {
        let (proxy, asked) = tunnel(&server, answer).await;
        let proxies = Proxies::new(format!("http://user:hunter2@{proxy}"), String::new(), String::new());
        let headers = vec!["X-Canary: canary".parse().unwrap()];
        let ca_file = Some(pki.path("ca.pem"));
        let config = HttpConfig { proxies: Some(proxies), headers, ca_file, ..HttpConfig::default() };
        let endpoint = "https://no-such-host.invalid/?canary".parse().unwrap();
        (send(&endpoint, &config, LONG).await, asked.await.unwrap(), proxy)
    };
    let (answer, asked, _) = through("200 OK").await;
    assert_eq!(answer.unwrap().body, b"hello");
    assert!(asked.starts_with("CONNECT no-such-host.invalid:443 HTTP/1.1\r\n") && !asked.contains("anary"), "{asked}");
    assert!(asked.to_lowercase().contains("proxy-authorization: basic dxnlcjpodw50zxiy\r\n"), "{asked}");
    for (answer, words) in [("403 Forbidden", "it refuses"), ("407 Who", "USER:PASSWORD")] {
        let (error, _, proxy) = through(answer).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(&format!("the proxy at {proxy} (")) && error.contains(words), "{error}");
        assert!(!error.contains("hunter2") && !error.contains("anary"), "{error}");
    }
}
