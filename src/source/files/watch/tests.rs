use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use notify::event::{Event, EventKind, Flag};
use notify::{EventHandler, RecursiveMode, Watcher, WatcherKind};
use tempfile::TempDir;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::super::medium::QUICK;
use super::super::volume::{Volume, as_nobody};
use super::*;

const DEADLINE: Duration = Duration::from_secs(10);
const NEVER: Duration = Duration::ZERO;

/// A running [`watch`].
struct Running {
    updates: mpsc::Receiver<Update>,
    refresh: channel::Sender<u64>,
    task: JoinHandle<()>,
}

fn root(source: usize, path: impl Into<PathBuf>) -> Root {
    Root { source, name: format!("dir{source}"), path: path.into(), secret: None }
}

fn start(path: impl Into<PathBuf>) -> Running {
    start_by(vec![root(0, path)], NEVER, Inotify::new)
}

fn start_by(roots: Vec<Root>, poll_interval: Duration, instance: Instance) -> Running {
    let (sender, updates) = mpsc::channel(16);
    let (refresh, refreshes) = channel::channel(0);
    let config = Config { roots, poll_interval, max_size: 1 << 20, debounce: Duration::ZERO };
    Running { updates, refresh, task: tokio::spawn(watch_by(config, refreshes, sender, instance)) }
}

impl Running {
    async fn next(&mut self) -> Update {
        timeout(DEADLINE, self.updates.recv()).await.expect("an update in time").expect("it runs")
    }

    /// The next content, as `key=value` lines; what is not there is `-`. Health is passed over.
    async fn content(&mut self) -> String {
        loop {
            match self.next().await.seen {
                Seen::All(objects) => return text(&objects),
                Seen::Trouble { .. } | Seen::Healthy => {}
                other => panic!("a directory does not send {other:?}"),
            }
        }
    }

    async fn expect(&mut self, content: &str) {
        assert_eq!(self.content().await, content);
    }

    /// The content of several writes, of which a read may see only some.
    async fn expect_in_the_end(&mut self, content: &str) {
        while self.content().await != content {}
    }

    /// The next trouble; `None`: that there is none.
    async fn health(&mut self) -> Option<String> {
        loop {
            match self.next().await.seen {
                Seen::Trouble { message, .. } => return Some(message),
                Seen::Healthy => return None,
                _ => {}
            }
        }
    }

    async fn trouble(&mut self, part: &str) {
        let trouble = self.health().await.expect("a trouble");
        assert!(trouble.contains(part), "{trouble}");
    }

    /// The next warning, before health is known.
    async fn warning(&mut self) -> String {
        match self.next().await.seen {
            Seen::Warning(message) => message,
            other => panic!("a warning, not {other:?}"),
        }
    }

    async fn stop(self) {
        drop(self.updates);
        timeout(DEADLINE, self.task).await.expect("it ends with its receiver").unwrap();
    }
}

