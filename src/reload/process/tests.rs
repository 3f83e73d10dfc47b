//! Real processes, found, held and signalled.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal as Raw, kill, killpg};
use nix::unistd::{Pid, geteuid};
use regex_lite::Regex;
use rustix::process::{PidfdFlags, Uid, pidfd_open};
use tempfile::TempDir;

use super::find::{find_as, hold};
use super::table::{ProcStatus, Process, scan};
use super::target::{handles_by, remedy};
use super::*;

/// No process has this pid, so that the tests' children are not Trimtab's own.
const NOBODY: i32 = i32::MAX;

/// Sleeps until it is killed. A signal with a trap interrupts the read.
const IDLE: &str = "while :; do read -r line <&9; done";

/// A copy of the shell under a name of its own, running a script; killed with its children when dropped.
struct Script {
    child: Child,
    dir: TempDir,
}

impl Script {
    fn start(name: &str, script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(name);
        // By another process: if we held it open for writing, a test that forks just then would keep it busy.
        run(Command::new("cp").arg("/bin/sh").arg(&program));
        run(Command::new("mkfifo").arg(dir.path().join("fifo")));
        let script = format!("exec 9<> $DIR/fifo; {script}");
        let mut command = Command::new(program);
        command.args(["-c", &script, "secret-canary"]).env("DIR", dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.process_group(0).spawn().unwrap();
        Self { child, dir }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    fn say(&self, line: &str) {
        fs::write(self.dir.path().join("fifo"), format!("{line}\n")).unwrap();
    }

    fn has(&self, file: &str) -> bool {
        self.dir.path().join(file).exists()
    }

    fn zombify(&self) {
        kill(Pid::from_raw(self.pid()), Raw::SIGKILL).unwrap();
        until("it is a zombie", || Process::read(self.pid()).is_some_and(|process| !process.is_alive()));
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        killpg(Pid::from_raw(self.pid()), Raw::SIGKILL).unwrap();
        self.child.wait().unwrap();
    }
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success());
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "still not so after 10 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn named(name: &str) -> Selector {
    Selector { name: Some(name.into()), ..Selector::default() }
}

fn by_file(path: &Path) -> Selector {
    Selector { pid_file: Some(path.to_owned()), ..Selector::default() }
}

/// Sends it, as a reload does.
fn send(target: &Target, name: &str) -> Result<(), SignalError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(target.signal(signal(name)))
}

fn signal(name: &str) -> Signal {
    name.parse().unwrap()
}

fn message(result: Result<Target, FindError>) -> String {
    result.map(|target| target.pid).unwrap_err().to_string()
}

/// Runs `test` on a thread of this user; the rest of the process stays as it is.
fn as_user<T: Send + 'static>(user: u32, test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        let user = Uid::from_raw(user);
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        test()
    });
    thread.join().unwrap()
}

#[test]
fn a_process_is_found_by_its_executable_and_arguments() {
    let script = Script::start("tt-found-by-executable", IDLE);
    let target = find_as(&named("tt-found-by-executable"), NOBODY).unwrap();
    assert_eq!((target.pid, target.name.as_str()), (script.pid(), "tt-found-by-executable"));
    assert_eq!(target.uid, geteuid().as_raw());
    assert!(target.is_alive());
    let args = |args| Selector { args: Some(Regex::new(args).unwrap()), ..named("tt-found-by-executable") };
    assert_eq!(find_as(&args(" -c exec .* secret-canary$"), NOBODY).unwrap().pid, script.pid());
    let error = message(find_as(&args("--other"), NOBODY));
    assert!(error.contains("tt-found-by-executable") && error.contains("running are"), "{error}");
    assert!(!error.contains("canary"), "{error}");
    let alone = Selector { name: None, ..args("tt-found-by-executable -c") };
    assert_eq!(find_as(&alone, NOBODY).unwrap().pid, script.pid());
    // As after an upgrade in place: the link ends in ' (deleted)'.
    fs::remove_file(script.dir.path().join("tt-found-by-executable")).unwrap();
    assert_eq!(find_as(&named("tt-found-by-executable"), NOBODY).unwrap().pid, script.pid());
}

