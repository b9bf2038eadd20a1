//! What a test asks of a peer and what it answers: one JSON document a line.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::pattern::Pattern;

/// A line to the peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the reply; replies come in any order.
    pub id: u64,
    /// What to do.
    pub action: Action,
}

/// What a peer can do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Makes a listening socket.
    Listen {
        /// Address; port 0 lets the kernel choose.
        addr: SocketAddr,
        /// Its backlog.
        backlog: i32,
    },
    /// Closes it.
    Unlisten {
        /// Port of the listener.
        port: u16,
    },
    /// Accepts `count` connections and runs the script on each; replies when all are done.
    Serve {
        /// Port of the listener.
        port: u16,
        /// Connections.
        count: usize,
        /// The script.
        script: Vec<Step>,
    },
    /// Makes `count` connections at once and runs the script on each; replies when all are done.
    Connect {
        /// Where to.
        to: SocketAddr,
        /// Address and port to bind first.
        from: Option<SocketAddr>,
        /// Milliseconds after which `connect` is given up; the limit of every call without it.
        #[serde(default)]
        within_ms: Option<u64>,
        /// Connections.
        count: usize,
        /// The script.
        script: Vec<Step>,
    },
    /// Opens a gate: scripts that wait at it go on.
    OpenGate {
        /// Its name.
        name: String,
    },
    /// Replies when a gate is open: a script has come to that place.
    AwaitGate {
        /// Its name.
        name: String,
    },
}

/// One step of a script.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Writes so many bytes of the stream.
    Send {
        /// How many.
        bytes: u64,
        /// Of which stream.
        pattern: Pattern,
    },
    /// Writes bytes of the stream until the gate opens.
    SendUntil {
        /// The gate.
        gate: String,
        /// Of which stream.
        pattern: Pattern,
    },
    /// Reads exactly so many bytes.
    Recv {
        /// How many.
        bytes: u64,
        /// What they should be.
        pattern: Pattern,
    },
    /// Reads to the end of the stream, or to an error.
    RecvToEnd {
        /// What should come.
        pattern: Pattern,
    },
    /// Sends and reads at the same time, then shuts its side down and reads on to the end.
    Duplex {
        /// Bytes to send.
        send: u64,
        /// Of which stream.
        sent: Pattern,
        /// What should come.
        received: Pattern,
    },
    /// Answers every message of so many bytes with as many, until the other side ends.
    Echo {
        /// Bytes of a message.
        bytes: u64,
    },
    /// Sends so many messages and waits for the echo of each.
    Ask {
        /// How many.
        times: u64,
        /// Bytes of a message.
        bytes: u64,
        /// Of which stream.
        pattern: Pattern,
    },
    /// Asks and waits for echoes until the gate opens.
    AskUntil {
        /// The gate.
        gate: String,
        /// Bytes of a message.
        bytes: u64,
        /// Of which stream.
        pattern: Pattern,
    },
    /// Writes until a write has not gone on for half a second, or `limit` bytes are written.
    Fill {
        /// The most to write.
        limit: u64,
        /// Of which stream, from its begin.
        pattern: Pattern,
    },
    /// Writes a byte every few milliseconds until a write fails (a minute at most): when the other side's RST arrives is
    /// not the script's to say, what the write then gives is.
    SendToError,
    /// Sends one byte of urgent data.
    Urgent {
        /// The byte.
        byte: u8,
    },
    /// Shuts down the writing side.
    ShutdownWrite,
    /// Closes, in order.
    Close,
    /// Closes with SO_LINGER{1,0}: the other side gets an RST.
    Reset,
    /// Opens a gate, for a test that waits for it.
    Open {
        /// Its name.
        name: String,
    },
    /// Waits until the test opens the gate.
    Gate {
        /// Its name.
        name: String,
    },
    /// Waits until all connections of this action are here.
    Meet,
}

/// What one step gave.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StepReport {
    /// Its name.
    pub step: String,
    /// Bytes written or read by it (read ones for steps that do both).
    pub bytes: u64,
    /// The error of the call that ended it: an errno's name, or `timed out` after a minute.
    pub error: Option<String>,
    /// Whether it read the end of the stream.
    pub eof: bool,
    /// Whether every byte read was the one expected at its place.
    pub intact: bool,
}

/// What one connection gave.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConnReport {
    /// The error of `connect`.
    pub connect: Option<String>,
    /// `getsockname`.
    pub local: Option<SocketAddr>,
    /// `getpeername`, right after connect or accept.
    pub peer: Option<SocketAddr>,
    /// Microseconds that `connect` took; 0 on the server's side.
    pub connect_us: u64,
    /// The steps.
    pub steps: Vec<StepReport>,
}

/// A line from the peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reply {
    /// Of the request.
    pub id: u64,
    /// Why nothing could be done.
    pub error: Option<String>,
    /// Port of a new listener.
    pub port: u16,
    /// One for each connection, in the order of accept or of start.
    pub reports: Vec<ConnReport>,
}
