//! Packets that nobody's TCP sent: made by hand, with any addresses and numbers, out of any namespace.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use kumiko_lab::{Netns, wire};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Flags of a TCP header.
pub mod flags {
    /// FIN.
    pub const FIN: u8 = 1;
    /// SYN.
    pub const SYN: u8 = 2;
    /// RST.
    pub const RST: u8 = 4;
    /// PSH.
    pub const PSH: u8 = 8;
    /// ACK.
    pub const ACK: u8 = 16;
}

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// `IPPROTO_RAW`: what is sent begins with its IP header.
const RAW: i32 = 255;
/// `ETH_P_ALL`.
const ALL: u16 = 3;
const WINDOW: u16 = 64_000;

/// A TCP segment to make.
#[derive(Clone, Debug)]
pub struct Forged<'a> {
    /// Who it claims to be from.
    pub from: SocketAddr,
    /// Who it is for.
    pub to: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// See [`flags`].
    pub flags: u8,
    /// TCP options, padded to words.
    pub options: &'a [u8],
    /// Its bytes.
    pub payload: &'a [u8],
}

impl Forged<'_> {
    /// The whole IP packet.
    pub fn packet(&self) -> Result<Vec<u8>> {
        let header = 20 + self.options.len();
        let mut tcp = Vec::with_capacity(header + self.payload.len());
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([u8::try_from(header / 4)? << 4, self.flags]);
        tcp.extend(WINDOW.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(self.options);
        tcp.extend(self.payload);
        ip(self.from.ip(), self.to.ip(), TCP, tcp, 16)
    }
}

/// An ICMP error that says that `quoted` was too big (or, without an MTU, that its port is unreachable).
pub fn icmp_error(from: IpAddr, to: IpAddr, mtu: Option<u16>, quoted: &[u8]) -> Result<Vec<u8>> {
    let mtu_bytes = mtu.unwrap_or(0).to_be_bytes();
    let (kind, code, protocol) = match (from, mtu) {
        (IpAddr::V4(_), Some(_)) => (3, 4, ICMP),
        (IpAddr::V4(_), None) => (3, 3, ICMP),
        (IpAddr::V6(_), Some(_)) => (2, 0, ICMPV6),
        (IpAddr::V6(_), None) => (1, 4, ICMPV6),
    };
    let mut body = vec![kind, code, 0, 0, 0, 0];
    body.extend(mtu_bytes);
    body.extend(quoted);
    ip(from, to, protocol, body, 2)
}

/// An IP packet around `body`, whose checksum is at `sum`.
fn ip(from: IpAddr, to: IpAddr, protocol: u8, mut body: Vec<u8>, sum: usize) -> Result<Vec<u8>> {
    let length = u16::try_from(body.len())?;
    let (mut packet, addresses) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            // The kernel fills identification and checksum.
            let mut head = vec![0x45, 0];
            head.extend((length + 20).to_be_bytes());
            head.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            (head, addresses)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut head = vec![0x60, 0, 0, 0];
            head.extend(length.to_be_bytes());
            head.extend([protocol, 64]);
            (head, [from.octets(), to.octets()].concat())
        }
        _ => anyhow::bail!("{from} and {to} are of two families"),
    };
    let mut covered = Vec::new();
    if protocol != ICMP {
        covered.extend(&addresses);
        covered.extend(u32::from(length).to_be_bytes());
        covered.extend([0, 0, 0, protocol]);
    }
    covered.extend(&body);
    let checksum = checksum(&covered).to_be_bytes();
    body.get_mut(sum..sum + 2).context("a checksum's place")?.copy_from_slice(&checksum);
    packet.extend(addresses);
    packet.extend(body);
    Ok(packet)
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        let high = pair.first().copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([high, pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// Sends a packet out of a namespace, where its routes lead.
pub fn send(ns: &Netns, to: IpAddr, packet: &[u8]) -> Result<()> {
    ns.within(|| {
        let to = SocketAddr::new(to, 0);
        let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::from(RAW)))?;
        let sent = socket.send_to(packet, &SockAddr::from(to)).with_context(|| format!("sending to {to}"))?;
        ensure!(sent == packet.len(), "{sent} of {} bytes were sent", packet.len());
        Ok(())
    })
}

/// Hears every frame of a namespace.
#[derive(Debug)]
pub struct Ears(Socket);

impl Ears {
    /// Begins to listen.
    pub fn open(ns: &Netns) -> Result<Self> {
        ns.within(|| {
            let all = Protocol::from(i32::from(ALL.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(all)).context("a packet socket")?;
            Ok(Self(socket))
        })
    }

    /// What has come since the last time.
    pub fn frames(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut frame = vec![0; 1 << 17];
        loop {
            match self.0.read(&mut frame) {
                Ok(length) => frames.push(frame.get(..length).unwrap_or_default().to_vec()),
                Err(none) if none.kind() == ErrorKind::WouldBlock => return Ok(frames),
                Err(error) => return Err(error).context("reading frames"),
            }
        }
    }

    /// The same; the sequence numbers that come next from `here` and from `there`.
    pub fn numbers(&mut self, here: SocketAddr, there: SocketAddr) -> Result<(u32, u32)> {
        let (mut ours, mut theirs) = (None, None);
        for frame in self.frames()? {
            let Some(segment) = wire::parse(&frame) else { continue };
            let counted = u32::from(segment.flags & flags::SYN != 0) + u32::from(segment.flags & flags::FIN != 0);
            let next = segment.sequence.wrapping_add(u32::try_from(segment.payload.len())?).wrapping_add(counted);
            let known = match (segment.from, segment.to) {
                way if way == (here, there) => &mut ours,
                way if way == (there, here) => &mut theirs,
                _ => continue,
            };
            // What is sent again, on a busy machine, is not what comes next.
            if known.is_none_or(|known: u32| next.wrapping_sub(known) < 1 << 31) {
                *known = Some(next);
            }
        }
        Ok((ours.context("nothing was sent")?, theirs.context("nothing was received")?))
    }
}
