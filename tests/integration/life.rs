//! Trimtab's own life: exit codes, signals to itself, probes and status, variables, wrong usage, logs, rest.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::CommandFactory;
use regex_lite::Regex;
use rustix::process::Signal;
use serde_json::Value;

use super::support::hook::{Answer, Hook, Port};
use super::support::sidecar::{Sidecar, eventually, needs_root, trimtab};
use super::support::stage::{Stage, metric, problem};

/// Far less than any wait that must not happen, and enough on a busy machine.
const SOON: Duration = Duration::from_secs(4);

/// A child that is killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command line to its end: exit code, and all that it said. One that does not end fails the test.
#[track_caller]
fn run(command: &mut Command) -> (Option<i32>, String) {
    let line = format!("{command:?}");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut running = Running(child);
    let status = eventually(&format!("an end of {line}"), || running.0.try_wait().unwrap());
    let mut said = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    running.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    (status.code(), said)
}

fn retry(sidecar: &Sidecar) {
    assert_eq!(sidecar.request("--admin", "POST", "/retry").unwrap().0, 202);
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value} is no object")).keys().map(String::as_str).collect()
}

// --- --once ----------------------------------------------------------------------------------------------------------

#[test]
fn once_publishes_tells_nobody_and_the_sidecar_finds_nothing_to_do() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    let url = hook.url();
    let flags = stage.flags(&["--reload-url", &url]);
    let (code, said) = run(trimtab().args(&flags).arg("--once"));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(stage.published().as_deref(), Some("1"));
    let (code, said) = run(trimtab().args(&flags).arg("--once"));
    assert_eq!(code, Some(0), "again, as after a restart of the init container: {said}");
    let sidecar = stage.start(&["--reload-url", &url]);
    let status = sidecar.until_idle();
    assert_eq!(status["published"]["sequence"], 1, "{status}");
    // The next change is told, and it alone.
    stage.edit("2");
    eventually("the change is told", || (hook.last_saw()? == "2").then_some(()));
    assert_eq!(sidecar.until_idle()["published"]["sequence"], 2);
    assert_eq!(hook.calls().len(), 1, "no reload was owed for what the main process reads at its start");
}

#[test]
fn once_ends_with_the_code_that_says_why() {
    let stage = Stage::new("1");
    let volume = stage.text("volume");
    let template = stage.write("broken.j2", "{{ data.nope }}");
    let once = |output: &str, more: &[&str]| {
        let mut command = trimtab();
        command.args(["--once", "--output", &stage.text(output)]).args(more);
        run(&mut command)
    };
    let briefly = ["--once-timeout", "300ms", "--watch-dir"];
    let (code, said) = once("a", &["--watch-dir", &volume, "--template", &template]);
    assert_eq!(code, Some(65), "{said}");
    assert!(said.contains("broken.j2") && said.contains("data.nope"), "{said}");
    assert!(!stage.at("a/broken").exists());

    let (code, said) = once("b", &[&briefly[..], &[&stage.text("nothing")]].concat());
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("waiting for dir/nothing") && said.contains("does not exist"), "{said}");

    let (code, said) = once("no/such/parent", &["--watch-dir", &volume]);
    assert_eq!(code, Some(73), "{said}");
    assert!(said.contains("--output") && said.contains("volumeMounts"), "{said}");

    stage.write("file", "");
    let (code, said) = once("file", &["--watch-dir", &volume]);
    assert_eq!(code, Some(73), "{said}");
    assert!(said.contains("--output"), "{said}");

    // Another Trimtab works on the output.
    let sidecar = stage.start(&[]);
    sidecar.until_idle();
    let (code, said) = once("conf", &[&briefly[..], &[&volume]].concat());
    assert_eq!(code, Some(73), "{said}");
    assert!(said.contains("another Trimtab holds the output's lock"), "{said}");
}

#[test]
fn once_that_is_ended_by_a_signal_is_no_success() {
    let stage = Stage::new("1");
    let absent = stage.text("absent");
    let mut waiting = Sidecar::start(&stage.at("log-1"), stage.flags(&["--once", "--watch-dir", &absent]));
    eventually("it waits", || waiting.log().contains("waiting for dir/absent").then_some(()));
    assert_eq!(waiting.terminate(), Some(143), "a Pod would start without its configuration");
    let owner = stage.start(&[]);
    owner.until_idle();
    let mut waiting = Sidecar::start(&stage.at("log-2"), stage.flags(&["--once"]));
    eventually("it waits", || waiting.log().contains("another Trimtab").then_some(()));
    assert_eq!(waiting.terminate(), Some(143));
}

#[test]
fn digest_key_that_cannot_be_read_is_a_failure_that_a_restart_may_cure() {
    let stage = Stage::new("1");
    for (key, reason) in [(stage.text("none"), "No such file"), (stage.write("empty", ""), "it is empty")] {
        let (code, said) = run(trimtab().args(stage.flags(&["--once", "--digest-key-file", &key])));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&format!("--digest-key-file {key}")) && said.contains(reason), "{said}");
    }
    assert_eq!(stage.published(), None);
}

// --- signals to Trimtab ----------------------------------------------------------------------------------------------

#[test]
fn terminated_at_rest_it_ends_at_once() {
    let stage = Stage::new("1");
    for signal in [Signal::TERM, Signal::INT] {
        let mut sidecar = stage.start(&["--shutdown-grace", "60s"]);
        sidecar.until_idle();
        let told = Instant::now();
        sidecar.signal(signal);
        assert_eq!(sidecar.exit_code(), Some(0));
        assert!(told.elapsed() < SOON, "{:?}", told.elapsed());
    }
    // What it waits for, a retry or a source, is no step in flight.
    let down = Port::take();
    for (phase, more) in [("backoff", "--retry-min=30s"), ("syncing", "--watch-dir=/no/such/directory")] {
        let stage = Stage::new("1");
        let mut sidecar = stage.start(&["--shutdown-grace", "60s", "--reload-url", &down.url(), more]);
        sidecar.until(phase, |status| status["phase"] == phase);
        let told = Instant::now();
        assert_eq!(sidecar.terminate(), Some(0), "{phase}");
        assert!(told.elapsed() < SOON, "{phase}: {:?}", told.elapsed());
    }
}

#[test]
fn terminated_while_a_reload_hangs_it_waits_for_its_grace_and_the_next_start_pays_the_debt() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    let mut sidecar = stage.start(&["--reload-url", &hook.url(), "--shutdown-grace", "700ms"]);
    sidecar.until_idle();
    hook.answer(Answer::Hang);
    stage.edit("2");
    eventually("the hook is called", || (hook.last_saw()? == "2").then_some(()));
    let told = Instant::now();
    assert_eq!(sidecar.terminate(), Some(143));
    assert!(told.elapsed() >= Duration::from_millis(700) && told.elapsed() < SOON, "{:?}", told.elapsed());
    assert!(sidecar.log().contains("--shutdown-grace is over"));
    let calls = hook.calls().len();
    hook.answer(Answer::Code(200));
    sidecar.start_again();
    eventually("the debt is paid", || (hook.calls().len() > calls).then_some(()));
    assert_eq!(hook.last_saw().as_deref(), Some("2"));
    let status = sidecar.until("idle", |status| status["phase"] == "idle" && status["debt"].is_null());
    assert_eq!(status["published"]["sequence"], 2, "{status}");
    assert_eq!(status["lastGood"]["sequence"], 2, "{status}");
}

#[test]
fn second_signal_ends_it_at_once() {
    let stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    hook.answer(Answer::Hang);
    let mut sidecar = stage.start(&["--reload-url", &hook.url(), "--shutdown-grace", "60s"]);
    eventually("the hook is called", || hook.last_saw());
    sidecar.signal(Signal::TERM);
    eventually("it is noted", || sidecar.log().contains("told to end").then_some(()));
    let told = Instant::now();
    assert_eq!(sidecar.terminate(), Some(143));
    assert!(told.elapsed() < SOON, "{:?}", told.elapsed());
}

#[test]
fn terminated_while_a_reload_succeeds_it_notes_that_and_ends_well() {
    let stage = Stage::new("1");
    let (go, ran) = (stage.text("go"), stage.text("ran"));
    let script = stage.write("reload.sh", format!("touch {ran}; until [ -e {go} ]; do sleep 0.02; done"));
    let mut sidecar = stage.start(&["--reload-exec", &format!("sh {script}"), "--shutdown-grace", "60s"]);
    eventually("the program runs", || stage.at("ran").exists().then_some(()));
    sidecar.signal(Signal::TERM);
    eventually("it is noted", || sidecar.log().contains("told to end").then_some(()));
    stage.write("go", "");
    assert_eq!(sidecar.exit_code(), Some(0));
    fs::remove_file(&ran).unwrap();
    sidecar.start_again();
    sidecar.until_idle();
    assert!(!stage.at("ran").exists(), "no debt was left");
}

