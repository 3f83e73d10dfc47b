//! What outlives this program by a moment, and cleans up after it, however it ends.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::{fs, io};

use anyhow::{Context, Result};

/// A shell that waits for the end of this process, or is ended by its drop.
pub struct Guard(Child);

impl Guard {
    /// Removes a directory when this process is gone. Those who write there may take a moment to be gone as well.
    pub fn removing(dir: &Path) -> io::Result<Self> {
        Self::new(r#"for _ in 1 2 3 4 5 6 7 8 9; do rm -rf "$0" && break; sleep 0.2; done"#, &[dir])
    }

    fn new<S: AsRef<OsStr>>(script: &str, args: &[S]) -> io::Result<Self> {
        // Its standard input ends with this process. In a group of its own, so that Ctrl-C leaves it.
        let script = format!("read -r _; {script}");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).args(args).stdin(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        command.spawn().map(Self)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A child process. Killed when dropped; by its guard, and its directory removed, when this process is gone.
pub struct Running {
    /// The process.
    pub process: Child,
    _guard: Guard,
}

impl Running {
    /// Starts it; what it says goes to the file `log` of its directory.
    pub fn start(mut command: Command, dir: &Path) -> Result<Self> {
        let log = fs::File::create(dir.join("log"))?;
        command.stdin(Stdio::null()).stderr(log.try_clone()?);
        if command.get_args().next() != Some(OsStr::new("target")) {
            command.stdout(log);
        }
        let process = command.spawn().with_context(|| format!("{}", command.get_program().display()))?;
        let pid = process.id().to_string();
        let guard = Guard::new(r#"kill -KILL "$0"; rm -rf "$1""#, &[OsStr::new(&pid), dir.as_os_str()])?;
        Ok(Self { process, _guard: guard })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A cgroup with a limit on the CPU. Removed when dropped, which must be after its processes' end.
pub struct Cgroup {
    path: std::path::PathBuf,
    _guard: Guard,
}

/// What the kubelet writes for a limit of 10m: one millisecond of a hundred.
const QUOTA: (&str, &str) = ("1000", "100000");

impl Cgroup {
    /// A new one with the limit of 10m; v1 or v2, whichever is here.
    pub fn limited(name: &str) -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let unified = root.join("cgroup.controllers").exists();
        let parent = if unified { root.to_owned() } else { root.join("cpu") };
        let path = parent.join(format!("trimtab-bench-{}-{name}", std::process::id()));
        if unified {
            // It may be on.
            let _ = fs::write(parent.join("cgroup.subtree_control"), "+cpu");
        }
        fs::create_dir(&path).with_context(|| format!("no cgroup at {}: needs root", path.display()))?;
        let script = r#"for _ in 1 2 3 4 5 6 7 8 9; do rmdir "$0" && break; sleep 0.2; done"#;
        let cgroup = Self { _guard: Guard::new(script, &[&path])?, path };
        let limit = |file: &str, value: &str| {
            let file = cgroup.path.join(file);
            fs::write(&file, value).with_context(|| format!("no limit by {}", file.display()))
        };
        if unified {
            limit("cpu.max", &format!("{} {}", QUOTA.0, QUOTA.1))?;
        } else {
            limit("cpu.cfs_period_us", QUOTA.1)?;
            limit("cpu.cfs_quota_us", QUOTA.0)?;
        }
        Ok(cgroup)
    }

    /// Takes a process in.
    pub fn add(&self, pid: u32) -> Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).context("the cgroup does not take the process")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its processes were waited for; the kernel may take a moment to see them off.
        for _ in 0..50 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
