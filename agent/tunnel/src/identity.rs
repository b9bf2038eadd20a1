//! Who this node may be, and who it trusts: SVIDs, trust bundle, and the TLS configurations made from them.
//!
//! TLS 1.3 only, both sides show the SVID of the *workload*, no tickets, no resumption, no early data. Values here are
//! immutable: a renewal makes a new [`Identities`], which the daemon swaps in.

pub mod origin;
mod svid;
mod verify;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use kumiko_core::Principal;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};

pub use svid::{Bundle, IdentityError, Svid};
pub use verify::PeerError;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use verify::fuzz;
pub(crate) use verify::read_peer;

/// ALPN protocol of the native tunnel.
pub const ALPN: &[u8] = b"kumiko/1";

/// All identities of this node, and the roots it trusts.
#[derive(Debug)]
pub struct Identities {
    clients: HashMap<Principal, ClientIdentity>,
    server: Arc<ServerIdentity>,
}

/// What is needed to dial as one principal.
#[derive(Clone, Debug)]
pub struct ClientIdentity {
    /// Its certificate and key.
    pub svid: Arc<Svid>,
    pub(crate) config: Arc<ClientConfig>,
}

/// What is needed to accept as every principal of this node; the dialler chooses by server name.
#[derive(Debug)]
pub struct ServerIdentity {
    by_name: HashMap<String, Arc<Svid>>,
    pub(crate) config: Arc<ServerConfig>,
}

impl Identities {
    /// `svids` hold at most one of each principal; a later one replaces an earlier one.
    pub fn new(svids: impl IntoIterator<Item = Arc<Svid>>, bundle: &Bundle) -> Result<Self, IdentityError> {
        let verifier = Arc::new(verify::Verifier::new(bundle)?);
        let server = server_config(verifier.clone())?;
        let (mut clients, mut by_name) = (HashMap::new(), HashMap::new());
        for svid in svids {
            let config = client_config(verifier.clone(), &svid)?;
            by_name.insert(svid.principal().server_name(), svid.clone());
            clients.insert(svid.principal().clone(), ClientIdentity { svid, config: Arc::new(config) });
        }
        let server = Arc::new(ServerIdentity { by_name, config: Arc::new(server) });
        Ok(Self { clients, server })
    }

    /// To dial as `principal`; `None` until its certificate is there.
    pub fn client_for(&self, principal: &Principal) -> Option<&ClientIdentity> {
        self.clients.get(principal)
    }

    /// To accept.
    pub fn server(&self) -> Arc<ServerIdentity> {
        self.server.clone()
    }

    /// All SVIDs, in no order.
    pub fn svids(&self) -> impl Iterator<Item = &Arc<Svid>> {
        self.clients.values().map(|c| &c.svid)
    }
}

impl ServerIdentity {
    /// Whether there is a certificate for a server name.
    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<Svid>> {
        self.by_name.get(name)
    }
}

/// ring, with the suites in the order of their speed on machines with AES instructions.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| {
            use rustls::crypto::ring::cipher_suite as suite;
            let mut provider = rustls::crypto::ring::default_provider();
            provider.cipher_suites = vec![
                suite::TLS13_AES_128_GCM_SHA256,
                suite::TLS13_AES_256_GCM_SHA384,
                suite::TLS13_CHACHA20_POLY1305_SHA256,
            ];
            Arc::new(provider)
        })
        .clone()
}

fn client_config(verifier: Arc<verify::Verifier>, svid: &Svid) -> Result<ClientConfig, IdentityError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(IdentityError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified().clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_secret_extraction = true;
    Ok(config)
}

fn server_config(verifier: Arc<verify::Verifier>) -> Result<ServerConfig, IdentityError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(IdentityError::Tls)?
        .with_client_cert_verifier(verifier)
        // Replaced for each connection by one that notes which name was asked for.
        .with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new()));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.enable_secret_extraction = true;
    Ok(config)
}