fn text(objects: &BTreeMap<ObjectRef, Arc<Object>>) -> String {
    let Some(object) = objects.values().next() else { return "-".into() };
    let lines =
        object.data.iter().map(|(key, value)| format!("{key}={}", String::from_utf8_lossy(&value.read().unwrap())));
    lines.collect::<Vec<_>>().join(" ")
}

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// As a careful writer does it: one event, one change.
fn replace(path: &Path, text: &str) {
    let new = path.with_file_name("..new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

#[tokio::test]
async fn first_read_is_sent_and_then_each_change() {
    let dir = TempDir::new().unwrap();
    let mut volume = Volume::new(dir.path().join("v"), &[("a", "1")]);
    let mut running = start(&volume.path);
    let first = running.next().await;
    assert_eq!(first.source, 0);
    assert!(matches!(&first.seen, Seen::All(objects) if text(objects) == "a=1"), "{first:?}");
    assert!(matches!(running.next().await.seen, Seen::Healthy));
    volume.swap(&[("a", "2"), ("b/c", "3")]);
    running.expect("a=2 b/c=3").await;
    volume.swap(&[("b/c", "4")]);
    running.expect("b/c=4").await;
    volume.swap(&[]);
    running.expect("").await;
    running.stop().await;
}

#[tokio::test]
async fn same_bytes_send_nothing() {
    let dir = TempDir::new().unwrap();
    let mut volume = Volume::new(dir.path().join("v"), &[("a", "1")]);
    let mut running = start(&volume.path);
    running.expect("a=1").await;
    for n in 2..10 {
        volume.swap(&[("a", &(n - 1).to_string())]);
        // Let it read the same bytes before others come.
        tokio::time::sleep(Duration::from_millis(2)).await;
        volume.swap(&[("a", &n.to_string())]);
        running.expect(&format!("a={n}")).await;
    }
}

#[tokio::test]
async fn a_pause_before_the_rename_makes_no_second_update() {
    let dir = TempDir::new().unwrap();
    let mut volume = Volume::new(dir.path().join("v"), &[("a", "0")]);
    let mut running = start(&volume.path);
    running.expect("a=0").await;
    for n in 1..20 {
        let files = [("a", &*n.to_string())];
        volume.prepare(&files);
        tokio::time::sleep(Duration::from_millis(5)).await;
        volume.finish(&files);
        running.expect(&format!("a={n}")).await;
    }
}

#[tokio::test]
async fn every_update_of_500_swaps_is_one_generation_and_the_last_the_newest() {
    let dir = TempDir::new().unwrap();
    let swap = |volume: &mut Volume, n: u32| {
        let value = value(n);
        let own = format!("only-{n}");
        volume.swap(&[("a", &*value), ("b", &value), ("deep/er/c", &value), ("z", &value), (&own, &value)]);
    };
    let mut volume = Volume::new(dir.path().join("v"), &[]);
    swap(&mut volume, 0);
    let mut running = start(&volume.path);
    let swapper = std::thread::spawn(move || (1..=500).for_each(|n| swap(&mut volume, n)));
    let mut last = None;
    let mut updates = 0;
    while last != Some(500) {
        if let Seen::All(objects) = running.next().await.seen {
            let object = objects.values().next().expect("the volume is never gone");
            let n: u32 = String::from_utf8_lossy(&object.data["a"].read().unwrap()[..6]).parse().unwrap();
            let keys: Vec<_> = object.data.keys().cloned().collect();
            assert_eq!(keys, ["a", "b", "deep/er/c", &format!("only-{n}"), "z"]);
            assert!(
                object.data.values().all(|found| found.read().unwrap() == value(n).as_bytes()),
                "generation {n} is mixed"
            );
            assert!(last < Some(n), "{n} after {last:?}");
            last = Some(n);
            updates += 1;
        }
    }
    swapper.join().unwrap();
    assert!(updates > 100, "{updates} updates: the reads did not keep up, and the test tests little");
}

fn value(n: u32) -> String {
    format!("{n:06}").repeat(500)
}

#[tokio::test]
async fn ordinary_directories_are_followed_however_deep() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("a/b/x"), "1");
    let mut running = start(dir.path());
    running.expect("a/b/x=1").await;
    replace(&dir.path().join("a/b/x"), "2");
    running.expect("a/b/x=2").await;
    write(dir.path().join("a/b/x"), "in place");
    running.expect_in_the_end("a/b/x=in place").await;
    fs::remove_file(dir.path().join("a/b/x")).unwrap();
    running.expect("").await;
    // Written into directories that nobody could watch before they were there.
    for n in 0..50 {
        write(dir.path().join(format!("new/{n}/deep/x")), "1");
        running.expect_in_the_end(&format!("new/{n}/deep/x=1")).await;
        replace(&dir.path().join(format!("new/{n}/deep/x")), "2");
        running.expect_in_the_end(&format!("new/{n}/deep/x=2")).await;
        fs::remove_dir_all(dir.path().join("new")).unwrap();
        running.expect_in_the_end("").await;
    }
}

#[tokio::test]
async fn volumes_below_an_ordinary_directory_are_followed() {
    let dir = TempDir::new().unwrap();
    let mut volume = Volume::new(dir.path().join("deep/v"), &[("a", "1")]);
    let mut running = start(dir.path());
    running.expect("deep/v/a=1").await;
    volume.swap(&[("a", "2")]);
    running.expect("deep/v/a=2").await;
}

#[tokio::test]
async fn a_file_is_followed_in_a_volume_and_in_place_and_by_rename() {
    let dir = TempDir::new().unwrap();
    let mut volume = Volume::new(dir.path().join("v"), &[("a", "1"), ("b", "1")]);
    let mut running = start(volume.path.join("a"));
    running.expect("a=1").await;
    volume.swap(&[("a", "1"), ("b", "2")]);
    volume.swap(&[("a", "2"), ("b", "2")]);
    running.expect("a=2").await;

    let file = dir.path().join("plain");
    write(file.clone(), "1");
    let mut running = start(&file);
    running.expect("plain=1").await;
    fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"+"))
        .unwrap();
    running.expect("plain=1+").await;
    replace(&file, "2");
    running.expect("plain=2").await;
    fs::remove_file(&file).unwrap();
    running.expect("-").await;
    replace(&file, "3");
    running.expect("plain=3").await;
}

#[tokio::test]
async fn a_directory_deleted_and_made_again_is_followed() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("conf");
    write(path.join("x"), "0");
    // A trailing slash must not matter.
    let mut running = start(format!("{}/", path.display()));
    running.expect("x=0").await;
    for n in 1..20 {
        fs::remove_dir_all(&path).unwrap();
        running.expect_in_the_end("-").await;
        write(path.join("x"), &n.to_string());
        running.expect_in_the_end(&format!("x={n}")).await;
    }
    // Another takes its place in one instant.
    for n in 20..40 {
        write(dir.path().join("next/x"), &n.to_string());
        let (old, next) = (dir.path().join("old"), dir.path().join("next"));
        fs::rename(&path, &old).unwrap();
        fs::rename(next, &path).unwrap();
        fs::remove_dir_all(old).unwrap();
        running.expect_in_the_end(&format!("x={n}")).await;
        replace(&path.join("x"), "then");
        running.expect("x=then").await;
    }
}

