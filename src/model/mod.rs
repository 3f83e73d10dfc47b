//! The values that travel: objects, snapshots, trees, digests, the journal's form.

pub mod chunked_map;
pub mod content;
pub mod digest;
pub mod journal;
pub mod made_of;
pub mod object;
pub mod snapshot;
pub mod spool;
pub mod stage;
pub mod stretch;
pub mod tree;
