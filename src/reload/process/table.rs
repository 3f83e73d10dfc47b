//! The process table: what `/proc` says of each process. A process chooses its own comm and arguments.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;

use super::Signal;
use super::find::Selector;
use crate::os::proc::{pids, words};

/// All processes that are visible, by pid.
pub(super) fn scan() -> io::Result<BTreeMap<i32, Process>> {
    // One that has exited since, or that hidepid hides, is not there.
    Ok(pids()?.into_iter().filter_map(|pid| Some((pid, Process::read(pid)?))).collect())
}

/// Whether `pid` is `above` or one of its descendants.
pub(super) fn is_below(processes: &BTreeMap<i32, Process>, pid: i32, above: i32) -> bool {
    let mut at = pid;
    // The table is not of one instant, so a circle cannot be ruled out.
    for _ in 0..=processes.len() {
        if at == above {
            return true;
        }
        match processes.get(&at) {
            Some(process) => at = process.parent,
            None => return false,
        }
    }
    false
}

/// One line of the process table: `proc_pid_stat(5)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// At most 15 bytes, chosen by the process itself.
    pub(super) comm: Vec<u8>,
    pub(super) state: u8,
    pub(super) parent: i32,
    pub(super) kernel: bool,
    pub(super) start_ticks: u64,
    /// As wait(2) has it. 0 before the end, and for those who may not know it.
    exit_code: i32,
    /// As [`Process::executable`] has read it.
    executable: OnceCell<Option<Vec<u8>>>,
}

impl Process {
    pub(super) fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// `7 (a) b) S 1 …`: comm may hold anything, so the last parenthesis closes it.
    pub(super) fn parse(stat: &[u8]) -> Option<Self> {
        const PF_KTHREAD: u64 = 0x0020_0000;
        let open = stat.iter().position(|&byte| byte == b'(')?;
        let close = stat.iter().rposition(|&byte| byte == b')')?;
        let comm = stat.get(open + 1..close)?.to_vec();
        let pid = str::from_utf8(stat.get(..open)?).ok()?.trim().parse().ok()?;
        let rest = str::from_utf8(stat.get(close + 1..)?).ok()?;
        let field = |number: usize| rest.split_ascii_whitespace().nth(number - 3);
        Some(Self {
            pid,
            comm,
            state: *field(3)?.as_bytes().first()?,
            parent: field(4)?.parse().ok()?,
            kernel: field(9)?.parse::<u64>().ok()? & PF_KTHREAD != 0,
            start_ticks: field(22)?.parse().ok()?,
            exit_code: field(52).and_then(|code| code.parse().ok()).unwrap_or_default(),
            executable: OnceCell::new(),
        })
    }

    /// Neither a zombie nor dead.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Whether a signal of this number ended it: by default, or as shells and the JVM report it. `None` if not known.
    pub(super) fn was_ended_by(&self, signal: Signal) -> Option<bool> {
        let (status, by_default) = (self.exit_code >> 8 & 0xff, self.exit_code & 0x7f);
        let known = !self.is_alive() && self.exit_code != 0;
        known.then(|| by_default == signal.number() || (by_default == 0 && status == 128 + signal.number()))
    }

    pub(super) fn matches(&self, selector: &Selector) -> bool {
        let Selector { name, args, .. } = selector;
        name.as_ref().is_none_or(|name| self.has_name(name))
            && args.as_ref().is_none_or(|args| args.is_match(&self.command_line().join(" ")))
    }

    pub(super) fn has_name(&self, name: &str) -> bool {
        if let Some(executable) = self.executable() {
            return executable == name.as_bytes();
        }
        let is_base = |argument: &String| argument.rsplit('/').next() == Some(name);
        self.has_comm(name) || self.command_line().first().is_some_and(is_base)
    }

    pub(super) fn has_comm(&self, name: &str) -> bool {
        // TASK_COMM_LEN is 16, with the NUL.
        let name = name.as_bytes();
        self.comm == name.get(..15).unwrap_or(name)
    }

    /// The executable's base name, as it was when it was first asked for; `None` for another user's process and for a
    /// zombie.
    fn executable(&self) -> Option<&[u8]> {
        let read = || {
            let path = fs::read_link(format!("/proc/{}/exe", self.pid)).ok()?.into_os_string().into_vec();
            let path = path.strip_suffix(b" (deleted)").unwrap_or(&path);
            path.rsplit(|&byte| byte == b'/').next().map(<[u8]>::to_vec)
        };
        self.executable.get_or_init(read).as_deref()
    }

    /// Empty for a zombie. Never printed.
    fn command_line(&self) -> Vec<String> {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        words(&line).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    }

    /// For messages.
    pub(super) fn name(&self) -> String {
        printable(self.executable().unwrap_or(&self.comm))
    }
}

/// Short, and without control characters.
pub(super) fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(64).flat_map(char::escape_debug).collect()
}

/// What is needed of `proc_pid_status(5)`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ProcStatus {
    /// The real user.
    pub(super) uid: u32,
    /// The main thread's mask of blocked signals.
    blocked: u64,
    /// The mask of signals that have a handler.
    caught: u64,
}

