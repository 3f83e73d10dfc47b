//! What the tests run against.

pub mod apiserver;
pub mod child;
pub mod cloud;
pub mod head;
pub mod hook;
pub mod moto;
pub mod mounts;
pub mod nginx;
pub mod port;
pub mod random;
pub mod relay;
pub mod scene;
pub mod sidecar;
pub mod stage;
