//! `--archive`: a real nginx that takes uploads, one that does not, and kills on the way.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use serde_json::Value;

use super::support::apiserver::{ADMIN, ApiServer};
use super::support::child::Running;
use super::support::nginx;
use super::support::port::free_port;
use super::support::relay::{self, Way};
use super::support::scene::{Layout, Scene};
use super::support::sidecar::{Sidecar, eventually, output_of, run, trimtab};

/// An nginx that takes bundles, to whoever has the credential, and none while the file `full` is there.
struct Store {
    // It ends before its folder goes.
    _running: Running,
    scene: Scene,
    port: u16,
}

impl Store {
    fn start() -> Self {
        let (scene, port) = (Scene::new(), free_port());
        fs::create_dir(scene.at("www")).unwrap();
        fs::write(scene.at("credential"), "Bearer canary").unwrap();
        let more = format!(
            "dav_methods PUT; create_full_put_path on; client_max_body_size 0;
            if ($http_authorization != 'Bearer canary') {{ return 403; }}
            if (-f {}/full) {{ return 507; }}
            set $there $http_if_none_match;
            if (-f $request_filename) {{ set $there \"$there.there\"; }}
            if ($there = '*.there') {{ return 412; }}",
            scene.text("")
        );
        let running = nginx::start(&scene, port, "$request_method $uri $status", &more);
        Self { scene, port, _running: running }
    }

    /// Flags for an archive there.
    fn flags(&self) -> Vec<String> {
        self.flags_by(self.port)
    }

    /// The same by another port that leads there.
    fn flags_by(&self, port: u16) -> Vec<String> {
        let header = format!("archive=Authorization: @{}", self.scene.text("credential"));
        let url = format!("http://127.0.0.1:{port}/shop/web?token=canary");
        ["--archive".to_owned(), url, "--url-header".to_owned(), header].into()
    }

    /// Flags for a start from the newest bundle there.
    fn fallback(&self) -> [String; 6] {
        let url = format!("http://127.0.0.1:{}/shop/web/latest.tar.gz", self.port);
        let credential = format!("fallback=Authorization: @{}", self.scene.text("credential"));
        ["--fallback-url", &url, "--fallback-after", "10ms", "--url-header", &credential].map(str::to_owned)
    }

    /// Each upload with its status.
    fn uploads(&self) -> Vec<String> {
        let log = fs::read_to_string(self.scene.at("access.log")).unwrap_or_default();
        log.lines().filter(|line| line.starts_with("PUT")).map(str::to_owned).collect()
    }

    /// How often something was asked for.
    fn downloads(&self) -> usize {
        let log = fs::read_to_string(self.scene.at("access.log")).unwrap_or_default();
        log.lines().filter(|line| line.starts_with("GET")).count()
    }

    /// The bundles and the bytes of each, by their names.
    fn bundles(&self) -> BTreeMap<String, Vec<u8>> {
        let Ok(entries) = fs::read_dir(self.scene.at("www/shop/web")) else { return BTreeMap::new() };
        let entries = entries.map(|entry| entry.unwrap());
        entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
    }

    /// The files of the newest bundle.
    fn latest(&self) -> BTreeMap<String, String> {
        let path = self.scene.text("www/shop/web/latest.tar.gz");
        let Ok(file) = fs::File::open(path) else { return BTreeMap::new() };
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(file));
        let mut files = BTreeMap::new();
        for entry in tar.entries().unwrap() {
            // It may be replaced by a shorter one only by a rename.
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            files.insert(entry.path().unwrap().to_str().unwrap().to_owned(), text);
        }
        files
    }
}

fn map(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

/// Writes a file as a whole.
fn put(scene: &Scene, path: &str, content: &str) {
    let at = scene.at(path);
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::write(scene.at("new"), content).unwrap();
    fs::rename(scene.at("new"), at).unwrap();
}

fn archived(sidecar: &Sidecar, sequence: u64) -> Value {
    sidecar.until(&format!("generation {sequence} is archived"), |status| {
        status["archive"]["archived"]["sequence"] == sequence && status["archive"]["pending"].is_null()
    })
}

fn flags(store: &Store, scene: &Scene, more: &[&str]) -> Vec<String> {
    let mut flags = store.flags();
    flags.extend(["--watch-dir".to_owned(), scene.text("in"), "--debounce".to_owned(), "10ms".to_owned()]);
    flags.extend(more.iter().map(|flag| (*flag).to_owned()));
    flags
}

#[test]
fn each_confirmed_generation_is_kept_once_and_the_newest_is_the_latest() {
    for layout in Layout::ALL {
        let store = Store::start();
        let scene = Scene::of(layout);
        put(&scene, "in/a.conf", "1");
        put(&scene, "in/below/b.conf", "b");
        let flags = flags(&store, &scene, &["--path", "{key}"]);
        let mut sidecar = scene.start(&flags);
        let status = archived(&sidecar, 1);
        assert_eq!(store.latest(), map(&[("a.conf", "1"), ("below/b.conf", "b")]));
        let bundles = store.bundles();
        let name = status["archive"]["archived"]["name"].as_str().unwrap().to_owned();
        assert_eq!(bundles.len(), 2, "{:?}", bundles.keys());
        assert_eq!(bundles[&name], bundles["latest.tar.gz"]);
        // Its name is the digest of the tar archive.
        let unpacked = scene.at("latest.tar");
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&bundles[&name][..]).read_to_end(&mut tar).unwrap();
        fs::write(&unpacked, tar).unwrap();
        let sum = output_of(Command::new("sha256sum").arg(unpacked));
        assert_eq!(String::from_utf8(sum.stdout).unwrap().split(' ').next().unwrap(), name.replace(".tar.gz", ""));

        put(&scene, "in/a.conf", "2");
        archived(&sidecar, 2);
        assert_eq!(store.latest()["a.conf"], "2");
        // The same content: the same bundle, which is there.
        put(&scene, "in/a.conf", "1");
        archived(&sidecar, 3);
        assert_eq!(store.bundles().len(), 3);
        assert_eq!(store.bundles()[&name], bundles[&name]);
        assert!(store.uploads()[4].ends_with(" 412"), "{:?}", store.uploads());
        assert_eq!(store.latest()["a.conf"], "1");

        // After a restart all is known.
        let uploads = store.uploads();
        sidecar.until_idle();
        sidecar.kill();
        sidecar.start_again();
        let status = archived(&sidecar, 3);
        sidecar.until_idle();
        put(&scene, "in/a.conf", "4");
        archived(&sidecar, 4);
        assert_eq!(store.uploads().len(), uploads.len() + 2, "{status}: {:?}", store.uploads());
        let (_, metrics) = sidecar.request("--listen", "GET", "/metrics").unwrap();
        assert!(metrics.contains("trimtab_archive_pending 0\n"), "{metrics}");
        let said = sidecar.log()
            + &status.to_string()
            + &fs::read_to_string(scene.output.join("..trimtab/private/archived.json")).unwrap();
        assert!(!said.contains("canary"), "{said}");
        assert_eq!(sidecar.terminate(), Some(0));
    }
}

#[test]
fn store_that_refuses_holds_nothing_up_and_gets_the_newest_when_it_works_again() {
    let store = Store::start();
    fs::write(store.scene.at("full"), "").unwrap();
    let scene = Scene::new();
    put(&scene, "in/a.conf", "1");
    let sidecar = scene.start(&flags(&store, &scene, &["--retry-min", "20ms", "--retry-max", "50ms"]));
    let failed = |sequence: u64| {
        sidecar.until("the archive fails", |status| {
            let archive = &status["archive"];
            archive["pending"] == sequence
                && archive["problem"]["message"].as_str().is_some_and(|it| it.contains("507"))
        })
    };
    let status = failed(1);
    assert_eq!(status["verdict"]["state"], "in-effect", "{status}");
    let (_, metrics) = sidecar.request("--listen", "GET", "/metrics").unwrap();
    assert!(metrics.contains("trimtab_archive_pending 1\n"), "{metrics}");
    let admin = sidecar.address("--admin").to_string();
    let (_, text) = run(trimtab().args(["status", "--admin", &admin]));
    assert!(text.contains("generation 1 is not archived since") && text.contains("its disk is full"), "{text}");
    let (_, page) = sidecar.request("--admin", "GET", "/").unwrap();
    assert!(page.contains("<th>Archive</th><td class=\"bad\">"), "{page}");
    eventually("it is tried again and again", || (store.uploads().len() > 5).then_some(()));
    put(&scene, "in/a.conf", "2");
    put(&scene, "in/a.conf", "3");
    eventually("the change goes its way", || (scene.published("a.conf").as_deref() == Some("3")).then_some(()));
    let newest = sidecar.until_idle()["confirmed"]["sequence"].as_u64().unwrap();
    failed(newest);
    fs::remove_file(store.scene.at("full")).unwrap();
    archived(&sidecar, newest);
    assert_eq!(store.latest(), map(&[("a.conf", "3")]));
    assert_eq!(store.bundles().len(), 2, "what was older is not archived any more");
    let log = sidecar.log();
    assert_eq!(log.matches("attempts go on").count(), 1, "{log}");
    assert_eq!(log.matches("the archive works again").count(), 1, "{log}");
    assert!(!log.contains("canary"), "{log}");
}

#[test]
fn what_a_secret_went_into_is_archived_only_where_that_is_asked_for() {
    let store = Store::start();
    let scene = Scene::new();
    put(&scene, "in/a.conf", "hidden-canary");
    let flags = flags(&store, &scene, &["--secret-dir", "in"]);
    let sidecar = scene.start(&flags);
    let status = sidecar.until("it is withheld", |status| status["archive"]["withheld"].is_string());
    assert!(status["archive"]["pending"].is_null(), "{status}");
    put(&scene, "in/a.conf", "hidden-canary-2");
    sidecar.until("the next one is confirmed", |status| status["confirmed"]["sequence"] == 2);
    sidecar.until_idle();
    assert_eq!(sidecar.log().matches("is not archived: a secret went into it").count(), 1, "{}", sidecar.log());
    assert!(store.uploads().is_empty(), "{:?}", store.uploads());
    drop(sidecar);
    // What an earlier life has published is secret as soon as its inputs are seen, and not before.
    let sidecar = scene.start(&[flags, vec!["--archive-secrets".to_owned()]].concat());
    let status = archived(&sidecar, 2);
    assert_eq!(store.latest(), map(&[("a.conf", "hidden-canary-2")]));
    // Its name lets nobody test guesses.
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&store.bundles()["latest.tar.gz"][..]).read_to_end(&mut tar).unwrap();
    fs::write(scene.at("latest.tar"), tar).unwrap();
    let sum = output_of(Command::new("sha256sum").arg(scene.at("latest.tar")));
    let plain = String::from_utf8(sum.stdout).unwrap().split(' ').next().unwrap().to_owned();
    assert!(!store.bundles().contains_key(&format!("{plain}.tar.gz")), "{status}");
}