/// The process is stopped between the two renames of a publish (journal, `..data`), and told to end there.
#[test]
fn terminated_during_a_publish_it_finishes_that() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(None);
    let mut sidecar = stage.start(&["--reload-url", &hook.url()]);
    sidecar.until_idle();
    // Each name is a link to be made before the rename of `..data`: that takes a while.
    let names: Vec<_> = (0..1000).map(|n| format!("key-{n:04}")).collect();
    let data = stage.at("conf/..data");
    let link = || fs::read_link(&data).unwrap().to_str().unwrap().to_owned();
    let journal = stage.at("conf/..trimtab.json");
    for sequence in 2..40 {
        let content = sequence.to_string();
        let mut files: Vec<_> = names.iter().map(|name| (name.as_str(), content.as_str())).collect();
        if sequence % 2 == 1 {
            // So that there are links to be made in the next round.
            files.truncate(1);
        }
        stage.volume.swap(&files);
        let announced = format!("..trimtab-{sequence:06}-");
        // Without a pause: the moment is short.
        let deadline = Instant::now() + Duration::from_secs(30);
        while !fs::read_to_string(&journal).unwrap_or_default().contains(&announced) {
            assert!(Instant::now() < deadline, "generation {sequence} is never announced");
        }
        sidecar.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", sidecar.pid().as_raw_nonzero());
        eventually("it stops", || fs::read_to_string(&stat).ok()?.rsplit_once(')')?.1.starts_with(" T").then_some(()));
        let hit = !link().starts_with(&announced);
        if hit {
            sidecar.signal(Signal::TERM);
        }
        sidecar.signal(Signal::CONT);
        if hit {
            assert_eq!(sidecar.exit_code(), Some(0));
            assert!(link().starts_with(&announced), "the publish was left half done: {}", link());
            for (name, content) in &files {
                assert_eq!(fs::read_to_string(stage.at("conf").join(name)).unwrap(), *content);
            }
            let before = hook.calls().len();
            sidecar.start_again();
            eventually("the debt is paid", || (hook.calls().len() > before).then_some(()));
            assert_eq!(sidecar.until_idle()["published"]["sequence"], sequence);
            return;
        }
        sidecar.until("it is published", |status| {
            status["published"]["sequence"] == sequence && status["debt"].is_null() && status["phase"] == "idle"
        });
    }
    panic!("the moment was never caught");
}

#[test]
fn hang_up_reads_everything_again() {
    let stage = Stage::new("1");
    fs::create_dir(stage.at("plain")).unwrap();
    stage.write("plain/app.conf", "1");
    let (plain, output) = (stage.text("plain"), stage.text("conf"));
    let flags = ["--watch-dir", &plain, "--output", &output, "--debounce", "20ms", "--poll-interval", "0"];
    let sidecar = Sidecar::start(&stage.at("log"), flags);
    sidecar.until_idle();
    // Written in place and not closed yet: inotify does not tell.
    let mut file = fs::OpenOptions::new().write(true).open(stage.at("plain/app.conf")).unwrap();
    file.write_all(b"2").unwrap();
    // Nothing would come later, were it noticed by itself.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(sidecar.status()["published"]["sequence"], 1);
    sidecar.signal(Signal::HUP);
    eventually("it is read again", || (stage.published()? == "2").then_some(()));
    drop(file);
}

#[test]
fn rejected_inputs_are_tried_again_by_hang_up_and_by_retry() {
    let mut stage = Stage::new("1");
    let template = stage.write("app.conf.j2", "{{ data.nope }}");
    let sidecar = stage.start(&["--template", &template]);
    let rejections = || metric(&sidecar, "trimtab_stage_total{stage=\"render\",result=\"rejected\"}");
    let tried = |times: f64| eventually(&format!("render number {times}"), || rejections().filter(|now| *now >= times));
    tried(1.0);
    let status = sidecar.until("it is told", |status| !status["quarantine"].is_null());
    assert_eq!(status["quarantine"]["stage"], "render");
    assert!(status["quarantine"]["reason"].as_str().unwrap().contains("data.nope"), "{status}");
    assert_eq!(status["ready"], false);
    // The same inputs are not tried again by themselves: a change is the later event that would come after it.
    stage.edit("2");
    tried(2.0);
    assert_eq!(rejections(), Some(2.0));
    sidecar.signal(Signal::HUP);
    tried(3.0);
    retry(&sidecar);
    tried(4.0);
    let admin = sidecar.address("--admin").to_string();
    let (code, said) = run(trimtab().args(["retry", "--admin", &admin]));
    assert_eq!((code, said.as_str()), (Some(0), "trying again\n"));
    tried(5.0);
    assert_eq!(rejections(), Some(5.0), "once for each");
}

#[test]
fn status_and_retry_ask_the_running_sidecar() {
    let mut stage = Stage::new("1");
    fs::rename(stage.at("volume"), stage.at("away")).unwrap();
    let sidecar = stage.start(&[]);
    let admin = sidecar.address("--admin").to_string();
    let status = |admin: &str| run(trimtab().arg("status").env("TRIMTAB_ADMIN", admin));
    let (code, said) = status(&admin);
    assert_eq!(code, Some(1), "not ready: {said}");
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["ready"], false);
    fs::rename(stage.at("away"), stage.at("volume")).unwrap();
    let told = sidecar.until_idle();
    let (code, said) = status(&admin);
    assert_eq!(code, Some(0), "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(keys(&said), keys(&told));
    assert_eq!(said["published"], told["published"]);
    let (code, said) = run(trimtab().arg("retry").env("TRIMTAB_ADMIN", &admin));
    assert_eq!(code, Some(0));
    assert!(said.contains("nothing to retry"), "{said}");
    // The flag beats the variable.
    let (code, _) = run(trimtab().args(["status", "--admin", &admin]).env("TRIMTAB_ADMIN", "127.0.0.1:1"));
    assert_eq!(code, Some(0));
    stage.edit("2");
    sidecar.until("published", |status| status["published"]["sequence"] == 2);

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for ask in ["status", "retry"] {
        let (code, said) = run(trimtab().args([ask, "--admin", &nobody]));
        assert_eq!(code, Some(1));
        assert!(said.contains(&nobody) && said.contains("--admin"), "{said}");
        let (code, said) = run(trimtab().args([ask, "--admin", "off"]));
        assert_eq!(code, Some(1));
        assert!(said.contains("--admin is off"), "{said}");
    }
}

// --- probes, metrics, status -----------------------------------------------------------------------------------------

#[test]
fn readiness_comes_with_the_first_publish_and_stays() {
    let stage = Stage::new("1");
    fs::rename(stage.at("volume"), stage.at("away")).unwrap();
    let sidecar = stage.start(&[]);
    let code = |path: &str| sidecar.request("--listen", "GET", path).unwrap().0;
    let status =
        sidecar.until("it waits", |status| status["phase"] == "syncing" && status["sources"][0]["message"].is_string());
    assert_eq!((code("/livez"), code("/readyz")), (200, 503));
    assert_eq!(status["ready"], false);
    fs::rename(stage.at("away"), stage.at("volume")).unwrap();
    sidecar.until_idle();
    assert_eq!((code("/livez"), code("/readyz")), (200, 200));
    assert_eq!(metric(&sidecar, "trimtab_source_up{source=\"dir/volume\"}"), Some(1.0));
    // The source vanishes, and then becomes unreadable.
    fs::rename(stage.at("volume"), stage.at("away")).unwrap();
    let status = sidecar.until("it is missed", |status| status["sources"][0]["message"].is_string());
    assert_eq!(status["ready"], true);
    assert_eq!((code("/livez"), code("/readyz")), (200, 200));
    std::os::unix::fs::symlink("volume", stage.at("volume")).unwrap();
    sidecar.until("it is in trouble", |status| status["sources"][0]["healthy"] == false);
    assert_eq!((code("/livez"), code("/readyz")), (200, 200));
    assert_eq!(metric(&sidecar, "trimtab_source_up{source=\"dir/volume\"}"), Some(0.0));
    assert_eq!(stage.published().as_deref(), Some("1"));
}

#[test]
fn paths_and_methods_are_those_that_are_documented() {
    let stage = Stage::new("1");
    let sidecar = stage.start(&[]);
    sidecar.until_idle();
    for (server, method, path, code) in [
        ("--listen", "GET", "/livez", 200),
        ("--listen", "HEAD", "/livez", 200),
        ("--listen", "GET", "/readyz", 200),
        ("--listen", "GET", "/metrics", 200),
        ("--listen", "GET", "/", 404),
        ("--listen", "GET", "/status", 404),
        ("--listen", "POST", "/retry", 404),
        ("--listen", "POST", "/livez", 404),
        ("--listen", "GET", "/livez/", 404),
        ("--admin", "GET", "/status", 200),
        ("--admin", "GET", "/status?pretty", 200),
        ("--admin", "POST", "/status", 404),
        ("--admin", "POST", "/retry", 202),
        ("--admin", "GET", "/retry", 405),
        ("--admin", "PUT", "/retry", 405),
        ("--admin", "GET", "/metrics", 404),
        ("--admin", "GET", "/../status", 404),
    ] {
        let answer = sidecar.request(server, method, path);
        assert_eq!(answer.map(|(code, _)| code), Some(code), "{server} {method} {path}");
    }
    let retries = sidecar.log().matches("asked to retry").count();
    assert_eq!(retries, 1, "by the POST to --admin alone");
}

