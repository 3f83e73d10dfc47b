//! Notifying the main process: by signal, by HTTP, by a program; what is retried, refused, joined and left alone.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::support::child::pid_of;
use super::support::hook::{Answer, Call, Hook, Port};
use super::support::port::free_port;
use super::support::sidecar::{Sidecar, eventually, needs_root};
use super::support::stage::{Stage, metric, problem};

const NOBODY: u32 = 65534;
const AS_NOBODY: &[&str] = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
const ALONE: &[&str] = &["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// What is newer must be delivered within this, whatever the older one hangs on.
const SOON: Duration = Duration::from_secs(5);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Waits for the `count`th call; the calls.
#[track_caller]
fn calls(hook: &Hook, count: usize) -> Vec<Call> {
    eventually(&format!("call number {count}"), || Some(hook.calls()).filter(|calls| calls.len() >= count))
}

/// Waits until the hook has seen this content.
#[track_caller]
fn delivered(hook: &Hook, content: &str) {
    eventually(&format!("the hook sees {content:?}"), || (hook.last_saw()? == content).then_some(()));
}

/// Whether a call has this header.
fn has(call: &Call, name: &str, value: &str) -> bool {
    call.head.iter().filter_map(|line| line.split_once(": ")).any(|(n, v)| n.eq_ignore_ascii_case(name) && v == value)
}

// --- nginx -----------------------------------------------------------------------------------------------------------

pub(super) fn nginx_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("TRIMTAB_TEST_NGINX") {
        return path.into();
    }
    debian("nginx")
}

