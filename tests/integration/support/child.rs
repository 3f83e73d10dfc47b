//! A child process: as nix names processes, and one that ends with its test.

use std::process::Child;

use nix::unistd::Pid;

/// Its number, which is its own until it is reaped.
pub fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// A child that is killed when it is dropped, also by a test that fails: what holds the run's output would keep it from its
/// end.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
