//! The values that travel: objects, snapshots, trees, digests, the journal's form.

pub mod chunked_map;
pub mod content;
pub mod digest;
pub mod journal;
pub mod snapshot;
pub mod stage;
pub mod tree;
