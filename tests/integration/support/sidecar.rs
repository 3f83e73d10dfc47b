//! The built `trimtab` binary beside a test: started, asked, killed; its log is shown when a test fails.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::child::pid_of;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;

/// How long anything may take on a busy machine. A source comes back within half a minute of its server.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Far less than any wait that must not happen, and enough on a busy machine.
pub const SOON: Duration = Duration::from_secs(4);

/// Polls until `condition` gives something; `what` is said when it never does.
#[track_caller]
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says what is missing, where a test needs root.
pub fn needs_root(what: &str) {
    assert!(geteuid().is_root(), "needs root, to {what}; run the tests as root, as in a container");
}

/// A program that becomes the sidecar in a mount namespace where the files of `account` are in the place of a service
/// account, as in a container. Needs root.
#[track_caller]
pub fn in_container(account: &str) -> [&str; 6] {
    const MOUNT: &str = r#"mount -t tmpfs none "$(readlink -f /var/run)" &&
        mkdir -p /var/run/secrets/kubernetes.io && cp -r "$0" /var/run/secrets/kubernetes.io/serviceaccount &&
        exec "$@""#;
    needs_root("have a mount namespace of its own");
    ["unshare", "--mount", "sh", "-c", MOUNT, account]
}

/// A command line of the binary under test.
pub fn trimtab() -> Command {
    Command::new(env!("CARGO_BIN_EXE_trimtab"))
}

/// Runs it to its end, which must come: a program that hangs is killed, and fails the test.
#[track_caller]
pub fn output_of(command: &mut Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = pid_of(&child);
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || ended.send(child.wait_with_output().unwrap()));
    end.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        kill(pid, Signal::SIGKILL).unwrap();
        panic!("it does not end: {command:?}");
    })
}

/// The same: exit code, and all that it said.
#[track_caller]
pub fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = output_of(command);
    let said = [output.stderr, output.stdout].concat();
    (output.status.code(), String::from_utf8(said).expect("it speaks UTF-8"))
}

/// A running sidecar. Killed when dropped.
pub struct Sidecar {
    child: Option<Child>,
    log: PathBuf,
    /// How long the log was when the present life began.
    born_at: usize,
    how: How,
    command: Vec<String>,
}

/// How a sidecar is started, beside its flags.
#[derive(Default)]
struct How {
    user: Option<u32>,
    program: Vec<String>,
    env: Vec<(String, String)>,
    /// Under another name, as a link to it.
    link: Option<PathBuf>,
}

impl Sidecar {
    /// Starts it with these flags; both servers take free ports. `log` is a file that it appends all its output to.
    pub fn start<S: AsRef<str>>(log: &Path, args: impl IntoIterator<Item = S>) -> Self {
        Self::launch(How::default(), log, args)
    }

    /// The same as another user; needs root.
    pub fn start_as<S: AsRef<str>>(user: u32, log: &Path, args: impl IntoIterator<Item = S>) -> Self {
        Self::launch(How { user: Some(user), ..How::default() }, log, args)
    }

    /// The same by a program that becomes it: `program`, to whose arguments the sidecar's command line is added.
    pub fn start_by<S: AsRef<str>>(program: &[&str], log: &Path, args: impl IntoIterator<Item = S>) -> Self {
        let program = program.iter().copied().map(str::to_owned).collect();
        Self::launch(How { program, ..How::default() }, log, args)
    }

    /// The same with these variables in its environment.
    pub fn start_with<S: AsRef<str>>(log: &Path, env: &[(&str, &str)], args: impl IntoIterator<Item = S>) -> Self {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self::launch(How { env, ..How::default() }, log, args)
    }

    /// The same as another sidecar: `as PEER`, or a link with a peer's name, and that one's settings.
    pub fn start_as_peer(peer: &Path, log: &Path, env: &[(&str, &str)], args: &[&str]) -> Self {
        let servers = [("TRIMTAB_LISTEN", "127.0.0.1:0"), ("TRIMTAB_ADMIN", "127.0.0.1:0")];
        let env = servers.iter().chain(env).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut words = Vec::new();
        let link = peer.is_absolute().then(|| peer.to_owned());
        if link.is_none() {
            words.extend(["as", peer.to_str().unwrap()]);
        }
        words.extend(args);
        Self::launch(How { env, link, ..How::default() }, log, words)
    }

    fn launch<S: AsRef<str>>(how: How, log: &Path, args: impl IntoIterator<Item = S>) -> Self {
        let mut command = how.program.clone();
        let own = || env!("CARGO_BIN_EXE_trimtab").to_owned();
        command.push(how.link.as_ref().map_or_else(own, |link| link.to_str().unwrap().to_owned()));
        command.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        let by_variables = how.env.iter().any(|(name, _)| name == "TRIMTAB_LISTEN")
            || how.program.iter().any(|word| word.starts_with("TRIMTAB_ADMIN="));
        for (flag, value) in [("--listen", "127.0.0.1:0"), ("--admin", "127.0.0.1:0")] {
            if !by_variables && !command.iter().any(|arg| arg == flag) {
                command.extend([flag.to_owned(), value.to_owned()]);
            }
        }
        let mut sidecar = Self { child: None, log: log.to_owned(), born_at: 0, how, command };
        sidecar.start_again();
        sidecar
    }

