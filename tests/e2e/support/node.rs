//! The node that these tests run on: kubectl, its daemons, and who has it alone.

use std::env;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// For what takes a Pod's start or the kubelet's next sync, on a machine that may be busy.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// How often a condition is looked at.
pub const PACE: Duration = Duration::from_millis(50);

static NODE: RwLock<()> = RwLock::new(());

/// Held by a test for as long as it needs the node whole, or broken.
#[expect(dead_code, reason = "guards are held, not read")]
pub enum Share {
    /// With others.
    Whole(RwLockReadGuard<'static, ()>),
    /// Alone: this test stops daemons.
    Alone(RwLockWriteGuard<'static, ()>),
}

impl Share {
    pub fn whole() -> Self {
        Self::Whole(NODE.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn alone() -> Self {
        Self::Alone(NODE.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The node's folder: `log/`, `pid/`, `kubelet/`.
pub fn folder() -> PathBuf {
    env::var_os("NODE").map(PathBuf::from).expect("these tests run on a node of their own: make e2e")
}

/// `tests/node/daemon WHAT NAME`: start, stop, kill or restart one of the node's daemons, and wait until that is done.
pub fn daemon(what: &str, name: &str) {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/daemon");
    let status = Command::new(program).args([what, name]).status().unwrap();
    assert!(status.success(), "daemon {what} {name}");
}

/// Runs kubectl, with something on its standard input.
pub fn kubectl_with(args: &[&str], input: &str) -> Output {
    folder();
    let mut command = Command::new("kubectl");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// What kubectl prints, if it succeeds; else what it says.
pub fn kubectl_try(args: &[&str]) -> Result<String, String> {
    let output = kubectl_with(args, "");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// What kubectl prints.
///
/// # Panics
/// When it fails.
pub fn kubectl(args: &[&str]) -> String {
    kubectl_try(args).unwrap_or_else(|error| panic!("kubectl {}: {error}", args.join(" ")))
}

/// The condition's value, as soon as it has one.
///
/// # Panics
/// When it has none within [`PATIENCE`].
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, condition)
}

/// [`eventually`], with a deadline of the caller's.
pub fn within<T>(patience: Duration, what: &str, condition: impl FnMut() -> Option<T>) -> T {
    polled(patience, PACE, condition).unwrap_or_else(|| panic!("not within {patience:?}: {what}"))
}

/// The condition's value, asked for at this pace; none at the deadline, for whoever can say more of what was seen.
pub fn polled<T>(patience: Duration, pace: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        let value = condition();
        if value.is_some() || Instant::now() >= deadline {
            return value;
        }
        sleep(pace);
    }
}