/// A program of Debian's.
fn debian(name: &str) -> PathBuf {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/debian");
    let output = Command::new(tool).arg(name).output().expect("tests/tools/debian");
    assert!(output.status.success(), "no {name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// A server with two workers that answers with what `data.greeting` says.
struct Nginx {
    stage: Stage,
    port: u16,
    greeting: u32,
    child: Option<Child>,
}

impl Nginx {
    fn prepare() -> Self {
        let mut stage = Stage::new("");
        let port = free_port();
        stage.volume.swap(&[("greeting", "0")]);
        let own = stage.text("nginx");
        fs::create_dir(&own).unwrap();
        stage.write(
            "nginx.conf.j2",
            format!(
                "worker_processes 2;
                daemon off;
                pid {own}/nginx.pid;
                error_log {own}/error.log;
                events {{ worker_connections 64; }}
                http {{
                    access_log off;
                    client_body_temp_path {own}; proxy_temp_path {own}; fastcgi_temp_path {own};
                    uwsgi_temp_path {own}; scgi_temp_path {own};
                    server {{
                        listen 127.0.0.1:{port};
                        location / {{ return 200 \"[{{{{ data.greeting }}}}]\"; }}
                    }}
                }}"
            ),
        );
        Self { stage, port, greeting: 0, child: None }
    }

    fn flags(&self, target: &[&str]) -> Vec<String> {
        let template = self.stage.text("nginx.conf.j2");
        let own = ["--template", &template, "--retry-max", "500ms", "--signal", "HUP"];
        own.iter().chain(target).map(|flag| (*flag).to_owned()).collect()
    }

    fn command(&self) -> Vec<String> {
        let (own, conf) = (self.stage.text("nginx"), self.stage.text("conf/nginx.conf"));
        let error_log = format!("{own}/error.log");
        let nginx = nginx_binary().to_str().unwrap().to_owned();
        [&nginx, "-p", &own, "-e", &error_log, "-c", &conf].map(str::to_owned).into()
    }

    fn start(&mut self) {
        eventually("the first configuration is published", || self.stage.at("conf/nginx.conf").exists().then_some(()));
        let command = self.command();
        self.child = Some(Command::new(&command[0]).args(&command[1..]).stdin(Stdio::null()).spawn().unwrap());
    }

    /// Its master's pid, as it sees it itself.
    fn master(&self) -> i64 {
        let pid = || fs::read_to_string(self.stage.at("nginx/nginx.pid")).ok()?.trim().parse().ok();
        eventually("nginx runs", pid)
    }

    fn answer(&self) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(SOON)).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer.split_once('[')?.1.split_once(']')?.0.to_owned())
    }

    /// 20 edits, each of them answered; the master alone is signalled, once for each.
    #[track_caller]
    fn follows(&mut self, sidecar: &Sidecar) {
        sidecar.until_idle();
        let master = self.master();
        for _ in 0..20 {
            self.greeting += 1;
            let greeting = self.greeting.to_string();
            self.stage.volume.swap(&[("greeting", &greeting)]);
            eventually(&format!("nginx answers {greeting}"), || (self.answer()? == greeting).then_some(()));
        }
        let status = sidecar.until_idle();
        let target = &status["target"];
        assert_eq!((&target["state"], &target["name"]), (&"found".into(), &"nginx".into()), "{status}");
        assert_eq!(target["pid"], master, "the master, no worker");
        assert_eq!(self.master(), master, "it is still the same");
        let log = sidecar.log();
        for sequence in 2..=21 {
            // The first generation is due if nginx began to start before it was published.
            let sent = format!("SIGHUP was sent to nginx (pid {master}) sequence={sequence}\n");
            assert_eq!(log.matches(&sent).count(), 1, "one for each edit");
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Its workers end with it.
            let _ = kill(pid_of(child), Signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

#[test]
fn nginx_answers_by_each_new_configuration_when_its_pid_file_is_given() {
    let mut nginx = Nginx::prepare();
    let pid_file = nginx.stage.text("nginx/nginx.pid");
    let flags = nginx.flags(&["--pid-file", &pid_file, "--process", "nginx"]);
    let sidecar = nginx.stage.start(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    nginx.start();
    nginx.follows(&sidecar);
}

#[test]
fn nginx_is_found_by_its_command_line_among_others() {
    let mut nginx = Nginx::prepare();
    let pattern = regex_lite::escape(&nginx.stage.text("nginx"));
    let flags = nginx.flags(&["--process", "nginx", "--process-args", &pattern]);
    let sidecar = nginx.stage.start(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    nginx.start();
    nginx.follows(&sidecar);
}

/// In a process namespace of their own, as in a Pod: name alone must distinguish the master from its workers.
#[test]
fn nginx_master_is_distinguished_from_its_workers_by_name_alone() {
    needs_root("make a process namespace");
    let mut nginx = Nginx::prepare();
    let script = "(until [ -e $CONF ]; do sleep 0.05; done; exec $NGINX) & \"$@\" & wait";
    let script = script.replace("$CONF", &nginx.stage.text("conf/nginx.conf"));
    let script = script.replace("$NGINX", &nginx.command().join(" "));
    let flags = nginx.flags(&["--process", "nginx"]);
    let program = [ALONE, &["sh", "-c", &script, "-"]].concat();
    let sidecar = nginx.stage.start_by(&program, &flags.iter().map(String::as_str).collect::<Vec<_>>());
    nginx.follows(&sidecar);
}

// --- HTTP ------------------------------------------------------------------------------------------------------------

#[test]
fn hook_that_comes_up_late_is_called_after_growing_random_waits() {
    let mut stage = Stage::new("1");
    let port = Port::take();
    let sidecar = stage.start(&["--reload-url", &port.url(), "--retry-min", "50ms", "--retry-max", "400ms"]);
    let status = sidecar.until("the hook is waited for", |status| status["phase"] == "backoff");
    assert_eq!(status["debt"], "publish");
    assert_eq!(status["published"]["sequence"], 1);
    assert!(status["reloaded"].is_null() && status["confirmed"].is_null(), "{status}");
    assert!(problem(&status, "reload").contains("no connection: Connection refused"), "{status}");
    assert_eq!(metric(&sidecar, "reloader_last_reload_successful"), Some(0.0));
    assert_eq!(metric(&sidecar, "trimtab_debt"), Some(1.0));

    let hook = port.listen(Some(stage.file()), Answer::Code(503));
    calls(&hook, 1);
    // A newer generation begins the backoff anew.
    stage.edit("2");
    let attempts = eventually("nine attempts", || {
        let calls = hook.calls().into_iter().filter(|call| call.saw.as_deref() == Some("2"));
        Some(calls.map(|call| call.at).collect::<Vec<_>>()).filter(|attempts| attempts.len() >= 9)
    });
    let gaps: Vec<_> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (gap, step) in gaps.iter().zip([50, 100, 200, 400, 400, 400, 400, 400]) {
        // A random part of the step between one half and all of it, and what a busy machine takes.
        assert!(*gap >= ms(step) / 2 && *gap < ms(step) + ms(1000), "{gaps:?}");
    }
    let last = &gaps[3..];
    let alike = last.iter().all(|gap| gap.abs_diff(last[0]) < ms(5));
    assert!(!alike, "a fleet must not retry in step: {gaps:?}");

    hook.answer(Answer::Code(200));
    let status = sidecar.until_idle();
    assert!(status["errors"].as_object().unwrap().is_empty(), "{status}");
    assert_eq!(status["reloaded"]["sequence"], 2);
    assert_eq!(metric(&sidecar, "reloader_last_reload_successful"), Some(1.0));
    assert_eq!(metric(&sidecar, "trimtab_debt"), Some(0.0));
}

#[test]
fn hook_that_hangs_is_waited_for_and_newer_content_does_not_wait_behind_its_retries() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    // A retry is an hour away.
    let pace = ["--reload-timeout", "3s", "--retry-min", "1h", "--retry-max", "1h"];
    let sidecar = stage.start(&[&["--reload-url", &hook.url()], &pace[..]].concat());
    sidecar.until_idle();
    hook.answer(Answer::Hang);
    stage.edit("2");
    delivered(&hook, "2");
    stage.edit("3");
    delivered(&hook, "3");
    let calls = hook.calls();
    let [second, third] = ["2", "3"].map(|saw| calls.iter().find(|call| call.saw.as_deref() == Some(saw)).unwrap().at);
    // The main process goes on with what it was asked to do, whether anybody waits for its answer or not.
    assert!(third - second >= ms(2900), "the attempt was cut short after {:?}", third - second);
    hook.answer(Answer::Code(200));
    stage.edit("4");
    delivered(&hook, "4");
    assert_eq!(sidecar.until_idle()["confirmed"]["sequence"], 4);
    assert_eq!(metric(&sidecar, "reloader_last_reload_successful"), Some(1.0));
}

#[test]
fn resets_are_retried() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    let sidecar = stage.start(&["--reload-url", &hook.url(), "--retry-min", "20ms", "--retry-max", "50ms"]);
    sidecar.until_idle();
    hook.answer(Answer::Reset);
    stage.edit("2");
    calls(&hook, 6);
    let status = sidecar.until("it waits, and is not held", |status| status["phase"] == "backoff");
    assert!(!problem(&status, "reload").is_empty());
    hook.answer(Answer::Code(200));
    delivered(&hook, "2");
    assert_eq!(sidecar.until_idle()["confirmed"]["sequence"], 2);
}

#[test]
fn refusals_for_three_seconds_hold_the_generation_and_attempts_go_on_until_it_is_taken() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    let hold = ["--on-reject", "hold", "--retry-min", "1s", "--retry-max", "1s"];
    let sidecar = stage.start(&[&["--reload-url", &hook.url()], &hold[..]].concat());
    sidecar.until_idle();
    hook.answer(Answer::Code(500));
    stage.edit("2");
    // Half a second to one is between two attempts.
    eventually("it is held", || {
        let (phase, calls) = (sidecar.status()["phase"].clone(), hook.calls().len());
        assert!(phase != "held" || (1 + 4..=1 + 8).contains(&calls), "held after {} attempts", calls - 1);
        (phase == "held").then_some(())
    });
    let status = sidecar.status();
    assert_eq!(status["debt"], "publish");
    assert_eq!(status["lastGood"]["sequence"], 1);
    let message = problem(&status, "reload");
    assert!(message.contains("refused") && message.contains("answered 500"), "{message}");
    assert_eq!(metric(&sidecar, "reloader_last_reload_successful"), Some(0.0));
    let refused = hook.calls();
    assert!(refused[refused.len() - 1].at - refused[1].at >= ms(2900), "a second of trouble is no verdict");
    calls(&hook, refused.len() + 2);
    hook.answer(Answer::Code(200));
    let status = sidecar.until_idle();
    assert_eq!(status["lastGood"]["sequence"], 2);
    assert_eq!(metric(&sidecar, "reloader_last_reload_successful"), Some(1.0));
    assert_eq!(hook.last_saw().as_deref(), Some("2"));
}

#[test]
fn busy_answers_are_never_refusals() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    let sidecar = stage.start(&["--reload-url", &hook.url(), "--retry-min", "20ms", "--retry-max", "40ms"]);
    sidecar.until_idle();
    hook.answer(Answer::Code(429));
    stage.edit("2");
    for code in [408, 409, 423, 425, 429, 502, 503, 504] {
        hook.answer(Answer::Code(code));
        let enough = hook.calls().len() + 8;
        eventually("more attempts than --reload-attempts", || {
            assert_ne!(sidecar.status()["phase"], "held", "by {code}");
            (hook.calls().len() >= enough).then_some(())
        });
        let answer = format!("answered {code}: not now");
        sidecar.until("the error is reported", |status| problem(status, "reload").contains(&answer));
    }
    assert_eq!(sidecar.until("it waits", |status| status["phase"] == "backoff")["debt"], "publish");
    hook.answer(Answer::Code(200));
    sidecar.until_idle();
}

#[test]
fn redirect_is_refused_and_not_followed() {
    let mut stage = Stage::new("1");
    let (hook, elsewhere) = (Hook::start(Some(stage.file())), Hook::start(None));
    let url = hook.url();
    let flags = ["--reload-url", &url, "--retry-min", "20ms", "--retry-max", "40ms", "--reload-attempts", "2"];
    let sidecar = stage.start(&flags);
    sidecar.until_idle();
    hook.answer(Answer::Redirect(elsewhere.address()));
    stage.edit("2");
    let status = sidecar.until("it is held", |status| status["phase"] == "held");
    let message = problem(&status, "reload");
    assert!(message.contains("answered 302") && message.contains("redirects are not followed"), "{message}");
    assert!(message.contains("--reload-url"), "{message}");
    assert!(elsewhere.calls().is_empty(), "it was followed");
}

#[test]
fn status_codes_that_mean_success_are_as_the_flag_says() {
    let mut stage = Stage::new("1");
    let (hook, elsewhere) = (Hook::start(Some(stage.file())), Hook::start(None));
    hook.answer(Answer::Redirect(elsewhere.address()));
    let sidecar = stage.start(&["--reload-url", &hook.url(), "--reload-status", "2xx,302", "--retry-max", "300ms"]);
    sidecar.until_idle();
    hook.answer(Answer::Code(204));
    stage.edit("2");
    delivered(&hook, "2");
    assert_eq!(sidecar.until_idle()["confirmed"]["sequence"], 2);
    hook.answer(Answer::Code(301));
    stage.edit("3");
    sidecar.until("301 is refused", |status| problem(status, "reload").contains("answered 301"));
    assert!(elsewhere.calls().is_empty(), "it was followed");
}

#[test]
fn answer_slower_than_the_timeout_is_no_answer_and_is_retried() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    let url = hook.url();
    let flags = ["--reload-url", &url, "--reload-timeout", "300ms", "--retry-min", "100ms", "--retry-max", "100ms"];
    let sidecar = stage.start(&flags);
    sidecar.until_idle();
    hook.answer(Answer::Hang);
    stage.edit("2");
    let calls = calls(&hook, 1 + 5);
    // Four times the timeout and a wait; a busy machine may note the first call late.
    let took = calls[5].at - calls[1].at;
    assert!(took >= ms(4 * 300), "attempts were given up early: {took:?}");
    let status = sidecar.until("it waits, and is not held", |status| status["phase"] == "backoff");
    assert!(problem(&status, "reload").contains("no complete answer within 300ms"), "{status}");
    hook.answer(Answer::Code(200));
    assert_eq!(sidecar.until_idle()["confirmed"]["sequence"], 2);
}

#[test]
fn newer_content_never_waits_behind_the_retries_of_older_content() {
    let mut stage = Stage::new("1");
    let port = Port::take();
    let slow = ["--reload-url", &port.url(), "--retry-min", "30s", "--retry-max", "30s"];
    let sidecar = stage.start(&slow);
    sidecar.until("the hook is waited for", |status| status["phase"] == "backoff");
    // Unreachable, then refusing.
    let hook = port.listen(Some(stage.file()), Answer::Code(503));
    for (content, next) in [("2", Answer::Code(500)), ("3", Answer::Code(200)), ("4", Answer::Code(200))] {
        let edited = Instant::now();
        stage.edit(content);
        delivered(&hook, content);
        assert!(edited.elapsed() < SOON, "{content} waited for {:?}", edited.elapsed());
        hook.answer(next);
        sidecar.until("the attempt is over", |status| status["phase"] != "reloading");
    }
    assert_eq!(sidecar.until_idle()["confirmed"]["sequence"], 4);
    assert_eq!(hook.calls().len(), 3, "no more than one for each");
}

#[test]
fn of_several_urls_only_those_that_failed_are_called_again() {
    let mut stage = Stage::new("1");
    let hooks = [Hook::start(Some(stage.file())), Hook::start(Some(stage.file())), Hook::start(Some(stage.file()))];
    let urls = hooks.each_ref().map(Hook::url);
    let mut flags = vec!["--retry-min", "20ms", "--retry-max", "40ms"];
    flags.extend(urls.iter().flat_map(|url| ["--reload-url", url.as_str()]));
    hooks[1].answer(Answer::Code(503));
    let sidecar = stage.start(&flags);
    calls(&hooks[1], 5);
    assert_eq!(hooks[0].calls().len(), 1, "the first took it");
    assert!(hooks[2].calls().is_empty(), "the third has its turn after the second");
    hooks[1].answer(Answer::Code(200));
    sidecar.until_idle();
    assert_eq!(hooks[0].calls().len(), 1);
    let last = hooks.each_ref().map(|hook| hook.calls().last().unwrap().at);
    assert!(last.is_sorted(), "in the order given");
    assert_eq!(hooks[2].calls().len(), 1);
    // What is newer is delivered to all.
    let before = hooks[1].calls().len();
    stage.edit("2");
    for hook in &hooks {
        delivered(hook, "2");
    }
    sidecar.until_idle();
    assert_eq!(hooks.each_ref().map(|hook| hook.calls().len()), [2, before + 1, 2]);
}

#[test]
fn request_is_as_the_flags_say_and_credentials_are_read_on_each_call() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    let (url, token) = (hook.url(), stage.write("token", "token-one\n"));
    let from_file = format!("X-From-File: @{}", stage.write("header", "file-one\n"));
    let sidecar = stage.start(&[
        "--reload-url",
        &url,
        "--reload-method",
        "PUT",
        "--reload-body",
        "{\"now\": true}",
        "--reload-header",
        "X-Plain: a b, c",
        "--reload-header",
        &from_file,
        "--reload-token-file",
        &token,
    ]);
    sidecar.until_idle();
    stage.write("token", "token-two\n");
    stage.write("header", "file-two\n");
    stage.edit("2");
    let calls = calls(&hook, 2);
    for (call, number) in calls.iter().zip(["one", "two"]) {
        assert_eq!(call.head[0], "PUT /-/reload HTTP/1.1");
        assert_eq!(call.body, "{\"now\": true}");
        assert!(has(call, "X-Plain", "a b, c"), "{call:?}");
        assert!(has(call, "X-From-File", &format!("file-{number}")), "{call:?}");
        assert!(has(call, "Authorization", &format!("Bearer token-{number}")), "{call:?}");
    }
    sidecar.until_idle();
    fs::remove_file(stage.at("token")).unwrap();
    stage.edit("3");
    let status = sidecar.until("the file is missed", |status| !problem(status, "reload").is_empty());
    assert!(problem(&status, "reload").contains(&format!("--reload-token-file {token}")), "{status}");
    assert_eq!(hook.calls().len(), 2, "nothing is sent without it");
}

#[test]
fn body_is_read_from_what_is_published_on_each_call() {
    let mut stage = Stage::new("{\"apps\": 1}\n");
    let hook = Hook::start(None);
    let (url, body) = (hook.url(), format!("@{}", stage.text("conf/app.conf")));
    let sidecar = stage.start(&["--reload-url", &url, "--reload-body", &body]);
    sidecar.until_idle();
    stage.edit("{\"apps\": 2}\n");
    let calls = calls(&hook, 2);
    assert_eq!([&calls[0].body, &calls[1].body], ["{\"apps\": 1}\n", "{\"apps\": 2}\n"]);
}

#[test]
fn dead_first_address_of_a_host_is_passed_over() {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn};
    use nix::sys::socket::{bind, getsockname, listen, socket};

    needs_root("give the sidecar an /etc/hosts of its own");
    let stage = Stage::new("1");
    // Once its backlog of none is full, it drops each SYN.
    let dead = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(dead.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    listen(&dead, Backlog::new(0).unwrap()).unwrap();
    let port = getsockname::<SockaddrIn>(dead.as_raw_fd()).unwrap().port();
    let _fills = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let alive = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let hook = Hook::start_on(alive, Some(stage.file()), Answer::Code(200));
    let hosts = stage.write("hosts", "127.0.0.1 two.test\n127.0.0.2 two.test\n");
    let program = ["unshare", "--mount", "sh", "-c", r#"mount --bind "$0" /etc/hosts && exec "$@""#, &hosts];
    let _sidecar = stage.start_by(&program, &["--reload-url", &format!("http://two.test:{port}/")]);
    delivered(&hook, "1");
}

#[test]
fn user_and_password_are_sent_and_read_on_each_call() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    let file = stage.write("auth", "user:pass\n");
    let sidecar = stage.start(&["--reload-url", &hook.url(), "--reload-auth-file", &file]);
    sidecar.until_idle();
    stage.write("auth", "user:word");
    stage.edit("2");
    let calls = calls(&hook, 2);
    // base64 of the two.
    assert!(has(&calls[0], "Authorization", "Basic dXNlcjpwYXNz"), "{calls:?}");
    assert!(has(&calls[1], "Authorization", "Basic dXNlcjp3b3Jk"), "{calls:?}");
}

#[test]
fn credentials_and_secrets_that_a_server_echoes_are_masked() {
    let stage = Stage::new("1");
    let secret = "hunter2-canary-in-the-database";
    fs::create_dir(stage.at("db")).unwrap();
    stage.write("db/password", secret);
    let hook = Hook::start(Some(stage.at("conf/password")));
    hook.answer(Answer::Echo(401));
    let (url, token, db) = (hook.url(), stage.write("token", "bearer-canary\n"), format!("db={}", stage.text("db")));
    let header = format!("Cookie: @{}", stage.write("cookie", "session=cookie-canary"));
    let more = ["--reload-url", &url, "--reload-token-file", &token, "--watch-dir", &db, "--secret-dir", "db"];
    let sidecar = stage.start(&[&more[..], &["--reload-header", &header]].concat());
    let status = sidecar.until("it is refused", |status| !problem(status, "reload").is_empty());
    assert_eq!(hook.last_saw().as_deref(), Some(secret), "the server had it");
    let log = eventually("the answer is logged", || Some(sidecar.log()).filter(|log| log.contains("it said: ")));
    assert!(log.contains("authorization: Bearer ***") && log.contains("cookie: ***"), "{log}");
    for text in [log, status.to_string(), sidecar.request("--listen", "GET", "/metrics").unwrap().1] {
        assert!(!text.contains("canary"), "a secret in {text}");
    }
}

#[test]
fn unix_socket_is_called() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    let path = stage.at("main.sock");
    let url = format!("unix://{}:/-/reload?now=1", path.display());
    let sidecar = stage.start(&["--reload-url", &url, "--retry-min", "20ms", "--retry-max", "100ms"]);
    let status = sidecar.until("the socket is waited for", |status| status["phase"] == "backoff");
    assert!(problem(&status, "reload").contains("main.sock"), "{status}");
    assert!(problem(&status, "reload").contains("both containers mount"), "{status}");
    let listener = UnixListener::bind(&path).unwrap();
    let front = std::thread::spawn({
        let address = hook.address();
        move || {
            for stream in listener.incoming().take(2) {
                let (mut client, mut server) = (stream.unwrap(), TcpStream::connect(address).unwrap());
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let up = std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                std::io::copy(&mut server, &mut client).unwrap();
                client.shutdown(std::net::Shutdown::Both).unwrap();
                let _ = up.join();
            }
        }
    });
    delivered(&hook, "1");
    sidecar.until_idle();
    stage.edit("2");
    delivered(&hook, "2");
    sidecar.until_idle();
    assert_eq!(hook.calls()[1].head[0], "POST /-/reload?now=1 HTTP/1.1");
    front.join().unwrap();
}

