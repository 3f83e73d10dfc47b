//! A Pod of a test: its state, its main process by HTTP, its Trimtab's status.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use super::node::{PACE, PATIENCE, polled, within};
use super::space::Space;

/// A Pod by its name.
pub struct Pod<'a> {
    space: &'a Space,
    name: String,
}

impl<'a> Pod<'a> {
    pub fn new(space: &'a Space, name: &str) -> Self {
        Self { space, name: name.to_owned() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Pod as the API server has it.
    pub fn object(&self) -> Value {
        self.space.get(&format!("pod/{}", self.name))
    }

    /// Waits until it is Ready.
    pub fn until_ready(self) -> Self {
        within(PATIENCE, &format!("pod {} is ready", self.name), || {
            let object = self.object();
            let conditions = object["status"]["conditions"].as_array()?;
            conditions
                .iter()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
                .then_some(())
        });
        self
    }

    pub fn ip(&self) -> String {
        within(PATIENCE, &format!("pod {} has an address", self.name), || {
            Some(self.object()["status"]["podIP"].as_str()?.to_owned())
        })
    }

    /// The status of a container, native sidecars included.
    pub fn container(&self, name: &str) -> Option<Value> {
        let object = self.object();
        let all = ["containerStatuses", "initContainerStatuses"].map(|list| object["status"][list].clone());
        let mut all = all.iter().filter_map(Value::as_array).flatten();
        all.find(|container| container["name"] == name).cloned()
    }

    /// How often the kubelet started a container again.
    pub fn restarts(&self, container: &str) -> u64 {
        self.container(container).and_then(|status| status["restartCount"].as_u64()).unwrap_or(0)
    }

    /// A command in a container.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<String, String> {
        let args: Vec<_> =
            ["exec", &self.name, "-c", container, "--"].into_iter().chain(command.iter().copied()).collect();
        self.space.kubectl_try(&args)
    }

    /// The same, with what it says and its exit code.
    pub fn output(&self, container: &str, command: &[&str]) -> Output {
        let args: Vec<_> =
            ["exec", &self.name, "-c", container, "--"].into_iter().chain(command.iter().copied()).collect();
        self.space.output(&args)
    }

    /// `/status` of its Trimtab, asked from inside; nothing while it does not run.
    pub fn status(&self) -> Option<Value> {
        // Not ready is exit 1, with the status printed all the same.
        let output = self.output("trimtab", &["/trimtab", "status", "--format=json"]);
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Waits until its Trimtab's status is as described.
    pub fn until(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let mut last = None;
        let seen = polled(PATIENCE, PACE, || {
            last = self.status();
            last.clone().filter(|status| condition(status))
        });
        seen.unwrap_or_else(|| panic!("{}: not {what}: {last:#?}", self.name))
    }

    pub fn log(&self, container: &str) -> String {
        self.space.kubectl_try(&["logs", &self.name, "-c", container]).unwrap_or_default()
    }

    /// GET from the Pod's address: the body, if it answers with 200.
    pub fn get(&self, port: u16, path: &str) -> Option<String> {
        get(&self.ip(), port, path)
    }

    /// POST without a body, the same way.
    pub fn post(&self, port: u16, path: &str) -> Option<String> {
        request("POST", &self.ip(), port, path)
    }

    /// Waits until a GET answers with exactly this body.
    pub fn until_serves(&self, port: u16, path: &str, body: &str) {
        let ip = self.ip();
        let mut last = None;
        let seen = polled(PATIENCE, PACE, || {
            last = get(&ip, port, path);
            (last.as_deref() == Some(body)).then_some(())
        });
        assert!(seen.is_some(), "{}:{port}{path} does not answer {body:?} but {last:?}", self.name);
    }
}

/// A GET on a connection of its own: the body, if the answer is 200.
pub fn get(ip: &str, port: u16, path: &str) -> Option<String> {
    request("GET", ip, port, path)
}

fn request(method: &str, ip: &str, port: u16, path: &str) -> Option<String> {
    let address: SocketAddr = format!("{ip}:{port}").parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {ip}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let body =
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") { joined(body)? } else { body.to_owned() };
    head.split_whitespace().nth(1).is_some_and(|code| code == "200").then_some(body)
}

/// The text that came in chunks.
fn joined(mut chunks: &str) -> Option<String> {
    let mut text = String::new();
    loop {
        let (size, rest) = chunks.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(text);
        }
        text += rest.get(..size)?;
        chunks = rest.get(size..)?.strip_prefix("\r\n")?;
    }
}
