//! Handmade frames.

use kumiko_abi::{FlowKey, flow::UDP, segment::bits};

use crate::fixture::addr;

/// MAC of the pod in frames.
pub(crate) const POD: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
/// MAC of its gateway in frames.
pub(crate) const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 0x22];

/// A TCP segment to be put in a frame.
#[derive(Clone)]
pub(crate) struct Tcp<'a> {
    pub(crate) src: &'a str,
    pub(crate) dst: &'a str,
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    /// TCP options, a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl<'a> Tcp<'a> {
    pub(crate) fn syn(src: &'a str, dst: &'a str) -> Self {
        Self {
            src,
            dst,
            sport: 40_000,
            dport: 80,
            seq: 1000,
            ack: 0,
            flags: bits::SYN,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(crate) fn segment(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.sport.to_be_bytes());
        bytes.extend(self.dport.to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        bytes.push(((20 + self.options.len() as u8) / 4) << 4);
        bytes.push(self.flags);
        bytes.extend([0xff, 0xff, 0, 0, 0, 0]);
        bytes.extend(&self.options);
        bytes.extend(&self.payload);
        bytes
    }

    /// The whole frame, without IP options or extension headers.
    pub(crate) fn frame(&self) -> Vec<u8> {
        ip_frame(self.src, self.dst, 6, &self.segment(), &Extra::default())
    }

    /// The whole frame, with the checksum of the segment.
    pub(crate) fn summed(&self) -> Vec<u8> {
        let mut segment = self.segment();
        let length = u16::try_from(segment.len()).unwrap();
        let sum = sum_of(&[pseudo(self.src, self.dst, 6, length), segment.clone()].concat());
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        ip_frame(self.src, self.dst, 6, &segment, &Extra { sums: true, ..Extra::default() })
    }

    /// The whole frame with some of them.
    pub(crate) fn frame_with(&self, extra: &Extra) -> Vec<u8> {
        ip_frame(self.src, self.dst, 6, &self.segment(), extra)
    }
}

/// A datagram to be put in a frame.
#[derive(Clone, Copy)]
pub(crate) struct Udp<'a> {
    pub(crate) src: &'a str,
    pub(crate) dst: &'a str,
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    pub(crate) payload: &'a [u8],
}

impl<'a> Udp<'a> {
    pub(crate) fn new(src: &'a str, dst: &'a str) -> Self {
        Self { src, dst, sport: 40_000, dport: 53, payload: b"asks" }
    }

    /// What comes back.
    pub(crate) fn answer(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, payload: b"answers" }
    }

    pub(crate) fn key(&self) -> FlowKey {
        FlowKey::of_packet(&addr(self.src), self.sport, &addr(self.dst), self.dport, UDP).0
    }

    /// With the checksum.
    fn bytes(&self) -> Vec<u8> {
        let length = u16::try_from(8 + self.payload.len()).unwrap();
        let head = |sum: u16| {
            let head = [self.sport, self.dport, length, sum].map(u16::to_be_bytes).concat();
            [head.as_slice(), self.payload].concat()
        };
        head(sum_of(&[pseudo(self.src, self.dst, 17, length), head(0)].concat()))
    }

    /// "Port unreachable" about it, from `src`. The datagram is quoted without its checksum, which says nothing to anybody.
    pub(crate) fn unreachable(&self, src: &str) -> Vec<u8> {
        let mut quoted = self.bytes();
        quoted[6..8].fill(0);
        let sums = Extra { sums: true, ..Extra::default() };
        let (kind, quoted) = ip_packet(self.src, self.dst, 17, &quoted, &sums);
        let v4 = kind == 0x0800;
        let head = |sum: u16| {
            let [high, low] = sum.to_be_bytes();
            let head = if v4 { [3, 3, high, low, 0, 0, 0, 0] } else { [1, 4, high, low, 0, 0, 0, 0] };
            [head.as_slice(), &quoted].concat()
        };
        let length = u16::try_from(8 + quoted.len()).unwrap();
        let covered = if v4 { Vec::new() } else { pseudo(src, self.src, 58, length) };
        let sum = sum_of(&[covered, head(0)].concat());
        ip_frame(src, self.src, if v4 { 1 } else { 58 }, &head(sum), &sums)
    }

    /// The whole frame.
    pub(crate) fn frame(&self) -> Vec<u8> {
        self.frame_with(&Extra::default())
    }

    /// The whole frame with more in the IP header.
    pub(crate) fn frame_with(&self, extra: &Extra) -> Vec<u8> {
        ip_frame(self.src, self.dst, 17, &self.bytes(), &Extra { sums: true, ..extra.clone() })
    }
}

/// What is neither TCP nor UDP, with eight bytes of its own header.
#[derive(Clone, Copy)]
pub(crate) struct Other<'a> {
    pub(crate) src: &'a str,
    pub(crate) dst: &'a str,
    pub(crate) proto: u8,
    pub(crate) head: [u8; 8],
    /// Its ends' ports, or what stands for them.
    pub(crate) ports: (u16, u16),
}

impl<'a> Other<'a> {
    /// Asks for an echo.
    pub(crate) fn ping(src: &'a str, dst: &'a str, id: u16) -> Self {
        let v6 = src.contains(':');
        let [high, low] = id.to_be_bytes();
        let head = [if v6 { 128 } else { 8 }, 0, 0, 0, high, low, 0, 1];
        Self { src, dst, proto: if v6 { 58 } else { 1 }, head, ports: (id, 0) }
    }

