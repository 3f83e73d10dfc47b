//! Rollback, hold and quarantine with the built binary: what the main process refuses or dies of is taken back, stays
//! taken back across a restart, and is tried again when somebody asks.

use std::fs;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use serde_json::Value;

use super::support::child::pid_of;
use super::support::hook::{Answer, Hook};
use super::support::scene::Layout;
use super::support::sidecar::{Sidecar, eventually, output_of, trimtab};
use super::support::stage::{Stage, metric, problem};

const QUICK: [&str; 6] = ["--retry-min", "20ms", "--retry-max", "100ms", "--reload-attempts", "2"];

fn start(stage: &Stage, hook: &Hook, more: &[&str]) -> Sidecar {
    stage.start(&[&["--reload-url", &hook.url()], &QUICK[..], more].concat())
}

/// Edits to what the hook refuses until it is current no more.
fn refused(stage: &mut Stage, hook: &Hook, sidecar: &Sidecar, content: &str) {
    hook.answer(Answer::Code(500));
    stage.edit(content);
    sidecar.until("it is rolled back", |status| status["debt"] == "rollback");
    hook.answer(Answer::Code(200));
    let status = sidecar.until_idle();
    assert_eq!(status["quarantine"]["stage"], "reload", "{status}");
}

#[test]
fn quarantine_ends_by_a_request_by_sighup_and_by_other_inputs_alone() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    let mut sidecar = start(&stage, &hook, &[]);
    sidecar.until_idle();
    refused(&mut stage, &hook, &sidecar, "2");
    assert_eq!((stage.published().as_deref(), hook.last_saw().as_deref()), (Some("1"), Some("1")));
    assert_eq!(metric(&sidecar, "trimtab_rollbacks_total"), Some(1.0));

    // Not by a restart, and not by the same inputs once more.
    assert_eq!(sidecar.terminate(), Some(0));
    sidecar.start_again();
    let again = sidecar.until("it knows", |status| !status["quarantine"].is_null() && status["phase"] == "idle");
    assert!(again["quarantine"]["reason"].as_str().unwrap().contains("answered 500"), "{again}");
    let calls = hook.calls().len();
    stage.edit("2");
    sidecar.until_idle();
    assert_eq!((stage.published().as_deref(), hook.calls().len()), (Some("1"), calls));
    assert_eq!(metric(&sidecar, "trimtab_quarantined"), Some(1.0));

    let address = sidecar.address("--admin").to_string();
    assert!(output_of(trimtab().args(["retry", "--admin", &address])).status.success());
    eventually("asked by `trimtab retry`", || (hook.last_saw()? == "2").then_some(()));
    assert_eq!(sidecar.until_idle()["quarantine"], Value::Null);

    refused(&mut stage, &hook, &sidecar, "3");
    sidecar.signal(Signal::SIGHUP);
    eventually("asked by SIGHUP", || (hook.last_saw()? == "3").then_some(()));
    sidecar.until_idle();

    refused(&mut stage, &hook, &sidecar, "4");
    stage.edit("5");
    eventually("other inputs", || (hook.last_saw()? == "5").then_some(()));
    assert_eq!(sidecar.until_idle()["quarantine"], Value::Null);
    assert_eq!(metric(&sidecar, "trimtab_quarantined"), Some(0.0));
}

#[test]
fn last_good_generation_that_was_changed_on_the_disk_is_not_gone_back_to() {
    does_not_go_back_to_what_was_changed(Layout::Atomic);
}

#[test]
fn copy_of_a_single_file_that_was_changed_on_the_disk_is_not_gone_back_to() {
    does_not_go_back_to_what_was_changed(Layout::Files);
}

