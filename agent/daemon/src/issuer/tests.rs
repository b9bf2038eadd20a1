//! Over real TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kumiko_core::Principal;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;

use super::*;
use kumiko_core::origin::Origin;

const HOUR: Duration = Duration::from_secs(3600);

struct Only(&'static str, Principal);

impl NodeWorkloads for Only {
    fn origin(&self, node: &str, principal: &Principal) -> Option<Origin> {
        (node == self.0 && *principal == self.1).then(given)
    }
}

/// What certificates say of where they were given to.
fn given() -> Origin {
    let [node_uid, namespace_uid, account_uid] = ["a", "b", "c"].map(str::to_owned);
    Origin { node: "n1".to_owned(), node_uid, namespace_uid, account_uid }
}

fn web() -> Principal {
    Principal::new("cluster.local", "demo", "web").unwrap()
}

struct Running {
    address: SocketAddr,
    root: String,
    tokens: TokenKey,
    state: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<Result<(), IssuerError>>,
}

impl Running {
    async fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let directory = StateDir::open(&state.path().join("issuer")).unwrap();
        let tokens = directory.token_key().unwrap();
        let issuer = Issuer::new(directory.clone(), "cluster.local", 4 * HOUR, Arc::new(Only("n1", web()))).unwrap();
        let root = std::fs::read_to_string(directory.root_path()).unwrap();
        let listener = Issuer::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(Arc::new(issuer).serve(listener, async {
            let _ = stopped.await;
        }));
        Self { address, root, tokens, state, stop: Some(stop), task }
    }

    fn client(&self, node: &str, token: &str) -> IssuerClient {
        let file = self.state.path().join("token");
        std::fs::write(&file, token).unwrap();
        IssuerClient::new(self.address, node, &self.root, &file).unwrap()
    }

    fn good_token(&self) -> String {
        self.tokens.issue("n1", SystemTime::now(), HOUR)
    }

    async fn refusal(&self, node: &str, token: &str, csr: String) -> (u16, String) {
        match self.client(node, token).sign(csr).await {
            Err(ClientError::Refused { status, message }) => (status, message),
            other => panic!("{other:?}"),
        }
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

fn csr(names: &[SanType]) -> (KeyPair, String) {
    csr_with(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), names)
}

fn csr_with(key: KeyPair, names: &[SanType]) -> (KeyPair, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names.to_vec();
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, csr)
}

fn uri(principal: &Principal) -> SanType {
    SanType::URI(principal.to_string().try_into().unwrap())
}

