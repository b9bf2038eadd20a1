//! A kept SYN made whole: lengths and checksums. Plain functions over bytes.
//!
//! A veth carries frames whose TCP checksum is only begun (the sum over the pseudo header), because no hardware in
//! between will look at it. Sent again by AF_PACKET such a frame would be dropped by the receiver.

use kumiko_abi::SynRecord;
use kumiko_abi::record::SYN_MAX;

pub(super) const ETHERNET_LEN: usize = 14;
const IPV4_MIN: usize = 20;
pub(super) const IPV6_LEN: usize = 40;
const TCP_MIN: usize = 20;
const TCP: u8 = 6;
/// TCP's checksum, in its header (RFC 9293, 3.1).
const TCP_CHECKSUM: usize = 16;

/// Why a record is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Offsets and lengths do not fit one another.
    #[error("headers of {length} bytes with IP at {l3} and TCP at {l4} do not fit one another")]
    Layout {
        /// Bytes in use.
        length: usize,
        /// Offset of the IP header.
        l3: usize,
        /// Offset of the TCP header.
        l4: usize,
    },
    /// Neither IPv4 nor IPv6.
    #[error("IP version {0}")]
    Version(u8),
}

/// A frame of at most [`SYN_MAX`] bytes.
#[derive(Debug, Clone)]
pub struct Frame {
    buffer: [u8; SYN_MAX],
    length: usize,
}

impl Frame {
    /// The frame.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.length).unwrap_or(&[])
    }
}

/// The record's frame with `destination` as its MAC, lengths that fit it, and full IP and TCP checksums.
///
/// # Errors
/// When offsets, lengths or the IP version contradict one another: the record comes from the kernel program, but what
/// it holds came from a pod.
pub fn complete(record: &SynRecord, destination: [u8; 6]) -> Result<Frame, FrameError> {
    let (length, l3, l4) = (usize::from(record.len), usize::from(record.l3), usize::from(record.l4));
    let layout = FrameError::Layout { length, l3, l4 };
    let mut frame = Frame { buffer: record.frame, length };
    let bytes = frame.buffer.get_mut(..length).ok_or(layout)?;
    *bytes.first_chunk_mut::<6>().ok_or(layout)? = destination;
    if l3 < ETHERNET_LEN || l4.checked_add(TCP_MIN).is_none_or(|end| end > length) {
        return Err(layout);
    }
    let packet = bytes.get_mut(l3..).ok_or(layout)?;
    let header_len = l4.checked_sub(l3).ok_or(layout)?;
    let sum = match packet.first().map_or(0, |first| first >> 4) {
        4 => complete_ipv4(packet, header_len).ok_or(layout)?,
        6 => complete_ipv6(packet, header_len).ok_or(layout)?,
        version => return Err(FrameError::Version(version)),
    };
    let segment = packet.get_mut(header_len..).ok_or(layout)?;
    let offset = segment.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
    if offset < TCP_MIN || offset > segment.len() {
        return Err(layout);
    }
    set(segment, TCP_CHECKSUM, 0).ok_or(layout)?;
    let checksum = fold(add(sum, segment));
    set(segment, TCP_CHECKSUM, checksum).ok_or(layout)?;
    Ok(frame)
}

/// Sets total length and header checksum (RFC 791); returns the sum over the pseudo header (RFC 9293, 3.1).
fn complete_ipv4(packet: &mut [u8], header_len: usize) -> Option<u32> {
    let words = usize::from(packet.first()? & 0x0f) * 4;
    if header_len < IPV4_MIN || words != header_len {
        return None;
    }
    let total = u16::try_from(packet.len()).ok()?;
    set(packet, 2, total)?;
    set(packet, 10, 0)?;
    let checksum = fold(add(0, packet.get(..header_len)?));
    set(packet, 10, checksum)?;
    let segment = u32::from(total) - u32::try_from(header_len).ok()?;
    Some(add(segment + u32::from(TCP), packet.get(12..20)?))
}

/// Sets the payload length; returns the sum over the pseudo header (RFC 8200, 8.1). Extension headers (hop-by-hop and
/// destination options) lie between and are not summed; the kernel program keeps no SYN with a routing header, whose
/// last destination would stand in for the header's.
fn complete_ipv6(packet: &mut [u8], header_len: usize) -> Option<u32> {
    if header_len < IPV6_LEN {
        return None;
    }
    let payload = u16::try_from(packet.len().checked_sub(IPV6_LEN)?).ok()?;
    set(packet, 4, payload)?;
    let segment = u32::try_from(packet.len().checked_sub(header_len)?).ok()?;
    Some(add(segment + u32::from(TCP), packet.get(8..40)?))
}

fn set(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut::<2>()? = value.to_be_bytes();
    Some(())
}

/// Adds big-endian 16-bit words to a running sum (RFC 1071); an odd byte at the end counts as if a zero followed.
pub(super) fn add(sum: u32, bytes: &[u8]) -> u32 {
    let (words, last) = bytes.as_chunks::<2>();
    let odd = last.first().map_or(0, |byte| u32::from(*byte) << 8);
    words.iter().fold(sum + odd, |sum, word| sum + u32::from(u16::from_be_bytes(*word)))
}

