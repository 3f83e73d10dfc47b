//! HTTP/1.1 and TLS for hooks, confirmations and the admin port's clients.

pub mod http;
pub mod tls;
