//! A flow as people and programs see it: one value that says who, what, when, how much, how it went and why.
//!
//! [`FlowRecord::build`] makes it from the kernel's entry, the names of both ends and what the agent itself knows
//! ([`AgentFacts`]). Plain functions: no clock, no map, no model inside.

mod build;
mod filter;
mod words;

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use kumiko_abi::{FlowKey, Stage, Verdict};
use serde::{Deserialize, Serialize};

pub use build::{Clock, Directory, Names, hex_id, id_from_hex, unanswered};
pub use filter::{FilterError, FlowFilter, PartyMatch};
pub use words::{stage, stage_name, verdict, verdict_name};

/// One end of a flow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Party {
    /// What it is.
    pub kind: PartyKind,
    /// Namespace; empty when it is no workload.
    #[serde(default)]
    pub namespace: String,
    /// Name of the workload, or of the node; empty when unknown.
    #[serde(default)]
    pub name: String,
    /// Service account; empty when it is no workload.
    #[serde(default)]
    pub service_account: String,
    /// SPIFFE ID; empty when it is no workload.
    #[serde(default)]
    pub principal: String,
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
    /// Node; empty when unknown.
    #[serde(default)]
    pub node: String,
}

/// What an end of a flow is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PartyKind {
    /// A workload of the model.
    Workload,
    /// A process of this node, or another node's address.
    Node,
    /// A Service's address of which no endpoint was chosen.
    Service,
    /// Not in the model.
    #[default]
    Outside,
}

/// What the model knows about an address or a handle.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartyName {
    /// What it is.
    pub kind: PartyKind,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Service account.
    pub service_account: String,
    /// SPIFFE ID.
    pub principal: String,
    /// Node.
    pub node: String,
    /// Effective stage.
    #[serde(with = "stage")]
    pub stage: Stage,
}

/// The Service that a client asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
}

/// Which way a flow goes, as its node sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FlowDirection {
    /// From a workload of this node.
    Outbound,
    /// To a workload of this node.
    Inbound,
    /// Both ends are on this node.
    Local,
}

/// How a flow's bytes travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FlowPath {
    /// In a tunnel between two agents.
    Tunnel,
    /// Through this node's agent, which never lets it leave the node.
    Agent,
    /// Same node: from veth to veth in the kernel.
    Fast,
    /// Same node, by the host's stack: the veths prove both ends, and no wire sees it.
    Local,
    /// As without the mesh.
    Clear,
    /// Nowhere: it was refused.
    Refused,
}

/// Where a flow is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FlowPhase {
    /// Being dialled: the client's `connect` has not returned.
    Pending,
    /// Open.
    Open,
    /// Over: the record is final.
    Closed,
}

/// How a flow ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FlowClose {
    /// Both sides ended the stream.
    Fin,
    /// An RST.
    Rst,
    /// It never opened: refused by the mesh or by the server.
    Refused,
    /// It never opened: nobody answered.
    TimedOut,
    /// It never opened: the client gave up.
    GaveUp,
    /// A pod of the flow is gone.
    EndpointGone,
    /// No socket had it any more; of UDP: nothing was said for a while.
    Idle,
    /// Another connection with the same addresses and ports took its place.
    Replaced,
    /// The tunnel ended under it.
    TunnelLost,
    /// The agent ended it.
    Agent,
}

/// Who ended a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FlowSide {
    /// The end that began it.
    Source,
    /// The other end.
    Destination,
    /// The mesh.
    Mesh,
}

/// What only the agent knows about a flow: facts from the shard that carries it. Empty for flows that never meet the
/// agent.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentFacts {
    /// Service that was asked for.
    pub service: Option<ServiceName>,
    /// The pod that was chosen; the asked address itself when no Service was asked for.
    pub target: Option<SocketAddr>,
    /// This agent accepted the flow from a tunnel, or delivers it here.
    pub delivering: bool,
    /// The flow goes, or was meant to go, to another node.
    pub remote: bool,
    /// Number of the tunnel.
    pub tunnel: Option<u64>,
    /// The other agent's node; empty when unknown or none.
    pub peer_node: String,
    /// Why it failed or ended, a [`kumiko_abi::Reason`] number.
    pub reason: Option<u16>,
    /// errno of the connection to the pod, or 0.
    pub errno: i32,
    /// Opened: the client's `connect` returned well.
    pub opened: bool,
    /// Time of the tunnel's handshake when this flow waited for it, in microseconds; `None`: a warm tunnel.
    pub handshake_us: Option<u64>,
    /// Time from the client's SYN to the far pod's answer, in microseconds.
    pub connect_us: Option<u64>,
    /// Smoothed round-trip time of the tunnel, or of the pod's connection, in microseconds.
    pub rtt_us: Option<u32>,
    /// Segments sent again on that connection.
    pub retransmits: Option<u32>,
    /// How it ended.
    pub close: Option<FlowClose>,
    /// Who ended it.
    pub closed_by: Option<FlowSide>,
    /// Epoch of the last verdicts that the agent asked.
    pub epoch: Option<u32>,
    /// Epoch of the other node's verdicts that let it, as that node says.
    pub peer_epoch: Option<u32>,
}

