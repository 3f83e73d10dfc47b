//! prometheus-config-reloader's own program beside Trimtab with its settings: the same edits, the same files and calls in
//! the end. And its weak points, each by name: what it loses here, Trimtab does not.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::guard::{Pki, code, get, hash};
use super::support::hook::Hook;
use super::support::port::free_port;
use super::support::sidecar::{Sidecar, Volume, eventually, output_of, trimtab};
use super::support::stage::metric;

const PEER: &str = "prometheus-config-reloader";

/// The variables of both.
const ENV: [(&str, &str); 4] = [("POD_NAME", "prometheus-k8s-3"), ("SHARD", "0"), ("A", "1$(SHARD)"), ("EMPTY", "")];

/// The program, built from its Go module.
fn program() -> PathBuf {
    let folder = std::env::var_os("TRIMTAB_TEST_PEERS");
    Path::new(&folder.expect("TRIMTAB_TEST_PEERS is not set: run `make test`, or see its lines there")).join(PEER)
}

fn packed(text: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(text).unwrap();
    packed.finish().unwrap()
}

/// `--watch-interval=0`, as the init container.
#[test]
fn files_are_those_of_the_peer() {
    let both = [packed(b"a: $(A)\n"), packed(b"b: $(A)\n")].concat();
    for (index, content) in [
        &b"plain\n"[..],
        b"a: $(POD_NAME) $(A)$(EMPTY)$(SHARD) n$(STATEFULSET_ORDINAL_NUMBER)\r\n",
        b"$$(A) ${A} $A $1 $(A B) $() $(A-B) $((A)) $(UNSET) $(a) $(A",
        "ä: $(A) \u{feff}$(ä)".as_bytes(),
        &packed(b"a: $(A)\n"),
        &both,
    ]
    .into_iter()
    .enumerate()
    {
        let written = [Command::new(program()), trimtab()].map(|mut command| {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("config"), content).unwrap();
            fs::create_dir(dir.path().join("out")).unwrap();
            if command.get_program() == env!("CARGO_BIN_EXE_trimtab") {
                command.args(["as", PEER]);
            }
            let at = |flag: &str, name: &str| format!("--{flag}={}", dir.path().join(name).display());
            command.args(["--watch-interval=0", &at("config-file", "config"), &at("config-envsubst-file", "out/file")]);
            let output = output_of(command.envs(ENV));
            let file = dir.path().join("out/file");
            let mode = file.symlink_metadata().map(|it| it.permissions().mode() & 0o777).ok();
            (output.status.code(), mode, fs::read(file).map(|bytes| String::from_utf8(bytes).unwrap()).ok())
        });
        let [peer, own] = written;
        assert_eq!(own, peer, "input {index}");
        assert_eq!(own.0, Some(0));
    }
}

/// One of the two, with inputs and a main process of its own.
struct Side {
    own: bool,
    way: Way,
    dir: tempfile::TempDir,
    rules: Volume,
    /// What the main process found at each call.
    calls: Arc<Mutex<Vec<String>>>,
    hook: Hook,
    running: Running,
}

enum Running {
    Nothing,
    Peer(Child, u16),
    Trimtab(Sidecar),
}

