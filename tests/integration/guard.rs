//! Who may ask `--listen`: TLS, client certificates, users; what their files become.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned};
use trimtab::net::tls::{self, Trust};

use super::support::sidecar::{SOON, Sidecar, Volume, eventually, run, trimtab};
use super::support::stage::Stage;

const PASSWORD: &str = "c4n4ry";

/// A CA of its own.
pub struct Pki(CertifiedIssuer<'static, KeyPair>);

impl Pki {
    pub fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate with its issuer's name for one that signed itself.
        params.distinguished_name.push(DnType::CommonName, "CA");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn ca(&self) -> String {
        self.0.pem()
    }

    /// A certificate for 127.0.0.1, and its key.
    pub fn issue(&self) -> [String; 2] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        [params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem()]
    }

    /// A client that trusts this CA, and shows what [`Self::issue`] made, if anything.
    pub fn client(&self, shows: Option<&[String; 2]>) -> Arc<ClientConfig> {
        let shows = shows.map(|[certificate, key]| {
            (tls::certificates(certificate.as_bytes()).unwrap(), tls::private_key(key.as_bytes()).unwrap())
        });
        Arc::new(tls::client(Trust::Given(tls::certificates(self.ca().as_bytes()).unwrap()), shows).unwrap())
    }
}

/// The hash of a password, as cheap as they come.
pub fn hash(password: &str) -> String {
    bcrypt::hash(password, 4).unwrap()
}

