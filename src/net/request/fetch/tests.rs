use super::server::{Server, ok};
use super::*;
use crate::net::proxy::Proxies;

const LIMITS: Limits = Limits { connect: Duration::from_secs(10), quiet: Duration::from_secs(10), bytes: 64 };

async fn get(server: &Server, limits: Limits, conditions: &Conditions) -> Result<Fetched, FetchError> {
    let endpoint = server.url("/a/list?token=canary").parse().unwrap();
    fetch(&endpoint, &HttpConfig::default(), &limits, conditions).await
}

async fn error(answer: &str, limits: Limits) -> FetchError {
    let error = get(&Server::start(answer), limits, &Conditions::default()).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    error
}

fn body(fetched: Fetched) -> (Bytes, Conditions) {
    match fetched {
        Fetched::New { body, conditions } => (body, conditions),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn unchanged_body_is_recognised_by_what_the_server_sent_with_it() {
    let modified = "Mon, 30 Nov 2026 10:00:00 GMT";
    let head = format!("ETag: \"one\"\r\nLast-Modified: {modified}\r\nDate: Mon, 30 Nov 2026 10:00:02 GMT\r\n");
    let server = Server::start(&ok(&head, "1"));
    let (first, conditions) = body(get(&server, LIMITS, &Conditions::default()).await.unwrap());
    assert_eq!(&*first, b"1");
    server.answer("HTTP/1.1 304 Not Modified\r\n\r\n");
    assert_eq!(get(&server, LIMITS, &conditions).await.unwrap(), Fetched::NotModified);
    let [unconditional, conditional] = &server.heads()[..] else { panic!() };
    assert!(!unconditional.contains("if-"), "{unconditional}");
    assert!(conditional.contains("if-none-match: \"one\"\r\n"), "{conditional}");
    assert!(conditional.contains(&format!("if-modified-since: {modified}\r\n")), "{conditional}");
    assert!(!conditional.contains("content-length") && conditional.contains("accept-encoding: identity"));
    // Nobody asked a cache for that.
    let error = get(&server, LIMITS, &Conditions::default()).await.unwrap_err();
    assert!(error.to_string().contains("answered 304") && error.is_lasting(), "{error}");
}

#[tokio::test]
async fn what_was_modified_this_second_may_be_modified_again_unseen() {
    for (date, settled) in [("09:59:59", false), ("10:00:01", false), ("10:00:02", true)] {
        let head = format!(
            "ETag: \"6a-1\"\r\nLast-Modified: Mon, 30 Nov 2026 10:00:00 GMT\r\nDate: Mon, 30 Nov 2026 {date} GMT\r\n"
        );
        let (_, conditions) = body(get(&Server::start(&ok(&head, "1")), LIMITS, &Conditions::default()).await.unwrap());
        assert_eq!(!conditions.is_empty(), settled, "{date}");
    }
    // A digest, as an object store has it.
    let (_, alone) =
        body(get(&Server::start(&ok("ETag: \"d1\"\r\n", "1")), LIMITS, &Conditions::default()).await.unwrap());
    assert!(!alone.is_empty());
}

#[tokio::test]
async fn a_part_of_a_body_is_no_body() {
    for part in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhell\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhell",
    ] {
        let error = error(part, LIMITS).await;
        assert!(matches!(error, FetchError::Cut { .. }) && !error.is_lasting(), "{part}: {error:?}");
    }
    let error = error("HTTP/1.1 200 OK\r\n\r\nhello", LIMITS).await;
    assert!(matches!(error, FetchError::Endless { .. }), "{error:?}");
    let whole = Server::start("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    assert_eq!(&*body(get(&whole, LIMITS, &Conditions::default()).await.unwrap()).0, b"hello");
}

#[tokio::test]
async fn larger_bodies_than_the_limit_are_refused() {
    let large = "x".repeat(65);
    for answer in [
        ok("", &large),
        // Before a byte of it is read.
        "HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n41\r\n{large}\r\n0\r\n\r\n"),
    ] {
        let error = error(&answer, LIMITS).await;
        assert!(matches!(error, FetchError::TooLarge { limit: 64, .. }) && error.is_lasting(), "{error:?}");
        assert!(error.to_string().contains("--max-size"));
    }
    let fits = Server::start(&ok("", &"x".repeat(64)));
    assert_eq!(body(get(&fits, LIMITS, &Conditions::default()).await.unwrap()).0.len(), 64);
}

#[tokio::test]
async fn redirects_are_followed_within_one_server_alone() {
    let other = Server::start(&ok("", "stolen"));
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "Bearer canary").unwrap();
    let header = format!("Authorization: @{}", key.display()).parse().unwrap();
    let config = HttpConfig { headers: vec![header], ..HttpConfig::default() };
    let server = Server::start("");
    let endpoint: Endpoint = server.url("/a/list").parse().unwrap();
    let port = server.address.port();
    for (to, shown) in [
        (other.url("/x?token=canary"), format!("http://{}", other.address)),
        (format!("https://127.0.0.1:{port}/x"), format!("https://127.0.0.1:{port}")),
        (format!("//localhost:{port}/x"), format!("http://localhost:{port}")),
    ] {
        server.answer(format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"));
        let error = fetch(&endpoint, &config, &LIMITS, &Conditions::default()).await.unwrap_err();
        assert!(matches!(&error, FetchError::Elsewhere { to, .. } if *to == shown), "{to}: {error:?}");
        assert!(!error.to_string().contains("canary"), "{error}");
    }
    assert_eq!(other.heads(), [""; 0], "the credential went to another server");
    // In a circle, by each form that stays at home.
    for to in ["/b", "b?x=1", "?y", &*server.url("/a/b")] {
        let before = server.heads().len();
        server.answer(format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"));
        let error = fetch(&endpoint, &config, &LIMITS, &Conditions::default()).await.unwrap_err();
        assert!(matches!(error, FetchError::Circle { .. }), "{to}: {error:?}");
        assert_eq!(server.heads().len() - before, REDIRECTS + 1);
    }
    let asked: Vec<_> = server.heads().iter().filter_map(|head| Some(head.split(' ').nth(1)?.to_owned())).collect();
    for path in ["/a/list", "/b", "/a/b?x=1", "/a/list?y", "/a/b"] {
        assert!(asked.iter().any(|asked| asked == path), "{path} is not among {asked:?}");
    }
    for to in ["", "Location: http://user:canary@x/\r\n", "Location: ftp://x/\r\n"] {
        let error = error(&format!("HTTP/1.1 301 X\r\n{to}Content-Length: 0\r\n\r\n"), LIMITS).await;
        assert!(matches!(error, FetchError::Status { code: 301, .. }), "{error:?}");
    }
}

#[tokio::test]
async fn other_answers_are_refused_with_what_to_do() {
    let answer = |code: u16, head: &str| format!("HTTP/1.1 {code} X\r\n{head}Content-Length: 6\r\n\r\ncanary");
    for (code, words, lasting) in [
        (206, "only 200", true),
        (401, "--url-header", true),
        (403, "--url-header", true),
        (429, "trying again", false),
        (500, "its own log", false),
        (503, "trying again", false),
    ] {
        let error = error(&answer(code, ""), LIMITS).await;
        assert!(error.to_string().contains(words) && error.is_lasting() == lasting, "{code}: {error}");
    }
    for code in [404, 410] {
        let absent = get(&Server::start(&answer(code, "")), LIMITS, &Conditions::default()).await.unwrap();
        assert_eq!(absent, Fetched::Absent(code));
    }
    let error = error(&ok("Content-Encoding: gzip\r\n", "x"), LIMITS).await;
    assert!(matches!(error, FetchError::Encoded { .. }), "{error:?}");
}

#[tokio::test]
async fn servers_are_left_alone_as_long_as_they_ask() {
    let error = error("HTTP/1.1 503 X\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n", LIMITS).await;
    assert_eq!(error.after(), Some(Duration::from_mins(2)));
    let now: Timestamp = "2026-11-30T10:00:00Z".parse().unwrap();
    for (value, seconds) in [
        ("7", Some(7)),
        ("Mon, 30 Nov 2026 10:01:00 GMT", Some(60)),
        ("Mon, 30 Nov 2026 09:00:00 GMT", Some(0)),
        ("999999999", Some(3600)),
        ("soon", None),
        ("-1", None),
    ] {
        let pause = pause(&HeaderValue::from_static(value), now);
        assert_eq!(pause, seconds.map(Duration::from_secs), "{value}");
    }
}

#[tokio::test]
async fn silent_servers_are_given_up() {
    let quiet = Limits { quiet: Duration::from_millis(50), ..LIMITS };
    for start in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"] {
        let server = Server::start("");
        server.hold(start);
        let error = get(&server, quiet, &Conditions::default()).await.unwrap_err();
        assert!(matches!(error, FetchError::Silent { .. }) && !error.is_lasting(), "{start:?}: {error:?}");
    }
}

/// Asks for a file of a server that nobody resolves, through this proxy.
async fn forwarded(proxy: &str) -> Result<Fetched, FetchError> {
    let proxies = Proxies::new(String::new(), format!("http://user:hunter2@{proxy}"), String::new());
    let config = HttpConfig { proxies: Some(proxies), ..HttpConfig::default() };
    let endpoint = "http://no-such-host.invalid/a/list?token=canary".parse().unwrap();
    fetch(&endpoint, &config, &LIMITS, &Conditions::default()).await
}

#[tokio::test]
async fn proxy_is_sent_the_whole_url_of_a_server_without_tls() {
    let server = Server::start(&ok("", "1"));
    let (first, _) = body(forwarded(&server.address.to_string()).await.unwrap());
    assert_eq!(&*first, b"1");
    let head = &server.heads()[0];
    assert!(head.starts_with("GET http://no-such-host.invalid/a/list?token=canary HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("proxy-authorization: Basic dXNlcjpodW50ZXIy\r\n"), "{head}");
    assert!(head.contains("host: no-such-host.invalid\r\n"), "{head}");
    for (code, words) in [("407", "the proxy wants a user"), ("503", "trying again")] {
        server.answer(format!("HTTP/1.1 {code} X\r\nContent-Length: 0\r\n\r\n"));
        let error = forwarded(&server.address.to_string()).await.unwrap_err().to_string();
        let place = format!("through the proxy at {} (HTTP_PROXY): the server answered {code}", server.address);
        assert!(error.contains(&place) && error.contains(words), "{error}");
        assert!(!error.contains("canary") && !error.contains("hunter2"), "{error}");
    }
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = forwarded(&gone).await.unwrap_err().to_string();
    assert!(error.contains(&format!("the proxy at {gone} (")) && error.contains("refused"), "{error}");
    assert!(!error.contains("canary") && !error.contains("hunter2"), "{error}");
}
