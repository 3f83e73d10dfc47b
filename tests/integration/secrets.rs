//! Guarantee 7: no secret byte reaches a log, a metric, the status, an error, a command line, or a file more readable
//! than its mode says, not for a moment.
//!
//! A canary lives wherever a secret can. Every failing path that can be found is driven; what comes out must not hold
//! eight bytes of it in a row, plain, in base64 or in hex.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams, PostParams};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::apiserver::{ADMIN, ApiServer};
use super::support::hook::{Answer, Hook};
use super::support::port::free_port;
use super::support::scene::Layout;
use super::support::sidecar::{Sidecar, Volume, eventually, output_of, trimtab};

/// A name that a template can hold as well.
const WORD: &str = "kQ7vX2mWz9RtL4pB";
const PEM: &str =
    "-----BEGIN vX0sYq3RkU-----\nMIIEvQIBADANBgkq9hW7u\nhkiG9w0BAQEFAASCBKc5Tz\n-----END vX0sYq3RkU-----\n";
const SPECIAL: &str = "pE\"5%tW\\$b'8{{nJ}}&<yD>\té6uM";
const JSON: &str = r#"{"uRq8sLp2Xe": "hT5wNz0cVb7K", "oG3dYf": [90817263, "iA6jSk4PmQ"]}"#;
const YAML: &str = "zK4nBv8Xr: gH1mCt6Wq0\nlist:\n  - rD5xPs9Ly3\n  - &jV eF7kUa2No\n";

const FORMS: [(&str, &str); 5] = [("word", WORD), ("pem", PEM), ("special", SPECIAL), ("json", JSON), ("yaml", YAML)];

/// How many bytes in a row are a leak.
const PIECE: usize = 8;

/// What must occur nowhere: each piece of each canary, plain, in base64 and in hex.
fn pieces() -> BTreeSet<Vec<u8>> {
    let mut pieces = BTreeSet::new();
    // Words that canaries of this form share with any text.
    let common = ["-----BEGIN ", " -----", "-----END ", "list:\n  - "];
    for (_, value) in FORMS {
        let hex = value.bytes().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let mut texts = vec![STANDARD_NO_PAD.encode(value), hex];
        texts.extend(value.lines().flat_map(|line| [line.trim().to_owned(), STANDARD_NO_PAD.encode(line.trim())]));
        for text in texts {
            pieces.extend(text.as_bytes().windows(PIECE).map(<[u8]>::to_vec));
        }
    }
    pieces.retain(|piece| !common.iter().any(|common| common.as_bytes().windows(PIECE).any(|window| window == piece)));
    pieces
}

/// The first piece of a canary in these bytes.
fn leak(bytes: &[u8]) -> Option<String> {
    thread_local!(static PIECES: BTreeSet<Vec<u8>> = pieces());
    PIECES.with(|pieces| {
        let piece = bytes.windows(PIECE).find(|window| pieces.contains(*window))?;
        Some(String::from_utf8_lossy(piece).into_owned())
    })
}

#[track_caller]
fn assert_silent(place: &str, bytes: impl AsRef<[u8]>) {
    let bytes = bytes.as_ref();
    if let Some(piece) = leak(bytes) {
        panic!("{place} holds {piece:?} of a canary:\n{}", String::from_utf8_lossy(bytes));
    }
}

/// A place to work in.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(place.at("tmp")).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    /// Writes a file whole.
    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        fs::write(self.at("new"), text).unwrap();
        fs::rename(self.at("new"), self.at(name)).unwrap();
        self.text(name)
    }

    fn output(&self) -> PathBuf {
        self.at("conf")
    }

    /// A sidecar with these flags, besides the output and quick reactions.
    fn sidecar(&self, env: &[(&str, &str)], args: &[&str]) -> Sidecar {
        let temporary = self.text("tmp");
        let env: Vec<_> = env.iter().copied().chain([("TMPDIR", temporary.as_str())]).collect();
        let conf = self.text("conf");
        let usual = [
            "--output",
            &conf,
            "--log-level",
            "debug",
            "--debounce",
            "5ms",
            "--retry-min",
            "20ms",
            "--retry-max",
            "50ms",
        ];
        Sidecar::start_with(&self.at("log"), &env, usual.iter().chain(args))
    }

    /// Runs it to its end with these flags.
    fn run(&self, env: &[(&str, &str)], args: &[&str]) -> Output {
        let mut command = trimtab();
        command.env("TMPDIR", self.text("tmp")).envs(env.iter().copied()).args(args);
        let output = output_of(&mut command);
        assert_silent("standard output", &output.stdout);
        assert_silent("standard error", &output.stderr);
        output
    }

    /// Looks everywhere that the sidecar writes to.
    #[track_caller]
    fn inspect(&self, sidecar: &Sidecar) {
        let (_, status) = sidecar.request("--admin", "GET", "/status").expect("/status answers");
        assert_silent("/status", status);
        let (_, metrics) = sidecar.request("--listen", "GET", "/metrics").expect("/metrics answers");
        assert_silent("/metrics", metrics);
        let pid = sidecar.pid();
        assert_silent("the command line", fs::read(format!("/proc/{pid}/cmdline")).unwrap());
        self.inspect_files();
    }

    #[track_caller]
    fn inspect_files(&self) {
        assert_silent("the log", fs::read(self.at("log")).unwrap_or_default());
        assert_eq!(fs::read_dir(self.at("tmp")).unwrap().count(), 0, "a temporary file");
        if self.output().exists() {
            inspect_output(&self.output(), 0o640);
        }
    }
}

/// No name holds a canary, and a file that holds one has exactly this mode.
#[track_caller]
fn inspect_output(dir: &Path, mode: u32) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        assert_silent("a name in the output", path.to_str().unwrap());
        // A temporary name may be gone by now.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_symlink() {
            assert_silent("a link in the output", fs::read_link(&path).unwrap().to_str().unwrap());
        } else if metadata.is_dir() {
            inspect_output(&path, mode);
        } else if fs::read(&path).is_ok_and(|bytes| leak(&bytes).is_some()) {
            assert_eq!(metadata.mode() & 0o7777, mode, "{} holds a canary", path.display());
            assert!(path.components().any(|part| part.as_os_str().to_str().unwrap().starts_with("..trimtab-")));
        }
    }
}

/// Waits until inputs other than `before` are rejected; why they were.
#[track_caller]
fn rejection(sidecar: &Sidecar, before: &mut Value, what: &str) -> String {
    let status = sidecar.until(what, |status| {
        let digest = &status["quarantine"]["digest"];
        digest.is_string() && *digest == status["observed"]["digest"] && digest != before
    });
    *before = status["quarantine"]["digest"].clone();
    assert_silent(what, status.to_string());
    status["quarantine"]["reason"].as_str().unwrap().to_owned()
}

