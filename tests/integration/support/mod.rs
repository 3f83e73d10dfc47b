//! What the tests run against.

pub mod apiserver;
