//! Tests of Trimtab and its parts against the real things: one binary, a module for each subject.

mod api;
mod containment;
mod crash;
mod disk;
mod kills;
mod kube_source;
mod life;
mod readme;
mod reload;
mod secrets;
mod support;
mod volume;
mod way;
