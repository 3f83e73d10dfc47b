//! HTTP/1.1 and TLS for hooks, confirmations and the admin port's clients; TCP for the API server's client as well.

pub mod connect;
pub mod credentials;
pub mod endpoint;
pub mod proxy;
pub mod request;
pub mod tls;
