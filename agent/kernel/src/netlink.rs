//! Blocking netlink for one-shot questions: request, answers, acknowledgement.
//!
//! Requests are built with the netlink-packet crates. Answers are handed over raw, because their parsers refuse a
//! whole message for one attribute that a newer kernel made longer; the callers pick the few attributes they need.

pub(crate) mod link;

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};
use socket2::SockRef;

use crate::netns::Netns;

/// Message types below 16 (`linux/netlink.h`).
pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
/// A dump that ran while the table changed under it.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// An acknowledgement with attributes, and the one of them with words (`linux/netlink.h`).
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const HEADER_LEN: usize = 16;
/// The kernel fills dump messages up to 32 KiB.
pub(crate) const BUFFER_LEN: usize = 64 * 1024;
/// The kernel answers at once; a lost answer must not hang a start-up for ever.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A table that changes under every one of so many dumps is not waited for any longer.
const DUMP_TRIES: usize = 16;

/// One answer: message type and payload (the family's header and its attributes).
pub(crate) struct Answer {
    pub(crate) kind: u16,
    pub(crate) payload: Vec<u8>,
}

/// A netlink socket, for ever in the namespace it was opened in.
pub(crate) struct Connection {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens a socket of `protocol` in the calling thread's namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        SockRef::from(&socket).set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER_LEN) })
    }

    /// Opens a NETLINK_ROUTE socket in `netns`.
    pub(crate) fn route(netns: &Netns) -> io::Result<Self> {
        let connection = netns.within(|| Self::open(netlink_sys::protocols::NETLINK_ROUTE))?;
        // The kernel then says in words what it refused, where it can.
        connection.socket.set_ext_ack(true)?;
        connection.socket.set_cap_ack(true)?;
        Ok(connection)
    }

    /// Opens a NETLINK_SOCK_DIAG socket in the calling thread's namespace.
    pub(crate) fn sock_diag() -> io::Result<Self> {
        Self::open(netlink_sys::protocols::NETLINK_SOCK_DIAG)
    }

    /// Sends a request with `flags` besides REQUEST and ACK, and returns the answers that came before the
    /// acknowledgement (none for a change).
    pub(crate) fn request<M>(&mut self, message: M, flags: u16) -> io::Result<Vec<Answer>>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>>,
    {
        let sequence = self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        let mut answers = Vec::new();
        self.receive(sequence, &mut answers)?;
        Ok(answers)
    }

    /// Asks for a whole table.
    pub(crate) fn dump<M>(&mut self, message: M) -> io::Result<Vec<Answer>>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>> + Clone,
    {
        for _ in 0..DUMP_TRIES {
            let sequence = self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            let mut answers = Vec::new();
            if self.receive(sequence, &mut answers)? {
                return Ok(answers);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "the table changed under every one of its dumps"))
    }

    fn send<M>(&mut self, message: M, flags: u16) -> io::Result<u32>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>>,
    {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&encode(message, flags, self.sequence), 0)?;
        Ok(self.sequence)
    }

    /// Reads up to the end of the answer; false when the dump was interrupted by a change.
    fn receive(&mut self, sequence: u32, answers: &mut Vec<Answer>) -> io::Result<bool> {
        let mut whole = true;
        loop {
            self.buffer.clear();
            let read = self.socket.recv(&mut self.buffer, libc::MSG_TRUNC)?;
            if read > self.buffer.len() {
                return Err(io::Error::other(format!("a netlink answer of {read} bytes does not fit")));
            }
            for message in Messages::new(&self.buffer) {
                let message = message?;
                if message.sequence != sequence {
                    // The rest of an earlier request that ran into its time limit.
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_ERROR => return message.error().map(|()| whole),
                    NLMSG_DONE => return message.error().map(|()| whole),
                    kind => answers.push(Answer { kind, payload: message.payload.to_vec() }),
                }
            }
        }
    }
}

/// Bytes of one request.
pub(crate) fn encode<M>(message: M, flags: u16, sequence: u32) -> Vec<u8>
where
    M: NetlinkSerializable + Into<NetlinkPayload<M>>,
{
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut packet = NetlinkMessage::new(header, message.into());
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    bytes
}

