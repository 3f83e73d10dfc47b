//! Mounted volumes and ordinary directories as sources: what readers of the output see, how often the hook is called,
//! and what becomes of directories that come, go and are edited.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::inotify::{InitFlags, Inotify};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::support::hook::Hook;
use super::support::mounts::Mounted;
use super::support::scene::{Layout, Scene, names};
use super::support::sidecar::{Sidecar, Volume, eventually, needs_root, trimtab};
use super::support::stage::Stage;

/// The keys of the volumes that are swapped many times.
const KEYS: [&str; 8] = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"];

/// What a key holds after the swap of this number: 2 kB, of which each line holds both.
fn value(key: &str, number: u64) -> String {
    let line = format!("{number} {key}\n");
    line.repeat(2048 / line.len())
}

fn swap(volume: &mut Volume, number: u64) {
    let values = KEYS.map(|key| value(key, number));
    volume.swap(&keys_of(&values));
}

fn keys_of(values: &[String]) -> Vec<(&str, &str)> {
    KEYS.into_iter().zip(values.iter().map(String::as_str)).collect()
}

/// A volume after swap 0.
fn volume(scene: &Scene) -> Volume {
    let mut volume = Volume::new(scene.at("volume"), &[]);
    swap(&mut volume, 0);
    volume
}

/// The number in a file, which may be torn.
fn number_in(text: &str) -> Option<u64> {
    text.split(' ').next()?.parse().ok()
}