impl ProcStatus {
    pub(super) fn parse(status: &[u8]) -> Option<Self> {
        let value = |key: &[u8]| {
            let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(key))?;
            str::from_utf8(line).ok()?.split_ascii_whitespace().next()
        };
        let mask = |key| u64::from_str_radix(value(key)?, 16).ok();
        Some(Self { uid: value(b"Uid:")?.parse().ok()?, blocked: mask(b"SigBlk:")?, caught: mask(b"SigCgt:")? })
    }

    /// While a thread waits in sigwait(3), the kernel unblocks what it waits for, and shows it so. All threads of such a
    /// program block those signals, as they inherit the mask: what all others block is blocked by it, too. A thread that
    /// does not wait is left as it is: libraries block all signals in threads of their own, and no one takes them there.
    #[must_use]
    pub(super) fn with_what_it_waits_for(mut self, pid: i32) -> Self {
        if fs::read(format!("/proc/{pid}/wchan")).is_ok_and(|place| place.starts_with(b"do_sigtimedwait")) {
            self.blocked |= blocked_by_others(pid).unwrap_or(0);
        }
        self
    }

    pub(super) fn catches(&self, signal: Signal) -> bool {
        self.caught & signal.bit() != 0
    }

    /// Whether it blocks the signal by its own choice, as sigwait(3) and signalfd(2) need. While glibc, musl and Go fork,
    /// they block all signals, also 32 and 33, which sigfillset(3) leaves to the C library.
    pub(super) fn blocks(&self, signal: Signal) -> bool {
        const OF_THE_LIBRARY: u64 = 0b11 << 31;
        self.blocked & signal.bit() != 0 && self.blocked & OF_THE_LIBRARY == 0
    }

    /// Whether it handles memory faults, as Go, the JVM and other runtimes do. Those install handlers for other signals
    /// before the program asks for any.
    pub(super) fn has_runtime(&self) -> bool {
        const SIGSEGV: u64 = 1 << 10;
        self.caught & SIGSEGV != 0
    }
}

/// What all threads but the main one block; `None` if there are none.
fn blocked_by_others(pid: i32) -> Option<u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let others = threads.filter(|thread| thread.file_name().to_str() != Some(&pid.to_string()));
    let statuses = others.map(|thread| fs::read(thread.path().join("status")));
    // A thread that has ended meanwhile blocks nothing.
    statuses.map(|status| ProcStatus::parse(&status.ok()?).map(|it| it.blocked)).reduce(|all, one| Some(all? & one?))?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn status(blocked: u64, caught: u64) -> ProcStatus {
        ProcStatus::parse(format!("Uid:\t1\t1\nSigBlk:\t{blocked:016x}\nSigCgt:\t{caught:016x}\n").as_bytes()).unwrap()
    }

    #[test]
    fn what_the_c_library_blocks_while_it_forks_is_not_the_programs_choice() {
        let hup = "HUP".parse().unwrap();
        assert!(status(1, 0).blocks(hup) && !status(1, 0).catches(hup));
        // sigfillset(3) by glibc and by musl.
        assert!(status(0xffff_fffe_7fff_ffff, 0).blocks(hup) && status(0xffff_fffc_7fff_ffff, 0).blocks(hup));
        assert!(!status(u64::MAX, 0).blocks(hup));
        assert!(!status(2, 1).blocks(hup) && status(2, 1).catches(hup));
    }

    #[test]
    fn an_end_by_a_signal_is_known_by_default_and_by_the_shells_number() {
        let stat = |state, code| {
            let zeros = "0 ".repeat(29);
            Process::parse(
                format!("7 (app) {state} 1 7 7 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 99 {zeros}{code}\n").as_bytes(),
            )
        };
        let by_hup = |state, code| stat(state, code).unwrap().was_ended_by("HUP".parse().unwrap());
        assert_eq!([by_hup('Z', 1), by_hup('Z', 1 | 0x80), by_hup('Z', 129 << 8)], [Some(true); 3]);
        assert_eq!([by_hup('Z', 1 << 8), by_hup('Z', 15), by_hup('Z', 143 << 8)], [Some(false); 3]);
        // Still there, or hidden from other users.
        assert_eq!([by_hup('S', 1), by_hup('Z', 0)], [None; 2]);
    }

    proptest! {
        #[test]
        fn stat_is_read_whatever_the_comm(comm in "[ -~\u{e9}()\n]{0,15}", start in any::<u64>()) {
            let line = format!("7 ({comm}) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 {start} 9 10\n");
            let process = Process::parse(line.as_bytes()).unwrap();
            prop_assert_eq!(&process.comm, comm.as_bytes());
            prop_assert_eq!((process.pid, process.state, process.parent, process.start_ticks), (7, b'S', 1, start));
            prop_assert!(!process.kernel);
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in any::<Vec<u8>>(), cut in 0_usize..120) {
            let _ = Process::parse(&bytes);
            let _ = ProcStatus::parse(&bytes);
            let line = b"7 (nginx) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 99 9 10\nUid:\t1\t2\nSigBlk:\t1\nSigCgt:\tff\n";
            let _ = Process::parse(&line[..cut.min(line.len())]);
            let _ = ProcStatus::parse(&line[..cut.min(line.len())]);
        }
    }
}