/// A GET, by TLS if `client` is given: all that is answered.
pub fn get(
    address: SocketAddr,
    client: Option<&Arc<ClientConfig>>,
    path: &str,
    user: Option<(&str, &str)>,
) -> io::Result<String> {
    let authorization = user.map(|(name, password)| {
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
        format!("Authorization: Basic {pair}\r\n")
    });
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{}\r\n", authorization.unwrap_or_default());
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut answer = Vec::new();
    match client {
        None => {
            stream.write_all(request.as_bytes())?;
            stream.read_to_end(&mut answer)?;
        }
        Some(client) => {
            let name = ServerName::try_from("127.0.0.1").unwrap();
            let mut stream = StreamOwned::new(ClientConnection::new(client.clone(), name).unwrap(), stream);
            stream.write_all(request.as_bytes())?;
            stream.read_to_end(&mut answer)?;
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The status code of an answer; 0 where there was none.
pub fn code(answer: &io::Result<String>) -> u16 {
    answer.as_ref().ok().and_then(|answer| answer.split(' ').nth(1)?.parse().ok()).unwrap_or_default()
}

/// A stage with certificates in a volume, and users.
struct Ground {
    stage: Stage,
    pki: Pki,
    certificates: Volume,
}

impl Ground {
    fn new() -> Self {
        let (stage, pki) = (Stage::new("1"), Pki::new());
        let [certificate, key] = pki.issue();
        let files = [("tls.crt", &*certificate), ("tls.key", &*key), ("ca.crt", &*pki.ca())];
        let certificates = Volume::new(stage.at("tls"), &files);
        stage.write("users", format!("basic_auth_users:\n  me: {}\n", hash(PASSWORD)));
        Self { stage, pki, certificates }
    }

    fn tls(&self) -> [String; 4] {
        let at = |name: &str| self.stage.text(&format!("tls/{name}"));
        ["--listen-cert-file".into(), at("tls.crt"), "--listen-key-file".into(), at("tls.key")]
    }

    fn start(&self, more: &[&str]) -> Sidecar {
        let tls = self.tls();
        let sidecar = self.stage.start(&[&tls.each_ref().map(String::as_str)[..], more].concat());
        sidecar.until_idle();
        sidecar
    }
}

#[test]
fn a_guarded_listener_is_for_its_users_and_by_tls_alone() {
    let ground = Ground::new();
    let users = ground.stage.text("users");
    let sidecar = ground.start(&["--listen-users-file", &users]);
    let (address, client) = (sidecar.address("--listen"), ground.pki.client(None));
    let ask = |path: &str, user| get(address, Some(&client), path, user);
    for path in ["/livez", "/readyz", "/healthz", "/metrics"] {
        // The second time from memory.
        for _ in 0..2 {
            assert_eq!(code(&ask(path, Some(("me", PASSWORD)))), 200, "{path}");
        }
    }
    assert_eq!(code(&ask("/nowhere", Some(("me", PASSWORD)))), 404);
    for path in ["/livez", "/metrics", "/nowhere"] {
        for user in [None, Some(("me", "wrong")), Some(("me", "")), Some(("you", PASSWORD)), Some(("", ""))] {
            let answer = ask(path, user);
            assert_eq!(code(&answer), 401, "{path} {user:?}: {answer:?}");
            assert!(answer.unwrap().to_lowercase().contains("\r\nwww-authenticate: basic\r\n"));
        }
    }
    let plain = get(address, None, "/metrics", Some(("me", PASSWORD))).unwrap();
    assert!(plain.starts_with("HTTP/1.0 400 Bad Request\r\n") && plain.contains("HTTPS"), "{plain}");
    assert_eq!(code(&get(address, Some(&Pki::new().client(None)), "/livez", None)), 0, "another CA's client");

    // What asks at --admin needs neither.
    let admin = sidecar.address("--admin").to_string();
    for ask in ["status", "retry"] {
        assert_eq!(run(trimtab().args([ask, "--admin", &admin])).0, Some(0), "{ask}");
    }
    assert!(!sidecar.log().contains(PASSWORD) && !sidecar.status().to_string().contains(PASSWORD));
}

#[test]
fn what_rotates_counts_at_once_and_what_is_bad_is_logged_once() {
    let mut ground = Ground::new();
    let users = ground.stage.text("users");
    let sidecar = ground.start(&["--listen-users-file", &users]);
    let address = sidecar.address("--listen");
    let code = |pki: &Pki, password| code(&get(address, Some(&pki.client(None)), "/livez", Some(("me", password))));
    assert_eq!(code(&ground.pki, PASSWORD), 200);

    let other = Pki::new();
    let [certificate, key] = other.issue();
    let warnings =
        |flag: &str| sidecar.log().lines().filter(|line| line.contains("goes on") && line.contains(flag)).count();
    // A key that is another one's, no key, and no file.
    for (n, bad) in [Some(other.issue()[1].clone()), Some("no key".to_owned()), None].into_iter().enumerate() {
        let mut files = vec![("tls.crt", &*certificate)];
        files.extend(bad.as_deref().map(|bad| ("tls.key", bad)));
        ground.certificates.swap(&files);
        for _ in 0..3 {
            assert_eq!((code(&ground.pki, PASSWORD), code(&other, PASSWORD)), (200, 0), "{bad:?}");
        }
        assert_eq!(warnings("--listen-key-file"), n + 1, "{}", sidecar.log());
    }
    ground.certificates.swap(&[("tls.crt", &*certificate), ("tls.key", &*key)]);
    assert_eq!((code(&other, PASSWORD), code(&ground.pki, PASSWORD)), (200, 0));

    // In place, as an editor does.
    for bad in ["basic_auth_users: {me: c4n4ry}", "", "basic_auth_users: [", "basic_auth_users: {}"] {
        ground.stage.write("users", bad);
        assert_eq!((code(&other, PASSWORD), code(&other, "new")), (200, 401), "{bad}");
    }
    assert_eq!(warnings("--listen-users-file"), 4, "{}", sidecar.log());
    ground.stage.write("users", format!("basic_auth_users: {{you: {0}, me: {0}}}", hash("new")));
    assert_eq!((code(&other, "new"), code(&other, PASSWORD)), (200, 401));
    assert!(!sidecar.log().contains(PASSWORD) && !sidecar.log().contains("$2b$"), "{}", sidecar.log());
}

#[test]
fn clients_show_a_certificate_that_the_ca_has_signed() {
    let ground = Ground::new();
    let ca = ground.stage.text("tls/ca.crt");
    let sidecar = ground.start(&["--listen-client-ca-file", &ca, "--listen-min-tls", "1.3"]);
    let address = sidecar.address("--listen");
    let code = |client| code(&get(address, Some(&client), "/metrics", None));
    assert_eq!(code(ground.pki.client(Some(&ground.pki.issue()))), 200);
    assert_eq!(code(ground.pki.client(None)), 0);
    assert_eq!(code(ground.pki.client(Some(&Pki::new().issue()))), 0);
}

#[test]
fn nothing_older_than_asked_for_is_spoken() {
    let ground = Ground::new();
    for (least, code) in [("1.2", Some(0)), ("1.3", Some(35))] {
        let mut sidecar = ground.start(&["--listen-min-tls", least]);
        let url = format!("https://{}/livez", sidecar.address("--listen"));
        let mut curl = std::process::Command::new("curl");
        let ca = ground.stage.text("tls/ca.crt");
        let (ended, said) = run(curl.args(["-sS", "--tls-max", "1.2", "--cacert", &ca, &url]));
        assert_eq!(ended, code, "{least}: {said}");
        sidecar.kill();
    }
}

#[test]
fn clients_that_are_slow_to_agree_hold_up_nobody() {
    let ground = Ground::new();
    let sidecar = ground.start(&[]);
    let (address, client) = (sidecar.address("--listen"), ground.pki.client(None));
    // Some say nothing, some begin a record that does not end.
    let slow: Vec<_> = (0..40)
        .map(|n| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all([&b""[..], b"\x16\x03\x01\x02\x00\x01"][n % 2]).unwrap();
            stream
        })
        .collect();
    let asked = Instant::now();
    assert_eq!(code(&get(address, Some(&client), "/livez", None)), 200);
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    // The oldest had to go.
    slow[0].set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let gone = (&slow[0]).read(&mut [0]).map_err(|error| error.kind());
    assert!(matches!(gone, Ok(0) | Err(io::ErrorKind::ConnectionReset)), "{gone:?}");
}

#[test]
fn one_file_may_hold_both_and_passwords_need_no_tls() {
    let ground = Ground::new();
    let both = ground.stage.write("both", ground.pki.issue().concat());
    let users = ground.stage.text("users");
    let mut sidecar = ground.stage.start(&["--listen-cert-file", &both]);
    assert_eq!(code(&get(sidecar.address("--listen"), Some(&ground.pki.client(None)), "/livez", None)), 200);
    sidecar.kill();
    let sidecar = ground.stage.start(&["--listen-users-file", &users]);
    let address = sidecar.address("--listen");
    assert_eq!(code(&get(address, None, "/livez", Some(("me", PASSWORD)))), 200);
    assert_eq!(code(&get(address, None, "/livez", None)), 401);
}

#[test]
fn files_of_no_use_end_the_start_and_are_named() {
    let ground = Ground::new();
    let [certificate, key] = ["tls/tls.crt", "tls/tls.key"].map(|name| ground.stage.text(name));
    let at = |name: &str, content: &str| ground.stage.write(name, content);
    let bcrypt = |text: &str| at(&format!("users-{}", text.len()), &format!("basic_auth_users: {{me: {text}}}"));
    let none = ground.stage.text("none");
    for (flags, said) in [
        (vec!["--listen-cert-file", &none], "--listen-cert-file"),
        (vec!["--listen-cert-file", &key], "no certificate"),
        (vec!["--listen-cert-file", &certificate], "no unencrypted private key"),
        (
            vec!["--listen-cert-file", &certificate, "--listen-key-file", &at("k", &Pki::new().issue()[1])],
            "does not belong",
        ),
        (
            vec!["--listen-cert-file", &certificate, "--listen-key-file", &key, "--listen-client-ca-file", &key],
            "--listen-client-ca-file",
        ),
        (vec!["--listen-users-file", &at("empty", "")], "no users"),
        (vec!["--listen-users-file", &at("other", "tls_server_config: {}")], "no users"),
        (vec!["--listen-users-file", &at("list", "basic_auth_users: [c4n4ry]")], "no YAML"),
        (vec!["--listen-users-file", &bcrypt("c4n4ry")], "htpasswd -nB me"),
        (vec!["--listen-users-file", &bcrypt(&hash("x").replace("$04$", "$31$"))], "a cost of 31"),
    ] {
        let flags = ground.stage.flags(&flags);
        let (code, log) = run(trimtab().args(&flags).args(["--listen", "127.0.0.1:0", "--admin", "off"]));
        assert!(code == Some(1) && log.contains(said) && !log.contains(PASSWORD), "{flags:?}: {code:?} {log}");
        let (code, found) = run(trimtab().arg("check").args(&flags));
        assert!(code == Some(1) && found.contains(said), "{flags:?}: {code:?} {found}");
        // Nothing is served then.
        let (code, log) = run(trimtab().args(&flags).arg("--once"));
        assert_eq!(code, Some(0), "{log}");
    }
    for flags in [["--listen-key-file", &key], ["--listen-client-ca-file", &key], ["--listen-min-tls", "1.3"]] {
        let (code, said) = run(trimtab().args(ground.stage.flags(&flags)));
        assert!(code == Some(64) && said.contains("goes with --listen-cert-file"), "{said}");
    }
}

/// A password that is checked takes its time in a thread of its own.
#[test]
fn a_check_of_a_password_holds_up_nothing_else() {
    let ground = Ground::new();
    // Seconds for each, without optimisation.
    let costly = bcrypt::hash(PASSWORD, 4).unwrap().replace("$04$", "$16$");
    let users = ground.stage.write("users", format!("basic_auth_users: {{me: '{costly}', you: '{}'}}", hash("x")));
    let sidecar = ground.stage.start(&["--listen-users-file", &users]);
    let address = sidecar.address("--listen");
    assert_eq!(code(&get(address, None, "/livez", Some(("you", "x")))), 200);
    let _slow: Vec<_> =
        (0..4).map(|_| std::thread::spawn(move || get(address, None, "/", Some(("me", "wrong"))))).collect();
    eventually("one is checked", || {
        let threads = fs::read_to_string(format!("/proc/{}/status", sidecar.pid())).unwrap();
        let count: u32 = threads.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok())?;
        (count > 1).then_some(())
    });
    // Neither the loop nor who is known already waits for it.
    assert_eq!(code(&get(address, None, "/livez", Some(("you", "x")))), 200);
    assert_eq!(sidecar.request("--admin", "GET", "/status").unwrap().0, 200);
}
