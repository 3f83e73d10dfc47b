//! HAProxy in master-worker mode, notified by USR2 and confirmed by its workers and by what it answers.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::super::support::sidecar::eventually;
use super::{Fault, Ground, Program, Refusal, binary, play, strings};

/// What HAProxy 2.6 does with a bad configuration on USR2: the master executes itself again, says "Loading failure!",
/// and keeps the workers that it has. But
/// - a port in use: it asks the old worker to let go of *all* its ports, tries for two seconds, gives up, and has them
///   taken back: meanwhile connections are refused. `haproxy -c` passes it, as it binds nothing.
/// - an empty file is taken: "Loading success", a new worker that listens on nothing, and the old one ends. The workers
///   cannot show that; what it answers can. `haproxy -c` says "no listener" (exit code 2).
///
/// 2.6 does not answer the master socket's `reload` with its outcome (that came with 2.7); `show proc` there counts
/// failed reloads, and back to none after one that succeeds.
struct HaProxy {
    ground: Ground,
}

impl HaProxy {
    /// What a socket of it answers; `None` while it executes itself again.
    fn command_on(&self, socket: &str, command: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.ground.at(socket)).ok()?;
        writeln!(stream, "{command}").ok()?;
        stream.shutdown(std::net::Shutdown::Write).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

impl Program for HaProxy {
    fn ground(&self) -> &Ground {
        &self.ground
    }

    fn name(&self) -> &'static str {
        "HAProxy"
    }

    fn templates(&self) -> Vec<(&'static str, &'static str)> {
        vec![("haproxy.cfg", "{{ data['haproxy.cfg'] | replace('@DIGEST@', generation.digest) }}\n")]
    }

    fn keys(&self, edit: usize, fault: Option<Fault>) -> Vec<(&'static str, String)> {
        let (port, own, taken) = (self.ground.port, self.ground.text(""), self.ground.taken());
        let extra = match fault {
            None => String::new(),
            Some(Fault::Syntax) => "bind 127.0.0.1:".to_owned(),
            Some(Fault::Unknown) => "frobnicate on".to_owned(),
            Some(Fault::Certificate) => format!("bind 127.0.0.1:1 ssl crt {own}/none.pem"),
            Some(Fault::Port) => format!("bind 127.0.0.1:{taken}"),
            Some(fault) => {
                assert_eq!(fault, Fault::Empty);
                return vec![("haproxy.cfg", String::new()), ("edit", edit.to_string())];
            }
        };
        let text = format!(
            r#"
global
    setenv EDIT {edit}
    stats socket {own}/worker.sock mode 600
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend main
    bind 127.0.0.1:{port}
    {extra}
    http-request return status 200 content-type text/plain string "@DIGEST@" if {{ path /generation }}
    http-request return status 200 content-type text/plain string "config {edit}"
"#
        );
        vec![("haproxy.cfg", text), ("edit", edit.to_string())]
    }

    fn command(&self) -> Vec<String> {
        let (socket, conf) = (self.ground.text("master.sock,mode,600"), self.ground.text("conf/haproxy.cfg"));
        strings([&binary("TRIMTAB_TEST_HAPROXY"), "-W", "-S", &socket, "-f", &conf])
    }

    fn flags(&self) -> Vec<String> {
        let pattern = regex_lite::escape(&self.ground.text("conf/haproxy.cfg"));
        let url = format!("http://127.0.0.1:{}/generation", self.ground.port);
        let target = ["--signal", "USR2", "--process", "haproxy", "--process-args", &pattern];
        let confirm = ["--confirm-workers", "--confirm-alive", "300ms", "--confirm-url", &url];
        [&strings(target)[..], &strings(confirm), &strings(["--confirm-match", "^{digest}$"])].concat()
    }

    fn validator(&self) -> String {
        format!("{} -c -q -f {{dir}}/haproxy.cfg", binary("TRIMTAB_TEST_HAPROXY"))
    }

    fn faults(&self) -> [(Fault, Refusal); 5] {
        [
            (Fault::Syntax, Refusal::Both),
            (Fault::Unknown, Refusal::Both),
            (Fault::Certificate, Refusal::Both),
            (Fault::Port, Refusal::Confirmation),
            (Fault::Empty, Refusal::Gate),
        ]
    }

    fn examine(&self, edit: usize) {
        let says = |socket, command, part: &str| {
            eventually(&format!("{part} is what {command} on {socket} says"), || {
                self.command_on(socket, command)?.contains(part).then_some(())
            });
        };
        says("master.sock", "show proc", "[failed: 0]");
        says("worker.sock", "show env EDIT", &format!("EDIT={edit}\n"));
    }
}

#[test]
fn haproxy_serves_good_configurations_alone() {
    play(HaProxy { ground: Ground::new() }, false);
}

#[test]
fn haproxy_serves_good_configurations_alone_when_they_are_validated() {
    play(HaProxy { ground: Ground::new() }, true);
}
