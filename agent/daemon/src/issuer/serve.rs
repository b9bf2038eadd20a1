//! The issuer's server.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::authority::SERVER_LIFE;
use super::sign::{Refusal, Signer};
use super::{
    Authority, BundleResponse, ErrorResponse, IssuerError, NodeWorkloads, SignError, SignResponse, StateDir, path,
};

/// Most bytes of a request's body.
pub const MAX_BODY: usize = 16 * 1024;
/// Most connections at once; more wait in the listener's backlog.
pub const MAX_CONNECTIONS: usize = 256;
/// Of these, connections from one address: an agent has less than ten. Whoever holds more is cut short, so that it does
/// not keep the others' certificates from them.
pub const MAX_FROM_ONE: usize = 32;
/// Longest time for a connection, from accept to the end of the answer.
const CONNECTION_TIME: Duration = Duration::from_secs(15);
/// How long the listener rests when the system has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The issuer.
#[derive(Debug)]
pub struct Issuer {
    signer: Signer,
    state: StateDir,
    /// Roots beside its own, as they were last read.
    extra: ArcSwap<Vec<String>>,
}

impl Issuer {
    /// Takes or makes root and token key in `state`.
    pub fn new(
        state: StateDir,
        trust_domain: &str,
        svid_ttl: Duration,
        workloads: Arc<dyn NodeWorkloads>,
    ) -> Result<Self, IssuerError> {
        let authority = state.authority(trust_domain)?;
        let tokens = state.token_key()?;
        // Said now, not at the first request.
        let extra = ArcSwap::from_pointee(state.extra_roots()?);
        Ok(Self { signer: Signer { authority, tokens, svid_ttl, workloads }, state, extra })
    }

    /// Listens. Apart from [`Issuer::serve`], so that a caller knows the port.
    pub async fn listen(address: SocketAddr) -> Result<TcpListener, IssuerError> {
        TcpListener::bind(address).await.map_err(|source| IssuerError::Listen { address, source })
    }