    /// Starts it once more after it ended, with the same flags.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        self.born_at = self.log().len();
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let (program, args) = self.command.split_first().unwrap();
        let mut command = Command::new(program);
        command.args(args).envs(self.how.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        if let Some(user) = self.how.user {
            command.uid(user).gid(user);
        }
        self.child = Some(command.spawn().unwrap());
    }

    /// What it has logged, in all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        pid_of(self.child.as_ref().expect("it has ended"))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// SIGKILL, and its burial.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// Whether it has ended, by itself or by a signal.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    /// Waits for its end; the exit code.
    #[track_caller]
    pub fn exit_code(&mut self) -> Option<i32> {
        let child = self.child.as_mut().expect("it has ended");
        let status = eventually("the sidecar ends", || child.try_wait().unwrap());
        self.child = None;
        status.code()
    }

    /// SIGTERM; the exit code.
    #[track_caller]
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.exit_code()
    }

    /// What it has logged in the present life.
    pub fn log_of_this_life(&self) -> String {
        self.log().get(self.born_at..).unwrap_or_default().to_owned()
    }

    /// The address that `--listen` or `--admin` has in the present life, from its log.
    #[track_caller]
    pub fn address(&self, flag: &str) -> SocketAddr {
        eventually(&format!("{flag} serves"), || {
            let log = self.log_of_this_life();
            let (_, address) = log.rsplit_once(&format!("{flag} serves on "))?;
            // In a log of JSON a quote follows. What follows must be there, or the number may be half written.
            address.split_once(|c: char| c.is_whitespace() || c == '"')?.0.parse().ok()
        })
    }

    /// A request to one of its servers: status code and body. `None` when nobody answers.
    pub fn request(&self, flag: &str, method: &str, path: &str) -> Option<(u16, String)> {
        let (head, body) = self.ask(flag, method, path)?;
        let code = head.split(' ').nth(1)?.parse().ok()?;
        Some((code, body))
    }

    /// The head of what it answers to a GET; empty when nobody answers.
    pub fn head(&self, flag: &str, path: &str) -> String {
        self.ask(flag, "GET", path).unwrap_or_default().0
    }

    /// What one of its servers answers to this; empty when nobody does.
    pub fn say(&self, flag: &str, request: &str) -> String {
        self.exchange(flag, request).unwrap_or_default()
    }

    fn exchange(&self, flag: &str, request: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.address(flag), Duration::from_secs(5)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn ask(&self, flag: &str, method: &str, path: &str) -> Option<(String, String)> {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        let answer = self.exchange(flag, &head)?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.to_owned(), body.to_owned()))
    }

    /// `/status`; null when nobody answers.
    pub fn status(&self) -> Value {
        let answer = self.request("--admin", "GET", "/status");
        answer.and_then(|(_, body)| serde_json::from_str(&body).ok()).unwrap_or(Value::Null)
    }

    /// Waits until `/status` is as `condition` wants it.
    #[track_caller]
    pub fn until(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        eventually(what, || Some(self.status()).filter(|status| condition(status)))
    }

    /// Waits until the newest inputs that it has seen are published and taken, and nothing is wrong.
    #[track_caller]
    pub fn until_idle(&self) -> Value {
        self.until("idle", |status| status["phase"] == "idle" && status["debt"].is_null() && status["ready"] == true)
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the sidecar's log\n{}", self.log());
        }
    }
}

/// A volume as the kubelet writes it (pkg/volume/util/atomic_writer.go).
pub struct Volume {
    /// Where it is mounted.
    pub path: PathBuf,
    /// How long it takes from the first preparations of a swap to its rename.
    pub pause: Duration,
    version: u32,
}

impl Volume {
    /// A volume that holds these keys.
    pub fn new(path: PathBuf, files: &[(&str, &str)]) -> Self {
        fs::create_dir_all(&path).unwrap();
        let mut volume = Self { path, pause: Duration::ZERO, version: 0 };
        volume.swap(files);
        volume
    }

    /// Replaces its content in one rename of `..data`.
    pub fn swap(&mut self, files: &[(&str, &str)]) {
        let name = self.prepare(files);
        std::thread::sleep(self.pause);
        self.finish(&name, files);
    }

    /// Writes the next content's directory; its name.
    pub fn prepare(&mut self, files: &[(&str, &str)]) -> String {
        self.version += 1;
        let name = format!("..2026_11_24_07_00_00.{}", self.version);
        fs::create_dir(self.path.join(&name)).unwrap();
        for (key, value) in files {
            fs::write(self.path.join(&name).join(key), value).unwrap();
        }
        name
    }

    /// Renames `..data` to a prepared directory, and cleans up.
    pub fn finish(&self, name: &str, files: &[(&str, &str)]) {
        use std::os::unix::fs::symlink;
        let old = fs::read_link(self.path.join("..data")).ok();
        symlink(name, self.path.join("..data_tmp")).unwrap();
        fs::rename(self.path.join("..data_tmp"), self.path.join("..data")).unwrap();
        for (key, _) in files {
            if fs::symlink_metadata(self.path.join(key)).is_err() {
                symlink(Path::new("..data").join(key), self.path.join(key)).unwrap();
            }
        }
        for entry in fs::read_dir(&self.path).unwrap() {
            let name = entry.unwrap().file_name();
            let name = name.to_str().unwrap();
            if !name.starts_with("..") && !files.iter().any(|(key, _)| *key == name) {
                fs::remove_file(self.path.join(name)).unwrap();
            }
        }
        if let Some(old) = old {
            fs::remove_dir_all(self.path.join(old)).unwrap();
        }
    }
}