/// Folds a sum to the one's complement that goes into a header.
pub(super) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = sum.to_be_bytes();
    !u16::from_be_bytes([high, low])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use kumiko_abi::{FlowId, FlowKey};
    use proptest::prelude::*;
    use std::net::{IpAddr, SocketAddr};

    /// A record as the program leaves it: partial checksum, stale lengths.
    pub(in super::super) fn record(client: SocketAddr, server: SocketAddr, extra: usize, options: usize) -> SynRecord {
        let mut frame = vec![0xaa; 6];
        frame.extend([0x02, 1, 2, 3, 4, 5]);
        let tcp_len = 20 + options * 4;
        let proto_len = match (client.ip(), server.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                frame.extend([0x08, 0x00]);
                let words = 5 + extra;
                frame.extend([0x40 | u8::try_from(words).unwrap(), 0, 0xff, 0xff, 0, 1, 0x40, 0, 64, 6, 0xde, 0xad]);
                frame.extend(a.octets());
                frame.extend(b.octets());
                frame.extend(std::iter::repeat_n(1, extra * 4));
                words * 4
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                frame.extend([0x86, 0xdd]);
                let next = if extra > 0 { 0 } else { 6 };
                frame.extend([0x60, 0, 0, 0, 0xff, 0xff, next, 64]);
                frame.extend(a.octets());
                frame.extend(b.octets());
                for n in 0..extra {
                    let next = if n + 1 == extra { 6 } else { 60 };
                    frame.extend([next, 0, 1, 4, 0, 0, 0, 0]);
                }
                40 + extra * 8
            }
            _ => unreachable!(),
        };
        frame.extend(client.port().to_be_bytes());
        frame.extend(server.port().to_be_bytes());
        frame.extend([
            1,
            2,
            3,
            4,
            0,
            0,
            0,
            0,
            u8::try_from(tcp_len / 4).unwrap() << 4,
            2,
            0xfa,
            0xf0,
            0xbe,
            0xef,
            0,
            0,
        ]);
        frame.extend(std::iter::repeat_n(1, options * 4));
        let mut kept = [0; SYN_MAX];
        kept[..frame.len()].copy_from_slice(&frame);
        SynRecord {
            key: FlowKey { lo: [0; 16], hi: [0; 16], lo_port: 0, hi_port: 0, proto: 6, _pad: [0; 3] },
            id: FlowId::default(),
            first_ns: 0,
            generation: 1,
            ifindex: 0,
            src: 0,
            dst: 0,
            service: 0,
            flags: 0,
            shard: 0,
            len: frame.len().try_into().unwrap(),
            l3: 14,
            l4: (14 + proto_len).try_into().unwrap(),
            frame: kept,
        }
    }

    /// Checks a frame's IP and TCP checksums the receiver's way: the sum over all of it is all ones.
    fn verify(frame: &[u8]) {
        let packet = &frame[14..];
        let (header, pseudo) = if packet[0] >> 4 == 4 {
            let header = usize::from(packet[0] & 15) * 4;
            assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
            assert_eq!(fold(add(0, &packet[..header])), 0, "IP header checksum");
            (header, &packet[12..20])
        } else {
            assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40, packet.len());
            let mut header = 40;
            let mut next = packet[6];
            while next != 6 {
                next = packet[header];
                header += 8 + usize::from(packet[header + 1]) * 8;
            }
            (header, &packet[8..40])
        };
        let segment = &packet[header..];
        assert_eq!(fold(add(u32::try_from(segment.len()).unwrap() + 6, pseudo) + add(0, segment)), 0, "TCP checksum");
    }

    proptest! {
        #[test]
        fn the_receiver_accepts_what_was_completed(
            a: [u8; 16], b: [u8; 16], ports: (u16, u16), v6: bool, extra in 0_usize..8, options in 0_usize..=10,
        ) {
            let ip = |x: [u8; 16]| if v6 { IpAddr::from(x) } else { IpAddr::from(*x.first_chunk::<4>().unwrap()) };
            let record = record(SocketAddr::new(ip(a), ports.0), SocketAddr::new(ip(b), ports.1), extra, options);
            let frame = complete(&record, [2, 0, 0, 0, 0, 9]).unwrap();
            prop_assert_eq!(&frame.bytes()[..6], &[2, 0, 0, 0, 0, 9]);
            prop_assert_eq!(&frame.bytes()[6..12], &record.frame[6..12]);
            verify(frame.bytes());
        }

        #[test]
        fn any_record_is_completed_or_refused(
            bytes: Vec<u8>, len: u16, l3: u16, l4: u16, near in any::<bool>(),
        ) {
            let mut record = record("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap(), 0, 0);
            for (to, from) in record.frame.iter_mut().zip(&bytes) {
                *to = *from;
            }
            (record.len, record.l3, record.l4) = if near { (len % 200, l3 % 80, l4 % 120) } else { (len, l3, l4) };
            let _ = complete(&record, [0; 6]);
        }
    }

    #[test]
    fn a_known_packet_has_its_known_checksum() {
        // Sum of an IPv4 header used in RFC 1071's companions: 4500 0073 0000 4000 4011 (b861) c0a8 0001 c0a8 00c7.
        let header = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(fold(add(0, &header)), 0xb861);
    }
}
