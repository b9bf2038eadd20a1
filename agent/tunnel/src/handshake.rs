//! The TLS handshake over a TCP connection between nodes, with a limit in time and in bytes.
//!
//! rustls does it all, by its unbuffered interface: afterwards it hands over the keys and goes on making new ones. It
//! gets whole records, one at a time, so that it never sees one that belongs to the session after the handshake.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kumiko_core::Principal;
use kumiko_core::acceptor::Acceptor;
use kumiko_core::dialler::Dialler;
use rustls::ExtractedSecrets;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConnectionData, UnbufferedServerConnection};
use rustls::sign::CertifiedKey;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use crate::aead::Key;
use crate::error::HandshakeError;
use crate::identity::{ALPN, Identities, PeerError, ServerIdentity, Svid, read_peer};
use crate::inbound::Inbound;
use crate::messages::alert;
use crate::outbound::Outbound;
use crate::record::MAX_RECORD;
use crate::role::Role;
use crate::session::{Rekey, Session};
use crate::tunnel::{Facts, Tunnel};

/// AES-GCM keeps its promises up to 2^24.5 records with one key (RFC 8446 section 5.5).
const RECORDS_PER_KEY: u64 = 1 << 23;

/// Limits of a tunnel.
#[derive(Clone, Copy, Debug)]
pub struct TunnelOptions {
    /// Longest handshake.
    pub handshake_time: Duration,
    /// Most bytes that a peer may send before its handshake is done.
    pub handshake_bytes: usize,
    /// Records that are sealed with one key.
    pub records_per_key: u64,
}

impl Default for TunnelOptions {
    fn default() -> Self {
        let records_per_key = kumiko_fault::records_per_key(RECORDS_PER_KEY);
        Self { handshake_time: Duration::from_secs(5), handshake_bytes: 64 << 10, records_per_key }
    }
}

/// How long a refused peer has to read the alert that says why.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Makes a tunnel as `local` to the agent that holds the certificate of `expected`. `stream` may still be connecting.
pub async fn dial(
    stream: TcpStream,
    identities: &Identities,
    local: &Principal,
    expected: &Principal,
    options: TunnelOptions,
) -> Result<Tunnel, HandshakeError> {
    let began = Instant::now();
    let identity =
        identities.client_for(local).cloned().ok_or_else(|| HandshakeError::NoCertificate(local.to_string()))?;
    connected(&stream, options.handshake_time).await?;
    let name = ServerName::try_from(expected.server_name()).map_err(|e| {
        // A hash and a fixed suffix are always a name.
        HandshakeError::Tls(rustls::Error::General(e.to_string()))
    })?;
    let conn = UnbufferedClientConnection::new(identity.config, name).map_err(HandshakeError::Tls)?;
    let (conn, early) = match handshake(&stream, conn, options, &mut Heard::default()).await {
        Ok(done) => done,
        Err(refusal) => return Err(refusal.tell(&stream).await),
    };
    check_protocol(conn.alpn_protocol())?;
    let peer = read_peer(conn.peer_certificates())?;
    if peer.principal != *expected {
        return Err(PeerError::Principal { got: peer.principal.to_string() }.into());
    }
    let (secrets, rekey) = conn.dangerous_into_kernel_connection().map_err(HandshakeError::Tls)?;
    let cipher = rekey.negotiated_cipher_suite();
    let facts = Facts {
        dialled: true,
        local: local.clone(),
        local_serial: identity.svid.serial().to_owned(),
        peer: peer.principal,
        peer_serial: peer.serial,
        peer_addr: stream.peer_addr().map_err(HandshakeError::Io)?,
        cipher: cipher.suite().as_str().unwrap_or("unknown"),
        established: SystemTime::now(),
        handshake: began.elapsed(),
        usable_until: identity.svid.not_after().min(peer.not_after),
    };
    let session = session(secrets, Box::new(rekey), &early, options)?;
    Ok(Tunnel::new(stream, session, Role::Dialler(Dialler::default()), facts))
}

/// Answers a dialler with the certificate that its server name asks for.
pub async fn accept(
    stream: TcpStream,
    identity: Arc<ServerIdentity>,
    options: TunnelOptions,
) -> Result<Tunnel, HandshakeError> {
    accept_late(stream, identity, options, async |_: &str| None).await
}

