//! What may come in records of types handshake and alert after the handshake.

use thiserror::Error;

/// Handshake message types (RFC 8446 section 4).
mod kind {
    pub(super) const NEW_SESSION_TICKET: u8 = 4;
    pub(super) const KEY_UPDATE: u8 = 24;
}

/// Type and length.
const HEADER: usize = 4;
/// Longest message that is put together from several records; tickets of other implementations are shorter.
const MAX_MESSAGE: usize = 16_384;

/// A handshake message that means something after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// The peer's next record is sealed with its next key.
    KeyUpdate {
        /// It asks for the same from us.
        requested: bool,
    },
    /// This agent never resumes a session.
    Ticket,
}

/// Why a handshake or alert record is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// A handshake message that has no place after the handshake.
    #[error("handshake message of type {0} after the handshake")]
    Unexpected(u8),
    /// Too long, or empty.
    #[error("handshake message of {0} bytes")]
    Length(usize),
    /// A KeyUpdate of the wrong form, or with something after it in its record (RFC 8446 section 5.1).
    #[error("malformed key update")]
    KeyUpdate,
    /// Another record in the middle of a message.
    #[error("a handshake message was cut by another record")]
    Interleaved,
    /// An alert that is not two bytes.
    #[error("malformed alert")]
    Alert,
}

/// Puts messages together from records.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    partial: Vec<u8>,
}

impl Messages {
    /// A record of another type came.
    pub(crate) fn other_record(&self) -> Result<(), MessageError> {
        if self.partial.is_empty() { Ok(()) } else { Err(MessageError::Interleaved) }
    }

    /// Takes a handshake record's plaintext; at most one KeyUpdate comes of it, and it is the last message.
    pub(crate) fn record(&mut self, plain: &[u8]) -> Result<Option<Message>, MessageError> {
        if plain.is_empty() || self.partial.len() + plain.len() > MAX_MESSAGE + HEADER {
            return Err(MessageError::Length(self.partial.len() + plain.len()));
        }
        self.partial.extend_from_slice(plain);
        let mut rest = self.partial.as_slice();
        let mut found = None;
        while let Some((&[kind, l0, l1, l2], after)) = rest.split_first_chunk::<HEADER>() {
            let len = u32::from_be_bytes([0, l0, l1, l2]) as usize;
            if len > MAX_MESSAGE {
                return Err(MessageError::Length(len));
            }
            match kind {
                kind::KEY_UPDATE if len != 1 => return Err(MessageError::KeyUpdate),
                kind::KEY_UPDATE | kind::NEW_SESSION_TICKET => {}
                other => return Err(MessageError::Unexpected(other)),
            }
            let Some((body, after)) = after.split_at_checked(len) else { break };
            rest = after;
            found = Some(match (kind, body) {
                (kind::KEY_UPDATE, [0]) if rest.is_empty() => Message::KeyUpdate { requested: false },
                (kind::KEY_UPDATE, [1]) if rest.is_empty() => Message::KeyUpdate { requested: true },
                (kind::KEY_UPDATE, _) => return Err(MessageError::KeyUpdate),
                _ => Message::Ticket,
            });
        }
        let left = rest.len();
        self.partial.drain(..self.partial.len() - left);
        Ok(found)
    }
}

/// The KeyUpdate message.
pub(crate) fn key_update(request: bool) -> [u8; 5] {
    [kind::KEY_UPDATE, 0, 0, 1, u8::from(request)]
}

/// Alert descriptions (RFC 8446 section 6) that this crate sends or tells apart.
pub(crate) mod alert {
    pub(crate) const CLOSE_NOTIFY: u8 = 0;
    pub(crate) const UNEXPECTED_MESSAGE: u8 = 10;
    pub(crate) const BAD_RECORD_MAC: u8 = 20;
    pub(crate) const RECORD_OVERFLOW: u8 = 22;
    pub(crate) const BAD_CERTIFICATE: u8 = 42;
    pub(crate) const ACCESS_DENIED: u8 = 49;
    pub(crate) const DECODE_ERROR: u8 = 50;
    pub(crate) const PROTOCOL_VERSION: u8 = 70;
    pub(crate) const INTERNAL_ERROR: u8 = 80;
    pub(crate) const USER_CANCELED: u8 = 90;
    pub(crate) const UNRECOGNIZED_NAME: u8 = 112;
    pub(crate) const CERTIFICATE_REQUIRED: u8 = 116;

    /// Level and description of an alert record; the level says nothing in TLS 1.3.
    pub(crate) fn parse(plain: &[u8]) -> Result<u8, super::MessageError> {
        match plain {
            [_, description] => Ok(*description),
            _ => Err(super::MessageError::Alert),
        }
    }

    /// close_notify is a warning, all others are fatal.
    pub(crate) fn encode(description: u8) -> [u8; 2] {
        [if description == CLOSE_NOTIFY { 1 } else { 2 }, description]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn key_update_must_end_its_record() {
        assert_eq!(Messages::default().record(&key_update(true)), Ok(Some(Message::KeyUpdate { requested: true })));
        let mut two = key_update(false).to_vec();
        two.extend(key_update(false));
        assert_eq!(Messages::default().record(&two), Err(MessageError::KeyUpdate));
        assert_eq!(Messages::default().record(&[24, 0, 0, 1, 2]), Err(MessageError::KeyUpdate));
        assert_eq!(Messages::default().record(&[20, 0, 0, 0]), Err(MessageError::Unexpected(20)));
        assert_eq!(Messages::default().record(&[]), Err(MessageError::Length(0)));
    }

    #[test]
    fn a_ticket_in_pieces() {
        let mut messages = Messages::default();
        let mut ticket = vec![4, 0, 0, 10];
        ticket.extend([9; 10]);
        for piece in ticket.chunks(5) {
            messages.record(piece).unwrap();
        }
        assert_eq!(messages.other_record(), Ok(()));
        messages.record(&[4, 0]).unwrap();
        assert_eq!(messages.other_record(), Err(MessageError::Interleaved));
    }

    proptest! {
        #[test]
        fn any_records_are_read_or_refused(records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..10)) {
            let mut messages = Messages::default();
            for record in &records {
                if messages.record(record).is_err() {
                    break;
                }
                prop_assert!(messages.partial.len() <= MAX_MESSAGE + HEADER);
            }
        }
    }
}
