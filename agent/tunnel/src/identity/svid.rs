//! An X.509 SVID with its key, and the roots that sign them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kumiko_core::Principal;
use kumiko_core::origin::Origin;
use kumiko_core::principal::PrincipalError;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{origin, provider};

/// Why an identity cannot be used.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// No certificate at all.
    #[error("the certificate chain is empty")]
    NoCertificate,
    /// Not an X.509 certificate.
    #[error("not an X.509 certificate: {0}")]
    Malformed(String),
    /// Not exactly one URI name (X509-SVID section 2).
    #[error("an SVID has exactly one URI name, this certificate has {0}")]
    Uris(usize),
    /// The URI name is no principal.
    #[error(transparent)]
    Principal(#[from] PrincipalError),
    /// The key is not usable, or not the certificate's.
    #[error("the private key is not usable, or not the certificate's: {0}")]
    Key(rustls::Error),
    /// A bundle without roots trusts nobody.
    #[error("the trust bundle has no usable root: {0}")]
    Roots(String),
    /// TLS configuration.
    #[error("TLS configuration: {0}")]
    Tls(rustls::Error),
}

/// What a certificate says, without any claim that it is to be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) principal: Principal,
    pub(super) origin: Option<Origin>,
    pub(super) serial: String,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// Reads a certificate's SPIFFE ID, serial and validity.
pub(super) fn facts(certificate: &[u8]) -> Result<Facts, IdentityError> {
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|e| IdentityError::Malformed(e.to_string()))?;
    if !rest.is_empty() {
        return Err(IdentityError::Malformed("bytes after the certificate".to_owned()));
    }
    let names = parsed.subject_alternative_name().map_err(|e| IdentityError::Malformed(e.to_string()))?;
    let mut uris = names
        .iter()
        .flat_map(|n| &n.value.general_names)
        .filter_map(|n| if let GeneralName::URI(uri) = n { Some(*uri) } else { None });
    let (first, others) = (uris.next(), uris.count());
    let uri = match (first, others) {
        (Some(uri), 0) => uri,
        (first, others) => return Err(IdentityError::Uris(usize::from(first.is_some()) + others)),
    };
    let principal = uri.parse()?;
    let origin = origin::of(&parsed).map_err(IdentityError::Malformed)?;
    let serial = parsed.raw_serial().iter().map(|b| format!("{b:02x}")).collect();
    let time =
        |t: x509_parser::time::ASN1Time| UNIX_EPOCH + Duration::from_secs(u64::try_from(t.timestamp()).unwrap_or(0));
    let validity = parsed.validity();
    Ok(Facts { principal, origin, serial, not_before: time(validity.not_before), not_after: time(validity.not_after) })
}

/// A workload's certificate chain and key. The key stays in memory.
pub struct Svid {
    facts: Facts,
    certified: CertifiedKey,
}

impl Svid {
    /// `chain` begins with the SVID, intermediates follow.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, IdentityError> {
        let facts = facts(chain.first().ok_or(IdentityError::NoCertificate)?)?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(IdentityError::Key)?;
        Ok(Self { facts, certified })
    }

    /// Whose it is.
    pub fn principal(&self) -> &Principal {
        &self.facts.principal
    }

    /// Where it was given to; `None`: it does not say.
    pub fn origin(&self) -> Option<&Origin> {
        self.facts.origin.as_ref()
    }

    /// Serial number, hex.
    pub fn serial(&self) -> &str {
        &self.facts.serial
    }

    /// Valid from.
    pub fn not_before(&self) -> SystemTime {
        self.facts.not_before
    }

    /// Valid until.
    pub fn not_after(&self) -> SystemTime {
        self.facts.not_after
    }

    pub(crate) fn certified(&self) -> &CertifiedKey {
        &self.certified
    }
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svid").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// The roots of one trust domain. Several, so that a root can be replaced while both are in use.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The trust domain that the roots speak for.
    pub trust_domain: String,
    /// DER certificates.
    pub roots: Vec<CertificateDer<'static>>,
}

impl Bundle {
    /// A bundle; [`super::Identities::new`] checks the roots.
    pub fn new(trust_domain: impl Into<String>, roots: Vec<CertificateDer<'static>>) -> Self {
        Self { trust_domain: trust_domain.into(), roots }
    }
}