/// Templates that take a secret and fail. `data` has all forms.
const FAILING: &[&str] = &[
    "{{ data.word.attr }}",
    "{{ data.json.uRq.deep }}",
    "{{ data[data.word] }}",
    "{{ data[data.pem].x }}",
    "{{ data.json | from_json | attr(data.word) | upper }}",
    "{{ (data.json | from_json).nope }}",
    "{{ data.word | from_json }}",
    "{{ data.pem | from_json }}",
    "{{ data.special | from_json }}",
    "{{ (data.json ~ data.word) | from_json }}",
    "{{ (data.yaml ~ '\\t- : :' ~ data.word) | from_yaml }}",
    "{{ ('[' ~ data.word) | from_yaml }}",
    "{{ (data.yaml ~ '- *' ~ data.word) | from_yaml }}",
    "{{ data.word | from_toml }}",
    "{{ data.pem | from_toml }}",
    "{{ data.json | from_toml }}",
    "{{ ('a = 1\\na = \"' ~ data.word ~ '\"') | from_toml }}",
    "{{ data.word | int }}",
    "{{ data.word | float }}",
    "{{ data.special | b64decode }}",
    "{{ data.pem | b64decode }}",
    "{{ data.binary }}",
    "{{ data.binary ~ data.word }}",
    "{{ data.binary | from_json }}",
    "{{ data.word + 1 }}",
    "{{ 1 + data.word }}",
    "{{ -data.word }}",
    "{{ data.word / 2 }}",
    "{{ data.word // data.pem }}",
    "{{ data.word * data.word }}",
    "{{ data.word % 7 }}",
    "{{ data.word ** 2 }}",
    "{{ data.word in 1 }}",
    "{{ data.word() }}",
    "{{ data.word.nope() }}",
    "{{ data.word | nosuch }}",
    "{{ data.word is nosuch }}",
    "{{ data.word | kQ7(data.word) }}",
    "{{ 5 | join(data.word) }}",
    "{{ [data.word] | join(',', 1, 2, data.word) }}",
    "{{ none | required(data.word) }}",
    "{{ data.nope | required('no ' ~ data.word) }}",
    "{{ '' | required(data.pem) }}",
    "{{ data.word | required(1) }}",
    "{{ configmap(data.word) }}",
    "{{ secret(data.word ~ '/' ~ data.word) }}",
    "{{ dir(data.special) }}",
    "{{ env(data.word) }}",
    "{{ env('CANARY').attr }}",
    "{{ env('CANARY') | from_json }}",
    "{{ none | required(env('CANARY')) }}",
    "{% include data.word %}",
    "{% include 'x' ~ data.word %}",
    "{% include [data.word, data.pem] %}",
    "{% import data.word as x %}{{ x }}",
    "{% extends data.word %}",
    "{{ data.word | to_json(indent=data.word) }}",
    "{{ data.word | to_json(nope=data.word) }}",
    "{{ data.word | to_toml }}",
    "{{ [data.word] | quote }}",
    "{{ [data.word] | sha256 }}",
    "{{ range(data.word) }}",
    "{{ data.word }}{{ range(100000000000) | list }}",
    "{% for a, b in [data.word] %}{{ a }}{% endfor %}",
    "{% for a, b in [[data.word]] %}{{ a }}{% endfor %}",
    "{% for a in 5 %}{{ data.word }}{% endfor %}{{ data.word.x }}",
    "{% set a, b = data.word %}{{ a }}{{ data.word.x }}",
    "{{ data.word | round }}",
    "{{ data.word | abs }}",
    "{{ data.word | dictsort }}",
    "{{ data.word | items }}",
    "{{ data.word | batch('x') }}",
    "{{ data.word | replace(1) }}",
    "{{ [data.word] | map(data.word) | list }}",
    "{{ [data.word] | map('nosuch') | list }}",
    "{{ [data.word] | select(data.word) | list }}",
    "{{ data.word[1:'x'] }}",
    "{{ data.word['x'].y }}",
    "{{ dict(data.word) }}",
    "{% macro m(a) %}{{ a.x }}{% endmacro %}{{ m(data.word) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(data.word, data.pem) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=data.word) }}",
    "{% macro m(a) %}{{ m(a) }}{% endmacro %}{{ m(data.word) }}",
    "{% call data.word() %}{% endcall %}",
    "{% filter nosuch %}{{ data.word }}{% endfilter %}",
    "{% for i in range(100000) %}{% for j in range(10000) %}{{ data.word }}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(10000) %}{% set x = data.word %}{% endfor %}{% endfor %}",
    "{% set x %}{{ data.word.nope }}{% endset %}{{ x }}",
    "{{ data.word }} {% if %}",
    "{{ data.word | }}",
    "{{ data.word }",
];

/// Drives all failing templates over sources that hold all forms; `name` calls them in `data`.
fn drive_templates(place: &Place, format: &str, source: &[&str]) {
    let template = place.write("app.conf.j2", "{{ data.word }}\n");
    let args = ["--template", &template, "--secret-env", "CANARY", "--log-format", format, "--max-size", "1Mi"];
    let sidecar = place.sidecar(&[("CANARY", WORD)], &[source, &args].concat());
    sidecar.until_idle();
    assert_eq!(fs::read_to_string(place.at("conf/app.conf")).unwrap(), format!("{WORD}\n"));
    let mut before = Value::Null;
    for (number, text) in FAILING.iter().enumerate() {
        place.write("app.conf.j2", format!("# {number}\n{text}\n"));
        let reason = rejection(&sidecar, &mut before, text);
        assert!(reason.contains("app.conf.j2"), "{text}: {reason}");
    }
    assert_eq!(fs::read_to_string(place.at("conf/app.conf")).unwrap(), format!("{WORD}\n"), "the last good one stays");
    place.inspect(&sidecar);
}

fn secret_dir(place: &Place) -> PathBuf {
    let dir = place.at("creds");
    fs::create_dir(&dir).unwrap();
    for (key, value) in FORMS {
        fs::write(dir.join(key), value).unwrap();
    }
    fs::write(dir.join("binary"), [WORD.as_bytes(), &[0xff, 0xfe]].concat()).unwrap();
    dir
}

#[test]
fn failing_templates_over_a_secret_directory_reveal_nothing() {
    let place = Place::new();
    let dir = format!("creds={}", secret_dir(&place).display());
    drive_templates(&place, "text", &["--watch-dir", &dir, "--secret-dir", "creds"]);
}

/// A Secret with all forms.
async fn secret(server: &ApiServer, namespace: &str, name: &str, labels: Value) {
    let mut data: BTreeMap<_, _> =
        FORMS.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec()))).collect();
    data.insert("binary".to_owned(), ByteString([WORD.as_bytes(), &[0xff, 0xfe]].concat()));
    let mut secret = Secret { data: Some(data), ..Secret::default() };
    secret.metadata.name = Some(name.to_owned());
    secret.metadata.labels = serde_json::from_value(labels).unwrap();
    let secrets: Api<Secret> = Api::namespaced(server.client(ADMIN).await, namespace);
    secrets.create(&PostParams::default(), &secret).await.unwrap();
}