#[tokio::test]
async fn a_link_to_the_directory_is_followed_when_it_is_pointed_elsewhere() {
    let dir = TempDir::new().unwrap();
    let point = |target: &str, link: &str| {
        symlink(target, dir.path().join("..new")).unwrap();
        fs::rename(dir.path().join("..new"), dir.path().join(link)).unwrap();
    };
    for n in 0..20 {
        write(dir.path().join(format!("trees/{n}/x")), &n.to_string());
    }
    point("trees/0", "real");
    // By way of a second link, absolute, with a `..` in it.
    point(dir.path().join("trees/../real").to_str().unwrap(), "conf");
    let mut running = start(dir.path().join("conf"));
    running.expect("x=0").await;
    for n in 1..20 {
        point(&format!("trees/{n}"), "real");
        // git-sync removes the old tree at once.
        fs::remove_dir_all(dir.path().join(format!("trees/{}", n - 1))).unwrap();
        running.expect(&format!("x={n}")).await;
        replace(&dir.path().join(format!("trees/{n}/x")), "then");
        running.expect("x=then").await;
    }
    // The directory that the link names is replaced, not the link.
    fs::rename(dir.path().join("trees/19"), dir.path().join("trees/old")).unwrap();
    running.expect("-").await;
    write(dir.path().join("other/x"), "again");
    fs::rename(dir.path().join("other"), dir.path().join("trees/19")).unwrap();
    running.expect("x=again").await;
    // The outer link.
    write(dir.path().join("third/x"), "outer");
    point("third", "conf");
    running.expect("x=outer").await;
}

#[tokio::test]
async fn a_directory_that_appears_with_its_parents_is_found() {
    let dir = TempDir::new().unwrap();
    for n in 0..20 {
        let top = dir.path().join(n.to_string());
        let mut running = start(top.join("b/c/conf"));
        running.expect("-").await;
        assert_eq!(running.health().await, None);
        write(top.join("b/unrelated"), "1");
        write(top.join("b/c/conf/x"), "1");
        running.expect_in_the_end("x=1").await;
        // A parent of a parent is replaced.
        fs::rename(&top, dir.path().join("old")).unwrap();
        running.expect("-").await;
        write(dir.path().join("new/b/c/conf/x"), "2");
        fs::rename(dir.path().join("new"), &top).unwrap();
        running.expect("x=2").await;
        fs::remove_dir_all(dir.path().join("old")).unwrap();
        running.stop().await;
    }
}

#[tokio::test]
async fn trouble_is_reported_once_keeps_what_was_known_and_ends() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("conf/x"), "1");
    let roots = vec![root(0, dir.path().join("conf"))];
    let mut running = start_by(roots, Duration::from_millis(2), Inotify::new);
    running.expect("x=1").await;
    assert_eq!(running.health().await, None);
    symlink("/etc/passwd", dir.path().join("conf/evil")).unwrap();
    running.trouble("conf/evil").await;
    // The same trouble, read again and again, with other content.
    replace(&dir.path().join("conf/x"), "2");
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Another trouble, so that we see that nothing came in between.
    fs::write(dir.path().join("big"), vec![b'x'; (1 << 20) + 1]).unwrap();
    fs::remove_file(dir.path().join("conf/x")).unwrap();
    fs::rename(dir.path().join("big"), dir.path().join("conf/x")).unwrap();
    fs::remove_file(dir.path().join("conf/evil")).unwrap();
    let update = running.next().await;
    assert!(matches!(&update.seen, Seen::Trouble { message, .. } if message.contains("--max-size")), "{update:?}");
    replace(&dir.path().join("conf/x"), "2");
    running.expect("x=2").await;
    assert_eq!(running.health().await, None);
}

#[test]
fn unreadable_is_retried_without_events_or_polling() {
    let dir = TempDir::new().unwrap();
    let way = dir.path().join("way");
    write(way.join("conf/x"), "1");
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(dir.path(), 0o755);
    mode(&way, 0);
    let (troubled, trouble) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let (mode, way) = (&mode, &way);
        scope.spawn(move || {
            trouble.recv().unwrap();
            mode(way, 0o755);
        });
        as_nobody(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut running = start(way.join("conf"));
                running.trouble("fsGroup").await;
                troubled.send(()).unwrap();
                running.expect("x=1").await;
                assert_eq!(running.health().await, None);
            });
        });
    });
}

/// As if the user had all the watches that it may have.
struct Exhausted;

impl Watcher for Exhausted {
    fn new<F: EventHandler>(_: F, _: notify::Config) -> notify::Result<Self> {
        Ok(Self)
    }

    fn watch(&mut self, _: &Path, _: RecursiveMode) -> notify::Result<()> {
        Err(notify::Error::new(notify::ErrorKind::MaxFilesWatch))
    }

