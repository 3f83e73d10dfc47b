//! Tests of Trimtab's parts against the real things: one binary, a module for each part.

mod kube_source;
mod support;