#[tokio::test]
async fn failing_templates_over_a_secret_of_the_api_server_reveal_nothing() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    secret(&server, &namespace, "creds", json!({})).await;
    let place = Place::new();
    let kubeconfig = server.kubeconfig(ADMIN);
    let name = format!("{namespace}/creds");
    drive_templates(&place, "json", &["--secret", &name, "--kubeconfig", kubeconfig.to_str().unwrap()]);
}

#[test]
fn templates_that_are_secret_themselves_are_not_quoted() {
    // By the file system, as the kubelet mounts a Secret, and by the word of --secret-dir.
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let disk = tempfile::tempdir().unwrap();
    for (dir, said) in [(memory.path(), &[][..]), (disk.path(), &["--secret-dir", "tpl"])] {
        let place = Place::new();
        let file = dir.join("tpl/app.conf.j2");
        fs::create_dir(dir.join("tpl")).unwrap();
        fs::write(&file, format!("password = {WORD}\n")).unwrap();
        let watched = format!("tpl={}", dir.join("tpl").display());
        let args = ["--watch-dir", &watched, "--template", file.to_str().unwrap()];
        let sidecar = place.sidecar(&[], &[&args[..], said].concat());
        sidecar.until_idle();
        assert_eq!(mode(&place.at("conf/app.conf")), 0o640, "a secret template makes a secret file");
        let mut before = Value::Null;
        for text in [
            format!("{{% {WORD} %}}"),
            format!("{{{{ {WORD} }}}}"),
            format!("{{{{ '{WORD}' | nosuch }}}}"),
            format!("{{{{ 1 | {WORD} }}}}"),
            format!("{{{{ 1 is {WORD} }}}}"),
            format!("{{{{ {WORD}() }}}}"),
            format!("{{% include '{WORD}' %}}"),
            format!("{{% extends '{WORD}' %}}"),
            format!("{{% block {WORD} %}}{{% endblock %}}{{% block {WORD} %}}{{% endblock %}}"),
            format!("{{{{ none | required('{WORD}') }}}}"),
            format!("{{{{ configmap('{WORD}') }}}}"),
            format!("{{{{ env('{WORD}') }}}}"),
            format!("{WORD} {{{{ '{WORD}"),
            format!("{{{{ {WORD} {WORD} }}}}"),
            format!("{WORD} {{% if x %}} {WORD}"),
        ] {
            let new = dir.join("new");
            fs::write(&new, &text).unwrap();
            fs::rename(new, &file).unwrap();
            let reason = rejection(&sidecar, &mut before, &text);
            assert!(reason.contains("app.conf.j2"), "{text}: {reason}");
        }
        place.inspect(&sidecar);
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn collisions_and_sizes_are_reported_by_name_alone() {
    let place = Place::new();
    secret_dir(&place);
    fs::create_dir(place.at("more")).unwrap();
    fs::write(place.at("more/word"), WORD).unwrap();
    fs::create_dir(place.at("nest")).unwrap();
    fs::create_dir(place.at("nest/word")).unwrap();
    fs::write(place.at("nest/word/x"), WORD).unwrap();
    let (creds, more, nest) = (
        format!("creds={}", place.text("creds")),
        format!("more={}", place.text("more")),
        format!("nest={}", place.text("nest")),
    );
    let output = place.text("conf");
    let usual = ["--once", "--output", &output, "--log-level", "debug", "--once-timeout", "1s"];
    let creds = ["--watch-dir", &creds, "--secret-dir", "creds"];
    for (args, code, says) in [
        (&["--watch-dir", more.as_str(), "--secret-dir", "more"][..], 65, "key \"word\" of dir/more"),
        (&["--watch-dir", &nest, "--secret-dir", "nest"], 65, "word/x"),
        (&["--max-size", "100"], 69, "--max-size"),
    ] {
        let done = place.run(&[], &[&usual, &creds[..], args].concat());
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(code), "{said}");
        assert!(said.contains(says), "{said}");
        place.inspect_files();
    }
    // What a template makes of it does not fit.
    let template = place.write("x.j2", "{% for i in range(9) %}{{ data.json }}{% endfor %}");
    let done = place.run(&[], &[&usual, &creds[..], &["--template", &template, "--max-size", "400"]].concat());
    assert_eq!(done.status.code(), Some(65));
    assert!(String::from_utf8_lossy(&done.stderr).contains("x.j2"), "{done:?}");
    place.inspect_files();
}

#[tokio::test]
async fn selected_secrets_that_do_not_fit_are_reported_by_name_alone() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let long = "n".repeat(253);
    secret(&server, &namespace, &long, json!({"app": "x"})).await;
    let place = Place::new();
    let kubeconfig = server.kubeconfig(ADMIN);
    let source = [
        "--selector",
        "app=x",
        "--resource",
        "secret",
        "--namespace",
        &namespace,
        "--kubeconfig",
        kubeconfig.to_str().unwrap(),
    ];
    // With `binary` behind it, the name becomes a segment of more than 255 bytes.
    let sidecar = place.sidecar(&[], &[&source[..], &["--path", "{name}{key}"]].concat());
    let status = sidecar.until("held back or rejected", |status| status["quarantine"].is_object());
    let reason = status["quarantine"]["reason"].as_str().unwrap();
    assert!(reason.contains(&format!("secret/{namespace}/nnn")) && reason.contains("255 bytes"), "{reason}");
    place.inspect(&sidecar);
    drop(sidecar);
    let sidecar = place.sidecar(&[], &[&source[..], &["--max-size", "200"]].concat());
    sidecar.until("too large", |status| {
        status["sources"][0]["message"].as_str().is_some_and(|m| m.contains("--max-size"))
    });
    place.inspect(&sidecar);
}

