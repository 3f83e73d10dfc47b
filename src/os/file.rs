//! Reading small files whose path comes from outside.

use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;

/// Reads a regular file of at most `limit` bytes: whatever is at the path, this neither hangs nor fills the memory.
pub(crate) fn read_regular(path: &Path, limit: u64) -> io::Result<(Vec<u8>, Metadata)> {
    // Opening a FIFO for reading blocks without O_NONBLOCK.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("longer than {limit} bytes")));
    }
    Ok((bytes, metadata))
}
