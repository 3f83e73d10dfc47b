//! `--watch-url s3://…`: a store whose objects are swapped while they are listed, and one whose answers are cut, slow, or
//! not what it listed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;

use super::store::{Store, nothing_secret, published, source, start};
use super::support::relay::{self, Way};
use super::support::scene::Scene;

/// What both objects hold when the store gets each request: swapped between the list and the objects, and back before the
/// second list; and between the two objects.
const VERSIONS: [&str; 16] = ["1", "1", "2", "1", "3", "3", "4", "3", "5", "5", "6", "6", "7", "8", "9", "9"];

#[test]
fn objects_that_are_swapped_while_they_are_listed_are_never_published_mixed() {
    let store = Arc::new(Store::start());
    // The relay outlives the test, and the store must not.
    let (serving, mut so_far, mut there) = (Arc::downgrade(&store), 0, "");
    let port = relay::start(store.port, move |_| {
        if let Some(version) = VERSIONS.get(so_far).filter(|version| **version != there)
            && let Some(serving) = serving.upgrade()
        {
            there = version;
            for key in ["a", "b"] {
                serving.put(&format!("conf/{key}"), version);
            }
        }
        so_far += 1;
        Way::Through
    });
    let scene = Scene::new();
    let mut environment = store.environment();
    environment[0].1 = format!("http://127.0.0.1:{port}");
    let flags = ["--watch-url", "web=s3://web/conf/", "--validate", "cmp {dir}/a {dir}/b"];
    let sidecar = start(&scene, &environment, &flags);
    for key in ["a", "b"] {
        published(&scene, key, VERSIONS.last().copied());
    }
    let status = sidecar.until_idle();
    assert!(status["quarantine"].is_null() && !sidecar.log().contains("differ"), "{status}: {}", sidecar.log());
    let answers = ["a", "b"].map(|key| store.answers(&format!("/web/conf/{key}"))).concat();
    assert!(answers.iter().any(|status| status == "412"), "none was swapped before it was fetched: {answers:?}");
    nothing_secret(&sidecar);
}

/// A store with an answer to lists and one to all else, after which it closes the connection or holds it.
struct Liar {
    address: SocketAddr,
    answers: Arc<Mutex<[(String, bool); 2]>>,
}

impl Liar {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let liar = Self { address: listener.local_addr().unwrap(), answers: Arc::default() };
        let answers = liar.answers.clone();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for mut stream in listener.incoming().flatten() {
                let head: Vec<_> =
                    BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                let is_list = head.first().is_some_and(|line| line.contains("list-type=2"));
                let (answer, stays) = answers.lock().unwrap()[usize::from(!is_list)].clone();
                let _ = stream.write_all(answer.as_bytes());
                if stays {
                    kept.push(stream);
                }
            }
        });
        liar
    }

    /// An object, by what its head says and what comes then.
    fn object(&self, etag: &str, length: &str, body: &str, stays: bool) {
        self.answers.lock().unwrap()[1] = (format!("HTTP/1.1 200 OK\r\nETag: \"{etag}\"\r\n{length}\r\n{body}"), stays);
    }

    fn list(&self, etag: &str, size: usize) {
        let list = format!(
            "<ListBucketResult><Contents><Key>conf/list.txt</Key><ETag>\"{etag}\"</ETag><Size>{size}</Size></Contents>\
             </ListBucketResult>"
        );
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{list}", list.len());
        self.answers.lock().unwrap()[0] = (answer, false);
    }
}

#[test]
fn object_that_comes_in_part_late_or_of_another_length_is_not_published() {
    for url in ["s3://web/conf/list.txt", "web=s3://web/conf/"] {
        let (liar, scene) = (Liar::start(), Scene::new());
        let is_prefix = url.ends_with('/');
        liar.list("1", 4);
        liar.object("1", "Content-Length: 4\r\n", "full", false);
        let environment = [("AWS_ENDPOINT_URL", format!("http://{}", liar.address))];
        let flags = ["--watch-url", url, "--url-anonymous", "--url-timeout", "3s"];
        let sidecar = start(&scene, &environment, &flags);
        published(&scene, "list.txt", Some("full"));
        liar.list("2", 4);
        let mut cases = vec![
            ("Content-Length: 4\r\n", "ha", false, "the body broke off"),
            ("Transfer-Encoding: chunked\r\n", "2\r\nha\r\n", false, "the body broke off"),
            ("", "half", false, "neither a Content-Length nor chunks"),
            ("Content-Length: 4\r\n", "ha", true, "not all of it came within 3s"),
        ];
        if is_prefix {
            // Nobody else can see that it is not whole.
            cases.push(("Content-Length: 2\r\n", "half", false, "it changed three times"));
            cases.push(("Content-Length: 6\r\n", "longer", false, "it changed three times"));
        }
        for (length, body, stays, words) in cases {
            liar.object("2", length, body, stays);
            sidecar.signal(Signal::SIGHUP);
            sidecar.until(words, |status| source(status).contains(words));
            assert_eq!(scene.published("list.txt").as_deref(), Some("full"), "{words}");
        }
        liar.object("2", "Content-Length: 4\r\n", "next", false);
        sidecar.signal(Signal::SIGHUP);
        published(&scene, "list.txt", Some("next"));
        if !is_prefix {
            // A store whose ETag stays the same, and which sends what it has: that is what counts.
            liar.object("2", "Content-Length: 4\r\n", "last", false);
            published(&scene, "list.txt", Some("last"));
        }
    }
}
