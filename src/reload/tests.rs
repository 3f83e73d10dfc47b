//! Attempts at real processes, servers and programs.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command as Process;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hyper::Method;
use nix::sys::signal::{Signal as Raw, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::*;

const LONG: Duration = Duration::from_secs(10);

/// A main process that is no child of the tests', as it is none of Trimtab's: a copy of the shell that leads a
/// process group, counts its HUPs in a file once it is asked to, and is killed when dropped.
struct Main {
    name: &'static str,
    group: Pid,
    dir: TempDir,
}

impl Main {
    fn start(name: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = r#"
            cp /bin/sh "$DIR/$NAME" && mkfifo "$DIR/fifo" && exec 9<> "$DIR/fifo" &&
            setsid "$DIR/$NAME" -c 'echo $$ > $DIR/pid.new; mv $DIR/pid.new $DIR/pid; read -r line <&9
                [ "$line" != runtime ] || trap : SEGV
                trap "echo hup >> $DIR/got" HUP; while :; do read -r line <&9; done' > /dev/null 2>&1 &"#;
        let mut shell = Process::new("sh");
        assert!(shell.args(["-c", script]).env("DIR", dir.path()).env("NAME", name).status().unwrap().success());
        let pid = || fs::read_to_string(dir.path().join("pid")).ok()?.trim().parse().ok().map(Pid::from_raw);
        until("it runs", || pid().is_some());
        Self { name, group: pid().unwrap(), dir }
    }

    fn trap(&self) {
        self.say("go");
    }

    fn say(&self, line: &str) {
        fs::write(self.dir.path().join("fifo"), format!("{line}\n")).unwrap();
    }

    fn hups(&self) -> usize {
        fs::read_to_string(self.dir.path().join("got")).map_or(0, |got| got.lines().count())
    }

    fn reloader(&self) -> Reloader {
        let selector = Selector { name: Some(self.name.into()), ..Selector::default() };
        reloader(Driver::Signal { signal: "HUP".parse().unwrap(), selector })
    }
}

impl Drop for Main {
    fn drop(&mut self) {
        killpg(self.group, Raw::SIGKILL).unwrap();
        // A zombie's group can be signalled, too; process 1 reaps it when it comes to it.
        let stat = || fs::read_to_string(format!("/proc/{}/stat", self.group.as_raw()));
        until("it has ended", || killpg(self.group, None).is_err() || stat().is_ok_and(|stat| stat.contains(") Z ")));
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "still not so after 10 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn took(result: &Result<Notified, NotTaken>) -> bool {
    matches!(result, Ok(notified) if !notified.skipped)
}

fn was_skipped(result: &Result<Notified, NotTaken>) -> bool {
    matches!(result, Ok(notified) if notified.skipped)
}

fn reloader(driver: Driver) -> Reloader {
    Reloader::new(Config {
        driver,
        target: None,
        children: true,
        timeout: LONG,
        presumed_dead_after: None,
        ready: None,
    })
}

fn by_program(command: &str) -> Reloader {
    reloader(Driver::Exec(command.parse().unwrap()))
}

fn by_http(endpoints: &[&str]) -> Reloader {
    reloader(Driver::Http {
        program: None,
        endpoints: endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect(),
        http: Box::new(HttpConfig { method: Method::POST, ..HttpConfig::default() }),
        accept: "2xx".parse().unwrap(),
    })
}

/// A server that answers each request with the next of these, the last one again and again; and its count.
fn serve(statuses: &'static [u16]) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    std::thread::spawn(move || {
        for peer in listener.incoming() {
            let mut peer = peer.unwrap();
            let head = BufReader::new(&peer).lines().map(Result::unwrap);
            head.take_while(|line| !line.is_empty()).for_each(drop);
            let status = statuses[counted.fetch_add(1, Ordering::SeqCst).min(statuses.len() - 1)];
            write!(peer, "HTTP/1.1 {status} X\r\nContent-Length: 6\r\n\r\ncanary").unwrap();
        }
    });
    (url, count)
}

#[tokio::test]
async fn without_a_driver_there_is_nothing_to_notify() {
    assert!(took(&reloader(Driver::None).attempt(1, None).await));
}

