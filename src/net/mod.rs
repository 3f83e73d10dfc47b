//! HTTP/1.1 and TLS for hooks, confirmations and the admin port's clients; TCP for the API server's client as well. And who
//! may connect to `--listen`.

pub mod connect;
pub mod credentials;
pub mod endpoint;
pub mod proxy;
pub mod request;
pub mod server;
pub mod store;
pub mod tls;
