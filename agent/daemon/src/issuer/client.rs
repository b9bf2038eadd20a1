//! The agent's side of the issuer.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use zeroize::Zeroizing;

use super::{BundleResponse, ErrorResponse, SERVER_NAME, SignRequest, SignResponse, path};

/// Most bytes of an answer: a bundle of 65 roots fits.
const MAX_ANSWER: usize = 256 * 1024;
/// Longest time for one request.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// Why the issuer gave no answer that can be used.
#[derive(Debug, Error)]
pub enum ClientError {
    /// A file could not be read.
    #[error("{what} {path}: {problem}")]
    File {
        /// Which file.
        what: &'static str,
        /// Where.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// No connection.
    #[error("cannot reach the issuer at {address}: {source}; is it running?")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// No TLS.
    #[error("TLS with the issuer at {address} failed: {source}; is --issuer-root its root?")]
    Tls {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// No HTTP.
    #[error("the issuer at {address} broke off: {source}")]
    Http {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Too slow.
    #[error("the issuer at {address} gave no answer within {} s", REQUEST_TIME.as_secs())]
    TimedOut {
        /// Where.
        address: SocketAddr,
    },
    /// It said no.
    #[error("the issuer refused ({status}): {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// It said something else.
    #[error("the issuer's answer cannot be used: {0}")]
    Answer(String),
}

/// Asks one issuer.
#[derive(Clone)]
pub struct IssuerClient {
    address: SocketAddr,
    node: String,
    token: Arc<Path>,
    /// Changes with the bundle: an issuer whose root was announced before it was used is still the issuer.
    tls: Arc<ArcSwap<rustls::ClientConfig>>,
    roots: Arc<[CertificateDer<'static>]>,
}

/// The join token in a file. Read for each request: a token is replaced before it expires, under an agent that goes on.
fn read_token(path: &Path) -> Result<Zeroizing<String>, ClientError> {
    let token = read("--join-token", path)?;
    if token.trim().is_empty() {
        return Err(ClientError::File {
            what: "--join-token",
            path: path.display().to_string(),
            problem: "is empty: make a token with `kumiko-agent token`".to_owned(),
        });
    }
    Ok(Zeroizing::new(token.trim().to_owned()))
}

fn read(what: &'static str, path: &Path) -> Result<Zeroizing<String>, ClientError> {
    let file = |error: std::io::Error| ClientError::File {
        what,
        path: path.display().to_string(),
        problem: error.to_string(),
    };
    std::fs::read_to_string(path).map(Zeroizing::new).map_err(file)
}

impl std::fmt::Debug for IssuerClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuerClient").field("address", &self.address).field("node", &self.node).finish_non_exhaustive()
    }
}

impl IssuerClient {
    /// Reads the root from its file, once, and the token from its own, for each request.
    pub fn from_files(address: SocketAddr, node: &str, root: &Path, token: &Path) -> Result<Self, ClientError> {
        let root_pem = read("--issuer-root", root)?;
        // Said now, not at the first request.
        read_token(token)?;
        Self::new(address, node, &root_pem, token).map_err(|problem| ClientError::File {
            what: "--issuer-root",
            path: root.display().to_string(),
            problem,
        })
    }

    /// Pins to the certificates of `root_pem`; the error says what is wrong with them. `token` is a file.
    pub fn new(address: SocketAddr, node: &str, root_pem: &str, token: &Path) -> Result<Self, String> {
        let pinned = CertificateDer::pem_slice_iter(root_pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        let pinned = pinned.map_err(|error| format!("is not a PEM certificate: {error}"))?;
        if pinned.is_empty() {
            return Err("holds no PEM certificate".to_owned());
        }
        let tls = Arc::new(ArcSwap::from_pointee(trusting(&pinned)?));
        Ok(Self { address, node: node.to_owned(), token: token.into(), tls, roots: pinned.into() })
    }

    /// Also takes an issuer by these roots, which the pinned one has announced; by no others any more.
    ///
    /// # Errors
    /// One of them cannot be used; the last ones stay.
    pub fn trust(&self, announced: &[CertificateDer<'static>]) -> Result<(), String> {
        self.tls.store(Arc::new(trusting(self.roots.iter().chain(announced))?));
        Ok(())
    }

    /// Where the issuer is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The roots that it is pinned to.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Asks for a certificate. `csr`: PEM.
    pub async fn sign(&self, csr: String) -> Result<SignResponse, ClientError> {
        let request = SignRequest { node: self.node.clone(), token: read_token(&self.token)?.as_str().to_owned(), csr };
        let body = serde_json::to_vec(&request).map_err(|error| ClientError::Answer(error.to_string()))?;
        self.ask(Method::POST, path::SIGN, body).await
    }

    /// Asks for the roots to trust, PEM each.
    pub async fn bundle(&self) -> Result<Vec<String>, ClientError> {
        self.ask::<BundleResponse>(Method::GET, path::BUNDLE, Vec::new()).await.map(|answer| answer.bundle)
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<T, ClientError> {
        match tokio::time::timeout(REQUEST_TIME, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::TimedOut { address: self.address }),
        }
    }

    async fn exchange<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<T, ClientError> {
        let address = self.address;
        let http = |source: Box<dyn std::error::Error + Send + Sync>| ClientError::Http { address, source };
        let stream = TcpStream::connect(address).await.map_err(|source| ClientError::Connect { address, source })?;
        let name = ServerName::try_from(SERVER_NAME).map_err(|error| ClientError::Answer(error.to_string()))?;
        let stream = TlsConnector::from(self.tls.load_full())
            .connect(name, stream)
            .await
            .map_err(|source| ClientError::Tls { address, source })?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MAX_ANSWER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| http(error.into()))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, SERVER_NAME)
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| http(error.into()))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|error| http(error.into()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(http)?.to_bytes();
            Ok::<_, ClientError>((status, body))
        };
        // Both on this task: no connection outlives its request.
        tokio::pin!(exchange, connection);
        let (status, body) = tokio::select! {
            answer = &mut exchange => answer?,
            ended = &mut connection => {
                ended.map_err(|error| http(error.into()))?;
                exchange.await?
            }
        };
        read_answer(status, &body)
    }
}

/// Reads what came back.
pub(crate) fn read_answer<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<T, ClientError> {
    if status != StatusCode::OK {
        let message = serde_json::from_slice::<ErrorResponse>(body).map_or_else(
            |_| String::from_utf8_lossy(body.get(..body.len().min(200)).unwrap_or_default()).into_owned(),
            |answer| answer.error,
        );
        return Err(ClientError::Refused { status: status.as_u16(), message });
    }
    serde_json::from_slice(body).map_err(|error| ClientError::Answer(error.to_string()))
}

/// TLS that trusts these roots and no other.
fn trusting<'a>(roots: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> Result<rustls::ClientConfig, String> {
    let mut store = rustls::RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(|error| format!("holds a certificate that is no root: {error}"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(store).with_no_client_auth())
}

/// URIs among a certificate's subject alternative names.
pub(crate) fn uris<'a>(certificate: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let names = certificate.subject_alternative_name().ok().flatten();
    names
        .iter()
        .flat_map(|extension| extension.value.general_names.iter())
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect()
}
