//! Whether a TCP connection is TLS 1.3 from its first byte to its last.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use super::packet::Segment;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// RFC 8446 5.2: 2^14 bytes of content, its type, and at most 255 bytes of expansion.
const MAX_RECORD: usize = 16_384 + 256;
/// `supported_versions`, RFC 8446 4.2.1.
const SUPPORTED_VERSIONS: u16 = 43;

/// Every connection to the tunnel port.
#[derive(Default)]
pub(super) struct Tunnels {
    streams: HashMap<(SocketAddr, SocketAddr), Stream>,
    offences: Vec<String>,
    closed_whole: usize,
    closed_unfinished: usize,
}

/// One direction of one connection, put in order.
struct Stream {
    next: u32,
    early: BTreeMap<u32, Vec<u8>>,
    bytes: Vec<u8>,
    hello: bool,
    offence: Option<String>,
}

impl Tunnels {
    /// Takes a segment.
    pub(super) fn segment(&mut self, segment: &Segment<'_>) {
        let key = (segment.from, segment.to);
        if segment.syn() {
            let first = segment.sequence.wrapping_add(1);
            if self.streams.get(&key).is_some_and(|stream| stream.next == first && !stream.hello) {
                return; // the SYN again
            }
            if segment.flags & 16 == 0 {
                // The same addresses and ports again: another connection.
                self.close(key.0, key.1);
            }
            self.streams.insert(key, Stream::new(first));
        } else if let Some(stream) = self.streams.get_mut(&key) {
            stream.take(segment.sequence, segment.payload);
        }
    }

    fn close(&mut self, from: SocketAddr, to: SocketAddr) {
        let (Some(one), other) = (self.streams.remove(&(from, to)), self.streams.remove(&(to, from))) else { return };
        let other = other.unwrap_or_else(|| Stream::new(0));
        for stream in [&one, &other] {
            if let Some(offence) = &stream.offence {
                self.offences.push(format!("{from} and {to}: {offence}"));
            }
        }
        if one.hello && other.hello {
            self.closed_whole += 1;
        } else {
            self.closed_unfinished += 1;
        }
    }

    /// Connections that were TLS 1.3, those that never got so far, and what was wrong.
    pub(super) fn verdict(mut self) -> (usize, usize, Vec<String>) {
        let keys: Vec<_> = self.streams.keys().copied().collect();
        for (from, to) in keys {
            self.close(from, to);
        }
        (self.closed_whole, self.closed_unfinished, self.offences)
    }
}

impl Stream {
    fn new(next: u32) -> Self {
        Self { next, early: BTreeMap::new(), bytes: Vec::new(), hello: false, offence: None }
    }

    fn take(&mut self, sequence: u32, payload: &[u8]) {
        if payload.is_empty() || self.offence.is_some() {
            return;
        }
        let ahead = sequence.wrapping_sub(self.next);
        if ahead > 0 && ahead < 1 << 31 {
            self.early.insert(sequence, payload.to_vec());
            return;
        }
        self.in_order(sequence, payload);
        while let Some((sequence, payload)) = self.early.pop_first() {
            let ahead = sequence.wrapping_sub(self.next);
            if ahead > 0 && ahead < 1 << 31 {
                self.early.insert(sequence, payload);
                return;
            }
            self.in_order(sequence, &payload);
        }
    }

    fn in_order(&mut self, sequence: u32, payload: &[u8]) {
        let seen = usize::try_from(self.next.wrapping_sub(sequence)).unwrap_or(usize::MAX);
        let Some(fresh) = payload.get(seen..).filter(|fresh| !fresh.is_empty()) else { return };
        self.next = self.next.wrapping_add(u32::try_from(fresh.len()).unwrap_or(0));
        self.bytes.extend_from_slice(fresh);
        let mut begin = 0;
        while let Some(&[kind, major, minor, high, low]) =
            self.bytes.get(begin..begin + 5).and_then(|head| <&[u8; 5]>::try_from(head).ok())
        {
            let length = usize::from(u16::from_be_bytes([high, low]));
            if major != 3 || length > MAX_RECORD || !(CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&kind) {
                self.offence = Some(format!("no TLS record: {:02x?}", [kind, major, minor, high, low]));
                break;
            }
            let Some(record) = self.bytes.get(begin + 5..begin + 5 + length) else { break };
            if let Some(offence) = judge(kind, record, &mut self.hello) {
                self.offence = Some(offence);
                break;
            }
            begin += 5 + length;
        }
        self.bytes.drain(..begin.min(self.bytes.len()));
    }
}

