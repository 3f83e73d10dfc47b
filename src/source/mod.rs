//! Where configuration comes from: each source is a task that tells what it sees.

pub mod files;