    pub(crate) fn sctp(src: &'a str, dst: &'a str, sport: u16, dport: u16) -> Self {
        let head = [sport.to_be_bytes(), dport.to_be_bytes(), [0; 2], [0; 2]].concat().try_into().unwrap();
        Self { src, dst, proto: 132, head, ports: (sport, dport) }
    }

    pub(crate) fn gre(src: &'a str, dst: &'a str) -> Self {
        Self { src, dst, proto: 47, head: [0, 0, 8, 0, 0, 0, 0, 0], ports: (0, 0) }
    }

    /// What comes back.
    pub(crate) fn answer(&self) -> Self {
        let mut head = self.head;
        match self.proto {
            1 => head[0] = 0,
            58 => head[0] = 129,
            132 => head[..4].rotate_left(2),
            _ => {}
        }
        let (sport, dport) = self.ports;
        Self { src: self.dst, dst: self.src, head, ports: (dport, sport), ..*self }
    }

    pub(crate) fn key(&self) -> FlowKey {
        FlowKey::of_packet(&addr(self.src), self.ports.0, &addr(self.dst), self.ports.1, self.proto).0
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        self.frame_with(&Extra::default())
    }

    pub(crate) fn frame_with(&self, extra: &Extra) -> Vec<u8> {
        ip_frame(self.src, self.dst, self.proto, &[&self.head[..], b"more"].concat(), extra)
    }

    /// "Time exceeded" about it, from `src`.
    pub(crate) fn exceeded(&self, src: &str) -> Vec<u8> {
        self.exceeded_told(src, self.src)
    }

    /// The same, told to somebody else.
    pub(crate) fn exceeded_told(&self, src: &str, to: &str) -> Vec<u8> {
        let (kind, quoted) = ip_packet(self.src, self.dst, self.proto, &self.head, &Extra::default());
        let v4 = kind == 0x0800;
        let head = [if v4 { 11 } else { 3 }, 0, 0, 0, 0, 0, 0, 0];
        ip_frame(src, to, if v4 { 1 } else { 58 }, &[&head[..], &quoted].concat(), &Extra::default())
    }
}

/// Pseudo header of a checksum.
fn pseudo(src: &str, dst: &str, proto: u8, length: u16) -> Vec<u8> {
    let bytes = |ip: &str| match ip.parse().unwrap() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    [bytes(src), bytes(dst), vec![0, proto], length.to_be_bytes().to_vec()].concat()
}

/// Checksum of the Internet (RFC 1071).
fn sum_of(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What else the IP header carries.
#[derive(Default, Clone)]
pub(crate) struct Extra {
    /// IPv4 options, a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    /// IPv4: flags and offset.
    pub(crate) fragment: u16,
    /// IPv6 extension headers: number and bytes, whose first is overwritten with the next header's number.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    /// Bytes behind the packet, as Ethernet pads.
    pub(crate) padding: usize,
    /// IPv4: with the header's checksum.
    pub(crate) sums: bool,
    /// IPv6: the hop limit, 64 if nothing is said.
    pub(crate) hops: Option<u8>,
}

pub(crate) fn ethernet(kind: u16, inside: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(GATEWAY);
    bytes.extend(POD);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(inside);
    bytes
}

/// IPv4 or IPv6, as the addresses are.
pub(crate) fn ip_packet(src: &str, dst: &str, proto: u8, inside: &[u8], extra: &Extra) -> (u16, Vec<u8>) {
    use std::net::IpAddr::{V4, V6};
    let mut bytes = Vec::new();
    match (src.parse().unwrap(), dst.parse().unwrap()) {
        (V4(src), V4(dst)) => {
            let header = 20 + extra.options.len();
            bytes.push(0x40 | (header / 4) as u8);
            bytes.push(0);
            bytes.extend(((header + inside.len()) as u16).to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(extra.fragment.to_be_bytes());
            bytes.extend([64, proto, 0, 0]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
            bytes.extend(&extra.options);
            if extra.sums {
                let [high, low] = sum_of(&bytes).to_be_bytes();
                (bytes[10], bytes[11]) = (high, low);
            }
            bytes.extend(inside);
            bytes.resize(bytes.len() + extra.padding, 0);
            (0x0800, bytes)
        }
        (V6(src), V6(dst)) => {
            let mut chain = Vec::new();
            let numbers: Vec<u8> = extra.extensions.iter().map(|(n, _)| *n).chain([proto]).collect();
            for (at, (_, body)) in extra.extensions.iter().enumerate() {
                let mut body = body.clone();
                body[0] = numbers[at + 1];
                chain.extend(body);
            }
            chain.extend(inside);
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend((chain.len() as u16).to_be_bytes());
            bytes.extend([numbers[0], extra.hops.unwrap_or(64)]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
            bytes.extend(chain);
            bytes.resize(bytes.len() + extra.padding, 0);
            (0x86dd, bytes)
        }
        _ => panic!("{src} and {dst} are not of one family"),
    }
}

pub(crate) fn ip_frame(src: &str, dst: &str, proto: u8, inside: &[u8], extra: &Extra) -> Vec<u8> {
    let (kind, packet) = ip_packet(src, dst, proto, inside, extra);
    ethernet(kind, &packet)
}