#[tokio::test]
async fn a_signal_is_held_back_until_it_is_handled_and_then_arrives_once() {
    let main = Main::start("tt-reload-main");
    let mut reloader = main.reloader();
    let Err(NotTaken::Unreachable { message, delivered: false, .. }) = reloader.attempt(1, None).await else {
        panic!()
    };
    assert!(message.contains("does not handle SIGHUP"), "{message}");
    let status = reloader.target().unwrap();
    assert_eq!((status.state, status.pid), (TargetState::NotHandling, Some(main.group.as_raw())));
    main.trap();
    let start = Instant::now();
    while !took(&reloader.attempt(1, None).await) {
        assert!(start.elapsed() < LONG);
    }
    until("the signal has arrived", || main.hups() == 1);
    let status = serde_json::to_value(reloader.target().unwrap()).unwrap();
    let pid = main.group.as_raw();
    let expected = serde_json::json!({"state": "found", "pid": pid, "name": main.name, "message": null});
    assert_eq!(status, expected);
}

#[tokio::test]
async fn a_signal_is_not_due_to_a_process_that_started_after_the_publish() {
    let before = Clock::new().unwrap().now();
    let main = Main::start("tt-reload-newer");
    main.trap();
    let mut reloader = main.reloader();
    until("it started in a later tick", || process::ticks() > before.ticks + 1);
    let target = process::find(&Selector { name: Some(main.name.into()), ..Selector::default() }).unwrap();
    let at = |ticks| Moment { ticks, ..before.clone() };
    assert!(was_skipped(&reloader.attempt(1, Some(&at(target.start_ticks - 1))).await));
    let rebooted = Moment { boot_id: "another".into(), ticks: u64::MAX };
    assert!(was_skipped(&reloader.attempt(1, Some(&rebooted)).await));
    assert_eq!(reloader.target().unwrap().state, TargetState::Found);
    assert_eq!(main.hups(), 0);
    // A tie counts as started before.
    let start = Instant::now();
    while !took(&reloader.attempt(1, Some(&at(target.start_ticks))).await) {
        assert!(start.elapsed() < LONG);
    }
    until("the signal has arrived", || main.hups() == 1);
}

#[tokio::test]
async fn a_missing_and_an_ambiguous_target_are_retried_and_reported() {
    let mains = [Main::start("tt-reload-twin"), Main::start("tt-reload-twin")];
    let mut reloader = mains[0].reloader();
    assert!(matches!(reloader.attempt(1, None).await, Err(NotTaken::Unreachable { .. })));
    assert_eq!(reloader.target().unwrap().state, TargetState::Ambiguous);
    drop(mains);
    assert!(matches!(reloader.attempt(1, None).await, Err(NotTaken::Unreachable { .. })));
    let status = reloader.target().unwrap();
    assert_eq!((status.state, status.pid), (TargetState::Missing, None));
    assert!(status.message.as_ref().unwrap().contains("--process tt-reload-twin"));
}

#[tokio::test]
async fn answers_are_taken_refused_or_tried_again() {
    for (statuses, expected) in [
        (&[200][..], "took"),
        (&[204], "took"),
        (&[400], "refused"),
        (&[404], "refused"),
        (&[500], "refused"),
        (&[302], "refused"),
        (&[408], "unreachable"),
        (&[409], "unreachable"),
        (&[423], "unreachable"),
        (&[425], "unreachable"),
        (&[429], "unreachable"),
        (&[502], "unreachable"),
        (&[503], "unreachable"),
        (&[504], "unreachable"),
    ] {
        let (url, _) = serve(statuses);
        let verdict = by_http(&[&url]).attempt(1, None).await;
        assert!(!format!("{verdict:?}").contains("canary"), "{verdict:?}");
        let (found, message) = match verdict {
            Ok(_) => ("took", String::new()),
            Err(NotTaken::Refused { message, output }) => {
                assert!(!output.is_empty());
                ("refused", message)
            }
            Err(NotTaken::Unreachable { message, output, delivered }) => {
                assert!(!output.is_empty() && !delivered);
                ("unreachable", message)
            }
            Err(NotTaken::Died { .. }) => panic!(),
        };
        assert_eq!(found, expected, "{statuses:?}");
        assert!(found == "took" || message.contains(&format!("{url} answered {}", statuses[0])), "{message}");
        assert!(statuses != [302] || message.contains("final URL"), "{message}");
    }
    let (url, _) = serve(&[503]);
    let mut listed = by_http(&[&url]);
    if let Driver::Http { accept, .. } = &mut listed.config.driver {
        *accept = "2xx,503".parse().unwrap();
    }
    assert!(took(&listed.attempt(1, None).await));
}