#[test]
fn trimtab_its_children_and_pid_1_never_match() {
    let script = Script::start("tt-own-child", IDLE);
    assert!(matches!(find(&named("tt-own-child")), Err(FindError::Missing { .. })));
    let first = Process::read(1).unwrap().name();
    if let Ok(target) = find_as(&named(&first), NOBODY) {
        assert_ne!(target.pid, 1);
    }
    // Whatever process 1 is here: it matches its own name.
    let error = message(find_as(&named(&first), NOBODY));
    let paused = error.contains("no process matches") || error.contains("PID 1 calls itself");
    assert!(paused || error.contains(&format!("PID 1 ({first}) matches, and PID 1 is never taken")), "{error}");
    let error = message(find_as(&named("tt-own-child"), 1));
    assert!(error.contains("shareProcessNamespace: true") && error.contains("--reload-url"), "{error}");
    drop(script);
}

#[test]
fn of_parent_and_child_the_parent_is_meant() {
    let script = Script::start("tt-parent", &format!("( {IDLE} ) & touch $DIR/ready; {IDLE}"));
    until("it has a child", || script.has("ready"));
    let same = scan().unwrap();
    let same = same.values().filter(|process| process.is_alive() && process.has_name("tt-parent"));
    assert_eq!(same.count(), 2);
    assert_eq!(find_as(&named("tt-parent"), NOBODY).unwrap().pid, script.pid());
}

#[test]
fn twins_are_ambiguous_and_neither_is_signalled() {
    let scripts = [Script::start("tt-twin", IDLE), Script::start("tt-twin", &format!(": second; {IDLE}"))];
    let error = message(find_as(&named("tt-twin"), NOBODY));
    for script in &scripts {
        assert!(error.contains(&format!("PID {} (tt-twin)", script.pid())), "{error}");
    }
    assert!(error.contains("--process-args") && error.contains("--pid-file"), "{error}");
    let second = Selector { args: Some(Regex::new(": second").unwrap()), ..named("tt-twin") };
    assert_eq!(find_as(&second, NOBODY).unwrap().pid, scripts[1].pid());
}

#[test]
fn a_signal_waits_until_the_process_handles_it() {
    let script = Script::start("tt-late-trap", &format!("read -r line <&9; trap 'touch $DIR/got' HUP; {IDLE}"));
    let target = find_as(&named("tt-late-trap"), NOBODY).unwrap();
    for name in ["HUP", "USR1", "USR2", "WINCH"] {
        let error = send(&target, name).unwrap_err();
        assert!(matches!(error, SignalError::NotHandling { .. }), "{error}");
    }
    script.say("go");
    until("the signal is taken", || send(&target, "HUP").is_ok());
    until("the signal has arrived", || script.has("got"));
    assert!(target.is_alive());
    assert!(matches!(send(&target, "USR1"), Err(SignalError::NotHandling { .. })));
    send(&target, "TERM").unwrap();
    until("it has ended", || !target.is_alive());
}

/// Runs a program under a name of its own; ended when dropped.
fn named_program(name: &str, program: &str, prefix: &str) -> Script {
    Script::start("tt-launcher", &format!("cp {program} $DIR/{name}; {prefix} $DIR/{name} 1000 & wait"))
}

#[test]
fn a_signal_that_is_blocked_all_the_time_is_handled() {
    let _script = named_program("tt-blocks", "/bin/sleep", "env --block-signal=HUP");
    until("it runs", || find_as(&named("tt-blocks"), NOBODY).is_ok());
    let target = find_as(&named("tt-blocks"), NOBODY).unwrap();
    assert_eq!(send(&target, "HUP").map_err(|error| error.to_string()), Ok(()));
    assert!(matches!(send(&target, "USR1"), Err(SignalError::NotHandling { .. })));
}

#[tokio::test]
async fn a_signal_that_is_blocked_for_a_moment_is_not_handled() {
    let status = |blocked: u64, caught: u64| {
        ProcStatus::parse(format!("Uid:\t1\nSigBlk:\t{blocked:x}\nSigCgt:\t{caught:x}\n").as_bytes()).unwrap()
    };
    for (blocked_looks, caught_then, expected) in [(3, 0, false), (3, 1, true), (1000, 0, true), (0, 0, false)] {
        let mut looks = 0;
        let handled = handles_by(signal("HUP"), || {
            looks += 1;
            let forks = looks <= blocked_looks;
            Ok::<_, SignalError>(status(u64::from(forks), if forks { 0 } else { caught_then }))
        });
        assert_eq!(handled.await.unwrap(), expected, "{blocked_looks} looks, then {caught_then}");
    }
}