fn does_not_go_back_to_what_was_changed(layout: Layout) {
    let mut stage = Stage::of(layout, "1");
    let hook = Hook::start(Some(stage.file()));
    let sidecar = start(&stage, &hook, &[]);
    sidecar.until_idle();
    let generation = layout.current(&stage.at("conf")).unwrap();
    let good = stage.at("conf").join(match layout {
        Layout::Atomic => format!("{generation}/app.conf"),
        Layout::Files => format!("..trimtab/private/{generation}/files/app.conf"),
    });
    hook.answer(Answer::Code(503));
    stage.edit("2");
    eventually("the newer one is delivered", || (hook.last_saw()? == "2").then_some(()));
    assert_eq!(fs::read_to_string(&good).unwrap(), "1");
    fs::write(good, "X").unwrap();
    hook.answer(Answer::Code(500));
    let status = sidecar.until("it is held", |status| status["phase"] == "held");
    assert!(problem(&status, "rollback").contains("was changed since it was published"), "{status}");
    assert_eq!((stage.published().as_deref(), &status["debt"]), (Some("2"), &Value::from("publish")));
    assert_eq!(metric(&sidecar, "trimtab_rollbacks_total"), Some(0.0));
    // Newer inputs end it, as always.
    hook.answer(Answer::Code(200));
    stage.edit("3");
    eventually("newer inputs are delivered", || (hook.last_saw()? == "3").then_some(()));
    sidecar.until_idle();
}

/// A main process that reads its configuration at its start and at SIGHUP, and dies of one that says so; whoever keeps
/// it running starts it again after a while, longer each time, as the kubelet does.
struct CrashLoop {
    supervisor: Child,
}

impl CrashLoop {
    fn start(stage: &Stage) -> Self {
        const MAIN: &str = r#"
            load() { read -r line <"$0/conf/app.conf"; echo "$line" >>"$0/loaded"; [ "$line" != die ] || exit 1; }
            trap load HUP
            echo $$ >"$0/pid.new" && mv "$0/pid.new" "$0/pid"
            load
            while :; do read -r -t 0.1 _ <>"$0/never" || :; done
        "#;
        let script = stage.write("main.sh", MAIN);
        assert!(Command::new("mkfifo").arg(stage.at("never")).status().unwrap().success());
        let supervise = r#"for pause in 0.2 0.4 0.8 1.6 3 3 3; do bash -c "$(cat "$1")" "$0"; sleep $pause; done"#;
        let mut command = Command::new("bash");
        command.args(["-c", supervise, stage.at("").to_str().unwrap().trim_end_matches('/'), &script]);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Self { supervisor: command.stdin(Stdio::null()).spawn().unwrap() }
    }
}

impl Drop for CrashLoop {
    fn drop(&mut self) {
        let _ = killpg(pid_of(&self.supervisor), Signal::SIGKILL);
        let _ = self.supervisor.wait();
    }
}

#[test]
fn main_process_that_dies_of_a_configuration_and_crash_loops_recovers() {
    recovers_from_a_crash_loop(Layout::Atomic);
}

#[test]
fn main_process_that_dies_of_a_single_file_and_crash_loops_recovers() {
    recovers_from_a_crash_loop(Layout::Files);
}

fn recovers_from_a_crash_loop(layout: Layout) {
    let mut stage = Stage::of(layout, "one\n");
    let pid_file = stage.text("pid");
    let flags = ["--signal", "HUP", "--pid-file", &pid_file, "--confirm-alive", "300ms"];
    let sidecar = stage.start(&[&flags[..], &QUICK].concat());
    eventually("it is published", || stage.published());
    let _main = CrashLoop::start(&stage);
    let record = stage.at("loaded");
    let loaded = || fs::read_to_string(&record).unwrap_or_default();
    sidecar.until_idle();
    // Twice, if it started within a clock tick of the publish: a tie counts as before it.
    assert!(loaded().lines().all(|line| line == "one"), "{}", loaded());
    stage.volume.swap(&[("app.conf", "die\n")]);
    let status = sidecar.until("it recovers", |status| {
        status["quarantine"]["stage"] == "confirm" && status["phase"] == "idle" && status["debt"].is_null()
    });
    assert!(status["quarantine"]["reason"].as_str().unwrap().contains("--confirm-alive"), "{status}");
    assert_eq!(stage.published().as_deref(), Some("one\n"));
    let lines = loaded();
    assert!(lines.contains("die\n") && lines.ends_with("one\n"), "{lines}");
    stage.volume.swap(&[("app.conf", "two\n")]);
    eventually("it goes on", || loaded().ends_with("two\n").then_some(()));
    sidecar.until_idle();
}