/// The same; for a name without a certificate `late` is asked, which may wait for one that is on its way.
pub async fn accept_late(
    stream: TcpStream,
    mut identity: Arc<ServerIdentity>,
    options: TunnelOptions,
    late: impl AsyncFnOnce(&str) -> Option<Arc<ServerIdentity>>,
) -> Result<Tunnel, HandshakeError> {
    let began = Instant::now();
    let peer_addr = stream.peer_addr().map_err(HandshakeError::Io)?;
    let (mut late, mut heard) = (Some(late), Heard::default());
    let (conn, early, chosen) = loop {
        let chosen = Arc::new(Chooser { identity: identity.clone(), chosen: Mutex::default() });
        let mut config = (*identity.config).clone();
        config.cert_resolver = chosen.clone();
        let conn = UnbufferedServerConnection::new(Arc::new(config)).map_err(HandshakeError::Tls)?;
        let refusal = match handshake(&stream, conn, options, &mut heard).await {
            Ok((conn, early)) => break (conn, early, chosen),
            Err(refusal) => refusal,
        };
        let (HandshakeError::Tls(_), Some(Err(name))) = (&refusal.error, chosen.noted()) else {
            return Err(refusal.tell(&stream).await);
        };
        // Nothing was said yet: with the certificate, the same hello is answered from its beginning.
        if !heard.answered
            && let Some(late) = late.take()
            && let Some(now) = late(&name).await
        {
            identity = now;
            continue;
        }
        // rustls would say access_denied.
        let refusal = Refusal { error: HandshakeError::UnknownName(name), words: UNRECOGNIZED.to_vec() };
        return Err(refusal.tell(&stream).await);
    };
    check_protocol(conn.alpn_protocol())?;
    let peer = read_peer(conn.peer_certificates())?;
    let local = match chosen.noted() {
        Some(Ok(svid)) => svid,
        other => return Err(HandshakeError::UnknownName(other.and_then(Result::err).unwrap_or_default())),
    };
    let (secrets, rekey) = conn.dangerous_into_kernel_connection().map_err(HandshakeError::Tls)?;
    let cipher = rekey.negotiated_cipher_suite();
    let facts = Facts {
        dialled: false,
        local: local.principal().clone(),
        local_serial: local.serial().to_owned(),
        peer: peer.principal,
        peer_serial: peer.serial,
        peer_addr,
        cipher: cipher.suite().as_str().unwrap_or("unknown"),
        established: SystemTime::now(),
        handshake: began.elapsed(),
        usable_until: local.not_after().min(peer.not_after),
    };
    let session = session(secrets, Box::new(rekey), &early, options)?;
    Ok(Tunnel::new(stream, session, Role::Acceptor(Acceptor::default()), facts))
}

/// A plaintext alert record: nothing is encrypted yet when a server name turns out to be unknown.
static UNRECOGNIZED: [u8; 7] = [21, 3, 3, 0, 2, 2, alert::UNRECOGNIZED_NAME];

fn session(
    secrets: ExtractedSecrets,
    rekey: Box<dyn Rekey>,
    early: &[u8],
    options: TunnelOptions,
) -> Result<Session, HandshakeError> {
    let (sent, sender) = secrets.tx;
    let (received, receiver) = secrets.rx;
    let out = Outbound::new(Key::new(sent, sender)?, options.records_per_key);
    let inn = Inbound::new(Key::new(received, receiver)?, early);
    Ok(Session::new(out, inn, rekey))
}

fn check_protocol(protocol: Option<&[u8]>) -> Result<(), HandshakeError> {
    if protocol == Some(ALPN) { Ok(()) } else { Err(HandshakeError::Protocol) }
}

async fn connected(stream: &TcpStream, limit: Duration) -> Result<(), HandshakeError> {
    match tokio::time::timeout(limit, stream.writable()).await {
        Err(_) => return Err(HandshakeError::Connect(io::ErrorKind::TimedOut.into())),
        Ok(ready) => ready.map_err(HandshakeError::Connect)?,
    }
    match stream.take_error() {
        Ok(None) => Ok(()),
        Ok(Some(error)) | Err(error) => Err(HandshakeError::Connect(error)),
    }
}

/// Notes which certificate was chosen, or which name has none.
#[derive(Debug)]
struct Chooser {
    identity: Arc<ServerIdentity>,
    chosen: Mutex<Option<Result<Arc<Svid>, String>>>,
}

impl Chooser {
    fn noted(&self) -> Option<Result<Arc<Svid>, String>> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or_default();
        let found = self.identity.by_name(name).cloned();
        let key = found.as_ref().map(|svid| Arc::new(svid.certified().clone()));
        let noted = found.ok_or_else(|| name.to_owned());
        *self.chosen.lock().unwrap_or_else(PoisonError::into_inner) = Some(noted);
        key
    }
}

/// The two kinds of connection have the same interface, by different types.
trait Unbuffered {
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
struct Refusal {
    error: HandshakeError,
    words: Vec<u8>,
}

impl Refusal {
    async fn tell(self, stream: &TcpStream) -> HandshakeError {
        if !self.words.is_empty() {
            last_words(stream, &self.words).await;
        }
        self.error
    }
}

/// What the peer has said before it was answered: a handshake can begin anew from there.
#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    answered: bool,
}

/// Drives `conn` to the end of its handshake; returns it with bytes that came after it.
async fn handshake<C: Unbuffered>(
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
