//! Plain-side sockets: towards pods, in the agent's namespace, with addresses that belong to others.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use rustix::net::{SendFlags, send};
use socket2::{SockAddr, SockRef, Socket};

use super::{BACKLOG, set_int, start_connect, tcp_socket};

/// A listener for captured connections of one family, non-blocking, on a loopback address and a port of the kernel's
/// choice. Only `sk_lookup` leads to it: on an unspecified address it could be reached without, and a client whose
/// source port is the listener's would get EADDRINUSE towards its server.
///
/// `local_addr` of an accepted socket is the address that the client asked for. Accepted sockets are born with the
/// options of [`plain_side`].
pub fn transparent_listener(v6: bool) -> io::Result<TcpListener> {
    let address = if v6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let socket = tcp_socket(address)?;
    set_transparent(&socket, address)?;
    plain_side(&socket)?;
    socket.bind(&SockAddr::from(SocketAddr::new(address, 0)))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Starts to connect to a pod as `client`: from its address *and* port. Non-blocking; see [`super::take_error`].
///
/// # Errors
/// - `EADDRINUSE` (kind `AddrInUse`): the client's address and port cannot be bound: somebody listens there.
/// - `EADDRNOTAVAIL` (kind `AddrNotAvailable`): a socket with both ends' addresses and ports exists: another flow's,
///   or one in TIME_WAIT that may not be taken over because its peer sends no timestamps. `diag::destroy`
///   it, then try again.
/// - `ENETUNREACH` and others at once, as `connect(2)`.
pub fn connect_as(client: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = towards_pod(client.ip())?;
    socket.bind(&SockAddr::from(client))?;
    start_connect(&socket, to)?;
    Ok(socket.into())
}

/// Like [`connect_as`], from any port of `client` that is free towards `to`: the kernel chooses it when it connects,
/// so that one port can serve towards many pods. `local_addr` tells it.
pub fn connect_from(client: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = towards_pod(client)?;
    set_int(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    socket.bind(&SockAddr::from(SocketAddr::new(client, 0)))?;
    start_connect(&socket, to)?;
    Ok(socket.into())
}

fn towards_pod(client: IpAddr) -> io::Result<Socket> {
    let socket = tcp_socket(client)?;
    set_transparent(&socket, client)?;
    // Many flows of one client port, to different pods, share its local address.
    socket.set_reuse_address(true)?;
    plain_side(&socket)?;
    Ok(socket)
}

fn set_transparent(socket: &Socket, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true),
        // IPV6_TRANSPARENT is 75.
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

/// Options of every socket towards a pod, from birth:
/// - SO_LINGER{1,0}: when the agent dies, its peers get an RST; without, a clean end of stream after half an answer.
/// - SO_OOBINLINE: otherwise the urgent byte vanishes.
/// - TCP_NODELAY: the application's own segments are the agent's.
pub fn plain_side(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_out_of_band_inline(true)?;
    socket.set_tcp_nodelay(true)
}

/// For an orderly end only, after both directions were shut down: the kernel then sends what is left after the close.
/// With linger left on, a slow reader loses the rest and gets an RST.
pub fn set_linger_off(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(None)
}

/// Back to what [`plain_side`] sets: a close is an RST.
pub fn set_linger_reset(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Whether the next byte to read is the urgent one (SIOCATMARK). `read` stops in front of it, so ask between two
/// reads; with SO_OOBINLINE the byte is then read like any other.
pub fn at_mark(socket: &impl AsFd) -> io::Result<bool> {
    /// `asm-generic/sockios.h`.
    const SIOCATMARK: libc::c_ulong = 0x8905;
    let mut answer: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed for the call; SIOCATMARK writes one int, to a place that lives through it.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCATMARK as _, &raw mut answer) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(answer != 0) }
}

/// Sends bytes with the last one of them urgent (MSG_OOB); returns how many were taken. When fewer than all are, the
/// last one taken is urgent instead: send the urgent byte alone.
pub fn send_oob(socket: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(send(socket, bytes, SendFlags::OOB | SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
}
