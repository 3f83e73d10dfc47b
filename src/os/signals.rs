//! The signals that Trimtab itself is sent: to end, and to read everything again.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that are about Trimtab itself.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signalled {
    /// SIGTERM or SIGINT.
    Terminate,
    HangUp,
}

impl Signals {
    /// Takes the signals over; from here on they do not end the process by themselves.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next of them. May be dropped and called again: none is lost.
    pub async fn next(&mut self) -> Signalled {
        tokio::select! {
            _ = self.terminate.recv() => Signalled::Terminate,
            _ = self.interrupt.recv() => Signalled::Terminate,
            _ = self.hang_up.recv() => Signalled::HangUp,
        }
    }
}
