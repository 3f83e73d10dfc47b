//! `--once`: what is published, and the exit code that says why nothing was.

use super::support::hook::Hook;
use super::support::sidecar::{Sidecar, eventually, run, trimtab};
use super::support::stage::Stage;

#[test]
fn once_publishes_notifies_nobody_and_the_sidecar_finds_nothing_to_do() {
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
    // The next change is delivered, and it alone.
    stage.edit("2");
    eventually("the change is delivered", || (hook.last_saw()? == "2").then_some(()));
    assert_eq!(sidecar.until_idle()["published"]["sequence"], 2);
    assert_eq!(hook.calls().len(), 1, "no reload was due for what the main process reads at its start");
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

/// An init container that brings back what the main process wrote runs again, in a volume that it has written to since.
#[test]
fn once_leaves_alone_what_is_in_the_output_where_that_is_asked_for() {
    let mut stage = Stage::new("1");
    let (volume, data) = (stage.text("volume"), stage.text("data"));
    let restore = |more: &[&str]| {
        let flags = ["--once", "--layout", "files", "--watch-dir", &volume, "--output", &data];
        run(trimtab().args(flags).args(more))
    };
    let path = stage.at("data").join(stage.file().file_name().unwrap());
    std::fs::create_dir_all(stage.at("data/lost+found")).unwrap();
    let (code, said) = restore(&["--once-if-empty"]);
    assert_eq!((code, std::fs::read_to_string(&path).unwrap().as_str()), (Some(0), "1"), "{said}");
    // Written since, as an upload is.
    stage.write("newer", "3");
    std::fs::rename(stage.at("newer"), &path).unwrap();
    stage.edit("2");
    let (code, said) = restore(&["--once-if-empty"]);
    assert_eq!((code, std::fs::read_to_string(&path).unwrap().as_str()), (Some(0), "3"), "{said}");
    assert!(said.contains("they stay"), "{said}");
    let (code, said) = restore(&[]);
    assert_eq!((code, std::fs::read_to_string(&path).unwrap().as_str()), (Some(0), "2"), "{said}");
    // Nothing was brought back, and the main process began by itself.
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::create_dir(&data).unwrap();
    std::fs::write(&path, "own").unwrap();
    assert_eq!(restore(&["--once-if-empty"]).0, Some(0));
    assert_eq!(restore(&[]).0, Some(65));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "own");
    for flags in [&["--once-if-empty"][..], &["--once", "--once-if-empty"]] {
        let (code, said) = run(trimtab().args(["--watch-dir", &volume, "--output", &data]).args(flags));
        assert!(code == Some(64) && said.contains("--once-if-empty goes with"), "{said}");
    }
}
