//! Peers that must be refused, each with its own reason, on both sides.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kumiko_abi::Reason;
use kumiko_core::Principal;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::identity::{Bundle, Identities, Svid};
use crate::testing::{Authority, DOMAIN, open, principal, sockets};
use crate::{OpenError, TunnelOptions, accept, dial};

const OPTIONS: TunnelOptions =
    TunnelOptions { handshake_time: Duration::from_secs(5), handshake_bytes: 1 << 14, records_per_key: 1 << 23 };

fn identities(svid: Arc<Svid>, bundle: &Bundle) -> Identities {
    Identities::new([svid], bundle).unwrap()
}

/// What the acceptor says, and what the dialler says by the time its first OPEN has failed.
async fn meet(here: Identities, there: Identities, as_: &Principal, expected: &Principal) -> (Reason, Reason) {
    let (a, b) = sockets().await;
    let dialler = async {
        match dial(a, &here, as_, expected, OPTIONS).await {
            Err(error) => error.reason(),
            // In TLS 1.3 the dialler is done before its certificate is judged.
            Ok(mut tunnel) => match tunnel.open(&open()).await {
                Err(OpenError::Tunnel(error)) => error.reason(),
                other => panic!("{other:?}"),
            },
        }
    };
    let acceptor = async {
        match accept(b, there.server(), OPTIONS).await {
            Err(error) => error.reason(),
            Ok(_) => Reason::None,
        }
    };
    tokio::join!(acceptor, dialler)
}

#[tokio::test]
async fn another_root() {
    let (ours, theirs) = (Authority::new("a"), Authority::new("b"));
    // The client is of another root: its own bundle trusts both.
    let both = Bundle::new(DOMAIN, vec![ours.root(), theirs.root()]);
    let here = identities(theirs.svid(&principal("client")), &both);
    let there = identities(ours.svid(&principal("server")), &ours.bundle());
    let reasons = meet(here, there, &principal("client"), &principal("server")).await;
    assert_eq!(reasons, (Reason::PeerCertificateUnknownIssuer, Reason::CertificateRefused));
    // The server is; the same name on both roots changes nothing.
    let twin = Authority::new("a");
    for theirs in [theirs, twin] {
        let here = identities(ours.svid(&principal("client")), &ours.bundle());
        let there = identities(theirs.svid(&principal("server")), &ours.bundle());
        let reasons = meet(here, there, &principal("client"), &principal("server")).await;
        assert_eq!(reasons, (Reason::CertificateRefused, Reason::PeerCertificateUnknownIssuer));
    }
}

#[tokio::test]
async fn a_bundle_of_two_roots_trusts_both() {
    let (old, new) = (Authority::new("root"), Authority::new("root"));
    let both = Bundle::new(DOMAIN, vec![old.root(), new.root()]);
    let here = identities(old.svid(&principal("client")), &both);
    let there = identities(new.svid(&principal("server")), &both);
    let (a, b) = sockets().await;
    let (client, server) = (principal("client"), principal("server"));
    let (dialled, accepted) =
        tokio::join!(dial(a, &here, &client, &server, OPTIONS), accept(b, there.server(), OPTIONS));
    assert!(dialled.is_ok() && accepted.is_ok());
}

#[tokio::test]
async fn expired_or_not_yet_valid() {
    let authority = Authority::new("root");
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    for (from, to) in [(now - 2 * hour, now - hour), (now + hour, now + 2 * hour)] {
        let here = identities(authority.svid_valid(&principal("client"), from, to), &authority.bundle());
        let there = authority.identities(&["server"]);
        let reasons = meet(here, there, &principal("client"), &principal("server")).await;
        assert_eq!(reasons, (Reason::PeerCertificateExpired, Reason::CertificateRefused));
        let here = authority.identities(&["client"]);
        let there = identities(authority.svid_valid(&principal("server"), from, to), &authority.bundle());
        let reasons = meet(here, there, &principal("client"), &principal("server")).await;
        assert_eq!(reasons, (Reason::CertificateRefused, Reason::PeerCertificateExpired));
    }
}

#[tokio::test]
async fn another_trust_domain() {
    let authority = Authority::new("root");
    let stranger = Principal::new("other.example", "demo", "client").unwrap();
    let here = identities(authority.svid(&stranger), &authority.bundle());
    let there = authority.identities(&["server"]);
    let reasons = meet(here, there, &stranger, &principal("server")).await;
    assert_eq!(reasons, (Reason::PeerTrustDomain, Reason::CertificateRefused));
    // Of another root as well: the trust domain tells more.
    let here = identities(Authority::new("x").svid(&stranger), &authority.bundle());
    let there = authority.identities(&["server"]);
    let reasons = meet(here, there, &stranger, &principal("server")).await;
    assert_eq!(reasons, (Reason::PeerTrustDomain, Reason::CertificateRefused));
}

#[tokio::test]
async fn another_principal_than_expected() {
    let authority = Authority::new("root");
    // A lying acceptor: it shows the certificate that it has for any name.
    let (a, b) = sockets().await;
    let there = authority.identities(&["mallory"]);
    let mut config = (*there.server().config).clone();
    let svid = there.svids().next().unwrap().clone();
    config.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(svid.certified().clone()));
    let liar = tokio::task::spawn_blocking(move || {
        let mut stream = b.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        let mut conn = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        conn.complete_io(&mut stream)
    });
    let here = authority.identities(&["client"]);
    let error = dial(a, &here, &principal("client"), &principal("server"), OPTIONS).await.unwrap_err();
    assert_eq!(error.reason(), Reason::PeerPrincipal, "{error}");
    assert!(liar.await.unwrap().is_err());
}

