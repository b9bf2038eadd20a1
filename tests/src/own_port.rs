//! Connections from ports that the kernel gives to no other connection.
//!
//! One to a Service and one to the pod behind it, from the same port, would be the same connection at that pod: the second one
//! waits for the first one's end (docs/semantics.md). Clients with the same addresses are given their ports in the same orders,
//! so that tests would meet that again and again.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// The first of them; Linux gives ports from 32,768 on by itself.
pub const FIRST: u16 = 21_000;
const LAST: u16 = 32_000;

/// Gives each port once, until all have been given.
#[derive(Debug)]
pub struct OwnPorts(AtomicU16);

impl Default for OwnPorts {
    fn default() -> Self {
        Self(AtomicU16::new(FIRST))
    }
}

impl OwnPorts {
    /// The next one.
    pub fn next(&self) -> u16 {
        let following = |port: u16| Some(if port < LAST { port + 1 } else { FIRST });
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, following).unwrap_or(FIRST)
    }
}

/// Any address of the other end's family.
pub fn any(to: SocketAddr) -> IpAddr {
    if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() }
}

/// Connects from a port, in the caller's network namespace.
///
/// # Errors
/// The port is taken, or what `connect` says.
pub fn connect(from: u16, to: SocketAddr, within: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(any(to), from).into())?;
    socket.connect_timeout(&to.into(), within)?;
    Ok(socket.into())
}