    /// Serves until `stop` is done. Connections that are open then may end in their own time.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), IssuerError> {
        let own = Arc::new(OwnCertificate::new(&self.signer.authority)?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(own.clone());
        config.send_tls13_tickets = 0;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let callers = Callers::default();
        let mut renew = tokio::time::interval(SERVER_LIFE / 2);
        renew.tick().await;
        if let Ok(address) = listener.local_addr() {
            info!(%address, root = %self.state.root_path().display(), "issuer serves");
        }
        tokio::pin!(stop);
        loop {
            let permit = tokio::select! {
                () = &mut stop => return Ok(()),
                _ = renew.tick() => { own.renew(&self.signer.authority)?; continue }
                permit = permits.clone().acquire_owned() => permit,
            };
            let accepted = tokio::select! {
                () = &mut stop => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let Some(caller) = callers.enter(peer.ip()) else {
                        debug!(%peer, "too many connections from one address");
                        continue;
                    };
                    // Answers are short, and a delayed acknowledgement is long.
                    let _ = stream.set_nodelay(true);
                    let (issuer, acceptor) = (self.clone(), acceptor.clone());
                    tokio::spawn(async move {
                        if tokio::time::timeout(CONNECTION_TIME, issuer.connection(stream, acceptor, peer))
                            .await
                            .is_err()
                        {
                            debug!(%peer, "connection took too long");
                        }
                        drop((caller, permit));
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, acceptor: TlsAcceptor, peer: SocketAddr) {
        let stream = match acceptor.accept(stream).await {
            Ok(stream) => stream,
            Err(error) => {
                debug!(%peer, %error, "TLS handshake failed");
                return;
            }
        };
        let service = service_fn(move |request| {
            let issuer = self.clone();
            async move { Ok::<_, std::convert::Infallible>(issuer.answer(request, peer).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(CONNECTION_TIME)
            .max_buf_size(MAX_BODY)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            debug!(%peer, %error, "connection failed");
        }
    }

    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
        let answer = match (request.method(), request.uri().path()) {
            (&Method::POST, path::SIGN) => self.sign(request, peer).await.map(|answer| json(StatusCode::OK, &answer)),
            (&Method::GET, path::BUNDLE) => Ok(json(StatusCode::OK, &BundleResponse { bundle: self.bundle() })),
            (_, path::SIGN | path::BUNDLE) => Err(Refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{} is not for {}", request.method(), request.uri()),
            )),
            _ => Err(Refusal(
                StatusCode::NOT_FOUND,
                format!("no {} here: there are {} and {}", request.uri().path(), path::SIGN, path::BUNDLE),
            )),
        };
        answer.unwrap_or_else(|Refusal(status, error)| {
            warn!(%peer, %status, error, "refused");
            json(status, &ErrorResponse { error })
        })
    }

    async fn sign(&self, request: Request<Incoming>, peer: SocketAddr) -> Result<SignResponse, Refusal> {
        let body = Limited::new(request.into_body(), MAX_BODY).collect().await.map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                Refusal(StatusCode::PAYLOAD_TOO_LARGE, format!("the request is larger than {MAX_BODY} bytes"))
            } else {
                Refusal(StatusCode::BAD_REQUEST, format!("the request broke off: {error}"))
            }
        })?;
        let (request, asked, signed) = self.signer.answer(&body.to_bytes(), SystemTime::now())?;
        let bundle = self.bundle();
        info!(%peer, node = request.node, principal = %asked.principal, serial = signed.serial, "signed");
        Ok(SignResponse {
            chain: signed.pem,
            bundle,
            not_before: signed.not_before,
            not_after: signed.not_after,
            serial: signed.serial,
        })
    }

    /// Roots to trust. A broken file among the extra ones must not keep certificates from anybody.
    fn bundle(&self) -> Vec<String> {
        match self.state.extra_roots() {
            Ok(extra) => self.extra.store(Arc::new(extra)),
            Err(error) => warn!(%error, "extra roots cannot be read; the last ones stay"),
        }
        let mut bundle = vec![self.signer.authority.root_pem().to_owned()];
        for root in self.extra.load().iter() {
            if !bundle.contains(root) {
                bundle.push(root.clone());
            }
        }
        bundle
    }
}

/// Connections by address.
#[derive(Debug, Default, Clone)]
struct Callers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of an address, until it is dropped.
struct Caller {
    callers: Callers,
    address: IpAddr,
}

impl Callers {
    /// Counts one more; `None`: too many.
    fn enter(&self, address: IpAddr) -> Option<Caller> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= MAX_FROM_ONE {
            return None;
        }
        *count += 1;
        Some(Caller { callers: self.clone(), address })
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut counts = self.callers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<Full<Bytes>> {
    // Serialising these types cannot fail; an empty body would be noticed by the reader.
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// The issuer's own TLS certificate, renewed while it runs.
#[derive(Debug)]
struct OwnCertificate(ArcSwap<CertifiedKey>);

impl OwnCertificate {
    fn new(authority: &Authority) -> Result<Self, IssuerError> {
        Ok(Self(ArcSwap::from_pointee(Self::make(authority)?)))
    }

    fn renew(&self, authority: &Authority) -> Result<(), IssuerError> {
        self.0.store(Arc::new(Self::make(authority)?));
        Ok(())
    }

    fn make(authority: &Authority) -> Result<CertifiedKey, IssuerError> {
        let (key, certificate) = authority.server(SystemTime::now()).map_err(|error| match error {
            SignError::Random => IssuerError::Random,
            SignError::Sign(source) | SignError::Request(source) => {
                IssuerError::Crypto { what: "the issuer's own certificate", source }
            }
            other => rustls::Error::General(other.to_string()).into(),
        })?;
        let key = rustls::crypto::ring::sign::any_ecdsa_type(&PrivatePkcs8KeyDer::from(key.as_slice()).into())?;
        Ok(CertifiedKey::new(vec![certificate], key))
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}
