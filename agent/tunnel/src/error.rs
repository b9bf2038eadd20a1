//! What can go wrong on a tunnel, each with its reason.

use std::io;
use std::time::Duration;

use kumiko_abi::Reason;
use kumiko_core::frame::FrameError;
use kumiko_core::halves::Violation;
use rustls::{AlertDescription, CertificateError, PeerIncompatible};
use thiserror::Error;

use crate::aead::{BadRecord, UnsupportedSuite};
use crate::identity::PeerError;
use crate::messages::{MessageError, alert};
use crate::record::RecordError;

/// Why a tunnel ended, or cannot be used.
#[derive(Debug, Error)]
pub enum TunnelError {
    /// The connection between the nodes failed.
    #[error("connection between the nodes: {0}")]
    Io(#[from] io::Error),
    /// The peer's end of stream, with or without close_notify.
    #[error("the peer closed the tunnel")]
    Closed,
    /// The peer ended the tunnel with a fatal alert.
    #[error("the peer ended the tunnel with the TLS alert {:?}", AlertDescription::from(*.0))]
    Alert(u8),
    /// A record that cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A handshake or alert record that cannot be used.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A control frame that cannot be read.
    #[error("control frame: {0}")]
    Frame(#[from] FrameError),
    /// A control frame, or bytes, that may not come now.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The peer does nothing but change keys.
    #[error("the peer changes its keys without end")]
    TooManyKeyUpdates,
    /// This side's own call was out of order.
    #[error("{0}")]
    Misuse(&'static str),
    /// The next key could not be made.
    #[error("key update: {0}")]
    Rekey(rustls::Error),
    /// A record could not be sealed.
    #[error("record could not be sealed")]
    Seal,
}

impl From<BadRecord> for TunnelError {
    fn from(_: BadRecord) -> Self {
        Self::Seal
    }
}

impl From<UnsupportedSuite> for TunnelError {
    fn from(_: UnsupportedSuite) -> Self {
        Self::Seal
    }
}

impl TunnelError {
    /// For counters and flow records.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Io(_) | Self::Closed | Self::Rekey(_) | Self::Seal | Self::Misuse(_) => Reason::TunnelLost,
            Self::Alert(description) => alert_reason(*description),
            Self::Record(_) => Reason::BadRecord,
            Self::Message(_) | Self::Frame(_) | Self::Violation(_) | Self::TooManyKeyUpdates => Reason::ProtocolError,
        }
    }

    /// Whether this side ended the tunnel because of what the peer sent.
    pub fn is_peers_fault(&self) -> bool {
        matches!(self.reason(), Reason::BadRecord | Reason::ProtocolError) && !matches!(self, Self::Alert(_))
    }

    /// The alert that tells the peer, if there is anything to tell.
    pub(crate) fn alert(&self) -> Option<u8> {
        match self {
            Self::Io(_) | Self::Closed | Self::Alert(_) => None,
            Self::Record(RecordError::Bad) => Some(alert::BAD_RECORD_MAC),
            Self::Record(RecordError::Overflow(_)) => Some(alert::RECORD_OVERFLOW),
            Self::Record(_) | Self::Violation(_) | Self::TooManyKeyUpdates => Some(alert::UNEXPECTED_MESSAGE),
            Self::Message(MessageError::Unexpected(_) | MessageError::Interleaved) => Some(alert::UNEXPECTED_MESSAGE),
            Self::Message(_) | Self::Frame(_) => Some(alert::DECODE_ERROR),
            Self::Misuse(_) | Self::Rekey(_) | Self::Seal => Some(alert::INTERNAL_ERROR),
        }
    }
}

/// Why there is no tunnel.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// This node has no certificate for the principal.
    #[error("no certificate for {0} on this node yet: see `kumiko certs`")]
    NoCertificate(String),
    /// The TCP connection was not made.
    #[error("connect to the peer's node: {0}: is its agent running, and port 15008 open between the nodes?")]
    Connect(io::Error),
    /// The TCP connection ended during the handshake.
    #[error("connection ended during the handshake: {0}")]
    Io(io::Error),
    /// The peer closed before the handshake was done.
    #[error("the peer closed the connection during the handshake")]
    Closed,
    /// Longer than the limit.
    #[error("the handshake took longer than {0:?}")]
    TimedOut(Duration),
    /// More bytes than a handshake has.
    #[error("the peer sent {0} bytes without finishing the handshake")]
    TooLong(usize),
    /// What came is no TLS record.
    #[error("what the peer sent is not TLS (first byte {0:#04x})")]
    NotTls(u8),
    /// Too many handshakes at once.
    #[error("too many handshakes at once on this node")]
    Busy,
    /// No workload here answers to the name.
    #[error("no workload here answers to the server name {0:?}")]
    UnknownName(String),
    /// The peer chose no application protocol, or another one.
    #[error("the peer does not speak kumiko/1")]
    Protocol,
    /// The peer's certificate is good, but for somebody else.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// Everything else that rustls finds.
    #[error("TLS handshake: {0}")]
    Tls(rustls::Error),
    /// The keys cannot be used.
    #[error(transparent)]
    Suite(#[from] UnsupportedSuite),
}

impl HandshakeError {
    /// For counters and flow records.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoCertificate(_) => Reason::NoCertificate,
            Self::Connect(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Reason::NodeRefused,
                _ => Reason::NodeUnreachable,
            },
            Self::Io(_) | Self::Closed | Self::Protocol | Self::Suite(_) => Reason::TlsFailed,
            Self::Busy => Reason::TunnelLimit,
            Self::TimedOut(_) => Reason::HandshakeTimedOut,
            Self::TooLong(_) | Self::NotTls(_) => Reason::NotTls,
            Self::UnknownName(_) => Reason::UnrecognizedName,
            Self::Peer(error) => error.reason(),
            Self::Tls(error) => tls_reason(error),
        }
    }
}

fn tls_reason(error: &rustls::Error) -> Reason {
    match error {
        rustls::Error::InvalidCertificate(error) => certificate_reason(error),
        rustls::Error::NoCertificatesPresented => Reason::PeerCertificateMissing,
        rustls::Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => Reason::TlsVersion,
        rustls::Error::AlertReceived(description) => alert_reason(u8::from(*description)),
        rustls::Error::InvalidMessage(_) => Reason::NotTls,
        _ => Reason::TlsFailed,
    }
}

fn certificate_reason(error: &CertificateError) -> Reason {
    match error {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Reason::PeerCertificateExpired,
        CertificateError::UnknownIssuer => Reason::PeerCertificateUnknownIssuer,
        CertificateError::Other(other) => {
            other.0.downcast_ref::<PeerError>().map_or(Reason::PeerCertificateInvalid, PeerError::reason)
        }
        _ => Reason::PeerCertificateInvalid,
    }
}

/// What a fatal alert of the peer says about this side.
fn alert_reason(description: u8) -> Reason {
    match description {
        alert::CLOSE_NOTIFY => Reason::TunnelLost,
        alert::UNRECOGNIZED_NAME => Reason::UnrecognizedName,
        alert::PROTOCOL_VERSION => Reason::TlsVersion,
        // 47 is illegal_parameter; the others from bad_certificate to access_denied are about certificates.
        alert::BAD_CERTIFICATE..=46 | 48..=alert::ACCESS_DENIED | alert::CERTIFICATE_REQUIRED => {
            Reason::CertificateRefused
        }
        alert::BAD_RECORD_MAC => Reason::BadRecord,
        _ => Reason::TlsFailed,
    }
}
