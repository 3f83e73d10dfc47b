//! Small system tools that belong to no one room.

pub mod backoff;
pub mod beside;
pub mod exec;
pub mod fault;
pub mod file;
pub mod mask;
pub mod mounts;
pub mod proc;
pub mod signals;
