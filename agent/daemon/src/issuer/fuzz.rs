//! Ways into the issuer's plain functions, for the fuzz targets.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a panic is how a fuzz target speaks")]

use std::time::{Duration, SystemTime};

use kumiko_core::Principal;
use kumiko_core::origin::Origin;
use rcgen::PublicKeyData as _;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use std::sync::Arc;

use super::authority::{Authority, new_key, self_signed};
use super::client::{IssuerClient, uris};
use super::sign::Signer;
use super::{NodeWorkloads, TokenKey};

pub(crate) use super::client::read_answer;

const TTL: Duration = Duration::from_secs(3600);

struct Only {
    node: String,
    principal: Principal,
}

impl NodeWorkloads for Only {
    fn origin(&self, node: &str, principal: &Principal) -> Option<Origin> {
        let known = node == self.node && *principal == self.principal;
        known.then(|| Origin { node: node.to_owned(), ..Origin::default() })
    }
}

/// An issuer without files and sockets, that knows one workload.
pub(crate) struct Signing {
    signer: Signer,
    principal: Principal,
}

impl Signing {
    pub(crate) fn new(trust_domain: &str, node: &str, principal: Principal) -> Self {
        let key = new_key().unwrap();
        let root = self_signed(&key, trust_domain).unwrap();
        let authority = Authority::new(&key, &root, trust_domain).unwrap();
        let workloads = Arc::new(Only { node: node.to_owned(), principal: principal.clone() });
        let signer = Signer { authority, tokens: TokenKey::new(b"a key of the fuzz target"), svid_ttl: TTL, workloads };
        Self { signer, principal }
    }

    pub(crate) fn token(&self, node: &str, now: SystemTime) -> String {
        self.signer.tokens.issue(node, now, TTL)
    }

    /// Whether the request is signed; and then that the certificate is the one that it may be.
    pub(crate) fn check(&self, body: &[u8], now: SystemTime) -> bool {
        let Ok((request, asked, signed)) = self.signer.answer(body, now) else { return false };
        assert_eq!((request.node.as_str(), &asked.principal), ("n1", &self.principal));
        let der = CertificateDer::from_pem_slice(signed.pem.as_bytes()).unwrap();
        let (rest, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(rest.is_empty() && !leaf.is_ca());
        assert_eq!(uris(&leaf), [self.principal.to_string()]);
        assert_eq!(leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
        assert_eq!(leaf.public_key().subject_public_key.data.as_ref(), asked.key().der_bytes());
        let until = now.duration_since(SystemTime::UNIX_EPOCH).unwrap() + TTL;
        assert_eq!(leaf.validity().not_after.timestamp().cast_unsigned(), until.as_secs());
        true
    }
}

pub(crate) fn authority_of(key: &str, root: &str, trust_domain: &str) -> Result<Authority, String> {
    Authority::new(key, root, trust_domain)
}

pub(crate) fn extra_roots(file: &[u8]) -> Result<Vec<String>, String> {
    super::state::roots_of(file)
}

/// What an agent makes of `--issuer-root`.
pub(crate) fn pinned(pem: &str) -> Result<(), String> {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    IssuerClient::new(address, "n1", pem, std::path::Path::new("/nowhere")).map(drop)
}
