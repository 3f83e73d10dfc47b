//! Large files: what no template reads stays on the disk, and is published all the same.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::support::hook::Hook;
use super::support::mounts::Mounted;
use super::support::scene::Scene;
use super::support::sidecar::{Sidecar, eventually};
use super::support::stage::Stage;

const FILES: usize = 8;
const LENGTH: usize = 8 << 20;

/// What may be held beside so many files, in kB: a third of what they have.
const MARGIN: u64 = 20_000;
/// What of its own it may hold at rest beside them, in kB.
const REST: u64 = 2_000;

fn content(number: usize) -> Vec<u8> {
    let line = format!("{number} of {FILES}, as long as this line is repeated\n");
    line.bytes().cycle().take(LENGTH).collect()
}

/// A number of kB in the status of a process.
fn memory(sidecar: &Sidecar, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", sidecar.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
    line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

/// Renames the files in, one small one last.
fn put(into: &Path) {
    for number in 0..FILES {
        fs::write(into.join("..new"), content(number)).unwrap();
        fs::rename(into.join("..new"), into.join(format!("large-{number}"))).unwrap();
    }
    fs::write(into.join("..new"), "all").unwrap();
    fs::rename(into.join("..new"), into.join("small")).unwrap();
}

#[test]
fn large_files_of_a_directory_are_published_and_never_held() {
    let stage = Stage::new("1");
    let [input, output] = ["in", "out"].map(|name| stage.at(name));
    fs::create_dir_all(&input).unwrap();
    fs::write(input.join("small"), "none").unwrap();
    let hook = Hook::start(Some(output.join("small")));
    let flags = |more: &[&str]| -> Vec<String> {
        let all = ["--watch-dir", input.to_str().unwrap(), "--max-size", "100Mi", "--debounce", "300ms"];
        all.into_iter().chain(more.iter().copied()).map(str::to_owned).collect()
    };
    let url = hook.url();
    let to = |output: &Path| output.to_str().unwrap().to_owned();
    let sidecar = Sidecar::start(&stage.at("log"), flags(&["--output", &to(&output), "--reload-url", &url]));
    sidecar.until_idle();
    let (before, own) = (memory(&sidecar, "VmRSS"), memory(&sidecar, "RssAnon"));
    put(&input);
    eventually("the files are delivered", || (hook.last_saw()? == "all").then_some(()));
    sidecar.until_idle();
    for number in 0..FILES {
        assert!(fs::read(output.join(format!("large-{number}"))).unwrap() == content(number), "{number}");
    }
    fs::write(input.join("..new"), "edited").unwrap();
    fs::rename(input.join("..new"), input.join("small")).unwrap();
    eventually("the edit is delivered", || (hook.last_saw()? == "edited").then_some(()));
    let most = memory(&sidecar, "VmHWM");
    println!("{before} kB before, {most} kB at most");
    assert!(most < before + MARGIN, "{before} kB before, {most} kB at most: a file was held");
    sidecar.until_idle();
    let rests = || (memory(&sidecar, "RssAnon") < own + REST).then_some(());
    eventually("it holds no more than before", rests);

    // What a template reads is read for it, and what it does not read is not.
    let [template, rendered] = ["t.j2", "rendered"].map(|name| stage.at(name));
    fs::write(&template, "{{ data.small }}").unwrap();
    let flags = flags(&["--template", template.to_str().unwrap(), "--output", &to(&rendered)]);
    let sidecar = Sidecar::start(&stage.at("log-of-templates"), flags);
    sidecar.until_idle();
    assert_eq!(fs::read_to_string(rendered.join("t")).unwrap(), "edited");
    let most = memory(&sidecar, "VmHWM");
    println!("{most} kB at most with a template");
    assert!(most < before + MARGIN, "{most} kB: values that no template reads were held");
    fs::write(stage.at("t.new"), "{{ data['large-3'] | length }}").unwrap();
    fs::rename(stage.at("t.new"), &template).unwrap();
    let read = || fs::read_to_string(rendered.join("t")).is_ok_and(|text| text == LENGTH.to_string());
    eventually("the template has read it", || read().then_some(()));
}

/// A kernel copies on some of them, shares blocks on others, and refuses on the rest.
#[test]
fn large_files_are_published_on_other_file_systems() {
    const LENGTH: usize = 1_100_000;
    let content = |version: usize| version.to_string().repeat(LENGTH);
    for kind in ["tmpfs", "overlay", "NTFS over FUSE"] {
        let mut scene = Scene::new();
        let (path, layers) = (scene.at("mounted"), scene.at("layers"));
        fs::create_dir(&path).unwrap();
        fs::create_dir(&layers).unwrap();
        let _layers = (kind == "overlay").then(|| Mounted::tmpfs(layers.clone(), "size=32m"));
        let mounted = match kind {
            "tmpfs" => Mounted::tmpfs(path, "size=32m"),
            "overlay" => Mounted::overlay(path, &layers),
            _ => Mounted::ntfs(path, &scene.at("image")),
        };
        scene.output = mounted.path().join("conf");
        // Of one file system with the output, and of another.
        let inputs = [mounted.path().join("same"), scene.at("other")];
        for input in &inputs {
            fs::create_dir(input).unwrap();
        }
        let put = |version: usize| {
            for (input, name) in inputs.iter().zip(["same", "other"]) {
                fs::write(input.join("..new"), content(version)).unwrap();
                fs::rename(input.join("..new"), input.join(name)).unwrap();
            }
        };
        let current = Arc::new(AtomicUsize::new(0));
        let answers = current.clone();
        let server = Hook::responding(None, move |_| (200, content(answers.load(Ordering::SeqCst))));
        put(0);
        let [same, other] = inputs.each_ref().map(|input| input.to_str().unwrap());
        let url = server.url().replace("/-/reload", "/url");
        let flags = ["--watch-dir", same, "--watch-dir", other, "--watch-url", &url, "--url-poll", "100ms"];
        let sidecar = scene.start(&[&flags[..], &["--debounce", "10ms"]].concat());
        for version in 0..2 {
            put(version);
            current.store(version, Ordering::SeqCst);
            for name in ["same", "other", "url"] {
                let there =
                    || fs::read(scene.output.join(name)).is_ok_and(|bytes| bytes == content(version).as_bytes());
                eventually(&format!("{name} is published on {kind}"), || there().then_some(()));
            }
        }
        drop(sidecar);
    }
}

/// A mask once took fourteen times the secrets, and the container its end.
#[test]
fn what_a_validator_says_is_masked_in_the_memory_of_one_secret() {
    let stage = Stage::new("1");
    let secret = stage.at("secret");
    fs::create_dir(&secret).unwrap();
    let lines: Vec<_> = (0..3 << 16).map(|number| format!("{number:015}")).collect();
    fs::write(secret.join("lines"), lines.join("\n")).unwrap();
    let most = |says: &str| {
        let validator = format!("sh -c '{says} exit 1' {{dir}}");
        let flags = ["--watch-dir", &stage.text("secret"), "--secret-dir", "secret", "--validate", &validator];
        let mut sidecar = stage.start(&flags);
        sidecar.until("it is rejected", |status| !status["quarantine"].is_null());
        if !says.is_empty() {
            eventually("what it said is logged", || sidecar.log_of_this_life().contains("zebra ***").then_some(()));
        }
        let most = memory(&sidecar, "VmHWM");
        sidecar.kill();
        most
    };
    let (silent, speaks) = (most(""), most("echo zebra 000000000000077;"));
    println!("{silent} kB at most where it says nothing, {speaks} kB where it speaks");
    assert!(speaks < silent + 8_000, "{silent} kB where it says nothing, {speaks} kB where it speaks");
}