/// Which directories and files the arguments name.
#[derive(Clone, Copy)]
enum Way {
    /// A configuration that is filled in, beside directories, as the Prometheus Operator has it; the poll's interval.
    Operator(&'static str),
    /// Directories alone, one of them by this name.
    Directories(&'static str),
    /// One file of a volume, as the blackbox-exporter chart has it.
    File,
}

/// What a main process reads there: each file by its name.
fn found(dir: &Path) -> String {
    let mut text = String::new();
    let mut entries: Vec<_> = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    entries.sort_unstable();
    for path in entries {
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !name.starts_with("..") {
            text += &found(&path);
        } else if !name.starts_with("..") {
            writeln!(text, "{name}: {}", fs::read_to_string(&path).unwrap_or_default()).unwrap();
        }
    }
    text
}

fn all_found(root: &Path) -> String {
    ["out", "rules", "more"].map(|name| found(&root.join(name))).concat()
}

impl Side {
    fn new(own: bool, way: Way) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config", "out", "more/below"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let rules = Volume::new(dir.path().join("rules"), &[("a.yaml", "0")]);
        let calls = Arc::<Mutex<Vec<String>>>::default();
        let hook = Hook::responding(None, {
            let (calls, root) = (calls.clone(), dir.path().to_owned());
            move |_| {
                let found = all_found(&root);
                let code = if found.contains("bad") { 500 } else { 200 };
                calls.lock().unwrap().push(found);
                (code, String::new())
            }
        });
        let mut side = Self { own, way, dir, rules, calls, hook, running: Running::Nothing };
        side.configure(b"first $(SHARD)");
        side.write("more/b.yaml", "0");
        side.write("more/below/c.yaml", "0");
        side.start();
        side
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&mut self) {
        let arg = |flag: &str, name: &str| format!("--{flag}={}", self.at(name).display());
        let mut args: Vec<_> = [
            ("reload-url", &*self.hook.url().replace("://", "://me:p%40ss@")),
            ("delay-interval", "30ms"),
            ("retry-interval", "50ms"),
        ]
        .map(|(flag, value)| format!("--{flag}={value}"))
        .into();
        let mut interval = "1h";
        args.extend(match self.way {
            Way::Operator(poll) => {
                interval = poll;
                vec![
                    arg("config-file", "config/prometheus.yaml.gz"),
                    arg("config-envsubst-file", "out/prometheus.env.yaml"),
                    arg("watched-dir", "rules"),
                    arg("watched-dir", "more"),
                    arg("watched-dir", "config"),
                ]
            }
            Way::Directories(more) => vec![arg("watched-dir", "rules"), arg("watched-dir", more)],
            Way::File => vec![arg("config-file", "rules/a.yaml")],
        });
        args.push(format!("--watch-interval={interval}"));
        self.running = if self.own {
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            Running::Trimtab(Sidecar::start_as_peer(Path::new(PEER), &self.at("log"), &ENV, &args))
        } else {
            let port = free_port();
            let log = fs::OpenOptions::new().create(true).append(true).open(self.at("log")).unwrap();
            let mut command = Command::new(program());
            command.args(args).arg(format!("--listen-address=127.0.0.1:{port}")).envs(ENV);
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            Running::Peer(command.spawn().unwrap(), port)
        };
    }

    fn kill(&mut self) {
        match std::mem::replace(&mut self.running, Running::Nothing) {
            Running::Nothing => (),
            Running::Peer(mut child, _) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Running::Trimtab(mut sidecar) => sidecar.kill(),
        }
    }

    /// A file in the place of another, at once.
    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let new = self.at("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, self.at(name)).unwrap();
    }

    fn configure(&self, content: &[u8]) {
        self.write("config/prometheus.yaml.gz", content);
    }

    fn rule(&mut self, content: &str) {
        self.rules.swap(&[("a.yaml", content)]);
    }

    /// What the main process would find now.
    fn finds(&self) -> String {
        all_found(self.dir.path())
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn was_called_with(&self, part: &str) -> bool {
        self.calls.lock().unwrap().iter().any(|call| call.contains(part))
    }

    fn was_last_called_with(&self, part: &str) -> bool {
        self.calls.lock().unwrap().last().is_some_and(|call| call.contains(part))
    }

    /// What it asks by: the request's line, the credentials and the body.
    fn asks_by(&self) -> BTreeSet<(String, Option<String>, String)> {
        let calls = self.hook.calls().into_iter();
        calls
            .map(|call| {
                let mut headers = call.head.iter().filter_map(|line| line.split_once(": "));
                let user = headers.find(|(name, _)| name.eq_ignore_ascii_case("authorization"));
                (call.head[0].clone(), user.map(|(_, value)| value.to_owned()), call.body)
            })
            .collect()
    }

    fn metric(&self, name: &str) -> Option<f64> {
        match &self.running {
            Running::Nothing => None,
            Running::Trimtab(sidecar) => metric(sidecar, name),
            Running::Peer(_, port) => {
                let mut stream = TcpStream::connect(("127.0.0.1", *port)).ok()?;
                stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
                write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").ok()?;
                let mut text = String::new();
                stream.read_to_string(&mut text).ok()?;
                text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
            }
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}: called with {:#?}", if self.own { "Trimtab" } else { PEER }, self.calls());
            eprintln!("--- its log\n{}", fs::read_to_string(self.at("log")).unwrap_or_default());
        }
        self.kill();
    }
}

/// Both, each with its own.
struct Pair {
    peer: Side,
    own: Side,
    rule: usize,
}

impl Pair {
    fn start(way: Way) -> Self {
        Self { peer: Side::new(false, way), own: Side::new(true, way), rule: 0 }
    }

    fn both(&mut self, mut edit: impl FnMut(&mut Side)) {
        edit(&mut self.peer);
        edit(&mut self.own);
    }

    fn each(&self) -> [&Side; 2] {
        [&self.peer, &self.own]
    }

    #[track_caller]
    fn until_both(&self, what: &str, condition: impl Fn(&Side) -> bool) {
        eventually(what, || self.each().into_iter().all(&condition).then_some(()));
    }

    /// Edits the rules until both are called for an edit: the peer loses some of those after its start.
    #[track_caller]
    fn until_both_follow(&mut self) {
        eventually("both follow the rules", || {
            self.rule += 1;
            let content = format!("rule {}", self.rule);
            self.both(|side| side.rule(&content));
            let deadline = Instant::now() + Duration::from_secs(2);
            while Instant::now() < deadline {
                if self.each().into_iter().all(|side| side.was_last_called_with(&content)) {
                    return Some(());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            None
        });
    }

    /// A weak point: the peer makes no call for this edit until something else calls for one.
    #[track_caller]
    fn only_the_peer_loses(&mut self, name: &str, edit: impl FnMut(&mut Side)) {
        self.until_both_follow();
        self.both(edit);
        let found = self.own.finds();
        eventually(&format!("{name}: Trimtab calls"), || self.own.was_last_called_with(&found).then_some(()));
        self.until_both_follow();
        assert!(!self.peer.was_called_with(&found), "{name}: the peer has made a call for it");
        assert_eq!(self.peer.finds(), self.own.finds(), "{name}");
    }
}

/// What it replaces in what is found, by what, and the edit for it.
type Step = (&'static str, &'static str, fn(&mut Side));

const SUCCESSFUL: &str = "reloader_last_reload_successful";

/// Edits of the configuration and of rules; rules that come and go; a packed configuration; an edit that is undone.
#[test]
fn edits_make_the_calls_that_the_peer_makes() {
    // Its poll finds what it loses after its start.
    let mut pair = Pair::start(Way::Operator("1s"));
    let mut expected = vec!["prometheus.env.yaml: first 0\na.yaml: 0\nb.yaml: 0\nc.yaml: 0\n".to_owned()];
    pair.until_both("called at the start", |side| side.was_last_called_with(&expected[0]));
    let steps: [Step; 6] = [
        ("first 0", "second 0", |side| side.configure(b"second $(SHARD)")),
        ("a.yaml: 0", "a.yaml: 1", |side| side.rule("1")),
        ("c.yaml: 0\n", "c.yaml: 0\nd.yaml: 1\n", |side| side.write("more/d.yaml", "1")),
        ("d.yaml: 1\n", "", |side| fs::remove_file(side.at("more/d.yaml")).unwrap()),
        ("second 0", "packed 0", |side| side.configure(&packed(b"packed $(SHARD)"))),
        ("packed 0", "second 0", |side| side.configure(b"second $(SHARD)")),
    ];
    for (from, to, edit) in steps {
        let next = expected.last().unwrap().replace(from, to);
        pair.both(edit);
        pair.until_both(&next, |side| side.calls().last() == Some(&next));
        expected.push(next);
    }
    assert_eq!(pair.own.calls(), expected);
    // It may reload twice for one edit.
    let mut of_peer = pair.peer.calls();
    of_peer.dedup();
    assert_eq!(of_peer, expected);
    assert_eq!(pair.own.asks_by(), pair.peer.asks_by());
    pair.until_both("a good end", |side| side.metric(SUCCESSFUL) == Some(1.0));
    assert_eq!(pair.own.metric("reloader_reloads_total"), Some(7.0));
}

#[test]
fn what_the_peer_loses_makes_a_call() {
    let mut pair = Pair::start(Way::Operator("1h"));
    pair.only_the_peer_loses("a directory in a watched one is not watched", |side| {
        side.write("more/below/c.yaml", "1");
    });
    pair.both(|side| {
        fs::remove_dir_all(side.at("more")).unwrap();
        fs::create_dir_all(side.at("more/below")).unwrap();
        side.write("more/b.yaml", "1");
    });
    pair.only_the_peer_loses("a directory that was replaced is not watched", |side| {
        side.write("more/b.yaml", "2");
    });

    let mut pair = Pair::start(Way::Directories("more/"));
    pair.only_the_peer_loses("a slash after a directory's name", |side| {
        side.write("more/b.yaml", "1");
    });
    pair.only_the_peer_loses("an edit while it did not run", |side| {
        side.kill();
        side.write("more/b.yaml", "2");
        side.start();
    });

    let mut pair = Pair::start(Way::File);
    pair.until_both("called at the start", |side| side.was_called_with("a.yaml: 0"));
    for edit in ["1", "2", "3"] {
        pair.both(|side| side.rule(edit));
        eventually(edit, || pair.own.was_last_called_with(&format!("a.yaml: {edit}")).then_some(()));
    }
    assert!(!pair.peer.was_called_with("a.yaml: 3"), "the file's watch outlives the kubelet's swap, also at the peer");
}

#[test]
fn what_the_peer_leaves_bad_is_reported_taken_back_and_corrected_at_once() {
    let mut pair = Pair::start(Way::Operator("1h"));
    pair.until_both_follow();
    // Half a packed file: the peer fails as well, and its alert does not see it.
    let half = packed(&[b'x'; 100]);
    pair.both(|side| side.configure(&half[..half.len() / 2]));
    let failed = "reloader_config_apply_operations_failed_total";
    eventually("both fail", || {
        let (own, peer) = (pair.own.metric(SUCCESSFUL)?, pair.peer.metric(failed)?);
        (own == 0.0 && peer > 0.0).then_some(())
    });
    assert_eq!(pair.peer.metric(SUCCESSFUL), Some(1.0));

    pair.both(|side| side.configure(b"bad $(SHARD)"));
    pair.until_both("called with what is bad", |side| side.was_called_with("bad 0"));
    eventually("it is taken back", || pair.own.finds().contains("first 0").then_some(()));
    assert!(pair.peer.finds().contains("bad 0"), "what a main process that starts now would read");
    pair.both(|side| side.configure(b"second $(SHARD)"));
    eventually("the correction runs", || pair.own.was_last_called_with("second 0").then_some(()));
    // The peer goes on with what it has read, until its poll's time is over.
    let calls = pair.peer.calls().len();
    eventually("it goes on", || (pair.peer.calls().len() > calls + 2).then_some(()));
    assert!(pair.peer.was_last_called_with("bad 0"));
    eventually("it is reported", || (pair.own.metric(SUCCESSFUL) == Some(1.0)).then_some(()));
    assert_eq!(pair.peer.metric(SUCCESSFUL), Some(0.0));
}

/// `--web-config-file`: TLS, client certificates and users; what rotates.
#[test]
fn one_web_configuration_has_the_peers_answers() {
    let (dir, pki) = (tempfile::tempdir().unwrap(), Pki::new());
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(at("rules")).unwrap();
    for (name, text) in ["tls.crt", "tls.key"].iter().zip(pki.issue()) {
        write(name, &text);
    }
    write("ca.crt", &pki.ca());
    let users = |password: &str| format!("basic_auth_users: {{me: {}}}\n", hash(password));
    let pair = "cert_file: tls.crt, key_file: tls.key";
    let tls = format!("tls_server_config: {{{pair}, min_version: TLS12}}\n");
    let clients = "client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt";
    let clients = format!("tls_server_config: {{{pair}, min_version: TLS13, {clients}}}\n");
    let asks = [None, Some(("me", "a")), Some(("me", "b")), Some(("you", "a")), Some(("", ""))];
    for config in [String::new(), users("a"), tls.clone(), tls + &users("a"), clients] {
        write("web.yaml", &config);
        let port = free_port();
        let args = [&*format!("--watched-dir={}", at("rules")), &format!("--web-config-file={}", at("web.yaml"))];
        let mut command = Command::new(program());
        command
            .args(args)
            .arg(format!("--listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let peer = Killed(command.stdin(Stdio::null()).spawn().unwrap());
        let own = Sidecar::start_as_peer(Path::new(PEER), Path::new(&at("log")), &[], &args);
        let addresses = [([127, 0, 0, 1], port).into(), own.address("--listen")];
        eventually("the peer listens", || TcpStream::connect(addresses[0]).ok());
        eventually("it is ready", || own.log().contains("published").then_some(()));
        let answers = |address| {
            let mut answers = Vec::new();
            for client in [None, Some(pki.client(None)), Some(pki.client(Some(&pki.issue())))] {
                for path in ["/metrics", "/healthz", "/nowhere"] {
                    for user in asks {
                        let answer = get(address, client.as_ref(), path, user);
                        let said = answer.as_deref().unwrap_or_default().to_lowercase();
                        let asked = said.lines().find(|line| line.starts_with("www-authenticate")).map(str::to_owned);
                        // Which words a refusal has is theirs, but for these.
                        let said = said.rsplit("\r\n").next().filter(|_| matches!(code(&answer), 400 | 401));
                        let said = said.map(str::to_owned);
                        answers.push((path, client.is_some(), user, code(&answer), asked, said));
                    }
                }
            }
            answers
        };
        let [of_peer, of_own] = addresses.map(answers);
        assert_eq!(of_own, of_peer, "{config}");
        if config.contains("basic_auth_users") {
            // Both read it anew.
            write("web.yaml", &config.replace(config.lines().last().unwrap(), users("b").trim_end()));
            let [of_peer, of_own] = addresses.map(answers);
            assert_eq!(of_own, of_peer, "{config}");
            assert!(of_own.iter().any(|(.., user, code, _, _)| *user == Some(("me", "b")) && *code == 200));
        }
        drop(peer);
    }
}

/// A child that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
