//! HTTP/1.1 over the agent's Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kumiko_core::api::{ApiError, OMITTED_HEADER};
use thiserror::Error;
use tokio::net::UnixStream;

/// Longest wait for an answer.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// Most bytes of an answer: the longest list of flows fits.
const MAX_ANSWER: usize = 128 * 1024 * 1024;
/// Most bytes of one line while following.
const MAX_LINE: usize = 1024 * 1024;

/// Why the agent gave no answer that can be used.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No connection.
    #[error("cannot reach the agent at {}: {}\n{}", path.display(), source, advice(path, source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It hung up.
    #[error(
        "the agent at {} broke off: {problem}\n  Only root and the agent's own user may ask; else see its log.",
        path.display()
    )]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        problem: String,
    },
    /// Somebody else listens there.
    #[error(
        "{} does not answer as an agent does: {problem}\n  See whether the path is the agent's admin socket (RUN_DIR/admin.sock).",
        path.display()
    )]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// What was wrong.
        problem: String,
    },
    /// It is too slow.
    #[error("the agent at {} gave no answer within {} s\n  It hangs, or is stopped: see its log, and what its process does.", path.display(), ANSWER_TIME.as_secs())]
    TimedOut {
        /// The socket.
        path: PathBuf,
    },
    /// It said no.
    #[error("the agent refused ({status}): {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// It said something else.
    #[error("the agent's answer cannot be read: {0}\n  Compare `kumiko --version` with the agent's.")]
    Answer(String),
}

fn advice(path: &Path, error: &io::Error) -> &'static str {
    use std::os::unix::fs::FileTypeExt as _;
    let socket = std::fs::metadata(path).map_or(true, |found| found.file_type().is_socket());
    match error.kind() {
        // Linux says so of a file or directory, too.
        io::ErrorKind::ConnectionRefused if !socket => {
            "  That is no socket: name the agent's admin socket, RUN_DIR/admin.sock."
        }
        io::ErrorKind::NotFound => {
            "  No agent runs on this node, or it has another --run-dir.\n  \
             Start it (kumiko-agent run …), or name its socket: --socket RUN_DIR/admin.sock, or KUMIKO_SOCKET."
        }
        io::ErrorKind::ConnectionRefused => {
            "  The socket is there but nobody listens: the agent has ended.\n  \
             Captured connections are reset; in strict, new ones are refused. Start it again, and see its log."
        }
        io::ErrorKind::PermissionDenied => "  Only root and the agent's own user may ask: try again with sudo.",
        _ => "  See whether the path is the agent's admin socket (RUN_DIR/admin.sock).",
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) body: Bytes,
    /// Flows that were left out.
    pub(crate) omitted: u64,
}

/// Asks for `target` (path and query) and takes the whole answer.
pub(crate) async fn get(socket: &Path, target: &str) -> Result<Whole, ClientError> {
    let asking = async {
        let response = request(socket, target).await?;
        let omitted = response.headers().get(OMITTED_HEADER);
        let omitted = omitted.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| broken(socket, &*error))?.to_bytes();
        Ok(Whole { body, omitted })
    };
    match tokio::time::timeout(ANSWER_TIME, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(ClientError::TimedOut { path: socket.to_owned() }),
    }
}

/// Lines that come as they happen.
#[derive(Debug)]
pub(crate) struct Lines {
    socket: PathBuf,
    body: Incoming,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were given out.
    taken: usize,
}

/// Asks for `target`, whose answer has no end.
pub(crate) async fn follow(socket: &Path, target: &str) -> Result<Lines, ClientError> {
    let response = match tokio::time::timeout(ANSWER_TIME, request(socket, target)).await {
        Ok(response) => response?,
        Err(_) => return Err(ClientError::TimedOut { path: socket.to_owned() }),
    };
    Ok(Lines { socket: socket.to_owned(), body: response.into_body(), buffer: Vec::new(), taken: 0 })
}

impl Lines {
    /// The next line; `None`: the agent has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            let rest = self.buffer.get(self.taken..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned();
                self.taken += end + 1;
                return Ok(Some(line));
            }
            if rest.len() > MAX_LINE {
                return Err(ClientError::Answer(format!("a line of more than {MAX_LINE} bytes")));
            }
            self.buffer.drain(..self.taken);
            self.taken = 0;
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                // An agent that is stopped or killed ends the stream in the middle.
                Some(Err(error)) => return Err(broken(&self.socket, &error)),
            }
        }
    }
}

async fn request(socket: &Path, target: &str) -> Result<Response<Incoming>, ClientError> {
    let stream =
        UnixStream::connect(socket).await.map_err(|source| ClientError::Connect { path: socket.to_owned(), source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(socket, &error))?;
    // Ends with the runtime at the latest.
    tokio::spawn(connection);
    let request = Request::get(target)
        .header(hyper::header::HOST, "kumiko")
        .body(Empty::<Bytes>::new())
        .map_err(|error| ClientError::Answer(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(|error| broken(socket, &error))?;
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(response);
    }
    let body = Limited::new(response.into_body(), MAX_LINE).collect().await;
    let body = body.map_err(|error| broken(socket, &*error))?.to_bytes();
    let message = serde_json::from_slice::<ApiError>(&body)
        .map_or_else(|_| String::from_utf8_lossy(&body).into_owned(), |answer| answer.error);
    Err(ClientError::Refused { status: status.as_u16(), message })
}

fn broken(socket: &Path, error: &(dyn std::error::Error + 'static)) -> ClientError {
    let (path, problem) = (socket.to_owned(), error.to_string());
    if error.downcast_ref().is_some_and(hyper::Error::is_parse) {
        ClientError::Stranger { path, problem }
    } else {
        ClientError::Broken { path, problem }
    }
}
