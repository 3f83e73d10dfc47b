//! Trimtab: carries a configuration change into a running process.

pub mod digest;
pub mod journal;
pub mod render;
pub mod snapshot;
pub mod tree;
