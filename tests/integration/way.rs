//! The way of a change, on mounted files: from the swap of a volume to the hook.

use std::fs;

use super::support::child::Running;
use super::support::hook::Hook;
use super::support::sidecar::{Sidecar, Volume, eventually, needs_root};

#[test]
fn edit_of_a_volume_is_rendered_published_and_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut volume = Volume::new(at("volume"), &[("workers", "4")]);
    fs::write(at("app.conf.j2"), "workers = {{ data.workers }}\n").unwrap();
    let output = at("conf");
    let hook = Hook::start(Some(output.join("app.conf")));
    let sidecar = Sidecar::start(
        &at("log"),
        [
            "--watch-dir",
            volume.path.to_str().unwrap(),
            "--template",
            at("app.conf.j2").to_str().unwrap(),
            "--output",
            output.to_str().unwrap(),
            "--reload-url",
            &hook.url(),
        ],
    );
    sidecar.until_idle();
    assert_eq!(hook.last_saw().as_deref(), Some("workers = 4\n"));
    volume.swap(&[("workers", "8")]);
    eventually("the hook sees the new content", || (hook.last_saw().as_deref() == Some("workers = 8\n")).then_some(()));
    assert_eq!(sidecar.until_idle()["published"]["sequence"], 2);
    assert_eq!(hook.calls().len(), 2);
}

/// A main process of another user that could not read what it is to read.
#[test]
fn target_that_cannot_read_the_output_is_reported() {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    needs_root("play two users");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut volume = Volume::new(at("volume"), &[("password", "hunter22")]);
    let marker = format!("target-{}", std::process::id());
    let script = "trap : HUP; while :; do sleep 0.05; done";
    let target = Command::new("bash").args(["-c", script, &marker]).uid(65534).gid(65534).spawn().unwrap();
    let _target = Running(target);
    let sidecar = Sidecar::start(
        &at("log"),
        [
            "--watch-dir",
            volume.path.to_str().unwrap(),
            "--secret-dir",
            "volume",
            "--output",
            at("conf").to_str().unwrap(),
            "--signal",
            "HUP",
            "--process-args",
            &marker,
        ],
    );
    sidecar.until_idle();
    volume.swap(&[("password", "hunter23")]);
    let status = sidecar.until("the target is found to be unable", |status| status["errors"]["access"].is_object());
    let message = status["errors"]["access"]["message"].as_str().unwrap();
    for part in ["/password (mode 0640", "fsGroup", "--secret-mode"] {
        assert!(message.contains(part), "{message}");
    }
}