    fn unwatch(&mut self, _: &Path) -> notify::Result<()> {
        Err(notify::Error::watch_not_found())
    }

    fn kind() -> WatcherKind {
        WatcherKind::NullWatcher
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is an `Instance`")]
fn no_watches() -> Result<Inotify, InotifyError> {
    Ok(Inotify::of(Box::new(Exhausted)))
}

fn no_instance() -> Result<Inotify, InotifyError> {
    Err(InotifyError::Instance(Errno::EMFILE))
}

#[tokio::test]
async fn without_inotify_polling_finds_changes_and_the_log_says_so_once() {
    for (instance, sysctl) in
        [(no_instance as Instance, "fs.inotify.max_user_instances"), (no_watches, "fs.inotify.max_user_watches")]
    {
        let dir = TempDir::new().unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let subscriber = tracing_subscriber::fmt().with_writer(Arc::new(log)).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let mut volume = Volume::new(dir.path().join("v"), &[("a", "1")]);
        let roots = vec![root(0, &volume.path), root(1, dir.path().join("none"))];
        let mut running = start_by(roots, Duration::from_millis(5), instance);
        running.expect_in_the_end("a=1").await;
        for n in 2..10 {
            volume.swap(&[("a", &n.to_string())]);
            running.expect_in_the_end(&format!("a={n}")).await;
        }
        running.stop().await;
        let log = fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains(sysctl) && log.contains("--poll-interval"), "{log}");
    }
}

#[tokio::test]
async fn without_inotify_and_polling_the_source_is_in_trouble() {
    let dir = TempDir::new().unwrap();
    let mut volume = Volume::new(dir.path().join("v"), &[("a", "1")]);
    for (instance, sysctl) in
        [(no_instance as Instance, "fs.inotify.max_user_instances"), (no_watches, "fs.inotify.max_user_watches")]
    {
        volume.swap(&[("a", "1")]);
        let mut running = start_by(vec![root(0, &volume.path)], NEVER, instance);
        running.expect("a=1").await;
        let trouble = running.health().await.expect("trouble");
        assert!(trouble.contains(sysctl) && trouble.contains("--poll-interval"), "{trouble}");
        // Asked to, it reads all the same.
        volume.swap(&[("a", "2")]);
        running.refresh.send(1).unwrap();
        running.expect("a=2").await;
        running.stop().await;
    }
}

#[tokio::test]
async fn a_queue_that_overflows_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let mut volume = Volume::new(dir.path().join("v"), &[("a", "1")]);
    write(dir.path().join("noise/x"), "");
    let mut running = start_by(vec![root(0, &volume.path), root(1, dir.path().join("noise"))], NEVER, Inotify::new);
    for _ in 0..2 {
        assert_eq!(running.health().await, None);
    }
    let limit: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    // This thread is the watcher's: it takes no event meanwhile.
    for n in 0..=limit / 2 {
        let (a, b) = (dir.path().join("noise/x"), dir.path().join("noise/y"));
        if n % 2 == 0 { fs::rename(a, b) } else { fs::rename(b, a) }.unwrap();
    }
    volume.swap(&[("a", "2")]);
    while running.content().await != "a=2" {}
}

#[tokio::test]
async fn lost_events_are_read_for_at_once_and_then_ever_more_rarely() {
    let overflow = || Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan));
    let broken = || Err(notify::Error::io(std::io::Error::from_raw_os_error(5)));
    let dir = TempDir::new().unwrap();
    let (mut follower, _updates) = follower(vec![root(0, dir.path())]);
    settle(&mut follower).await;
    tokio::time::pause();
    let mut pauses = Vec::new();
    for lost in [overflow(), broken(), overflow(), overflow()] {
        follower.inotify.as_ref().unwrap().put(lost);
        while follower.overflow.due.is_none() {
            follower.wake(happened(&follower.inotify).await);
        }
        pauses.push(follower.timer().expect("a read is planned") - Instant::now());
        tokio::time::advance(pauses.last().copied().unwrap()).await;
        follower.wake_timers();
        assert!(follower.roots[0].due);
        follower.roots[0].due = false;
    }
    assert_eq!(pauses, [0, 1, 2, 4].map(Duration::from_secs));
    tokio::time::advance(Duration::from_mins(1)).await;
    follower.inotify.as_ref().unwrap().put(overflow());
    while follower.overflow.due.is_none() {
        follower.wake(happened(&follower.inotify).await);
    }
    assert_eq!(follower.timer(), Some(Instant::now()));
}

#[tokio::test]
async fn more_events_than_are_kept_lead_to_a_read() {
    let dir = TempDir::new().unwrap();
    let (mut follower, _updates) = follower(vec![root(0, dir.path())]);
    settle(&mut follower).await;
    let inotify = Arc::clone(follower.inotify.as_ref().unwrap());
    for n in 0..100_000 {
        inotify.put(Ok(Event::new(EventKind::Any).add_path(format!("/elsewhere/{n}").into())));
    }
    let happened = happened(&follower.inotify).await;
    assert!(happened.paths.len() < 10_000, "{}", happened.paths.len());
    follower.wake(happened);
    assert!(follower.roots[0].due);
}