/// A published file, and the keys whose values it holds, one after the other.
type Published = (&'static str, &'static [&'static str]);

/// The number of the swap that this text is whole of.
fn whole(text: &str, keys: &[&str]) -> u64 {
    let number = number_in(text).unwrap_or_else(|| panic!("a file begins with {:?}", text.get(..40)));
    let wanted: String = keys.iter().map(|key| value(key, number)).collect();
    assert!(text == wanted, "a torn or mixed file of {} bytes, {} wanted: {text}", text.len(), wanted.len());
    number
}

/// What a reader has seen.
#[derive(Default)]
struct Sight {
    reads: u64,
    /// Reads of a generation that was removed meanwhile.
    late: u64,
    numbers: BTreeSet<u64>,
    /// By the file.
    newest: BTreeMap<&'static str, u64>,
}

impl Sight {
    fn saw(&mut self, number: u64) {
        let newest = self.numbers.last().copied().unwrap_or_default();
        assert!(number >= newest, "swap {number} is seen after swap {newest}");
        self.numbers.insert(number);
    }

    /// Resolves `..data` once, and reads all files of that directory.
    fn of_a_generation(&mut self, output: &Path, files: &[Published]) {
        self.reads += 1;
        let directory = fs::read_link(output.join("..data")).unwrap();
        let mut numbers = BTreeSet::new();
        for (path, keys) in files {
            match fs::read_to_string(output.join(&directory).join(path)) {
                Ok(text) => _ = numbers.insert(whole(&text, keys)),
                Err(error) => {
                    let current = fs::read_link(output.join("..data")).unwrap();
                    assert!(current > directory, "{path} of the current generation {}: {error}", directory.display());
                    self.late += 1;
                    return;
                }
            }
        }
        assert_eq!(numbers.len(), 1, "{} mixes swaps {numbers:?}", directory.display());
        for number in numbers {
            self.saw(number);
        }
    }

    /// Reads single files: each is there and whole, and never older than it was; the others may be of another swap.
    fn of_single_files(&mut self, output: &Path, files: &[Published]) {
        self.reads += 1;
        for (path, keys) in files {
            let text = fs::read_to_string(output.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            let number = whole(&text, keys);
            let newest = self.newest.insert(*path, number).unwrap_or_default();
            assert!(number >= newest, "{path} of swap {number} is seen after that of swap {newest}");
            self.numbers.insert(number);
        }
    }

    /// Reads one file after the other by its own name in the output.
    fn of_top_level_names(&mut self, output: &Path, files: &[Published]) {
        self.reads += 1;
        for (path, keys) in files {
            let text = fs::read_to_string(output.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            self.saw(whole(&text, keys));
        }
    }
}

/// Swaps a volume so many times, an even number, under two readers of generations and one of the top-level names; in
/// the layout of single files under three of these.
fn swap_under_readers(layout: Layout, swaps: u64, flags: &[&str], files: &[Published]) {
    let scene = Scene::of(layout);
    let mut volume = volume(&scene);
    let templates = scene.at("templates");
    fs::create_dir_all(templates.join("sub")).unwrap();
    fs::write(templates.join("one.conf.j2"), "{{ data.alpha }}{{ data.beta }}").unwrap();
    fs::write(templates.join("sub/two.conf.j2"), "{% include '_part' %}{{ data.alpha }}").unwrap();
    fs::write(templates.join("_part"), "{{ data.gamma }}{{ data.theta }}").unwrap();
    let hook = Hook::start(Some(scene.output.join(files[0].0)));
    let directory = scene.text("volume");
    let url = hook.url();
    let mut all = vec!["--watch-dir", &directory, "--reload-url", &url, "--debounce", "0"];
    let templates = scene.text("templates");
    all.extend(flags.iter().map(|flag| if *flag == "TEMPLATES" { &templates } else { *flag }));
    let sidecar = scene.start(&all);
    sidecar.until_idle();

    let over = AtomicBool::new(false);
    let output = &scene.output;
    let looked: [AtomicU64; 3] = Default::default();
    std::thread::scope(|scope| {
        let mut counters = looked.iter();
        let read = |one_round: fn(&mut Sight, &Path, &[Published])| {
            let (over, counter) = (&over, counters.next().unwrap());
            scope.spawn(move || {
                let mut sight = Sight::default();
                while !over.load(Ordering::Relaxed) {
                    one_round(&mut sight, output, files);
                    counter.fetch_add(1, Ordering::SeqCst);
                    sleep(Duration::from_micros(200));
                }
                sight
            })
        };
        let rounds: [fn(&mut Sight, &Path, &[Published]); 3] = match layout {
            Layout::Atomic => [Sight::of_a_generation, Sight::of_a_generation, Sight::of_top_level_names],
            Layout::Files => [Sight::of_single_files; 3],
        };
        let readers = rounds.map(read);
        for number in (1..=swaps).step_by(2) {
            // In pairs, so that the sidecar reads the first while the second comes.
            let pair = [number, number + 1].map(|number| KEYS.map(|key| value(key, number)));
            let prepared = [volume.prepare(&keys_of(&pair[0])), volume.prepare(&keys_of(&pair[1]))];
            volume.finish(&prepared[0], &keys_of(&pair[0]));
            sleep(Duration::from_micros(number % 40 * 20));
            volume.finish(&prepared[1], &keys_of(&pair[1]));
            // A reader that failed ends the test at once.
            let failed = || readers.iter().any(std::thread::ScopedJoinHandle::is_finished);
            if failed() {
                break;
            }
            sleep(Duration::from_millis(8));
            let seen = || hook.last_saw().as_deref().and_then(number_in) >= Some(number);
            if number % 10 == 9 {
                // On a busy machine one of ten is published at least, and each reader looks at it.
                eventually("the hook sees a swap", || (seen() || failed()).then_some(()));
                let before = looked.each_ref().map(|counter| counter.load(Ordering::SeqCst));
                // The round that is under way may have begun before it.
                let looks = |at: usize| looked[at].load(Ordering::SeqCst) > before[at] + 1;
                eventually("each reader looks", || ((0..3).all(looks) || failed()).then_some(()));
            }
        }
        let delivered = || hook.last_saw().as_deref().and_then(number_in) == Some(swaps);
        if !readers.iter().any(std::thread::ScopedJoinHandle::is_finished) {
            eventually("the hook sees the last swap", || delivered().then_some(()));
        }
        over.store(true, Ordering::Relaxed);
        for reader in readers {
            let sight = reader.join().unwrap();
            eprintln!("{} reads, {} late, {} generations", sight.reads, sight.late, sight.numbers.len());
            assert!(sight.late * 50 <= sight.reads, "{} of {} reads came too late", sight.late, sight.reads);
            assert!(
                sight.numbers.len() as u64 >= swaps * 6 / 100,
                "only {} generations were seen",
                sight.numbers.len()
            );
        }
    });
    let status = sidecar.until_idle();
    assert!(status["published"]["sequence"].as_u64().unwrap() >= swaps / 10, "{status}");
    assert_eq!(hook.last_saw().map(|text| whole(&text, files[0].1)), Some(swaps));
    assert!(scene.left_behind().is_empty(), "{:?}", scene.left_behind());
}

const COPIES: [Published; 8] = [
    ("alpha", &["alpha"]),
    ("beta", &["beta"]),
    ("gamma", &["gamma"]),
    ("delta", &["delta"]),
    ("epsilon", &["epsilon"]),
    ("zeta", &["zeta"]),
    ("eta", &["eta"]),
    ("theta", &["theta"]),
];

#[test]
fn readers_of_copies_see_whole_generations_under_500_swaps() {
    swap_under_readers(Layout::Atomic, 500, &[], &COPIES);
}

#[test]
fn readers_of_single_files_see_each_whole_under_200_swaps() {
    swap_under_readers(Layout::Files, 200, &[], &COPIES);
}

#[test]
fn readers_of_rendered_templates_see_whole_generations_under_500_swaps() {
    let files: [Published; 2] = [("one.conf", &["alpha", "beta"]), ("sub/two.conf", &["gamma", "theta", "alpha"])];
    swap_under_readers(Layout::Atomic, 500, &["--template", "TEMPLATES"], &files);
}

#[test]
fn one_change_is_one_reload_however_slow_the_kubelet_and_same_bytes_are_none() {
    const CHANGES: u64 = 100;
    let scene = Scene::new();
    let mut volume = volume(&scene);
    let hook = Hook::start(Some(scene.output.join("alpha")));
    let sidecar =
        scene.start(&["--watch-dir", &scene.text("volume"), "--reload-url", &hook.url(), "--debounce", "1ms"]);
    sidecar.until_idle();
    volume.pause = Duration::from_millis(5);
    for number in 1..=CHANGES {
        swap(&mut volume, number);
        let delivered = || hook.last_saw().as_deref().and_then(number_in) == Some(number);
        eventually("the change is delivered", || delivered().then_some(()));
        swap(&mut volume, number);
        // Nothing shows that the sidecar has looked: twenty times its debounce.
        sleep(Duration::from_millis(20));
    }
    let status = sidecar.until_idle();
    let delivered: Vec<_> = hook.calls().iter().map(|call| whole(call.saw.as_ref().unwrap(), &["alpha"])).collect();
    assert_eq!(delivered, (0..=CHANGES).collect::<Vec<_>>(), "one call for each change, in their order");
    assert_eq!(status["published"]["sequence"], CHANGES + 1, "and one generation");
}

/// Edits the volume at this pace at default flags, and measures how far behind the output comes, and how many calls.
fn edit_steadily(every: Duration, edits: u64) -> (Duration, usize) {
    let scene = Scene::new();
    let mut volume = volume(&scene);
    let hook = Hook::start(Some(scene.output.join("alpha")));
    let sidecar = scene.start(&["--watch-dir", &scene.text("volume"), "--reload-url", &hook.url()]);
    sidecar.until_idle();
    let began = Instant::now();
    let mut edited = vec![began];
    let mut behind = Duration::ZERO;
    let mut look = |edited: &[Instant]| {
        let published = number_in(&scene.published("alpha").unwrap()).unwrap();
        let missing = edited.get(usize::try_from(published).unwrap() + 1);
        behind = behind.max(missing.map_or(Duration::ZERO, Instant::elapsed));
        missing.is_none()
    };
    for number in 1..=edits {
        swap(&mut volume, number);
        edited.push(Instant::now());
        let next = began + every * u32::try_from(number).unwrap();
        while Instant::now() < next {
            look(&edited);
            sleep(Duration::from_millis(5));
        }
    }
    eventually("the last edit is published", || look(&edited).then_some(()));
    sidecar.until_idle();
    assert_eq!(hook.last_saw().as_deref().and_then(number_in), Some(edits));
    let calls = hook.calls().len() - 1;
    eprintln!("edits every {every:?}: never more than {behind:?} behind, {calls} calls");
    (behind, calls)
}

/// `--debounce-max`, and a busy machine's delays.
const BEHIND_AT_MOST: Duration = Duration::from_millis(2000 + 1500);

#[test]
fn edits_every_200_ms_are_never_far_behind() {
    let (behind, _) = edit_steadily(Duration::from_millis(200), 50);
    assert!(behind <= BEHIND_AT_MOST, "{behind:?} behind");
}

#[test]
fn edits_that_never_leave_quiet_are_published_at_the_ceiling_and_no_more_often() {
    let (behind, calls) = edit_steadily(Duration::from_millis(100), 100);
    assert!(behind <= BEHIND_AT_MOST, "{behind:?} behind");
    // Ten seconds are five ceilings; a pause of this machine may look like quiet.
    assert!(calls <= 15, "{calls} calls");
}

#[test]
fn burst_of_100_swaps_is_a_handful_of_reloads() {
    let scene = Scene::new();
    let mut volume = volume(&scene);
    let hook = Hook::start(Some(scene.output.join("alpha")));
    let sidecar = scene.start(&["--watch-dir", &scene.text("volume"), "--reload-url", &hook.url()]);
    sidecar.until_idle();
    let delivered = |number| hook.last_saw().as_deref().and_then(number_in) == Some(number);
    for number in 1..=100 {
        swap(&mut volume, number);
        sleep(Duration::from_millis(7));
    }
    eventually("the last of the burst is delivered", || delivered(100).then_some(()));
    swap(&mut volume, 101);
    eventually("the next change is delivered", || delivered(101).then_some(()));
    let calls = hook.calls().len();
    assert!(calls <= 1 + 5 + 1, "{} calls for the burst", calls - 2);
}

/// The one source whose name ends so.
fn source<'a>(status: &'a Value, name: &str) -> &'a Value {
    let sources = status["sources"].as_array().map(Vec::as_slice).unwrap_or_default();
    sources.iter().find(|source| source["name"] == name).unwrap_or(&Value::Null)
}

fn says(value: &Value, parts: &[&str]) -> bool {
    value.as_str().is_some_and(|text| parts.iter().all(|part| text.contains(part)))
}

fn ready(sidecar: &Sidecar) -> Option<u16> {
    sidecar.request("--listen", "GET", "/readyz").map(|(code, _)| code)
}

#[test]
fn directory_is_waited_for_kept_when_deleted_and_followed_when_it_comes_again() {
    let scene = Scene::new();
    let hook = Hook::start(Some(scene.output.join("key")));
    let flags = ["--watch-dir", &scene.text("late/volume"), "--reload-url", &hook.url(), "--debounce", "1ms"];
    let sidecar = scene.start(&flags);
    let status = sidecar.until("it is waited for", |status| {
        says(&source(status, "dir/volume")["message"], &["dir/volume", "does not exist", "--optional"])
    });
    assert_eq!((&status["phase"], &status["ready"]), (&"syncing".into(), &false.into()));
    assert_eq!(ready(&sidecar), Some(503));
    assert_eq!(sidecar.log().matches("waiting for dir/volume").count(), 1);

    let delivered = |text: &str| eventually(text, || (hook.last_saw().as_deref() == Some(text)).then_some(()));
    drop(Volume::new(scene.at("late/volume"), &[("key", "first")]));
    delivered("first");
    assert_eq!(ready(&sidecar), Some(200));
    sidecar.until_idle();

    for content in ["second", "third"] {
        let before = (hook.calls().len(), scene.published("key"));
        fs::remove_dir_all(scene.at("late")).unwrap();
        let gone = |status: &Value| says(&source(status, "dir/volume")["message"], &["kept", "--on-delete keep"]);
        let status = sidecar.until("its absence is seen", gone);
        assert_eq!((&status["phase"], &status["ready"]), (&"idle".into(), &true.into()));
        assert_eq!((hook.calls().len(), scene.published("key")), before, "absence is no change");
        drop(Volume::new(scene.at("late/volume"), &[("key", content)]));
        delivered(content);
        assert_eq!(hook.calls().len(), before.0 + 1);
        let status = sidecar.until_idle();
        assert_eq!(source(&status, "dir/volume")["message"], Value::Null);
    }
}

#[test]
fn directory_that_was_removed_is_kept_over_a_restart() {
    let scene = Scene::new();
    let hook = Hook::start(Some(scene.output.join("key")));
    drop(Volume::new(scene.at("one"), &[("key", "1"), ("deep", "1")]));
    let mut two = Volume::new(scene.at("two"), &[("other", "1")]);
    let (one, other) = (scene.text("one"), scene.text("two"));
    let flags =
        ["--watch-dir", &one, "--watch-dir", &other, "--optional", "--reload-url", &hook.url(), "--debounce", "1ms"];
    let mut sidecar = scene.start(&flags);
    sidecar.until_idle();
    let gone = |status: &Value| says(&source(status, "dir/one")["message"], &["kept", "--on-delete keep"]);
    // Its content is emptied, or all of it is removed.
    for edit in [|dir: &Path| fs::remove_dir_all(dir).unwrap(), |dir: &Path| fs::create_dir_all(dir).unwrap()] {
        edit(&scene.at("one"));
        sidecar.until("its absence is seen", gone);
        sidecar.kill();
        let before = hook.calls().len();
        sidecar.start_again();
        let status = sidecar.until("its absence is seen by the next life", gone);
        assert_eq!(source(&status, "dir/one")["healthy"], false);
        sidecar.until_idle();
        assert_eq!((scene.published("key").as_deref(), hook.calls().len()), (Some("1"), before));
    }
    two.swap(&[("other", "2")]);
    eventually("the other one's edit is published", || (scene.published("other")? == "2").then_some(()));
    assert_eq!((scene.published("key").as_deref(), scene.published("deep").as_deref()), (Some("1"), Some("1")));
    drop(Volume::new(scene.at("one/late"), &[("key", "2")]));
    eventually("what is back is published", || scene.published("key").is_none().then_some(()));
}

#[test]
fn watched_link_is_followed_when_it_is_pointed_elsewhere() {
    let scene = Scene::new();
    let hook = Hook::start(Some(scene.output.join("key")));
    let mut blue = Volume::new(scene.at("blue"), &[("key", "blue 1")]);
    let mut green = Volume::new(scene.at("green"), &[("key", "green 1")]);
    let point = |to: &str| {
        symlink(to, scene.at("link.new")).unwrap();
        fs::rename(scene.at("link.new"), scene.at("link")).unwrap();
    };
    point("blue");
    let sidecar = scene.start(&["--watch-dir", &scene.text("link"), "--reload-url", &hook.url(), "--debounce", "1ms"]);
    sidecar.until_idle();
    let delivered = |text: &str| eventually(text, || (hook.last_saw().as_deref() == Some(text)).then_some(()));
    delivered("blue 1");
    point("green");
    delivered("green 1");
    green.swap(&[("key", "green 2")]);
    delivered("green 2");
    // Nobody watches it now: the next change to be delivered is the green one.
    blue.swap(&[("key", "blue 2")]);
    green.swap(&[("key", "green 3")]);
    delivered("green 3");
    point("blue");
    delivered("blue 2");
    assert_eq!(hook.calls().len(), 5);
}

#[test]
fn nested_directories_keep_their_paths() {
    let scene = Scene::new();
    let tree = scene.at("tree");
    fs::create_dir_all(tree.join("sites/a")).unwrap();
    fs::write(tree.join("main.conf"), "main 1").unwrap();
    fs::write(tree.join("sites/a/site.conf"), "a 1").unwrap();
    let sidecar = scene.start(&[
        "--watch-dir",
        &scene.text("tree"),
        "--path",
        "{key}",
        "--debounce",
        "1ms",
        "--poll-interval",
        "0",
    ]);
    let until = |path: &str, text: Option<&str>| {
        eventually(&format!("{path} holds {text:?}"), || (scene.published(path).as_deref() == text).then_some(()));
    };
    until("sites/a/site.conf", Some("a 1"));
    until("main.conf", Some("main 1"));
    fs::write(tree.join("sites/a/site.conf"), "a 2").unwrap();
    until("sites/a/site.conf", Some("a 2"));
    fs::create_dir_all(tree.join("sites/b/deep")).unwrap();
    fs::write(tree.join("sites/b/deep/site.conf"), "b 1").unwrap();
    until("sites/b/deep/site.conf", Some("b 1"));
    fs::write(tree.join("sites/b/deep/site.conf"), "b 2").unwrap();
    until("sites/b/deep/site.conf", Some("b 2"));
    fs::rename(tree.join("sites/b"), tree.join("sites/c")).unwrap();
    until("sites/c/deep/site.conf", Some("b 2"));
    until("sites/b/deep/site.conf", None);
    fs::remove_dir_all(tree.join("sites/a")).unwrap();
    until("sites/a/site.conf", None);
    until("main.conf", Some("main 1"));
    sidecar.until_idle();
    assert_eq!(names(&scene.output.join("sites")), ["c"]);
}

#[test]
fn broken_template_is_rejected_by_file_and_line_until_it_is_corrected() {
    let scene = Scene::new();
    let mut volume = Volume::new(scene.at("volume"), &[("workers", "4")]);
    let template = scene.at("app.conf.j2");
    fs::write(&template, "# app\nworkers = {{ data.workers }}\n").unwrap();
    let hook = Hook::start(Some(scene.output.join("app.conf")));
    let sidecar = scene.start(&[
        "--watch-dir",
        &scene.text("volume"),
        "--template",
        &scene.text("app.conf.j2"),
        "--reload-url",
        &hook.url(),
        "--debounce",
        "1ms",
    ]);
    let delivered = |text: &str| eventually(text, || (hook.last_saw().as_deref() == Some(text)).then_some(()));
    delivered("# app\nworkers = 4\n");
    fs::write(&template, "# app 2\nworkers = {{ data.workers }}\n").unwrap();
    delivered("# app 2\nworkers = 4\n");
    sidecar.until_idle();

    let unparsable = "# app 3\nworkers = {{ data.workers\n";
    let undefined = "# app 3\n\nworkers = {{ data.threads }}\n";
    for (calls, broken, line) in [(2, unparsable, ""), (3, undefined, "line 3")] {
        let before = scene.published("app.conf");
        fs::write(&template, broken).unwrap();
        let parts = ["template app.conf.j2", "line ", line];
        let rejected = |status: &Value| {
            says(&status["quarantine"]["reason"], &parts) && says(&status["errors"]["render"]["message"], &parts)
        };
        let status = sidecar.until("it is rejected", |status| rejected(status) && status["phase"] == "idle");
        assert_eq!(status["quarantine"]["stage"], "render");
        let digest = status["quarantine"]["digest"].clone();
        // Newer values do not help, and are no reason to publish.
        volume.swap(&[("workers", &format!("{}", calls + 100))]);
        sidecar.until("the newer inputs are rejected too", |status| {
            rejected(status) && status["quarantine"]["digest"] != digest
        });
        assert_eq!((hook.calls().len(), scene.published("app.conf")), (calls, before), "the last good one stays");
        fs::write(&template, format!("# app {calls}, corrected\nworkers = {{{{ data.workers }}}}\n")).unwrap();
        delivered(&format!("# app {calls}, corrected\nworkers = {}\n", calls + 100));
        let status = sidecar.until_idle();
        assert_eq!((&status["quarantine"], &status["errors"]), (&Value::Null, &serde_json::json!({})));
        assert_eq!(hook.calls().len(), calls + 1);
    }
}

#[test]
fn template_directory_is_followed_with_its_partials_and_loses_what_vanishes() {
    let scene = Scene::new();
    let _volume = Volume::new(scene.at("volume"), &[("user", "www")]);
    let templates = scene.at("templates");
    fs::create_dir_all(templates.join("sites")).unwrap();
    fs::write(templates.join("_head"), "user {{ data.user }};").unwrap();
    fs::write(templates.join("main.conf.j2"), "{% include '_head' %} main").unwrap();
    fs::write(templates.join("sites/a.conf"), "{% include '_head' %} a").unwrap();
    let sidecar = scene.start(&[
        "--watch-dir",
        &scene.text("volume"),
        "--template",
        &format!("{}:etc", scene.text("templates")),
        "--debounce",
        "1ms",
    ]);
    let until = |path: &str, text: Option<&str>| {
        eventually(&format!("{path} holds {text:?}"), || (scene.published(path).as_deref() == text).then_some(()));
    };
    until("etc/main.conf", Some("user www; main"));
    until("etc/sites/a.conf", Some("user www; a"));
    fs::write(templates.join("_head"), "runs as {{ data.user }};").unwrap();
    until("etc/main.conf", Some("runs as www; main"));
    until("etc/sites/a.conf", Some("runs as www; a"));
    fs::remove_file(templates.join("sites/a.conf")).unwrap();
    until("etc/sites/a.conf", None);
    until("etc/main.conf", Some("runs as www; main"));
    sidecar.until_idle();
    assert_eq!(names(&scene.output.join("etc")), ["main.conf"]);
    fs::remove_file(templates.join("_head")).unwrap();
    let status = sidecar.until("the lost partial is reported", |status| {
        says(&status["quarantine"]["reason"], &["template main.conf.j2", "line 1", "_head"])
    });
    assert_eq!(status["published"]["sequence"], status["confirmed"]["sequence"]);
    until("etc/main.conf", Some("runs as www; main"));
}

#[test]
fn removed_keys_take_their_links_along_and_foreign_files_stay() {
    removes_keys_and_leaves_foreign_files(Layout::Atomic);
}

#[test]
fn removed_keys_take_their_single_files_along_and_foreign_files_stay() {
    removes_keys_and_leaves_foreign_files(Layout::Files);
}

fn removes_keys_and_leaves_foreign_files(layout: Layout) {
    let scene = Scene::of(layout);
    let mut volume = Volume::new(scene.at("volume"), &[("a", "1"), ("b", "1"), ("c", "1")]);
    let hook = Hook::start(Some(scene.output.join("a")));
    let flags = ["--watch-dir", &scene.text("volume"), "--reload-url", &hook.url(), "--debounce", "1ms"];
    let sidecar = scene.start(&flags);
    let visible = || {
        let mut names = names(&scene.output);
        names.retain(|name| !name.starts_with(".."));
        names
    };
    let delivered = |text: &str| eventually(text, || (hook.last_saw().as_deref() == Some(text)).then_some(()));
    delivered("1");
    sidecar.until_idle();
    assert_eq!(visible(), ["a", "b", "c"]);
    volume.swap(&[("a", "2")]);
    delivered("2");
    assert_eq!(visible(), ["a"], "names are gone before the main process is notified");

    fs::write(scene.output.join("d"), "mine").unwrap();
    sidecar.until_idle();
    volume.swap(&[("a", "3"), ("d", "3")]);
    let foreign = scene.output.join("d");
    let parts = [foreign.to_str().unwrap(), "did not make", "--path"];
    sidecar.until("it is rejected by name", |status| says(&status["quarantine"]["reason"], &parts));
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "mine");
    assert_eq!((scene.published("a").as_deref(), hook.calls().len()), (Some("2"), 2), "all of it or nothing");
    fs::remove_file(&foreign).unwrap();
    let answer = retry(&sidecar);
    assert!(answer.status.success(), "{answer:?}");
    assert_eq!(String::from_utf8(answer.stdout).unwrap(), "trying again\n");
    delivered("3");
    let status = sidecar.until_idle();
    assert_eq!((&status["quarantine"], &status["errors"]), (&Value::Null, &serde_json::json!({})));
    assert_eq!((visible(), scene.published("d").as_deref()), (vec!["a".into(), "d".into()], Some("3")));
}

/// `trimtab retry`.
fn retry(sidecar: &Sidecar) -> Output {
    trimtab().args(["retry", "--admin", &sidecar.address("--admin").to_string()]).output().unwrap()
}

/// A user that nobody is, whose inotify instances (`fs.inotify.max_user_instances`, counted by user) are all taken.
const EXHAUSTED: u32 = 61_234;

/// Takes them all, from a thread of that user: credentials are a thread's own (credentials(7)).
fn take_all_instances() -> Vec<Inotify> {
    needs_root("become another user");
    let user = rustix::process::Uid::from_raw(EXHAUSTED);
    let taken = std::thread::spawn(move || {
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        let mut taken = Vec::new();
        loop {
            match Inotify::init(InitFlags::IN_CLOEXEC) {
                Ok(instance) => taken.push(instance),
                Err(error) => break (taken, error),
            }
        }
    });
    let (taken, error) = taken.join().unwrap();
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap();
    assert_eq!((error, taken.len().to_string().as_str()), (Errno::EMFILE, limit.trim()), "not the user's limit");
    taken
}

#[test]
fn without_inotify_changes_are_found_by_polling_and_blindness_is_reported() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let scene = Scene::new();
    fs::set_permissions(scene.at(""), fs::Permissions::from_mode(0o755)).unwrap();
    let mut volume = Volume::new(scene.at("volume"), &[("key", "1")]);
    let taken = take_all_instances();
    for output in ["polling", "blind"] {
        fs::create_dir(scene.at(output)).unwrap();
        chown(scene.at(output), Some(EXHAUSTED), Some(EXHAUSTED)).unwrap();
    }
    let start = |output: &str, poll: &str| {
        let directory = scene.text("volume");
        let out = scene.text(output);
        let args = ["--watch-dir", &directory, "--output", &out, "--poll-interval", poll, "--debounce", "1ms"];
        Sidecar::start_as(EXHAUSTED, &scene.at(&format!("{output}.log")), args)
    };
    let polling = start("polling", "100ms");
    let blind = start("blind", "0");
    let holds = |output: &str, text: &str| fs::read_to_string(scene.at(output).join("key")).unwrap_or_default() == text;
    let until = |output, text| eventually(&format!("{output} holds {text}"), || holds(output, text).then_some(()));
    until("polling", "1");
    until("blind", "1");
    blind.until("blindness is reported", |status| {
        let parts = ["will not be seen", "fs.inotify.max_user_instances", "--poll-interval is 0"];
        says(&source(status, "dir/volume")["message"], &parts) && source(status, "dir/volume")["healthy"] == false
    });
    for text in ["2", "3"] {
        volume.swap(&[("key", text)]);
        until("polling", text);
    }
    assert!(holds("blind", "1"));
    assert_eq!(polling.log().matches("found by --poll-interval alone").count(), 1, "said once");
    assert!(!polling.log().contains("will not be seen"));

    drop(taken);
    blind.signal(Signal::SIGHUP);
    until("blind", "3");
    blind.until("it sees again", |status| source(status, "dir/volume")["healthy"] == true);
    volume.swap(&[("key", "4")]);
    until("blind", "4");
}