#[test]
fn clients_that_are_slow_hold_up_nobody() {
    let stage = Stage::new("1");
    let sidecar = stage.start(&[]);
    sidecar.until_idle();
    for server in ["--listen", "--admin"] {
        let path = if server == "--listen" { "/livez" } else { "/status" };
        let slow: Vec<_> = (0..16)
            .map(|n| {
                let mut stream = TcpStream::connect(sidecar.address(server)).unwrap();
                // Some say nothing, some begin a request, some do not read the answers.
                let half = format!("GET {path} HTTP/1.1\r\nHost: x\r\n");
                stream.write_all(["", &half, &(half.clone() + "\r\n")][n % 3].as_bytes()).unwrap();
                stream
            })
            .collect();
        let asked = Instant::now();
        assert_eq!(sidecar.request(server, "GET", path).unwrap().0, 200);
        assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
        drop(slow);
    }
    // Garbage is answered with an error, and breaks nothing.
    let mut stream = TcpStream::connect(sidecar.address("--listen")).unwrap();
    stream.write_all(b"\x16\x03\x01 no HTTP\r\n\r\n").unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    assert_eq!(sidecar.request("--listen", "GET", "/livez").unwrap().0, 200);
}

#[test]
fn listen_serves_both_families() {
    let stage = Stage::new("1");
    let sidecar = stage.start(&["--listen", ":0"]);
    let address = sidecar.address("--listen");
    assert!(address.ip().is_unspecified());
    let ask = |ip: std::net::IpAddr| {
        let mut stream = TcpStream::connect(SocketAddr::new(ip, address.port())).unwrap();
        stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{ip}: {answer}");
    };
    ask(Ipv4Addr::LOCALHOST.into());
    // A machine without IPv6 has the other family alone.
    if address.is_ipv6() {
        ask(Ipv6Addr::LOCALHOST.into());
    }
}

#[test]
fn address_in_use_ends_the_start_and_names_the_flag() {
    let stage = Stage::new("1");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--listen", "--admin"] {
        let mut sidecar = Sidecar::start(&stage.at(&format!("log{flag}")), stage.flags(&[flag, &address]));
        assert_eq!(sidecar.exit_code(), Some(1));
        let log = sidecar.log();
        assert!(log.contains(&format!("{flag} {address}")) && log.contains(&format!("{flag}=off")), "{log}");
        assert_eq!(stage.published(), None, "nothing is done before");
    }
}

#[test]
fn servers_that_are_off_listen_nowhere() {
    let stage = Stage::new("1");
    let mut sidecar = stage.start(&["--listen", "off", "--admin", "off"]);
    eventually("it is published", || stage.published());
    let pid = sidecar.pid().as_raw_nonzero();
    let sockets: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    for table in ["tcp", "tcp6"] {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in table.lines().skip(1) {
            let inode = line.split_whitespace().nth(9).unwrap();
            assert!(!sockets.iter().any(|socket| socket == inode), "{line}");
        }
    }
    assert!(!sidecar.log().contains("serves on"));
    assert_eq!(sidecar.terminate(), Some(0));
}

/// The design's names that there are so far. `quarantined` and `rollbacks_total` come with the rollback.
const METRICS: &[&str] = &[
    "trimtab_generation_sequence",
    "trimtab_generation_info",
    "trimtab_stage_total",
    "trimtab_stage_duration_seconds_count",
    "trimtab_stage_duration_seconds_sum",
    "trimtab_stage_duration_seconds_bucket",
    "trimtab_last_success_timestamp_seconds",
    "trimtab_propagation_seconds_count",
    "trimtab_source_up",
    "trimtab_source_events_total",
    "trimtab_debt",
    "trimtab_build_info",
    "reloader_last_reload_successful",
    "reloader_last_reload_success_timestamp_seconds",
    "reloader_reloads_total",
    "reloader_reloads_failed_total",
    "reloader_config_apply_operations_total",
    "reloader_config_apply_operations_failed_total",
    "reloader_watches",
    "reloader_watch_events_total",
    "reloader_watch_errors_total",
];

#[test]
fn metrics_have_the_documented_names_and_parse() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(None);
    let (odd, volume) = (stage.text("odd"), stage.text("volume"));
    fs::create_dir(&odd).unwrap();
    stage.write("odd/key", "x");
    let odd = format!("o\"d\\d {{}}={odd}");
    let output = stage.text("conf");
    let flags = ["--watch-dir", &odd, "--watch-dir", &volume, "--output", &output, "--reload-url", &hook.url()];
    let sidecar = Sidecar::start(&stage.at("log"), flags);
    sidecar.until_idle();
    stage.edit("2");
    sidecar.until("told", |status| status["confirmed"]["sequence"] == 2);
    let text = sidecar.request("--listen", "GET", "/metrics").unwrap().1;
    let mut lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.pop(), Some("# EOF"));
    let comment = Regex::new(r"^# (HELP|TYPE|UNIT) [a-z_]+ .+$").unwrap();
    let sample = r#"^([a-z_]+)(\{[a-z_]+="(\\["\\n]|[^"\\])*"(,[a-z_]+="(\\["\\n]|[^"\\])*")*\})? ([0-9.e+-]+)$"#;
    let sample = Regex::new(sample).unwrap();
    let mut names = BTreeSet::new();
    for line in lines {
        if comment.is_match(line) {
            continue;
        }
        let parts = sample.captures(line).unwrap_or_else(|| panic!("not a sample: {line}"));
        names.insert(parts[1].to_owned());
        parts[6].parse::<f64>().unwrap_or_else(|_| panic!("not a number: {line}"));
    }
    for name in METRICS {
        assert!(names.contains(*name), "{name} is missing in\n{text}");
    }
    assert!(text.contains(r#"trimtab_source_up{source="dir/o\"d\\d {}"} 1"#), "{text}");
    let is = |name: &str, value: f64| assert_eq!(metric(&sidecar, name), Some(value), "{name}");
    is("trimtab_generation_sequence", 2.0);
    is("trimtab_stage_total{stage=\"reload\",result=\"success\"}", 2.0);
    is("trimtab_propagation_seconds_count", 2.0);
    is("reloader_reloads_total", 2.0);
    is("reloader_reloads_failed_total", 0.0);
    is("reloader_watches", 2.0);
    let digest = sidecar.status()["published"]["digest"].as_str().unwrap().to_owned();
    is(&format!("trimtab_generation_info{{digest=\"{digest}\"}}"), 1.0);
    assert_eq!(text.matches("trimtab_generation_info{").count(), 1, "the published one alone");
}

#[test]
fn status_has_the_documented_fields() {
    let stage = Stage::new("1");
    let template = stage.write("app.conf.j2", "{{ data[\"app.conf\"] }}");
    let flags = ["--template", &template, "--signal", "HUP", "--process", "no-such-process"];
    let sidecar = stage.start(&flags);
    sidecar.until("it is published", |status| status["published"]["sequence"] == 1 && status["target"].is_object());
    stage.write("app.conf.new", "{{ data.nope }}");
    fs::rename(stage.at("app.conf.new"), stage.at("app.conf.j2")).unwrap();
    let status = sidecar.until("it is rejected", |status| status["quarantine"].is_object());
    let set = |names: &[&'static str]| names.iter().copied().collect::<BTreeSet<_>>();
    let top = [
        "phase",
        "ready",
        "observed",
        "published",
        "reloaded",
        "confirmed",
        "lastGood",
        "debt",
        "quarantine",
        "heldBack",
        "target",
        "sources",
        "errors",
    ];
    assert_eq!(keys(&status), set(&top));
    assert_eq!(keys(&status["observed"]), set(&["digest", "at"]));
    assert_eq!(keys(&status["published"]), set(&["digest", "sequence", "at"]));
    assert!(status["reloaded"].is_null() && status["confirmed"].is_null() && status["lastGood"].is_null());
    assert_eq!(status["debt"], "publish");
    assert_eq!(keys(&status["quarantine"]), set(&["digest", "stage", "reason", "at"]));
    assert_eq!(keys(&status["target"]), set(&["state", "pid", "name", "message"]));
    assert_eq!(keys(&status["sources"][0]), set(&["name", "resourceVersion", "healthy", "message", "at"]));
    assert_eq!(status["sources"][0]["name"], "dir/volume");
    assert_eq!(keys(&status["errors"]), set(&["render", "reload"]));
    assert_eq!(keys(&status["errors"]["reload"]), set(&["message", "at"]));
    assert!(status["heldBack"].as_array().unwrap().is_empty());
    // What is solved is told no longer.
    stage.write("app.conf.new", "{{ data[\"app.conf\"] }}!");
    fs::rename(stage.at("app.conf.new"), stage.at("app.conf.j2")).unwrap();
    let status = sidecar.until("it is published", |status| status["published"]["sequence"] == 2);
    assert!(status["quarantine"].is_null(), "{status}");
    assert_eq!(problem(&status, "render"), "");

    let hook = Hook::start(None);
    let other = Stage::new("1");
    let status = other.start(&["--reload-url", &hook.url()]).until_idle();
    assert_eq!(keys(&status), set(&top));
    for step in ["published", "reloaded", "confirmed", "lastGood"] {
        assert_eq!(keys(&status[step]), set(&["digest", "sequence", "at"]), "{step}");
        assert_eq!(status[step]["digest"], status["observed"]["digest"], "{step}");
    }
    assert!(status["debt"].is_null() && status["target"].is_null() && status["quarantine"].is_null());
    assert_eq!(status["errors"], serde_json::json!({}));
}

// --- variables -------------------------------------------------------------------------------------------------------

/// Starts by variables; notes which were used.
struct Variables {
    used: BTreeSet<String>,
}

impl Variables {
    fn pairs(&mut self, variables: &[(&str, &str)]) -> Vec<String> {
        self.used.extend(variables.iter().map(|(name, _)| format!("TRIMTAB_{name}")));
        variables.iter().map(|(name, value)| format!("TRIMTAB_{name}={value}")).collect()
    }

    fn start(&mut self, stage: &Stage, log: &str, variables: &[(&str, &str)], more: &[&str]) -> Sidecar {
        let pairs = self.pairs(variables);
        let mut program = vec!["env"];
        program.extend(more);
        program.extend(pairs.iter().map(String::as_str));
        Sidecar::start_by(&program, &stage.at(log), Vec::<String>::new())
    }

    fn run(&mut self, variables: &[(&str, &str)]) -> (Option<i32>, String) {
        let pairs = self.pairs(variables);
        run(Command::new("env").args(pairs).arg(env!("CARGO_BIN_EXE_trimtab")))
    }
}

#[test]
fn every_flag_works_by_its_variable() {
    let mut variables = Variables { used: BTreeSet::new() };
    by_variables_files_templates_and_http(&mut variables);
    by_variables_copies_programs_and_pace(&mut variables);
    by_variables_targets_tls_and_once(&mut variables);
    by_variables_checks(&mut variables);
    by_variables_objects(&mut variables);
    by_variables_servers_and_logs(&mut variables);
    let command = trimtab::cli::args::Cli::command();
    let all = command.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned()));
    assert_eq!(variables.used, all.collect::<BTreeSet<_>>(), "a flag without a test of its variable, or a wrong name");
}

