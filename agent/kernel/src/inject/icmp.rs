//! ICMP errors that quote a kept SYN. Plain functions over bytes.

use kumiko_abi::SynRecord;
use kumiko_core::connect::errno;

use super::frame::{ETHERNET_LEN, FrameError, IPV6_LEN, add, complete, fold};

const TTL: u8 = 64;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ICMP_HEADER: usize = 8;
const IPV4_LEN: usize = 20;

/// The frame that tells the client of `record` that its connection failed with `errno`, as if the address that it
/// asked for had sent it: from `source_mac` to `destination_mac`.
///
/// Type and code are those that the client's kernel turns into that errno (Linux: `icmp_err_convert`,
/// `icmpv6_err_convert`); an errno that no ICMP error means becomes "host unreachable". The quote is the whole SYN
/// (RFC 1812, 4.3.2.3; RFC 4443, 2.4): the client's kernel finds its socket by the addresses, ports and sequence
/// number in it.
pub fn unreachable_frame(
    record: &SynRecord,
    errno: i32,
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
) -> Result<Vec<u8>, FrameError> {
    let whole = complete(record, destination_mac)?;
    let (length, l3, l4) = (usize::from(record.len), usize::from(record.l3), usize::from(record.l4));
    let layout = FrameError::Layout { length, l3, l4 };
    let quote = whole.bytes().get(l3..).ok_or(layout)?;
    let mut frame = Vec::with_capacity(ETHERNET_LEN + IPV6_LEN + ICMP_HEADER + quote.len());
    frame.extend(destination_mac);
    frame.extend(source_mac);
    // `complete` made sure of version and header lengths.
    if quote.first().is_some_and(|first| first >> 4 == 4) {
        let (client, server) = (quote.get(12..16).ok_or(layout)?, quote.get(16..20).ok_or(layout)?);
        frame.extend([0x08, 0x00]);
        let body = icmp(codes_v4(errno), quote, 0);
        let total = u16::try_from(IPV4_LEN + body.len()).map_err(|_| layout)?.to_be_bytes();
        let mut header = [0; IPV4_LEN];
        // Version and length, TOS of network control (RFC 1812, 4.3.2.5), total, id, DF, TTL, protocol.
        let [t0, t1] = total;
        for (to, from) in header
            .iter_mut()
            .zip([0x45, 0xc0, t0, t1, 0, 0, 0x40, 0, TTL, ICMP, 0, 0].iter().chain(server).chain(client))
        {
            *to = *from;
        }
        let checksum = fold(add(0, &header)).to_be_bytes();
        for (to, from) in header.iter_mut().skip(10).zip(checksum) {
            *to = from;
        }
        frame.extend(header);
        frame.extend(body);
    } else {
        let (client, server) = (quote.get(8..24).ok_or(layout)?, quote.get(24..40).ok_or(layout)?);
        frame.extend([0x86, 0xdd]);
        let length = u16::try_from(ICMP_HEADER + quote.len()).map_err(|_| layout)?;
        // Pseudo header: both addresses, length, next header (RFC 8200, 8.1).
        let sum = add(add(u32::from(length) + u32::from(ICMPV6), client), server);
        let [l0, l1] = length.to_be_bytes();
        frame.extend([0x60, 0, 0, 0, l0, l1, ICMPV6, TTL]);
        frame.extend(server);
        frame.extend(client);
        frame.extend(icmp(codes_v6(errno), quote, sum));
    }
    Ok(frame)
}

/// Header, quote and checksum; `sum` is that of the pseudo header, which IPv4 does not have.
fn icmp((kind, code): (u8, u8), quote: &[u8], sum: u32) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0, 0, 0, 0, 0];
    bytes.extend(quote);
    let checksum = fold(add(sum, &bytes)).to_be_bytes();
    for (to, from) in bytes.iter_mut().skip(2).zip(checksum) {
        *to = from;
    }
    bytes
}

/// Type and code by errno (RFC 792, RFC 1122 3.2.2.1, RFC 1812 5.2.7.1).
fn codes_v4(number: i32) -> (u8, u8) {
    const UNREACHABLE: u8 = 3;
    match number {
        errno::ENETUNREACH => (UNREACHABLE, 0),
        errno::ENOPROTOOPT => (UNREACHABLE, 2),
        errno::ECONNREFUSED => (UNREACHABLE, 3),
        errno::EHOSTDOWN => (UNREACHABLE, 7),
        // "Communication administratively prohibited"; a Linux client reads EHOSTUNREACH.
        errno::EACCES => (UNREACHABLE, 13),
        // "Parameter problem".
        errno::EPROTO => (12, 0),
        _ => (UNREACHABLE, 1),
    }
}

/// Type and code by errno (RFC 4443, 3.1 and 3.4).
fn codes_v6(number: i32) -> (u8, u8) {
    const UNREACHABLE: u8 = 1;
    match number {
        errno::ENETUNREACH => (UNREACHABLE, 0),
        errno::EACCES => (UNREACHABLE, 1),
        errno::ECONNREFUSED => (UNREACHABLE, 4),
        errno::EPROTO => (4, 0),
        _ => (UNREACHABLE, 3),
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::tests::record;
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, SocketAddr};

    #[test]
    fn ipv4_says_host_unreachable_from_the_asked_address() {
        let record = record("10.1.0.2:40000".parse().unwrap(), "10.2.0.9:80".parse().unwrap(), 0, 5);
        let frame = unreachable_frame(&record, errno::EHOSTUNREACH, [1; 6], [2; 6]).unwrap();
        assert_eq!(&frame[..14], &[2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 8, 0]);
        assert_eq!(fold(add(0, &frame[14..34])), 0);
        assert_eq!((&frame[26..30], &frame[30..34]), (&[10, 2, 0, 9][..], &[10, 1, 0, 2][..]));
        assert_eq!(&frame[34..36], &[3, 1]);
        assert_eq!(fold(add(0, &frame[34..])), 0);
        assert_eq!(&frame[42 + 20..42 + 24], &[0x9c, 0x40, 0, 80], "ports in the quote");
    }

    #[test]
    fn ipv6_says_administratively_prohibited() {
        let record = record("[fd00::1]:40000".parse().unwrap(), "[fd00::2]:80".parse().unwrap(), 1, 5);
        let frame = unreachable_frame(&record, errno::EACCES, [1; 6], [2; 6]).unwrap();
        assert_eq!(&frame[54..56], &[1, 1]);
        let body = &frame[54..];
        let pseudo = add(add(u32::try_from(body.len()).unwrap() + 58, &frame[22..38]), &frame[38..54]);
        assert_eq!(fold(add(pseudo, body)), 0);
    }

    proptest! {
        #[test]
        fn every_error_is_a_whole_packet(a: [u8; 16], b: [u8; 16], v6: bool, number in 0..140_i32, extra in 0_usize..6) {
            let ip = |x: [u8; 16]| if v6 { IpAddr::from(x) } else { IpAddr::from(*x.first_chunk::<4>().unwrap()) };
            let record = record(SocketAddr::new(ip(a), 1), SocketAddr::new(ip(b), 2), extra, 3);
            let frame = unreachable_frame(&record, number, [1; 6], [2; 6]).unwrap();
            let length = if v6 { 40 + u16::from_be_bytes([frame[18], frame[19]]) } else { u16::from_be_bytes([frame[16], frame[17]]) };
            prop_assert_eq!(usize::from(length) + 14, frame.len());
        }
    }
}
