//! Ports for programs that cannot be given one by the kernel.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// A port that stays free until the program takes it: below those that the kernel gives to whoever asks for any
/// (`net.ipv4.ip_local_port_range`), as the many connections of these tests do.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(std::process::id() % 100).unwrap() * 100;
    let mut ports = std::iter::repeat_with(|| 20_000 + (own + NEXT.fetch_add(1, Ordering::SeqCst)) % 10_000);
    ports.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).unwrap()
}