fn judge(kind: u8, record: &[u8], hello: &mut bool) -> Option<String> {
    match (kind, *hello) {
        (HANDSHAKE, false) => {
            let shown = hello_of(record);
            *hello = shown.is_some();
            match shown {
                None => Some("the first record is no hello".to_owned()),
                Some(Hello { server: true, version }) if version != Some(0x0304) => {
                    Some(format!("the server chose version {version:04x?}"))
                }
                Some(_) => None,
            }
        }
        // After its hello, a side of TLS 1.3 has nothing to say in the clear but this and alerts.
        (CHANGE_CIPHER_SPEC | ALERT, _) | (APPLICATION_DATA, true) => None,
        // A hello retry brings second hellos.
        (HANDSHAKE, true) if hello_of(record).is_some() => None,
        _ => Some(format!("a record of type {kind} {} the hello", if *hello { "after" } else { "before" })),
    }
}

struct Hello {
    server: bool,
    version: Option<u16>,
}

/// A ClientHello or ServerHello; of the latter the version that it chose.
fn hello_of(record: &[u8]) -> Option<Hello> {
    let (&kind, rest) = record.split_first()?;
    if kind == 1 {
        return Some(Hello { server: false, version: None });
    }
    if kind != 2 {
        return None;
    }
    // length 3, version 2, random 32, session id, cipher suite 2, compression 1, extensions
    let body = rest.get(3 + 2 + 32..)?;
    let (&session, body) = body.split_first()?;
    let mut extensions = body.get(usize::from(session) + 2 + 1 + 2..).unwrap_or_default();
    while let Some(&[a, b, c, d]) = extensions.get(..4).and_then(|head| <&[u8; 4]>::try_from(head).ok()) {
        let length = usize::from(u16::from_be_bytes([c, d]));
        let value = extensions.get(4..4 + length)?;
        if u16::from_be_bytes([a, b]) == SUPPORTED_VERSIONS {
            let version = value.get(..2)?.try_into().ok().map(u16::from_be_bytes);
            return Some(Hello { server: true, version });
        }
        extensions = extensions.get(4 + length..)?;
    }
    Some(Hello { server: true, version: Some(0x0303) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(records: &[&[u8]]) -> Stream {
        let mut stream = Stream::new(100);
        let all = records.concat();
        // Out of order, and one byte twice.
        let middle = all.len() / 2;
        stream.take(100 + u32::try_from(middle).unwrap(), &all[middle..]);
        stream.take(100, &all[..middle]);
        stream.take(100, &all[..1]);
        stream
    }

    #[test]
    fn a_client_of_tls13() {
        let whole = stream(&[&[22, 3, 1, 0, 2, 1, 0], &[20, 3, 3, 0, 1, 1], &[23, 3, 3, 0, 3, 7, 7, 7]]);
        assert!(whole.hello && whole.offence.is_none() && whole.bytes.is_empty());
    }

    #[test]
    fn what_is_no_tls13() {
        assert!(stream(&[b"GET / HTTP/1.1\r\n"]).offence.is_some());
        assert!(stream(&[&[23, 3, 3, 0, 1, 0]]).offence.is_some());
        assert!(stream(&[&[22, 3, 1, 0, 2, 1, 0], &[22, 3, 3, 0, 1, 11]]).offence.is_some());
        let mut old = vec![22, 3, 3, 0, 42, 2, 0, 0, 38, 3, 3];
        old.extend([0; 32]);
        old.extend([0, 0x13, 1, 0]);
        old.resize(47, 0);
        assert!(stream(&[&old]).offence.is_some());
    }
}