#[tokio::test]
async fn signs_what_a_node_may_ask_for() {
    let issuer = Running::start().await;
    let (key, request) = csr(&[uri(&web())]);
    let answer = issuer.client("n1", &issuer.good_token()).sign(request).await.unwrap();

    let leaf = CertificateDer::from_pem_slice(answer.chain.as_bytes()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    assert_eq!(client::uris(&parsed), [web().to_string()]);
    assert_eq!(parsed.subject().iter().count(), 0);
    assert!(parsed.subject_alternative_name().unwrap().unwrap().critical);
    assert!(!parsed.basic_constraints().unwrap().unwrap().value.ca);
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
    let key_usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(key_usage.digital_signature() && !key_usage.key_cert_sign());
    assert_eq!(parsed.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
    assert_eq!(parsed.raw_serial().len(), 16);
    let oid = kumiko_tunnel::identity::origin::OID.map(|arc| arc.to_string()).join(".");
    let said = parsed.extensions().iter().find(|extension| extension.oid.to_id_string() == oid).unwrap();
    assert!(!said.critical && Some(said.value) == kumiko_tunnel::identity::origin::encode(&given()).as_deref());
    assert_eq!(authority::hex(parsed.raw_serial()), answer.serial);
    let validity = parsed.validity();
    assert_eq!(validity.not_after.timestamp() - validity.not_before.timestamp(), 4 * 3600 + 60);

    // webpki accepts it for both sides under the bundle.
    let mut roots = rustls::RootCertStore::empty();
    for root in &answer.bundle {
        roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    verifier.verify_client_cert(&leaf, &[], rustls_pki_types::UnixTime::now()).unwrap();
    issuer.stop().await;
}

#[tokio::test]
async fn refuses_and_says_why() {
    let issuer = Running::start().await;
    let good = issuer.good_token();
    let (_, request) = csr(&[uri(&web())]);

    let foreign = TokenKey::new(b"another key").issue("n1", SystemTime::now(), HOUR);
    let (status, message) = issuer.refusal("n1", &foreign, request.clone()).await;
    assert_eq!(status, 401);
    assert!(message.contains("not made by this issuer"), "{message}");

    let (status, message) = issuer.refusal("n2", &good, request.clone()).await;
    assert_eq!(status, 403);
    assert!(message.contains("bound to node \"n1\"") && message.contains("\"n2\""), "{message}");

    let expired = issuer.tokens.issue("n1", SystemTime::now() - 2 * HOUR, HOUR);
    let (status, message) = issuer.refusal("n1", &expired, request.clone()).await;
    assert_eq!(status, 401);
    assert!(message.contains("expired"), "{message}");

    let other = Principal::new("cluster.local", "demo", "database").unwrap();
    let (status, message) = issuer.refusal("n1", &good, csr(&[uri(&other)]).1).await;
    assert_eq!(status, 403);
    assert!(message.contains("no workload of spiffe://cluster.local/ns/demo/sa/database is on node n1"), "{message}");

    let n2 = issuer.tokens.issue("n2", SystemTime::now(), HOUR);
    let (status, message) = issuer.refusal("n2", &n2, request.clone()).await;
    assert_eq!((status, message.contains("on node n2")), (403, true), "{message}");

    let abroad = Principal::new("other.domain", "demo", "web").unwrap();
    let (status, message) = issuer.refusal("n1", &good, csr(&[uri(&abroad)]).1).await;
    assert_eq!(status, 400);
    assert!(message.contains("trust domain"), "{message}");

    for (names, word) in [
        (vec![], "it has 0"),
        (vec![uri(&web()), uri(&other)], "it has 2"),
        (vec![uri(&web()), SanType::DnsName("issuer.kumiko.internal".try_into().unwrap())], "it has 2"),
        (vec![SanType::DnsName("issuer.kumiko.internal".try_into().unwrap())], "no URI"),
        (vec![SanType::URI("spiffe://cluster.local/other".try_into().unwrap())], "not of the form"),
    ] {
        let (status, message) = issuer.refusal("n1", &good, csr(&names).1).await;
        assert_eq!(status, 400);
        assert!(message.contains(word), "{message}");
    }
    issuer.stop().await;
}

#[tokio::test]
async fn refuses_garbage_and_other_keys() {
    let issuer = Running::start().await;
    let good = issuer.good_token();
    for garbage in ["", "garbage", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"] {
        let (status, message) = issuer.refusal("n1", &good, garbage.to_owned()).await;
        assert_eq!(status, 400, "{message}");
    }
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let (status, message) = issuer.refusal("n1", &good, csr_with(p384, &[uri(&web())]).1).await;
    assert_eq!((status, message.contains("P-256")), (400, true), "{message}");

    // A request that is signed by another key than the one inside: flip a bit of the signature.
    let (_, request) = csr(&[uri(&web())]);
    let mut der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(request.as_bytes()).unwrap().to_vec();
    *der.last_mut().unwrap() ^= 1;
    let changed = authority::pem(&der).replace("CERTIFICATE", "CERTIFICATE REQUEST");
    assert_eq!(issuer.refusal("n1", &good, changed).await.0, 400);

    let (status, message) = issuer.refusal("n1", &good, "x".repeat(MAX_BODY + 1)).await;
    assert_eq!((status, message.contains("larger")), (413, true), "{message}");
    issuer.stop().await;
}

#[tokio::test]
async fn only_its_own_root_and_only_tls_1_3() {
    let issuer = Running::start().await;
    let other = Running::start().await;
    let stranger = IssuerClient::new(issuer.address, "n1", &other.root, Path::new("none")).unwrap();
    assert!(matches!(stranger.bundle().await, Err(ClientError::Tls { .. })));

    let plain = tokio::net::TcpStream::connect(issuer.address).await;
    let mut plain = plain.unwrap();
    plain.write_all(b"GET /v1/bundle HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");

    let nobody = "127.0.0.1:1".parse().unwrap();
    let error = IssuerClient::new(nobody, "n1", &issuer.root, Path::new("none")).unwrap().bundle().await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    issuer.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn the_bundle_takes_more_roots_while_it_runs() {
    let issuer = Running::start().await;
    let other = Running::start().await;
    let client = issuer.client("n1", "none needed");
    assert_eq!(client.bundle().await.unwrap().len(), 1);
    let extra = issuer.state.path().join("issuer/extra-roots");
    std::fs::create_dir(&extra).unwrap();
    std::fs::write(extra.join("old.pem"), &other.root).unwrap();
    std::fs::write(extra.join("notes.txt"), "not read").unwrap();
    let bundle = client.bundle().await.unwrap();
    assert_eq!(bundle.len(), 2);
    assert!(bundle.contains(&other.root));
    // Half a file: what was read last stays, and certificates are still signed.
    std::fs::write(extra.join("new.pem"), other.root.get(..100).unwrap()).unwrap();
    assert_eq!(client.bundle().await.unwrap(), bundle);
    issuer.client("n1", &issuer.good_token()).sign(csr(&[uri(&web())]).1).await.unwrap();
    issuer.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn an_announced_root_is_the_issuers_next() {
    let issuer = Running::start().await;
    let next = Running::start().await;
    let client = IssuerClient::new(next.address, "n1", &issuer.root, Path::new("none")).unwrap();
    assert!(matches!(client.bundle().await, Err(ClientError::Tls { .. })));
    client.trust(&[CertificateDer::from_pem_slice(next.root.as_bytes()).unwrap()]).unwrap();
    client.bundle().await.unwrap();
    client.trust(&[]).unwrap();
    assert!(matches!(client.bundle().await, Err(ClientError::Tls { .. })), "it is announced no more");
    issuer.stop().await;
    next.stop().await;
}

#[tokio::test]
async fn a_crowd_from_one_address_does_not_take_all_places() {
    let issuer = Running::start().await;
    let mut crowd = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        crowd.push(tokio::net::TcpStream::connect(issuer.address).await.unwrap());
    }
    // They say nothing; all but a few are closed.
    let mut closed = 0;
    for silent in crowd.iter_mut().skip(MAX_FROM_ONE) {
        closed += usize::from(matches!(silent.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    }
    assert_eq!(closed, MAX_CONNECTIONS - MAX_FROM_ONE);
    // Another address.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(issuer.address).await.unwrap();
    other.write_all(b"no TLS").await.unwrap();
    assert!(other.read(&mut [0; 7]).await.unwrap() > 0, "an alert");
    assert!(
        matches!(crowd.first().unwrap().try_read(&mut [0; 1]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    );
    drop(crowd);
    issuer.stop().await;
}

#[tokio::test]
async fn a_token_is_replaced_while_the_agent_runs() {
    let issuer = Running::start().await;
    let (root, token) = (issuer.state.path().join("root"), issuer.state.path().join("token"));
    std::fs::write(&root, &issuer.root).unwrap();
    std::fs::write(&token, issuer.tokens.issue("n1", SystemTime::now() - 2 * HOUR, HOUR)).unwrap();
    let client = IssuerClient::from_files(issuer.address, "n1", &root, &token).unwrap();
    let (_, request) = csr(&[uri(&web())]);
    assert!(matches!(client.sign(request.clone()).await, Err(ClientError::Refused { status: 401, .. })));
    std::fs::write(&token, format!("{}\n", issuer.good_token())).unwrap();
    client.sign(request.clone()).await.unwrap();
    std::fs::write(&token, "\n").unwrap();
    let error = client.sign(request).await.unwrap_err().to_string();
    assert!(error.contains("is empty"), "{error}");
    issuer.stop().await;
}

#[test]
fn the_state_is_made_once_and_kept_secret() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    let root = state.authority("cluster.local").unwrap().root_pem().to_owned();
    assert_eq!(state.authority("cluster.local").unwrap().root_pem(), root);
    let token = state.token_key().unwrap().issue("n1", SystemTime::now(), HOUR);
    assert_eq!(state.token_key().unwrap().check(&token, "n1", SystemTime::now()), Ok(()));
    let mode = |name: &str| {
        let path: &Path = directory.path();
        std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("root-key.pem"), mode("token-key"), mode("root.pem")), (0o600, 0o600, 0o644));
    assert!(
        !std::fs::read_dir(directory.path()).unwrap().any(|f| f
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with('.'))
    );

    let other_domain = state.authority("other.domain").unwrap_err().to_string();
    assert!(other_domain.contains("not the root of trust domain"), "{other_domain}");
    std::fs::set_permissions(directory.path().join("root-key.pem"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = state.authority("cluster.local").unwrap_err().to_string();
    assert!(open.contains("chmod 600"), "{open}");
}

#[test]
fn a_root_of_another_key_is_noticed() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    StateDir::open(a.path()).unwrap().authority("cluster.local").unwrap();
    StateDir::open(b.path()).unwrap().authority("cluster.local").unwrap();
    std::fs::copy(b.path().join("root.pem"), a.path().join("root.pem")).unwrap();
    let error = StateDir::open(a.path()).unwrap().authority("cluster.local").unwrap_err().to_string();
    assert!(error.contains("does not belong to root-key.pem"), "{error}");
}