#[test]
fn kill_on_the_way_loses_no_upload() {
    for point in ["packed", "uploaded", "archived"] {
        let store = Store::start();
        let scene = Scene::new();
        put(&scene, "in/a.conf", "1");
        let flags = scene.flags(&flags(&store, &scene, &[]));
        let mut sidecar = Sidecar::start_with(&scene.at("log"), &[("TRIMTAB_TEST_KILL", point)], &flags);
        eventually("it is killed", || sidecar.has_ended().then_some(()));
        assert_eq!(scene.published("a.conf").as_deref(), Some("1"), "{point}: it was confirmed before");
        let sidecar = Sidecar::start(&scene.at("log"), &flags);
        archived(&sidecar, 1);
        assert_eq!(store.latest(), map(&[("a.conf", "1")]), "{point}");
        assert_eq!(store.bundles().len(), 2, "{point}");
        sidecar.until_idle();
        // What the disk has last of the journal is written beside the work, and may have been cut off.
        eventually("nothing is left behind", || scene.left_behind().is_empty().then_some(()));
    }
}

#[test]
fn kill_in_the_middle_of_an_upload_leaves_nothing_torn() {
    let large: String = std::iter::successors(Some(1_u32), |noise| Some(noise.wrapping_mul(1_664_525).wrapping_add(7)))
        .map(|noise| char::from(b'0' + (noise >> 26) as u8))
        .take(300_000)
        .collect();
    for upload in ["the bundle", "latest.tar.gz"] {
        let (store, scene) = (Store::start(), Scene::new());
        let holds = Arc::new(AtomicBool::new(false));
        let (is_held, held) = mpsc::channel();
        let (does_hold, is_latest) = (holds.clone(), upload == "latest.tar.gz");
        let port = relay::start(store.port, move |head| {
            let is_it = head.starts_with("PUT") && head.contains("/latest.tar.gz") == is_latest;
            if !is_it || !does_hold.load(Ordering::SeqCst) {
                return Way::Through;
            }
            let is_held = is_held.clone();
            Way::Held(100_000, Box::new(move || is_held.send(()).unwrap()))
        });
        put(&scene, "in/a.conf", "1");
        let mut flags = store.flags_by(port);
        flags.extend(["--watch-dir".to_owned(), scene.text("in"), "--debounce=10ms".to_owned()]);
        let mut sidecar = Sidecar::start(&scene.at("log"), scene.flags(&flags));
        archived(&sidecar, 1);
        let before = store.bundles();
        holds.store(true, Ordering::SeqCst);
        put(&scene, "in/a.conf", &large);
        held.recv_timeout(Duration::from_mins(1)).unwrap();
        assert!(scene.published("a.conf").as_deref() == Some(&large), "{upload}: nothing waits for it");
        sidecar.kill();
        let after = store.bundles();
        assert_eq!(after["latest.tar.gz"], before["latest.tar.gz"], "{upload}");
        assert_eq!(after.len(), before.len() + usize::from(is_latest), "{upload}: {:?}", after.keys());

        holds.store(false, Ordering::SeqCst);
        sidecar.start_again();
        archived(&sidecar, 2);
        assert!(store.latest() == map(&[("a.conf", &large)]), "{upload}");
        let bundles = store.bundles();
        assert_eq!(bundles.len(), 3, "{upload}: {:?}", bundles.keys());
        assert_eq!(bundles.values().filter(|bundle| **bundle == bundles["latest.tar.gz"]).count(), 2, "{upload}");
        sidecar.until_idle();
        eventually("nothing is left behind", || scene.left_behind().is_empty().then_some(()));
    }
}