#[tokio::test]
async fn reads_and_unfinished_writes_wake_nobody() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("conf/sub/x"), "1");
    write(dir.path().join("y"), "1");
    let (mut follower, _updates) = follower(vec![root(0, dir.path().join("conf")), root(1, dir.path().join("y"))]);
    settle(&mut follower).await;
    catch_up(&mut follower, dir.path()).await;
    settle(&mut follower).await;
    let mut open = fs::File::options().append(true).open(dir.path().join("conf/sub/x")).unwrap();
    std::io::Write::write_all(&mut open, b"half a line").unwrap();
    for _ in 0..3 {
        follower.wake_all();
        settle(&mut follower).await;
    }
    assert_eq!(catch_up(&mut follower, dir.path()).await, HashSet::new());
    assert!(follower.roots.iter().all(|root| !root.due));
    drop(open);
    assert!(catch_up(&mut follower, dir.path()).await.contains(&dir.path().join("conf/sub/x")));
    assert!(follower.roots[0].due && !follower.roots[1].due);
}

#[tokio::test]
async fn roots_are_kept_apart_even_if_they_share_directories() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("a/x"), "1");
    write(dir.path().join("b/x"), "1");
    let roots = vec![root(0, dir.path().join("a")), root(7, dir.path().join("b")), root(9, dir.path())];
    let mut running = start_by(roots, NEVER, Inotify::new);
    for n in 2..20 {
        replace(&dir.path().join("b/x"), &n.to_string());
        running.refresh.send(n).unwrap();
        let mut expected = vec![(7, format!("x={n}")), (9, format!("a/x=1 b/x={n}"))];
        if n == 2 {
            expected.push((0, "x=1".into()));
        }
        while !expected.is_empty() {
            let update = running.next().await;
            if let Seen::All(objects) = update.seen {
                assert!(n == 2 || update.source != 0, "a has not changed");
                expected.retain(|wanted| *wanted != (update.source, text(&objects)));
            }
        }
    }
}

/// A follower whose steps the test takes itself.
fn follower(roots: Vec<Root>) -> (Follower, mpsc::Receiver<Update>) {
    let (sender, updates) = mpsc::channel(64);
    let config = Config { roots, poll_interval: NEVER, max_size: 1 << 20, debounce: Duration::ZERO };
    let mut follower = Follower::new(config, sender);
    follower.open_inotify(Inotify::new);
    (follower, updates)
}

/// Reads until nothing is due.
async fn settle(follower: &mut Follower) {
    follower.start_reads();
    while let Some(read) = follower.reads.join_next().await {
        follower.report(read.unwrap()).await.unwrap();
        follower.start_reads();
    }
}

/// Takes in all that happened so far: events come in order. Something of this directory must be watched.
async fn catch_up(follower: &mut Follower, dir: &Path) -> HashSet<PathBuf> {
    let last = TempDir::with_prefix_in("..last", dir).unwrap();
    let mut paths = HashSet::new();
    while !paths.contains(last.path()) {
        let happened = timeout(DEADLINE, happened(&follower.inotify)).await.expect("an event");
        paths.extend(happened.paths.iter().cloned());
        follower.wake(happened);
    }
    paths.retain(|path| {
        path.parent() != Some(dir) || !path.file_name().unwrap().as_encoded_bytes().starts_with(b"..last")
    });
    paths
}

#[tokio::test]
async fn a_root_rests_after_a_read_but_no_longer_than_the_debounce() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("x"), "1");
    for debounce in [Duration::from_hours(1), Duration::ZERO] {
        tokio::time::pause();
        let (mut follower, _updates) = follower(vec![root(0, dir.path())]);
        follower.debounce = debounce;
        follower.start_reads();
        let read = follower.reads.join_next().await.unwrap().unwrap();
        let rest = if debounce.is_zero() { debounce } else { read.took * REST };
        assert!(!read.took.is_zero());
        follower.report(read).await.unwrap();
        follower.wake_all();
        if !rest.is_zero() {
            follower.start_reads();
            assert!(follower.reads.is_empty());
            assert_eq!(follower.timer(), Some(Instant::now() + rest));
            tokio::time::advance(rest).await;
        }
        follower.start_reads();
        assert_eq!(follower.reads.len(), 1);
        assert_eq!(follower.timer(), None);
        tokio::time::resume();
    }
}