/// A server that gives raw answers.
struct Raw {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Raw {
    /// `answer`: from the request's head and body to what is written, before the connection is closed.
    fn start(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let thread = std::thread::spawn({
            let (over, requests) = (over.clone(), requests.clone());
            move || {
                for stream in listener.incoming() {
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(mut stream) = stream else { continue };
                    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                    let mut request = Vec::new();
                    let mut buffer = [0; 4096];
                    // Bodies here come with their head, or do not matter.
                    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                        match stream.read(&mut buffer) {
                            Ok(0) | Err(_) => break,
                            Ok(count) => request.extend_from_slice(&buffer[..count]),
                        }
                    }
                    let request = String::from_utf8_lossy(&request).into_owned();
                    requests.lock().unwrap().push(request.clone());
                    let _ = stream.write_all(&answer(&request));
                }
            }
        });
        Self { address, requests, over, thread: Some(thread) }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn http(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// All forms, whole, each line of them, and in base64, with words between them.
fn everything() -> String {
    let mut text = String::new();
    for (key, value) in FORMS {
        let _ = writeln!(text, "{key} is <{value}>, in base64 <{}>", STANDARD_NO_PAD.encode(value));
        for line in value.lines() {
            let _ = writeln!(text, "a line: {line};");
        }
        let _ = writeln!(text, "as JSON: {}", json!({ "value": value }));
    }
    text
}

#[test]
fn a_hook_that_answers_with_the_secrets_is_masked() {
    for format in ["text", "json"] {
        let place = Place::new();
        let creds = format!("creds={}", secret_dir(&place).display());
        let token = place.write("token", "tOk8En-qW3rTyU5iOp2");
        let header = place.write("header", "hEa6Der-zXc4VbN7mAs1");
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let server = Raw::start(move |request| {
            // As many a server does with what it does not like.
            let echo = format!("not: {request}\n{}", everything());
            match counted.fetch_add(1, Ordering::SeqCst) % 7 {
                0 => http("500 Oops", echo.as_bytes()),
                1 => http("302 Found", echo.as_bytes()),
                2 => http("503 Busy", echo.as_bytes()),
                // A long page: the end of it is kept, and begins in the middle of something.
                3 => http("500 Oops", everything().repeat(9).as_bytes()),
                4 => format!("{WORD} {echo}").into_bytes(),
                5 => format!("HTTP/1.1 {WORD} {WORD}\r\n{WORD}\r\n\r\n{echo}").into_bytes(),
                _ => [&http("500 Oops", &[])[..30], WORD.as_bytes()].concat(),
            }
        });
        let url = format!("http://{}/-/reload?key=qU9eRy-lKj4HgF6dS0", server.address);
        let header = format!("X-Key: @{header}");
        let sidecar = place.sidecar(
            &[("TRIMTAB_RELOAD_BODY", "body=bOd3Yy-pOi7UyT2rE5")],
            &[
                "--watch-dir",
                &creds,
                "--secret-dir",
                "creds",
                "--log-format",
                format,
                "--reload-url",
                &url,
                "--reload-token-file",
                &token,
                "--reload-header",
                &header,
                "--reload-header",
                "X-Literal: lIt5eRal-mNb8VcX3zA",
            ],
        );
        eventually("every answer was given twice", || (calls.load(Ordering::SeqCst) > 14).then_some(()));
        place.inspect(&sidecar);
        let log = sidecar.log();
        assert!(log.contains("it said: ") && log.contains("***"), "what the server said is worth a line:\n{log}");
        assert!(server.requests()[0].contains("Bearer tOk8En-qW3rTyU5iOp2"));
        for sent in ["tOk8En", "hEa6Der", "qU9eRy", "bOd3Yy", "lIt5eRal"] {
            assert!(!log.contains(sent), "{sent} of what was sent is in the log:\n{log}");
        }
    }
}

#[test]
fn files_with_credentials_that_cannot_be_used_are_not_quoted() {
    let place = Place::new();
    let volume = Volume::new(place.at("public"), &[("k", "v")]);
    // Plain HTTP, where TLS is expected.
    let server = Raw::start(|_| http("200 OK", b""));
    let url = format!("https://localhost:{}/", server.address.port());
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = key.cert.pem();
    let public = volume.path.to_str().unwrap();
    let (cert, pem, ca) = (place.write("cert", PEM), place.write("key", PEM), place.write("ca", PEM));
    let auth = place.write("auth", PEM);
    let args = ["--watch-dir", public, "--reload-url", &url, "--reload-cert-file", &cert, "--reload-key-file", &pem];
    let sidecar = place.sidecar(&[], &[&args[..], &["--reload-ca-file", &ca, "--reload-auth-file", &auth]].concat());
    let error = |flag: &str| {
        let status = sidecar.until(flag, |status| {
            status["errors"]["reload"]["message"].as_str().is_some_and(|message| message.contains(flag))
        });
        assert_silent(flag, status.to_string());
    };
    let garbage =
        [PEM, WORD, SPECIAL, JSON, &format!("-----BEGIN PRIVATE KEY-----\n{WORD}\n-----END PRIVATE KEY-----\n")];
    error("--reload-auth-file");
    place.write("auth", format!("user:{WORD}"));
    for text in garbage {
        place.write("ca", text);
        error("--reload-ca-file");
    }
    place.write("ca", &certificate);
    for text in garbage {
        place.write("cert", text);
        error("--reload-cert-file");
    }
    place.write("cert", &certificate);
    for text in garbage {
        place.write("key", text);
        error("--reload-key-file");
    }
    // A key that is one, and of another certificate.
    place.write("key", rcgen::KeyPair::generate().unwrap().serialize_pem());
    error("does not belong");
    place.write("key", key.signing_key.serialize_pem());
    error("no connection");
    place.inspect(&sidecar);
}

#[test]
fn an_auth_or_token_file_that_is_malformed_is_not_quoted() {
    for (flag, content) in [
        ("--reload-auth-file", WORD.to_owned()),
        ("--reload-auth-file", format!("user:{WORD}\n{PEM}")),
        ("--reload-token-file", format!("{WORD} {WORD}")),
        ("--reload-token-file", PEM.to_owned()),
        ("--reload-header", format!("{WORD}\n{WORD}")),
        ("--reload-header", format!("{WORD}\u{1}")),
        ("--reload-token-file", WORD.repeat(2000)),
    ] {
        let place = Place::new();
        let volume = Volume::new(place.at("public"), &[("k", "v")]);
        let hook = Hook::start(None);
        let file = place.write("file", content);
        let value = if flag == "--reload-header" { format!("X: @{file}") } else { file };
        let args = ["--watch-dir", volume.path.to_str().unwrap(), "--reload-url", &hook.url(), flag, &value];
        let sidecar = place.sidecar(&[], &args);
        let status = sidecar.until(flag, |status| status["errors"]["reload"].is_object());
        assert!(status["errors"]["reload"]["message"].as_str().unwrap().contains(flag), "{status}");
        place.inspect(&sidecar);
        assert!(hook.calls().is_empty(), "nothing was sent");
    }
}

/// A program that notes its command line, says what the file `say` holds, on both streams, and fails.
fn telltale(place: &Place) -> String {
    let say = place.text("say");
    let script = format!(
        "#!/bin/sh\ncat /proc/$$/cmdline >> {0}\necho >> {0}\ncat {say}\ncat {say} >&2\n[ -e {1} ]\n",
        place.text("cmdlines"),
        place.text("well")
    );
    let path = place.write("telltale", script);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn runs(place: &Place) -> usize {
    fs::read_to_string(place.at("cmdlines")).unwrap_or_default().lines().count()
}

#[test]
fn a_program_that_prints_the_secrets_is_masked() {
    for format in ["text", "json"] {
        let place = Place::new();
        let creds = format!("creds={}", secret_dir(&place).display());
        let template = place.write("app.conf.j2", "{{ data.word }} {{ env('CANARY') }}\n");
        place.write("say", everything() + "the variable is eNv4Va-rIa7bLe2XyZ\n");
        let program = telltale(&place);
        let args = ["--watch-dir", &creds, "--secret-dir", "creds", "--template", &template, "--secret-env", "CANARY"];
        let args = [&args[..], &["--log-format", format, "--reload-exec", &program]].concat();
        let sidecar = place.sidecar(&[("CANARY", "eNv4Va-rIa7bLe2XyZ")], &args);
        eventually("it ran a few times", || (runs(&place) > 3).then_some(()));
        assert!(sidecar.log().contains("***"));
        place.inspect(&sidecar);
        assert_silent("a program's command line", fs::read(place.at("cmdlines")).unwrap());
        assert!(!sidecar.log().contains("eNv4Va"), "{}", sidecar.log());
    }
}

#[test]
fn a_secret_that_was_rotated_away_is_masked_still() {
    let place = Place::new();
    let mut volume = Volume::new(place.at("creds"), &[("word", WORD)]);
    let program = telltale(&place);
    place.write("well", "");
    place.write("say", "");
    let creds = format!("creds={}", volume.path.display());
    let sidecar = place.sidecar(&[], &["--watch-dir", &creds, "--secret-dir", "creds", "--reload-exec", &program]);
    sidecar.until_idle();
    // The main process reports the one that it still uses.
    place.write("say", format!("the old one is {WORD}\n"));
    fs::remove_file(place.at("well")).unwrap();
    volume.swap(&[("word", "a-new-word-for-it")]);
    sidecar.until("refused", |status| status["errors"]["reload"].is_object());
    eventually("it said so", || sidecar.log().contains("the old one is").then_some(()));
    place.inspect_files();
}

#[test]
fn secrets_of_a_generation_found_at_start_are_not_said() {
    let place = Place::new();
    let volume = Volume::new(place.at("creds"), &[("word", WORD)]);
    place.write("say", format!("the word is {WORD}\n"));
    let program = telltale(&place);
    let creds = format!("creds={}", volume.path.display());
    let mut sidecar = place.sidecar(&[], &["--watch-dir", &creds, "--secret-dir", "creds", "--reload-exec", &program]);
    sidecar.until("refused", |status| status["errors"]["reload"].is_object());
    sidecar.kill();
    // The reload is due, and it cannot know what its secrets are.
    fs::rename(place.at("creds"), place.at("away")).unwrap();
    let before = runs(&place);
    sidecar.start_again();
    sidecar.until("refused again", |status| status["errors"]["reload"].is_object());
    assert!(runs(&place) > before);
    place.inspect(&sidecar);
    // Something else was put there meanwhile.
    Volume::new(place.at("creds"), &[("word", "another-word-by-now")]);
    sidecar.until("the new one is published", |status| status["published"]["sequence"] == 2);
    place.inspect(&sidecar);
}

#[test]
fn a_kubeconfig_is_never_quoted() {
    let place = Place::new();
    let good = |user: &str| {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\n\
             clusters:\n- name: c\n  cluster: {{server: 'https://127.0.0.1:1'}}\nusers:\n- name: u\n  user: {user}\n"
        )
    };
    let pem = PEM.replace('\n', "\\n");
    for (kubeconfig, code) in [
        (format!("token: {WORD}\n  bad: [{WORD}\n"), 64),
        (good(&format!("{{token: [{WORD}]}}")), 64),
        (good(&format!("{{token: {{{WORD}: {WORD}}}}}")), 64),
        (good(&format!("{{token: {WORD}")), 64),
        (good(WORD), 64),
        (good(&format!("{{token: *{WORD}}}")), 64),
        (good(&format!("{{token: !{WORD} {WORD}, token: {WORD}}}")), 64),
        (good(&format!("{{auth-provider: {WORD}}}")), 64),
        (good(&format!("{{exec: {WORD}}}")), 64),
        (JSON.to_owned(), 64),
        (format!("{WORD}\n"), 64),
        (format!("users: {PEM}"), 64),
        (good(&format!("{{client-certificate-data: {WORD}, client-key-data: '{WORD}!'}}")), 69),
        (good(&format!("{{client-certificate-data: '{WORD}=', client-key-data: '{WORD}'}}")), 69),
        (good(&format!("{{client-certificate-data: '', client-key: \"{pem}\"}}")), 69),
        (good(&format!("{{client-certificate: \"{pem}\", client-key: \"{pem}\"}}")), 69),
        (good(&format!("{{tokenFile: \"{pem}\"}}")), 69),
        (good(&format!("{{token: \"{WORD}\\n{WORD}\"}}")), 69),
        (good(&format!("{{username: u, password: \"{WORD}\\u0001\"}}")), 69),
        (
            good(&format!(
                "{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: /bin/echo, args: [{WORD}], interactiveMode: Never}}}}"
            )),
            69,
        ),
        (
            good(&format!(
                "{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: /bin/false, args: [{WORD}], interactiveMode: Never}}}}"
            )),
            69,
        ),
    ] {
        let path = place.write("kubeconfig", &kubeconfig);
        let output = place.text("conf");
        let args = ["--once", "--once-timeout", "2s", "--output", &output, "--log-level", "debug"];
        let done = place.run(&[], &[&args[..], &["--secret", "x", "--kubeconfig", &path]].concat());
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(code), "{kubeconfig}\n{said}");
        // A password may hold anything: nobody listens at the server's port.
        assert!(said.contains("kubeconfig") || said.contains("Connection refused"), "{kubeconfig}\n{said}");
    }
}

#[test]
fn what_an_api_server_says_is_never_quoted() {
    let place = Place::new();
    let list = |items: Value| {
        http("200 OK", &serde_json::to_vec(&json!({"metadata": {"resourceVersion": "1"}, "items": items})).unwrap())
    };
    let item =
        |data: Value| json!({"metadata": {"name": "x", "namespace": "ns", "resourceVersion": "1"}, "data": data});
    let status = |code: u16| json!({"kind": "Status", "code": code, "reason": everything(), "message": everything()});
    let answers: Vec<Vec<u8>> = vec![
        list(json!([item(json!({"k": format!("{WORD}!")}))])),
        list(json!([item(json!({"k": {WORD: WORD}}))])),
        list(json!([item(json!([WORD]))])),
        list(json!(WORD)),
        list(json!([WORD])),
        http("200 OK", format!("{{\"metadata\": {WORD}").as_bytes()),
        http("200 OK", everything().as_bytes()),
        http("500 Oops", everything().as_bytes()),
        http("403 Forbidden", &serde_json::to_vec(&status(403)).unwrap()),
        http("422 Bad", &serde_json::to_vec(&status(422)).unwrap()),
        http("401 No", &serde_json::to_vec(&status(401)).unwrap()),
        format!("{WORD} {WORD}\r\n\r\n").into_bytes(),
    ];
    let count = answers.len();
    let calls = Arc::new(AtomicUsize::new(0));
    let (counted, wait) = (calls.clone(), Mutex::new(answers.into_iter().cycle()));
    let server = Raw::start(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        wait.lock().unwrap().next().unwrap()
    });
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", server.address)}}],
        "users": [{"name": "u", "user": {"token": WORD}}],
    });
    let kubeconfig = place.write("kubeconfig", kubeconfig.to_string());
    let sidecar = place.sidecar(&[], &["--secret", "ns/x", "--kubeconfig", &kubeconfig]);
    // SIGHUP forgets the backoff.
    for call in 0..count {
        sidecar.until("it is reported", |status| {
            calls.load(Ordering::SeqCst) > call && status["sources"][0]["message"].is_string()
        });
        sidecar.signal(Signal::SIGHUP);
    }
    eventually("every answer was given", || (calls.load(Ordering::SeqCst) >= count).then_some(()));
    assert!(server.requests()[0].contains(&format!("Bearer {WORD}")));
    place.inspect(&sidecar);
}