// --- HTTPS -----------------------------------------------------------------------------------------------------------

/// A CA, a server certificate for 127.0.0.1 and a client certificate, in PEM files of the stage.
fn make_certificates(stage: &Stage, name: &str) -> ServerConfig {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let issue = |subject: &str| {
        let key = KeyPair::generate().unwrap();
        (CertificateParams::new([subject.to_owned()]).unwrap().signed_by(&key, &ca).unwrap(), key)
    };
    let (client, client_key) = issue("client");
    stage.write(&format!("{name}-ca.pem"), ca.pem());
    stage.write(&format!("{name}-client.pem"), client.pem());
    stage.write(&format!("{name}-client.key"), client_key.serialize_pem());
    let (server, server_key) = issue("127.0.0.1");
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(server_key.serialize_der()).unwrap();
    builder.with_client_cert_verifier(verifier).with_single_cert(vec![server.der().clone()], key).unwrap()
}

/// TLS in front of a hook. Ends when dropped.
struct Tls {
    port: u16,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Tls {
    fn start(config: ServerConfig, hook: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let acceptor = TlsAcceptor::from(Arc::new(config));
                let serve = async {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        let acceptor = acceptor.clone();
                        tokio::spawn(async move {
                            // Handshakes that fail are part of the test.
                            let Ok(mut client) = acceptor.accept(stream).await else { return };
                            let mut server = tokio::net::TcpStream::connect(hook).await.unwrap();
                            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                        });
                    }
                };
                tokio::select! {
                    () = serve => {}
                    _ = stopped => {}
                }
            });
        });
        Self { port, _stop: stop }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}/-/reload", self.port)
    }
}

