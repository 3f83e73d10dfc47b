//! The wall clock steps back and forth under the sidecar (libfaketime), and changes nothing: each wait is on the
//! monotonic clock, which goes on all the same.

use std::fs;

use serde_json::Value;

use super::support::hook::{Answer, Hook};
use super::support::sidecar::{Sidecar, eventually};
use super::support::stage::Stage;

const STEPS: [&str; 4] = ["+0d", "+40d", "-40d", "+1d"];

/// A sidecar whose wall clock is that of the machine and what the stage's `clock` says.
fn start(stage: &Stage, flags: &[&str]) -> Sidecar {
    let library = std::env::var("TRIMTAB_TEST_FAKETIME").unwrap_or_default();
    assert!(!library.is_empty(), "needs libfaketime.so.1 in TRIMTAB_TEST_FAKETIME: run `make test`");
    step(stage, STEPS[0]);
    let clock = stage.text("clock");
    let env = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", &clock),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    Sidecar::start_with(&stage.at("log"), &env, stage.flags(flags))
}

fn step(stage: &Stage, to: &str) {
    fs::write(stage.at("clock.new"), to).unwrap();
    fs::rename(stage.at("clock.new"), stage.at("clock")).unwrap();
}

/// The day at which the newest inputs were observed, as the sidecar's wall clock has it.
fn day(status: &Value) -> String {
    status["observed"]["at"].as_str().unwrap_or_default().chars().take(10).collect()
}

#[test]
fn settling_backoff_and_rollback_come_to_their_end_across_steps() {
    let mut stage = Stage::new("0");
    let hook = Hook::start(Some(stage.file()));
    let flags = ["--reload-url", &hook.url(), "--debounce-max", "500ms", "--retry-min", "50ms", "--retry-max", "100ms"];
    let sidecar = start(&stage, &flags);
    let mut days = vec![day(&sidecar.until_idle())];
    for (number, to) in (1..).zip(STEPS.into_iter().skip(1)) {
        // While it settles.
        stage.edit(&number.to_string());
        step(&stage, to);
        eventually("the edit is delivered", || (hook.last_saw()? == number.to_string()).then_some(()));
        sidecar.until_idle();

        // While it waits for the next attempt, and then for that of the rollback.
        hook.answer(Answer::Code(503));
        let before = hook.calls().len();
        stage.edit("unreachable");
        eventually("it is tried", || (hook.calls().len() > before + 1).then_some(()));
        step(&stage, STEPS[0]);
        let before = hook.calls().len();
        eventually("it is tried on", || (hook.calls().len() > before + 2).then_some(()));
        hook.answer(Answer::Code(500));
        sidecar.until("it is rolled back", |status| status["debt"] == "rollback");
        step(&stage, to);
        hook.answer(Answer::Code(200));
        let status = sidecar.until_idle();
        assert_eq!(status["quarantine"]["stage"], "reload", "{status}");
        assert_eq!(hook.last_saw(), Some(number.to_string()));
        stage.edit(&format!("{number} again"));
        eventually("newer inputs are delivered", || (hook.last_saw()? == format!("{number} again")).then_some(()));
        days.push(day(&sidecar.until_idle()));
    }
    days.sort_unstable();
    days.dedup();
    assert_eq!(days.len(), STEPS.len(), "the clock was to step: {days:?}");
}

#[test]
fn step_forth_is_not_the_end_of_a_confirmations_time() {
    let mut stage = Stage::new("0");
    let hook = Hook::start(Some(stage.file()));
    let flags = ["--confirm-url", &hook.url(), "--confirm-timeout", "1h"];
    let sidecar = start(&stage, &flags);
    sidecar.until_idle();
    hook.answer(Answer::Code(500));
    stage.edit("1");
    sidecar.until("it is asked", |status| status["phase"] == "confirming");
    for to in STEPS {
        step(&stage, to);
        let before = hook.calls().len();
        eventually("it is asked on", || (hook.calls().len() > before + 1).then_some(()));
        let status = sidecar.status();
        assert_eq!(
            (&status["phase"], &status["quarantine"]),
            (&Value::from("confirming"), &Value::Null),
            "{to}: {status}"
        );
    }
    hook.answer(Answer::Code(200));
    assert_eq!(sidecar.until_idle()["confirmed"]["sequence"], 2);
}
