//! The TLS handshake over a TCP connection between nodes, with a limit in time and in bytes.
//!
//! rustls does it all, by its unbuffered interface: afterwards it hands over the keys and goes on making new ones. It
//! gets whole records, one at a time, so that it never sees one that belongs to the session after the handshake.

mod drive;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kumiko_core::Principal;
use kumiko_core::acceptor::Acceptor;
use kumiko_core::dialler::Dialler;
use rustls::ExtractedSecrets;
use rustls::client::UnbufferedClientConnection;
use rustls::server::{ClientHello, ResolvesServerCert, UnbufferedServerConnection};
use rustls::sign::CertifiedKey;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use drive::{Heard, Refusal, handshake};

use crate::aead::Key;
use crate::error::HandshakeError;
use crate::identity::{ALPN, Identities, PeerError, ServerIdentity, Svid, read_peer};
use crate::inbound::Inbound;
use crate::messages::alert;
use crate::outbound::Outbound;
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
        peer_origin: peer.origin,
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
        peer_origin: peer.origin,
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
