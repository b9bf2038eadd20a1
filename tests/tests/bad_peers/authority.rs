//! Who signs the certificates of peers that are not what they should be, and a client that believes everything.

use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use kumiko_core::origin::Origin;
use kumiko_lab::manifests;
use kumiko_tests::twins::Side;
use kumiko_tunnel::identity::origin;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

/// A chain and its key.
pub(super) type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// What a right certificate of `client` on n1 says of where it was given to.
pub(super) fn honest() -> Origin {
    Origin {
        node: "n1".to_owned(),
        node_uid: manifests::node_uid(1),
        namespace_uid: manifests::namespace_uid("demo"),
        account_uid: manifests::account_uid("demo", "client"),
    }
}

/// A root that signs what it is asked to.
pub(super) struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    /// The lab's own: a certificate by it is a right one.
    pub(super) fn of_lab(side: &Side) -> Result<Self> {
        let state = side.lab.dir().join("issuer");
        let read = |name: &str| fs::read_to_string(state.join(name)).with_context(|| format!("reading {name}"));
        let key = KeyPair::from_pem(&read("root-key.pem")?).context("the root's key")?;
        Ok(Self(Issuer::from_ca_cert_pem(&read("root.pem")?, key).context("the root")?))
    }

    pub(super) fn other() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        Ok(Self(Issuer::new(params, KeyPair::generate()?)))
    }

    /// As for `client` on n1.
    pub(super) fn sign(&self, uri: &str, from: SystemTime, to: SystemTime) -> Result<Shown> {
        self.sign_for(uri, &honest(), from, to)
    }

    pub(super) fn sign_for(&self, uri: &str, origin: &Origin, from: SystemTime, to: SystemTime) -> Result<Shown> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        (params.not_before, params.not_after) = (from.into(), to.into());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let content = origin::encode(origin).context("where it was given to")?;
        params.custom_extensions = vec![CustomExtension::from_oid_content(&origin::OID, content)];
        let cert = params.signed_by(&key, &self.0)?;
        Ok((vec![cert.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into())))
    }
}

/// A client that takes every server's certificate.
#[derive(Debug)]
pub(super) struct Believes(pub(super) Arc<CryptoProvider>);

impl ServerCertVerifier for Believes {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
