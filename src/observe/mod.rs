//! What others see: `/status`, the page, metrics, Events. Holds no secret.

pub mod admin;
mod findings;
pub mod history;
pub mod metrics;
pub mod page;
pub mod pod_events;
pub mod rollout;
pub mod status;
pub mod text;
pub mod verdict;
pub mod way;
mod webhooks;
pub mod when;
