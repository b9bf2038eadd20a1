//! Requests and answers.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::channel::Channel;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use kumiko_core::api::{ApiError, Applied, AppliedState, OMITTED_HEADER, path};
use nix::unistd::Uid;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::asked::FlowsQuery;
use super::follow::follow;
use super::{AdminSocket, AdminState, policy};
use crate::telemetry::{MetricsInput, render};

/// Most connections at once; more wait in the listener's backlog.
pub const MAX_CONNECTIONS: usize = 64;
/// Most of them that follow flows.
pub const MAX_FOLLOWERS: usize = 32;
/// Longest time for a request's head.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Longest time for a connection that does not follow, answer included.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// Most bytes of a request's head; there is no body.
const MAX_HEAD: usize = 16 * 1024;
/// How long a listener rests when the system has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is answered on the admin socket.
const THERE: &[&str] = &[
    path::STATUS,
    path::WORKLOADS,
    path::FLOWS,
    path::TUNNELS,
    path::CERTS,
    path::EXPLAIN,
    path::POLICY,
    path::SETS,
    path::APPLIED,
    path::METRICS,
];

type Body = BoxBody<Bytes, Infallible>;

/// What all connections share.
#[derive(Clone)]
struct Shared {
    state: Arc<dyn AdminState>,
    /// Who is here; counts, and limits nothing.
    connections: Arc<Semaphore>,
    followers: Arc<Semaphore>,
    /// Serves metrics only.
    metrics_only: bool,
}

/// What one connection's requests share.
#[derive(Clone)]
struct Connection {
    shared: Shared,
    /// Set when it follows: then it may last.
    follows: watch::Sender<bool>,
}

/// A refusal with its HTTP status.
struct Refusal(StatusCode, String);

/// Serves the admin API until `stop` is done; open connections end then.
pub async fn serve(socket: AdminSocket, state: Arc<dyn AdminState>, stop: impl Future<Output = ()>) {
    let (all, followers) = (Semaphore::new(MAX_CONNECTIONS), Semaphore::new(MAX_FOLLOWERS));
    let shared = Shared { state, connections: Arc::new(all), followers: Arc::new(followers), metrics_only: false };
    connections(socket, shared, stop).await;
}

/// Serves `/metrics` alone over TCP, for a Prometheus on another machine.
pub async fn serve_metrics(listener: TcpListener, state: Arc<dyn AdminState>, stop: impl Future<Output = ()>) {
    let (all, followers) = (Semaphore::new(MAX_CONNECTIONS), Semaphore::new(MAX_FOLLOWERS));
    let shared = Shared { state, connections: Arc::new(all), followers: Arc::new(followers), metrics_only: true };
    connections(listener, shared, stop).await;
}

/// Where connections come from.
trait Listener {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection; `None`: one that may not ask.
    fn next(&self) -> impl Future<Output = io::Result<Option<Self::Stream>>> + Send;
}

