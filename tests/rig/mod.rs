//! What the bench and the soak stand on: a real API server, a volume, main processes, and the end of all of them.

#[path = "../integration/support/apiserver.rs"]
pub mod apiserver;
#[path = "../integration/support/child.rs"]
pub mod child;
pub mod cluster;
pub mod guard;
pub mod measure;
pub mod notified;
#[path = "../integration/support/port.rs"]
pub mod port;
pub mod volume;

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// Trimtab's binary: the static one, which a container has.
pub fn trimtab() -> Result<PathBuf> {
    let path = env::var_os("TRIMTAB_BENCH_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_trimtab").into(), PathBuf::from);
    path.canonicalize().with_context(|| format!("TRIMTAB_BENCH_BINARY={}", path.display()))
}
