//! What the release build costs while nothing happens.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::support::hook::Hook;
use super::support::sidecar::{Sidecar, eventually, needs_root};
use super::support::stage::Stage;

/// The static binary, as an image has it: `make test` makes it.
#[test]
fn at_rest_nothing_wakes_it_and_it_is_small() {
    needs_root("mount a file system of its own");
    let stage = Stage::new("1");
    let hook = Hook::start(None);
    // The way to a watched directory is watched as well, and others make files in /tmp all the time.
    let quiet = "mount -t tmpfs none /mnt; mkdir /mnt/in; echo 1 >/mnt/in/a; echo '{{ data.a }}' >/mnt/t.j2; shift; exec \"$RELEASE\" \"$@\"";
    let release = std::env::var("TRIMTAB_TEST_RELEASE").unwrap_or_else(|_| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/target/x86_64-unknown-linux-musl/release/trimtab").to_owned()
    });
    assert!(Path::new(&release).exists(), "{release} does not exist: run make test, or tools/static");
    let release = format!("RELEASE={release}");
    let program = ["env", &release, "unshare", "--mount", "sh", "-ec", quiet, "-"];
    let flags = ["--watch-dir", "/mnt/in", "--template", "/mnt/t.j2", "--output", "/mnt/out", "--poll-interval", "0"];
    let url = hook.url();
    let sidecar = Sidecar::start_by(&program, &stage.at("log"), flags.iter().chain(&["--reload-url", &url]));
    sidecar.until_idle();
    let tasks = format!("/proc/{}/task", sidecar.pid());
    // Threads for blocking work end when they are idle: the loop's is left, and the one in which notify waits.
    eventually("two threads are left", || (fs::read_dir(&tasks).unwrap().count() == 2).then_some(()));
    let wakes = || -> u64 {
        fs::read_dir(&tasks)
            .unwrap()
            .map(|task| {
                let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
                let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
                line.unwrap().trim().parse::<u64>().unwrap()
            })
            .sum()
    };
    let before = wakes();
    // The rest itself is what is looked at.
    std::thread::sleep(Duration::from_secs(3));
    let woken = wakes() - before;
    let status = fs::read_to_string(format!("/proc/{}/status", sidecar.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    println!("woken {woken} times in 3 s; {resident} kB resident");
    assert!(woken <= 2, "woken {woken} times in 3 s");
    assert!(resident < 10_000, "{resident} kB resident");
}