fn by_variables_files_templates_and_http(variables: &mut Variables) {
    let stage = Stage::new("from the volume");
    for dir in ["extra", "podinfo"] {
        fs::create_dir(stage.at(dir)).unwrap();
    }
    stage.write("extra/password", "from the extra");
    stage.write("podinfo/labels", "app=\"web\"\n");
    let template = stage.write(
        "app.conf.j2",
        "{{ dir('app')['app.conf'] }}, {{ env('A_PUBLIC') }}, {{ env('B_PUBLIC') }}, {{ pod.labels.app }}",
    );
    let secret = stage.write("secret.j2", "{{ dir('extra').password }}, {{ env('A_SECRET') }}");
    let empty = stage.write("empty.j2", "");
    let hooks = [Hook::start(Some(stage.at("conf/app.conf"))), Hook::start(Some(stage.at("conf/moved.conf")))];
    hooks[0].answer(Answer::Code(418));
    let sidecar = variables.start(
        &stage,
        "log",
        &[
            (
                "WATCH_DIR",
                &format!("app={}\nextra={}\nabsent={}", stage.text("volume"), stage.text("extra"), stage.text("no")),
            ),
            ("SECRET_DIR", "extra"),
            ("PUBLIC_DIR", "app\nabsent"),
            ("OPTIONAL", "true"),
            ("ALLOW_EMPTY", "true"),
            ("OUTPUT", &stage.text("conf")),
            ("TEMPLATE", &format!("{template}\n{secret}:moved.conf\n{empty}")),
            ("SECRET_MODE", "0600"),
            ("MAX_SIZE", "1Mi"),
            ("ENV", "A_PUBLIC\nB_PUBLIC"),
            ("SECRET_ENV", "A_SECRET"),
            ("PODINFO_DIR", &stage.text("podinfo")),
            ("DIGEST_KEY_FILE", &stage.write("key", "k")),
            ("RELOAD_URL", &format!("{}\n{}", hooks[0].url(), hooks[1].url())),
            ("RELOAD_METHOD", "PATCH"),
            ("RELOAD_BODY", "a, b"),
            ("RELOAD_STATUS", "2xx,418"),
            ("RELOAD_HEADER", "X-One: 1, 1\nX-Two: 2"),
            ("RELOAD_TOKEN_FILE", &stage.write("token", "t0ken")),
            ("RELOAD_TIMEOUT", "250ms"),
            ("RELOAD_ATTEMPTS", "2"),
            ("ON_REJECT", "hold"),
            ("RETRY_MIN", "20ms"),
            ("RETRY_MAX", "40ms"),
        ],
        &["A_PUBLIC=one", "B_PUBLIC=two", "A_SECRET=three"],
    );
    sidecar.until_idle();
    assert_eq!(hooks[0].last_saw().as_deref(), Some("from the volume, one, two, web"));
    assert_eq!(hooks[1].last_saw().as_deref(), Some("from the extra, three"));
    assert_eq!(fs::read(stage.at("conf/empty")).unwrap(), b"");
    assert_eq!(fs::metadata(stage.at("conf/moved.conf")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!stage.at("conf/..trimtab.key").exists(), "the key is the given one");
    for hook in &hooks {
        let call = &hook.calls()[0];
        assert_eq!((call.head[0].as_str(), call.body.as_str()), ("PATCH /-/reload HTTP/1.1", "a, b"));
        for line in ["x-one: 1, 1", "x-two: 2", "authorization: Bearer t0ken"] {
            assert!(call.head.iter().any(|head| head.eq_ignore_ascii_case(line)), "{line} is not in {call:?}");
        }
    }
    hooks[0].answer(Answer::Hang);
    let edit = |name: &str, content: &str| {
        stage.write("new", content);
        fs::rename(stage.at("new"), stage.at(name)).unwrap();
    };
    edit("empty.j2", "x");
    sidecar.until("it is slow", |status| problem(status, "reload").contains("within 250ms"));
    let before = hooks[0].calls().len();
    hooks[0].answer(Answer::Code(500));
    sidecar.until("it is held", |status| status["phase"] == "held");
    assert!(hooks[0].calls().len() >= before + 2);
    edit("empty.j2", &"x".repeat(2 << 20));
    let status = sidecar.until("it is too large", |status| status["sources"].to_string().contains("--max-size"));
    assert_eq!(status["published"]["sequence"], 2);
}

fn by_variables_copies_programs_and_pace(variables: &mut Variables) {
    let stage = Stage::new("1");
    let script = stage.write("reload.sh", format!("echo ran >> {}", stage.text("ran")));
    let ran = || fs::read_to_string(stage.at("ran")).unwrap_or_default().lines().count();
    fs::create_dir(stage.at("plain")).unwrap();
    stage.write("plain/kept", "1");
    stage.write("plain/gone", "1");
    let sidecar = variables.start(
        &stage,
        "log",
        &[
            ("WATCH_DIR", &format!("app={}", stage.text("plain"))),
            ("PUBLIC_DIR", "app"),
            ("OUTPUT", &stage.text("conf")),
            ("PATH", "{kind}/{name}/{key}"),
            ("FILE_MODE", "0604"),
            ("LAYOUT", "files"),
            ("ON_DELETE", "apply"),
            ("POLL_INTERVAL", "300ms"),
            ("RELOAD_EXEC", &format!("sh '{script}'")),
            ("RELOAD_MIN_INTERVAL", "10ms"),
            ("RELOAD_SPLAY", "10ms"),
            ("DEBOUNCE", "10ms"),
            ("DEBOUNCE_MAX", "20ms"),
        ],
        &[],
    );
    sidecar.until_idle();
    assert_eq!(ran(), 1);
    let kept = stage.at("conf/dir/app/kept");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o604);
    assert!(!fs::symlink_metadata(stage.at("conf/dir")).unwrap().is_symlink(), "a file in its place, by LAYOUT");
    fs::remove_file(stage.at("plain/gone")).unwrap();
    eventually("the deletion is applied", || (!stage.at("conf/dir/app/gone").exists()).then_some(()));
    // Written in place and not closed: only the poll can tell.
    let mut file = fs::OpenOptions::new().write(true).open(stage.at("plain/kept")).unwrap();
    file.write_all(b"2").unwrap();
    eventually("the poll finds it", || (fs::read(&kept).ok()? == b"2").then_some(()));
    sidecar.until("all is told", |status| status["phase"] == "idle" && status["confirmed"]["sequence"] == 3);
    assert_eq!(ran(), 3);

    // The paces themselves: with these, nothing that changes is published for an hour.
    for (log, name) in [("log-1", "RELOAD_MIN_INTERVAL"), ("log-2", "RELOAD_SPLAY"), ("log-3", "DEBOUNCE")] {
        let mut stage = Stage::new("1");
        let mut vars = vec![(name, "1h"), ("OUTPUT", ""), ("WATCH_DIR", ""), ("DEBOUNCE_MAX", "1h")];
        let (output, volume) = (stage.text("conf"), stage.text("volume"));
        (vars[1].1, vars[2].1) = (&output, &volume);
        let sidecar = variables.start(&stage, log, &vars, &[]);
        sidecar.until_idle();
        stage.edit("2");
        sidecar.until("it is put off", |status| status["phase"] == "settling");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(sidecar.status()["phase"], "settling", "{name}");
    }
}

