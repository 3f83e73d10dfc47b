//! What the tests share: the node and kubectl, a namespace with its Pods, the images that stand for public ones.

pub mod app;
pub mod cgroup;
#[path = "../../integration/support/child.rs"]
#[expect(dead_code, reason = "other tests name its processes")]
pub mod child;
pub mod client;
pub mod example;
pub mod images;
pub mod metrics;
#[path = "../../integration/support/moto.rs"]
#[expect(dead_code, reason = "other tests count its answers")]
pub mod moto;
pub mod node;
pub mod pod;
pub mod space;
pub mod table;