#[test]
fn only_a_young_process_with_a_runtime_may_be_starting() {
    let script = Script::start("tt-young", &format!("trap : HUP; touch $DIR/ready; {IDLE}"));
    until("it handles HUP", || script.has("ready"));
    let shell = find_as(&named("tt-young"), NOBODY).unwrap();
    until("it is no longer new", || shell.age() > Duration::from_millis(150));
    assert!(!shell.may_be_starting(signal("HUP")), "a shell asks for each handler");
    let script = Script::start("tt-runtime", &format!("trap : HUP SEGV; touch $DIR/ready; {IDLE}"));
    until("it handles SEGV", || script.has("ready"));
    let runtime = find_as(&named("tt-runtime"), NOBODY).unwrap();
    assert!(runtime.may_be_starting(signal("HUP")));
    let old = Target { start_ticks: 1, ..runtime };
    assert!(!old.may_be_starting(signal("HUP")));
}

#[test]
fn a_zombie_is_no_target_and_is_said_to_be_one() {
    let script = Script::start("tt-zombie-with-a-long-name", IDLE);
    let target = find_as(&named("tt-zombie-with-a-long-name"), NOBODY).unwrap();
    script.zombify();
    assert!(!target.is_alive());
    assert!(matches!(send(&target, "TERM"), Err(SignalError::Gone { .. })));
    let error = message(find_as(&named("tt-zombie-with-a-long-name"), NOBODY));
    assert!(error.contains(&format!("PID {}", script.pid())) && error.contains("has exited"), "{error}");
}

#[test]
fn a_pid_that_was_given_out_again_is_not_held() {
    let script = Script::start("tt-reused", IDLE);
    let pidfd = || pidfd_open(rustix::process::Pid::from_raw(script.pid()).unwrap(), PidfdFlags::empty()).unwrap();
    let chosen = Process::read(script.pid()).unwrap();
    assert!(hold(&named("tt-reused"), &chosen, pidfd()).is_some());
    let mut other = chosen.clone();
    other.start_ticks -= 1;
    assert!(hold(&named("tt-reused"), &other, pidfd()).is_none());
    assert!(hold(&named("tt-before-exec"), &chosen, pidfd()).is_none());
}

