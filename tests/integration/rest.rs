//! The release build: what it costs while nothing happens, and what scanners find in it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::read::ZlibDecoder;
use serde_json::Value;

use super::support::hook::Hook;
use super::support::sidecar::{Sidecar, eventually, needs_root};
use super::support::stage::Stage;

/// The static binary, as an image has it: `make test` makes it.
fn release() -> PathBuf {
    let release = std::env::var_os("TRIMTAB_TEST_RELEASE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/x86_64-unknown-linux-musl/release/trimtab"),
        PathBuf::from,
    );
    assert!(release.exists(), "{} does not exist: run make test, or tools/static", release.display());
    release
}

#[test]
fn at_rest_nothing_wakes_it_and_it_is_small() {
    needs_root("mount a file system of its own");
    let stage = Stage::new("1");
    let hook = Hook::start(None);
    // The way to a watched directory is watched as well, and others make files in /tmp all the time.
    let quiet = "mount -t tmpfs none /mnt; mkdir /mnt/in; echo 1 >/mnt/in/a; echo '{{ data.a }}' >/mnt/t.j2; shift; exec \"$RELEASE\" \"$@\"";
    let release = format!("RELEASE={}", release().display());
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

/// The content of an ELF file's section (elf(5): 64 bits, little-endian).
fn section<'a>(file: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let number = |at: usize, bytes: usize| {
        file[at..at + bytes].iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    let (first, size, count) = (number(40, 8), number(58, 2), number(60, 2));
    let names = number(first + number(62, 2) * size + 24, 8);
    (0..count).map(|index| first + index * size).find_map(|header| {
        let found = &file[names + number(header, 4)..];
        let (from, length) = (number(header + 24, 8), number(header + 32, 8));
        (found.starts_with(name.as_bytes()) && found[name.len()] == 0).then(|| &file[from..from + length])
    })
}

/// In the section that cargo-auditable writes, and that Trivy, Grype, osv-scanner and cargo-audit read.
#[test]
fn scanners_find_the_crates_in_it() {
    let file = fs::read(release()).unwrap();
    let packed = section(&file, ".dep-v0").expect("it has no section .dep-v0: build it by tools/static");
    let mut text = String::new();
    ZlibDecoder::new(packed).read_to_string(&mut text).unwrap();
    let found: Value = serde_json::from_str(&text).unwrap();
    let found: BTreeSet<_> = found["packages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|package| package["kind"].is_null())
        .map(|package| format!("{} {}", package["name"].as_str().unwrap(), package["version"].as_str().unwrap()))
        .collect();
    println!("{} bytes name {} crates", packed.len(), found.len());
    let lock: toml::Table = toml::from_str(include_str!("../../Cargo.lock")).unwrap();
    let locked: BTreeSet<_> = lock["package"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| format!("{} {}", package["name"].as_str().unwrap(), package["version"].as_str().unwrap()))
        .collect();
    let strange: Vec<_> = found.difference(&locked).collect();
    assert!(strange.is_empty(), "not in Cargo.lock: {strange:?}: build it once more by tools/static");
    for name in ["trimtab", "hyper", "kube-client", "minijinja", "ring", "rustls", "tokio"] {
        assert!(found.iter().any(|package| package.starts_with(&format!("{name} "))), "{name} is missing: {found:?}");
    }
}

/// Its build stage copies what .dockerignore lets through: all that `tools/static` runs is of it.
#[test]
fn image_is_built_with_all_that_the_build_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let (ignored, build) = (read(".dockerignore"), read("tools/static"));
    let tools = fs::read_dir(root.join("tools")).unwrap().map(|tool| tool.unwrap().file_name().into_string().unwrap());
    let needed = tools.filter(|tool| build.contains(&format!("$(tools/{tool}")) || tool == "static");
    for tool in needed {
        assert!(ignored.lines().any(|line| line == format!("!tools/{tool}")), ".dockerignore has no !tools/{tool}");
    }
}
