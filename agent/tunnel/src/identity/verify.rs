//! Checks a peer's certificate: chain and validity by webpki, then the SPIFFE ID. DNS names mean nothing here.

use std::sync::Arc;
use std::time::SystemTime;

use kumiko_abi::Reason;
use kumiko_core::Principal;
use kumiko_core::origin::Origin;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use thiserror::Error as ThisError;

use super::provider;
use super::svid::{self, Bundle, IdentityError};

/// A certificate that is cryptographically fine but not the one that is wanted here.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub enum PeerError {
    /// Not an SVID.
    #[error("the peer's certificate is no SPIFFE identity that can be used: {0}")]
    NotSpiffe(String),
    /// Of another trust domain.
    #[error("the peer is of trust domain {got:?}, this node trusts {expected:?}")]
    TrustDomain {
        /// The peer's.
        got: String,
        /// Ours.
        expected: String,
    },
    /// Another principal than was asked for.
    #[error("the peer proved {got}, which is not who was asked for: a stale address, or a lying node")]
    Principal {
        /// Who it proved to be.
        got: String,
    },
    /// It showed no certificate.
    #[error("the peer showed no certificate")]
    Missing,
}

impl PeerError {
    /// For counters and flow records.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotSpiffe(_) => Reason::PeerCertificateInvalid,
            Self::TrustDomain { .. } => Reason::PeerTrustDomain,
            Self::Principal { .. } => Reason::PeerPrincipal,
            Self::Missing => Reason::PeerCertificateMissing,
        }
    }
}

/// What a verified peer's certificate says.
#[derive(Clone, Debug)]
pub(crate) struct PeerCertificate {
    pub(crate) principal: Principal,
    pub(crate) origin: Option<Origin>,
    pub(crate) serial: String,
    pub(crate) not_after: SystemTime,
}

/// Reads the certificate of a peer whose handshake is done, so that its chain was verified.
pub(crate) fn read_peer(certificates: Option<&[CertificateDer<'_>]>) -> Result<PeerCertificate, PeerError> {
    let leaf = certificates.and_then(<[_]>::first).ok_or(PeerError::Missing)?;
    let facts = svid::facts(leaf).map_err(|e| PeerError::NotSpiffe(e.to_string()))?;
    let svid::Facts { principal, origin, serial, not_after, .. } = facts;
    Ok(PeerCertificate { principal, origin, serial, not_after })
}

/// Verifier of both directions.
#[derive(Debug)]
pub(super) struct Verifier {
    trust_domain: String,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn new(bundle: &Bundle) -> Result<Self, IdentityError> {
        let mut roots = RootCertStore::empty();
        for root in &bundle.roots {
            roots.add(root.clone()).map_err(|e| IdentityError::Roots(e.to_string()))?;
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            .build()
            .map_err(|e| IdentityError::Roots(e.to_string()))?;
        let algorithms = provider().signature_verification_algorithms;
        Ok(Self { trust_domain: bundle.trust_domain.clone(), roots, clients, algorithms })
    }

    /// The principal, if it is of this trust domain. Before the chain is checked: of two things that are wrong the
    /// trust domain tells more than "another root".
    fn principal(&self, certificate: &CertificateDer<'_>) -> Result<Principal, Error> {
        let facts = svid::facts(certificate).map_err(|e| refuse(PeerError::NotSpiffe(e.to_string())))?;
        if facts.principal.trust_domain != self.trust_domain {
            let (got, expected) = (facts.principal.trust_domain, self.trust_domain.clone());
            return Err(refuse(PeerError::TrustDomain { got, expected }));
        }
        Ok(facts.principal)
    }
}

/// Whose certificate this is, if both directions' verifier takes it; they have to agree.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(bundle: &Bundle, certificate: &[u8], now: UnixTime) -> Option<Principal> {
    let verifier = Verifier::new(bundle).ok()?;
    let certificate = CertificateDer::from(certificate);
    let client = verifier.verify_client_cert(&certificate, &[], now).is_ok();
    let principal = verifier.principal(&certificate).ok();
    let name = principal.as_ref().and_then(|p| ServerName::try_from(p.server_name()).ok());
    let server = name.is_some_and(|name| verifier.verify_server_cert(&certificate, &[], &name, &[], now).is_ok());
    // A certificate for one use alone is no SVID of this mesh, and might pass one of them.
    principal.filter(|_| client || server)
}

fn refuse(error: PeerError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// A root with the right name and another key is another root. (A bad signature of the handshake itself is not.)
fn other_root(error: Error) -> Error {
    match error {
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            Error::InvalidCertificate(CertificateError::UnknownIssuer)
        }
        other => other,
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let principal = self.principal(end_entity)?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, self.algorithms.all)
            .map_err(other_root)?;
        // The name that was asked for is a hash of the principal that is expected.
        if principal.server_name() != server_name.to_str() {
            return Err(refuse(PeerError::Principal { got: principal.to_string() }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Diallers have one certificate per principal: hints would only make the handshake longer.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.principal(end_entity)?;
        self.clients.verify_client_cert(end_entity, intermediates, now).map_err(other_root)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