impl Listener for AdminSocket {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<Option<UnixStream>> {
        let (stream, _) = self.listener.accept().await?;
        Ok(permitted(&stream).then_some(stream))
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<Option<TcpStream>> {
        Ok(Some(self.accept().await?.0))
    }
}

async fn connections<L: Listener>(listener: L, shared: Shared, stop: impl Future<Output = ()>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Dropped with its connections when `stop` is done.
    let mut open = JoinSet::new();
    tokio::pin!(stop);
    loop {
        while open.try_join_next().is_some() {}
        let next = async {
            // The semaphore is never closed.
            let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((permit, listener.next().await?))
        };
        let next = tokio::select! {
            () = &mut stop => return,
            next = next => next,
        };
        match next {
            Ok((permit, Some(stream))) => {
                open.spawn(connection(stream, shared.clone(), permit));
            }
            Ok((_, None)) => {}
            Err(error) => {
                warn!(%error, "admin API cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Only root and the agent's own user; the file's mode says the same, but files get copied into containers.
fn permitted(stream: &UnixStream) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == Uid::effective().as_raw() => true,
        Ok(peer) => {
            warn!(uid = peer.uid(), pid = peer.pid(), "admin API refused another user");
            false
        }
        Err(error) => {
            warn!(%error, "admin API cannot tell who asks");
            false
        }
    }
}

async fn connection<S>(stream: S, shared: Shared, _permit: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // The permits include one for the connection that is waited for.
    let _counted = shared.connections.clone().try_acquire_owned();
    let (follows, mut followed) = watch::channel(false);
    let connection = Connection { shared, follows };
    let service = service_fn(move |request| {
        let connection = connection.clone();
        async move { Ok::<_, Infallible>(connection.answer(request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let too_long = async {
        let following = followed.wait_for(|follows| *follows);
        if tokio::time::timeout(ANSWER_TIME, following).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        served = served => if let Err(error) = served {
            debug!(%error, "admin connection ended");
        },
        () = too_long => debug!("admin connection took too long"),
    }
}

impl Connection {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        self.route(&request).await.unwrap_or_else(|Refusal(status, error)| {
            let body = serde_json::to_vec(&ApiError { error }).unwrap_or_default();
            response(status, "application/json", body)
        })
    }

    async fn route(&self, request: &Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let (asked, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        if request.method() != Method::GET {
            let error = format!("{} is not for {asked}: the admin API only answers GET", request.method());
            return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, error));
        }
        let state = self.shared.state.clone();
        match asked {
            path::METRICS => {
                let taken = |of: &Semaphore, most: usize| (most - of.available_permits().min(most)) as u64;
                let admin_connections = taken(&self.shared.connections, MAX_CONNECTIONS);
                let admin_followers = taken(&self.shared.followers, MAX_FOLLOWERS);
                let input = move || MetricsInput { admin_connections, admin_followers, ..state.metrics() };
                let text = blocking(move || render(input())).await?;
                let text = text.map_err(|error| internal(format!("metrics cannot be written: {error}")))?;
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                Ok(response(StatusCode::OK, kind, text.into_bytes()))
            }
            _ if self.shared.metrics_only => Err(unknown(asked, &[path::METRICS])),
            path::STATUS => json(move || state.status()).await,
            path::WORKLOADS => json(move || state.workloads()).await,
            path::TUNNELS => json(move || state.tunnels()).await,
            path::CERTS => json(move || state.certs()).await,
            path::FLOWS => self.flows(query).await,
            path::EXPLAIN => {
                let asked = policy::explaining(query).map_err(|error| Refusal(StatusCode::BAD_REQUEST, error))?;
                json_or_not(move || state.explain(&asked)).await
            }
            path::POLICY => json_or_not(move || state.policy()).await,
            path::APPLIED => self.applied(query).await,
            path::SETS => json_or_not(move || state.sets()).await,
            _ => Err(unknown(asked, THERE)),
        }
    }

    /// Answers when the version is settled, or its time is over.
    async fn applied(&self, query: &str) -> Result<Response<Body>, Refusal> {
        let asked = policy::applied(query).map_err(|error| Refusal(StatusCode::BAD_REQUEST, error))?;
        let over = tokio::time::sleep(asked.wait);
        tokio::pin!(over);
        loop {
            // Before the look, so that no change falls between the two.
            let change = self.shared.state.change();
            let (state, about) = (self.shared.state.clone(), asked.clone());
            let answer = blocking(move || state.applied(&about)).await?;
            let settled = |answer: &Applied| matches!(answer.state, AppliedState::InForce | AppliedState::Refused);
            if !answer.as_ref().is_ok_and(|answer| !settled(answer)) {
                return json_or_not(move || answer).await;
            }
            tokio::select! {
                () = change => {}
                () = &mut over => return json_or_not(move || answer).await,
            }
        }
    }

    async fn flows(&self, query: &str) -> Result<Response<Body>, Refusal> {
        let asked = FlowsQuery::parse(query).map_err(|error| Refusal(StatusCode::BAD_REQUEST, error))?;
        let state = self.shared.state.clone();
        if asked.follow {
            return self.follow(asked).await;
        }
        let (body, omitted) = blocking(move || {
            let listing = state.flows(&asked.filter, asked.limit);
            (serde_json::to_vec(&listing.records), listing.omitted)
        })
        .await?;
        let body = body.map_err(|error| internal(format!("flows cannot be written: {error}")))?;
        let mut answer = response(StatusCode::OK, "application/json", body);
        answer.headers_mut().insert(HeaderName::from_static(OMITTED_HEADER), HeaderValue::from(omitted));
        Ok(answer)
    }

    async fn follow(&self, asked: FlowsQuery) -> Result<Response<Body>, Refusal> {
        let Ok(place) = self.shared.followers.clone().try_acquire_owned() else {
            let error = format!("{MAX_FOLLOWERS} readers follow flows already: end one of them");
            return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, error));
        };
        let (state, filter) = (self.shared.state.clone(), asked.filter.clone());
        // Before the list, so that no flow falls between the two.
        let flows = state.follow();
        let before = blocking(move || state.flows(&filter, asked.limit).records).await?;
        let (sender, body) = Channel::<Bytes>::new(1);
        let gone = self.follows.clone();
        let _ = self.follows.send(true);
        tokio::spawn(async move {
            tokio::select! {
                () = follow(before, flows, asked.filter, sender) => {}
                // The connection has ended, though no flow showed it.
                () = gone.closed() => {}
            }
            drop(place);
        });
        let mut answer = Response::new(body.boxed());
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        Ok(answer)
    }
}

/// Makes a value and its JSON off the runtime's threads.
async fn json<T: Serialize>(make: impl FnOnce() -> T + Send + 'static) -> Result<Response<Body>, Refusal> {
    let body = blocking(move || serde_json::to_vec(&make())).await?;
    let body = body.map_err(|error| internal(format!("answer cannot be written: {error}")))?;
    Ok(response(StatusCode::OK, "application/json", body))
}

/// The same of a value that there may not be.
async fn json_or_not<T: Serialize>(
    make: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<Response<Body>, Refusal> {
    let body = blocking(move || make().map(|value| serde_json::to_vec(&value))).await?;
    let body = body.map_err(|why| Refusal(StatusCode::UNPROCESSABLE_ENTITY, why))?;
    let body = body.map_err(|error| internal(format!("answer cannot be written: {error}")))?;
    Ok(response(StatusCode::OK, "application/json", body))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|error| internal(format!("the agent is ending: {error}")))
}

fn response(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn internal(error: String) -> Refusal {
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, error)
}

fn unknown(asked: &str, there: &[&str]) -> Refusal {
    Refusal(StatusCode::NOT_FOUND, format!("no {asked} here: there is {}", there.join(", ")))
}