#[test]
fn help_and_wrong_usage_show_no_value_of_the_environment() {
    let place = Place::new();
    let literal = format!("X-Key: {WORD}");
    let authorization = format!("Authorization: Bearer {WORD}");
    let with_user = format!("http://user:{WORD}@localhost/");
    let with_query = format!("http://localhost/?token={WORD}");
    let exec = format!("/bin/true '{WORD}");
    let full: Vec<(&str, &str)> = vec![
        ("TRIMTAB_RELOAD_HEADER", &literal),
        ("TRIMTAB_RELOAD_URL", &with_query),
        ("TRIMTAB_RELOAD_BODY", WORD),
        ("TRIMTAB_RELOAD_EXEC", &exec),
        ("TRIMTAB_SECRET_ENV", "CANARY"),
        ("CANARY", PEM),
    ];
    for help in ["--help", "-h", "--version"] {
        let done = place.run(&full, &[help]);
        assert_eq!(done.status.code(), Some(0));
    }
    let output = place.text("conf");
    let usual = ["--watch-dir", "/etc/trimtab-none", "--output", &output];
    let with_reload = |extra: &[(&'static str, String)]| {
        let variables: Vec<_> = extra.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let done = place.run(&variables, &usual);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(64), "{said}");
        said
    };
    let url = ("TRIMTAB_RELOAD_URL", "http://localhost/".to_owned());
    for (name, value, says) in [
        ("TRIMTAB_RELOAD_URL", with_user.clone(), "--reload-auth-file"),
        ("TRIMTAB_RELOAD_URL", format!("ftp://{WORD}/"), "http://"),
        ("TRIMTAB_RELOAD_URL", WORD.to_owned(), "http://"),
        ("TRIMTAB_RELOAD_URL", format!("http://localhost:{WORD}/"), "--reload-url"),
        ("TRIMTAB_RELOAD_URL", format!("http://localhost/?token={WORD} {SPECIAL}"), "--reload-url"),
        ("TRIMTAB_RELOAD_URL", format!("http://localhost/\n{with_user}"), "number 2"),
        ("TRIMTAB_RELOAD_URL", format!("unix:{WORD}"), "--reload-url"),
        ("TRIMTAB_RELOAD_HEADER", authorization.clone(), "authorization"),
        ("TRIMTAB_RELOAD_HEADER", format!("Cookie: {WORD}"), "cookie"),
        ("TRIMTAB_RELOAD_HEADER", WORD.to_owned(), "--reload-header"),
        ("TRIMTAB_RELOAD_HEADER", format!("{WORD} {WORD}: x"), "--reload-header"),
        ("TRIMTAB_RELOAD_HEADER", format!("X: {WORD}\u{7f}"), "--reload-header"),
        ("TRIMTAB_RELOAD_HEADER", format!("Content-Length: {WORD}"), "--reload-header"),
        ("TRIMTAB_RELOAD_EXEC", exec.clone(), "--reload-exec"),
    ] {
        let mut variables = vec![(name, value)];
        if name == "TRIMTAB_RELOAD_HEADER" {
            variables.push(url.clone());
        }
        let said = with_reload(&variables);
        assert!(said.contains(says), "{says}: {said}");
    }
    // Contradictions, with all of them in place.
    with_reload(&[("TRIMTAB_RELOAD_BODY", WORD.to_owned()), ("TRIMTAB_RELOAD_HEADER", literal.clone())]);
    let signal = ("TRIMTAB_SIGNAL", "HUP".to_owned());
    with_reload(&[url.clone(), signal, ("TRIMTAB_RELOAD_EXEC", format!("/bin/true {WORD}"))]);
    let done = place.run(&full, &["--no-such-flag"]);
    assert_eq!(done.status.code(), Some(64));
    let done = place.run(&full, &[]);
    assert_eq!(done.status.code(), Some(64));
    // With a query in the URL, the failing request is reported without it.
    let volume = Volume::new(place.at("public"), &[("k", "v")]);
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}/x?token={WORD}");
    let sidecar = place.sidecar(
        &[("TRIMTAB_RELOAD_URL", &url), ("TRIMTAB_RELOAD_BODY", WORD), ("TRIMTAB_RELOAD_HEADER", &literal)],
        &["--watch-dir", volume.path.to_str().unwrap()],
    );
    sidecar.until("unreachable", |status| status["errors"]["reload"].is_object());
    place.inspect(&sidecar);
}