#[test]
fn https_believes_the_given_ca_alone_and_shows_the_client_certificate() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    let tls = Tls::start(make_certificates(&stage, "own"), hook.address());
    make_certificates(&stage, "other");
    let files = ["ca.pem", "client.pem", "client.key"];
    let used = |of: &str, file: &str| {
        fs::copy(stage.at(&format!("{of}-{file}")), stage.at(file)).unwrap();
    };
    // The wrong CA, and a client that the server does not know.
    for file in files {
        used("other", file);
    }
    let [ca, cert, key] = files.map(|file| stage.text(file));
    let (url, retry) = (tls.url(), ["--retry-min", "20ms", "--retry-max", "100ms"]);
    let flags = ["--reload-url", &url, "--reload-ca-file", &ca, "--reload-cert-file", &cert, "--reload-key-file", &key];
    let sidecar = stage.start(&[&flags[..], &retry].concat());
    let status = sidecar.until("the server is not believed", |status| !problem(status, "reload").is_empty());
    assert!(problem(&status, "reload").contains("certificate"), "{status}");
    assert_eq!(status["debt"], "publish");
    // Files are read on each call: the CA is right now, but the client is still a stranger to the server.
    used("own", "ca.pem");
    let first = problem(&status, "reload").to_owned();
    sidecar.until("the client is not believed", |status| ![&first, ""].contains(&problem(status, "reload")));
    assert!(hook.calls().is_empty(), "nothing is sent before the server believes the client");
    // One of the two at a time would be a moment of mismatch, which is retried.
    for file in ["client.pem", "client.key"] {
        used("own", file);
    }
    delivered(&hook, "1");
    sidecar.until_idle();
    stage.edit("2");
    delivered(&hook, "2");
    assert_eq!(sidecar.until_idle()["confirmed"]["sequence"], 2);
}