#[tokio::test]
async fn unknown_server_name() {
    let authority = Authority::new("root");
    let (here, there) = (authority.identities(&["client"]), authority.identities(&["server"]));
    let reasons = meet(here, there, &principal("client"), &principal("nobody")).await;
    assert_eq!(reasons, (Reason::UnrecognizedName, Reason::UnrecognizedName));
}

fn stranger(authority: &Authority, versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(authority.root()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

async fn accepted_as(config: ClientConfig, there: Identities) -> Reason {
    let (a, b) = sockets().await;
    let client = tokio::task::spawn_blocking(move || {
        let mut stream = a.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        let name = principal("server").server_name().try_into().unwrap();
        let mut conn = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let _ = conn.complete_io(&mut stream);
    });
    let reason = accept(b, there.server(), OPTIONS).await.map_or_else(|e| e.reason(), |_| Reason::None);
    client.await.unwrap();
    reason
}

/// Accepts any server, so that it comes to its own certificate.
#[derive(Debug)]
struct Trusting;

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls_pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.verify_tls12_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn no_certificate() {
    let authority = Authority::new("root");
    let mut config = stranger(&authority, &[&rustls::version::TLS13]);
    config.dangerous().set_certificate_verifier(Arc::new(Trusting));
    config.alpn_protocols = vec![crate::identity::ALPN.to_vec()];
    assert_eq!(accepted_as(config, authority.identities(&["server"])).await, Reason::PeerCertificateMissing);
}

#[tokio::test]
async fn tls_1_2_only() {
    let authority = Authority::new("root");
    let config = stranger(&authority, &[&rustls::version::TLS12]);
    assert_eq!(accepted_as(config, authority.identities(&["server"])).await, Reason::TlsVersion);
}

#[tokio::test]
async fn a_tls_1_2_acceptor() {
    let authority = Authority::new("root");
    let (a, b) = sockets().await;
    let now = SystemTime::now();
    let (chain, key) = authority.certificate(&[], now - Duration::from_secs(60), now + Duration::from_secs(60));
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let old = tokio::task::spawn_blocking(move || {
        let mut stream = b.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        let mut conn = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let _ = conn.complete_io(&mut stream);
    });
    let here = authority.identities(&["client"]);
    let error = dial(a, &here, &principal("client"), &principal("server"), OPTIONS).await.unwrap_err();
    assert_eq!(error.reason(), Reason::TlsVersion, "{error}");
    old.await.unwrap();
}

#[tokio::test]
async fn no_alpn() {
    let authority = Authority::new("root");
    let svid = authority.svid(&principal("client"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting))
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(svid.certified().clone())));
    assert_eq!(accepted_as(config, authority.identities(&["server"])).await, Reason::TlsFailed);
}

async fn says(bytes: &[u8], close: bool) -> Reason {
    let (mut a, b) = sockets().await;
    a.write_all(bytes).await.unwrap();
    if close {
        drop(a);
        return refused(b).await;
    }
    let reason = refused(b).await;
    drop(a);
    reason
}

async fn refused(stream: TcpStream) -> Reason {
    let options = TunnelOptions { handshake_time: Duration::from_millis(200), ..OPTIONS };
    let there = Authority::new("root").identities(&["server"]);
    accept(stream, there.server(), options).await.unwrap_err().reason()
}

#[tokio::test]
async fn garbage_silence_and_endless_records() {
    assert_eq!(says(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", false).await, Reason::NotTls);
    assert_eq!(says(&[22, 3, 1, 0xff, 0xff, 1], false).await, Reason::NotTls);
    // A handshake record that is no handshake message.
    assert_eq!(says(&[22, 3, 1, 0, 4, 99, 0, 0, 0], false).await, Reason::TlsFailed);
    assert_eq!(says(&[], false).await, Reason::HandshakeTimedOut);
    assert_eq!(says(&[22, 3], true).await, Reason::TlsFailed);
    // A ClientHello that never ends.
    let mut endless = vec![];
    for _ in 0..40 {
        endless.extend([22, 3, 1, 0x10, 0]);
        endless.extend([1, 0, 0xf0, 0]);
        endless.resize(endless.len() + 0x1000 - 4, 7);
    }
    assert_eq!(says(&endless[..8000], false).await, Reason::HandshakeTimedOut);
    assert_eq!(says(&endless, false).await, Reason::NotTls);
}

#[test]
fn what_is_no_svid() {
    let authority = Authority::new("root");
    let now = SystemTime::now();
    let (from, to) = (now - Duration::from_secs(60), now + Duration::from_secs(60));
    let make = |uris: &[&str]| {
        let (chain, key) = authority.certificate(uris, from, to);
        Svid::new(chain, key)
    };
    assert!(make(&[]).is_err());
    assert!(make(&["spiffe://td/ns/a/sa/b", "spiffe://td/ns/a/sa/c"]).is_err());
    assert!(make(&["https://td/ns/a/sa/b"]).is_err());
    assert!(make(&["spiffe://td/ns/a/sa/b"]).is_ok());
    let (chain, _) = authority.certificate(&["spiffe://td/ns/a/sa/b"], from, to);
    let (_, other_key) = authority.certificate(&["spiffe://td/ns/a/sa/b"], from, to);
    assert!(Svid::new(chain, other_key).is_err());
    assert!(Identities::new([], &Bundle::new(DOMAIN, vec![])).is_err());
}

/// For tests whose other end must not judge.
pub(super) fn trusting() -> Arc<dyn rustls::client::danger::ServerCertVerifier> {
    Arc::new(Trusting)
}
