//! A volume that goes from the previous version to this one, back, and forth again: no reader finds it empty, no pending
//! reload is lost, and nothing that is confirmed is notified again by this version.

use std::process::Command;

use super::support::hook::{Answer, Hook};
use super::support::scene::Layout;
use super::support::sidecar::{Sidecar, eventually, run};
use super::support::stage::Stage;

/// The previous version's binary, in the place of this one's.
const BECOME: &str = "shift; exec \"$0\" \"$@\"";

fn goes_there_and_back(layout: Layout, pending: bool) {
    let previous = std::env::var("TRIMTAB_TEST_PREVIOUS").expect("TRIMTAB_TEST_PREVIOUS: make compat sets it");
    let (_, version) = run(Command::new(&previous).arg("--version"));
    let previous = ["sh", "-c", BECOME, &previous];
    let mut stage = Stage::of(layout, "1");
    let hook = Hook::start(Some(stage.file()));
    let url = hook.url();
    let flags = ["--reload-url", url.as_str(), "--retry-min", "20ms", "--retry-max", "50ms"];
    let saw = |content: &str| hook.calls().iter().any(|call| call.saw.as_deref() == Some(content));
    let notified_of = |content: &str| eventually(&format!("{content} is taken"), || saw(content).then_some(()));

    let mut old = stage.start_by(&previous, &flags);
    old.until_idle();
    notified_of("1");
    if pending {
        hook.answer(Answer::Code(503));
        stage.edit("2");
        old.until("it is pending", |status| status["published"]["sequence"] == 2 && status["debt"] == "publish");
        notified_of("2");
    }
    old.kill();
    let content = if pending { "2" } else { "1" };
    assert_eq!(stage.published().as_deref(), Some(content));

    // This version takes it over.
    let before = hook.calls().len();
    hook.answer(Answer::Code(200));
    let mut new = stage.start(&flags);
    let status = new.until_idle();
    assert_eq!(status["published"]["sequence"], if pending { 2 } else { 1 }, "{status}");
    assert_eq!(hook.calls().len() > before, pending, "{}", new.log_of_this_life());
    stage.edit("3");
    notified_of("3");
    new.until_idle();
    new.kill();

    // And the previous one, what this one left.
    assert_eq!(stage.published().as_deref(), Some("3"));
    let looks_elsewhere = ["trimtab 0.1.0", "trimtab 0.2.0"].iter().any(|earlier| version.starts_with(earlier));
    if layout == Layout::Files && looks_elsewhere {
        // It looks for its lists of files where they are not any more, and replaces nothing that it does not know.
        return;
    }
    let mut old: Sidecar = stage.start_by(&previous, &flags);
    old.until_idle();
    assert_eq!(stage.published().as_deref(), Some("3"), "{}", old.log_of_this_life());
    println!("{}", old.log_of_this_life());
    stage.edit("4");
    notified_of("4");
    old.until_idle();
    old.kill();

    assert_eq!(stage.published().as_deref(), Some("4"));
    let new = stage.start(&flags);
    new.until_idle();
    assert_eq!(stage.published().as_deref(), Some("4"), "{}", new.log_of_this_life());
    stage.edit("5");
    notified_of("5");
    new.until_idle();
    let left = std::fs::read_dir(stage.at("conf")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut left: Vec<_> = left.map(|name| name.into_string().unwrap()).collect();
    left.sort_unstable();
    println!("{layout:?}, pending: {pending}: {left:?}");
    // What the previous version keeps beside what it publishes is gone.
    assert!(!left.iter().any(|name| name == "..trimtab.json" || name == "..trimtab.lock"), "{left:?}");
    let own = std::fs::read_dir(stage.at("conf/..trimtab")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(own.collect::<Vec<_>>(), ["private"]);
}

#[test]
#[ignore = "needs the previous version's binary: make compat"]
fn volume_goes_from_the_previous_version_to_this_one_and_back() {
    for layout in Layout::ALL {
        for pending in [false, true] {
            goes_there_and_back(layout, pending);
        }
    }
}