#[test]
fn https_without_verification_reaches_an_unknown_server() {
    let stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    let tls = Tls::start(make_certificates(&stage, "own"), hook.address());
    let (url, cert, key) = (tls.url(), stage.text("own-client.pem"), stage.text("own-client.key"));
    let flags = ["--reload-url", &url, "--reload-cert-file", &cert, "--reload-key-file", &key];
    let mut distrusting = stage.start(&flags);
    let status = distrusting.until("the server is not believed", |status| !problem(status, "reload").is_empty());
    assert!(problem(&status, "reload").contains("certificate"), "{status}");
    distrusting.kill();
    assert!(hook.calls().is_empty());
    let sidecar = Sidecar::start(&stage.at("second-log"), stage.flags(&[&flags[..], &["--reload-insecure"]].concat()));
    sidecar.until_idle();
    assert_eq!(hook.last_saw().as_deref(), Some("1"));
}

// --- programs --------------------------------------------------------------------------------------------------------

/// Processes whose command line has this in it.
fn running(marker: &str) -> usize {
    let holds = |entry: fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(marker)
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("stat").exists())
        .fold(0, |count, entry| count + usize::from(holds(entry)))
}

#[test]
fn program_is_run_for_each_generation_and_its_output_is_masked_when_it_refuses() {
    let mut stage = Stage::new("1");
    fs::create_dir(stage.at("db")).unwrap();
    stage.write("db/password", "first-canary-line\n  second-canary-line  \n");
    let (conf, noted, fail) = (stage.text("conf"), stage.text("noted"), stage.text("fail"));
    let script = stage.write(
        "reload.sh",
        format!(
            "cat {conf}/app.conf >> {noted}; echo >> {noted}; [ -e {fail} ] || exit 0
            head -c 6000 /dev/zero | tr '\\0' x; echo; echo 'the password is:'; cat {conf}/password
            echo 'in pieces:'; sed 's/^ *//; s/ *$//' {conf}/password; base64 -w0 {conf}/password; exit 3"
        ),
    );
    let (command, db) = (format!("sh {script}"), format!("db={}", stage.text("db")));
    let flags = ["--reload-exec", &command, "--watch-dir", &db, "--secret-dir", "db", "--retry-max", "250ms"];
    let sidecar = stage.start(&[&flags[..], &["--on-reject", "hold"]].concat());
    sidecar.until_idle();
    assert_eq!(fs::read_to_string(&noted).unwrap(), "1\n");
    stage.write("fail", "");
    stage.edit("2");
    let status = sidecar.until("it is held", |status| status["phase"] == "held");
    assert!(problem(&status, "reload").contains("sh exited with code 3"), "{status}");
    let log = sidecar.log();
    let (_, said) = log.split_once("it said: ").expect("its output is logged");
    let said = said.lines().next().unwrap();
    assert!(said.contains("xx\\nthe password is:\\n***") && said.contains("in pieces:\\n***\\n***\\n***"), "{said}");
    assert!(said.len() < 5000, "{said}");
    let encoded = "Zmlyc3QtY2FuYXJ5LWxpbmUK";
    for text in [log.clone(), status.to_string(), sidecar.request("--listen", "GET", "/metrics").unwrap().1] {
        assert!(!text.contains("canary") && !text.contains(encoded), "a secret in {text}");
    }
    fs::remove_file(&fail).unwrap();
    assert_eq!(sidecar.until_idle()["confirmed"]["sequence"], 2);
    assert!(fs::read_to_string(&noted).unwrap().ends_with("2\n"));
}

#[test]
fn program_runs_before_the_url_is_called_and_only_what_failed_is_tried_again() {
    let mut stage = Stage::new("1");
    let (noted, fail) = (stage.text("noted"), stage.text("fail"));
    let hook = Hook::start(Some(stage.file()));
    let script = stage.write("reload.sh", format!("cat {} >> {noted}; [ ! -e {fail} ]", stage.text("conf/app.conf")));
    let user = stage.write("user", "admin\n");
    let (user, command) = (format!("@{user}"), format!("sh {script}"));
    let sidecar = stage.start_by(
        &["env", "PASSWORD=c4n4ry:1"],
        &[
            &["--reload-exec", &command, "--reload-url", &hook.url(), "--retry-max", "250ms"][..],
            &["--reload-user", &user, "--reload-password", "$PASSWORD"],
        ]
        .concat(),
    );
    sidecar.until_idle();
    assert_eq!(fs::read_to_string(&noted).unwrap(), "1");
    assert!(has(&calls(&hook, 1)[0], "authorization", "Basic YWRtaW46YzRuNHJ5OjE="), "{:?}", hook.calls());
    // The URL fails: it is called again, and the program is not run again.
    hook.answer(Answer::Code(503));
    stage.edit("2");
    calls(&hook, 3);
    hook.answer(Answer::Code(200));
    assert_eq!(sidecar.until_idle()["confirmed"]["sequence"], 2);
    assert_eq!(fs::read_to_string(&noted).unwrap(), "12");
    // The program fails: the URL is not called.
    let called = hook.calls().len();
    stage.write("fail", "");
    stage.edit("3");
    let status = sidecar.until("it is reported", |status| problem(status, "reload").contains("sh exited with code 1"));
    assert_eq!(hook.calls().len(), called);
    fs::remove_file(&fail).unwrap();
    sidecar.until("it is taken", |status| status["confirmed"]["sequence"] == 3);
    assert_eq!((hook.calls().len(), hook.last_saw().as_deref()), (called + 1, Some("3")));
    let encoded = "YWRtaW46YzRuNHJ5OjE=";
    for text in [sidecar.log(), status.to_string()] {
        assert!(!text.contains("c4n4ry") && !text.contains(encoded), "a credential in {text}");
    }
}

#[test]
fn program_that_hangs_is_killed_with_what_it_started() {
    let mut stage = Stage::new("1");
    let marker = format!("7771{}", std::process::id());
    let script = stage.write("reload.sh", format!("sh -c 'sleep {marker} & wait' & sleep {marker}"));
    let command = format!("sh {script}");
    let slow = ["--reload-timeout", "700ms", "--retry-min", "30s", "--retry-max", "30s"];
    let sidecar = stage.start(&[&["--reload-exec", &command], &slow[..]].concat());
    eventually("program and grandchild run", || (running(&marker) >= 3).then_some(()));
    let status = sidecar.until("it is reported", |status| !problem(status, "reload").is_empty());
    assert!(problem(&status, "reload").contains("sh was killed after 700ms (--reload-timeout)"), "{status}");
    assert_ne!(status["phase"], "held", "{status}");
    eventually("all of its group are gone", || (running(&marker) == 0).then_some(()));
    // What is newer does not wait for the retry.
    let edited = Instant::now();
    stage.edit("2");
    eventually("it runs again", || (running(&marker) >= 1).then_some(()));
    assert!(edited.elapsed() < SOON, "{:?}", edited.elapsed());
    sidecar.until("it is killed again", |status| status["phase"] == "backoff" && status["published"]["sequence"] == 2);
    eventually("all of its group are gone", || (running(&marker) == 0).then_some(()));
}

/// The processes of this name, dead ones that nobody has waited for among them.
fn named(name: &str) -> Vec<i32> {
    let pid = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        stat.contains(&format!("({name}) ")).then(|| path.file_name()?.to_str()?.parse().ok())?
    };
    fs::read_dir("/proc").unwrap().filter_map(pid).collect()
}

