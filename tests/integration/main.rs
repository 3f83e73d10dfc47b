//! Tests of Trimtab and its parts against the real things: one binary, a module for each subject.

mod containment;
mod kube_source;
mod secrets;
mod support;
mod way;
