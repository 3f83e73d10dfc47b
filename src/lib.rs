//! Trimtab: carries a configuration change into a running process.

pub mod digest;
pub mod exec;
pub mod http;
pub mod journal;
pub mod mask;
pub mod process;
pub mod reload;
pub mod snapshot;
pub mod tree;
