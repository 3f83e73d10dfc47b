//! A real kube-apiserver, with an etcd of its own, on loopback.
//!
//! A test that breaks the server starts one of its own; all others take the shared one and a namespace of their own.
//! Nothing outlives the test process: each server dies, and its folder goes, with the pipe that this process holds, or
//! before that with its value.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::sleep;

use super::child::pid_of;
use super::port::free_port;

/// May do everything.
pub const ADMIN: &str = "admin";
/// May do nothing, until a test grants it something, in its own namespace.
pub const APP: &str = "app";
/// May do nothing, until a test grants it something in all namespaces.
pub const WIDE: &str = "wide";
/// May do nothing, ever.
pub const NOBODY: &str = "nobody";
const USERS: [&str; 4] = [ADMIN, APP, WIDE, NOBODY];

/// A server takes two seconds; the machine may be busy.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running kube-apiserver. Killed when dropped.
pub struct ApiServer {
    store: Arc<Store>,
    port: u16,
    /// Given to it beside those that all have.
    flags: Vec<String>,
    process: Option<Process>,
}

/// etcd and the files.
struct Store {
    // Dropped in this order: the process before its folder.
    etcd: Mutex<Option<Process>>,
    dir: TempDir,
}

impl Store {
    /// Starts etcd, unless it runs.
    fn start(&self) {
        let mut etcd = self.etcd.lock().unwrap();
        etcd.get_or_insert_with(|| {
            let flags = [
                "--data-dir=etcd-data",
                "--unsafe-no-fsync",
                // Sockets in its folder, by names that etcd takes for host and port.
                "--listen-client-urls=unix://etcd:0",
                "--advertise-client-urls=unix://etcd:0",
                "--listen-peer-urls=unix://peer:0",
                "--initial-advertise-peer-urls=unix://peer:0",
                "--initial-cluster=default=unix://peer:0",
            ];
            Process::start(self.dir.path(), "etcd", &flags)
        });
    }

    /// Kills etcd, and puts a copy of what one folder holds in the place of another.
    fn copy(&self, from: &str, to: &str) {
        *self.etcd.lock().unwrap() = None;
        let script = r#"rm -rf "$1" && cp -r "$0" "$1""#;
        let copied = Command::new("sh").args(["-c", script, from, to]).current_dir(self.dir.path()).status().unwrap();
        assert!(copied.success());
    }
}

impl ApiServer {
    /// Starts a server that is the caller's alone.
    pub async fn start() -> Self {
        Self::start_with(Vec::new()).await
    }

    /// The same, with more flags.
    pub async fn start_with(flags: Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let line =
            |user| format!("{},{user},{user},\"{}\"\n", token(user), if user == ADMIN { "system:masters" } else { "" });
        fs::write(dir.path().join("tokens"), USERS.map(line).concat()).unwrap();
        let store = Arc::new(Store { etcd: Mutex::new(None), dir });
        let mut server = Self { store, port: free_port(), flags, process: None };
        server.start_again().await;
        server
    }

    /// The server that tests share. It is there from the first use to the end of this process.
    pub async fn shared() -> Arc<Self> {
        static SHARED: tokio::sync::OnceCell<Arc<ApiServer>> = tokio::sync::OnceCell::const_new();
        Arc::clone(SHARED.get_or_init(|| async { Arc::new(Self::start().await) }).await)
    }

    /// Another server for the same etcd, on another port: edits what this one serves, also while this one is down.
    pub async fn twin(&self) -> Self {
        let store = Arc::clone(&self.store);
        let mut twin = Self { store, port: free_port(), flags: self.flags.clone(), process: None };
        twin.start_again().await;
        twin
    }

    /// Kills the server, without a chance to say goodbye.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Takes a backup of what it stores, for [`ApiServer::restore`]. It is down for that.
    pub async fn back_up(&mut self) {
        self.kill();
        self.store.copy("etcd-data", "backup");
        self.start_again().await;
    }

    /// Kills the server, and goes back to the backup.
    pub fn restore(&mut self) {
        self.kill();
        self.store.copy("backup", "etcd-data");
    }

