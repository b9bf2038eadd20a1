//! Just enough of Ethernet, IP and TCP to read a capture.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;

/// A TCP segment.
pub struct Segment<'a> {
    /// Sender.
    pub from: SocketAddr,
    /// Receiver.
    pub to: SocketAddr,
    /// Sequence number of the first byte.
    pub sequence: u32,
    /// SYN, ACK, FIN, RST and others, as in the header's 14th byte.
    pub flags: u8,
    /// Its bytes.
    pub payload: &'a [u8],
}

impl fmt::Debug for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let begin = String::from_utf8_lossy(self.payload.get(..self.payload.len().min(48)).unwrap_or_default());
        write!(f, "{} -> {} flags {:#04x} {} bytes {begin:?}", self.from, self.to, self.flags, self.payload.len())
    }
}

impl Segment<'_> {
    /// Whether it begins a direction of a connection.
    pub fn syn(&self) -> bool {
        self.flags & 2 != 0
    }
}

/// The TCP segment of a frame, if it is one.
pub fn parse(frame: &[u8]) -> Option<Segment<'_>> {
    let kind = be16(frame, 12)?;
    let packet = frame.get(14..)?;
    let (from, to, tcp) = match kind {
        IPV4 => {
            let head = usize::from(packet.first()? & 15) * 4;
            let length = usize::from(be16(packet, 2)?);
            if *packet.get(9)? != TCP {
                return None;
            }
            // Ethernet pads short frames; a length of 0 means segments beyond 64 KiB that were never cut.
            let packet = if length == 0 { packet } else { packet.get(..length.min(packet.len()))? };
            (v4(packet, 12)?, v4(packet, 16)?, packet.get(head..)?)
        }
        IPV6 => {
            let length = usize::from(be16(packet, 4)?) + 40;
            if *packet.get(6)? != TCP {
                return None;
            }
            let packet = if length == 40 { packet } else { packet.get(..length.min(packet.len()))? };
            (v6(packet, 8)?, v6(packet, 24)?, packet.get(40..)?)
        }
        _ => return None,
    };
    let head = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        from: SocketAddr::new(from, be16(tcp, 0)?),
        to: SocketAddr::new(to, be16(tcp, 2)?),
        sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
        flags: *tcp.get(13)?,
        payload: tcp.get(head..)?,
    })
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn v4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets).into())
}

fn v6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_without_its_padding() {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 43, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x1f, 0x90, 0x3a, 0xa0, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0]);
        frame.extend(*b"abc");
        frame.extend([0; 3]);
        let segment = parse(&frame).unwrap();
        assert_eq!(segment.from, "10.0.0.1:8080".parse().unwrap());
        assert_eq!(segment.to, "10.0.0.2:15008".parse().unwrap());
        assert_eq!((segment.sequence, segment.flags, segment.payload), (9, 0x18, b"abc".as_slice()));
        for cut in 0..54 {
            let _ = parse(&frame[..cut]);
        }
    }
}
