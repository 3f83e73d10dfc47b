//! What the tests share: the node and kubectl, a namespace with its Pods, the images that stand for public ones.

pub mod app;
pub mod cgroup;
pub mod client;
pub mod example;
pub mod images;
pub mod metrics;
pub mod node;
pub mod pod;
pub mod space;
pub mod table;
