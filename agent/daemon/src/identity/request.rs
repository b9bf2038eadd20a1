//! One request for one certificate.

use std::sync::Arc;
use std::time::SystemTime;

use kumiko_core::Principal;
use kumiko_tunnel::identity::{IdentityError, Svid};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use zeroize::Zeroize as _;

use crate::issuer::{ClientError, IssuerClient, SignResponse};

/// Why there is no certificate.
#[derive(Debug, Error)]
pub(crate) enum RequestError {
    /// The key or the request could not be made.
    #[error("cannot make a certificate request: {0}")]
    Make(#[from] rcgen::Error),
    /// The issuer gave none.
    #[error(transparent)]
    Issuer(#[from] ClientError),
    /// The issuer gave something else.
    #[error("the issuer's certificate cannot be used: {0}")]
    Certificate(#[from] IdentityError),
    /// The issuer gave another one, or broken PEM.
    #[error("the issuer's certificate cannot be used: {0}")]
    Other(String),
}

/// What came of a request.
pub(crate) struct Granted {
    pub svid: Arc<Svid>,
    pub roots: Vec<CertificateDer<'static>>,
}

/// Makes a key, asks for its certificate, and checks what comes back.
pub(super) async fn request(client: &IssuerClient, principal: &Principal) -> Result<Granted, RequestError> {
    let mut key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let made = csr(&key, principal);
    // Owned by rustls from here on; the copy that rcgen holds is wiped at once.
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    key.zeroize();
    let answer = client.sign(made?).await?;
    granted(&answer, private, principal, SystemTime::now())
}

/// Checks an answer: a certificate of this key for this principal, and roots.
pub(crate) fn granted(
    answer: &SignResponse,
    private: PrivateKeyDer<'static>,
    principal: &Principal,
    now: SystemTime,
) -> Result<Granted, RequestError> {
    let chain = certificates(&answer.chain)?;
    let svid = Svid::new(chain, private)?;
    if svid.principal() != principal {
        return Err(RequestError::Other(format!("it is for {}, not for {principal}", svid.principal())));
    }
    if svid.not_after() <= now {
        return Err(RequestError::Other("it is expired already: compare the clocks of issuer and node".to_owned()));
    }
    Ok(Granted { svid: Arc::new(svid), roots: roots(&answer.bundle)? })
}

/// Roots of a bundle, PEM each.
pub(crate) fn roots(bundle: &[String]) -> Result<Vec<CertificateDer<'static>>, RequestError> {
    let mut roots = Vec::new();
    for pem in bundle {
        roots.extend(certificates(pem)?);
    }
    if roots.is_empty() {
        return Err(RequestError::Other("the trust bundle is empty".to_owned()));
    }
    Ok(roots)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, RequestError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| RequestError::Other(format!("it is no PEM: {error}")))
}

fn csr(key: &KeyPair, principal: &Principal) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(principal.to_string().try_into()?)];
    params.serialize_request(key)?.pem()
}