#[test]
fn what_programs_leave_behind_is_reaped_by_pid_1() {
    needs_root("have a process namespace of its own");
    let stage = Stage::new("1");
    let name = format!("left{}", std::process::id());
    let left = stage.write(&name, "#!/bin/sh\nwhile :; do sleep 0.1; done");
    fs::set_permissions(&left, fs::Permissions::from_mode(0o755)).unwrap();
    let script = stage.write("reload.sh", format!("{left} & [ -e {} ] || {left}", stage.text("ends")));
    let command = format!("sh {script}");
    let slow = ["--reload-exec", &command, "--reload-timeout", "300ms", "--retry-min", "30s", "--retry-max", "30s"];
    let sidecar = stage.start_by(ALONE, &slow);
    sidecar.until("it is killed", |status| problem(status, "reload").contains("was killed after 300ms"));
    eventually("all that was killed is reaped", || named(&name).is_empty().then_some(()));
    // What a program leaves to run is reaped when it ends.
    stage.write("ends", "");
    assert_eq!(sidecar.request("--admin", "POST", "/retry").unwrap().0, 202);
    sidecar.until_idle();
    let [pid] = eventually("one is left", || named(&name).try_into().ok());
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    eventually("it is reaped", || named(&name).is_empty().then_some(()));
}

#[test]
fn newer_content_waits_for_the_running_program_and_no_longer() {
    let mut stage = Stage::new("1");
    let (conf, noted, hold) = (stage.text("conf"), stage.text("noted"), stage.text("hold"));
    let script = stage.write(
        "reload.sh",
        format!(
            "echo begin $(cat {conf}/app.conf) >> {noted}; while [ -e {hold} ]; do sleep 0.02; done; echo end >> {noted}"
        ),
    );
    let noted = || fs::read_to_string(&noted).unwrap_or_default();
    let command = format!("sh {script}");
    let sidecar = stage.start(&["--reload-exec", &command, "--retry-min", "30s", "--retry-max", "30s"]);
    sidecar.until_idle();
    stage.write("hold", "");
    stage.edit("2");
    eventually("the program runs for 2", || noted().ends_with("begin 2\n").then_some(()));
    let observed = sidecar.status()["observed"]["digest"].clone();
    stage.edit("3");
    sidecar.until("3 is observed", |status| status["observed"]["digest"] != observed);
    // Longer than any reload attempt that can be abandoned is let run (1 s), and there is no later event to wait for.
    std::thread::sleep(ms(1500));
    assert!(noted().ends_with("begin 2\n"), "a program is not interrupted, nor run twice at a time: {}", noted());
    let released = Instant::now();
    fs::remove_file(&hold).unwrap();
    eventually("3 is delivered", || noted().ends_with("begin 3\nend\n").then_some(()));
    assert!(released.elapsed() < SOON);
    assert_eq!(noted(), "begin 1\nend\nbegin 2\nend\nbegin 3\nend\n");
    sidecar.until_idle();
}

// --- signals ---------------------------------------------------------------------------------------------------------

/// A main process: a shell under a name of its own that notes each SIGHUP. Killed when dropped.
struct Main {
    child: Child,
    name: String,
    dir: PathBuf,
}

impl Main {
    /// One that has installed its handler.
    fn start(stage: &Stage, name: &str) -> Self {
        Self::start_as(stage, name, None)
    }

    fn start_as(stage: &Stage, name: &str, user: Option<u32>) -> Self {
        let main = Self::spawn(stage, name, user, "");
        eventually("the handler is installed", || main.dir.join("ready").exists().then_some(()));
        main
    }

    /// One that does something `before` it installs its handler.
    fn spawn(stage: &Stage, name: &str, user: Option<u32>, before: &str) -> Self {
        Self::spawn_by(&[], stage, name, user, before)
    }

