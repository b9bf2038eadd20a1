//! Driving rustls' unbuffered connection over a socket, from the first record to the last of the handshake.

use std::io;
use std::time::Duration;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use tokio::net::TcpStream;

use super::TunnelOptions;
use crate::error::HandshakeError;
use crate::record::MAX_RECORD;

/// How long a refused peer has to read the alert that says why.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// The two kinds of connection have the same interface, by different types.
pub(super) trait Unbuffered {
    type Data;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Unbuffered for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }
}

impl Unbuffered for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }
}

/// What rustls wants next.
enum Wants {
    Again,
    Write,
    Read,
    Done,
    Fail(rustls::Error),
}

/// Why a handshake failed, and what the peer is to be told; nothing, if empty.
pub(super) struct Refusal {
    pub(super) error: HandshakeError,
    pub(super) words: Vec<u8>,
}

impl Refusal {
    pub(super) async fn tell(self, stream: &TcpStream) -> HandshakeError {
        if !self.words.is_empty() {
            last_words(stream, &self.words).await;
        }
        self.error
    }
}

/// What the peer has said before it was answered: a handshake can begin anew from there.
#[derive(Default)]
pub(super) struct Heard {
    bytes: Vec<u8>,
    pub(super) answered: bool,
}

/// Drives `conn` to the end of its handshake; returns it with bytes that came after it.
pub(super) async fn handshake<C: Unbuffered>(
    stream: &TcpStream,
    mut conn: C,
    options: TunnelOptions,
    heard: &mut Heard,
) -> Result<(C, Vec<u8>), Refusal> {
    let limit = options.handshake_time;
    let mut words = Vec::new();
    let driven = drive(stream, &mut conn, options.handshake_bytes, heard, &mut words);
    match tokio::time::timeout(limit, driven).await.unwrap_or(Err(HandshakeError::TimedOut(limit))) {
        Ok(early) => Ok((conn, early)),
        Err(error) => Err(Refusal { error, words }),
    }
}

/// On an error `words` is what the peer is to be told.
async fn drive<C: Unbuffered>(
    stream: &TcpStream,
    conn: &mut C,
    max_bytes: usize,
    heard: &mut Heard,
    words: &mut Vec<u8>,
) -> Result<Vec<u8>, HandshakeError> {
    let (mut incoming, mut outgoing) = (Vec::with_capacity(4096), Vec::with_capacity(4096));
    incoming.extend_from_slice(&heard.bytes);
    // Bytes at the front of `incoming` that rustls may see: whole records only.
    let mut fed = 0;
    let mut total = incoming.len();
    let mut refused: Option<rustls::Error> = None;
    loop {
        let status = conn.process(incoming.get_mut(..fed).unwrap_or_default());
        let discard = status.discard;
        let wants = step(status.state, &mut outgoing);
        incoming.drain(..discard.min(incoming.len()));
        fed = fed.saturating_sub(discard);
        match wants {
            Wants::Again => {}
            Wants::Write if refused.is_none() => {
                heard.answered = true;
                write_all(stream, &mut outgoing).await?;
            }
            Wants::Done if refused.is_none() => return Ok(incoming),
            Wants::Read if refused.is_none() => {
                // A message may span records: rustls sees one more each time it asks.
                while next_record(&incoming, fed)?.is_none() {
                    let before = incoming.len();
                    read_some(stream, &mut incoming, &mut total, max_bytes).await?;
                    if !heard.answered {
                        heard.bytes.extend_from_slice(incoming.get(before..).unwrap_or_default());
                    }
                }
                fed += next_record(&incoming, fed)?.unwrap_or_default();
            }
            // Once more: rustls then hands out the alert that tells the peer.
            Wants::Fail(error) if refused.is_none() => refused = Some(error),
            Wants::Fail(_) | Wants::Done | Wants::Read | Wants::Write => {
                *words = outgoing;
                return Err(HandshakeError::Tls(refused.unwrap_or(rustls::Error::HandshakeNotComplete)));
            }
        }
    }
}

fn step<Data>(state: Result<ConnectionState<'_, '_, Data>, rustls::Error>, outgoing: &mut Vec<u8>) -> Wants {
    match state {
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let at = outgoing.len();
            outgoing.resize(at + 1024, 0);
            loop {
                match data.encode(outgoing.get_mut(at..).unwrap_or_default()) {
                    Ok(n) => {
                        outgoing.truncate(at + n);
                        return Wants::Again;
                    }
                    Err(EncodeError::InsufficientSize(needs)) => outgoing.resize(at + needs.required_size, 0),
                    Err(EncodeError::AlreadyEncoded) => {
                        outgoing.truncate(at);
                        return Wants::Again;
                    }
                }
            }
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Wants::Write
        }
        Ok(ConnectionState::WriteTraffic(_)) => Wants::Done,
        Ok(ConnectionState::BlockedHandshake) => Wants::Read,
        // Early data is not offered, and traffic is never fed.
        Ok(_) => Wants::Fail(rustls::Error::HandshakeNotComplete),
        Err(error) => Wants::Fail(error),
    }
}

/// Length of the record that begins at `at`; `None` while it is not complete.
fn next_record(bytes: &[u8], at: usize) -> Result<Option<usize>, HandshakeError> {
    let Some(rest) = bytes.get(at..) else { return Ok(None) };
    if let Some(&first) = rest.first().filter(|b| !matches!(b, 20..=23)) {
        return Err(HandshakeError::NotTls(first));
    }
    let Some(&[first, major, _, high, low]) = rest.first_chunk::<5>() else { return Ok(None) };
    let len = 5 + usize::from(u16::from_be_bytes([high, low]));
    if major != 3 || len > MAX_RECORD {
        return Err(HandshakeError::NotTls(first));
    }
    Ok((rest.len() >= len).then_some(len))
}

async fn read_some(
    stream: &TcpStream,
    incoming: &mut Vec<u8>,
    total: &mut usize,
    max_bytes: usize,
) -> Result<(), HandshakeError> {
    if *total >= max_bytes {
        return Err(HandshakeError::TooLong(*total));
    }
    loop {
        stream.readable().await.map_err(HandshakeError::Io)?;
        let at = incoming.len();
        incoming.resize(at + 4096, 0);
        let read = stream.try_read(incoming.get_mut(at..).unwrap_or_default());
        incoming.truncate(at + read.as_ref().map_or(0, |&n| n));
        match read {
            Ok(0) => return Err(HandshakeError::Closed),
            Ok(n) => {
                *total += n;
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(HandshakeError::Io(error)),
        }
    }
}

async fn write_all(stream: &TcpStream, bytes: &mut Vec<u8>) -> Result<(), HandshakeError> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|r| !r.is_empty()) {
        match stream.try_write(rest) {
            Ok(n) => written += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                stream.writable().await.map_err(HandshakeError::Io)?;
            }
            Err(error) => return Err(HandshakeError::Io(error)),
        }
    }
    bytes.clear();
    Ok(())
}

/// Sends an alert and waits a moment until the peer has closed: a close with unread bytes would be an RST, which could
/// overtake it.
async fn last_words(stream: &TcpStream, bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    let words = async {
        write_all(stream, &mut bytes).await?;
        let _ = socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write);
        let (mut waste, mut total) = (Vec::new(), 0);
        loop {
            waste.clear();
            read_some(stream, &mut waste, &mut total, 64 << 10).await?;
        }
    };
    let _: Result<Result<(), HandshakeError>, _> = tokio::time::timeout(LAST_WORDS, words).await;
}
