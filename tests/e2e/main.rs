//! Trimtab where it is made for: in Pods, on a real kubelet, with a real API server. Run by `make e2e`, which starts the
//! node (see `tests/node/run`) and these tests inside it.
//!
//! Tests run side by side, each in a namespace of its own; one that breaks the node has it alone.

mod annotation;
mod beyond;
mod check;
mod edits;
mod examples;
mod faults;
mod latency;
mod personas;
mod probes;
mod quickstart;
mod rollout;
mod support;
mod ways;