#[tokio::test]
async fn a_refusal_names_its_cause() {
    let (url, _) = serve(&[400]);
    let Err(NotTaken::Refused { message, .. }) = by_http(&[&url]).attempt(1, None).await else { panic!() };
    assert!(message.ends_with(" answered 400, which --reload-status does not accept"), "{message}");
    let Err(NotTaken::Refused { message, .. }) = by_program("sh -c 'exit 3'").attempt(1, None).await else { panic!() };
    assert_eq!(message, "sh exited with code 3");
}

#[tokio::test]
async fn a_status_is_the_answer_however_long_its_body() {
    for (status, expected) in [(200, "took"), (500, "refused"), (503, "unreachable")] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let head = BufReader::new(&peer).lines().map(Result::unwrap);
            head.take_while(|line| !line.is_empty()).for_each(drop);
            write!(peer, "HTTP/1.1 {status} X\r\n\r\n").unwrap();
            // Until the other side has heard enough.
            while peer.write_all(&[b'x'; 4096]).is_ok() {}
        });
        let found = match by_http(&[&url]).attempt(1, None).await {
            Ok(_) => "took",
            Err(NotTaken::Refused { .. }) => "refused",
            Err(NotTaken::Unreachable { delivered: false, .. }) => "unreachable",
            other => panic!("{other:?}"),
        };
        assert_eq!(found, expected);
        server.join().unwrap();
    }
}

#[tokio::test]
async fn a_starting_runtime_is_not_signalled_before_it_answers() {
    let main = Main::start("tt-reload-runtime");
    main.say("runtime");
    let caught = || {
        let status = fs::read_to_string(format!("/proc/{}/status", main.group)).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
        u64::from_str_radix(&mask, 16).unwrap()
    };
    until("it handles HUP and SEGV", || caught() & 0x401 == 0x401);
    let (url, count) = serve(&[503, 200]);
    let mut reloader = main.reloader();
    reloader.config.ready = Some(confirm::Probe {
        endpoint: url.parse().unwrap(),
        http: HttpConfig::default(),
        accept: "2xx".parse().unwrap(),
        matches: None,
        changed: None,
    });
    assert!(took(&reloader.attempt(1, None).await));
    assert!(count.load(Ordering::SeqCst) >= 2, "it was asked until it answered");
    until("the signal has arrived", || main.hups() == 1);
}

#[tokio::test]
async fn silence_is_unreachable_and_counts_as_delivered() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let mut reloader = by_http(&[&url]);
    reloader.config.timeout = Duration::from_millis(200);
    // The kernel accepts the connection and the request; nobody answers.
    assert!(matches!(reloader.attempt(1, None).await, Err(NotTaken::Unreachable { delivered: true, .. })));
    drop(listener);
    assert!(matches!(reloader.attempt(1, None).await, Err(NotTaken::Unreachable { delivered: false, .. })));
}

