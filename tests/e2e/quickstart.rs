//! The README's quick start, exactly as it stands there.

use std::fs;
use std::path::Path;

use super::support::space::Space;

fn manifest() -> String {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, rest) = readme.split_once("<!-- manifest -->\n```yaml\n").unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn quick_start_serves_is_edited_and_refuses_what_is_bad() {
    let space = Space::new("quickstart");
    space.apply(&manifest());
    let pod = space.pod("web").until_ready();
    pod.until_serves(8080, "/", "hello");

    space.edit("web", "greeting", "good morning");
    pod.until_serves(8080, "/", "good morning");

    // Rejected by the template: not a number.
    space.edit("web", "workers", "many");
    pod.until("rejected", |status| status["quarantine"]["stage"] == "render" || !status["errors"]["render"].is_null());
    pod.until_serves(8080, "/", "good morning");

    space.edit("web", "workers", "3");
    space.edit("web", "greeting", "good evening");
    pod.until_serves(8080, "/", "good evening");
    assert_eq!(pod.restarts("nginx") + pod.restarts("trimtab"), 0);
}