#[tokio::test]
async fn an_event_reads_what_has_changed_and_a_poll_reads_everything() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("same"), "1");
    let (mut follower, mut updates) = follower(vec![root(0, dir.path())]);
    let deadline = Instant::now() + DEADLINE;
    // Until its time is long enough ago.
    while follower.roots[0].stamps.is_empty() {
        assert!(Instant::now() < deadline);
        follower.wake_all();
        settle(&mut follower).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut places = Vec::new();
    for (n, poll) in [(1, false), (2, false), (3, true)] {
        replace(&dir.path().join("edited"), &n.to_string());
        follower.roots[0].due = true;
        if poll {
            follower.wake_all();
        }
        settle(&mut follower).await;
        while let Ok(update) = updates.try_recv() {
            if let Seen::All(objects) = update.seen {
                let object = objects.values().next().unwrap().clone();
                let place = object.data["same"].read().unwrap().as_ptr();
                places.push((object, place));
            }
        }
        let object = &places.last().unwrap().0;
        assert_eq!(object.data["edited"].read().unwrap(), n.to_string());
    }
    let [.., first, second, polled] = &places[..] else { panic!("{} contents", places.len()) };
    assert!(first.1 == second.1 && second.1 != polled.1);
}

#[tokio::test]
async fn roots_that_do_not_fit_together_are_named_and_one_of_them_is_read() {
    let dir = TempDir::new().unwrap();
    let roots: Vec<_> = (0..6).map(|n| root(n, dir.path().join(n.to_string()))).collect();
    for root in &roots {
        for n in 0..60 {
            write(root.path.join(n.to_string()), &"x".repeat(16 << 10));
        }
    }
    let mut running = start_by(roots.clone(), NEVER, Inotify::new);
    let mut states = BTreeMap::new();
    let is_over = |states: &BTreeMap<usize, String>| {
        states.len() == 6 && states.values().filter(|state| *state == "whole").count() == 1
    };
    while !is_over(&states) {
        let update = running.next().await;
        match update.seen {
            Seen::All(objects) => {
                assert_eq!(objects.values().next().unwrap().data.len(), 60);
                states.insert(update.source, "whole".to_owned());
            }
            Seen::Trouble { message, .. } => {
                assert!(message.contains("together") && message.contains("--max-size"), "{message}");
                states.insert(update.source, message);
            }
            _ => {}
        }
    }
    let (holder, _) = states.iter().find(|(_, state)| *state == "whole").unwrap();
    let holder = roots[*holder].path.clone();
    let named = |state: &String| state == "whole" || state.contains(&format!("{holder:?}"));
    assert!(states.values().all(named), "{states:?}");
    // Its place becomes free.
    fs::remove_dir_all(&holder).unwrap();
    running.refresh.send(1).unwrap();
    while !matches!(running.next().await.seen, Seen::All(objects) if !objects.is_empty()) {}
}

#[tokio::test]
async fn roots_that_lack_room_are_read_one_after_the_other() {
    let dir = TempDir::new().unwrap();
    let (mut follower, _updates) = follower((0..3).map(|n| root(n, dir.path())).collect());
    for root in &mut follower.roots[1..] {
        root.crowded = true;
    }
    follower.start_reads();
    follower.start_reads();
    assert_eq!(follower.reads.len(), 2);
    settle(&mut follower).await;
    assert!(follower.roots.iter().all(|root| root.healthy));
}

/// Never answers, as a file system that hangs.
#[derive(Debug)]
struct Hung(std::sync::mpsc::Receiver<()>);

impl Watcher for Hung {
    fn new<F: EventHandler>(_: F, _: notify::Config) -> notify::Result<Self> {
        unreachable!()
    }

    fn watch(&mut self, _: &Path, _: RecursiveMode) -> notify::Result<()> {
        let _ = self.0.recv();
        Ok(())
    }

    fn unwatch(&mut self, _: &Path) -> notify::Result<()> {
        Ok(())
    }

    fn kind() -> WatcherKind {
        WatcherKind::Inotify
    }
}

/// In a pool of one thread, which publishes.
#[test]
fn directories_that_hang_leave_the_pool_to_others() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
    runtime.unwrap().block_on(async {
        let dir = TempDir::new().unwrap();
        let (mut follower, _updates) = follower((0..3).map(|n| root(n, dir.path())).collect());
        let (release, hung) = std::sync::mpsc::channel();
        follower.inotify = Ok(Arc::new(Inotify::of(Box::new(Hung(hung)))));
        follower.start_reads();
        tokio::task::yield_now().await;
        follower.wake_all();
        follower.start_reads();
        assert_eq!(follower.reads.len(), 3, "one read of each at most");
        let published = timeout(Duration::from_secs(30), spawn_blocking(|| ()));
        published.await.expect("a thread of the pool is left").unwrap();
        drop(release);
        while follower.reads.join_next().await.is_some() {}
    });
}

/// With a pool of one thread, which somebody else has.
#[test]
fn what_is_small_and_on_the_node_is_read_at_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
    runtime.unwrap().block_on(async {
        let dir = TempDir::new_in("/dev/shm").unwrap();
        let mut volume = Volume::new(dir.path().join("v"), &[("a", "1")]);
        let mut running = start(&volume.path);
        running.expect("a=1").await;
        let (release, held) = std::sync::mpsc::channel::<()>();
        let pool = spawn_blocking(move || held.recv());
        volume.swap(&[("a", "2")]);
        running.expect("a=2").await;
        drop(release);
        pool.await.unwrap().unwrap_err();
        running.stop().await;
    });
}

