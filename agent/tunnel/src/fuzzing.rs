//! What the fuzz targets of `fuzz/` run; the tests run the same over the kept corpora.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a panic is how a fuzz target speaks"
)]

use std::time::Duration;

use rustls::ConnectionTrafficSecrets;
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::aead::Key;
use crate::identity::{self, Bundle};
use crate::inbound::Inbound;
use crate::messages::Messages;
use crate::outbound::Outbound;
use crate::record;
use crate::session::{Item, Rekey, Session};

/// Keys that both ends can make: the number of the update, in every byte.
#[derive(Default)]
struct Counted {
    sent: u8,
    received: u8,
}

fn secrets(n: u8) -> ConnectionTrafficSecrets {
    ConnectionTrafficSecrets::Chacha20Poly1305 { key: AeadKey::from([n; 32]), iv: Iv::new([n; 12]) }
}

impl Rekey for Counted {
    fn next_sender(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        self.sent = self.sent.wrapping_add(1);
        Ok((0, secrets(self.sent)))
    }

    fn next_receiver(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        self.received = self.received.wrapping_add(1);
        Ok((0, secrets(self.received)))
    }
}

fn session() -> Session {
    let key = || Key::new(0, secrets(0)).unwrap();
    Session::new(Outbound::new(key(), 1 << 20), Inbound::new(key(), &[]), Box::new(Counted::default()))
}

/// Feeds `bytes` in pieces of `piece`, and returns the plaintext that came out before the first error.
fn feed(session: &mut Session, mut bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        let room = session.inn.room();
        let (len, n) = (room.len(), room.len().min(bytes.len()).min(piece));
        room[..n].copy_from_slice(&bytes[..n]);
        bytes = &bytes[n..];
        session.inn.read(n, len);
        loop {
            let ended = match session.next() {
                Ok(Some(Item::Bytes | Item::Frame(_))) => continue,
                Ok(None) => false,
                Ok(Some(Item::CloseNotify)) | Err(_) => true,
            };
            let full = session.inn.is_full();
            let mut pieces = [std::io::IoSlice::new(&[]); crate::inbound::BATCH];
            let count = session.inn.pieces(&mut pieces);
            let before = plain.len();
            pieces[..count].iter().for_each(|p| plain.extend_from_slice(p));
            session.inn.delivered(plain.len() - before);
            assert!(!session.inn.has_ready());
            if ended {
                return plain;
            }
            if !full {
                break;
            }
        }
    }
    plain
}

/// Raw bytes into the record opener: none of them can be opened, and none may do harm.
pub fn records(bytes: &[u8]) {
    let Some((&piece, bytes)) = bytes.split_first() else { return };
    assert!(feed(&mut session(), bytes, usize::from(piece) + 1).is_empty());
}

/// A peer that has the keys: `script` spells its records, as content type, padding, length (two bytes), plaintext. What
/// comes out is exactly the application data before the first thing that is not allowed.
pub fn peer(script: &[u8]) {
    let Some((&piece, mut script)) = script.split_first() else { return };
    let (mut key, mut n) = (Key::new(0, secrets(0)).unwrap(), 0_u8);
    let (mut wire, mut sent) = (Vec::new(), Vec::new());
    while let Some((&[content, padding, high, low], rest)) = script.split_first_chunk::<4>() {
        // 0 is padding, not a type.
        let content = content.max(1);
        let len = usize::from(u16::from_be_bytes([high, low])).min(rest.len()).min(record::MAX_PLAIN);
        let plain = &rest[..len];
        script = &rest[len..];
        // The sealer puts the content type behind the plaintext: padding goes behind that, as plaintext of type 0.
        let mut inner = plain.to_vec();
        if padding > 0 {
            inner.push(content);
            inner.resize(inner.len() + usize::from(padding) - 1, 0);
        }
        let kind = if padding > 0 { 0 } else { content };
        record::seal_into(&mut key, kind, &inner, &mut wire).unwrap();
        if content == record::content::DATA {
            sent.extend_from_slice(plain);
        }
        if content == record::content::HANDSHAKE && matches!(plain, [24, 0, 0, 1, 0 | 1]) {
            n = n.wrapping_add(1);
            key = Key::new(0, secrets(n)).unwrap();
        }
        if wire.len() > 1 << 20 {
            break;
        }
    }
    let mut session = session();
    let plain = feed(&mut session, &wire, (usize::from(piece) + 1) * 97);
    assert!(sent.starts_with(&plain), "{} of {}", plain.len(), sent.len());
}

