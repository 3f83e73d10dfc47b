//! Tests of Trimtab and its parts against the real things: one binary, a module for each subject.

mod api;
mod clock;
mod containment;
mod crash;
mod deploy;
mod disk;
mod dryrun;
mod events;
mod examples;
mod kills;
mod kube_source;
mod life;
mod readme;
mod real;
mod reload;
mod reporting;
mod rollback;
mod secrets;
mod support;
mod validate;
mod volume;
mod way;
