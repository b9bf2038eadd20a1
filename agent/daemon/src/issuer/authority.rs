//! The root and what it signs.

use std::time::{Duration, SystemTime};

use kumiko_core::Principal;
use kumiko_core::origin::Origin;
use kumiko_tunnel::identity::origin;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SerialNumber,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use thiserror::Error;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{IssuerError, SERVER_NAME};

/// How long before the moment of signing a certificate is valid: clocks of nodes differ a little.
const BACKDATE: Duration = Duration::from_secs(60);
/// Validity of the root.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Validity of the issuer's own TLS certificate.
pub(super) const SERVER_LIFE: Duration = Duration::from_secs(7 * 86_400);
/// An uncompressed point of P-256 (SEC 1, 2.3.3): what the algorithm's name alone does not promise.
const P256_POINT: usize = 65;

/// The root with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    root_pem: String,
    trust_domain: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// A signed certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signed {
    /// Leaf, PEM.
    pub pem: String,
    /// Serial, hex.
    pub serial: String,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
}

/// Why a request is not signed.
#[derive(Debug, Error)]
pub enum SignError {
    /// Not a request, or not signed by its own key.
    #[error("the certificate request cannot be used: {0}")]
    Request(rcgen::Error),
    /// Not P-256.
    #[error("the certificate request's key is not ECDSA P-256")]
    Key,
    /// Not exactly one URI.
    #[error("the certificate request must have exactly one subject alternative name, the principal's URI; it has {0}")]
    Names(String),
    /// Not a principal of this trust domain.
    #[error("{0}")]
    Principal(String),
    /// Signing failed.
    #[error("signing failed: {0}")]
    Sign(rcgen::Error),
    /// A name or UID of the model is longer than any.
    #[error("the name or a UID of the node, namespace or account is too long")]
    Origin,
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// A checked request.
#[derive(Debug)]
pub struct Request {
    /// Who it is for.
    pub principal: Principal,
    key: rcgen::PublicKey,
}

#[cfg(any(test, feature = "fuzzing"))]
impl Request {
    /// The key that asks.
    pub(super) fn key(&self) -> &rcgen::PublicKey {
        &self.key
    }
}

impl Authority {
    /// Takes a root that was made before. The error says what is wrong with it.
    pub(super) fn new(key_pem: &str, root_pem: &str, trust_domain: &str) -> Result<Self, String> {
        let key =
            KeyPair::from_pem(key_pem).map_err(|error| format!("root-key.pem beside it holds no key: {error}"))?;
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes())
            .map_err(|error| format!("is not a PEM certificate: {error}"))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&root).map_err(|error| format!("is not a certificate: {error}"))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err("does not belong to root-key.pem beside it: restore the pair from one backup".to_owned());
        }
        let own = format!("spiffe://{trust_domain}");
        if !crate::issuer::client::uris(&parsed).iter().any(|uri| *uri == own) {
            return Err(format!("is not the root of trust domain {trust_domain:?}: use another --state directory"));
        }
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(|error| format!("cannot sign: {error}"))?;
        let root_pem = pem(&root);
        Ok(Self { issuer, root, root_pem, trust_domain: trust_domain.to_owned() })
    }

    /// The root, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The root, DER.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Reads a request and checks its signature, key and name (SPIFFE X509-SVID, section 2: exactly one URI).
    pub fn check(&self, csr_pem: &str) -> Result<Request, SignError> {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).map_err(SignError::Request)?;
        let key = csr.public_key;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT {
            return Err(SignError::Key);
        }
        let uri = match csr.params.subject_alt_names.as_slice() {
            [SanType::URI(uri)] => uri.as_str(),
            [_] => return Err(SignError::Names("one that is no URI".to_owned())),
            names => return Err(SignError::Names(names.len().to_string())),
        };
        let principal: Principal = uri.parse().map_err(|error| SignError::Principal(format!("{error}")))?;
        if principal.trust_domain != self.trust_domain {
            let wrong = &principal.trust_domain;
            return Err(SignError::Principal(format!(
                "this issuer signs for trust domain {:?}, not for {wrong:?}: compare --trust-domain of agent and issuer",
                self.trust_domain
            )));
        }
        Ok(Request { principal, key })
    }

    /// Signs an SVID. Nothing of the request but its key and the principal goes in.
    pub fn sign(
        &self,
        request: &Request,
        origin: &Origin,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<Signed, SignError> {
        let uri = request.principal.to_string().try_into().map_err(SignError::Sign)?;
        let mut params = leaf(now, ttl)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        let content = origin::encode(origin).ok_or(SignError::Origin)?;
        params.custom_extensions = vec![CustomExtension::from_oid_content(&origin::OID, content)];
        let certificate = params.signed_by(&request.key, &self.issuer).map_err(SignError::Sign)?;
        let serial = params.serial_number.as_ref().map(|serial| hex(&serial.to_bytes())).unwrap_or_default();
        Ok(Signed {
            pem: certificate.pem(),
            serial,
            not_before: params.not_before.unix_timestamp(),
            not_after: params.not_after.unix_timestamp(),
        })
    }

    /// A fresh key and certificate for the issuer's own TLS server; the key is PKCS #8 DER.
    pub(super) fn server(&self, now: SystemTime) -> Result<(Zeroizing<Vec<u8>>, CertificateDer<'static>), SignError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SignError::Sign)?;
        let mut params = leaf(now, SERVER_LIFE)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![SanType::DnsName(SERVER_NAME.try_into().map_err(SignError::Sign)?)];
        let certificate = params.signed_by(&key, &self.issuer).map_err(SignError::Sign)?;
        Ok((Zeroizing::new(key.serialize_der()), certificate.der().clone()))
    }
}

fn leaf(now: SystemTime, ttl: Duration) -> Result<CertificateParams, SignError> {
    let mut params = CertificateParams::default();
    // No subject: the name is the URI, whose extension is critical then (RFC 5280, 4.2.1.6).
    params.distinguished_name = DistinguishedName::new();
    params.not_before = OffsetDateTime::from(now) - BACKDATE;
    params.not_after = OffsetDateTime::from(now) + ttl;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial().ok_or(SignError::Random)?);
    Ok(params)
}

/// 16 random bytes, positive and never shorter (RFC 5280, 4.1.2.2 allows 20).
fn serial() -> Option<SerialNumber> {
    let mut bytes = [0_u8; 16];
    SystemRandom::new().fill(&mut bytes).ok()?;
    let [first, ..] = &mut bytes;
    *first = (*first & 0x7f) | 0x40;
    Some(SerialNumber::from_slice(&bytes))
}

/// A new P-256 key, PKCS #8 PEM.
pub(super) fn new_key() -> Result<Zeroizing<String>, IssuerError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|source| IssuerError::Crypto { what: "the root key", source })?;
    Ok(Zeroizing::new(key.serialize_pem()))
}

/// A root certificate of this key, PEM.
pub(super) fn self_signed(key_pem: &str, trust_domain: &str) -> Result<String, rcgen::Error> {
    let key = KeyPair::from_pem(key_pem)?;
    let serial = serial().ok_or(rcgen::Error::RingUnspecified)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    // The number tells roots apart that stand in one bundle.
    let number = hex(&serial.to_bytes()).chars().take(8).collect::<String>();
    params.distinguished_name.push(DnType::CommonName, format!("kumiko root {number}"));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.serial_number = Some(serial);
    params.not_before = OffsetDateTime::now_utc() - BACKDATE;
    params.not_after = OffsetDateTime::now_utc() + ROOT_LIFE;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(&key)?.pem())
}

/// PEM of a certificate.
pub(super) fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