fn by_variables_checks(variables: &mut Variables) {
    let mut stage = Stage::new("state good 1");
    let (output, volume) = (stage.text("conf"), stage.text("volume"));
    let own = [("OUTPUT", output.as_str()), ("WATCH_DIR", volume.as_str()), ("DEBOUNCE", "10ms")];
    let hook = Hook::start(Some(stage.file()));
    hook.answer(Answer::Echo(418));
    let url = hook.url();
    let programs = "sh -c '! grep -q bad $0/app.conf' {dir}\nsh -c 'grep -q slow $0/app.conf && sleep 60; true' {dir}";
    let checks = [
        ("SYNTAX", "strict"),
        ("VALIDATE", programs),
        ("VALIDATE_TIMEOUT", "300ms"),
        ("CONFIRM_URL", &url),
        ("CONFIRM_STATUS", "418"),
        ("CONFIRM_MATCH", "state good"),
        ("CONFIRM_CHANGED", r"state \S+ (\S+)"),
        ("CONFIRM_TIMEOUT", "300ms"),
    ];
    let sidecar = variables.start(&stage, "log", &[&own[..], &checks].concat(), &[]);
    sidecar.until_idle();
    for (content, told) in [
        ("state good bad", "exit code 1"),
        ("state good slow", "--validate-timeout"),
        ("state poor 2", "--confirm-match"),
        ("state good 1 still", "--confirm-changed"),
    ] {
        stage.edit(content);
        let status = sidecar.until(content, |status| status["quarantine"]["reason"].to_string().contains(told));
        assert!(told.starts_with("--confirm") == (status["quarantine"]["stage"] == "confirm"), "{status}");
        // What was the same before the last of them is the same after its rollback.
        if told != "--confirm-changed" {
            sidecar.until_idle();
        }
    }
    stage.volume.swap(&[("app.conf", "state good 3"), ("app.json", "{")]);
    sidecar.until("it is malformed", |status| status["quarantine"]["reason"].to_string().contains("app.json"));

    let mut target = Command::new("sleep").arg("600").spawn().unwrap();
    let pid_file = stage.write("pid", target.id().to_string());
    let hook = Hook::start(None);
    let url = hook.url();
    let alive = [
        ("RELOAD_URL", url.as_str()),
        ("PID_FILE", &pid_file),
        ("CONFIRM_ALIVE", "70ms"),
        ("CONFIRM_WORKERS", "true"),
        ("CONFIRM_TIMEOUT", "300ms"),
    ];
    let other = stage.text("other");
    let own = [("OUTPUT", other.as_str()), ("WATCH_DIR", volume.as_str())];
    let sidecar = variables.start(&stage, "log-alive", &[&own[..], &alive].concat(), &[]);
    let told = |status: &Value| problem(status, "confirm").contains("lived for 70ms (--confirm-workers)");
    sidecar.until("it has no workers", told);
    target.kill().unwrap();
    target.wait().unwrap();
}

fn by_variables_targets_tls_and_once(variables: &mut Variables) {
    let stage = Stage::new("1");
    let (output, volume) = (stage.text("conf"), stage.text("volume"));
    let own = [("OUTPUT", output.as_str()), ("WATCH_DIR", volume.as_str())];
    let pid_file = stage.write("pid", "999999999");
    let target = [("SIGNAL", "usr1"), ("PROCESS", "nobody"), ("PROCESS_ARGS", "a b"), ("PID_FILE", &pid_file)];
    let mut sidecar = variables.start(&stage, "log-1", &[&own[..], &target].concat(), &[]);
    let flags = format!("--process nobody --process-args 'a b' --pid-file {pid_file}");
    sidecar.until("it is missed", |status| problem(status, "reload").contains(&flags));
    sidecar.kill();
    let (code, said) = variables.run(&[&own[..], &[("SIGNAL", "KILL"), ("PROCESS", "nobody")]].concat());
    assert!(code == Some(64) && said.contains("--signal"), "{said}");

    let url = ("RELOAD_URL", "https://127.0.0.1:1/");
    for (files, flag) in [
        (&[("RELOAD_CA_FILE", "/no/ca")][..], "--reload-ca-file /no/ca"),
        (&[("RELOAD_AUTH_FILE", "/no/auth")], "--reload-auth-file /no/auth"),
        (
            &[("RELOAD_CERT_FILE", "/no/cert"), ("RELOAD_KEY_FILE", "/no/key"), ("RELOAD_INSECURE", "true")],
            "--reload-cert-file /no/cert",
        ),
    ] {
        let mut sidecar =
            variables.start(&stage, flag.split_once(' ').unwrap().0, &[&own[..], &[url], files].concat(), &[]);
        sidecar.until(flag, |status| problem(status, "reload").contains(flag));
        sidecar.kill();
    }
    let key = stage.write("key", "no key");
    let cert = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap().cert.pem();
    let cert = stage.write("cert", cert);
    let pair = [url, ("RELOAD_CERT_FILE", &cert), ("RELOAD_KEY_FILE", &key), ("RELOAD_INSECURE", "true")];
    let mut sidecar = variables.start(&stage, "log-key", &[&own[..], &pair].concat(), &[]);
    sidecar.until("the key", |status| problem(status, "reload").contains(&format!("--reload-key-file {key}")));
    sidecar.kill();
    let both = [url, ("RELOAD_CA_FILE", "/x"), ("RELOAD_INSECURE", "true")];
    let (code, said) = variables.run(&[&own[..], &both].concat());
    assert!(code == Some(64) && said.contains("--reload-insecure"), "{said}");
    let (code, said) = variables.run(&[&own[..], &[url, ("RELOAD_INSECURE", "false"), ("ONCE", "true")]].concat());
    assert_eq!(code, Some(0), "{said}");

    let absent = [("OUTPUT", output.as_str()), ("WATCH_DIR", "/no/such"), ("ONCE", "true"), ("ONCE_TIMEOUT", "100ms")];
    let began = Instant::now();
    let (code, said) = variables.run(&absent);
    assert!(code == Some(69) && began.elapsed() < SOON, "{said}");
}

fn by_variables_objects(variables: &mut Variables) {
    let stage = Stage::new("1");
    let context = |name: &str, namespace: &str| {
        format!("- {{name: {name}, context: {{cluster: c, user: u, namespace: {namespace}}}}}\n")
    };
    let kubeconfig = stage.write(
        "kubeconfig",
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: one\nclusters:\n\
             - {{name: c, cluster: {{server: 'http://127.0.0.1:1'}}}}\nusers:\n- {{name: u, user: {{}}}}\ncontexts:\n{}{}",
            context("one", "first"),
            context("two", "second")
        ),
    );
    let output = stage.text("conf");
    let own = [("OUTPUT", output.as_str()), ("KUBECONFIG", &kubeconfig)];
    let names = |sidecar: &Sidecar| {
        let status = sidecar.until("the sources are in trouble", |status| {
            status["sources"].as_array().is_some_and(|all| all.iter().all(|source| source["message"].is_string()))
        });
        let sources = status["sources"].as_array().unwrap();
        sources.iter().map(|source| source["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let by_name = [("CONFIGMAP", "web\nother/db"), ("SECRET", "s\nother/t"), ("CONTEXT", "two")];
    let mut sidecar = variables.start(&stage, "log-1", &[&own[..], &by_name].concat(), &[]);
    let expected = ["configmap/second/web", "configmap/other/db", "secret/second/s", "secret/other/t"];
    assert_eq!(names(&sidecar), expected);
    sidecar.kill();
    let selected = [("SELECTOR", "app in (a, b),tier=web"), ("RESOURCE", "both"), ("NAMESPACE", "n\nm")];
    let mut sidecar = variables.start(&stage, "log-2", &[&own[..], &selected].concat(), &[]);
    let expected =
        ["configmap/n", "secret/n", "configmap/m", "secret/m"].map(|kind| format!("{kind}/[{}]", selected[0].1));
    assert_eq!(names(&sidecar), expected);
    sidecar.kill();
    let all = [("SELECTOR", "a"), ("RESOURCE", "secret"), ("ALL_NAMESPACES", "true")];
    let sidecar = variables.start(&stage, "log-3", &[&own[..], &all].concat(), &[]);
    assert_eq!(names(&sidecar), ["secret/*/[a]"]);
}

fn by_variables_servers_and_logs(variables: &mut Variables) {
    let stage = Stage::new("1");
    let hook = Hook::start(None);
    hook.answer(Answer::Hang);
    let pairs = variables.pairs(&[
        ("OUTPUT", &stage.text("conf")),
        ("WATCH_DIR", &stage.text("volume")),
        ("LISTEN", "127.0.0.1:0"),
        ("ADMIN", "localhost:0"),
        ("LOG_FORMAT", "json"),
        ("LOG_LEVEL", "debug"),
        ("SHUTDOWN_GRACE", "200ms"),
        ("RELOAD_URL", &hook.url()),
    ]);
    let log = fs::File::create(stage.at("log")).unwrap();
    let command = Command::new("env").args(pairs).arg(env!("CARGO_BIN_EXE_trimtab")).stderr(log).spawn();
    let mut sidecar = Running(command.unwrap());
    eventually("the hook is called", || (!hook.calls().is_empty()).then_some(()));
    let pid = rustix::process::Pid::from_child(&sidecar.0);
    let told = Instant::now();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let status = eventually("an end", || sidecar.0.try_wait().unwrap());
    assert!(status.code() == Some(143) && told.elapsed() < SOON, "{status}, {:?}", told.elapsed());
    let log = fs::read_to_string(stage.at("log")).unwrap();
    for part in ["--listen serves on 127.0.0.1:", "--admin serves on 127.0.0.1:", "\"level\":\"DEBUG\""] {
        assert!(log.contains(part), "{part} is not in {log}");
    }
}

#[test]
fn flags_beat_variables() {
    let stage = Stage::new("1");
    let hooks = [Hook::start(Some(stage.file())), Hook::start(None)];
    let mut variables = Variables { used: BTreeSet::new() };
    let others = variables.pairs(&[
        ("OUTPUT", "/nowhere/at/all"),
        ("WATCH_DIR", "/nowhere\n/at/all"),
        ("RELOAD_URL", &hooks[1].url()),
        ("RELOAD_METHOD", "PUT"),
        ("RELOAD_HEADER", "X-Variable: 1"),
        ("DEBOUNCE", "1h"),
        ("LISTEN", "203.0.113.1:1"),
    ]);
    let program: Vec<_> = ["env"].into_iter().chain(others.iter().map(String::as_str)).collect();
    let url = hooks[0].url();
    let more = ["--reload-url", &url, "--reload-method", "PATCH", "--reload-header", "X-Flag: 1"];
    let sidecar = stage.start_by(&program, &more);
    let status = sidecar.until_idle();
    assert_eq!(status["sources"].as_array().unwrap().len(), 1, "a list is replaced, not added to");
    let call = &hooks[0].calls()[0];
    assert_eq!(call.head[0], "PATCH /-/reload HTTP/1.1");
    assert!(call.head.iter().any(|line| line.eq_ignore_ascii_case("x-flag: 1")));
    assert!(!call.head.iter().any(|line| line.to_lowercase().contains("variable")));
    assert!(hooks[1].calls().is_empty());
}

#[test]
fn variables_are_never_printed() {
    let canary = "c4n4ry-value";
    let command = trimtab::cli::args::Cli::command();
    let names: Vec<_> = command.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_owned())).collect();
    for args in [&["--help"][..], &["-h"], &["--version"], &["status", "--help"], &["retry", "--help"]] {
        let mut command = trimtab();
        command.args(args).envs(names.iter().map(|name| (name, canary)));
        let (code, said) = run(&mut command);
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.is_empty() && !said.contains(canary), "{args:?}: {said}");
    }
    // Nor by an error about something else.
    let secrets = ["RELOAD_BODY", "RELOAD_HEADER", "RELOAD_EXEC", "RELOAD_URL"].map(|name| format!("TRIMTAB_{name}"));
    let mut command = trimtab();
    command.args(["--output", "/x", "--watch-dir", "/y"]).envs(secrets.iter().map(|name| (name, canary)));
    let (code, said) = run(&mut command);
    assert_eq!(code, Some(64));
    assert!(!said.contains(canary), "{said}");
}