#[tokio::test]
async fn what_is_large_or_may_be_far_away_is_read_apart() {
    let dir = TempDir::new_in("/dev/shm").unwrap();
    let most = usize::try_from(QUICK).unwrap() - "x".len();
    write(dir.path().join("small/x"), &"x".repeat(most));
    write(dir.path().join("large/x"), &"x".repeat(most + 1));
    let here = |name: &str| dir.path().join(name);
    for (path, quick) in [
        (here("small"), true),
        (here("large"), false),
        (here("missing"), false),
        ("/proc/sys/kernel/ostype".into(), false),
    ] {
        let (mut follower, _updates) = follower(vec![root(0, &path)]);
        settle(&mut follower).await;
        assert_eq!(follower.roots[0].quick, quick, "{}", path.display());
    }
}

#[tokio::test]
async fn watches_that_are_needed_no_more_are_removed() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("conf/keep/x"), "1");
    let (mut follower, _updates) = follower(vec![root(0, dir.path().join("conf"))]);
    settle(&mut follower).await;
    let inode = format!("ino:{:x} ", fs::metadata(dir.path().join("conf/keep")).unwrap().ino());
    // Which descriptor is notify's, it does not say: that with a watch of this directory.
    let held = |_: &Follower| {
        let tables = fs::read_dir("/proc/self/fdinfo").unwrap();
        let tables = tables.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
        let table = tables.filter(|table| table.contains("inotify") && table.contains(&inode)).last();
        table.expect("it is watched").lines().filter(|line| line.starts_with("inotify")).count()
    };
    let before = held(&follower);
    write(dir.path().join("conf/sub/deep/x"), "1");
    follower.wake_all();
    settle(&mut follower).await;
    assert_eq!(held(&follower), before + 2);
    // Moved away, not deleted: the kernel keeps such a watch.
    fs::rename(dir.path().join("conf/sub"), dir.path().join("away")).unwrap();
    follower.wake_all();
    settle(&mut follower).await;
    assert_eq!(held(&follower), before);
    // A failed read may not have come as far as `keep`.
    symlink("/", dir.path().join("conf/evil")).unwrap();
    symlink("/", dir.path().join("conf/keep/evil")).unwrap();
    follower.wake_all();
    settle(&mut follower).await;
    assert!(!follower.roots[0].healthy);
    assert_eq!(held(&follower), before);
}

#[tokio::test]
async fn a_directory_watched_only_after_its_read_is_read_again() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("sub/x"), "1");
    let (mut follower, _updates) = follower(vec![root(0, dir.path())]);
    follower.start_reads();
    let read = follower.reads.join_next().await.unwrap().unwrap();
    follower.report(read).await.unwrap();
    assert!(follower.roots[0].due);
    settle(&mut follower).await;
    assert!(!follower.roots[0].due);
}

#[tokio::test]
async fn events_for_what_a_read_in_flight_found_are_not_lost() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    for n in 1..=3 {
        write(at(&format!("tree{n}/x")), &n.to_string());
    }
    symlink("tree1", at("conf")).unwrap();
    let (mut follower, _updates) = follower(vec![root(0, at("conf"))]);
    settle(&mut follower).await;
    symlink("tree2", at("new")).unwrap();
    fs::rename(at("new"), at("conf")).unwrap();
    catch_up(&mut follower, dir.path()).await;
    follower.start_reads();
    let read = follower.reads.join_next().await.unwrap().unwrap();
    // It has read, and we do not know yet what it watches.
    fs::rename(at("tree2"), at("old")).unwrap();
    fs::rename(at("tree3"), at("tree2")).unwrap();
    catch_up(&mut follower, dir.path()).await;
    assert!(!follower.roots[0].due);
    follower.report(read).await.unwrap();
    assert!(follower.roots[0].due);
}

/// It is the same directory, and notify has dropped its watch.
#[tokio::test]
async fn a_directory_that_was_away_for_a_moment_is_watched_again() {
    let dir = TempDir::new().unwrap();
    let (conf, away) = (dir.path().join("conf"), dir.path().join("away"));
    write(conf.join("x"), "1");
    let (mut follower, _updates) = follower(vec![root(0, &conf)]);
    settle(&mut follower).await;
    fs::rename(&conf, &away).unwrap();
    fs::rename(&away, &conf).unwrap();
    catch_up(&mut follower, dir.path()).await;
    settle(&mut follower).await;
    replace(&conf.join("x"), "2");
    catch_up(&mut follower, dir.path()).await;
    assert!(follower.roots[0].due);
}

#[tokio::test]
async fn a_root_on_the_way_to_another_stays_watched_as_a_root() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("x"), "1");
    let (mut follower, _updates) = follower(vec![root(0, dir.path()), root(1, dir.path().join("sub"))]);
    follower.roots[1].due = false;
    settle(&mut follower).await;
    follower.roots[1].due = true;
    settle(&mut follower).await;
    write(dir.path().join("x"), "written in place");
    while !follower.roots[0].due {
        let happened = timeout(DEADLINE, happened(&follower.inotify)).await.expect("an event");
        follower.wake(happened);
    }
    assert!(follower.roots[0].due && !follower.roots[1].due);
}

