//! TCP sockets of a namespace, through sock_diag.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};

use crate::netlink::{Answer, Connection};
use crate::netns::Netns;

/// Any socket with these addresses and ports, whatever its cookie (INET_DIAG_NOCOOKIE).
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// A TCP state (`net/tcp_states.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are those of RFC 9293, 3.3.2")]
pub enum TcpState {
    Established = 1,
    SynSent = 2,
    SynReceived = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Closed = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
}

impl TcpState {
    /// The state of a number of the kernel.
    pub const fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Established,
            2 => Self::SynSent,
            // 12 is TCP_NEW_SYN_RECV: a request for a connection, not a socket yet.
            3 | 12 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Closed,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            _ => return None,
        })
    }
}

/// A TCP socket. IPv4-mapped addresses stand as IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TcpSocket {
    /// Its own end.
    pub local: SocketAddr,
    /// The other end; unspecified for a listener.
    pub remote: SocketAddr,
    /// State.
    pub state: TcpState,
}

/// A sock_diag socket in one namespace, for several questions.
pub struct Diag {
    connection: Connection,
}

impl Diag {
    /// Opens it in `netns`.
    pub fn open(netns: &Netns) -> io::Result<Self> {
        netns.within(Self::here)
    }

    /// Opens it in the calling thread's namespace.
    pub fn here() -> io::Result<Self> {
        Ok(Self { connection: Connection::sock_diag()? })
    }

    /// Every TCP socket with a peer, connection requests and TIME_WAIT too, both families. Listeners are left out.
    pub fn dump(&mut self) -> io::Result<Vec<TcpSocket>> {
        let mut sockets = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let mut states = StateFlags::all();
            states.remove(StateFlags::LISTEN | StateFlags::CLOSE);
            let id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
            let answers = self.connection.dump(SockDiagMessage::InetRequest(request(family, states, id)))?;
            sockets.extend(answers.iter().filter_map(parse).map(|(socket, _)| socket));
        }
        Ok(sockets)
    }

    /// The state of the socket with exactly these ends; none when there is none. A listener that would take the
    /// connection is none.
    pub fn find(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<TcpState>> {
        Ok(self.lookup(local, remote)?.map(|(socket, _)| socket.state))
    }

    /// Ends the socket with exactly these ends: its peer gets an RST, its owner ECONNABORTED. False when there is
    /// none. Needs CONFIG_INET_DIAG_DESTROY (`EOPNOTSUPP` without).
    pub fn destroy(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        // By its cookie: without one the kernel falls back to a listener of the same address, and ends that.
        let Some((_, cookie)) = self.lookup(local, remote)? else { return Ok(false) };
        let mut id = socket_id(local, remote);
        id.cookie = cookie;
        let request = request(family(local, remote), StateFlags::all(), id);
        let message = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
        match self.connection.request(message, 0) {
            Ok(_) => Ok(true),
            // It went by itself (ESTALE: and its tuple has another socket already).
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn lookup(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<(TcpSocket, [u8; 8])>> {
        let request = request(family(local, remote), StateFlags::all(), socket_id(local, remote));
        match self.connection.request(SockDiagMessage::InetRequest(request), 0) {
            Ok(answers) => {
                Ok(answers.iter().filter_map(parse).find(|(socket, _)| {
                    // What the kernel found may be a listener that would take a SYN of these ends.
                    socket.state != TcpState::Listen && same(socket.local, local) && same(socket.remote, remote)
                }))
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Every TCP socket of a namespace; see [`Diag::dump`].
pub fn dump(netns: &Netns) -> io::Result<Vec<TcpSocket>> {
    Diag::open(netns)?.dump()
}

/// Whether a namespace has a socket with exactly these ends, in whatever state.
pub fn exists(netns: &Netns, local: &SocketAddr, remote: &SocketAddr) -> io::Result<bool> {
    Ok(Diag::open(netns)?.find(*local, *remote)?.is_some())
}

/// Ends the socket of the calling thread's namespace with exactly these ends; see [`Diag::destroy`].
pub fn destroy(local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    Diag::here()?.destroy(local, remote)
}

fn same(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.ip().to_canonical() == b.ip().to_canonical()
}

fn family(local: SocketAddr, remote: SocketAddr) -> u8 {
    if local.ip().to_canonical().is_ipv4() && remote.ip().to_canonical().is_ipv4() { AF_INET } else { AF_INET6 }
}

fn socket_id(local: SocketAddr, remote: SocketAddr) -> SocketId {
    let mut id = SocketId::new_v6();
    let wide = |ip: IpAddr| match (ip.to_canonical(), family(local, remote)) {
        (IpAddr::V4(v4), AF_INET6) => IpAddr::V6(v4.to_ipv6_mapped()),
        (ip, _) => ip,
    };
    id.source_address = wide(local.ip());
    id.source_port = local.port();
    id.destination_address = wide(remote.ip());
    id.destination_port = remote.port();
    id.cookie = NO_COOKIE;
    id
}

fn request(family: u8, states: StateFlags, socket_id: SocketId) -> InetRequest {
    InetRequest { family, protocol: IPPROTO_TCP, extensions: ExtensionFlags::empty(), states, socket_id }
}

/// Reads one answer as an answer of sock_diag.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(answer: &Answer) {
    if let Some((socket, _)) = parse(answer) {
        assert!(same(socket.local, socket.local));
    }
}

/// Reads the head of `struct inet_diag_msg` (`linux/inet_diag.h`): family, state, timer, retransmissions; then ports
/// and addresses in network order, interface, cookie.
fn parse(answer: &Answer) -> Option<(TcpSocket, [u8; 8])> {
    let (head, rest) = answer.payload.split_first_chunk::<4>()?;
    let [family, state, ..] = *head;
    let (ports, rest) = rest.split_first_chunk::<4>()?;
    let [sport0, sport1, dport0, dport1] = *ports;
    let (source, rest) = rest.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    let cookie = rest.get(4..)?.first_chunk::<8>()?;
    let address = |bytes: &[u8; 16]| match family {
        AF_INET => {
            let [a, b, c, d, ..] = *bytes;
            Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        AF_INET6 => Some(Ipv6Addr::from(*bytes).to_canonical()),
        _ => None,
    };
    let socket = TcpSocket {
        local: SocketAddr::new(address(source)?, u16::from_be_bytes([sport0, sport1])),
        remote: SocketAddr::new(address(destination)?, u16::from_be_bytes([dport0, dport1])),
        state: TcpState::from_u8(state)?,
    };
    Some((socket, *cookie))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mapped_addresses_become_ipv4() {
        let mut payload = vec![AF_INET6, 12, 0, 0];
        payload.extend(80_u16.to_be_bytes());
        payload.extend(40_000_u16.to_be_bytes());
        payload.extend("::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets());
        payload.extend("::ffff:10.0.0.2".parse::<Ipv6Addr>().unwrap().octets());
        payload.extend([0; 4]);
        payload.extend([7; 8]);
        payload.extend([0; 20]);
        let (socket, cookie) = parse(&Answer { kind: 20, payload }).unwrap();
        assert_eq!(socket.local, "10.0.0.1:80".parse().unwrap());
        assert_eq!(socket.remote, "10.0.0.2:40000".parse().unwrap());
        assert_eq!((socket.state, cookie), (TcpState::SynReceived, [7; 8]));
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_skipped(payload: Vec<u8>) {
            let _ = parse(&Answer { kind: 20, payload });
        }
    }
}
