//! The TLS session after the handshake, without a socket: both directions, and what changes their keys.

use std::io;

use rustls::ConnectionTrafficSecrets;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;

use kumiko_core::frame::{Frame, RECORD_TYPE};
use kumiko_fault::Point;

use crate::aead::Key;
use crate::error::TunnelError;
use crate::inbound::Inbound;
use crate::messages::{Message, Messages, alert};
use crate::outbound::Outbound;
use crate::record::content;

/// KeyUpdates of the peer without anything else between them, after which it is refused.
const MAX_KEY_UPDATES_IN_A_ROW: u32 = 32;

/// Makes the next traffic secrets (RFC 8446 section 7.2); rustls does.
pub(crate) trait Rekey: Send {
    /// For what this side sends.
    fn next_sender(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error>;
    /// For what the peer sends.
    fn next_receiver(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error>;
}

impl Rekey for KernelConnection<ClientConnectionData> {
    fn next_sender(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        self.update_tx_secret()
    }

    fn next_receiver(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        self.update_rx_secret()
    }
}

impl Rekey for KernelConnection<ServerConnectionData> {
    fn next_sender(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        self.update_tx_secret()
    }

    fn next_receiver(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        self.update_rx_secret()
    }
}

/// What the next record brought.
#[derive(Debug)]
pub(crate) enum Item {
    /// Bytes of the flow, now in [`Inbound`] for delivery.
    Bytes,
    /// A control frame.
    Frame(Frame),
    /// close_notify.
    CloseNotify,
}

/// Both directions of a TLS session.
pub(crate) struct Session {
    pub(crate) out: Outbound,
    pub(crate) inn: Inbound,
    rekey: Box<dyn Rekey>,
    messages: Messages,
    updates_in_a_row: u32,
    key_updates: u64,
}

impl Session {
    pub(crate) fn new(out: Outbound, inn: Inbound, rekey: Box<dyn Rekey>) -> Self {
        Self { out, inn, rekey, messages: Messages::default(), updates_in_a_row: 0, key_updates: 0 }
    }

    /// Key changes of the receiving direction.
    pub(crate) fn peer_key_updates(&self) -> u64 {
        self.key_updates
    }

    /// The sending direction with what changes its keys.
    pub(crate) fn sender(&mut self) -> (&mut Outbound, &mut dyn Rekey) {
        (&mut self.out, self.rekey.as_mut())
    }

    /// Seals a control frame.
    pub(crate) fn send(&mut self, frame: &Frame) -> Result<(), TunnelError> {
        self.out.frame(self.rekey.as_mut(), frame)
    }

    /// Changes the key of the sending direction, and asks the peer to change its own.
    pub(crate) fn update_keys(&mut self, request: bool) -> Result<(), TunnelError> {
        self.out.update_key(self.rekey.as_mut(), request)
    }

    /// Opens records until one means something. `None`: more bytes are needed, or bytes have to be delivered first.
    pub(crate) fn next(&mut self) -> Result<Option<Item>, TunnelError> {
        while !self.inn.is_full() {
            let Some((content, plain)) = self.inn.open()? else { return Ok(None) };
            if content != content::HANDSHAKE {
                self.messages.other_record()?;
                self.updates_in_a_row = 0;
            }
            match content {
                content::DATA => {
                    self.inn.keep(plain);
                    return Ok(Some(Item::Bytes));
                }
                RECORD_TYPE => return Ok(Some(Item::Frame(Frame::decode(self.inn.plain(plain))?))),
                content::ALERT => match alert::parse(self.inn.plain(plain))? {
                    alert::CLOSE_NOTIFY => return Ok(Some(Item::CloseNotify)),
                    alert::USER_CANCELED => {}
                    other => return Err(TunnelError::Alert(other)),
                },
                content::HANDSHAKE => self.handshake(plain)?,
                other => return Err(crate::record::RecordError::Unprotected(other).into()),
            }
        }
        Ok(None)
    }

    fn handshake(&mut self, plain: std::ops::Range<usize>) -> Result<(), TunnelError> {
        let Some(Message::KeyUpdate { requested }) = self.messages.record(self.inn.plain(plain))? else {
            return Ok(());
        };
        self.updates_in_a_row += 1;
        if self.updates_in_a_row > MAX_KEY_UPDATES_IN_A_ROW {
            return Err(TunnelError::TooManyKeyUpdates);
        }
        kumiko_fault::hit(Point::PeerKeyUpdate).map_err(io::Error::other)?;
        let (sequence, secrets) = self.rekey.next_receiver().map_err(TunnelError::Rekey)?;
        self.inn.set_key(Key::new(sequence, secrets)?);
        self.key_updates += 1;
        if requested { self.out.answer_key_update(self.rekey.as_mut()) } else { Ok(()) }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("out", &self.out).field("inn", &self.inn).finish_non_exhaustive()
    }
}
