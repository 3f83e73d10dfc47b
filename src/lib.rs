//! Trimtab: carries a configuration change into a running process.

pub mod admin;
pub mod app;
pub mod args;
pub mod cmd;
pub mod config;
pub mod digest;
pub mod exec;
pub mod http;
pub mod inputs;
pub mod journal;
pub mod log;
pub mod machine;
pub mod mask;
pub mod metrics;
pub mod process;
pub mod publish;
pub mod reload;
pub mod render;
pub mod shutdown;
pub mod snapshot;
pub mod source;
pub mod status;
pub mod tree;
