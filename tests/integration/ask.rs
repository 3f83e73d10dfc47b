//! `trimtab status --wait` and `--watch`: what they print, and how they end.

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

use super::support::hook::{Answer, Hook, Port};
use super::support::sidecar::{Sidecar, eventually, output_of, run, trimtab};
use super::support::stage::Stage;

const BRISK: &[&str] = &["--retry-min", "20ms", "--retry-max", "50ms", "--reload-attempts", "1"];

/// As long as a busy machine may need.
const LONG: &str = "1m";

fn waiting(admin: &str, limit: &str) -> Command {
    let mut command = trimtab();
    command.args(["status", "--admin", admin, "--wait", limit]);
    command
}

#[track_caller]
fn ends(sidecar: &Sidecar, limit: &str, code: i32, word: &str) {
    let ended = run(&mut waiting(&sidecar.address("--admin").to_string(), limit));
    assert!(ended.0 == Some(code) && ended.1.starts_with(&format!("{word} since ")), "{ended:?}");
}

#[test]
fn status_waits_until_the_newest_change_is_in_effect_or_rejected_or_time_is_up() {
    let hook = Hook::start(None);
    let mut stage = Stage::new("good 1");
    let flags = ["--validate", "grep -q good {dir}/app.conf", "--reload-url", &hook.url(), "--on-reject", "hold"];
    let sidecar = stage.start(&[BRISK, &flags].concat());
    ends(&sidecar, LONG, 0, "IN-EFFECT");
    stage.edit("bad");
    sidecar.until("it is seen", |status| status["verdict"]["state"] != "in-effect");
    ends(&sidecar, LONG, 65, "REJECTED");
    // The main process does not answer: nothing has ended yet.
    hook.answer(Answer::Code(503));
    stage.edit("good 2");
    sidecar.until("it waits", |status| status["verdict"]["state"] == "waiting");
    ends(&sidecar, "300ms", 69, "WAITING");
    let mut waits = waiting(&sidecar.address("--admin").to_string(), LONG);
    let waits = std::thread::spawn(move || run(&mut waits));
    hook.answer(Answer::Code(200));
    let (code, said) = waits.join().unwrap();
    assert!(code == Some(0) && said.starts_with("IN-EFFECT since "), "{said}");
    // There is no way back.
    hook.answer(Answer::Code(500));
    stage.edit("good 3");
    sidecar.until("it is held", |status| status["verdict"]["state"] == "held");
    ends(&sidecar, LONG, 65, "HELD");
    let json = output_of(waiting(&sidecar.address("--admin").to_string(), LONG).args(["--format", "json"]));
    assert_eq!(json.status.code(), Some(65));
    assert_eq!(serde_json::from_slice::<Value>(&json.stdout).unwrap()["verdict"]["state"], "held");
}

#[test]
fn status_waits_for_a_sidecar_that_starts() {
    let port = Port::take();
    let url = port.url();
    let admin = url.split('/').nth(2).unwrap().to_owned();
    let (code, said) = run(&mut waiting(&admin, "300ms"));
    assert!(code == Some(69) && said.contains(&format!("no sidecar answers at {admin}")), "{said}");
    let mut waits = waiting(&admin, LONG);
    let waits = std::thread::spawn(move || run(&mut waits));
    drop(port);
    let stage = Stage::new("1");
    let sidecar = stage.start(&["--admin", &admin]);
    let (code, said) = waits.join().unwrap();
    assert!(code == Some(0) && said.starts_with("IN-EFFECT since "), "{said}{}", sidecar.log());
}

/// `trimtab status --watch`. Killed when dropped.
struct Watch {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watch {
    fn start(sidecar: &Sidecar, more: &[&str]) -> Self {
        let mut command = trimtab();
        command.args(["status", "--watch", "--admin", &sidecar.address("--admin").to_string()]).args(more);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn next(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn status_prints_each_new_verdict_and_ends_with_the_sidecar() {
    let mut stage = Stage::new("good 1");
    let mut sidecar = stage.start(&["--validate", "grep -q good {dir}/app.conf"]);
    sidecar.until("in effect", |status| status["verdict"]["state"] == "in-effect");
    let (mut text, mut json) = (Watch::start(&sidecar, &[]), Watch::start(&sidecar, &["--format", "json"]));
    let states = |line: &str| serde_json::from_str::<Value>(line).unwrap()["verdict"]["state"].clone();
    let first = text.next();
    assert!(first.contains("Z in-effect Generation 1 is "), "{first}");
    assert_eq!(states(&json.next()), "in-effect");
    stage.edit("bad");
    // What is between may be too short to be seen.
    let second = std::iter::from_fn(|| Some(text.next())).find(|line| !line.contains("Z working "));
    assert!(
        second.as_ref().is_some_and(|line| line.contains("Z rejected The newest edit of dir/volume")),
        "{second:?}"
    );
    let other = std::iter::from_fn(|| Some(states(&json.next()))).find(|state| state != "working");
    assert_eq!(other.unwrap(), "rejected");
    sidecar.terminate();
    for watch in [&mut text, &mut json] {
        let code = eventually("it ends", || watch.child.try_wait().unwrap()).code();
        assert_eq!(code, Some(1));
    }
}

#[test]
fn status_is_drawn_anew_on_a_terminal() {
    let stage = Stage::new("1");
    let mut sidecar = stage.start(&[]);
    sidecar.until("in effect", |status| status["verdict"]["state"] == "in-effect");
    let mut elsewhere = Watch::start(&sidecar, &[]);
    elsewhere.next();
    let line = format!("{} status --watch --admin {}", env!("CARGO_BIN_EXE_trimtab"), sidecar.address("--admin"));
    // `script` has a terminal.
    let mut command = Command::new("script");
    command.args(["-qefc", &line]).arg(stage.at("screen")).stdin(Stdio::null()).stdout(Stdio::null());
    let mut script = command.spawn().unwrap();
    let screen = || std::fs::read_to_string(stage.at("screen")).unwrap_or_default();
    eventually("two times", || (screen().matches("\x1b[H\x1b[JIN-EFFECT since ").count() >= 2).then_some(()));
    sidecar.terminate();
    eventually("it ends", || script.try_wait().unwrap());
    assert!(elsewhere.lines.next().is_none(), "a line for a verdict that did not change");
}

#[test]
fn status_does_not_wait_and_watch_at_once() {
    let (code, said) = run(trimtab().args(["status", "--watch", "--wait", "1s"]));
    assert!(code == Some(64) && said.contains("--wait"), "{said}");
}
