//! The recipes of docs/main-processes.md that no other test tries: a good edit, a bad one, and a good one again.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};

use super::support::child::pid_of;
use super::support::port::free_port;
use super::support::sidecar::{eventually, needs_root};
use super::support::stage::Stage;

/// What a reload and its confirmation may take here.
const QUICK: [&str; 6] = ["--confirm-alive", "300ms", "--confirm-timeout", "3s", "--retry-max", "500ms"];

/// A program of one of Debian's packages.
fn debian(package: &str, program: &str) -> PathBuf {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/debian");
    path_of(Command::new(tool).args([package, program]))
}

/// What one of `tests/tools` prints.
fn tool(name: &str, args: &[&str]) -> PathBuf {
    path_of(Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools").join(name)).args(args))
}

fn path_of(command: &mut Command) -> PathBuf {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// A main process, and all that it starts.
struct Main(Child);

impl Drop for Main {
    fn drop(&mut self) {
        let _ = killpg(pid_of(&self.0), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// Where a bad edit ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bad {
    /// The validator rejects it: it was never visible.
    Rejected,
    /// The answer to `--reload-exec` or `--reload-url` refuses it: it is rolled back.
    Refused,
    /// The main process does not take it: it is rolled back.
    RolledBack,
}

/// A main process with its flags.
struct Recipe<'a> {
    stage: Stage,
    command: Vec<String>,
    flags: Vec<String>,
    /// The configuration of an edit.
    config: &'a dyn Fn(usize) -> String,
    bad: String,
    ends: Bad,
    /// Which edit the main process runs.
    runs: &'a dyn Fn(u32) -> Option<usize>,
}

impl Recipe<'_> {
    /// Good, bad, good: what is good runs in one and the same process.
    fn passes(mut self) {
        self.stage.edit(&(self.config)(1));
        // Nobody is watched.
        let quick = if self.ends == Bad::Refused { &QUICK[4..] } else { &QUICK };
        let flags: Vec<_> = quick.iter().copied().chain(self.flags.iter().map(String::as_str)).collect();
        let sidecar = self.stage.start(&flags);
        eventually("the first configuration is published", || self.stage.published());
        let mut command = Command::new(&self.command[0]);
        let log = fs::File::create(self.stage.at("program.log")).unwrap();
        command.args(&self.command[1..]).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut main = Main(command.process_group(0).spawn().unwrap());
        let pid = main.0.id();
        let runs = |edit| eventually(&format!("it runs edit {edit}"), || ((self.runs)(pid)? == edit).then_some(()));
        runs(1);
        sidecar.until_idle();
        self.stage.edit(&(self.config)(2));
        runs(2);
        let good = sidecar.until("edit 2 is confirmed", |now| {
            now["phase"] == "idle" && now["confirmed"]["sequence"] == 2 && now["published"]["sequence"] == 2
        });
        self.stage.edit(&self.bad);
        let stage = match self.ends {
            Bad::Rejected => "validate",
            Bad::Refused => "reload",
            Bad::RolledBack => "confirm",
        };
        let status = sidecar.until("the bad edit is rejected", |now| {
            let of_stage = now["quarantine"]["stage"] == stage || now["errors"][stage].is_object();
            now["phase"] == "idle" && now["debt"].is_null() && of_stage
        });
        assert_eq!(status["published"]["digest"], good["published"]["digest"], "{status}");
        runs(2);
        self.stage.edit(&(self.config)(3));
        runs(3);
        assert!(main.0.try_wait().unwrap().is_none(), "it has ended: {}", sidecar.log());
    }
}

fn strings<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

/// The answer of an HTTP server here.
fn get(port: u16, path: &str) -> Option<String> {
    get_as("", port, path)
}

/// The same with a line of the head.
fn get_as(header: &str, port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n{header}\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// The number after `edit-` in what something answers.
fn edit_in(answer: &str) -> Option<usize> {
    let (_, after) = answer.split_once("edit-")?;
    after.split(|it: char| !it.is_ascii_digit()).next()?.parse().ok()
}

/// The answer to a DNS question for a TXT record of `edit.example`.
fn txt(port: u16) -> Option<String> {
    const QUESTION: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04edit\x07example\x00\x00\x10\x00\x01";
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
    socket.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    socket.send_to(QUESTION, (Ipv4Addr::LOCALHOST, port)).ok()?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer[..length]).into_owned())
}

#[test]
fn apache_takes_good_edits_and_a_validator_keeps_bad_ones_from_ending_it() {
    needs_root("start Apache, which changes its user");
    let (stage, port) = (Stage::new(""), free_port());
    let apache = debian("apache2-bin", "apache2").to_str().unwrap().to_owned();
    let root = PathBuf::from(&apache).with_file_name("root/usr/lib/apache2/modules");
    // Where Apache is installed, its modules are there.
    let modules = if root.exists() { root } else { PathBuf::from("/usr/lib/apache2/modules") };
    let (modules, own) = (modules.display(), stage.text(""));
    let config = |edit| {
        format!(
            "ServerRoot {own}\nServerName localhost\nPidFile {own}/apache.pid\nListen 127.0.0.1:{port}\n\
             LoadModule mpm_event_module {modules}/mod_mpm_event.so\n\
             LoadModule authz_core_module {modules}/mod_authz_core.so\n\
             LoadModule status_module {modules}/mod_status.so\n\
             User nobody\nGroup nogroup\nStartServers 1\nErrorLog {own}/error.log\nDocumentRoot {own}\n\
             ErrorDocument 404 \"edit-{edit}\"\n\
             <Location /server-status>\nSetHandler server-status\n</Location>\n"
        )
    };
    let file = stage.text("conf/app.conf");
    let status = format!("http://127.0.0.1:{port}/server-status?auto");
    let mut flags = strings(["--signal", "USR1", "--pid-file", &stage.text("apache.pid"), "--confirm-url", &status]);
    flags.extend(strings(["--confirm-changed", r"ParentServerConfigGeneration: (\d+)"]));
    flags.extend(strings(["--validate", &format!("{apache} -t -f {{dir}}/app.conf")]));
    Recipe {
        command: strings([&apache, "-D", "FOREGROUND", "-f", &file]),
        flags,
        bad: config(9) + "Frobnicate on\n",
        config: &config,
        ends: Bad::Rejected,
        runs: &|_| edit_in(&get(port, "/nothing")?),
        stage,
    }
    .passes();
}

#[test]
fn php_fpm_takes_good_edits_and_a_validator_keeps_bad_ones_from_ending_it() {
    needs_root("start php-fpm, which changes its user");
    let stage = Stage::new("");
    let program = debian("php8.2-fpm", "php-fpm8.2").to_str().unwrap().to_owned();
    let own = stage.text("");
    // As many workers as the edit's number.
    let config = |edit: usize| {
        format!(
            "[global]\npid = {own}/fpm.pid\nerror_log = {own}/fpm.log\ndaemonize = no\n\
             [www]\nuser = nobody\ngroup = nogroup\nlisten = {own}/fpm.sock\npm = static\npm.max_children = {edit}\n"
        )
    };
    let children = |pid: u32| {
        let stats = fs::read_dir("/proc").ok()?.filter_map(|entry| {
            let stat = fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
            stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
        });
        Some(stats.filter(|parent| *parent == pid).count())
    };
    let mut flags = strings(["--signal", "USR2", "--pid-file", &stage.text("fpm.pid"), "--confirm-workers"]);
    flags.extend(strings(["--validate", &format!("{program} -t -n -y {{dir}}/app.conf")]));
    Recipe {
        command: strings([&program, "-F", "-n", "-y", &stage.text("conf/app.conf")]),
        flags,
        bad: config(4) + "frobnicate = on\n",
        config: &config,
        ends: Bad::Rejected,
        runs: &children,
        stage,
    }
    .passes();
}

#[test]
fn unbound_takes_good_edits_and_a_validator_keeps_bad_ones_from_ending_it() {
    let (stage, port) = (Stage::new(""), free_port());
    let unbound = debian("unbound", "unbound");
    let own = stage.text("");
    let config = |edit| {
        format!(
            "server:\n  interface: 127.0.0.1\n  port: {port}\n  do-daemonize: no\n  chroot: \"\"\n  username: \"\"\n  \
             directory: \"{own}\"\n  pidfile: \"{own}/unbound.pid\"\n  use-syslog: no\n  \
             local-zone: \"example.\" static\n  local-data: 'edit.example. TXT \"edit-{edit}\"'\n\
             remote-control:\n  control-enable: no\n"
        )
    };
    let checker = unbound.with_file_name("unbound-checkconf");
    let mut flags = strings(["--signal", "HUP", "--pid-file", &stage.text("unbound.pid")]);
    flags.extend(strings(["--validate", &format!("{} {{dir}}/app.conf", checker.display())]));
    Recipe {
        command: strings([unbound.to_str().unwrap(), "-d", "-c", &stage.text("conf/app.conf")]),
        flags,
        bad: config(9) + "frobnicate: on\n",
        config: &config,
        ends: Bad::Rejected,
        runs: &|_| edit_in(&txt(port)?),
        stage,
    }
    .passes();
}

/// BIND's `config-time` changes when it refuses a configuration, too: the name of a view shows which one it runs.
#[test]
fn bind_takes_good_edits_and_bad_ones_are_rolled_back() {
    let (stage, port, statistics) = (Stage::new(""), free_port(), free_port());
    let named = debian("bind9", "named").to_str().unwrap().to_owned();
    let own = stage.text("");
    let config = |edit| {
        format!(
            "options {{ directory \"{own}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; \
             pid-file \"{own}/named.pid\"; session-keyfile \"{own}/session.key\"; recursion no; \
             managed-keys-directory \"{own}\"; dnssec-validation no; }};\n\
             controls {{ }};\n\
             statistics-channels {{ inet 127.0.0.1 port {statistics} allow {{ 127.0.0.1; }}; }};\n\
             view \"DIGEST\" {{ zone \"edit-{edit}\" {{ type primary; database \"_builtin empty . .\"; }}; }};\n"
        )
    };
    let template = stage.write("app.conf.j2", r#"{{ data["app.conf"] | replace("DIGEST", generation.digest) }}"#);
    let zones = format!("http://127.0.0.1:{statistics}/json/v1/zones");
    let mut flags = strings(["--template", &template, "--signal", "HUP", "--pid-file", &stage.text("named.pid")]);
    flags.extend(strings(["--confirm-url", &zones, "--confirm-match", r#""{digest}""#]));
    Recipe {
        command: strings([&named, "-g", "-n", "1", "-c", &stage.text("conf/app.conf")]),
        flags,
        bad: config(9) + "frobnicate on;\n",
        config: &config,
        ends: Bad::RolledBack,
        runs: &|_| edit_in(&get(statistics, "/json/v1/zones")?),
        stage,
    }
    .passes();
}

/// A query for a TXT record of `trimtab`, as base64 in a URL (RFC 8484).
const DIGEST_BY_HTTP: &str = "dns-query?dns=AAABAAABAAAAAAAAB3RyaW10YWIAABAAAQ";

/// Its metrics do not change at a signal: a server of its own answers the digest, by DNS over HTTP.
#[test]
fn coredns_takes_good_edits_and_bad_ones_are_rolled_back() {
    let (stage, port, http) = (Stage::new(""), free_port(), free_port());
    let coredns = tool("build", &["coredns"]).join("coredns").to_str().unwrap().to_owned();
    let answer = |text: &str| format!("answer \"{{{{ .Name }}}} 0 IN TXT {text}\"");
    let config = |edit| {
        format!(
            ".:{port} {{\n  bind 127.0.0.1\n  template IN TXT example {{\n    {}\n  }}\n}}\n\
             https://trimtab:{http} {{\n  bind 127.0.0.1\n  template IN TXT trimtab {{\n    {}\n  }}\n}}\n",
            answer(&format!("edit-{edit}")),
            answer("DIGEST"),
        )
    };
    let template = stage.write("app.conf.j2", r#"{{ data["app.conf"] | replace("DIGEST", generation.digest) }}"#);
    let url = format!("http://127.0.0.1:{http}/{DIGEST_BY_HTTP}");
    let file = stage.text("conf/app.conf");
    let mut flags = strings(["--template", &template, "--signal", "USR1", "--process-args", &file]);
    flags.extend(strings(["--confirm-url", &url, "--confirm-match", "{digest}"]));
    Recipe {
        command: strings([&coredns, "-conf", &file]),
        flags,
        bad: config(9).replace("bind", "frobnicate"),
        config: &config,
        ends: Bad::RolledBack,
        runs: &|_| edit_in(&txt(port)?),
        stage,
    }
    .passes();
}

#[test]
fn gunicorn_takes_good_edits_and_a_validator_keeps_bad_ones_from_ending_it() {
    let (stage, port) = (Stage::new(""), free_port());
    let own = stage.text("");
    stage.write(
        "web.py",
        "import os\ndef app(environ, start):\n    start('200 OK', [])\n    return [os.environ['EDIT'].encode()]\n",
    );
    let config = |edit| {
        format!(
            "bind = '127.0.0.1:{port}'\npidfile = '{own}/pid'\nwsgi_app = 'web:app'\n\
             graceful_timeout = 1\nraw_env = ['EDIT=edit-{edit}']\n"
        )
    };
    let folder = format!("PYTHONPATH={}:{own}", tool("gunicorn", &[]).display());
    let gunicorn = ["env", &folder, "PYTHONDONTWRITEBYTECODE=1", "python3", "-m", "gunicorn"];
    let validate = format!("{} --check-config -c {{dir}}/app.conf", gunicorn.join(" "));
    let mut flags = strings(["--signal", "HUP", "--pid-file", &stage.text("pid"), "--confirm-workers"]);
    flags.extend(strings(["--validate", &validate, "--validate-timeout", "1m"]));
    let mut command = gunicorn.map(str::to_owned).to_vec();
    command.extend(strings(["-c", &stage.text("conf/app.conf")]));
    Recipe {
        command,
        flags,
        bad: config(9) + "workers = 'frobnicate'\n",
        config: &config,
        ends: Bad::Rejected,
        runs: &|_| edit_in(&get(port, "/")?),
        stage,
    }
    .passes();
}

/// `redis.conf` is read once; a file of ACLs is loaded as a whole, or not at all.
#[test]
fn redis_loads_good_acls_and_bad_ones_are_rolled_back() {
    let (stage, port) = (Stage::new(""), free_port());
    let beside = debian("redis-tools", "redis-check-rdb");
    let unpacked = beside.with_file_name("root/usr");
    let (bin, libraries) = if unpacked.exists() {
        let arch = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
        (unpacked.join("bin/redis-check-rdb"), unpacked.join(arch).display().to_string())
    } else {
        (beside.clone(), String::new())
    };
    // By this name it is the server; Debian has the link in another package.
    std::os::unix::fs::symlink(bin, stage.at("redis-server")).unwrap();
    let config = |edit| format!("user default on nopass ~* &* +@all\nuser edit-{edit} on nopass ~* +get\n");
    let number = port.to_string();
    let client = beside.with_file_name("redis-cli");
    let load = format!("{} -e -p {number} ACL LOAD", client.display());
    let mut command = strings(["env", &format!("LD_LIBRARY_PATH={libraries}"), &stage.text("redis-server")]);
    command.extend(strings(["--port", &number, "--bind", "127.0.0.1", "--save", "", "--dir", &stage.text("")]));
    command.extend(strings(["--aclfile", &stage.text("conf/app.conf")]));
    let acls = |_| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream.write_all(b"ACL LIST\r\nQUIT\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        edit_in(&answer)
    };
    Recipe {
        command,
        flags: strings(["--reload-exec", &load, "--reload-attempts", "1"]),
        bad: config(9) + "user frobnicate ?\n",
        config: &config,
        ends: Bad::Refused,
        runs: &acls,
        stage,
    }
    .passes();
}

/// A RELOAD is answered before it is known what comes of it, and takes what stands before a mistake. Its last setting says
/// whether it came so far.
#[test]
fn pgbouncer_takes_good_edits_and_bad_ones_are_rolled_back() {
    let (stage, port) = (Stage::new(""), free_port());
    let pgbouncer = debian("pgbouncer", "pgbouncer").to_str().unwrap().to_owned();
    let psql = debian("postgresql-client-15", "psql");
    let own = stage.text("");
    // It does not run as root, and reads what is published.
    nix::unistd::chown(&stage.at(""), Some(65534.into()), None).unwrap();
    let config = |edit: usize| {
        format!(
            "[databases]\nshop = host=127.0.0.1\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = any\nadmin_users = admin\npidfile = {own}/pid\nuser = nobody\n\
             max_client_conn = {}\nserver_check_query = select 1 /* DIGEST */\n",
            100 + edit
        )
    };
    let template = stage.write("app.conf.j2", r#"{{ data["app.conf"] | replace("DIGEST", generation.digest) }}"#);
    let ask = format!("{} -h 127.0.0.1 -p {port} -U admin -d pgbouncer -XAt", psql.display());
    let file = stage.text("conf/app.conf");
    let script = stage.write(
        "reload.sh",
        format!(
            "{ask} -c RELOAD && {ask} -c 'SHOW CONFIG' |\n    \
             grep -qF \"$(sed -n 's/^server_check_query = //p' {file})\"\n"
        ),
    );
    let show = |_| {
        let words: Vec<_> = ask.split(' ').collect();
        let output = Command::new(words[0]).args(&words[1..]).args(["-c", "SHOW CONFIG"]).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let (_, after) = text.split_once("max_client_conn|")?;
        Some(after.split('|').next()?.parse::<usize>().ok()? - 100)
    };
    let mut flags = strings(["--template", &template, "--reload-exec", &format!("sh {script}")]);
    flags.extend(strings(["--reload-attempts", "1", "--reload-timeout", "1m"]));
    Recipe {
        command: strings([&pgbouncer, &file]),
        flags,
        bad: config(9).replace("server_check", "frobnicate = on\nserver_check"),
        config: &config,
        ends: Bad::Refused,
        runs: &show,
        stage,
    }
    .passes();
}

/// As a program of one's own can be: it reads its file at a signal, goes on with the old one if it cannot, and answers
/// which one it runs.
#[test]
fn node_program_takes_good_edits_and_bad_ones_are_rolled_back() {
    let (stage, port) = (Stage::new(""), free_port());
    let node = debian("nodejs", "node").to_str().unwrap().to_owned();
    let file = stage.text("conf/app.conf");
    let program = stage.write(
        "app.js",
        format!(
            "const fs = require('fs'), http = require('http');\n\
             const read = () => JSON.parse(fs.readFileSync('{file}'));\n\
             let config = read();\n\
             process.on('SIGUSR2', () => {{ try {{ config = read(); }} catch (error) {{ console.error(error.message); }} }});\n\
             http.createServer((_, answer) => answer.end(config.digest + ' ' + config.text)).listen({port}, '127.0.0.1');\n"
        ),
    );
    let template =
        stage.write("app.conf.j2", r#"{"digest": "{{ generation.digest }}", "text": {{ data["app.conf"] }}}"#);
    let url = format!("http://127.0.0.1:{port}/");
    let mut flags = strings(["--template", &template, "--signal", "USR2", "--process-args", &program]);
    flags.extend(strings(["--confirm-url", &url, "--confirm-match", "^{digest} "]));
    Recipe {
        command: strings([&node, &program]),
        flags,
        bad: "edit-9".to_owned(),
        config: &|edit| format!("\"edit-{edit}\""),
        ends: Bad::RolledBack,
        runs: &|_| edit_in(&get(port, "/")?),
        stage,
    }
    .passes();
}

/// Its own metrics name the resource that it runs as.
#[test]
fn opentelemetry_collector_takes_good_edits_and_a_validator_keeps_bad_ones_from_ending_it() {
    let (stage, port, metrics) = (Stage::new(""), free_port(), free_port());
    let collector = tool("build", &["otelcol"]).join("otelcol").to_str().unwrap().to_owned();
    let config = |edit| {
        format!(
            "receivers: {{otlp: {{protocols: {{http: {{endpoint: \"127.0.0.1:{port}\"}}}}}}}}\n\
             exporters: {{debug: {{}}}}\n\
             service:\n  pipelines: {{traces: {{receivers: [otlp], exporters: [debug]}}}}\n  telemetry:\n    \
             resource: {{service.name: edit-{edit}, service.instance.id: DIGEST}}\n    \
             metrics: {{readers: [{{pull: {{exporter: {{prometheus: {{host: 127.0.0.1, port: {metrics}}}}}}}}}]}}\n"
        )
    };
    let template = stage.write("app.conf.j2", r#"{{ data["app.conf"] | replace("DIGEST", generation.digest) }}"#);
    let (file, url) = (stage.text("conf/app.conf"), format!("http://127.0.0.1:{metrics}/metrics"));
    let mut flags = strings(["--template", &template, "--signal", "HUP", "--process-args", &file]);
    flags.extend(strings(["--confirm-url", &url, "--confirm-match", r#"service_instance_id="{digest}""#]));
    flags.extend(strings(["--validate", &format!("{collector} validate --config {{dir}}/app.conf")]));
    flags.extend(strings(["--validate-timeout", "1m"]));
    Recipe {
        command: strings([&collector, "--config", &file]),
        flags,
        bad: config(9) + "frobnicate: on\n",
        config: &config,
        ends: Bad::Rejected,
        runs: &|_| edit_in(&get(metrics, "/metrics")?),
        stage,
    }
    .passes();
}

/// `rabbitmq.conf` is read once; definitions are imported at any time, and what is behind a mistake in them is not.
#[test]
fn rabbitmq_imports_good_definitions_and_bad_ones_are_rolled_back() {
    let stage = Stage::new("");
    let [amqp, http, epmd, node] = [(); 4].map(|()| free_port());
    let mut command = vec![tool("rabbitmq", &[]).to_str().unwrap().to_owned(), stage.text("rabbitmq")];
    command.extend([amqp, http, epmd, node].map(|port| port.to_string()));
    let config = |edit| {
        format!(
            r#"{{"global_parameters": [{{"name": "app", "value": "edit-{edit}"}}],
                "policies": [{{"vhost": "/", "name": "length", "pattern": ".*", "definition": {{"max-length": {edit}}}}}]}}"#
        )
    };
    let url = format!("http://127.0.0.1:{http}/api/definitions");
    let mut flags = strings(["--reload-url", &url, "--reload-body", &format!("@{}", stage.text("conf/app.conf"))]);
    flags.extend(strings(["--reload-auth-file", &stage.write("user", "guest:guest"), "--reload-timeout", "1m"]));
    flags.extend(strings(["--reload-header", "Content-Type: application/json"]));
    let imported =
        |_| edit_in(&get_as("Authorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n", http, "/api/global-parameters/app")?);
    Recipe {
        command,
        flags,
        bad: config(9).replace("\"max-length\": 9", "\"max-length\": \"frobnicate\""),
        config: &config,
        ends: Bad::Refused,
        runs: &imported,
        stage,
    }
    .passes();
}

/// As most programs in Java are notified: by a request, which is answered with what came of it.
#[test]
fn java_program_takes_good_edits_and_bad_ones_are_rolled_back() {
    const PROGRAM: &str = r#"
        import com.sun.net.httpserver.HttpServer;
        import java.net.InetSocketAddress;
        import java.nio.file.*;
        import java.util.Properties;

        public class App {
            static volatile Properties config;

            static Properties read(Path file) throws Exception {
                var read = new Properties();
                try (var from = Files.newBufferedReader(file)) { read.load(from); }
                return read;
            }

            public static void main(String[] args) throws Exception {
                var file = Path.of(args[0]);
                config = read(file);
                var server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(args[1])), 0);
                server.createContext("/", exchange -> {
                    var code = 200;
                    var text = "read";
                    if (exchange.getRequestMethod().equals("POST")) {
                        try { config = read(file); } catch (Exception error) { code = 500; text = error.getMessage(); }
                    } else {
                        text = config.getProperty("digest") + " " + config.getProperty("text");
                    }
                    exchange.sendResponseHeaders(code, text.length());
                    try (var body = exchange.getResponseBody()) { body.write(text.getBytes()); }
                });
                server.start();
            }
        }"#;
    let (stage, port) = (Stage::new(""), free_port());
    let java = debian("openjdk-17-jre-headless", "java").to_str().unwrap().to_owned();
    let program = stage.write("App.java", PROGRAM);
    let template = stage.write("app.conf.j2", "digest={{ generation.digest }}\ntext={{ data[\"app.conf\"] }}\n");
    let url = format!("http://127.0.0.1:{port}/");
    let mut flags = strings(["--template", &template, "--reload-url", &url, "--reload-attempts", "1"]);
    flags.extend(strings(["--confirm-url", &url, "--confirm-match", "^{digest} ", "--reload-timeout", "1m"]));
    let mut command = strings([&java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", &program]);
    command.extend(strings([&stage.text("conf/app.conf"), &port.to_string()]));
    Recipe {
        command,
        flags,
        // No such character.
        bad: r"edit-9 \u12".to_owned(),
        config: &|edit| format!("edit-{edit}"),
        ends: Bad::Refused,
        runs: &|_| edit_in(&get(port, "/")?),
        stage,
    }
    .passes();
}