#[test]
fn subpath_mount_is_read_and_named_as_one_that_is_never_updated() {
    let scene = Scene::new();
    let volume = Volume::new(scene.at("volume"), &[("key", "1")]);
    fs::create_dir(scene.at("mounted")).unwrap();
    let version = volume.path.join("..data").canonicalize().unwrap();
    let _mounted = Mounted::bind(&version, scene.at("mounted"));
    let flags = ["--watch-dir", &scene.text("mounted"), "--poll-interval", "20ms", "--debounce", "1ms"];
    let sidecar = scene.start(&flags);
    let status = sidecar.until("it is named", |status| {
        says(&source(status, "dir/mounted")["message"], &["mounted", "subPath", "restart", "whole volume"])
    });
    assert_eq!(source(&status, "dir/mounted")["healthy"], true);
    sidecar.until_idle();
    assert_eq!(scene.published("key").as_deref(), Some("1"));
    // Whatever it reads later, it says no more.
    fs::write(version.join("key"), "2").unwrap();
    eventually("it reads on", || (scene.published("key").as_deref() == Some("2")).then_some(()));
    assert_eq!(sidecar.log().matches("is a subPath").count(), 1, "{}", sidecar.log());
}

#[test]
fn file_that_is_written_slowly_in_place_comes_out_whole() {
    use std::io::Write;
    let scene = Scene::new();
    let tree = scene.at("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("key"), "old\n").unwrap();
    let hook = Hook::start(Some(scene.output.join("key")));
    let flags = ["--watch-dir", &scene.text("tree"), "--reload-url", &hook.url(), "--debounce", "20ms"];
    let sidecar = scene.start(&[&flags[..], &["--poll-interval", "0"]].concat());
    sidecar.until_idle();
    let delivered = |text: &str| eventually(text, || (hook.last_saw().as_deref() == Some(text)).then_some(()));

    // One that keeps the file open: nothing is read before it is done.
    let mut file = fs::File::create(tree.join("key")).unwrap();
    file.write_all(b"first half\n").unwrap();
    sleep(Duration::from_millis(200));
    file.write_all(b"second half\n").unwrap();
    drop(file);
    delivered("first half\nsecond half\n");
    assert_eq!(hook.calls().len(), 2, "the half was not delivered");

    // One that opens it for each part: what it leaves in between is a content like any other.
    fs::write(tree.join("key"), "third part\n").unwrap();
    sleep(Duration::from_millis(200));
    let mut file = fs::OpenOptions::new().append(true).open(tree.join("key")).unwrap();
    file.write_all(b"fourth part\n").unwrap();
    drop(file);
    delivered("third part\nfourth part\n");
    sidecar.until_idle();
    assert_eq!(scene.published("key").as_deref(), Some("third part\nfourth part\n"));
}

#[test]
fn variables_are_filled_into_a_packed_file_and_what_is_not_set_is_logged_once() {
    let stage = Stage::new("x");
    let packed = |text: &str| {
        stage.write("prometheus.yml", text);
        let packed = Command::new("gzip").args(["-c", &stage.text("prometheus.yml")]).output().unwrap();
        // As the kubelet does: no reader sees half of it.
        stage.write("new", packed.stdout);
        fs::rename(stage.at("new"), stage.at("prometheus.yml.gz")).unwrap();
    };
    packed("replica: $(POD_NAME) $(ORDINAL) $(NONE)\n");
    let (source, output) = (format!("{}:prometheus.yml", stage.text("prometheus.yml.gz")), stage.text("conf"));
    let flags = ["--envsubst", &source, "--output", &output, "--debounce", "20ms", "--syntax", "strict"];
    let env = ["--env", "POD_NAME", "--env", "ORDINAL={pod.ordinal}", "--env", "NONE"];
    let sidecar = Sidecar::start_by(&["env", "POD_NAME=prom-2"], &stage.at("log"), [&flags[..], &env].concat());
    sidecar.until_idle();
    let published = || fs::read_to_string(stage.at("conf/prometheus.yml")).unwrap();
    assert_eq!(published(), "replica: prom-2 2 $(NONE)\n");
    packed("replica: $(POD_NAME) $(NONE)\n");
    eventually("it is published", || (published() == "replica: prom-2 $(NONE)\n").then_some(()));
    sidecar.until_idle();
    assert_eq!(sidecar.log().matches("$(NONE) stays as it is").count(), 1, "{}", sidecar.log());
}