#[test]
fn malformed_podinfo_and_a_digest_key_file_are_not_quoted() {
    let place = Place::new();
    let volume = Volume::new(place.at("public"), &[("k", "v")]);
    let template = place.write("x.j2", "{{ data.k }} {{ generation.digest }}");
    let usual =
        ["--once", "--once-timeout", "1s", "--log-level", "debug", "--watch-dir", volume.path.to_str().unwrap()];
    for (number, labels) in [WORD.to_owned(), format!("a={WORD}"), format!("a=\"{WORD}\\q\""), PEM.into(), JSON.into()]
        .into_iter()
        .enumerate()
    {
        let podinfo = Volume::new(place.at(&format!("podinfo{number}")), &[("labels", &labels)]);
        let output = place.text("conf");
        let args = ["--output", &output, "--template", &template, "--podinfo-dir", podinfo.path.to_str().unwrap()];
        let done = place.run(&[], &[&usual[..], &args].concat());
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(65), "{said}");
        assert!(said.contains("labels") && said.contains("line 1"), "{said}");
    }
    let output = place.text("conf");
    for key in [WORD, PEM, JSON] {
        let key = place.write("digest.key", key);
        let args = ["--output", &output, "--template", &template, "--digest-key-file", &key];
        assert_eq!(place.run(&[], &[&usual[..], &args].concat()).status.code(), Some(0));
        place.inspect_files();
    }
}

#[test]
fn no_core_dump_holds_a_secret() {
    let place = Place::new();
    let creds = format!("creds={}", secret_dir(&place).display());
    place.write("well", "");
    let program = place.write("limits", format!("#!/bin/sh\ncat /proc/self/limits > {}\n", place.text("child")));
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let sidecar = place.sidecar(&[], &["--watch-dir", &creds, "--reload-exec", &program]);
    sidecar.until_idle();
    let own = fs::read_to_string(format!("/proc/{}/limits", sidecar.pid())).unwrap();
    for limits in [own, fs::read_to_string(place.at("child")).unwrap()] {
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(line.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["1", "1"], "{line}");
    }
}