#[test]
fn what_somebody_has_changed_since_it_was_published_is_not_archived() {
    let (store, scene) = (Store::start(), Scene::new());
    put(&scene, "in/a.conf", "1");
    let flags = scene.flags(&flags(&store, &scene, &["--retry-min", "20ms", "--retry-max", "50ms"]));
    let mut sidecar = Sidecar::start_with(&scene.at("log"), &[("TRIMTAB_TEST_KILL", "packed")], &flags);
    eventually("it is killed", || sidecar.has_ended().then_some(()));
    fs::write(scene.output.join("a.conf"), "X").unwrap();
    let sidecar = Sidecar::start(&scene.at("log"), &flags);
    sidecar.until("it is not archived", |status| {
        let problem = &status["archive"]["problem"]["message"];
        problem.as_str().is_some_and(|message| message.contains("it was changed since it was published"))
    });
    assert!(store.uploads().is_empty(), "{:?}", store.uploads());
    put(&scene, "in/a.conf", "2");
    archived(&sidecar, 2);
    assert_eq!(store.latest(), map(&[("a.conf", "2")]));
}

#[test]
fn what_the_main_process_writes_is_kept_and_brought_back() {
    let store = Store::start();
    let scene = Scene::new();
    let data = scene.at("data");
    put(&scene, "data/users.json", "[1]");
    put(&scene, "data/below/x", "x");
    let observe = |log: &str| {
        let mut flags = store.flags();
        let own = [format!("--observe-dir={}", data.display()), format!("--state-dir={}", scene.text("state"))];
        flags.extend(own.into_iter().chain(["--debounce=10ms".to_owned()]));
        Sidecar::start(&scene.at(log), &flags)
    };
    let sidecar = observe("log");
    eventually("it is archived", || (store.latest() == map(&[("users.json", "[1]"), ("below/x", "x")])).then_some(()));
    put(&scene, "data/users.json", "[1,2]");
    eventually("the next one is", || (store.latest().get("users.json")? == "[1,2]").then_some(()));
    // Empty is absence. By a rename: a directory without some of its files is one of others.
    fs::rename(&data, scene.at("gone")).unwrap();
    fs::create_dir(&data).unwrap();
    sidecar.until_idle();
    drop(sidecar);
    assert_eq!(store.latest().len(), 2);

    fs::remove_dir_all(&data).unwrap();
    let credential = format!("Authorization: @{}", store.scene.text("credential"));
    let url = format!("http://127.0.0.1:{}/shop/web/latest.tar.gz", store.port);
    let output = format!("--output={}", data.display());
    let args = ["--once", "--layout=files", "--optional", "--watch-url", &url, "--url-header", &credential, &output];
    let (code, said) = run(trimtab().args(args));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::read_to_string(data.join("users.json")).unwrap(), "[1,2]");
    assert_eq!(fs::read_to_string(data.join("below/x")).unwrap(), "x");

    // The sidecar beside it goes on with what was brought back, and archives nothing but it.
    let before = store.bundles();
    let sidecar = observe("log2");
    sidecar.until("it knows", |status| status["archive"]["pending"].is_null() && status["confirmed"].is_object());
    assert_eq!(store.latest(), map(&[("users.json", "[1,2]"), ("below/x", "x")]));
    put(&scene, "data/users.json", "[3]");
    eventually("the main process goes on", || (store.latest().get("users.json")? == "[3]").then_some(()));
    assert_eq!(store.bundles().len(), before.len() + 1);
}

