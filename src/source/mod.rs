//! Where configuration comes from: each source is a task that sends what it sees.

pub mod kube;