// --- wrong usage -----------------------------------------------------------------------------------------------------

const FILES: &[&str] = &["--output", "/tmp/trimtab-none/out", "--watch-dir", "/tmp/trimtab-none/in"];
const API: &[&str] = &["--output", "/tmp/trimtab-none/out", "--kubeconfig", "/dev/null"];
const URL: &[&str] =
    &["--output", "/tmp/trimtab-none/out", "--watch-dir", "/tmp/trimtab-none/in", "--reload-url", "http://x/"];

/// Each line: flags to begin with, those that are wrong, and what the message must name.
const WRONG: &[(&[&str], &[&str], &[&str])] = &[
    // Nothing, too little, too much.
    (&[], &[], &["--output"]),
    (&[], &["--watch-dir", "/x"], &["--output"]),
    (&["--output", "/x"], &[], &["--configmap", "--secret", "--selector", "--watch-dir"]),
    (FILES, &["--no-such-flag"], &["--no-such-flag"]),
    (FILES, &["--reload-ulr", "http://x/"], &["--reload-ulr", "--reload-url"]),
    (FILES, &["no-such-command"], &["no-such-command"]),
    (FILES, &["status"], &["status"]),
    (&["status"], &["--output", "/x"], &["--output"]),
    (FILES, &["--output", "/y"], &["--output"]),
    (FILES, &["--debounce"], &["--debounce"]),
    (FILES, &["--once=yes"], &["--once"]),
    // Sources.
    (FILES, &["--resource", "both"], &["--resource", "--selector"]),
    (FILES, &["--all-namespaces"], &["--all-namespaces", "--selector"]),
    (API, &["--selector", "a", "--all-namespaces", "--namespace", "n"], &["--all-namespaces", "--namespace"]),
    (FILES, &["--context", "c"], &["--context", "--kubeconfig"]),
    (FILES, &["--kubeconfig", "/x"], &["--kubeconfig", "--configmap", "--secret", "--selector"]),
    (FILES, &["--namespace", "n"], &["--namespace", "--configmap", "--secret", "--selector"]),
    (API, &["--configmap", "n/a", "--configmap", "n/a"], &["--configmap", "n/a", "twice"]),
    (API, &["--configmap", "a", "--configmap", "n/a", "--namespace", "n"], &["--configmap", "n/a", "twice"]),
    (API, &["--secret", "n/a", "--secret", "n/a"], &["--secret", "n/a", "twice"]),
    (API, &["--configmap", "a", "--namespace", "n", "--namespace", "m"], &["--namespace", "--configmap NAMESPACE/a"]),
    (API, &["--secret", "a", "--namespace", "n", "--namespace", "m"], &["--namespace", "--secret NAMESPACE/a"]),
    (API, &["--configmap", "a"], &["--namespace", "--kubeconfig /dev/null"]),
    (API, &["--selector", "a"], &["--namespace", "--kubeconfig /dev/null"]),
    (&["--output", "/x", "--configmap", "a"], &[], &["--namespace", "--kubeconfig"]),
    (API, &["--configmap", "n/a", "--context", "c", "--configmap", "b"], &["--namespace", "--kubeconfig /dev/null"]),
    (FILES, &["--watch-dir", "/y/in"], &["--watch-dir", "\"in\"", "NAME=PATH"]),
    (FILES, &["--public-dir", "out"], &["--public-dir out", "--watch-dir"]),
    (FILES, &["--secret-dir", "out"], &["--secret-dir out", "--watch-dir"]),
    (FILES, &["--secret-dir", "in", "--public-dir", "in"], &["--secret-dir in", "--public-dir in"]),
    (API, &["--configmap", "a", "--namespace", "N S"], &["--namespace", "lower-case"]),
    (API, &["--configmap", "n/a", "--namespace", ""], &["--namespace", "lower-case"]),
    (API, &["--selector", ""], &["--selector", "everything"]),
    (API, &["--configmap", "A"], &["--configmap"]),
    (API, &["--configmap", "n/"], &["--configmap"]),
    (API, &["--configmap", "a/b/c"], &["--configmap"]),
    (API, &["--configmap", "n/.."], &["--configmap"]),
    (API, &["--secret", ""], &["--secret"]),
    (API, &["--selector", "a", "--resource", "pod"], &["--resource", "configmap, secret, both"]),
    (FILES, &["--on-delete", "never"], &["--on-delete", "keep, apply"]),
    (FILES, &["--watch-dir", "/"], &["--watch-dir", "NAME=PATH"]),
    (FILES, &["--watch-dir", "a="], &["--watch-dir"]),
    (FILES, &["--poll-interval", "60"], &["--poll-interval", "1m30s"]),
    (FILES, &["--watch-dir", "/tmp/trimtab-none/out/below"], &["--output", "keep them apart"]),
    (FILES, &["--watch-dir", "/tmp"], &["--output", "keep them apart"]),
    (FILES, &["--template", "/tmp/trimtab-none/out/a.j2"], &["--output", "keep them apart"]),
    (FILES, &["--podinfo-dir", "/tmp/trimtab-none/out"], &["--output", "keep them apart"]),
    // Output.
    (FILES, &["--template", "/a.j2", "--path", "{key}"], &["--path", "--template"]),
    (FILES, &["--path", "{key"], &["--path", "brace"]),
    (FILES, &["--path", "{nmae}/{key}"], &["--path", "{nmae}", "{name}"]),
    (FILES, &["--path", "{name}"], &["--path", "{key}"]),
    (FILES, &["--path", "../{key}"], &["--path"]),
    (FILES, &["--path", "/{key}"], &["--path"]),
    (FILES, &["--env", "A"], &["--env", "--template"]),
    (FILES, &["--secret-env", "A"], &["--secret-env", "--template"]),
    (FILES, &["--template", "/a.j2", "--env", "A", "--secret-env", "A"], &["--env A", "--secret-env A"]),
    (FILES, &["--template", ":x"], &["--template", "SRC:DEST"]),
    (FILES, &["--template", "/a.j2:"], &["--template", "SRC:DEST"]),
    (FILES, &["--file-mode", "rw"], &["--file-mode", "0644"]),
    (FILES, &["--file-mode", "4755"], &["--file-mode"]),
    (FILES, &["--secret-mode", "0040"], &["--secret-mode", "owner"]),
    (FILES, &["--max-size", "1MB"], &["--max-size", "64Ki"]),
    (FILES, &["--max-size", "0"], &["--max-size", "zero"]),
    (FILES, &["--max-size", "99999999999Gi"], &["--max-size", "too large"]),
    // Validate.
    (FILES, &["--syntax", "loose"], &["--syntax", "strict, warn, off"]),
    (FILES, &["--validate", "check '{dir}"], &["--validate (number 1)", "quote"]),
    (FILES, &["--validate", "a {dir}", "--validate", ""], &["--validate (number 2)", "no program"]),
    (FILES, &["--validate", "nginx -t"], &["--validate nginx", "{dir}"]),
    (FILES, &["--validate-timeout", "0"], &["--validate-timeout"]),
    // Reload.
    (URL, &["--signal", "HUP", "--process", "x"], &["--signal", "--reload-url"]),
    (URL, &["--reload-exec", "x"], &["--reload-url", "--reload-exec"]),
    (FILES, &["--signal", "HUP", "--process", "x", "--reload-exec", "x"], &["--signal", "--reload-exec"]),
    (FILES, &["--signal", "HUP"], &["--signal", "--process", "--process-args", "--pid-file"]),
    (FILES, &["--signal", "HUPP", "--process", "x"], &["--signal HUPP", "SIGHUP"]),
    (FILES, &["--signal", "9", "--process", "x"], &["--signal 9", "SIGKILL"]),
    (FILES, &["--signal", "SIGSTOP", "--process", "x"], &["--signal SIGSTOP"]),
    (FILES, &["--signal", "HUP", "--process", "/bin/x"], &["--process", "base name"]),
    (FILES, &["--signal", "HUP", "--process", ""], &["--process"]),
    (FILES, &["--signal", "HUP", "--process-args", "("], &["--process-args"]),
    (FILES, &["--process", "x", "--confirm-alive", "0"], &["--process", "--signal", "--confirm-alive"]),
    (FILES, &["--confirm-alive", "1s"], &["--confirm-alive", "--process"]),
    (FILES, &["--confirm-workers"], &["--confirm-workers", "--process"]),
    (URL, &["--confirm-status", "200"], &["--confirm-status", "--confirm-url"]),
    (URL, &["--confirm-match", "x"], &["--confirm-match", "--confirm-url"]),
    (URL, &["--confirm-changed", "x"], &["--confirm-changed", "--confirm-url"]),
    (URL, &["--confirm-url", "localhost"], &["--confirm-url"]),
    (URL, &["--confirm-url", "http://x", "--confirm-status", "2"], &["--confirm-status 2"]),
    (URL, &["--confirm-url", "http://x", "--confirm-match", "("], &["--confirm-match"]),
    (URL, &["--confirm-url", "http://x", "--confirm-changed", "("], &["--confirm-changed"]),
    (URL, &["--confirm-timeout", "0"], &["--confirm-timeout"]),
    (URL, &["--process", "x", "--confirm-timeout", "2s"], &["--confirm-alive", "--confirm-timeout"]),
    (FILES, &["--on-reject", "maybe"], &["--on-reject"]),
    (FILES, &["--pid-file", "/x", "--confirm-alive", "0"], &["--pid-file", "--signal"]),
    (URL, &["--pid-file", "/x", "--confirm-alive", "0"], &["--pid-file", "--signal"]),
    (FILES, &["--reload-method", "PUT"], &["--reload-method", "--reload-url"]),
    (FILES, &["--reload-body", "x"], &["--reload-body", "--reload-url"]),
    (FILES, &["--reload-status", "2xx"], &["--reload-status", "--reload-url"]),
    (FILES, &["--reload-header", "A: b"], &["--reload-header", "--reload-url"]),
    (FILES, &["--reload-auth-file", "/x"], &["--reload-auth-file", "--reload-url"]),
    (FILES, &["--reload-token-file", "/x"], &["--reload-token-file", "--reload-url"]),
    (FILES, &["--reload-ca-file", "/x"], &["--reload-ca-file", "--reload-url"]),
    (FILES, &["--reload-cert-file", "/x"], &["--reload-cert-file", "--reload-url"]),
    (FILES, &["--reload-key-file", "/x"], &["--reload-key-file", "--reload-url"]),
    (FILES, &["--reload-insecure"], &["--reload-insecure", "--reload-url"]),
    (URL, &["--reload-url", "ftp://x/"], &["--reload-url (number 2)", "http://"]),
    (URL, &["--reload-url", "x/y"], &["--reload-url (number 2)", "http://"]),
    (URL, &["--reload-url", "http:///x"], &["--reload-url (number 2)"]),
    (URL, &["--reload-url", "http://x:99999/"], &["--reload-url (number 2)"]),
    (URL, &["--reload-url", "http://x:0/"], &["--reload-url (number 2)", "port"]),
    (URL, &["--reload-url", "unix://x.sock"], &["--reload-url (number 2)", "unix:///path"]),
    (URL, &["--reload-url", "http://x/a b"], &["--reload-url (number 2)", "percent-encoded"]),
    (URL, &["--reload-method", "PO ST"], &["--reload-method", "POST"]),
    (URL, &["--reload-status", "ok"], &["--reload-status ok", "2xx"]),
    (URL, &["--reload-status", "299-200"], &["--reload-status"]),
    (URL, &["--reload-status", "99"], &["--reload-status"]),
    (URL, &["--reload-header", "A"], &["--reload-header (number 1)", "Name: value"]),
    (URL, &["--reload-header", "A: b", "--reload-header", "A B: c"], &["--reload-header (number 2)", "name"]),
    (URL, &["--reload-header", ": c"], &["--reload-header (number 1)", "name"]),
    (URL, &["--reload-header", "A: b\u{1}"], &["--reload-header (number 1)", "value"]),
    (URL, &["--reload-header", "Content-Length: 3"], &["--reload-header", "content-length"]),
    (URL, &["--reload-header", "Transfer-Encoding: x"], &["--reload-header", "transfer-encoding"]),
    (URL, &["--reload-auth-file", "/x", "--reload-token-file", "/y"], &["--reload-auth-file", "--reload-token-file"]),
    (
        URL,
        &["--reload-header", "Authorization: @/x", "--reload-token-file", "/y"],
        &["--reload-header", "--reload-token-file"],
    ),
    (
        URL,
        &["--reload-header", "authorization: @/x", "--reload-auth-file", "/y"],
        &["--reload-header", "--reload-auth-file"],
    ),
    (URL, &["--reload-cert-file", "/x"], &["--reload-cert-file", "--reload-key-file"]),
    (URL, &["--reload-key-file", "/x"], &["--reload-cert-file", "--reload-key-file"]),
    (URL, &["--reload-insecure", "--reload-ca-file", "/x"], &["--reload-insecure", "--reload-ca-file"]),
    (FILES, &["--reload-exec", ""], &["--reload-exec", "no program"]),
    (FILES, &["--reload-exec", "a \"b"], &["--reload-exec", "quote"]),
    (FILES, &["--reload-timeout", "0"], &["--reload-timeout"]),
    (FILES, &["--reload-timeout", "1.5s"], &["--reload-timeout", "1m30s"]),
    (FILES, &["--reload-attempts", "0"], &["--reload-attempts"]),
    (FILES, &["--reload-attempts", "x"], &["--reload-attempts"]),
    (FILES, &["--retry-min", "2s", "--retry-max", "1s"], &["--retry-min", "--retry-max"]),
    (FILES, &["--retry-max", "100ms"], &["--retry-min", "--retry-max"]),
    (FILES, &["--retry-min", "1ms"], &["--retry-min", "10ms"]),
    (FILES, &["--retry-min", "0"], &["--retry-min", "10ms"]),
    (FILES, &["--retry-max", "9000h"], &["--retry-max", "year"]),
    (FILES, &["--reload-min-interval", "18446744073709551615h"], &["--reload-min-interval", "too long"]),
    (FILES, &["--reload-splay=-1s"], &["--reload-splay"]),
    // Pace and life.
    (FILES, &["--debounce", "3s"], &["--debounce", "--debounce-max"]),
    (FILES, &["--debounce-max", "100ms"], &["--debounce", "--debounce-max"]),
    (FILES, &["--debounce", "x"], &["--debounce"]),
    (FILES, &["--debounce-max", "x"], &["--debounce-max"]),
    (FILES, &["--once", "--once-timeout", "0"], &["--once-timeout"]),
    (FILES, &["--once-timeout", "soon"], &["--once-timeout"]),
    (FILES, &["--listen", "9533"], &["--listen", "IP:PORT"]),
    (FILES, &["--listen", "example.com:1"], &["--listen", "IP:PORT"]),
    (FILES, &["--admin", ":99999"], &["--admin", "IP:PORT"]),
    (FILES, &["--admin", ""], &["--admin", "IP:PORT"]),
    (FILES, &["--listen", ":9000", "--admin", "127.0.0.1:9000"], &["--listen", "--admin", "9000"]),
    (FILES, &["--log-format", "xml"], &["--log-format", "text, json"]),
    (FILES, &["--log-level", "trace"], &["--log-level", "error, warn, info, debug"]),
    (FILES, &["--shutdown-grace", "x"], &["--shutdown-grace"]),
    (&["status"], &["--admin", "9534"], &["--admin", "IP:PORT"]),
    (&["retry"], &["--admin", "x:1"], &["--admin", "IP:PORT"]),
];