    /// By a program that becomes it.
    fn spawn_by(by: &[&str], stage: &Stage, name: &str, user: Option<u32>, before: &str) -> Self {
        let dir = (0..99).map(|n| stage.at(&format!("main-{n}"))).find(|dir| !dir.exists()).unwrap();
        fs::create_dir(&dir).unwrap();
        std::os::unix::fs::chown(&dir, user, None).unwrap();
        let program = dir.join(name);
        // By another process: a file that this one has open for writing, if only in a child just forked, cannot run.
        assert!(Command::new("cp").args([Path::new("/bin/sh"), &program]).status().unwrap().success());
        let script = "mkfifo fifo; exec 9<>fifo; $BEFORE
            trap 'echo hup >> got' HUP; touch ready; while :; do read -r line <&9; done";
        let program = program.to_str().unwrap();
        let line = [by, &[program]].concat();
        let mut command = Command::new(line[0]);
        command
            .current_dir(&dir)
            .args(&line[1..])
            .args(["-c", &script.replace("$BEFORE", before)])
            .stdin(Stdio::null());
        command.process_group(0);
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        Self { child: command.spawn().unwrap(), name: name.to_owned(), dir }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn hups(&self) -> usize {
        fs::read_to_string(self.dir.join("got")).unwrap_or_default().lines().count()
    }

    #[track_caller]
    fn gets(&self, hups: usize) {
        eventually(&format!("{} gets SIGHUP number {hups}", self.name), || (self.hups() >= hups).then_some(()));
    }

    fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn kill(&mut self) {
        let _ = killpg(pid_of(&self.child), Signal::SIGKILL);
        self.child.wait().unwrap();
    }
}

impl Drop for Main {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A name that no other process of the machine has; at most 15 bytes.
fn own_name(what: &str) -> String {
    format!("t{}{what}", std::process::id())
}

/// Lets the clock of start times go on by more than its grain of 10 ms: a process that starts in the tick of a publish
/// may have read what was there before, and is signalled.
fn let_a_tick_pass() {
    std::thread::sleep(ms(30));
}

const QUICK: &[&str] = &["--signal", "HUP", "--retry-min", "20ms", "--retry-max", "100ms"];

#[test]
fn process_that_starts_later_is_waited_for_and_signalled_from_the_next_change_on() {
    let mut stage = Stage::new("1");
    let name = own_name("late");
    let sidecar = stage.start(&[QUICK, &["--process", &name]].concat());
    let status = sidecar.until("it is missed", |status| status["target"]["state"] == "missing");
    assert!(status["target"]["pid"].is_null());
    assert!(status["target"]["message"].as_str().unwrap().contains(&format!("--process {name}: no process matches")));
    assert_eq!(status["debt"], "publish");
    sidecar.until("it goes on waiting", |status| status["phase"] == "backoff");
    let_a_tick_pass();
    let main = Main::start(&stage, &name);
    let status = sidecar.until_idle();
    assert_eq!(status["target"]["state"], "found");
    assert_eq!(status["target"]["pid"], main.pid());
    stage.edit("2");
    main.gets(1);
    assert_eq!(sidecar.until_idle()["confirmed"]["sequence"], 2);
    assert_eq!(main.hups(), 1, "none was due for what it had read at its start");
    assert!(sidecar.log().contains("started after the publish"));
}

#[test]
fn process_without_its_handler_yet_survives_and_is_signalled_later() {
    let stage = Stage::new("1");
    let name = own_name("slow");
    let mut main = Main::spawn(&stage, &name, None, "touch up; until [ -e go ]; do sleep 0.02; done");
    eventually("it runs", || main.dir.join("up").exists().then_some(()));
    let sidecar = stage.start(&[QUICK, &["--process", &name]].concat());
    let status = sidecar.until("its handler is missed", |status| status["target"]["state"] == "notHandling");
    assert_eq!(status["target"]["pid"], main.pid());
    let message = status["target"]["message"].as_str().unwrap();
    assert!(message.contains("does not handle SIGHUP") && message.contains("--reload-url"), "{message}");
    let attempts = metric(&sidecar, "reloader_reloads_total").unwrap();
    eventually("more attempts", || metric(&sidecar, "reloader_reloads_total").filter(|now| *now > attempts + 3.0));
    assert!(main.is_alive(), "SIGHUP would have killed it");
    fs::write(main.dir.join("go"), "").unwrap();
    main.gets(1);
    assert_eq!(sidecar.until_idle()["target"]["state"], "found");
    assert!(main.is_alive());
}

#[test]
fn zombie_is_no_target() {
    let stage = Stage::new("1");
    let name = own_name("zombie");
    let main = Main::spawn(&stage, &name, None, "exit 0");
    // Dead, and not waited for by us, its parent.
    eventually("it is a zombie", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", main.pid())).ok()?;
        stat.rsplit_once(')')?.1.starts_with(" Z").then_some(())
    });
    let sidecar = stage.start(&[QUICK, &["--process", &name]].concat());
    let status = sidecar.until("it is not taken for a target", |status| status["target"]["state"] == "missing");
    let message = status["target"]["message"].as_str().unwrap();
    assert!(message.contains("has exited, and its parent has not noticed yet"), "{message}");
    assert_eq!(sidecar.until("it waits", |status| status["phase"] == "backoff")["debt"], "publish");
    assert!(!sidecar.log().contains("reloaded:"));
}

#[test]
fn of_two_equal_processes_none_is_signalled_until_one_is_left() {
    let stage = Stage::new("1");
    let name = own_name("twin");
    let (mut first, second) = (Main::start(&stage, &name), Main::start(&stage, &name));
    let sidecar = stage.start(&[QUICK, &["--process", &name]].concat());
    let status = sidecar.until("it is in doubt", |status| status["target"]["state"] == "ambiguous");
    assert!(status["target"]["pid"].is_null());
    let message = status["target"]["message"].as_str().unwrap();
    for part in [&first.pid().to_string(), &second.pid().to_string(), "--process-args or --pid-file"] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    assert!(sidecar.log().contains(message), "the log says so too");
    eventually("several attempts", || metric(&sidecar, "reloader_reloads_total").filter(|attempts| *attempts > 4.0));
    assert_eq!((first.hups(), second.hups()), (0, 0), "none is signalled");
    first.kill();
    second.gets(1);
    assert_eq!(sidecar.until_idle()["target"]["pid"], second.pid());
}

#[test]
fn other_users_process_is_reported_with_both_users_and_the_remedy() {
    needs_root("run the two as different users");
    let stage = Stage::new("1");
    let name = own_name("root");
    std::os::unix::fs::chown(stage.at(""), Some(NOBODY), Some(NOBODY)).unwrap();
    let mut main = Main::start(&stage, &name);
    let sidecar = stage.start_by(AS_NOBODY, &[QUICK, &["--process", &name]].concat());
    let status = sidecar.until("it is refused", |status| status["target"]["state"] == "forbidden");
    assert_eq!(status["target"]["pid"], main.pid());
    let message = status["target"]["message"].as_str().unwrap();
    for part in ["runs as user 0, Trimtab as user 65534", "EPERM", "securityContext.runAsUser", "KILL"] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    assert!(sidecar.log().contains(message), "the log says so too");
    assert_eq!(main.hups(), 0);
    assert_eq!(sidecar.until("it waits", |status| status["phase"] == "backoff")["debt"], "publish");
    // The remedy.
    main.kill();
    let same_user = Main::start_as(&stage, &name, Some(NOBODY));
    assert_eq!(sidecar.until_idle()["target"]["pid"], same_user.pid());
}

#[test]
fn restarted_process_is_signalled_in_the_place_of_the_old_one() {
    let mut stage = Stage::new("1");
    let name = own_name("again");
    let mut old = Main::start(&stage, &name);
    let pid_file = stage.write("pid", old.pid().to_string());
    let sidecar = stage.start(&[QUICK, &["--pid-file", &pid_file, "--process", &name]].concat());
    old.gets(1);
    assert_eq!(sidecar.until_idle()["target"]["pid"], old.pid());
    old.kill();
    stage.edit("2");
    let status = sidecar.until("the pid file is stale", |status| status["target"]["state"] == "missing");
    let message = status["target"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("PID {} of {pid_file} does not exist", old.pid())), "{message}");
    let_a_tick_pass();
    let new = Main::start(&stage, &name);
    let attempts = metric(&sidecar, "reloader_reloads_total").unwrap();
    eventually("more attempts", || metric(&sidecar, "reloader_reloads_total").filter(|now| *now > attempts + 2.0));
    assert_eq!(sidecar.status()["target"]["state"], "missing", "the pid file still names the old one");
    stage.write("pid", new.pid().to_string());
    sidecar.until_idle();
    stage.edit("3");
    new.gets(1);
    assert_eq!(sidecar.until_idle()["target"]["pid"], new.pid());
    assert_eq!((old.hups(), new.hups()), (1, 1));
}

#[test]
fn process_namespace_that_is_not_shared_is_named_as_the_reason() {
    needs_root("make a process namespace");
    let stage = Stage::new("1");
    let sidecar = stage.start_by(ALONE, &[QUICK, &["--process", "nginx"]].concat());
    let status = sidecar.until("nobody is seen", |status| status["target"]["state"] == "missing");
    let message = status["target"]["message"].as_str().unwrap();
    assert!(message.contains("shareProcessNamespace: true") && message.contains("--reload-url"), "{message}");
    assert!(sidecar.log().contains(message), "the log says so too");
}

#[test]
fn process_1_is_named_as_never_taken() {
    needs_root("make a process namespace");
    let stage = Stage::new("1");
    let name = own_name("first");
    let program = stage.text(&name);
    assert!(Command::new("cp").args(["/bin/sh", &program]).status().unwrap().success());
    let first = [ALONE, &[&program, "-c", "\"$@\" & wait", "-"]].concat();
    let sidecar = stage.start_by(&first, &[QUICK, &["--process", &name]].concat());
    let status = sidecar.until("it is not taken", |status| status["target"]["state"] == "missing");
    let message = status["target"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("PID 1 ({name}) matches, and PID 1 is never taken")), "{message}");
    assert!(message.contains("shareProcessNamespace: true"), "{message}");
}

#[test]
fn hidepid_is_named_as_the_reason_where_it_hides_the_main_process() {
    needs_root("mount /proc anew");
    let stage = Stage::new("1");
    std::os::unix::fs::chown(stage.at(""), Some(NOBODY), Some(NOBODY)).unwrap();
    let hiding = "mount -o remount,hidepid=2 /proc && (sleep 1000 & exec \"$@\") & wait";
    let program = [ALONE, &["sh", "-c", hiding, "-"], AS_NOBODY].concat();
    let sidecar = stage.start_by(&program, &[QUICK, &["--process", "sleep"]].concat());
    let status = sidecar.until("nobody is seen", |status| status["target"]["state"] == "missing");
    let message = status["target"]["message"].as_str().unwrap();
    assert!(message.contains("hidepid") && message.contains("user 65534"), "{message}");
    assert!(!message.contains("shareProcessNamespace"), "{message}");
}

