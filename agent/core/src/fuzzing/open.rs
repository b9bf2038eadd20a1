//! OPEN, field by field, against a second reader that is written another way.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use crate::frame::{Frame, MAX_FRAME, Open};

const CRITICAL: u16 = 0x8000;
/// Flow id, client, destination, destination UID, source UID; then label digest, Service's name and address.
const KNOWN: [u16; 8] = [0x8001, 0x8002, 0x8003, 0x8004, 0x8005, 6, 7, 8];

/// `script` spells fields: which one and how, length, value.
pub fn open(script: &[u8]) {
    let mut fields = Vec::new();
    let mut rest = script;
    while let Some((&[how, len], after)) = rest.split_first_chunk::<2>() {
        let (value, after) = after.split_at(usize::from(len).min(after.len()));
        rest = after;
        let kind = match how & 15 {
            known @ 0..8 => KNOWN[usize::from(known)],
            // Fields that nobody knows, critical or not, and known numbers with the other bit.
            8..12 => 0x40 + u16::from(len),
            12 | 13 => CRITICAL | 0x40 | u16::from(len),
            _ => KNOWN[usize::from(how >> 4) % 8] ^ CRITICAL,
        };
        // A value of its kind, or anything.
        fields.push((kind, if how & 0x80 == 0 { fitting(kind, value) } else { value.to_vec() }));
    }
    let read = Frame::decode(&frame(&fields));
    let expected = expected(&fields);
    assert_eq!(read.is_ok(), expected.is_some(), "{read:?}, {fields:02x?}");
    let (Ok(frame_read), Some(by_kind)) = (read, expected) else { return };
    let Frame::Open { flow: 1, open } = &frame_read else { panic!("{frame_read:?}") };
    same(open, &by_kind);
    // The order of fields means nothing, and its own encoding says the same.
    fields.reverse();
    assert_eq!(Frame::decode(&frame(&fields)).as_ref(), Ok(&frame_read));
    let mut again = [0; MAX_FRAME];
    let len = frame_read.encode(&mut again).unwrap();
    assert_eq!(Frame::decode(&again[..len]), Ok(frame_read));
}

fn frame(fields: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![1, 1, 0, 0, 0, 1];
    for (kind, value) in fields {
        bytes.extend(kind.to_be_bytes());
        bytes.extend((value.len() as u16).to_be_bytes());
        bytes.extend(value);
    }
    bytes
}

/// Something that the field may hold, made from `seed`.
fn fitting(kind: u16, seed: &[u8]) -> Vec<u8> {
    let word = |from: &[u8]| -> Vec<u8> { from.iter().map(|b| b"abz019-._:"[usize::from(*b) % 10]).collect() };
    let word = |from: &[u8]| if from.is_empty() { b"x".to_vec() } else { word(from) };
    match kind & !CRITICAL {
        1 => seed.iter().copied().chain([7; 16]).take(16).collect(),
        2 | 3 | 8 => {
            let mut bytes: Vec<u8> = vec![0; 10];
            bytes.extend([0xff, 0xff, 10]);
            bytes.extend(seed.iter().copied().chain([1; 5]).take(4));
            bytes.push(80);
            bytes
        }
        7 => [word(&seed[..seed.len() / 2]), b"/".to_vec(), word(&seed[seed.len() / 2..])].concat(),
        _ => word(seed),
    }
}

/// The fields by their kind, if all of it is an OPEN.
fn expected(fields: &[(u16, Vec<u8>)]) -> Option<BTreeMap<u16, Vec<u8>>> {
    let mut by_kind = BTreeMap::new();
    if frame(fields).len() > MAX_FRAME {
        return None;
    }
    for (kind, value) in fields {
        if !KNOWN.contains(kind) {
            if kind & CRITICAL != 0 {
                return None;
            }
            continue;
        }
        let fine = match kind & !CRITICAL {
            1 => value.len() == 16,
            2 | 3 | 8 => is_address(value),
            4 | 5 => is_name(value),
            6 => (1..=64).contains(&value.len()),
            _ => {
                let slash = value.iter().position(|b| *b == b'/')?;
                is_name(&value[..slash]) && is_name(&value[slash + 1..])
            }
        };
        if !fine || by_kind.insert(*kind, value.clone()).is_some() {
            return None;
        }
    }
    let all = KNOWN[..5].iter().all(|kind| by_kind.contains_key(kind));
    (all && by_kind.contains_key(&7) == by_kind.contains_key(&8)).then_some(by_kind)
}

fn is_name(value: &[u8]) -> bool {
    (1..=253).contains(&value.len())
        && value.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'.' | b'_' | b':'))
}

fn is_address(value: &[u8]) -> bool {
    let Ok(value) = <[u8; 18]>::try_from(value) else { return false };
    let (ip, port) = (&value[..16], &value[16..]);
    let mapped = ip[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let multicast = if mapped { ip[12] & 0xf0 == 0xe0 } else { ip[0] == 0xff };
    let unspecified = ip == [0; 16] || mapped && ip[12..] == [0; 4];
    port != [0, 0] && !multicast && !unspecified
}

fn same(open: &Open, by_kind: &BTreeMap<u16, Vec<u8>>) {
    let bytes = |address: std::net::SocketAddr| {
        let ip = match address.ip() {
            std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            std::net::IpAddr::V6(v6) => v6,
        };
        [&Ipv6Addr::octets(&ip)[..], &address.port().to_be_bytes()].concat()
    };
    assert_eq!(open.flow_id.0[..], by_kind[&0x8001]);
    assert_eq!(bytes(open.client), by_kind[&0x8002]);
    assert_eq!(bytes(open.destination), by_kind[&0x8003]);
    assert_eq!(open.destination_uid.as_bytes(), by_kind[&0x8004]);
    assert_eq!(open.source_uid.as_bytes(), by_kind[&0x8005]);
    assert_eq!(Some(&open.label_digest), by_kind.get(&6).or(Some(&Vec::new())));
    assert_eq!(open.service.as_ref().map(|s| s.name.as_bytes()), by_kind.get(&7).map(Vec::as_slice));
    assert_eq!(open.service.as_ref().map(|s| bytes(s.address)), by_kind.get(&8).cloned());
}