#[test]
fn wrong_usage_is_refused_by_name() {
    for (begin, wrong, names) in WRONG {
        let (code, said) = run(trimtab().args(*begin).args(*wrong).env_remove("KUBERNETES_SERVICE_HOST"));
        assert_eq!(code, Some(64), "{wrong:?}: {said}");
        for name in *names {
            assert!(said.contains(name), "{wrong:?}: {name:?} is not in {said}");
        }
        assert!(!said.contains("panicked"), "{wrong:?}: {said}");
    }
    assert!(!Path::new("/tmp/trimtab-none").exists(), "something was done before");
}

#[test]
fn wrong_variables_are_refused_by_the_flags_name() {
    let output = &FILES[..2];
    for (begin, variable, value, names) in [
        (FILES, "POLL_INTERVAL", "60", &["--poll-interval"][..]),
        (FILES, "MAX_SIZE", "lots", &["--max-size"]),
        (FILES, "FILE_MODE", "rw", &["--file-mode"]),
        (FILES, "ONCE", "maybe", &["--once"]),
        (FILES, "OPTIONAL", "", &["--optional"]),
        (FILES, "ON_DELETE", "never", &["--on-delete"]),
        (FILES, "RELOAD_ATTEMPTS", "0", &["--reload-attempts"]),
        (FILES, "LISTEN", "x", &["--listen"]),
        (FILES, "LOG_LEVEL", "loud", &["--log-level"]),
        (output, "WATCH_DIR", "/a\n/b/a", &["--watch-dir"]),
        (&["--output", "/x", "--configmap", "n/a"], "NAMESPACE", "", &["--namespace"]),
        (API, "SELECTOR", "", &["--selector"]),
        (output, "CONFIGMAP", "n/a\nn/A", &["--configmap"]),
        (FILES, "RELOAD_URL", "http://x/\n", &["--reload-url (number 2)"]),
        (FILES, "RELOAD_HEADER", "A: b", &["--reload-header", "--reload-url"]),
        (FILES, "SIGNAL", "HUP", &["--signal", "--process"]),
        (FILES, "DEBOUNCE", "1h", &["--debounce", "--debounce-max"]),
    ] {
        let (code, said) = run(trimtab().args(begin).env(format!("TRIMTAB_{variable}"), value));
        assert_eq!(code, Some(64), "{variable}: {said}");
        for name in names {
            assert!(said.contains(name), "{variable}: {name} is not in {said}");
        }
    }
    // What a template may read must be text.
    let bytes = std::ffi::OsString::from_vec(vec![b'c', b'4', 0xff]);
    for flag in ["--env", "--secret-env"] {
        let mut command = trimtab();
        command.args(FILES).args(["--template", "/a.j2", flag, "NO_TEXT"]).env("NO_TEXT", &bytes);
        let (code, said) = run(&mut command);
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains(&format!("{flag} NO_TEXT")) && said.contains("UTF-8"), "{said}");
    }
}

