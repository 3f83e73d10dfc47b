//! Trimtab: carries a configuration change into a running process.

pub mod digest;
pub mod journal;
pub mod snapshot;
pub mod source;
pub mod tree;
