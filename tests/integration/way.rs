//! The way of a change, on mounted files: from the swap of a volume to the hook.

use std::fs;

use super::support::hook::Hook;
use super::support::sidecar::{Sidecar, Volume, eventually};

#[test]
fn edit_of_a_volume_is_rendered_published_and_told() {
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
