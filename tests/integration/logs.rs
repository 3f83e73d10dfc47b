//! The form of the log, and how often it says what lasts.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;

use super::support::hook::{Answer, Port};
use super::support::sidecar::{Sidecar, eventually, output_of};
use super::support::stage::{Stage, metric};

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
fn colours_are_for_terminals_whose_user_wants_them() {
    let stage = Stage::new("1");
    let line = format!("{} {} --once", env!("CARGO_BIN_EXE_trimtab"), stage.flags(&[]).join(" "));
    let on_terminal = |env: &str| {
        let log = stage.at("script");
        let mut command = Command::new("script");
        command.args(["-qec", &format!("{env} {line}")]).arg(&log).env_remove("NO_COLOR").env("TERM", "xterm");
        assert!(output_of(&mut command).status.success());
        fs::read_to_string(log).unwrap()
    };
    let coloured = on_terminal("");
    assert!(coloured.contains("\x1b[32m INFO"), "{coloured:?}");
    let plain = on_terminal("NO_COLOR=1");
    assert!(plain.contains(" INFO ") && !plain.contains('\x1b'), "{plain:?}");
}

#[test]
fn the_first_line_has_the_flags_of_the_file_too() {
    let stage = Stage::new("1");
    let (volume, output) = (stage.text("volume"), stage.text("conf"));
    let text = "debounce: 20ms\nlog-level: info\nsyntax: strict\nreload-header: \"X-Token: hunter22\"\n\
                reload-url: http://127.0.0.1:1/?hunter22\nretry-max: 7s\n";
    let file = stage.write("flags.yaml", format!("watch-dir: {volume}\noutput: {output}\n{text}"));
    let sidecar = Sidecar::start(&stage.at("log"), ["--config", &file, "--retry-max", "9s"]);
    let log = eventually("it begins", || Some(sidecar.log()).filter(|log| log.contains(" starting ")));
    let (_, flags) = log.split_once(" flags=\"").unwrap();
    let mut flags: Vec<_> = flags.split_once('"').unwrap().0.split(" --").collect();
    flags.sort_unstable();
    let expected = [
        "--watch-dir",
        "admin 127.0.0.1:0",
        "config",
        "debounce 20ms",
        "listen 127.0.0.1:0",
        "output",
        "reload-header",
        "reload-url",
        "retry-max 9s",
        "syntax strict",
    ];
    assert_eq!(flags, expected, "{log}");
    assert!(!log.contains("hunter22"));
}

/// The most memory that a sidecar took, in kB, with 3 MiB of secrets in short lines and a validator that says this.
fn peak(said: &str) -> u64 {
    let stage = Stage::new("1");
    fs::create_dir(stage.at("db")).unwrap();
    for file in 0..3 {
        let lines: Vec<_> = (0..100_000).map(|line| format!("{file}-{line:07}")).collect();
        stage.write(&format!("db/{file}"), lines.join("\n"));
    }
    let script = stage.write("validate.sh", format!("printf '{said}'; exit 1"));
    let (db, command) = (format!("db={}", stage.text("db")), format!("sh {script} {{dir}}"));
    let sidecar = stage.start(&["--watch-dir", &db, "--secret-dir", "db", "--validate", &command]);
    sidecar.until("it is rejected", |status| status["quarantine"]["stage"] == "validate");
    if !said.is_empty() {
        eventually("it is logged", || sidecar.log().contains(&format!("it said: {said}")).then_some(()));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", sidecar.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB")).unwrap();
    peak.trim().parse().unwrap()
}

#[test]
fn masking_takes_no_memory_to_speak_of() {
    let (silent, said) = (peak(""), peak("no"));
    assert!(said < silent + 6 * 1024, "{silent} kB without a word, {said} kB with one");
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