#[test]
fn start_without_the_sources_is_from_the_archive_until_they_answer() {
    let store = Store::start();
    let scene = Scene::new();
    put(&scene, "in/a.conf", "1");
    let sidecar = Sidecar::start(&scene.at("log"), scene.flags(&flags(&store, &scene, &[])));
    archived(&sidecar, 1);
    drop(sidecar);

    // Another node, at which nothing is published, while the source does not answer.
    let scene = Scene::new();
    let watched = ["--watch-dir".to_owned(), scene.text("in")];
    let flags = scene.flags(&[&watched[..], &store.fallback(), &store.flags()].concat());
    let sidecar = Sidecar::start(&scene.at("log2"), &flags);
    eventually("it is published", || (scene.published("a.conf").as_deref() == Some("1")).then_some(()));
    // It comes from there, and another may have put something newer in its place.
    let status = sidecar.until("it is confirmed", |status| status["confirmed"].is_object());
    let archive = &status["archive"];
    assert!(archive["pending"].is_null() && archive["archived"].is_null(), "{status}");
    let status = sidecar.until("the verdict says so", |status| {
        status["verdict"]["summary"].as_str().is_some_and(|summary| summary.contains("from --fallback-url"))
    });
    assert_eq!(status["verdict"]["state"], "stale", "{status}");
    assert_eq!(status["published"]["fallback"], true, "{status}");
    assert_eq!(status["ready"], true, "{status}");
    drop(sidecar);

    // A restart knows that it is one, and asks for none: something is published.
    let before = store.downloads();
    let sidecar = Sidecar::start(&scene.at("log3"), &flags);
    sidecar.until("the verdict says so once more", |status| {
        status["verdict"]["summary"].as_str().is_some_and(|summary| summary.contains("from --fallback-url"))
    });
    put(&scene, "in/a.conf", "1");
    let status = sidecar.until("the source holds the same", |status| status["verdict"]["state"] == "in-effect");
    assert_eq!(
        (&status["published"]["sequence"], &status["published"]["fallback"]),
        (&1.into(), &Value::Null),
        "{status}"
    );
    fs::remove_file(scene.at("in/a.conf")).unwrap();
    put(&scene, "in/b.conf", "2");
    eventually("the source takes its place", || (scene.published("b.conf").as_deref() == Some("2")).then_some(()));
    assert_eq!(scene.published("a.conf"), None);
    let status = sidecar.until("it is in effect", |status| status["verdict"]["state"] == "in-effect");
    assert!(status["published"]["fallback"].is_null(), "{status}");
    assert_eq!(store.downloads(), before);
}