/// Runs a test again, by its name here, in a mount namespace of its own; says whether we are in that.
fn in_own_mounts(name: &str) -> bool {
    const INNER: &str = "TRIMTAB_TEST_MOUNTS";
    if std::env::var_os(INNER).is_some() {
        return true;
    }
    let run = |command: &str| {
        let mut unshare = std::process::Command::new("unshare");
        unshare.args(["--mount", command]).env(INNER, "1");
        unshare
    };
    let allowed = run("true").status().is_ok_and(|status| status.success());
    assert!(allowed, "this test needs a mount namespace of its own: run it as root, as in a container");
    let exe = std::env::current_exe().unwrap();
    let name = format!("source::files::watch::tests::{name}");
    let output = run(exe.to_str().unwrap()).args(["--exact", &name]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

fn bind_mount(from: &Path, to: &Path) {
    let status = std::process::Command::new("mount").arg("--bind").arg(from).arg(to).status();
    assert!(status.unwrap().success());
}

/// One directory at two paths is one to inotify, and notify knows its events by the last path alone.
#[tokio::test]
async fn roots_that_are_one_directory_by_two_mounts_both_see_its_changes() {
    if !in_own_mounts("roots_that_are_one_directory_by_two_mounts_both_see_its_changes") {
        return;
    }
    let dir = TempDir::new().unwrap();
    write(dir.path().join("real/x"), "1");
    let paths = ["one", "two"].map(|name| dir.path().join(name));
    for path in &paths {
        fs::create_dir(path).unwrap();
        bind_mount(&dir.path().join("real"), path);
    }
    let mut running = start_by(vec![root(0, &paths[0]), root(1, &paths[1])], NEVER, Inotify::new);
    for n in 2..20 {
        replace(&dir.path().join("real/x"), &n.to_string());
        let mut expected = vec![0, 1];
        while !expected.is_empty() {
            let update = running.next().await;
            if matches!(&update.seen, Seen::All(objects) if text(objects) == format!("x={n}")) {
                expected.retain(|source| *source != update.source);
            }
        }
    }
}

/// An unmount ends watches without an event, and what is mounted next can have the same device and inode.
#[tokio::test]
async fn what_is_mounted_in_place_of_another_is_followed_after_the_next_poll() {
    if !in_own_mounts("what_is_mounted_in_place_of_another_is_followed_after_the_next_poll") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let run = |program: &str, args: &[&str]| {
        let status = std::process::Command::new(program).args(args).arg(root).status();
        assert!(status.unwrap().success());
        let found = fs::metadata(root).unwrap();
        (found.dev(), found.ino())
    };
    let first = run("mount", &["-t", "tmpfs", "none"]);
    write(root.join("x"), "1");
    let mut running = start(root);
    running.expect("x=1").await;
    run("umount", &[]);
    assert_eq!(run("mount", &["-t", "tmpfs", "none"]), first);
    write(root.join("x"), "2");
    running.refresh.send(1).unwrap();
    running.expect("x=2").await;
    replace(&root.join("x"), "3");
    running.expect("x=3").await;
}

#[tokio::test]
async fn a_subpath_mount_that_the_kubelet_left_behind_is_named() {
    if !in_own_mounts("a_subpath_mount_that_the_kubelet_left_behind_is_named") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let files = |value| [("a", value), ("sub/b", value)];
    let mut volume = Volume::new(dir.path().join("v"), &files("1"));
    let data = volume.path.join("..data").canonicalize().unwrap();
    let bind = |from: &str, to: &str| {
        let to = dir.path().join(to);
        match from {
            "a" => fs::write(&to, ""),
            _ => fs::create_dir(&to),
        }
        .unwrap();
        bind_mount(&data.join(from), &to);
        to
    };
    let mut file = start(bind("a", "file mount"));
    let mut directory = start(bind("sub", "directory"));
    file.expect("file mount=1").await;
    directory.expect("b=1").await;
    for running in [&mut file, &mut directory] {
        let warning = running.warning().await;
        assert!(warning.contains("subPath") && warning.contains("restart"), "{warning}");
        assert_eq!(running.health().await, None);
    }
    // Whatever is read later, it is not said again.
    for (key, running, content) in [("a", &mut file, "file mount=new"), ("sub/b", &mut directory, "b=new")] {
        fs::write(data.join(key), "new").unwrap();
        let update = running.next().await;
        assert!(matches!(&update.seen, Seen::All(objects) if text(objects) == content), "{update:?}");
    }
    volume.swap(&files("2"));
    let update = file.next().await;
    assert!(matches!(&update.seen, Seen::Trouble { message, .. } if message.contains("subPath")), "{update:?}");
    let update = directory.next().await;
    assert!(matches!(&update.seen, Seen::Trouble { message, .. } if message.contains("subPath")), "{update:?}");
}