#[tokio::test]
async fn who_is_notified_does_not_answer_and_stays_away_has_died_of_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut reloader = by_http(&[&format!("http://{address}/")]);
    (reloader.config.timeout, reloader.config.presumed_dead_after) = (Duration::from_millis(200), Some(Duration::ZERO));
    assert!(matches!(reloader.attempt(1, None).await, Err(NotTaken::Unreachable { delivered: true, .. })));
    drop(listener);
    // Of another generation nobody was notified.
    assert!(matches!(reloader.attempt(2, None).await, Err(NotTaken::Unreachable { delivered: false, .. })));
    assert!(matches!(reloader.attempt(2, None).await, Err(NotTaken::Unreachable { delivered: false, .. })));

    let listener = TcpListener::bind(address).unwrap();
    assert!(matches!(reloader.attempt(3, None).await, Err(NotTaken::Unreachable { delivered: true, .. })));
    drop(listener);
    reloader.config.presumed_dead_after = Some(LONG);
    assert!(matches!(reloader.attempt(3, None).await, Err(NotTaken::Unreachable { .. })), "not yet");
    reloader.config.presumed_dead_after = None;
    assert!(matches!(reloader.attempt(3, None).await, Err(NotTaken::Unreachable { .. })), "nobody looks");
    reloader.config.presumed_dead_after = Some(Duration::ZERO);
    let Err(NotTaken::Died { message }) = reloader.attempt(3, None).await else { panic!() };
    assert!(message.contains("--confirm-timeout"), "{message}");
    assert!(matches!(reloader.attempt(3, None).await, Err(NotTaken::Unreachable { .. })), "once");
}

/// It goes on with what it had, is ended by something else, and cannot start with what it refused.
#[tokio::test]
async fn who_refuses_and_stays_away_has_died_of_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut reloader = by_http(&[&format!("http://{}/", listener.local_addr().unwrap())]);
    reloader.config.presumed_dead_after = Some(Duration::ZERO);
    let answers = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        stream.write_all(b"HTTP/1.1 500 no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
    });
    assert!(matches!(reloader.attempt(1, None).await, Err(NotTaken::Refused { .. })));
    answers.join().unwrap();
    let Err(NotTaken::Died { message }) = reloader.attempt(1, None).await else { panic!() };
    assert!(message.contains("was refused, and no connection was accepted"), "{message}");
}

#[tokio::test]
async fn a_retry_does_not_repeat_what_succeeded() {
    let (first, first_count) = serve(&[200]);
    let (second, second_count) = serve(&[500, 200]);
    let (third, third_count) = serve(&[200]);
    let counts = || [&first_count, &second_count, &third_count].map(|count| count.load(Ordering::SeqCst));
    let mut reloader = by_http(&[&first, &second, &third]);
    assert!(matches!(reloader.attempt(7, None).await, Err(NotTaken::Refused { .. })));
    assert_eq!(counts(), [1, 1, 0]);
    assert!(took(&reloader.attempt(7, None).await));
    assert_eq!(counts(), [1, 2, 1]);
    // Done with: asking again notifies all of them.
    assert!(took(&reloader.attempt(7, None).await));
    assert_eq!(counts(), [2, 3, 2]);
}

#[tokio::test]
async fn all_are_notified_of_another_generation() {
    let (first, first_count) = serve(&[200]);
    let (second, _) = serve(&[500, 200]);
    let mut reloader = by_http(&[&first, &second]);
    assert!(matches!(reloader.attempt(7, None).await, Err(NotTaken::Refused { .. })));
    assert!(took(&reloader.attempt(6, None).await));
    assert_eq!(first_count.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_program_decides_by_its_exit() {
    assert!(took(&by_program("true").attempt(1, None).await));
    let verdict = by_program("sh -c 'echo canary; exit 3'").attempt(1, None).await;
    assert!(!format!("{verdict:?}").contains("canary"), "{verdict:?}");
    let Err(NotTaken::Refused { message, output }) = verdict else { panic!() };
    assert_eq!(message, "sh exited with code 3");
    assert!(!output.is_empty());
    let Err(NotTaken::Unreachable { message, delivered: true, .. }) =
        by_program("sh -c 'kill -9 $$'").attempt(1, None).await
    else {
        panic!()
    };
    assert!(message.contains("signal: 9"), "{message}");
    let mut slow = by_program("sleep 31.4154");
    slow.config.timeout = Duration::from_millis(100);
    let Err(NotTaken::Unreachable { message, delivered: true, .. }) = slow.attempt(1, None).await else { panic!() };
    assert!(message.contains("--reload-timeout"), "{message}");
    let Err(NotTaken::Unreachable { message, delivered: false, .. }) = by_program("/no/such").attempt(1, None).await
    else {
        panic!()
    };
    assert!(message.contains("--reload-exec") && message.contains("COPY --from"), "{message}");
}
