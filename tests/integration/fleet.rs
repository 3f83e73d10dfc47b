//! A fleet of thirty, each with an nginx of its own that a client asks all the time, at a real API server whose namespace
//! holds much else.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::support::apiserver::{ADMIN, ApiServer};
use super::support::child::pid_of;
use super::support::port::free_port;
use super::support::sidecar::Sidecar;

const REPLICAS: usize = 30;
const NOISE: usize = 1000;
/// For a whole rollout, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(5);

const TEMPLATE: &str = r#"worker_processes 1;
daemon off;
pid {{ env('OWN') }}/nginx.pid;
error_log {{ env('OWN') }}/nginx.log notice;
events { worker_connections 64; }
http {
    access_log off;
    client_body_temp_path {{ env('OWN') }}; proxy_temp_path {{ env('OWN') }}; fastcgi_temp_path {{ env('OWN') }};
    uwsgi_temp_path {{ env('OWN') }}; scgi_temp_path {{ env('OWN') }};
    server {
        listen 127.0.0.1:{{ env('PORT') }};
        {{ data.extra }}
        location / { return 200 "config {{ data.version }}"; }
    }
}
"#;

/// An nginx. Ended when dropped.
struct Nginx(Child);

impl Nginx {
    fn start(own: &Path) -> Self {
        // It dies with this thread also when the whole test is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).arg(nginx()).arg("-p").arg(own).arg("-e").arg(own.join("nginx.log"));
        command.arg("-c").arg(own.join("conf/nginx.conf"));
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = kill(pid_of(&self.0), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn nginx() -> String {
    std::env::var("TRIMTAB_TEST_NGINX").expect("TRIMTAB_TEST_NGINX is not set: run `make test`, or see its lines there")
}

struct Replica {
    // In this order: the sidecar's process, then the main one.
    sidecar: Sidecar,
    main: Option<Nginx>,
    own: PathBuf,
    port: u16,
}

impl Replica {
    fn start(server: &ApiServer, namespace: &str, dir: &Path, i: usize) -> Self {
        let own = dir.join(i.to_string());
        fs::create_dir(&own).unwrap();
        let port = free_port();
        let (text, source) = (own.to_str().unwrap(), format!("{namespace}/web"));
        let (name, uid, number) = (format!("web-{i}"), format!("0000-{i}"), port.to_string());
        let env =
            [("POD_NAME", &*name), ("POD_NAMESPACE", namespace), ("POD_UID", &*uid), ("OWN", text), ("PORT", &*number)];
        let (output, template) = (format!("{text}/conf"), dir.join("nginx.conf.j2"));
        let process = regex_lite::escape(&format!("{output}/nginx.conf"));
        let validator = format!("{} -t -q -p {text} -e stderr -c {{dir}}/nginx.conf", nginx());
        let kubeconfig = server.kubeconfig(ADMIN);
        let flags = [
            &["--configmap", &source, "--kubeconfig", kubeconfig.to_str().unwrap(), "--output", &output][..],
            &["--template", template.to_str().unwrap(), "--env", "OWN", "--env", "PORT", "--debounce", "20ms"],
            &["--validate", &validator, "--signal", "HUP", "--process", "nginx", "--process-args", &process],
            &["--confirm-workers", "--confirm-alive", "300ms", "--confirm-timeout", "5s"],
            &["--rollout", "web", "--rollout-bake", "1s", "--rollout-spread", "2s"],
        ];
        let sidecar = Sidecar::start_with(&dir.join(format!("log-{i}")), &env, flags.concat());
        Self { sidecar, main: None, own, port }
    }

    fn serves(&self) -> String {
        ask(self.port).unwrap_or_default()
    }

    fn counted(&self, metric: &str) -> usize {
        let metrics = self.sidecar.request("--listen", "GET", "/metrics").unwrap_or_default().1;
        let value = metrics.lines().find_map(|line| line.strip_prefix(metric)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {metric} in {metrics}"))
    }
}

/// What is answered by 200.
fn ask(port: u16) -> Result<String, String> {
    let error = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(error)?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(error)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").map_err(error)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(error)?;
    let body = answer.split_once("\r\n\r\n").filter(|(head, _)| head.starts_with("HTTP/1.1 200"));
    body.map(|(_, body)| body.to_owned()).ok_or_else(|| format!("{answer:?}"))
}

/// Asks all of them, one after the other, until it is dropped.
struct Clients {
    over: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Clients {
    fn start(ports: Vec<u16>) -> Self {
        let (over, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (ends, counter) = (over.clone(), asked.clone());
        let thread = std::thread::spawn(move || {
            let mut failed = Vec::new();
            for port in ports.iter().cycle() {
                if ends.load(Ordering::SeqCst) {
                    break;
                }
                let answer = ask(*port);
                counter.fetch_add(1, Ordering::SeqCst);
                failed.extend(answer.err());
                std::thread::sleep(Duration::from_millis(1));
            }
            failed
        });
        Self { over, asked, thread: Some(thread) }
    }

    /// What failed.
    fn end(mut self) -> Vec<String> {
        self.over.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

struct Fleet {
    client: Client,
    namespace: String,
    replicas: Vec<Replica>,
}

impl Fleet {
    async fn edit(&self, version: u32, extra: &str) {
        let patch = json!({"data": {"version": version.to_string(), "extra": extra}});
        let objects: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        objects.patch("web", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    /// The Lease's annotation.
    async fn lease(&self, name: &str) -> String {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let lease = leases.get_opt("trimtab-web").await.unwrap();
        let annotations = lease.and_then(|lease| lease.metadata.annotations).unwrap_or_default();
        annotations.get(&format!("trimtab.dev/{name}")).cloned().unwrap_or_default()
    }

    async fn until(&self, what: &str, condition: impl AsyncFn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self).await {
            let serve: Vec<_> = self.replicas.iter().map(Replica::serves).collect();
            let (state, reason) = (self.lease("state").await, self.lease("reason").await);
            assert!(Instant::now() < deadline, "never: {what}; {state}: {reason}; they serve {serve:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn all_serve(&self, content: &str) -> bool {
        self.replicas.iter().all(|replica| replica.serves() == content)
    }

    /// Objects that are none of the fleet's.
    async fn noise(&self) {
        let mut tasks = JoinSet::new();
        for i in 0..NOISE {
            let (client, namespace) = (self.client.clone(), self.namespace.clone());
            let name = json!({"metadata": {"name": format!("noise-{i}")}});
            tasks.spawn(async move {
                if i % 2 == 0 {
                    let object: ConfigMap = serde_json::from_value(name).unwrap();
                    Api::namespaced(client, &namespace).create(&PostParams::default(), &object).await.map(drop)
                } else {
                    let object: Lease = serde_json::from_value(name).unwrap();
                    Api::namespaced(client, &namespace).create(&PostParams::default(), &object).await.map(drop)
                }
            });
            if tasks.len() >= 20 {
                tasks.join_next().await.unwrap().unwrap().unwrap();
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap().unwrap();
        }
    }
}

/// A bad edit that `nginx -t` passes is taken by exactly one nginx, and rejected there; the 29 others are untouched, and no
/// request fails. A good edit reaches all; what was good before is gone back to at once.
#[tokio::test]
async fn thirty_replicas_take_what_is_good_and_one_of_them_what_is_bad() {
    let server = ApiServer::shared().await;
    let (client, namespace) = (server.client(ADMIN).await, server.namespace().await);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("nginx.conf.j2"), TEMPLATE).unwrap();
    let object = json!({"metadata": {"name": "web"}, "data": {"version": "1", "extra": ""}});
    let object: ConfigMap = serde_json::from_value(object).unwrap();
    Api::namespaced(client.clone(), &namespace).create(&PostParams::default(), &object).await.unwrap();
    let replicas = (0..REPLICAS).map(|i| Replica::start(&server, &namespace, dir.path(), i)).collect();
    let mut fleet = Fleet { client, namespace, replicas };
    fleet
        .until("all have published", async |fleet| {
            fleet.replicas.iter().all(|replica| replica.own.join("conf/nginx.conf").exists())
        })
        .await;
    for replica in &mut fleet.replicas {
        replica.main = Some(Nginx::start(&replica.own));
    }
    fleet.until("all serve", async |fleet| fleet.all_serve("config 1")).await;
    fleet.until("the first change is the fleet's", async |fleet| fleet.lease("state").await == "done").await;
    for replica in &fleet.replicas {
        replica.sidecar.until("it is settled", |status| {
            status["rollout"]["state"] == "done" && status["verdict"]["state"] == "in-effect"
        });
    }
    let first = fleet.lease("candidate").await;
    let clients = Clients::start(fleet.replicas.iter().map(|replica| replica.port).collect());
    fleet.noise().await;

    // A port that somebody else has: nginx -t passes it.
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    fleet.edit(2, &format!("listen 127.0.0.1:{};", taken.local_addr().unwrap().port())).await;
    fleet.until("it is stopped", async |fleet| fleet.lease("state").await == "stopped").await;
    for replica in &fleet.replicas {
        replica.sidecar.until("it knows that it was stopped, and has what was good", |status| {
            status["rollout"]["state"] == "stopped" && status["published"]["sequence"] == 1 && status["debt"].is_null()
        });
    }
    let rejected = fleet.replicas.iter().map(|replica| replica.counted("trimtab_rollbacks_total ")).sum::<usize>();
    assert_eq!(rejected, 1, "one replica took it");
    let touched = |replica: &&Replica| fs::read_to_string(replica.own.join("nginx.log")).unwrap().contains("bind() to");
    let touched: Vec<_> = fleet.replicas.iter().filter(touched).collect();
    assert_eq!(touched.len(), 1, "and one main process");
    assert_eq!(touched[0].counted("trimtab_rollbacks_total "), 1);
    assert!(fleet.all_serve("config 1"));

    fleet.edit(3, "").await;
    fleet
        .until("it is done", async |fleet| {
            fleet.lease("state").await == "done" && fleet.lease("candidate").await != first
        })
        .await;
    fleet.until("all serve it", async |fleet| fleet.all_serve("config 3")).await;

    // What the fleet has had needs no rollout: nobody claims anything.
    fleet.edit(1, "").await;
    fleet
        .until("all serve what they had before", async |fleet| {
            let state = fleet.lease("state").await;
            assert_eq!(state, "done", "nobody waits for anybody");
            fleet.all_serve("config 1")
        })
        .await;
    fleet.until("new Pods start from it", async |fleet| fleet.lease("candidate").await == first).await;

    assert!(clients.asked.load(Ordering::SeqCst) > REPLICAS);
    assert_eq!(clients.end(), [""; 0], "no request failed");
}
