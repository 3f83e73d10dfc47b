use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::signature::tests::{BY_OTHER, KEY, PREHASHED};
use super::*;
use crate::net::request::fetch::server::{Server, ok};

const DEADLINE: Duration = Duration::from_secs(30);
const SETTLED: &str = "ETag: \"1\"\r\n";

/// A running [`watch`].
struct Running {
    updates: mpsc::Receiver<Update>,
    refresh: channel::Sender<u64>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(server: &Server, poll: Duration) -> Self {
        let source = source(server, false);
        let config = Config { sources: vec![source.clone()], poll, timeout: DEADLINE, max_size: 64, keys: None };
        let (sender, updates) = mpsc::channel(16);
        let (refresh, refreshes) = channel::channel(0);
        let task = tokio::spawn(watch(Arc::new(config), source, None, refreshes, sender));
        Self { updates, refresh, task }
    }

    async fn next(&mut self) -> Seen {
        timeout(DEADLINE, self.updates.recv()).await.expect("an update in time").expect("it runs").seen
    }

    /// The next content; `-`: none.
    async fn content(&mut self) -> String {
        loop {
            match self.next().await {
                Seen::All(objects) => return text(&objects),
                Seen::Healthy => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn trouble(&mut self) -> String {
        loop {
            match self.next().await {
                Seen::Trouble { message, .. } => return message,
                Seen::Healthy => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn ask_at_once(&self) {
        self.refresh.send_modify(|count| *count += 1);
    }
}

fn source(server: &Server, may_be_empty: bool) -> Source {
    let endpoint = server.url("/a/list").parse().unwrap();
    Source {
        source: 0,
        name: "geo".into(),
        endpoint,
        key: "list".into(),
        prefix: None,
        http: Arc::default(),
        signed: None,
        secret: true,
        may_be_empty,
        linked: false,
    }
}

fn text(objects: &BTreeMap<ObjectRef, Arc<Object>>) -> String {
    let line = |(key, value): (&String, &Content)| format!("{key}={}", String::from_utf8_lossy(&value.read().unwrap()));
    let lines: Vec<_> = objects.values().flat_map(|object| object.data.iter().map(line)).collect();
    if lines.is_empty() { "-".to_owned() } else { lines.join(" ") }
}

async fn until_asked(server: &Server, times: usize) {
    let asked = async {
        while server.heads().len() < times {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, asked).await.expect("it asks");
}

#[tokio::test]
async fn content_comes_once_and_is_asked_for_by_its_name() {
    let server = Server::start(&ok(SETTLED, "1"));
    let mut running = Running::start(&server, Duration::from_millis(100));
    assert_eq!(running.content().await, "list=1");
    server.answer("HTTP/1.1 304 Not Modified\r\n\r\n");
    let so_far = server.heads().len();
    until_asked(&server, so_far + 2).await;
    assert!(!server.heads()[0].contains("if-none-match") && server.heads()[1].contains("if-none-match: \"1\""));
    server.answer(ok("ETag: \"2\"\r\n", "2"));
    assert_eq!(running.content().await, "list=2", "and nothing before it");
    running.task.abort();
}

#[tokio::test]
async fn name_of_a_content_does_not_outlive_it() {
    let server = Server::start(&ok(SETTLED, "1"));
    let mut running = Running::start(&server, Duration::from_millis(100));
    assert_eq!(running.content().await, "list=1");
    // It is gone, and the receiver may let it go: then it must be fetched whole again.
    server.answer("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(running.content().await, "-");
    let so_far = server.heads().len();
    until_asked(&server, so_far + 1).await;
    assert!(!server.heads()[so_far].contains("if-none-match"), "{}", server.heads()[so_far]);
    server.answer(ok(SETTLED, "1"));
    assert_eq!(running.content().await, "list=1");
    running.task.abort();
}

#[tokio::test]
async fn who_asks_at_once_gets_it_whole() {
    let server = Server::start(&ok(SETTLED, "1"));
    let mut running = Running::start(&server, Duration::from_hours(1));
    assert_eq!(running.content().await, "list=1");
    // A server whose ETag did not change with its content.
    server.answer(ok(SETTLED, "2"));
    running.ask_at_once();
    assert_eq!(running.content().await, "list=2");
    assert!(!server.heads()[1].contains("if-none-match"));
    running.task.abort();
}

#[tokio::test]
async fn what_is_refused_leaves_what_was_known() {
    let server = Server::start("HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n");
    let mut running = Running::start(&server, Duration::from_millis(100));
    let first = running.trouble().await;
    assert!(first.contains("403") && !first.contains("stays"), "{first}");
    server.answer(ok(SETTLED, "1"));
    assert_eq!(running.content().await, "list=1");
    for (answer, words) in [
        (ok("", &"x".repeat(100)), "--max-size"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell".to_owned(), "broke off"),
    ] {
        server.answer(answer);
        let trouble = running.trouble().await;
        assert!(trouble.contains(words) && trouble.ends_with("what was fetched before stays"), "{trouble}");
    }
    // Back to what is known: no new content, but good news.
    server.answer("HTTP/1.1 304 Not Modified\r\n\r\n");
    running.ask_at_once();
    // Whole, as it was asked for: a 304 is no answer to that.
    assert!(running.trouble().await.contains("304"));
    server.answer(ok(SETTLED, "1"));
    assert!(matches!(running.next().await, Seen::Healthy));
    running.task.abort();
}

#[tokio::test]
async fn empty_body_counts_as_absence_unless_it_may_be_empty() {
    let server = Server::start(&ok("", ""));
    let config = Config { timeout: DEADLINE, max_size: 64, ..Config::default() };
    let found = look(&config, &source(&server, false), None, &Known::default()).await.unwrap();
    assert!(matches!(found, Found::Absent(200)), "{found:?}");
    let found = look(&config, &source(&server, true), None, &Known::default()).await.unwrap();
    let Found::Object(object, _) = found else { panic!("{found:?}") };
    assert!(object.secret && object.data["list"].is_empty() && object.id.to_string() == "url/geo");
}

#[tokio::test]
async fn each_file_of_a_bundle_is_a_key_and_one_that_is_refused_leaves_what_was_known() {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in [("a", "1"), ("b/c", "2")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    let whole = builder.into_inner().unwrap();
    let answer = |bytes: &[u8]| {
        [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len()).as_bytes(), bytes].concat()
    };
    let server = Server::start("");
    server.answer(answer(&whole));
    let endpoint = server.url("/web.tar?token=canary").parse().unwrap();
    let source = Source { endpoint, key: "web.tar".into(), ..source(&server, false) };
    let config = Config { timeout: DEADLINE, max_size: 1 << 20, ..Config::default() };
    let found = look(&config, &source, None, &Known::default()).await.unwrap();
    let Found::Object(object, _) = found else { panic!("{found:?}") };
    assert_eq!(text(&BTreeMap::from([(object.id.clone(), object)])), "a=1 b/c=2");
    server.answer(answer(&whole[..1024]));
    let error = look(&config, &source, None, &Known::default()).await.unwrap_err();
    assert!(matches!(error, UrlError::Bundle { .. }) && error.is_lasting(), "{error:?}");
    assert!(error.to_string().contains("end of the archive") && !error.to_string().contains("canary"), "{error}");
}

/// Asks for what must be signed with [`KEY`]: an answer to each request in turn, and how many there were.
async fn look_signed(path: &str, answers: &[&str]) -> (Result<Found, UrlError>, Vec<String>) {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), KEY).unwrap();
    let server = Server::start("HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n");
    server.answer_first(answers.iter().copied());
    let endpoint: Endpoint = server.url(path).parse().unwrap();
    let signed = Signed::by(keys.path().into(), &endpoint);
    let key = endpoint.last_segment().unwrap().to_owned();
    let source = Source { endpoint, key, signed, ..source(&server, false) };
    let config = Config { timeout: DEADLINE, max_size: 1 << 20, ..Config::default() };
    let found = look(&config, &source, None, &Known::default()).await;
    (found, server.heads())
}

#[tokio::test]
async fn content_counts_with_its_signature_even_if_one_was_replaced_between_the_requests() {
    let [content, older] = [ok("ETag: \"2\"\r\n", "test"), ok(SETTLED, "older")];
    let [signature, other] = [ok("", PREHASHED), ok("", BY_OTHER)];
    let same = "HTTP/1.1 304 Not Modified\r\n\r\n";
    for (answers, asked) in [
        (&[&*content, &signature][..], 2),
        (&[&older, &signature, &content, &signature], 4),
        (&[&content, &other, same, &signature], 4),
    ] {
        let (found, heads) = look_signed("/a/list?x=1", answers).await;
        assert!(matches!(found, Ok(Found::Object(..))), "{found:?}");
        assert_eq!(heads.len(), asked, "{heads:?}");
        assert!(heads[1].starts_with("GET /a/list.minisig?x=1 "), "{}", heads[1]);
        assert!(!heads[1].contains("if-none-match"));
        assert!(heads.get(2).is_none_or(|head| head.contains("if-none-match")), "{heads:?}");
    }
}

#[tokio::test]
async fn nothing_unsigned_is_used_or_unpacked() {
    let [content, signature] = [ok(SETTLED, "no archive"), ok("", PREHASHED)];
    let (gone, long) = ("HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n", ok("", &"x".repeat(20_000)));
    for (answers, words, asked) in [
        (&[&*content, gone][..], "it is not signed", 2),
        (&[&content, &long], "no signature of minisign's", 2),
        (&[&content, &signature, &content, &signature], "of another content", 4),
    ] {
        let (found, heads) = look_signed("/web.tar", answers).await;
        let error = found.unwrap_err();
        assert!(error.to_string().contains(words) && error.unsigned() && error.is_lasting(), "{error}");
        assert_eq!(heads.len(), asked, "{heads:?}");
    }
    // The server may be at fault: it is asked again soon.
    let (found, _) = look_signed("/web.tar", &[&content]).await;
    let error = found.unwrap_err();
    assert!(error.to_string().contains("/web.tar.minisig: the server answered 500") && !error.is_lasting(), "{error}");
}

#[tokio::test]
async fn signature_comes_within_the_time_of_its_content() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), KEY).unwrap();
    let server = Server::start("");
    let content = ok(SETTLED, "test");
    server.answer_first([&*content]);
    // A signature of which nothing comes but its head.
    server.hold("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n");
    let signed = Signed::by(keys.path().into(), &source(&server, false).endpoint);
    let source = Source { signed, ..source(&server, false) };
    let config = Config { timeout: Duration::from_millis(300), max_size: 1 << 20, ..Config::default() };
    let error = look(&config, &source, None, &Known::default()).await.unwrap_err().to_string();
    assert!(error.contains("/a/list: not all of it came within 300ms"), "the signature has a time of its own: {error}");
}

#[tokio::test]
async fn slow_servers_are_given_up() {
    for start in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"] {
        let server = Server::start("");
        server.hold(start);
        let config = Config { timeout: Duration::from_millis(50), max_size: 64, ..Config::default() };
        let error = look(&config, &source(&server, false), None, &Known::default()).await.unwrap_err();
        assert!(matches!(error, UrlError::Fetch(FetchError::Slow { .. })), "{start:?}: {error:?}");
        assert!(error.to_string().contains("--url-timeout"));
    }
}

#[tokio::test]
async fn task_ends_with_its_receiver() {
    let server = Server::start(&ok("", "1"));
    let Running { updates, task, refresh: _refresh } = Running::start(&server, Duration::from_hours(1));
    drop(updates);
    timeout(DEADLINE, task).await.expect("it ends").unwrap();
}