#[test]
fn refused_credentials_are_not_echoed() {
    for (flag, value) in [
        ("reload-header", "Authorization: Bearer c4n4ry"),
        ("reload-header", "Proxy-Authorization: c4n4ry"),
        ("reload-header", "cookie:c4n4ry"),
        ("reload-header", "X-Api-Key: c4n4ry\u{1}"),
        ("reload-header", "X Api Key: c4n4ry"),
        ("reload-header", "c4n4ry"),
        ("reload-url", "http://user:c4n4ry@x/"),
        ("reload-url", "http://c4n4ry@x/"),
        ("reload-url", "http://x/?token=c4n4ry here"),
        ("reload-url", "gopher://c4n4ry/"),
        ("reload-url", "http://x:port/?c4n4ry"),
        ("reload-url", "unix://c4n4ry"),
        ("reload-exec", "curl -H 'Authorization: c4n4ry"),
    ] {
        let url: &[&str] = if flag == "reload-header" { &["--reload-url", "http://x/"] } else { &[] };
        let variable = format!("TRIMTAB_{}", flag.to_uppercase().replace('-', "_"));
        for by_flag in [true, false] {
            let mut command = trimtab();
            command.args(FILES).args(url);
            if by_flag {
                command.arg(format!("--{flag}")).arg(value);
            } else {
                command.env(&variable, value);
            }
            let (code, said) = run(&mut command);
            assert_eq!(code, Some(64), "{value}: {said}");
            assert!(said.contains(&format!("--{flag}")) && !said.contains("c4n4ry"), "{value}: {said}");
        }
    }
    // What is right is the way that the message names.
    let (_, said) = run(trimtab().args(URL).args(["--reload-header", "Authorization: Bearer c4n4ry"]));
    assert!(said.contains("authorization: @FILE"), "{said}");
    let (_, said) = run(trimtab().args(FILES).args(["--reload-url", "http://user:c4n4ry@x/"]));
    assert!(said.contains("--reload-auth-file"), "{said}");
}

// --- logs ------------------------------------------------------------------------------------------------------------

#[test]
fn json_logs_are_one_object_a_line() {
    let mut stage = Stage::new("1");
    let script = stage.write("reload.sh", "printf 'two\\nlines \"quoted\" \\033[31mred\\n'; exit 3");
    let command = format!("sh {script}");
    let flags = ["--log-format", "json", "--log-level", "debug", "--reload-exec", &command, "--retry-max", "250ms"];
    let mut sidecar = stage.start(&flags);
    let logged = |what: &str| eventually(what, || sidecar.log().contains(what).then_some(()));
    logged("it said: ");
    stage.edit("2");
    logged("\"sequence\":2");
    sidecar.terminate();
    let log = sidecar.log();
    let mut levels = BTreeSet::new();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["timestamp"].is_string() && line["message"].is_string(), "{line}");
        levels.insert(line["level"].as_str().unwrap().to_owned());
    }
    assert!(["DEBUG", "INFO", "WARN"].iter().all(|level| levels.contains(*level)), "{levels:?}");
    assert!(log.contains("it said: two"), "{log}");
    assert!(!log.contains('\u{1b}'));
}

#[test]
fn text_logs_have_no_colours_off_a_terminal_and_no_raw_control_characters() {
    let stage = Stage::new("1");
    let script = stage.write("reload.sh", "printf 'two\\nlines \\033[31mred\\n'; exit 3");
    let mut sidecar = stage.start(&["--reload-exec", &format!("sh {script}"), "--log-level", "warn"]);
    let log = eventually("it is logged", || Some(sidecar.log()).filter(|log| log.contains("it said: ")));
    assert!(log.contains("it said: two\\nlines \\u{1b}[31mred"), "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
    assert!(!log.contains("INFO"), "--log-level warn: {log}");
    sidecar.kill();
}

#[test]
fn failure_that_lasts_is_logged_once() {
    let mut stage = Stage::new("1");
    let port = Port::take();
    let flags = ["--reload-url", &port.url(), "--retry-min", "10ms", "--retry-max", "10ms"];
    let sidecar = stage.start(&flags);
    let attempts = |count: f64| {
        eventually("many attempts", || metric(&sidecar, "reloader_reloads_failed_total").filter(|now| *now >= count))
    };
    attempts(30.0);
    assert_eq!(sidecar.log().matches("no connection").count(), 1, "30 attempts");
    assert_eq!(sidecar.log().matches("WARN").count(), 1);
    // A newer generation that fails in the same way is no news either, and another failure is.
    stage.edit("2");
    sidecar.until("published", |status| status["published"]["sequence"] == 2);
    let before = attempts(0.0);
    attempts(before + 10.0);
    assert_eq!(sidecar.log().matches("no connection").count(), 1);
    let hook = port.listen(None, Answer::Code(503));
    eventually("it is called", || (hook.calls().len() > 10).then_some(()));
    assert_eq!(sidecar.log().matches("answered 503").count(), 1);
    hook.answer(Answer::Code(200));
    sidecar.until_idle();
    assert_eq!(sidecar.log().matches("reloaded:").count(), 1);
    assert_eq!(sidecar.log().matches("WARN").count(), 3, "and what the hook said");
}

// --- rest ------------------------------------------------------------------------------------------------------------

/// The release build, as people run it: `make test` makes it.
#[test]
fn at_rest_nothing_wakes_it_and_it_is_small() {
    needs_root("mount a file system of its own");
    let stage = Stage::new("1");
    let hook = Hook::start(None);
    // The way to a watched directory is watched as well, and others make files in /tmp all the time.
    let quiet = "mount -t tmpfs none /mnt; mkdir /mnt/in; echo 1 >/mnt/in/a; echo '{{ data.a }}' >/mnt/t.j2; shift; exec \"$RELEASE\" \"$@\"";
    let release = std::env::var("TRIMTAB_TEST_RELEASE")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/target/release/trimtab").to_owned());
    assert!(Path::new(&release).exists(), "{release} does not exist: run make test, or cargo build --release");
    let release = format!("RELEASE={release}");
    let program = ["env", &release, "unshare", "--mount", "sh", "-ec", quiet, "-"];
    let flags = ["--watch-dir", "/mnt/in", "--template", "/mnt/t.j2", "--output", "/mnt/out", "--poll-interval", "0"];
    let url = hook.url();
    let sidecar = Sidecar::start_by(&program, &stage.at("log"), flags.iter().chain(&["--reload-url", &url]));
    sidecar.until_idle();
    let tasks = format!("/proc/{}/task", sidecar.pid().as_raw_nonzero());
    // Threads for blocking work end when they are idle.
    eventually("one thread is left", || (fs::read_dir(&tasks).unwrap().count() == 1).then_some(()));
    let wakes = || -> u64 {
        fs::read_dir(&tasks)
            .unwrap()
            .map(|task| {
                let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
                let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
                line.unwrap().trim().parse::<u64>().unwrap()
            })
            .sum()
    };
    let before = wakes();
    // The rest itself is what is looked at.
    std::thread::sleep(Duration::from_secs(3));
    let woken = wakes() - before;
    let status = fs::read_to_string(format!("/proc/{}/status", sidecar.pid().as_raw_nonzero())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    println!("woken {woken} times in 3 s; {resident} kB resident");
    assert!(woken <= 2, "woken {woken} times in 3 s");
    assert!(resident < 10_000, "{resident} kB resident");
}
