//! `--watch-url`: a real nginx that has a file, and servers that break off, hang and refuse.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::support::child::Running;
use super::support::nginx;
use super::support::port::free_port;
use super::support::scene::Scene;
use super::support::sidecar::{Sidecar, eventually, run, trimtab};

/// An nginx that has the files of a folder, and notes what it answers.
struct Nginx {
    // It ends before its folder goes.
    running: Option<Running>,
    scene: Scene,
    port: u16,
}

impl Nginx {
    fn start() -> Self {
        let scene = Scene::new();
        fs::create_dir(scene.at("www")).unwrap();
        let mut nginx = Self { scene, port: free_port(), running: None };
        nginx.start_again();
        nginx
    }

    fn start_again(&mut self) {
        self.running = Some(nginx::start(&self.scene, self.port, "$status $body_bytes_sent", ""));
    }

    fn stop(&mut self) {
        self.running = None;
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}?token=canary", self.port)
    }

    /// Puts a file in its place; as nobody writes to it any more, in the past.
    fn put(&self, name: &str, content: impl AsRef<[u8]>, age: u64) {
        let new = self.scene.at("new");
        fs::write(&new, content).unwrap();
        let modified = SystemTime::now() - Duration::from_secs(age);
        fs::File::options().write(true).open(&new).unwrap().set_modified(modified).unwrap();
        fs::rename(new, self.scene.at("www").join(name)).unwrap();
    }

    /// A file and its signature by minisign, with more flags.
    fn sign(&self, name: &str, key: &str, flags: &[&str]) {
        let (content, signature) = (self.scene.at("www").join(name), self.scene.text("new.minisig"));
        minisign(&[&["-S", "-s", key, "-x", &signature, "-m", content.to_str().unwrap()], flags].concat());
        fs::rename(signature, self.scene.at("www").join(format!("{name}.minisig"))).unwrap();
    }

    /// Each status with the body's length.
    fn answers(&self) -> Vec<String> {
        let log = fs::read_to_string(self.scene.at("access.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

fn minisign(flags: &[&str]) {
    let binary = std::env::var("TRIMTAB_TEST_MINISIGN").expect("TRIMTAB_TEST_MINISIGN is not set: run `make test`");
    let made = Command::new(binary).args(flags).stdin(Stdio::null()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// A server that sends these bytes to whoever asks, and then closes the connection or holds it.
struct Raw {
    address: SocketAddr,
    answer: Arc<Mutex<(String, bool)>>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Raw {
    fn start(answer: &str, stays: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let raw = Self {
            address: listener.local_addr().unwrap(),
            answer: Arc::new(Mutex::new((answer.to_owned(), stays))),
            heads: Arc::default(),
        };
        let (answer, heads) = (raw.answer.clone(), raw.heads.clone());
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for mut stream in listener.incoming().flatten() {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0) {
                    head.push(byte[0]);
                }
                heads.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
                let (bytes, stays) = answer.lock().unwrap().clone();
                let _ = stream.write_all(bytes.as_bytes());
                if stays {
                    kept.push(stream);
                }
            }
        });
        raw
    }

    fn answer(&self, answer: &str, stays: bool) {
        *self.answer.lock().unwrap() = (answer.to_owned(), stays);
    }

    fn url(&self) -> String {
        format!("http://{}/list.txt", self.address)
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn source(status: &Value) -> String {
    status["sources"].to_string()
}

fn published(scene: &Scene, content: &str) {
    eventually(&format!("{content:?} is published"), || {
        (scene.published("list.txt").as_deref() == Some(content)).then_some(())
    });
}

#[test]
fn file_of_a_real_nginx_is_published_and_costs_nothing_while_it_stays() {
    let mut nginx = Nginx::start();
    nginx.put("list.txt", "1", 3600);
    let scene = Scene::new();
    let url = format!("geo={}", nginx.url("list.txt"));
    let mut sidecar = scene.start(&["--watch-url", &url, "--url-poll", "100ms", "--debounce", "10ms"]);
    published(&scene, "1");
    sidecar.until_idle();
    eventually("unchanged, it is not sent", || {
        (nginx.answers().iter().filter(|line| *line == "304 0").count() >= 2).then_some(())
    });
    assert_eq!(nginx.answers().iter().filter(|line| line.starts_with("200")).count(), 1, "{:?}", nginx.answers());

    // With the same length, in the same second: an ETag of nginx's does not show which it is.
    nginx.put("list.txt", "2", 0);
    published(&scene, "2");
    nginx.put("list.txt", "3", 0);
    published(&scene, "3");

    // A name for a content does not outlive it.
    nginx.put("list.txt", "4", 3600);
    published(&scene, "4");
    sidecar.until_idle();
    sidecar.kill();
    let so_far = nginx.answers().len();
    sidecar.start_again();
    let first = eventually("it asks", || nginx.answers().get(so_far).cloned());
    assert_eq!(first, "200 1", "after a restart it is fetched whole");
    sidecar.until_idle();

    nginx.stop();
    let status = sidecar.until("it is missed", |status| source(status).contains("no connection"));
    assert!(source(&status).contains("what was fetched before stays"), "{status}");
    assert_eq!(scene.published("list.txt").as_deref(), Some("4"));
    nginx.start_again();
    nginx.put("list.txt", "5", 7200);
    published(&scene, "5");
    fs::remove_file(nginx.scene.at("www/list.txt")).unwrap();
    sidecar.until("its absence is reported", |status| source(status).contains("--on-delete keep"));
    assert_eq!(scene.published("list.txt").as_deref(), Some("5"));
    assert!(!sidecar.log().contains("canary") && !sidecar.status().to_string().contains("canary"));
}

#[test]
fn part_of_a_file_is_never_published_and_a_kill_during_a_fetch_leaves_nothing() {
    let raw = Raw::start(&ok("whole"), false);
    let scene = Scene::new();
    let mut sidecar = scene.start(&["--watch-url", &raw.url(), "--url-poll", "100ms", "--debounce", "10ms"]);
    published(&scene, "whole");
    sidecar.until_idle();
    raw.answer("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhalf", false);
    let status = sidecar.until("it is refused", |status| source(status).contains("broke off"));
    assert!(source(&status).contains("what was fetched before stays"), "{status}");
    assert_eq!(scene.published("list.txt").as_deref(), Some("whole"));
    raw.answer("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhalf", true);
    let so_far = raw.heads.lock().unwrap().len();
    kill(sidecar.pid(), Signal::SIGHUP).unwrap();
    eventually("a fetch hangs", || (raw.heads.lock().unwrap().len() > so_far).then_some(()));
    sidecar.kill();
    assert_eq!(scene.published("list.txt").as_deref(), Some("whole"));
    eventually("nothing is left behind", || scene.left_behind().is_empty().then_some(()));
    sidecar.start_again();
    sidecar.until("it waits", |status| status["phase"].is_string());
    raw.answer(&ok("new"), false);
    kill(sidecar.pid(), Signal::SIGHUP).unwrap();
    published(&scene, "new");
    sidecar.until_idle();
    eventually("nothing is left behind", || scene.left_behind().is_empty().then_some(()));
}

#[test]
fn bundle_that_the_system_tar_made_is_published_as_its_files() {
    let nginx = Nginx::start();
    let pack = |from: &str, to: &str, flags: &str| {
        let folder = nginx.scene.text(from);
        let new = nginx.scene.text("new.tar.gz");
        let tar = Command::new("tar").args([flags, &new, "-C", &folder, "."]).status().unwrap();
        assert!(tar.success());
        fs::rename(new, nginx.scene.at("www").join(to)).unwrap();
    };
    fs::create_dir_all(nginx.scene.at("one/sites")).unwrap();
    fs::write(nginx.scene.at("one/top.conf"), "1").unwrap();
    fs::write(nginx.scene.at("one/sites").join("x".repeat(150)), "long").unwrap();
    std::os::unix::fs::symlink("../top.conf", nginx.scene.at("one/sites/link")).unwrap();
    pack("one", "web.tar.gz", "-czf");
    let scene = Scene::new();
    let url = format!("web={}", nginx.url("web.tar.gz"));
    let flags = ["--watch-url", &url, "--url-poll", "100ms", "--debounce", "10ms"];
    let sidecar = scene.start(&[&flags[..], &["--path", "{name}/{key}"]].concat());
    let has = |path: &str, content: &str| {
        eventually(path, || (scene.published(path).as_deref() == Some(content)).then_some(()));
    };
    has("web/top.conf", "1");
    has("web/sites/link", "1");
    has(&format!("web/sites/{}", "x".repeat(150)), "long");
    // One that leads out, and an error page.
    fs::create_dir(nginx.scene.at("two")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", nginx.scene.at("two/passwd")).unwrap();
    pack("two", "web.tar.gz", "-czf");
    sidecar.until("the link is refused", |status| source(status).contains("leads out of the bundle"));
    nginx.put("web.tar.gz", "<html>502</html>", 3600);
    sidecar.until("the page is refused", |status| source(status).contains("no tar.gz archive"));
    has("web/top.conf", "1");
    fs::write(nginx.scene.at("one/top.conf"), "2").unwrap();
    pack("one", "web.tar.gz", "-czf");
    has("web/top.conf", "2");
    sidecar.until_idle();
}

/// What is larger than the margin below, twice, does not stand in memory: neither a file nor those of a bundle.
#[test]
fn large_files_of_urls_are_published_and_never_held() {
    let nginx = Nginx::start();
    let content = |number: usize, length: usize| {
        let line = format!("{number}: what a list has many lines of\n");
        let mut content = line.repeat(length / line.len() + 1).into_bytes();
        content.truncate(length);
        content
    };
    let pack = |length: usize| {
        fs::create_dir_all(nginx.scene.at("lists")).unwrap();
        (0..6).for_each(|number| {
            fs::write(nginx.scene.at("lists").join(format!("{number}.list")), content(number, length)).unwrap();
        });
        let (folder, new) = (nginx.scene.text("lists"), nginx.scene.text("new.tar"));
        assert!(Command::new("tar").args(["-cf", &new, "-C", &folder, "."]).status().unwrap().success());
        fs::rename(new, nginx.scene.at("www/lists.tar")).unwrap();
    };
    nginx.put("geo.db", "small", 3600);
    pack(100);
    let scene = Scene::new();
    let (geo, lists) = (format!("geo={}", nginx.url("geo.db")), format!("lists={}", nginx.url("lists.tar")));
    let flags = ["--watch-url", &geo, "--watch-url", &lists, "--url-poll", "1h", "--max-size", "100Mi"];
    let mut sidecar = scene.start(&flags);
    sidecar.until_idle();
    let memory = |what: &str| -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", sidecar.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
    };
    let before = memory("VmRSS");
    nginx.put("geo.db", content(9, 40 << 20), 3600);
    pack(7 << 20);
    kill(sidecar.pid(), Signal::SIGHUP).unwrap();
    let is = |path: &str, content: &[u8]| fs::read(scene.output.join(path)).is_ok_and(|found| found == content);
    eventually("the file is published", || is("geo.db", &content(9, 40 << 20)).then_some(()));
    eventually("the bundle is published", || {
        (0..6).all(|number| is(&format!("{number}.list"), &content(number, 7 << 20))).then_some(())
    });
    sidecar.until_idle();
    let most = memory("VmHWM");
    println!("{before} kB before, {most} kB at most");
    assert!(most < before + 20_000, "{before} kB before, {most} kB at most: a body or a file was held");
    // A kill leaves nothing of what was kept.
    sidecar.kill();
    eventually("nothing is left behind", || scene.left_behind().is_empty().then_some(()));

    // What is secret, and of which templates make the files, is on no disk.
    let template = scene.at("app.conf.j2");
    fs::write(&template, "{{ data['geo.db'] | length }}").unwrap();
    let output = scene.text("secret");
    let flags = ["--watch-url", &geo, "--secret-url", "geo", "--max-size", "100Mi", "--output", &output];
    let flags = [&flags[..], &["--template", template.to_str().unwrap(), "--url-poll", "1h"]].concat();
    let sidecar = Sidecar::start(&scene.at("log-of-secret"), &flags);
    sidecar.until_idle();
    assert_eq!(fs::read_to_string(PathBuf::from(output).join("app.conf")).unwrap(), (40 << 20).to_string());
    let files = fs::read_dir(format!("/proc/{}/fd", sidecar.pid())).unwrap();
    for file in files.map(|file| file.unwrap().path()) {
        let Ok(name) = fs::read_link(&file) else { continue };
        if name.to_string_lossy().ends_with("(deleted)") && name.starts_with(scene.at("")) {
            assert_eq!(fs::metadata(&file).unwrap().len(), 0, "{name:?}");
        }
    }
}

#[test]
fn what_is_signed_is_used_only_with_a_signature_by_a_key_of_its_own() {
    let nginx = Nginx::start();
    let at = |name: &str| nginx.scene.text(name);
    for key in ["one", "two"] {
        minisign(&["-G", "-W", "-p", &at(&format!("{key}.pub")), "-s", &at(&format!("{key}.key"))]);
    }
    fs::create_dir(nginx.scene.at("web")).unwrap();
    fs::write(nginx.scene.at("web/top.conf"), "1").unwrap();
    let tar = Command::new("tar").args(["-czf", &at("www/web.tar.gz"), "-C", &at("web"), "."]).status().unwrap();
    assert!(tar.success());
    nginx.sign("web.tar.gz", &at("one.key"), &[]);
    nginx.put("list.txt", "1", 3600);
    nginx.sign("list.txt", &at("two.key"), &["-l"]);
    let scene = Scene::new();
    let urls = [format!("web={}", nginx.url("web.tar.gz")), format!("list={}", nginx.url("list.txt"))];
    let keys = [format!("web={}", at("one.pub")), format!("list={}", at("two.pub"))];
    let flags = ["--watch-url", &urls[0], "--watch-url", &urls[1], "--url-key", &keys[0], "--url-key", &keys[1]];
    let sidecar = scene.start(&[&flags[..], &["--url-poll", "1h", "--debounce", "10ms"]].concat());
    published(&scene, "1");
    sidecar.until_idle();
    assert_eq!(scene.published("top.conf").as_deref(), Some("1"));
    let refused = |what: &str, words: &str| {
        kill(sidecar.pid(), Signal::SIGHUP).unwrap();
        let status = sidecar.until(what, |status| source(status).contains(words));
        assert!(source(&status).contains("what was fetched before stays"), "{status}");
        assert_eq!(scene.published("list.txt").as_deref(), Some("1"));
        assert_eq!(scene.published("top.conf").as_deref(), Some("1"));
    };
    nginx.put("list.txt", "2", 3000);
    refused("the signature is an older one's", "is of another content");
    fs::remove_file(nginx.scene.at("www/list.txt.minisig")).unwrap();
    refused("it has no signature", "it is not signed");
    // By the key of another URL.
    nginx.sign("list.txt", &at("one.key"), &[]);
    refused("it is a stranger's", "signed with the key");
    // Not an archive: nobody looks before it is verified.
    nginx.put("web.tar.gz", "<html>", 3600);
    refused("the bundle is not verified", "web.tar.gz.minisig?… is of another content");
    assert!(!sidecar.log().contains("tar.gz archive"), "{}", sidecar.log());
    // Both are trusted while the one takes the other's place.
    let both = ["one.pub", "two.pub"].map(|name| fs::read_to_string(nginx.scene.at(name)).unwrap()).concat();
    fs::write(nginx.scene.at("two.pub"), both).unwrap();
    kill(sidecar.pid(), Signal::SIGHUP).unwrap();
    published(&scene, "2");
    assert!(!sidecar.log().contains("canary"));
}

#[test]
fn absent_file_is_waited_for_and_a_retry_asks_at_once() {
    let raw = Raw::start("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", false);
    let scene = Scene::new();
    let template = scene.at("app.conf.j2");
    fs::write(&template, "{{ url('geo')['list.txt'] }} {{ data['list.txt'] }}").unwrap();
    let (url, template) = (format!("geo={}", raw.url()), template.to_str().unwrap().to_owned());
    let sidecar = scene.start(&["--watch-url", &url, "--url-poll", "1h", "--template", &template]);
    let status = sidecar.until("it is waited for", |status| source(status).contains("does not exist"));
    assert_eq!(status["ready"], false);
    raw.answer(&ok("x"), false);
    let admin = sidecar.address("--admin").to_string();
    let (code, said) = run(trimtab().args(["retry", "--admin", &admin]));
    assert_eq!(code, Some(0), "{said}");
    eventually("it is rendered", || (scene.published("app.conf").as_deref() == Some("x x")).then_some(()));
}

#[test]
fn secret_of_a_url_is_a_secret_and_goes_by_its_header() {
    use std::os::unix::fs::PermissionsExt as _;
    let raw = Raw::start(&ok("hidden-canary"), false);
    let scene = Scene::new();
    let token = scene.at("token");
    fs::write(&token, "Bearer header-canary\n").unwrap();
    let header = format!("geo=Authorization: @{}", token.display());
    let url = format!("geo={}", raw.url());
    let flags = ["--watch-url", &url, "--secret-url", "geo", "--url-header", &header, "--once"];
    let mut sidecar = scene.start(&flags);
    assert_eq!(sidecar.exit_code(), Some(0));
    assert_eq!(scene.published("list.txt").as_deref(), Some("hidden-canary"));
    let mode = fs::metadata(scene.output.join("list.txt")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert!(raw.heads.lock().unwrap()[0].contains("authorization: Bearer header-canary"));
    assert!(!sidecar.log().contains("canary"), "{}", sidecar.log());
}

#[test]
fn check_fetches_what_url_keys_name() {
    let (nginx, scene) = (Nginx::start(), Scene::new());
    nginx.put("list.txt", "12345", 3600);
    fs::create_dir(scene.at("in")).unwrap();
    let key = |name: &str, url: &str| fs::write(scene.at("in").join(name), url).unwrap();
    let at = |path: &str| format!("http://127.0.0.1:{}/{path}", nginx.port);
    key("a.url", &at("list.txt"));
    key("b.url", &at("none"));
    key("c.url", "http://elsewhere.example/c");
    let flags = scene.flags(&["--watch-dir", &scene.text("in"), "--url-hosts", "127.0.0.1"]);
    let check = || run(trimtab().arg("check").args(&flags));
    let (code, said) = check();
    let parts = [
        &*format!("{} has 5 bytes, for key \"a.url\"", at("list.txt")),
        "problem: dir/in",
        "key \"b.url\"",
        "nothing is there (404)",
        "names elsewhere.example, and nothing is fetched from hosts that --url-hosts",
        "2 problems",
    ];
    assert!(code == Some(1) && parts.iter().all(|part| said.contains(part)), "{code:?}: {said}");
    for name in ["b.url", "c.url"] {
        fs::remove_file(scene.at("in").join(name)).unwrap();
    }
    let (code, said) = check();
    assert!(code == Some(0) && said.contains("no problems found"), "{code:?}: {said}");
    assert!(!scene.output.exists());
}

#[test]
fn start_that_waits_for_the_server_of_a_url_key_says_so() {
    // The kernel takes connections, and nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let scene = Scene::new();
    fs::create_dir(scene.at("in")).unwrap();
    let url = format!("http://{}/list", silent.local_addr().unwrap());
    fs::write(scene.at("in/a.url"), &url).unwrap();
    let sidecar = scene.start(&["--watch-dir", &scene.text("in"), "--url-hosts", "127.0.0.1", "--url-timeout", "10m"]);
    let status = sidecar.until("it waits", |status| status["verdict"]["state"] == "waiting");
    let parts = ["dir/in: what", &url, "has for its key \"a.url\"", "--url-timeout"];
    let summary = status["verdict"]["summary"].as_str().unwrap();
    assert!(parts.iter().all(|part| summary.contains(part)), "{summary}");
    assert!(status["waitsFor"]["reason"].as_str().unwrap().contains(&url), "{status}");
    assert!(status["sources"][0]["message"].as_str().unwrap().contains(&url), "it has keys: {status}");
    eventually("the log says it", || sidecar.log().contains(summary).then_some(()));
}

#[test]
fn proxy_that_the_environment_names_is_used_and_one_that_refuses_is_named() {
    let nginx = Nginx::start();
    nginx.put("list.txt", "1", 3600);
    let (scene, port) = (Scene::new(), free_port());
    let log = scene.text("proxy.log");
    let conf = format!(
        "Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 10\nLogLevel Info\nLogFile \"{log}\"\nBasicAuth user canary\n"
    );
    fs::write(scene.at("proxy.conf"), conf).unwrap();
    let binary = std::env::var("TRIMTAB_TEST_TINYPROXY").expect("TRIMTAB_TEST_TINYPROXY is not set: run `make test`");
    let proxy = Command::new(binary).args(["-d", "-c", &scene.text("proxy.conf")]).stdout(Stdio::null()).spawn();
    let _proxy = Running(proxy.unwrap());
    eventually("the proxy serves", || TcpStream::connect(("127.0.0.1", port)).ok());
    // No proxy is for this machine; this is its name for resolvers, and only they know.
    let url = format!("http://127.1:{}/list.txt", nginx.port);
    let flags = scene.flags(&["--watch-url", &url, "--once", "--once-timeout", "10s"]);
    let check = |proxy: &str| {
        run(trimtab().arg("check").args(&flags).env("HTTP_PROXY", proxy).env("NO_PROXY", "").env_remove("HTTPS_PROXY"))
    };
    let (code, said) = check(&format!("http://127.0.0.1:{port}"));
    let words = format!("through the proxy at 127.0.0.1:{port} (HTTP_PROXY): the server answered 407");
    assert!(code == Some(1) && said.contains(&words) && said.contains("USER:PASSWORD"), "{code:?}: {said}");
    let (code, said) = check("http://user:canary@127.0.0.1:1");
    assert!(
        code == Some(1) && said.contains("the proxy at 127.0.0.1:1 (HTTPS_PROXY or HTTP_PROXY"),
        "{code:?}: {said}"
    );
    assert!(!said.contains("canary"), "{said}");
    assert!(nginx.answers().is_empty(), "{:?}", nginx.answers());
    let once = |proxy: &str, none: &str| {
        run(trimtab().args(&flags).env("HTTP_PROXY", proxy).env("NO_PROXY", none).env_remove("HTTPS_PROXY"))
    };
    let (code, said) = once(&format!("http://user:canary@127.0.0.1:{port}"), "");
    assert!(code == Some(0) && !said.contains("canary"), "{code:?}: {said}");
    assert_eq!(scene.published("list.txt").as_deref(), Some("1"));
    let seen = fs::read_to_string(&log).unwrap();
    assert!(seen.contains("GET http://127.1:"), "{seen}");
    nginx.put("list.txt", "2", 3000);
    let (code, said) = once("http://127.0.0.1:1", "example.org,127.1");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(scene.published("list.txt").as_deref(), Some("2"));
}

#[test]
fn check_and_render_fetch_and_say_what_is_wrong() {
    let raw = Raw::start("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", false);
    let scene = Scene::new();
    let url = format!("geo={}", raw.url());
    let flags = scene.flags(&["--watch-url", &url, "--once-timeout", "100ms"]);
    let dry = |subcommand: &str| run(trimtab().arg(subcommand).args(&flags));
    let (code, said) = dry("check");
    assert!(code == Some(77) && said.contains("url/geo") && said.contains("--url-header"), "{code:?}: {said}");
    let (code, said) = dry("render");
    assert!(code == Some(77) && said.contains("answered 403"), "{code:?}: {said}");
    raw.answer("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", false);
    let (code, said) = dry("check");
    assert!(code == Some(1) && said.contains("answers 404"), "{code:?}: {said}");
    raw.answer(&ok("1\n"), false);
    let (code, said) = dry("check");
    assert!(code == Some(0) && said.contains("bytes in 1 keys"), "{code:?}: {said}");
    let flags = scene.flags(&["--watch-url", &url]);
    let (code, said) = run(trimtab().arg("render").args(&flags));
    assert!(code == Some(0) && said.contains("+1"), "{code:?}: {said}");
    assert!(!scene.output.exists());
}

#[test]
fn urls_that_make_no_sense_are_refused_without_being_quoted() {
    let output = PathBuf::from("/no/such/output");
    for (flags, words) in [
        (&["--watch-url", "https://user:canary@host/x"][..], "--url-header"),
        (&["--watch-url", "ftp://host/canary"], "http://, https://, s3://, gs:// or az://"),
        (&["--watch-url", "unix:///run/x.sock:/canary"], "http://, https://, s3://, gs:// or az://"),
        (&["--watch-url", "https://host/"], "no last segment"),
        (&["--watch-url", "http://host/a", "--watch-url", "https://host/b/a"], "NAME=URL"),
        (&["--watch-url", "http://host/a", "--url-poll", "1ms"], "--url-poll"),
        (&["--watch-url", "http://host/a", "--url-timeout", "0"], "--url-timeout"),
        (&["--watch-url", "http://host/a", "--secret-url", "b"], "--secret-url b"),
        (&["--watch-url", "http://host/a", "--url-key", "b=/x"], "--url-key b: no --watch-url"),
        (&["--watch-url", "http://host/a", "--url-key", "a="], "--url-key NAME=FILE"),
        (&["--watch-url", "http://host/a", "--url-key", "/x", "--url-key", "a=/y"], "into one file"),
        (&["--watch-url", "http://host/a", "--watch-url", "http://host/b", "--url-key", "/x"], "whose content"),
        (&["--watch-dir", "/x", "--url-key", "/y"], "goes with --watch-url"),
        (&["--watch-url", "http://host/a", "--url-header", "b=K: canary"], "--url-header b"),
        (
            &["--watch-url", "http://host/a", "--watch-url", "http://host/b", "--url-header", "K: canary"],
            "say which one",
        ),
        (&["--watch-url", "http://host/a", "--url-header", "Authorization: canary"], "@FILE"),
        (&["--watch-url", "http://host/a", "--url-key-file", "/x"], "--url-cert-file"),
        (&["--watch-dir", "/x", "--secret-url", "b"], "goes with --watch-url"),
    ] {
        let (code, said) = run(trimtab().args(flags).arg("--output").arg(&output));
        assert!(code == Some(64) && said.contains(words), "{flags:?}: {code:?}: {said}");
        assert!(!said.contains("canary"), "{said}");
    }
}
