//! What tests of this crate share: authorities, identities, connected pairs.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kumiko_abi::{FlowId, Reason};
use kumiko_core::Principal;
use kumiko_core::frame::Open;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};

use crate::identity::{Bundle, Identities, Svid};
use crate::{Tunnel, TunnelOptions, accept, dial};

pub(crate) const DOMAIN: &str = "cluster.local";

pub(crate) fn principal(name: &str) -> Principal {
    Principal::new(DOMAIN, "demo", name).unwrap()
}

/// A root that signs what it is asked to.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle::new(DOMAIN, vec![self.root()])
    }

    pub(crate) fn svid(&self, principal: &Principal) -> Arc<Svid> {
        let hour = Duration::from_secs(3600);
        self.svid_valid(principal, SystemTime::now() - hour, SystemTime::now() + hour)
    }

    pub(crate) fn svid_valid(&self, principal: &Principal, from: SystemTime, to: SystemTime) -> Arc<Svid> {
        self.sign(&[&principal.to_string()], from, to)
    }

    fn sign(&self, uris: &[&str], from: SystemTime, to: SystemTime) -> Arc<Svid> {
        let (chain, key) = self.certificate(uris, from, to);
        Arc::new(Svid::new(chain, key).unwrap())
    }

    pub(crate) fn certificate(
        &self,
        uris: &[&str],
        from: SystemTime,
        to: SystemTime,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|u| SanType::URI((*u).try_into().unwrap())).collect();
        params.not_before = from.into();
        params.not_after = to.into();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        (vec![cert.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    /// Identities with fresh SVIDs for `names`.
    pub(crate) fn identities(&self, names: &[&str]) -> Identities {
        Identities::new(names.iter().map(|n| self.svid(&principal(n))), &self.bundle()).unwrap()
    }
}

/// A connected pair of sockets.
pub(crate) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (a, b) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (a, b) = (a.unwrap(), b.unwrap().0);
    a.set_nodelay(true).unwrap();
    b.set_nodelay(true).unwrap();
    (a, b)
}

/// A dialled tunnel and the other end of it, between "client" and "server".
pub(crate) async fn tunnels_with(options: TunnelOptions) -> (Tunnel, Tunnel) {
    let authority = Authority::new("root");
    let (here, there) = (authority.identities(&["client"]), authority.identities(&["server"]));
    let (a, b) = sockets().await;
    let (client, server) = (principal("client"), principal("server"));
    let (dialled, accepted) =
        tokio::join!(dial(a, &here, &client, &server, options), accept(b, there.server(), options));
    (dialled.unwrap(), accepted.unwrap())
}

pub(crate) async fn tunnels() -> (Tunnel, Tunnel) {
    tunnels_with(TunnelOptions::default()).await
}

pub(crate) fn open() -> Open {
    Open {
        flow_id: FlowId([7; 16]),
        client: "10.0.0.1:40000".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
        destination_uid: "uid-2".into(),
        source_uid: "uid-1".into(),
        label_digest: Vec::new(),
        service: None,
        epoch: 0,
    }
}

/// Opens a flow between both ends.
pub(crate) async fn open_flow(dialled: &mut Tunnel, accepted: &mut Tunnel) {
    let answer = async {
        let asked = accepted.next_open().await.unwrap().unwrap();
        accepted.opened(7).await.unwrap();
        asked
    };
    let wanted = open();
    let (opened, asked) = tokio::join!(dialled.open(&wanted), answer);
    assert_eq!(opened.unwrap(), 7);
    assert_eq!(asked, wanted);
}

/// Never stops.
pub(crate) async fn never() -> Reason {
    pending().await
}
