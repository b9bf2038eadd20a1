//! TCP sockets with the odd options that the data path needs.
//!
//! Each function makes its socket in the namespace that the calling thread is in: [`crate::netns::Netns::within`] or
//! [`crate::netns::Netns::enter`] come first.

pub(crate) mod info;
mod plain;
mod tunnel;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

pub use info::{Owed, TcpInfo, tcp_info};
pub use plain::{
    at_mark, connect_as, connect_from, plain_side, send_oob, set_linger_off, set_linger_reset, transparent_listener,
};
pub use tunnel::{set_user_timeout, tunnel_connect, tunnel_listener};

/// Connections that may wait to be accepted; the namespace's somaxconn (4096 by default) cuts it.
const BACKLOG: i32 = 4096;

/// A non-blocking TCP socket of the family of `address`, IPv6 ones for IPv6 only.
fn tcp_socket(address: IpAddr) -> io::Result<Socket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// Starts to connect; success means that it is on its way: writable when done, the outcome in [`take_error`].
fn start_connect(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    match socket.connect(&SockAddr::from(to)) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other,
    }
}

/// The pending error of a socket (`SO_ERROR`), which is cleared by reading it: after a `connect` that failed, what
/// the peer or an ICMP message said.
pub fn take_error(socket: &impl AsFd) -> io::Result<Option<i32>> {
    Ok(SockRef::from(socket).take_error()?.and_then(|error| error.raw_os_error()))
}

/// Resets a connection now (RST to the peer, unsent data thrown away), while its descriptor stays open elsewhere.
pub fn abort(socket: &impl AsFd) -> io::Result<()> {
    // connect(2) to AF_UNSPEC ends the association; for TCP the kernel does what close(2) with SO_LINGER{1,0} does
    // (tcp_disconnect).
    rustix::net::connect_unspec(socket)?;
    Ok(())
}

/// Sets an integer option that no crate names.
pub(crate) fn set_int(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call; the kernel reads one int that lives through it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            socklen_of::<libc::c_int>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Length of a C value as socket calls take it.
#[expect(clippy::cast_possible_truncation, reason = "socket options and addresses have a few bytes")]
pub(crate) const fn socklen_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}
