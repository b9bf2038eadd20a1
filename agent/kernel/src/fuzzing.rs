//! What the fuzz targets of `fuzz/` run; the tests run the same over the kept corpora.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::cast_possible_truncation,
    reason = "a panic is how a fuzz target speaks"
)]

use kumiko_abi::flow::{Direction, dir_flags};
use kumiko_abi::record::SYN_MAX;
use kumiko_abi::segment::{OptionStep, end_fits, next_seq, option_step, reaches, rst_fits};
use kumiko_abi::{FlowId, FlowKey, SynRecord};

use crate::netlink::link::Link;
use crate::netlink::{Answer, Messages};
use crate::sockets::info;
use crate::{diag, inject, qdisc};

const ERRNOS: [i32; 8] = [0, 13, 71, 92, 101, 111, 112, 113];

/// A kept SYN: `bytes` are errno, lengths and offsets as the kernel program says them, and headers as a pod wrote them.
/// Whatever is made of it is a whole packet with the sums that its receiver wants, and quotes what the pod sent.
pub fn syn(bytes: &[u8]) {
    let Some((&[number, near, len, l3, l4], headers)) = bytes.split_first_chunk::<5>() else { return };
    let mut frame = [0; SYN_MAX];
    let held = headers.len().min(SYN_MAX);
    frame[..held].copy_from_slice(&headers[..held]);
    // What the program says fits, mostly; `near` lets it be anything.
    let wide = |low: u8| u16::from(low) | u16::from(near & 0xf0) << 8;
    let (len, l3, l4) = if near & 1 == 0 { (held as u16, 14, u16::from(l4)) } else { (wide(len), wide(l3), wide(l4)) };
    let record = SynRecord {
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
        len,
        l3,
        l4,
        frame,
    };
    let errno = ERRNOS[usize::from(number & 7)];
    let (ours, theirs) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let made = inject::complete(&record, ours);
    let error = inject::unreachable_frame(&record, errno, theirs, ours);
    assert_eq!(made.is_ok(), error.is_ok());
    let (Ok(made), Ok(error)) = (made, error) else { return };
    let (l3, l4) = (usize::from(l3), usize::from(l4));
    let whole = made.bytes();
    assert_eq!((whole.len(), &whole[..6]), (usize::from(len), &ours[..]));
    let packet = &whole[l3..];
    let segment = &whole[l4..];
    // Everything but the MAC address, lengths and sums is the pod's own.
    let v4 = packet[0] >> 4 == 4;
    let rewritten: &[usize] = if v4 { &[2, 3, 10, 11] } else { &[4, 5] };
    for (at, (now, before)) in whole.iter().zip(&frame).enumerate().skip(6) {
        let sum = at == l4 + 16 || at == l4 + 17;
        assert!(now == before || sum || at >= l3 && rewritten.contains(&(at - l3)), "byte {at} changed");
    }
    let ends = if v4 {
        assert_eq!(usize::from(word(packet, 2)), packet.len());
        assert_eq!(ones(&[&packet[..l4 - l3]]), 0xffff, "IPv4 header");
        &packet[12..20]
    } else {
        assert_eq!(packet[0] >> 4, 6);
        assert_eq!(usize::from(word(packet, 4)) + 40, packet.len());
        &packet[8..40]
    };
    assert_eq!(ones(&[ends, &pseudo(segment.len(), 6), segment]), 0xffff, "TCP");
    // The error: to the pod, from the address that it asked for.
    assert_eq!(error[..12], [ours, theirs].concat());
    let (head, icmp) = error[14..].split_at(if v4 { 20 } else { 40 });
    let (client, server) = ends.split_at(ends.len() / 2);
    assert_eq!(head[head.len() - ends.len()..], [server, client].concat());
    assert_eq!(&icmp[8..], packet, "the quote is the SYN");
    if v4 {
        assert_eq!(usize::from(word(head, 2)), head.len() + icmp.len());
        assert_eq!((ones(&[head]), ones(&[icmp])), (0xffff, 0xffff));
    } else {
        assert_eq!(usize::from(word(head, 4)), icmp.len());
        assert_eq!(ones(&[&head[8..], &pseudo(icmp.len(), 58), icmp]), 0xffff);
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn pseudo(len: usize, proto: u8) -> [u8; 4] {
    let [high, low] = (len as u16).to_be_bytes();
    [high, low, 0, proto]
}

/// The one's complement sum of whole parts; 0xffff where a sum among them is right.
fn ones(parts: &[&[u8]]) -> u16 {
    let mut bytes = parts.concat();
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    let mut sum: u64 = bytes.chunks(2).map(|pair| u64::from(word(pair, 0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What the kernel programs conclude from TCP headers: options in steps, as the program takes them, and sequence
/// numbers, against the same said in wide arithmetic.
pub fn segment(bytes: &[u8]) {
    let Some((numbers, options)) = bytes.split_first_chunk::<18>() else { return };
    let options = &options[..options.len().min(40)];
    let (mut at, mut signed, mut steps) = (0, false, 0);
    while at < options.len() {
        steps += 1;
        assert!(steps <= 40, "options that never end");
        match option_step(options[at], options.get(at + 1).copied().unwrap_or(0)) {
            OptionStep::End => break,
            OptionStep::Signed => {
                signed = true;
                break;
            }
            OptionStep::Skip(by) => {
                assert!(by > 0);
                at += usize::from(by);
            }
        }
    }
    assert_eq!(signed, is_signed(options), "{options:02x?}");
    let number = |at: usize| u32::from_be_bytes([numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3]]);
    let (seq, ack, sent, acked) = (number(0), number(4), number(8), number(12));
    let behind = |a: u32, b: u32| i64::from(a.wrapping_sub(b).cast_signed());
    assert_eq!(reaches(seq, ack), behind(seq, ack) >= 0);
    let flags = numbers[16];
    let extra = u32::from(flags & 2 != 0) + u32::from(flags & 1 != 0);
    assert_eq!(next_seq(seq, ack, flags), (u64::from(seq) + u64::from(ack) + u64::from(extra)) as u32);
    let how = numbers[17];
    let syn = if how & 4 != 0 { dir_flags::SYN } else { 0 };
    let own = Direction { packets: u64::from(how & 1), seq: sent, flags: syn, ..Direction::default() };
    let other = Direction { packets: u64::from(how >> 1 & 1), seq: acked, ack: acked, ..Direction::default() };
    let window = 1 << 20;
    let last = if own.packets == 0 { other.ack } else { own.seq };
    let within = behind(seq, other.ack.wrapping_sub(window)) >= 0 && behind(last.wrapping_add(window), seq) >= 0;
    assert_eq!(end_fits(seq, &own, &other), other.packets == 0 || within);
    // The answer to a SYN names it; any other reset is about what is on its way.
    let answer = own.packets == 0 && syn == 0;
    let expected = other.packets == 0 || if answer { ack == other.seq } else { within };
    assert_eq!(rst_fits(seq, ack, &own, &other), expected);
}

/// Whether MD5 or AO stands among the options, read with a cursor (RFC 9293, 3.2).
fn is_signed(mut options: &[u8]) -> bool {
    loop {
        options = match options {
            [] | [0, ..] => return false,
            [19 | 29, ..] => return true,
            [1, rest @ ..] => rest,
            [_, len, ..] if *len >= 2 => options.get(usize::from(*len)..).unwrap_or(&[]),
            [_, ..] => return false,
        }
    }
}

/// A datagram of netlink: messages, errors, links, sockets, queueing disciplines, and `TCP_INFO`.
pub fn netlink(bytes: &[u8]) {
    let mut read = 0;
    for message in Messages::new(bytes) {
        let Ok(message) = message else { break };
        read += message.payload.len() + 16;
        assert!(read <= bytes.len());
        if let Err(error) = message.error() {
            let _ = error.to_string();
        }
        let _ = message.interrupted();
        if let Ok(link) = Link::parse(message.payload) {
            let _ = link.is_veth();
        }
        diag::fuzz(&Answer { kind: message.kind, payload: message.payload.to_vec() });
        let _ = qdisc::shaping(message.payload);
    }
    info::fuzz(bytes);
}

#[cfg(test)]
mod tests {
    use kumiko_corpus::replay;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn corpora() {
        replay("netlink", super::netlink);
        replay("segment", super::segment);
        replay("syn", super::syn);
    }

    proptest! {
        #[test]
        fn any_header(bytes in vec(any::<u8>(), 18..60)) {
            super::segment(&bytes);
        }

        #[test]
        fn any_options(options in vec(prop_oneof![Just(0_u8), Just(1), Just(2), Just(3), Just(19), Just(29), any::<u8>()], 0..45)) {
            super::segment(&[&[0; 18], options.as_slice()].concat());
        }
    }
}