/// One message of a datagram from the kernel.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

impl Message<'_> {
    /// The error that ERROR and DONE begin with, if any. With the kernel's own words, it is a [`Refused`].
    pub(crate) fn error(&self) -> io::Result<()> {
        let Some((code, rest)) = self.payload.split_first_chunk::<4>() else { return Ok(()) };
        let code = i32::from_ne_bytes(*code);
        if code >= 0 {
            return Ok(());
        }
        let plain = io::Error::from_raw_os_error(code.saturating_neg());
        // After the header of the request, which stands there by itself when replies are capped.
        let attributes = if self.kind == NLMSG_ERROR { rest.get(HEADER_LEN..) } else { Some(rest) };
        let words = attributes.filter(|_| self.flags & NLM_F_ACK_TLVS != 0).and_then(words);
        Err(match words {
            Some(words) => io::Error::new(plain.kind(), Refused { cause: plain, words }),
            None => plain,
        })
    }

    /// A dump whose table changed under it: it may miss entries.
    pub(crate) fn interrupted(&self) -> bool {
        self.flags & NLM_F_DUMP_INTR != 0
    }
}

/// What the kernel refused, in its own words.
#[derive(Debug, thiserror::Error)]
#[error("{cause}: the kernel says {words:?}")]
struct Refused {
    cause: io::Error,
    words: String,
}

/// The errno of an error of this module.
pub(crate) fn errno(error: &io::Error) -> Option<i32> {
    let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<Refused>());
    refused.map_or(error, |refused| &refused.cause).raw_os_error()
}

/// NLMSGERR_ATTR_MSG among the attributes of an acknowledgement.
fn words(attributes: &[u8]) -> Option<String> {
    let message = NlasIterator::new(attributes).flatten().find(|a| a.kind() == NLMSGERR_ATTR_MSG)?;
    let text = message.value();
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    Some(String::from_utf8_lossy(text.get(..end)?).into_owned())
}

/// Walks the messages of one datagram.
pub(crate) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(crate) fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<Message<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let cut = || io::Error::new(io::ErrorKind::InvalidData, "a netlink message is cut short");
        let Some((header, _)) = self.rest.split_first_chunk::<HEADER_LEN>() else {
            self.rest = &[];
            return Some(Err(cut()));
        };
        // struct nlmsghdr, host byte order.
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let Some(payload) = self.rest.get(HEADER_LEN..length) else {
            self.rest = &[];
            return Some(Err(cut()));
        };
        let aligned = length.next_multiple_of(4);
        self.rest = self.rest.get(aligned..).unwrap_or(&[]);
        Some(Ok(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(HEADER_LEN + payload.len()).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn an_error_carries_its_errno() {
        let bytes = message(NLMSG_ERROR, &(-17_i32).to_ne_bytes());
        let read: Vec<_> = Messages::new(&bytes).map(Result::unwrap).collect();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].error().unwrap_err().raw_os_error(), Some(17));
    }

    #[test]
    fn a_refusal_has_the_kernels_own_words() {
        let mut connection = Connection::route(&Netns::current().unwrap()).unwrap();
        let refused = connection.link(link::Which::Name("a-name-that-is-too-long")).unwrap_err();
        assert_eq!(errno(&refused), Some(libc::ERANGE));
        assert!(refused.to_string().contains("the kernel says"), "{refused}");
    }

    proptest! {
        #[test]
        fn messages_come_back_as_they_went_in(payloads: Vec<Vec<u8>>) {
            let bytes: Vec<u8> = payloads.iter().flat_map(|p| message(20, p)).collect();
            let read: Vec<Vec<u8>> = Messages::new(&bytes).map(|m| m.unwrap().payload.to_vec()).collect();
            prop_assert_eq!(read, payloads);
        }

        #[test]
        fn any_bytes_end(bytes: Vec<u8>) {
            prop_assert!(Messages::new(&bytes).count() <= bytes.len() + 1);
        }
    }
}
