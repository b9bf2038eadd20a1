//! Tunnel sockets: between agents, in the host's namespace, with addresses of the node.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockAddr, SockRef, TcpKeepalive};

use super::{BACKLOG, set_int, start_connect, tcp_socket};

/// Idle tunnels are asked after this time whether the other node is still there; applications' own keepalives end at
/// the agent.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(20);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TRIES: u32 = 4;

/// One shard's listener on the tunnel port, non-blocking. Every shard makes one: SO_REUSEPORT shares the connections.
pub fn tunnel_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = tcp_socket(address.ip())?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    tunnel_side(&socket)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Starts to connect to another node's tunnel port, from this node's own address. Non-blocking; see
/// [`super::take_error`].
pub fn tunnel_connect(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tcp_socket(from)?;
    socket.set_reuse_address(true)?;
    // The port is chosen at the connect, so that tunnels to different nodes may share one.
    set_int(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    tunnel_side(&socket)?;
    socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
    start_connect(&socket, to)?;
    Ok(socket.into())
}

fn tunnel_side(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_TRIES);
    socket.set_tcp_keepalive(&keepalive)
}

/// TCP_USER_TIMEOUT: how long sent data may stay unacknowledged before the connection is given up; none: the system's
/// (some 15 minutes).
///
/// Not set by the functions above, and not for a tunnel that carries a flow whose reader may stall: the kernel counts
/// a closed window as unacknowledged, even of a peer that answers every probe, and would cut the flow
/// (`tcp_probe_timer`, since 5.11). [`super::TcpInfo::unanswered`] tells the two apart.
pub fn set_user_timeout(socket: &impl AsFd, timeout: Option<Duration>) -> io::Result<()> {
    SockRef::from(socket).set_tcp_user_timeout(timeout)
}