#[test]
fn exactly_the_files_whose_template_read_a_secret_are_secret() {
    let place = Place::new();
    secret_dir(&place);
    fs::create_dir(place.at("public")).unwrap();
    fs::write(place.at("public/flag"), "on").unwrap();
    fs::create_dir(place.at("tpl")).unwrap();
    let templates = [
        ("public.j2", "{{ data.flag }} and a word in plain text", 0o644),
        ("names.j2", "{% for key in dir('creds') %}{{ key }} {% endfor %}", 0o644),
        ("direct.j2", "{{ data.word }}", 0o640),
        ("hashed.j2", "{{ dir('creds').word | sha256 }}", 0o640),
        ("length.j2", "{{ data.word | length }}", 0o640),
        ("compared.j2", "{% if data.word == 'x' %}yes{% else %}no{% endif %}", 0o640),
        ("looped.j2", "{% for k, v in data | items %}{{ k }}{% endfor %}", 0o640),
        ("macro.j2", "{% import '_macros.j2' as m %}{{ m.take() }}", 0o640),
        ("included.j2", "a {% include '_part.j2' %}", 0o640),
        ("env.j2", "{{ env('CANARY') }}", 0o640),
        ("plain-env.j2", "{{ env('PLAIN') }}", 0o644),
        ("_macros.j2", "{% macro take() %}{{ data.word }}{% endmacro %}{% macro none() %}x{% endmacro %}", 0),
        ("_part.j2", "{{ data.word }}", 0),
        ("other-macro.j2", "{% import '_macros.j2' as m %}{{ m.none() }}", 0o644),
        ("changing.j2", "{% if data.flag == 'on' %}{{ data.word }}{% else %}off{% endif %}", 0o640),
    ];
    for (name, text, _) in templates {
        fs::write(place.at("tpl").join(name), text).unwrap();
    }
    let (creds, public) = (format!("creds={}", place.text("creds")), place.text("public"));
    let tpl = place.text("tpl");
    let hook = Hook::start(None);
    let sidecar = place.sidecar(
        &[("CANARY", WORD), ("PLAIN", "plain")],
        &[
            "--watch-dir",
            &creds,
            "--secret-dir",
            "creds",
            "--watch-dir",
            &public,
            "--template",
            &tpl,
            "--secret-env",
            "CANARY",
            "--env",
            "PLAIN",
            "--reload-url",
            &hook.url(),
        ],
    );
    sidecar.until_idle();
    let check = |changing: u32| {
        for (name, text, expected) in templates {
            let expected = if name == "changing.j2" { changing } else { expected };
            let file = place.output().join(name.trim_end_matches(".j2"));
            match expected {
                0 => assert!(!file.exists(), "{name} is a partial"),
                expected => assert_eq!(mode(&file), expected, "{name}: {text}"),
            }
        }
    };
    check(0o640);
    place.inspect(&sidecar);
    // A file stops being secret when its template stops reading one, and begins again.
    for (flag, changing, sequence) in [("off", 0o644, 2), ("on", 0o640, 3)] {
        place.write("public/flag", flag);
        sidecar.until("the change is out", |status| status["reloaded"]["sequence"] == sequence);
        check(changing);
    }
    hook.answer(Answer::Code(200));
}

#[test]
fn the_digest_is_keyed_and_the_key_is_kept() {
    let place = Place::new();
    let creds = format!("creds={}", secret_dir(&place).display());
    let digest = |output: &str, args: &[&str]| {
        let output = place.text(output);
        let usual = ["--once", "--log-level", "debug", "--output", &output, "--watch-dir", &creds];
        let done = place.run(&[], &[&usual[..], args].concat());
        assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
        let journal: Value =
            serde_json::from_slice(&fs::read(Path::new(&output).join("..trimtab/private/journal.json")).unwrap())
                .unwrap();
        let link = fs::read_link(Path::new(&output).join("..data")).unwrap();
        let digest = journal["current"]["digest"].as_str().unwrap().to_owned();
        assert!(link.to_str().unwrap().ends_with(&digest[..12]), "{link:?}");
        (digest, journal["current"]["tree"].as_str().unwrap().to_owned())
    };
    let secret = ["--secret-dir", "creds"];
    let first = digest("a", &secret);
    assert_eq!(digest("a", &secret), first, "same secret, same key");
    assert_eq!(mode(&place.at("a/..trimtab/private/key")), 0o600);
    // Another key gives another digest: it is no plain hash of anything.
    fs::remove_file(place.at("a/..trimtab/private/key")).unwrap();
    let second = digest("a", &secret);
    assert!(second.0 != first.0);
    fs::write(place.at("a/..trimtab/private/key"), [7; 32]).unwrap();
    let third = digest("a", &secret);
    assert!(third.0 != first.0 && third.0 != second.0);
    assert_eq!(mode(&place.at("a/..trimtab/private/key")), 0o600, "one that was too readable is narrowed");
    assert!(digest("b", &secret).0 != third.0, "each output has its own key");
    // With a key in common, they agree on both digests.
    let key = place.write("digest.key", "a key in common");
    let common = ["--secret-dir", "creds", "--digest-key-file", &key];
    assert_eq!(digest("c", &common), digest("d", &common));
    assert!(!place.at("c/..trimtab/private/key").exists(), "no key of its own then");
    place.write("digest.key", "another key");
    assert!(digest("e", &common).0 != digest("c/", &common).1);
    // Where nothing is secret, anyone may compare.
    assert_eq!(digest("f", &["--public-dir", "creds"]).0, digest("g", &["--public-dir", "creds"]).0);
}

/// What was seen of the files in the output: every permission bit that each ever had.
type Modes = BTreeMap<(String, String), u32>;

/// Looks at the modes of everything in the output until asked to stop; `inotify` says where to look at once.
/// Generations have their files in `below`, which begins with a slash or is empty.
fn watch_modes(output: &Path, below: &str, over: &AtomicBool, names: &[String]) -> Modes {
    /// The output, and Trimtab's own directory in it.
    const AT: [&str; 2] = ["", "..trimtab/private/"];
    let is_generation = |name: &str| name.strip_prefix(AT[1]).unwrap_or(name).starts_with("..trimtab-");
    let mut modes = Modes::new();
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
    let created = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ATTRIB;
    inotify.add_watch(output, created).unwrap();
    inotify.add_watch(&output.join("..trimtab/private"), created).unwrap();
    let note = |modes: &mut Modes, directory: &str, name: &str| {
        if let Ok(metadata) = fs::symlink_metadata(output.join(directory).join(name))
            && metadata.is_file()
        {
            *modes.entry((directory.to_owned(), name.to_owned())).or_default() |= metadata.mode() & 0o7777;
        }
    };
    while !over.load(Ordering::Relaxed) {
        let mut fresh = None;
        while let Ok(events) = inotify.read_events() {
            for name in events.into_iter().filter_map(|event| event.name?.into_string().ok()) {
                for at in AT {
                    let name = format!("{at}{name}");
                    note(&mut modes, "", &name);
                    if is_generation(&name) && output.join(&name).is_dir() {
                        fresh = Some(name);
                    }
                }
            }
        }
        if let Some(directory) = &fresh {
            // It is being written: nothing else matters until its last file is there.
            for _ in 0..200 {
                for name in names {
                    note(&mut modes, &format!("{directory}{below}"), name);
                }
            }
        }
        for at in AT {
            for entry in fs::read_dir(output.join(at)).unwrap().flatten() {
                let name = format!("{at}{}", entry.file_name().to_str().unwrap());
                note(&mut modes, "", &name);
                if is_generation(&name) {
                    // Copies that are being made, too.
                    for directory in BTreeSet::from([name.clone(), format!("{name}{below}"), format!("{name}/part")]) {
                        for inside in fs::read_dir(output.join(&directory)).into_iter().flatten().flatten() {
                            note(&mut modes, &directory, inside.file_name().to_str().unwrap());
                        }
                    }
                }
            }
        }
    }
    modes
}