#[tokio::test]
async fn start_without_the_api_server_is_from_the_archive_until_it_is_there() {
    let mut server = ApiServer::start().await;
    let namespace = server.namespace().await;
    let maps: Api<ConfigMap> = Api::namespaced(server.client(ADMIN).await, &namespace);
    let mut web = ConfigMap::default();
    web.metadata.name = Some("web".to_owned());
    web.data = Some([("a.conf".to_owned(), "1".to_owned())].into());
    maps.create(&PostParams::default(), &web).await.unwrap();
    let kubeconfig = server.kubeconfig(ADMIN);
    let source = ["--configmap", &format!("{namespace}/web"), "--kubeconfig", kubeconfig.to_str().unwrap()];
    let source = source.map(str::to_owned);
    let store = Store::start();
    let scene = Scene::new();
    let sidecar = scene.start(&[&source[..], &store.flags()].concat());
    archived(&sidecar, 1);
    drop(sidecar);
    server.kill();

    // Another node, at which nothing is published.
    let scene = Scene::new();
    let sidecar = scene.start(&[&source[..], &store.flags(), &store.fallback()].concat());
    let status = sidecar.until("it starts from the archive", |status| status["published"]["fallback"] == true);
    assert_eq!(scene.published("a.conf").as_deref(), Some("1"), "{status}");
    let status = sidecar.until("the verdict says so", |status| status["verdict"]["state"] == "stale");
    assert!(status["verdict"]["summary"].as_str().unwrap().contains("from --fallback-url"), "{status}");

    server.start_again().await;
    let status = sidecar.until("the API server has the same", |status| status["verdict"]["state"] == "in-effect");
    assert!(status["published"]["fallback"].is_null(), "{status}");
    web.data = Some([("a.conf".to_owned(), "2".to_owned())].into());
    maps.replace("web", &PostParams::default(), &web).await.unwrap();
    eventually("its edit is published", || (scene.published("a.conf").as_deref() == Some("2")).then_some(()));
    let status = sidecar.until("it is in effect", |status| status["verdict"]["state"] == "in-effect");
    assert!(status["published"]["fallback"].is_null(), "{status}");
}

