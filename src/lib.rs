//! Trimtab: carries a configuration change into a running process.

pub mod admin;
pub mod args;
pub mod digest;
pub mod journal;
pub mod log;
pub mod machine;
pub mod metrics;
pub mod snapshot;
pub mod source;
pub mod status;
pub mod tree;