/// Ends the watchers, also when the test fails.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn no_file_is_wider_than_its_mode_for_a_moment() {
    narrow_all_the_time(Layout::Atomic, 200);
}

#[test]
fn no_single_file_and_no_copy_of_it_is_wider_than_its_mode_for_a_moment() {
    narrow_all_the_time(Layout::Files, 80);
}

fn narrow_all_the_time(layout: Layout, publishes: u64) {
    let place = Place::new();
    let (above, below) = if layout == Layout::Atomic { ("", "") } else { ("..trimtab/private/", "/files") };
    secret_dir(&place);
    fs::write(place.at("creds/big"), "s".repeat(100_000)).unwrap();
    fs::create_dir(place.at("public")).unwrap();
    place.write("public/n", "0");
    fs::create_dir(place.at("tpl")).unwrap();
    let names: Vec<_> = ["secret-a", "secret-b", "mixed", "public"].map(str::to_owned).into();
    fs::write(place.at("tpl/secret-a.j2"), "{{ data.n }} {{ data.big }}").unwrap();
    fs::write(place.at("tpl/secret-b.j2"), "{{ data.n }} {{ data.word }}").unwrap();
    // Secret in every other generation.
    fs::write(place.at("tpl/mixed.j2"), "{{ data.n }}{% if data.n | int % 2 %}{{ data.big }}{% endif %}").unwrap();
    fs::write(place.at("tpl/public.j2"), "{{ data.n }}").unwrap();
    let (creds, public, tpl) = (format!("creds={}", place.text("creds")), place.text("public"), place.text("tpl"));
    fs::create_dir_all(place.output().join("..trimtab/private")).unwrap();
    let over = AtomicBool::new(false);
    let (modes, secret_ones) = std::thread::scope(|scope| {
        let watchers: Vec<_> =
            (0..2).map(|_| scope.spawn(|| watch_modes(&place.output(), below, &over, &names))).collect();
        let directories = ["--watch-dir", &creds, "--secret-dir", "creds", "--watch-dir", &public];
        let flags = [&directories[..], &["--template", &tpl, "--secret-mode", "0440"], layout.flags()].concat();
        let sidecar = place.sidecar(&[], &flags);
        let end = SetWhenDropped(&over);
        let mut secret_ones = BTreeMap::new();
        for n in 0..publishes {
            place.write("public/n", n.to_string());
            let current = eventually("it is published", || {
                let content = fs::read_to_string(place.output().join("public")).ok()?;
                (content == n.to_string()).then(|| layout.current(&place.output()).unwrap())
            });
            secret_ones.insert(format!("{above}{current}{below}"), n % 2 == 1);
        }
        drop((sidecar, end));
        let mut modes = Modes::new();
        for watcher in watchers {
            for (file, seen) in watcher.join().unwrap() {
                *modes.entry(file).or_default() |= seen;
            }
        }
        (modes, secret_ones)
    });
    let mut seen = BTreeMap::<&str, usize>::new();
    for ((directory, name), mode) in &modes {
        *seen.entry(name).or_default() += 1;
        assert_eq!(mode & 0o002, 0, "{directory}/{name} was world-writable: {mode:04o}");
        let allowed = match name.as_str() {
            "secret-a" | "secret-b" => 0o440,
            "mixed" if secret_ones.get(directory) == Some(&true) => 0o440,
            "mixed" | "public" => 0o644,
            // Which file it is a copy of is not seen.
            _ if directory.ends_with("/part") => 0o644,
            _ => 0o600,
        };
        // While it is written, its owner may write.
        assert_eq!(mode & !(allowed | 0o200), 0, "{directory}/{name} was {mode:04o}");
    }
    println!("seen: {seen:?}");
    let pointer: &[&str] = if layout == Layout::Atomic { &[] } else { &["..trimtab/private/current"] };
    for name in [
        "..trimtab/private/journal.json",
        "..trimtab/private/journal.json.tmp",
        "..trimtab/private/key",
        "..trimtab/private/lock",
    ]
    .iter()
    .chain(pointer)
    {
        let mode = modes.get(&(String::new(), (*name).to_owned()));
        assert!(mode.is_none_or(|mode| *mode == 0o600), "{name}: {mode:?}");
        assert!(mode.is_some() || *name == "..trimtab/private/journal.json.tmp", "{name} was not seen");
    }
    assert!(seen["secret-a"] as u64 >= publishes / 2, "these are too few to prove anything: {seen:?}");
}

#[tokio::test]
async fn a_secret_that_becomes_malformed_for_the_templates_keeps_the_last_one_and_is_not_quoted() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    secret(&server, &namespace, "creds", json!({})).await;
    let place = Place::new();
    let template =
        place.write("app.j2", "{{ (data.json | from_json | items | last)[1] }} {{ data.yaml | from_yaml | to_json }}");
    let kubeconfig = server.kubeconfig(ADMIN);
    let name = format!("{namespace}/creds");
    let sidecar =
        place.sidecar(&[], &["--secret", &name, "--template", &template, "--kubeconfig", kubeconfig.to_str().unwrap()]);
    sidecar.until_idle();
    let published = fs::read(place.at("conf/app")).unwrap();
    assert!(published.starts_with(b"hT5wNz0cVb7K"));
    let secrets: Api<Secret> = Api::namespaced(server.client(ADMIN).await, &namespace);
    let mut before = Value::Null;
    for (key, value) in [("json", WORD), ("json", PEM), ("json", &JSON[..30]), ("json", "{}")] {
        let patch = json!({"data": {key: STANDARD_NO_PAD.encode(value) + ["", "", "==", "="][STANDARD_NO_PAD.encode(value).len() % 4]}});
        secrets.patch("creds", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        let reason = rejection(&sidecar, &mut before, value);
        assert!(reason.contains("app.j2"), "{reason}");
    }
    assert_eq!(fs::read(place.at("conf/app")).unwrap(), published);
    place.inspect(&sidecar);
}
