//! Tests of Trimtab and its parts against the real things: one binary, a module for each subject.

mod kube_source;
mod life;
mod reload;
mod support;
mod way;