/// A peer's certificate: read without harm, and believed only as the one that the root has signed.
pub fn certificate(bytes: &[u8]) {
    static ROOT: &[u8] = include_bytes!("fuzzing/root.der");
    let bundle = Bundle::new("td", vec![CertificateDer::from(ROOT)]);
    // Well within the validity of both.
    let now = UnixTime::since_unix_epoch(Duration::from_secs(2_000_000_000));
    let facts = identity::read_peer(Some(&[CertificateDer::from(bytes)]));
    let Some(principal) = identity::fuzz(&bundle, bytes, now) else { return };
    assert_eq!(principal.to_string(), "spiffe://td/ns/x/sa/a");
    assert_eq!(facts.map(|facts| facts.principal).unwrap(), principal);
}

/// Handshake records after the handshake.
pub fn messages(bytes: &[u8]) {
    let mut messages = Messages::default();
    let mut rest = bytes;
    while let Some((&len, after)) = rest.split_first() {
        let (record, after) = after.split_at(usize::from(len).min(after.len()));
        rest = after;
        if messages.record(record).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use kumiko_corpus::{dir, replay};
    use proptest::prelude::*;

    #[test]
    fn corpora() {
        replay("records", super::records);
        replay("peer", super::peer);
        replay("messages", super::messages);
        replay("certificate", super::certificate);
    }

    #[test]
    fn the_good_certificate_is_believed() {
        let dir = dir("certificate");
        let bundle = super::Bundle::new("td", vec![include_bytes!("fuzzing/root.der").as_slice().into()]);
        let now = super::UnixTime::since_unix_epoch(super::Duration::from_secs(2_000_000_000));
        let believed =
            |name: &str| super::identity::fuzz(&bundle, &std::fs::read(dir.join(name)).unwrap(), now).is_some();
        let names = ["good", "other", "two", "dns", "root", "cut", "trailing"];
        assert_eq!(names.map(believed), [true, false, false, false, false, false, false]);
    }

    /// A record of a script.
    fn record() -> impl Strategy<Value = Vec<u8>> {
        let content = prop_oneof![8 => Just(23_u8), 2 => Just(22), 1 => Just(0x6b), 1 => Just(21), 1 => any::<u8>()];
        let plain = prop_oneof![
            6 => proptest::collection::vec(any::<u8>(), 0..600),
            2 => Just(vec![24, 0, 0, 1, 1]),
            1 => Just(vec![5; 16_384]),
        ];
        (content, any::<u8>(), plain).prop_map(|(content, padding, plain)| {
            let [_, _, high, low] = (plain.len() as u32).to_be_bytes();
            [&[content, padding, high, low], plain.as_slice()].concat()
        })
    }

    proptest! {
        #[test]
        fn a_peer_with_the_keys(piece: u8, records in proptest::collection::vec(record(), 0..30)) {
            super::peer(&[vec![piece], records.concat()].concat());
        }

        #[test]
        fn a_stranger(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            super::records(&bytes);
        }
    }

    #[test]
    fn padded_and_small_records_come_out_whole() {
        let mut script = vec![3];
        for n in 0..300_u32 {
            let plain = vec![n as u8; (n * 7 % 400) as usize];
            script.extend([23, (n % 90) as u8, (plain.len() >> 8) as u8, plain.len() as u8]);
            script.extend(plain);
        }
        super::peer(&script);
    }
}
