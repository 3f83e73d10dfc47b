//! Fault points: where the tests kill the program, before and after each effect. A release build has none of it.
//!
//! A point has the name of the effect that comes next, or of what has just ended.
//!
//! `TRIMTAB_TEST_FAULTS=FILE` writes down each point that is passed; `TRIMTAB_TEST_KILL=N` kills the process by SIGKILL
//! at the N-th one, counted from 1; `TRIMTAB_TEST_KILL=NAME`, at the first one of that name.

/// The points passed so far. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    #[cfg(debug_assertions)]
    armed: Option<std::sync::Arc<armed::Armed>>,
}

#[cfg(debug_assertions)]
impl Faults {
    /// As the environment says.
    #[must_use]
    pub fn from_env() -> Self {
        Self { armed: armed::Armed::from_env().map(std::sync::Arc::new) }
    }

    /// A point is passed; the test may have chosen it for the end.
    pub fn point(&self, name: &str) {
        if let Some(armed) = &self.armed {
            armed.point(name);
        }
    }
}

#[cfg(not(debug_assertions))]
impl Faults {
    #[must_use]
    pub fn from_env() -> Self {
        Self {}
    }

    pub fn point(&self, _: &str) {}
}

#[cfg(debug_assertions)]
mod armed {
    use std::fs::{File, OpenOptions};
    use std::io::Write as _;
    use std::sync::{Mutex, PoisonError};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    #[derive(Debug)]
    pub(super) struct Armed {
        kill_at: Option<String>,
        log: Option<File>,
        passed: Mutex<u64>,
    }

    impl Armed {
        pub(super) fn from_env() -> Option<Self> {
            let log = std::env::var_os("TRIMTAB_TEST_FAULTS");
            let log = log.and_then(|path| OpenOptions::new().create(true).append(true).open(path).ok());
            let kill_at = std::env::var("TRIMTAB_TEST_KILL").ok();
            (log.is_some() || kill_at.is_some()).then(|| Self { kill_at, log, passed: Mutex::new(0) })
        }

        pub(super) fn point(&self, name: &str) {
            let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
            *passed += 1;
            if let Some(mut log) = self.log.as_ref() {
                // A test that misses a line fails.
                let _ = writeln!(log, "{name}");
            }
            if self.kill_at.as_ref().is_some_and(|at| at == name || *at == passed.to_string()) {
                let _ = kill(Pid::this(), Signal::SIGKILL);
            }
        }
    }
}
