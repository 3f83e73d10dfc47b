//! What an operator asks of a running sidecar: SIGHUP, `status`, `retry`, probes, metrics, and their addresses.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use regex_lite::Regex;
use serde_json::Value;

use super::support::hook::Hook;
use super::support::port::free_port;
use super::support::sidecar::{SOON, Sidecar, eventually, run, trimtab};
use super::support::stage::{Stage, metric, problem};

fn retry(sidecar: &Sidecar) {
    assert_eq!(sidecar.request("--admin", "POST", "/retry").unwrap().0, 202);
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value} is no object")).keys().map(String::as_str).collect()
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
    // Written in place and not closed yet: inotify does not report it.
    let mut file = fs::OpenOptions::new().write(true).open(stage.at("plain/app.conf")).unwrap();
    file.write_all(b"2").unwrap();
    // Nothing would come later, were it noticed by itself.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(sidecar.status()["published"]["sequence"], 1);
    sidecar.signal(Signal::SIGHUP);
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
    let status = sidecar.until("it is reported", |status| !status["quarantine"].is_null());
    assert_eq!(status["quarantine"]["stage"], "render");
    assert!(status["quarantine"]["reason"].as_str().unwrap().contains("data.nope"), "{status}");
    assert_eq!(status["ready"], false);
    // The same inputs are not tried again by themselves: a change is the later event that would come after it.
    stage.edit("2");
    tried(2.0);
    assert_eq!(rejections(), Some(2.0));
    sidecar.signal(Signal::SIGHUP);
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
    let status = |admin: &str| run(trimtab().args(["status", "--format", "json"]).env("TRIMTAB_ADMIN", admin));
    let (code, said) = status(&admin);
    assert_eq!(code, Some(1), "not ready: {said}");
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["ready"], false);
    fs::rename(stage.at("away"), stage.at("volume")).unwrap();
    let shown = sidecar.until_idle();
    let (code, said) = status(&admin);
    assert_eq!(code, Some(0), "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(keys(&said), keys(&shown));
    assert_eq!(said["published"], shown["published"]);
    let (code, said) = run(trimtab().arg("retry").env("TRIMTAB_ADMIN", &admin));
    assert_eq!(code, Some(0));
    assert!(said.contains("nothing to retry"), "{said}");
    // The flag beats the variable.
    let (code, _) = run(trimtab().args(["status", "--admin", &admin]).env("TRIMTAB_ADMIN", "127.0.0.1:1"));
    assert_eq!(code, Some(0));
    stage.edit("2");
    sidecar.until("published", |status| status["published"]["sequence"] == 2);

    let nobody = format!("127.0.0.1:{}", free_port());
    for ask in ["status", "retry"] {
        let (code, said) = run(trimtab().args([ask, "--admin", &nobody]));
        assert_eq!(code, Some(1));
        assert!(said.contains(&nobody) && said.contains("--admin"), "{said}");
        let (code, said) = run(trimtab().args([ask, "--admin", "off"]));
        assert_eq!(code, Some(1));
        assert!(said.contains("--admin is off"), "{said}");
    }
}

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
        ("--listen", "GET", "/healthz", 200),
        ("--listen", "GET", "/metrics", 200),
        ("--listen", "GET", "/", 404),
        ("--listen", "GET", "/status", 404),
        ("--listen", "POST", "/retry", 404),
        ("--listen", "POST", "/livez", 404),
        ("--listen", "GET", "/livez/", 404),
        ("--admin", "GET", "/status", 200),
        ("--admin", "GET", "/status?pretty", 200),
        ("--admin", "GET", "/status?format=text", 200),
        ("--admin", "GET", "/?refresh", 200),
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
fn idle_connections_make_room_for_probes() {
    let stage = Stage::new("1");
    let sidecar = stage.start(&[]);
    sidecar.until_idle();
    for (server, path) in [("--listen", "/livez"), ("--admin", "/status")] {
        let idle: Vec<_> = (0..40).map(|_| TcpStream::connect(sidecar.address(server)).unwrap()).collect();
        assert_eq!(sidecar.request(server, "GET", path).unwrap().0, 200);
        // The oldest had to go. The probe did not wait until one that was not among them was given up.
        assert_eq!((&idle[0]).read(&mut [0]).unwrap(), 0);
        idle[31].set_nonblocking(true).unwrap();
        assert_eq!((&idle[31]).read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "{server}");
    }
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
    let pid = sidecar.pid();
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
    "trimtab_verdict",
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
    sidecar.until("it is confirmed", |status| status["confirmed"]["sequence"] == 2);
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
        "verdict",
        "waitsFor",
        "history",
        "version",
        "pod",
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
    assert_eq!(keys(&status["verdict"]), set(&["state", "summary", "since", "next"]));
    let change = &status["history"][0];
    let of_change = ["at", "sources", "moreSources", "sequence", "result", "stage", "reason", "tookMs", "stepsMs"];
    assert_eq!(keys(change), set(&of_change));
    assert_eq!(keys(&change["sources"][0]), set(&["source", "keys", "moreKeys", "from", "to"]));
    assert_eq!((&change["result"], &change["stage"]), (&"rejected".into(), &"render".into()));
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
    // What is solved is reported no longer.
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