#[test]
fn file_that_the_main_process_mounts_by_itself_is_reported() {
    needs_root("mount a file");
    let mut stage = Stage::new("1");
    let name = own_name("subpath");
    let sidecar = stage.start(&[QUICK, &["--process", &name]].concat());
    eventually("the first generation is published", || stage.published());
    let_a_tick_pass();
    stage.write("mounted.conf", "");
    let (file, at) = (stage.text("conf/app.conf"), stage.text("mounted.conf"));
    let mount = format!("mount --bind {file} {at} && exec \"$@\"");
    let by = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &mount, "-"];
    let main = Main::spawn_by(&by, &stage, &name, None, "");
    sidecar.until_idle();
    stage.edit("2");
    main.gets(1);
    let status = sidecar.until("it is reported", |status| !problem(status, "access").is_empty());
    let message = problem(&status, "access");
    assert!(message.contains(&name) && message.contains(&format!("at {at} (subPath)")), "{message}");
    assert!(message.contains("mount the whole volume"), "{message}");
    stage.edit("3");
    main.gets(2);
    sidecar.until_idle();
    assert_eq!(sidecar.log().matches("(subPath)").count(), 1, "once");
}

/// Also where it is notified by a request, with and without its name.
#[test]
fn file_that_a_main_process_with_a_hook_mounts_by_itself_is_reported() {
    needs_root("mount a file");
    for named in [true, false] {
        let mut stage = Stage::new("1");
        let name = own_name("mounts");
        let hook = Hook::start(None);
        let process: &[&str] = if named { &["--process", &name] } else { &[] };
        let sidecar = stage.start(&[&["--reload-url", &hook.url()], process].concat());
        eventually("the first generation is published", || stage.published());
        stage.write("mounted.conf", "");
        let (file, at) = (stage.text("conf/app.conf"), stage.text("mounted.conf"));
        let mount = format!("mount --bind {file} {at} && exec \"$@\"");
        let by = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &mount, "-"];
        let _main = Main::spawn_by(&by, &stage, &name, None, "");
        sidecar.until_idle();
        stage.edit("2");
        let status = sidecar.until("it is reported", |status| !problem(status, "access").is_empty());
        let message = problem(&status, "access");
        assert!(message.contains(&format!("at {at} (subPath)")), "{message}");
    }
}

// --- keepalived ------------------------------------------------------------------------------------------------------

/// It takes its signals by signalfd(2): it blocks SIGHUP, and has no handler.
#[test]
fn keepalived_reads_its_configuration_again() {
    let mut stage = Stage::new("! 1\n");
    let name = "keepalived";
    let (log, pid_file) = (stage.text("keepalived.log"), stage.text("keepalived.pid"));
    let sidecar = stage.start(&[QUICK, &["--pid-file", &pid_file]].concat());
    eventually("the first configuration is published", || stage.published());
    let own = ["vrrp", "checkers", "bfd"].map(|part| format!("--{part}_pid={}", stage.text(part)));
    let mut command = Command::new(debian(name));
    command.args(["--dont-fork", "--log-console", "--log-detail", "--use-file", &stage.text("conf/app.conf")]);
    command.args(["--pid", &pid_file]).args(&own).stdin(Stdio::null()).process_group(0);
    let written = fs::File::create(&log).unwrap();
    let child = command.stdout(written.try_clone().unwrap()).stderr(written).spawn().unwrap();
    let _main = Main { child, name: name.to_owned(), dir: stage.at("") };
    let reads = || fs::read_to_string(&log).unwrap_or_default().matches("Opening file").count();
    eventually("it has read the first", || (reads() >= 1).then_some(()));
    sidecar.until_idle();
    let before = reads();
    stage.edit("! 2\n");
    eventually("it reads the second", || (reads() > before).then_some(()));
    assert_eq!(sidecar.until_idle()["target"]["name"], name);
}

// --- pace ------------------------------------------------------------------------------------------------------------

#[test]
fn publishes_are_no_closer_than_the_interval_and_the_last_content_wins() {
    let mut stage = Stage::new("0");
    let hook = Hook::start(Some(stage.file()));
    let sidecar = stage.start(&["--reload-url", &hook.url(), "--reload-min-interval", "2s"]);
    sidecar.until_idle();
    let mut last = String::new();
    for edit in 1..=25 {
        last = edit.to_string();
        stage.edit(&last);
        // The pace of the one who edits: for longer than the interval, many times within one.
        std::thread::sleep(ms(100));
    }
    delivered(&hook, &last);
    let status = sidecar.until_idle();
    let log = sidecar.log();
    let published = log.lines().filter(|line| line.contains("published generation"));
    let published: Vec<jiff::Timestamp> = published.map(|line| line[..27].parse().unwrap()).collect();
    let gaps: Vec<_> = published.windows(2).map(|pair| pair[1].duration_since(pair[0])).collect();
    assert!(gaps.iter().all(|gap| gap.as_millis() >= 2000), "{gaps:?}");
    assert!(gaps.len() >= 2, "edits do not keep a publish from happening: {gaps:?}");
    assert_eq!(status["published"]["sequence"], published.len());
    assert_eq!(stage.published().as_deref(), Some(last.as_str()));
}

#[test]
fn splay_puts_changes_off_but_neither_the_first_publish_nor_retries() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    hook.answer(Answer::Code(503));
    let url = hook.url();
    // A random part of an hour: less than the few seconds of this test once in a thousand runs.
    let flags = ["--reload-url", &url, "--reload-splay", "1h", "--retry-min", "20ms", "--retry-max", "50ms"];
    let sidecar = stage.start(&flags);
    calls(&hook, 5);
    hook.answer(Answer::Code(200));
    let status = sidecar.until_idle();
    stage.edit("2");
    let status = sidecar.until("the change is seen", |now| now["observed"]["digest"] != status["observed"]["digest"]);
    sidecar.until("it waits", |status| status["phase"] == "settling");
    // Many times --debounce; nothing later could be waited for.
    std::thread::sleep(ms(700));
    assert_eq!(sidecar.status()["phase"], "settling");
    assert_eq!(stage.published().as_deref(), Some("1"), "{status}");
    // Whoever asks is not put off.
    assert_eq!(sidecar.request("--admin", "POST", "/retry").unwrap().0, 202);
    delivered(&hook, "2");
}

#[test]
fn splayed_changes_are_published_within_the_splay() {
    let mut stage = Stage::new("0");
    let hook = Hook::start(Some(stage.file()));
    let sidecar = stage.start(&["--reload-url", &hook.url(), "--reload-splay", "600ms"]);
    sidecar.until_idle();
    for content in ["1", "2", "3"] {
        let edited = Instant::now();
        stage.edit(content);
        delivered(&hook, content);
        assert!(edited.elapsed() < ms(600) + SOON, "{:?}", edited.elapsed());
    }
    sidecar.until_idle();
}