#[test]
fn another_users_process_is_found_by_comm_and_refused_with_both_users() {
    assert!(geteuid().is_root(), "this test becomes another user: run it as root, as in a container");
    let script = Script::start("tt-of-another-user", &format!("trap 'touch $DIR/got' HUP; {IDLE}"));
    let target = find_as(&named("tt-of-another-user"), NOBODY).unwrap();
    until("it handles HUP", || send(&target, "HUP").is_ok());
    let (target, error) = as_user(65534, || {
        let target = find_as(&named("tt-of-another-user"), NOBODY).unwrap();
        let error = send(&target, "HUP").unwrap_err();
        (target, error)
    });
    assert_eq!((target.pid, target.name.as_str()), (script.pid(), "tt-of-another-u"));
    assert!(matches!(error, SignalError::Forbidden { .. }), "{error}");
    let error = error.to_string();
    for part in ["as user 0", "Trimtab as user 65534", "runAsUser", "KILL", "EPERM"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    assert!(remedy(0, 101).contains("add: [KILL]") && !remedy(0, 101).contains("user 0 "));
    assert!(remedy(101, 101).contains("security module"));
}

#[test]
fn a_process_that_renames_itself_is_found_by_its_executable() {
    let script = Script::start("tt-renamer", &format!("read -r name <&9; printf $name > /proc/$$/comm; {IDLE}"));
    script.say("MainThread");
    until("it is renamed", || Process::read(script.pid()).is_some_and(|process| process.comm == b"MainThread"));
    assert_eq!(find_as(&named("tt-renamer"), NOBODY).unwrap().pid, script.pid());
    if geteuid().is_root() {
        let pid = as_user(65534, || find_as(&named("tt-renamer"), NOBODY).map(|target| target.pid));
        assert_eq!(pid.unwrap(), script.pid());
    }
    let error = message(find_as(&named("MainThread"), NOBODY));
    assert!(error.contains("calls itself MainThread") && error.contains("--process tt-renamer"), "{error}");
}

#[test]
fn a_pid_file_is_believed_only_when_it_fits() {
    let script = Script::start("tt-pid-file", IDLE);
    let path = script.dir.path().join("pid");
    let refused = |text: &str, part: &str| {
        fs::write(&path, text).unwrap();
        let error = message(find_as(&by_file(&path), NOBODY));
        assert!(error.contains(part) && error.contains("--pid-file"), "{text:?}: {error}");
    };
    assert!(message(find_as(&by_file(&path), NOBODY)).contains("there is none (yet)"));
    refused("", "empty (yet)");
    refused(" \n", "empty (yet)");
    refused("1\n", "pause process");
    refused(&std::process::id().to_string().repeat(2000), "longer than 4096 bytes");
    for garbage in ["0", "-5", "+5", "12 13", "canary", "99999999999", "5\0", "0x10"] {
        refused(garbage, "one decimal number");
    }
    refused("2147483646", "does not exist");
    let postmaster =
        "/var/lib/postgresql/data\n1796000000\n5432\n/var/run/postgresql\nlocalhost\n  5432001   32768\nready\n";
    for text in [format!(" {}\n", script.pid()), format!("{}\n{postmaster}", script.pid())] {
        fs::write(&path, text).unwrap();
        assert_eq!(find_as(&by_file(&path), NOBODY).unwrap().pid, script.pid());
    }
    let both = |name| Selector { pid_file: Some(path.clone()), ..named(name) };
    assert_eq!(find_as(&both("tt-pid-file"), NOBODY).unwrap().pid, script.pid());
    assert!(message(find_as(&both("nginx"), NOBODY)).contains("is tt-pid-file"));
    let ours = find_as(&by_file(&path), i32::try_from(std::process::id()).unwrap());
    assert!(message(ours).contains("one of Trimtab's own"));
    let written = fs::File::options().write(true).open(&path).unwrap();
    written.set_modified(SystemTime::now() - Duration::from_hours(1)).unwrap();
    assert!(message(find_as(&by_file(&path), NOBODY)).contains("stale"));
    script.zombify();
    assert!(message(find_as(&by_file(&path), NOBODY)).contains("has exited"));
    // Neither hangs.
    assert!(message(find_as(&by_file(&script.dir.path().join("fifo")), NOBODY)).contains("not a regular file"));
    assert!(message(find_as(&by_file(script.dir.path()), NOBODY)).contains("not a regular file"));
}

#[test]
fn moments_and_start_times_share_a_clock() {
    let before = ticks();
    let script = Script::start("tt-clock", IDLE);
    let started = Process::read(script.pid()).unwrap().start_ticks;
    let after = ticks();
    assert!(before <= started && started <= after, "{before} {started} {after}");
    let moment = Clock::new().unwrap().now();
    assert!(Clock::new().unwrap().knows(&moment));
    assert_eq!(moment.boot_id.len(), 36);
}

/// Threads of libraries block all signals, so that the main thread gets them: by that alone nobody handles any. One that
/// waits in sigwait(3) is tried with BIND, in `tests/integration/recipes.rs`.
#[test]
fn a_signal_that_other_threads_block_is_not_handled() {
    let program = "import os, signal, sys, threading, time\n\
         def idle():\n    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})\n    \
         open(os.environ['DIR'] + '/ready', 'w').close()\n    time.sleep(1000)\n\
         threading.Thread(target=idle, daemon=True).start()\ntime.sleep(1000)";
    let script = Script::start("tt-threads", &format!("python3 -c \"{program}\" tt-of-threads & wait"));
    until("its thread blocks HUP", || script.has("ready"));
    let selector = Selector { args: Some(Regex::new("tt-of-threads$").unwrap()), ..Selector::default() };
    let target = find_as(&selector, NOBODY).unwrap();
    assert!(matches!(send(&target, "HUP"), Err(SignalError::NotHandling { .. })));
}
