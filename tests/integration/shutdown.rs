//! The end by SIGTERM and SIGINT: at rest, in each step, and by a second signal.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::support::hook::{Answer, Hook, Port};
use super::support::sidecar::{SOON, eventually};
use super::support::stage::Stage;

#[test]
fn terminated_at_rest_it_ends_at_once() {
    let stage = Stage::new("1");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut sidecar = stage.start(&["--shutdown-grace", "60s"]);
        sidecar.until_idle();
        let asked = Instant::now();
        sidecar.signal(signal);
        assert_eq!(sidecar.exit_code(), Some(0));
        assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    }
    // What it waits for, a retry or a source, is no step in flight.
    let down = Port::take();
    for (phase, more) in [("backoff", "--retry-min=30s"), ("syncing", "--watch-dir=/no/such/directory")] {
        let stage = Stage::new("1");
        let mut sidecar = stage.start(&["--shutdown-grace", "60s", "--reload-url", &down.url(), more]);
        sidecar.until(phase, |status| status["phase"] == phase);
        let asked = Instant::now();
        assert_eq!(sidecar.terminate(), Some(0), "{phase}");
        assert!(asked.elapsed() < SOON, "{phase}: {:?}", asked.elapsed());
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
    let asked = Instant::now();
    assert_eq!(sidecar.terminate(), Some(143));
    assert!(asked.elapsed() >= Duration::from_millis(700) && asked.elapsed() < SOON, "{:?}", asked.elapsed());
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
    sidecar.signal(Signal::SIGTERM);
    eventually("it is noted", || sidecar.log().contains("finishing the step in flight").then_some(()));
    let asked = Instant::now();
    assert_eq!(sidecar.terminate(), Some(143));
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
}

#[test]
fn terminated_while_a_reload_succeeds_it_notes_that_and_ends_well() {
    let stage = Stage::new("1");
    let (go, ran) = (stage.text("go"), stage.text("ran"));
    let script = stage.write("reload.sh", format!("touch {ran}; until [ -e {go} ]; do sleep 0.02; done"));
    let mut sidecar = stage.start(&["--reload-exec", &format!("sh {script}"), "--shutdown-grace", "60s"]);
    eventually("the program runs", || stage.at("ran").exists().then_some(()));
    sidecar.signal(Signal::SIGTERM);
    eventually("it is noted", || sidecar.log().contains("finishing the step in flight").then_some(()));
    stage.write("go", "");
    assert_eq!(sidecar.exit_code(), Some(0));
    fs::remove_file(&ran).unwrap();
    sidecar.start_again();
    sidecar.until_idle();
    assert!(!stage.at("ran").exists(), "no debt was left");
}

/// The process is stopped between the two renames of a publish (journal, `..data`), and asked to end there.
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
    let journal = stage.at("conf/..trimtab/private/journal.json");
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
        sidecar.signal(Signal::SIGSTOP);
        let stat = format!("/proc/{}/stat", sidecar.pid());
        eventually("it stops", || fs::read_to_string(&stat).ok()?.rsplit_once(')')?.1.starts_with(" T").then_some(()));
        let hit = !link().starts_with(&announced);
        if hit {
            sidecar.signal(Signal::SIGTERM);
        }
        sidecar.signal(Signal::SIGCONT);
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
