//! Frames that the agent makes itself: a kept SYN on its way again, and ICMP errors that tell a client why its
//! connection failed.

mod frame;
mod icmp;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use kumiko_abi::SynRecord;
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Socket, Type};

use crate::agent_ns::{AGENT_LINK, AgentNs};
use crate::sockets::{set_int, socklen_of};

pub use frame::{FrameError, complete};
pub use icmp::unreachable_frame;

/// What went wrong with an injection.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// The record cannot be a frame.
    #[error("the kept SYN cannot be sent again: {0}")]
    Frame(#[from] FrameError),
    /// The frame could not be sent.
    #[error("cannot send a frame of {length} bytes out of interface {ifindex}: {source}")]
    Send {
        /// Index of the interface.
        ifindex: u32,
        /// Bytes.
        length: usize,
        /// The cause: ENETDOWN and ENXIO when the veth is down or gone.
        #[source]
        source: io::Error,
    },
}

/// Sends kept SYNs out of `kumiko0`, so that they arrive on `eth0` of the agent's namespace as if the pod's frame had
/// been redirected there.
#[derive(Debug)]
pub struct Injector {
    socket: PacketSocket,
    agent_mac: [u8; 6],
}

impl Injector {
    /// Opens the socket in the calling thread's namespace, which must be the one that `host_ifindex` is in.
    pub fn new(host_ifindex: u32, agent_mac: [u8; 6]) -> io::Result<Self> {
        Ok(Self { socket: PacketSocket::open(host_ifindex)?, agent_mac })
    }

    /// Sends a kept SYN, checksums completed.
    pub fn inject_syn(&self, record: &SynRecord) -> Result<(), InjectError> {
        let frame = complete(record, self.agent_mac)?;
        self.socket.send(frame.bytes())
    }
}

/// Sends ICMP errors out of `eth0`, so that they arrive at the ingress of `kumiko0`, whose program takes them to the
/// pod of the flow that they quote.
#[derive(Debug)]
pub struct IcmpInjector {
    socket: PacketSocket,
    agent_mac: [u8; 6],
    host_mac: [u8; 6],
}

impl IcmpInjector {
    /// Opens the socket in the calling thread's namespace, which must be the agent's.
    pub fn new(agent: &AgentNs) -> io::Result<Self> {
        let ifindex = if_nametoindex(AGENT_LINK)?;
        Ok(Self { socket: PacketSocket::open(ifindex)?, agent_mac: agent.agent_mac, host_mac: agent.host_mac })
    }

    /// Tells the client of a kept SYN that its connection failed with `errno`; see [`unreachable_frame`].
    pub fn unreachable(&self, record: &SynRecord, errno: i32) -> Result<(), InjectError> {
        let frame = unreachable_frame(record, errno, self.agent_mac, self.host_mac)?;
        self.socket.send(&frame)
    }
}

/// An AF_PACKET socket that only sends, out of one interface.
#[derive(Debug)]
struct PacketSocket {
    socket: OwnedFd,
    ifindex: u32,
    address: libc::sockaddr_ll,
}

impl PacketSocket {
    fn open(ifindex: u32) -> io::Result<Self> {
        // Protocol 0: it receives nothing.
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), None)?;
        // No queueing discipline stands between the agent and its own namespace.
        set_int(&socket, libc::SOL_PACKET, PACKET_QDISC_BYPASS, 1)?;
        let address = libc::sockaddr_ll {
            sll_family: AF_PACKET,
            sll_protocol: 0,
            sll_ifindex: ifindex.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            // With SOCK_RAW the frame's own header counts.
            sll_addr: [0; 8],
        };
        Ok(Self { socket: socket.into(), ifindex, address })
    }

    fn send(&self, frame: &[u8]) -> Result<(), InjectError> {
        let failed = |source| InjectError::Send { ifindex: self.ifindex, length: frame.len(), source };
        // SAFETY: the descriptor is owned by self; the kernel reads `frame.len()` bytes of `frame` and the size of a
        // sockaddr_ll of `address`; both live through the call.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_fd().as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const self.address).cast(),
                socklen_of::<libc::sockaddr_ll>(),
            )
        };
        match usize::try_from(sent) {
            Ok(sent) if sent == frame.len() => Ok(()),
            Ok(sent) => Err(failed(io::Error::other(format!("only {sent} bytes were sent")))),
            Err(_) => Err(failed(io::Error::last_os_error())),
        }
    }
}

/// `linux/socket.h`.
const AF_PACKET: u16 = 17;
/// `linux/if_packet.h`, 3.14.
const PACKET_QDISC_BYPASS: libc::c_int = 20;