impl AgentFacts {
    /// The agent has asked the verdicts of an epoch; 0: none.
    pub fn judged(&mut self, epoch: u32) {
        if epoch != 0 {
            self.epoch = Some(epoch);
        }
    }

    /// The other node says which epoch of its verdicts let it; 0: it does not.
    pub fn judged_there(&mut self, epoch: u32) {
        if epoch != 0 {
            self.peer_epoch = Some(epoch);
        }
    }
}

/// One flow.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRecord {
    /// Flow id, 32 hex digits: the same on every node that saw the flow.
    pub id: String,
    /// Node whose agent recorded it.
    pub node: String,
    /// Number of this report about the flow while it is followed, from 1; 0 in listings.
    #[serde(default)]
    pub report: u32,
    /// First packet.
    pub start_unix_ns: u64,
    /// Last packet, or end when it is closed.
    pub end_unix_ns: u64,
    /// The end that began it.
    pub source: Party,
    /// The other end: the pod that was chosen when a Service was asked for.
    pub destination: Party,
    /// Service that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// IP protocol: `tcp`, `udp` or its number.
    pub protocol: Cow<'static, str>,
    /// Which way it goes, seen from `node`.
    pub direction: FlowDirection,
    /// How its bytes travel.
    pub path: FlowPath,
    /// Its bytes travel in TLS 1.3 between the nodes.
    pub encrypted: bool,
    /// Older than its pod's enrolment.
    pub legacy: bool,
    /// No tunnel to be had, both sides permissive: went once in the clear.
    pub downgraded: bool,
    /// In the clear because a peer is not meshed.
    pub plaintext: bool,
    /// A kubelet probe.
    pub probe: bool,
    /// From a process of this node.
    pub host: bool,
    /// The pod sees another source port than the client's own.
    pub other_port: bool,
    /// A pod that reaches itself through a Service.
    pub hairpin: bool,
    /// Recorded by `observe`, not enforced.
    pub observed: bool,
    /// With what is in audit it would have another verdict: refused if it is let, let if it is refused.
    #[serde(default)]
    pub audit_differs: bool,
    /// Were all pods strict that are enrolled, its ends would refuse it.
    #[serde(default)]
    pub strict_refuses: bool,
    /// Stage of the workload of this node that it belongs to; the higher one when both ends are here.
    #[serde(with = "stage")]
    pub stage: Stage,
    /// Where it is in its life.
    pub state: FlowPhase,
    /// Verdict.
    #[serde(with = "verdict")]
    pub verdict: Verdict,
    /// Stable name of the reason.
    pub reason: Cow<'static, str>,
    /// The reason for people.
    pub reason_text: Cow<'static, str>,
    /// What to do about it; may be empty.
    #[serde(default)]
    pub hint: Cow<'static, str>,
    /// errno of the connection to the pod (Linux numbers), 0 when there was none.
    #[serde(default)]
    pub errno: i32,
    /// Payload bytes from source to destination.
    pub bytes_sent: u64,
    /// Payload bytes from destination to source.
    pub bytes_received: u64,
    /// Packets from source to destination.
    pub packets_sent: u64,
    /// Packets from destination to source.
    pub packets_received: u64,
    /// Smoothed round-trip time in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u32>,
    /// Segments sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u32>,
    /// How it ended; `None` while it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close: Option<FlowClose>,
    /// Who ended it, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_by: Option<FlowSide>,
    /// The other agent's node; empty when no tunnel was meant.
    #[serde(default)]
    pub peer_node: String,
    /// Number of the tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<u64>,
    /// Time that it waited for a tunnel's handshake, in microseconds; absent: a warm tunnel, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_us: Option<u64>,
    /// Time from the client's SYN to the far pod's answer, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_us: Option<u64>,
    /// Policy epoch of the verdict; 0: there was none.
    pub epoch: u32,
    /// Policy epoch by which the other node let it when it began, in that node's counting; absent: no tunnel, or it did not
    /// say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_epoch: Option<u32>,
    /// What spoke for each end to the other: `tls`, `veth` or `claim`; empty: it was refused, or is dialled, before that was seen.
    #[serde(default)]
    pub proof: Cow<'static, str>,
}

impl FlowRecord {
    /// Whether it goes on, and would not, were everything enforced that is in audit, and everybody strict.
    pub fn would_be_refused(&self) -> bool {
        match self.verdict {
            Verdict::Audit => true,
            Verdict::Allow => self.audit_differs || self.strict_refuses,
            Verdict::Deny => false,
        }
    }
}

/// One line while flows are followed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FlowLine {
    /// The reader was too slow: this many lines before the next one are missing.
    Lost {
        /// How many.
        lost: u64,
    },
    /// A flow began, went on or ended.
    Flow(Box<FlowRecord>),
}

/// A flow entry under its key, as a reading of the table gives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Key.
    pub key: FlowKey,
    /// Value.
    pub flow: kumiko_abi::Flow,
}
