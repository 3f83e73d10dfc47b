//! A moto: AWS' token service and its S3. Who asks for an object must have signed by credentials that the token service
//! handed out, and the role's policy must allow it. What moto does not verify is the token that it hands them out for.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::child::Running;

const PATIENCE: Duration = Duration::from_mins(2);
/// Moto's server; but who asks for a role by a token has no key to sign with, and moto would want a signature of that too.
const SERVER: &str = "
import sys
from moto.core.authorization import ActionAuthenticatorMixin
from moto.server import main
verify = ActionAuthenticatorMixin._authenticate_and_authorize_action
def verify_others(self, *args, **others):
    if self._get_action() != 'AssumeRoleWithWebIdentity':
        verify(self, *args, **others)
ActionAuthenticatorMixin._authenticate_and_authorize_action = verify_others
main(sys.argv[1:])
";
/// The account that moto has.
const ACCOUNT: &str = "123456789012";

/// One with the bucket `lists`.
pub struct Moto {
    // It ends before its folder goes.
    _running: Running,
    folder: tempfile::TempDir,
    url: String,
    /// Of the one who writes to the bucket: `KEY:SECRET`.
    writer: String,
}

impl Moto {
    /// Waits until it serves.
    pub fn start(address: Ipv4Addr, port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let modules = std::env::var_os("TRIMTAB_TEST_MOTO").expect("TRIMTAB_TEST_MOTO is not set: run `make test`");
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new("python3");
        command.args(["-c", SERVER, "-H", &address.to_string(), "-p", &port.to_string()]);
        command
            .env("PYTHONPATH", modules)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("INITIAL_NO_AUTH_ACTION_COUNT", "inf");
        command.env("MOTO_RECORDER_FILEPATH", folder.path().join("requests"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let running = Running(command.spawn().unwrap());
        let url = format!("http://{address}:{port}");
        let mut moto = Self { _running: running, folder, url, writer: "any:any".to_owned() };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect((address, port)).is_err() {
            assert!(Instant::now() < deadline, "moto does not serve: {}", moto.log());
            sleep(Duration::from_millis(20));
        }
        moto.curl("s3", &["-X", "PUT"], "/lists");
        moto.iam("CreateUser", &[("UserName", "writer")]);
        let all = policy("s3:*", "*");
        moto.iam("PutUserPolicy", &[("UserName", "writer"), ("PolicyName", "write"), ("PolicyDocument", &all)]);
        let key = moto.iam("CreateAccessKey", &[("UserName", "writer")]);
        let element = |name: &str| {
            let (_, rest) = key.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("no {name}: {key}"));
            rest.split_once('<').unwrap().0.to_owned()
        };
        moto.writer = format!("{}:{}", element("AccessKeyId"), element("SecretAccessKey"));
        moto
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// A role that is allowed an action on what is in the bucket: its ARN.
    pub fn role(&self, name: &str, action: &str) -> String {
        let trust = json!({"Version": "2012-10-17", "Statement": []}).to_string();
        self.iam("CreateRole", &[("RoleName", name), ("AssumeRolePolicyDocument", &trust)]);
        let allowed = policy(action, "arn:aws:s3:::lists/*");
        self.iam("PutRolePolicy", &[("RoleName", name), ("PolicyName", "lists"), ("PolicyDocument", &allowed)]);
        format!("arn:aws:iam::{ACCOUNT}:role/{name}")
    }

    /// From now on each request must be signed and allowed, and is kept.
    pub fn guard(&self) {
        self.curl("s3", &["-X", "POST"], "/moto-api/recorder/start-recording");
        self.curl("s3", &["-H", "Content-Type: text/plain", "-d", "0"], "/moto-api/reset-auth");
    }

    pub fn put(&self, key: &str, file: &Path) {
        let flags = ["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD", "-T", file.to_str().unwrap()];
        self.curl("s3", &flags, &format!("/lists/{key}"));
    }

    /// What came of the requests so far that begin so, such as `GET /lists/`: their statuses.
    pub fn answers(&self, request: &str) -> Vec<String> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| line.split_once(request)?.1.rsplit_once(' ')?.0.rsplit_once(' '));
        lines.map(|(_, status)| status.to_owned()).collect()
    }

    /// The tokens that somebody has asked for a role's credentials with, since it is guarded.
    pub fn tokens(&self) -> Vec<String> {
        let requests = fs::read_to_string(self.folder.path().join("requests")).unwrap_or_default();
        let bodies = requests.lines().filter_map(|line| {
            let request: Value = serde_json::from_str(line).ok()?;
            String::from_utf8(STANDARD.decode(request["body"].as_str()?).ok()?).ok()
        });
        let token = |body: String| {
            let (_, rest) = body.split_once("WebIdentityToken=")?;
            rest.split('&').next().map(str::to_owned)
        };
        bodies.filter_map(token).collect()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn iam(&self, action: &str, parameters: &[(&str, &str)]) -> String {
        let all = [&[("Action", action), ("Version", "2010-05-08")][..], parameters].concat();
        let texts: Vec<_> = all.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let flags: Vec<_> = texts.iter().flat_map(|text| ["--data-urlencode", text]).collect();
        self.curl("iam", &flags, "/")
    }

    fn curl(&self, service: &str, flags: &[&str], path: &str) -> String {
        let mut command = Command::new("curl");
        command.args(["-sS", "--fail-with-body", "--noproxy", "*", "--user", &self.writer]);
        command.args(["--aws-sigv4", &format!("aws:amz:us-east-1:{service}")]).args(flags);
        let done = command.arg(format!("{}{path}", self.url)).output().unwrap();
        assert!(done.status.success(), "{path}: {done:?}\n{}", self.log());
        String::from_utf8(done.stdout).unwrap()
    }
}

fn policy(action: &str, resource: &str) -> String {
    let statement = json!({"Effect": "Allow", "Action": [action], "Resource": resource});
    json!({"Version": "2012-10-17", "Statement": [statement]}).to_string()
}
