//! What files hold, read anew when they change, in its newest version that makes sense.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use crate::net::credentials::{self, FileError};

/// The largest of these files, in bytes.
const LIMIT: u64 = 1024 * 1024;

type Parse<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, FileError> + Send + Sync>;

pub(super) struct Newest<T> {
    /// Each with the flag that names it.
    files: Vec<(&'static str, PathBuf)>,
    parse: Parse<T>,
    last: Mutex<Last<T>>,
}

struct Last<T> {
    /// The digest of what was there when it was looked at last, good or bad.
    seen: [u8; 32],
    good: Arc<T>,
}

impl<T> Newest<T> {
    /// Fails where they are of no use.
    pub fn load(files: Vec<(&'static str, PathBuf)>, parse: Parse<T>) -> Result<Self, FileError> {
        let (seen, good) = read(&files);
        let good = good.and_then(|bytes| parse(&bytes))?;
        Ok(Self { files, parse, last: Mutex::new(Last { seen, good: Arc::new(good) }) })
    }

    /// What is bad is logged once, and what was good before it stays.
    pub fn get(&self) -> Arc<T> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut seen, mut bytes) = read(&self.files);
        if seen == last.seen {
            return last.good.clone();
        }
        let mut parsed = bytes.and_then(|bytes| (self.parse)(&bytes));
        if parsed.is_err() {
            // The kubelet may have replaced them after the first of them was read, and before the second.
            (seen, bytes) = read(&self.files);
            parsed = bytes.and_then(|bytes| (self.parse)(&bytes));
        }
        last.seen = seen;
        match parsed {
            Ok(good) => {
                let flag = self.files.first().map_or("", |(flag, _)| flag);
                info!("{flag}: what it names has changed, and counts from now on");
                last.good = Arc::new(good);
            }
            Err(error) => warn!("{error}; --listen goes on with what was there before: correct the file"),
        }
        last.good.clone()
    }
}

/// The files' content, and a digest of it or of why there is none.
fn read(files: &[(&'static str, PathBuf)]) -> ([u8; 32], Result<Vec<Vec<u8>>, FileError>) {
    let read: Result<Vec<_>, _> = files.iter().map(|(flag, path)| credentials::read(flag, path, LIMIT)).collect();
    let mut digest = Sha256::new();
    match &read {
        Ok(files) => {
            for bytes in files {
                digest.update(bytes.len().to_be_bytes());
                digest.update(bytes);
            }
        }
        Err(error) => digest.update(error.to_string()),
    }
    (digest.finalize().into(), read)
}
