//! What the tests share: the node and kubectl, a namespace with its Pods, the images that stand for public ones.

pub mod app;
pub mod images;
pub mod node;
pub mod pod;
pub mod space;