#[test]
fn what_is_in_use_while_sources_hang_is_not_reported_to_be_theirs() {
    let store = Store::start();
    fs::create_dir_all(store.scene.at("www/shop")).unwrap();
    fs::write(store.scene.at("www/shop/a.conf"), "1").unwrap();
    let scene = Scene::new();
    let hangs = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let source = format!("http://{}/web.conf", hangs.local_addr().unwrap());
    let url = format!("http://127.0.0.1:{}/shop/a.conf", store.port);
    let credential = format!("fallback=Authorization: @{}", store.scene.text("credential"));
    let flags =
        ["--watch-url", &source, "--fallback-url", &url, "--fallback-after", "10ms", "--url-header", &credential];
    let sidecar = Sidecar::start(&scene.at("log"), scene.flags(&flags));
    let status = sidecar.until("it is confirmed", |status| status["confirmed"].is_object());
    let verdict = &status["verdict"];
    assert_eq!(verdict["state"], "stale", "{status}");
    assert!(verdict["summary"].as_str().unwrap().contains("from --fallback-url"), "{status}");
    assert_eq!(scene.published("a.conf").as_deref(), Some("1"));
}

#[test]
fn fallback_is_not_used_where_the_sources_answer() {
    let store = Store::start();
    fs::create_dir_all(store.scene.at("www/shop")).unwrap();
    fs::write(store.scene.at("www/shop/old.conf"), "0").unwrap();
    let scene = Scene::new();
    put(&scene, "in/a.conf", "1");
    let (watched, url) = (scene.text("in"), format!("http://127.0.0.1:{}/shop/old.conf", store.port));
    let credential = format!("fallback=Authorization: @{}", store.scene.text("credential"));
    // Long enough for a busy machine to read a directory first.
    let flags =
        ["--watch-dir", &watched, "--fallback-url", &url, "--fallback-after", "3s", "--url-header", &credential];
    let sidecar = Sidecar::start(&scene.at("log"), scene.flags(&flags));
    let began = Instant::now();
    sidecar.until_idle();
    // That it is not asked for later either.
    while began.elapsed() < Duration::from_secs(4) {
        assert_eq!(store.downloads(), 0, "{}", sidecar.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!((scene.published("a.conf").as_deref(), scene.published("old.conf")), (Some("1"), None));
}

#[test]
fn archive_that_makes_no_sense_is_refused() {
    for (flags, words) in [
        (&["--archive-secrets", "--watch-dir=/x", "--output=/y"][..], "--archive-secrets goes with --archive"),
        (
            &["--archive=ftp://b/k", "--watch-dir=/x", "--output=/y"],
            "--archive: a URL starts with http://, https://, s3://, gs:// or az://",
        ),
        (
            &[
                "--archive=http://h/",
                "--folders=/z",
                "--layout=files",
                "--path={label:x|}/{key}",
                "--watch-dir=/x",
                "--output=/y",
            ],
            "does not go with --folders",
        ),
        (&["--archive=http://u:canary@h/", "--watch-dir=/x", "--output=/y"], "must not hold credentials"),
        (&["--archive=http://h/", "--once", "--watch-dir=/x", "--output=/y"], "--once ends before"),
        (&["--archive=http://h/", "--observe-dir=/x"], "needs --state-dir"),
        (&["--archive=http://h/", "--observe-dir=/x", "--observe-dir=/z", "--state-dir=/s"], "for one --observe-dir"),
        (&["--archive=http://h/", "--secret-url=archive", "--watch-dir=/x", "--output=/y"], "nothing is read from"),
        (
            &["--archive=http://h/", "--watch-url=archive=http://h/x", "--output=/y"],
            "has the name \"archive\", which is that of --archive",
        ),
    ] {
        let (code, said) = run(trimtab().args(flags));
        assert!(code == Some(64) && said.contains(words) && !said.contains("canary"), "{flags:?}: {code:?} {said}");
    }
}
