//! TLS 1.3 records (RFC 8446 section 5), sealed and opened in place.

use thiserror::Error;

use crate::aead::{BadRecord, HEADER, Key, TAG};

/// Most plaintext bytes of a record.
pub(crate) const MAX_PLAIN: usize = 16_384;
/// What a record adds to its plaintext when it has no padding: header, inner content type, tag.
pub(crate) const OVERHEAD: usize = HEADER + 1 + TAG;
/// Room that a full record takes in a sender's buffer.
pub(crate) const SLOT: usize = MAX_PLAIN + OVERHEAD;
/// Most bytes after a header that a peer may send (RFC 8446 section 5.2).
const MAX_CIPHER: usize = MAX_PLAIN + 256;
/// Largest record that a peer may send.
pub(crate) const MAX_RECORD: usize = HEADER + MAX_CIPHER;

/// Content types (RFC 8446 appendix B.1).
pub(crate) mod content {
    pub(crate) const ALERT: u8 = 21;
    pub(crate) const HANDSHAKE: u8 = 22;
    pub(crate) const DATA: u8 = 23;
}

/// Why bytes are no record that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// Not an application_data record of TLS 1.2's version number, which is what all of TLS 1.3 looks like.
    #[error("a record of type {0} came where only protected ones may come")]
    Unprotected(u8),
    /// Longer than RFC 8446 allows.
    #[error("a record of {0} bytes is longer than TLS allows")]
    Overflow(usize),
    /// Changed on the way, or sealed with another key.
    #[error("a record could not be opened: it was changed on the way, or keys differ")]
    Bad,
    /// Nothing but padding.
    #[error("a record without a content type")]
    Empty,
}

impl From<BadRecord> for RecordError {
    fn from(_: BadRecord) -> Self {
        Self::Bad
    }
}

/// A record that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// Inner content type.
    pub(crate) content: u8,
    /// Bytes of plaintext, which stand after the header.
    pub(crate) len: usize,
    /// Bytes that the whole record took.
    pub(crate) record: usize,
}

/// Seals the `len` bytes that stand after room for a header at the start of `slot`, and returns the record's length.
pub(crate) fn seal(key: &mut Key, content: u8, slot: &mut [u8], len: usize) -> Result<usize, BadRecord> {
    let record = len + OVERHEAD;
    let cipher = u16::try_from(record - HEADER).map_err(|_| BadRecord)?;
    let (head, rest) = slot.split_first_chunk_mut::<HEADER>().ok_or(BadRecord)?;
    let (inner, rest) = rest.split_at_mut_checked(len + 1).ok_or(BadRecord)?;
    let tag_place = rest.first_chunk_mut::<TAG>().ok_or(BadRecord)?;
    let [high, low] = cipher.to_be_bytes();
    *head = [content::DATA, 3, 3, high, low];
    *inner.last_mut().ok_or(BadRecord)? = content;
    *tag_place = key.seal(head, inner)?;
    Ok(record)
}

/// Appends a record with `plain` to `out`.
pub(crate) fn seal_into(key: &mut Key, content: u8, plain: &[u8], out: &mut Vec<u8>) -> Result<(), BadRecord> {
    let start = out.len();
    out.resize(start + plain.len() + OVERHEAD, 0);
    let slot = out.get_mut(start..).ok_or(BadRecord)?;
    slot.get_mut(HEADER..HEADER + plain.len()).ok_or(BadRecord)?.copy_from_slice(plain);
    seal(key, content, slot, plain.len())?;
    Ok(())
}

/// Length of the record that begins at `bytes`, header included; `None` while its header is not complete.
pub(crate) fn length(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some(&[content, _, _, high, low]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    if content != content::DATA {
        return Err(RecordError::Unprotected(content));
    }
    let cipher = usize::from(u16::from_be_bytes([high, low]));
    if cipher > MAX_CIPHER {
        return Err(RecordError::Overflow(cipher));
    }
    Ok(Some(HEADER + cipher))
}

/// Opens the record that begins at `bytes`; `None` while it is not complete.
pub(crate) fn open(key: &mut Key, bytes: &mut [u8]) -> Result<Option<Opened>, RecordError> {
    let Some(record) = length(bytes)? else { return Ok(None) };
    let Some(bytes) = bytes.get_mut(..record) else { return Ok(None) };
    let (head, cipher) = bytes.split_first_chunk_mut::<HEADER>().ok_or(RecordError::Bad)?;
    let inner = key.open(head, cipher)?;
    // RFC 8446 section 5.4: the content type is the last byte that is not zero; the zeros after it are padding, which
    // counts towards the limit.
    let inner = cipher.get(..inner).ok_or(RecordError::Bad)?;
    if inner.len() > MAX_PLAIN + 1 {
        return Err(RecordError::Overflow(inner.len()));
    }
    let at = inner.iter().rposition(|&b| b != 0).ok_or(RecordError::Empty)?;
    let content = inner.get(at).copied().ok_or(RecordError::Empty)?;
    Ok(Some(Opened { content, len: at, record }))
}

#[cfg(test)]
mod tests {
    use rustls::ConnectionTrafficSecrets;
    use rustls::crypto::cipher::{AeadKey, Iv};

    use super::*;

    fn key() -> Key {
        let secrets = ConnectionTrafficSecrets::Chacha20Poly1305 { key: AeadKey::from([1; 32]), iv: Iv::new([1; 12]) };
        Key::new(0, secrets).unwrap()
    }

    #[test]
    fn padding_counts_towards_the_limit() {
        for (inner, expected) in [
            (MAX_PLAIN, Ok(Some(Opened { content: content::DATA, len: 100, record: MAX_PLAIN + OVERHEAD }))),
            (MAX_PLAIN + 1, Err(RecordError::Overflow(MAX_PLAIN + 2))),
        ] {
            // The type is the last byte that is not zero: here, one of the plaintext of a record of "type" 0.
            let mut plain = vec![0; inner];
            plain[..100].fill(7);
            plain[100] = content::DATA;
            let mut record = Vec::new();
            seal_into(&mut key(), 0, &plain, &mut record).unwrap();
            assert_eq!(open(&mut key(), &mut record), expected);
        }
    }
}
