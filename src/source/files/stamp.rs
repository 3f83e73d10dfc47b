//! Which files need not be read again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::stat::FileStat;

use crate::model::content::Content;
use crate::model::object::Object;

/// File systems keep times in ticks, ext3 in seconds: what is written twice within one has the same stamp both times.
const COARSEST: Duration = Duration::from_secs(2);

/// A file in one state: each change of its bytes moves `ctime`, which nobody can set (stat(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    file: (u64, u64),
    size: i64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Stamp {
    pub fn of(stat: &FileStat) -> Self {
        Self {
            file: (stat.st_dev, stat.st_ino),
            size: stat.st_size,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Whether a change that comes after `now` cannot have this stamp too.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        let changed =
            u64::try_from(self.ctime.0).ok().map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        changed.and_then(|changed| now.duration_since(changed).ok()).is_some_and(|age| age > COARSEST)
    }
}

/// What was read before, with the stamps of those files whose changes they show.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub object: Option<Arc<Object>>,
    pub stamps: Arc<HashMap<String, Stamp>>,
}

impl Known {
    /// The value of a key whose file is in this state.
    pub fn value(&self, key: &str, stamp: Stamp) -> Option<&Content> {
        let object = self.object.as_ref().filter(|_| self.stamps.get(key) == Some(&stamp))?;
        object.data.get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_believed_once_its_time_is_over() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let stamp = Stamp { file: (1, 2), size: 3, mtime: (0, 0), ctime: (1_000, 999_999_999) };
        assert!(!stamp.is_settled(at(999)), "the clock was set back");
        assert!(!stamp.is_settled(at(1_001)) && !stamp.is_settled(at(1_002)));
        assert!(stamp.is_settled(at(1_003)));
    }
}
