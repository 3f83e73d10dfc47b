//! The README's quick start, exactly as it stands there; and once more with Trimtab at 16Mi and a hundredth of a CPU.

use std::fs;
use std::path::Path;

use super::support::example::twice;

fn manifest() -> String {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, rest) = readme.split_once("<!-- manifest -->\n```yaml\n").unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn quick_start_serves_is_edited_and_refuses_what_is_bad() {
    twice("nginx", &manifest(), "app=web", 1, |space, pods| {
        let pod = &pods[0];
        pod.until_serves(8080, "/", "hello");

        space.edit("web", "greeting", "good morning");
        pod.until_serves(8080, "/", "good morning");

        // Rejected by the template: not a number.
        space.edit("web", "workers", "many");
        pod.until("rejected", |status| {
            status["quarantine"]["stage"] == "render" || !status["errors"]["render"].is_null()
        });
        pod.until_serves(8080, "/", "good morning");

        // Renders, and is refused by nginx: taken back.
        space.edit("web", "workers", "0");
        pod.until("rolled back", |status| {
            status["quarantine"]["stage"] == "confirm" && status["phase"] == "idle" && status["debt"].is_null()
        });
        pod.until_serves(8080, "/", "good morning");

        space.edit("web", "workers", "3");
        space.edit("web", "greeting", "good evening");
        pod.until_serves(8080, "/", "good evening");
        assert_eq!(pod.restarts("nginx") + pod.restarts("trimtab"), 0);
    });
}