    /// Starts the server after [`ApiServer::kill`]: same port, same data.
    pub async fn start_again(&mut self) {
        assert!(self.process.is_none(), "it runs");
        self.store.start();
        for user in USERS {
            let user_entry = json!({"token": token(user)});
            fs::write(self.kubeconfig(user), kubeconfig(self.port, &self.ca(), &user_entry)).unwrap();
        }
        let name = format!("kube-apiserver-{}", self.port);
        let port = format!("--secure-port={}", self.port);
        let mut flags = vec![
            "--etcd-servers=unix://etcd:0",
            "--cert-dir=certs",
            "--bind-address=127.0.0.1",
            &port,
            "--token-auth-file=tokens",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            // The server's own key, which it makes before it reads these.
            "--service-account-key-file=certs/apiserver.key",
            "--service-account-signing-key-file=certs/apiserver.key",
        ];
        flags.extend(self.flags.iter().map(String::as_str));
        self.process = Some(Process::start_as(self.dir(), "kube-apiserver", &name, &flags));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let problem = match self.ready().await {
                Ok(()) => return,
                Err(problem) => problem,
            };
            let process = self.process.as_mut().unwrap();
            let patient = !process.has_ended() && Instant::now() < deadline;
            assert!(patient, "kube-apiserver does not get ready: {problem}\n{}", logs(self.dir()));
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ready(&self) -> Result<(), String> {
        if !self.ca().exists() {
            return Err("no certificate yet".to_owned());
        }
        let client = client(&self.kubeconfig(ADMIN)).await;
        let request = hyper::Request::get("/readyz").body(Vec::new()).unwrap();
        client.request_text(request).await.map(drop).map_err(|error| error.to_string())
    }

    /// Stops the server where it stands: connections are accepted by the kernel, and nothing is answered.
    pub fn suspend(&self) {
        kill(self.pid(), Signal::SIGSTOP).unwrap();
    }

    /// Lets it go on.
    pub fn resume(&self) {
        kill(self.pid(), Signal::SIGCONT).unwrap();
    }

    fn pid(&self) -> Pid {
        self.process.as_ref().expect("it was killed").pid()
    }

    fn dir(&self) -> &Path {
        self.store.dir.path()
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate that signed the server's.
    pub fn ca(&self) -> PathBuf {
        self.dir().join("certs/apiserver.crt")
    }

    /// A kubeconfig for this user.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.dir().join(format!("{user}-{}.kubeconfig", self.port))
    }

    /// A client for this user.
    pub async fn client(&self, user: &str) -> Client {
        client(&self.kubeconfig(user)).await
    }

    /// A fresh namespace.
    pub async fn namespace(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.clone());
        let namespaces: Api<Namespace> = Api::all(self.client(ADMIN).await);
        namespaces.create(&PostParams::default(), &namespace).await.unwrap();
        name
    }
}

/// The token of a user of the server.
pub fn token(user: &str) -> String {
    format!("token-of-{user}")
}

/// A kubeconfig, which is YAML and therefore may be JSON. `user`: its `user` entry.
pub fn kubeconfig(port: u16, ca: &Path, user: &serde_json::Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "here"}}],
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority": ca,
        }}],
        "users": [{"name": "test", "user": user}],
    })
    .to_string()
}

async fn client(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

/// The folder with etcd and kube-apiserver.
fn tools() -> &'static Path {
    static TOOLS: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let tools = TOOLS.get_or_init(|| {
        if let Some(tools) = std::env::var_os("TRIMTAB_TEST_TOOLS") {
            return Ok(tools.into());
        }
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/build");
        let output = Command::new(&build).stderr(Stdio::inherit()).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("{} failed: {}", build.display(), output.status));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().into())
    });
    match tools {
        Ok(tools) => tools,
        Err(error) => panic!("these tests need etcd and kube-apiserver; run tests/tools/build ({error})"),
    }
}

/// What the servers of a folder have written, the last part of each.
fn logs(dir: &Path) -> String {
    let mut logs = String::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let text = fs::read_to_string(&path).unwrap();
            let lines: Vec<_> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(30)..].join("\n");
            logs.extend(["--- ", &path.to_string_lossy(), "\n", &last, "\n"]);
        }
    }
    logs
}

/// A server process. Killed when dropped, and when this process is gone.
struct Process {
    child: Child,
}

impl Process {
    fn start(dir: &Path, program: &str, arguments: &[&str]) -> Self {
        Self::start_as(dir, program, program, arguments)
    }

    /// Runs a program in `dir`; its output goes to NAME.log there.
    fn start_as(dir: &Path, program: &str, name: &str, arguments: &[&str]) -> Self {
        // The shell becomes the server, and leaves a child behind that kills it and removes its folder when the pipe
        // closes: when this process ends, however it does. Others write there until they are killed, too.
        const GUARD: &str = r#"exec 3<&0
            (read -r _ <&3; kill -KILL $$; for _ in 1 2 3 4 5 6 7 8 9; do rm -rf "$PWD" && break; sleep 0.2; done) &
            exec "$0" "$@" 3<&- </dev/null"#;
        let program = tools().join(program);
        assert!(program.exists(), "{} does not exist; run tests/tools/build", program.display());
        let log = fs::OpenOptions::new().create(true).append(true).open(dir.join(format!("{name}.log"))).unwrap();
        let child = Command::new("sh")
            .args(["-c", GUARD])
            .arg(program)
            .args(arguments)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        Self { child }
    }

    fn pid(&self) -> Pid {
        pid_of(&self.child)
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The guard as well. It fails if all have ended.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        self.child.wait().unwrap();
    }
}
