//! Workloads, tunnels and certificates as the admin API shows them.

use std::net::IpAddr;

use kumiko_abi::Stage;
use serde::{Deserialize, Serialize};

/// A workload of the mesh, local or not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Service account.
    pub service_account: String,
    /// SPIFFE ID.
    pub principal: String,
    /// Node.
    pub node: String,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Effective stage: the namespace's, or a higher one of the workload's own.
    #[serde(with = "crate::flow_record::stage")]
    pub stage: Stage,
    /// On this agent's node.
    pub local: bool,
    /// Ready, as the source says.
    pub ready: bool,
    /// Hooks on its veth.
    pub attachment: AttachmentState,
    /// Host-side interface; empty when unknown or not local.
    #[serde(default)]
    pub interface: String,
    /// Why it is not attached, and what to do; empty when nothing is wrong.
    #[serde(default)]
    pub problem: String,
    /// Flow entries of this endpoint now.
    #[serde(default)]
    pub flows: u64,
    /// Flows of this endpoint that are being dialled.
    #[serde(default)]
    pub pending: u64,
    /// Flows of this endpoint older than its enrolment.
    #[serde(default)]
    pub legacy: u64,
}

/// Whether the hooks are on a workload's veth.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AttachmentState {
    /// On another node.
    Remote,
    /// Local and not enrolled: nothing to attach.
    None,
    /// Enrolled, but its veth is not there yet or could not be attached.
    Waiting,
    /// Being raised: its older connections are learnt.
    Learning,
    /// Both hooks are on, and still judge by the stage before.
    Moving,
    /// Both hooks are on and judge by its stage.
    Attached,
}

impl AttachmentState {
    /// Name for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Remote => "remote",
            Self::None => "-",
            Self::Waiting => "waiting",
            Self::Learning => "learning",
            Self::Moving => "moving",
            Self::Attached => "attached",
        }
    }
}

/// A tunnel to another node's agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelView {
    /// Node-local number.
    pub number: u64,
    /// This node dialled it.
    pub dialled: bool,
    /// Principal of this node's end.
    pub local: String,
    /// Principal that the other end proved.
    pub peer: String,
    /// Name of the other node; empty when unknown.
    pub peer_node: String,
    /// Address and port of the other end.
    pub peer_addr: String,
    /// Serial of the peer's certificate, hex.
    pub peer_serial: String,
    /// Id of the flow it carries, hex; empty: idle in the pool.
    #[serde(default)]
    pub flow: String,
    /// Shard that owns it.
    pub shard: u16,
    /// Handshake done.
    pub since_unix_ns: u64,
    /// Time of the handshake, TCP connect included, in microseconds.
    pub handshake_us: u64,
    /// Flows it has carried, this one included.
    pub flows_carried: u64,
    /// Plaintext bytes sent in it.
    #[serde(default)]
    pub bytes_sent: u64,
    /// Plaintext bytes received in it.
    #[serde(default)]
    pub bytes_received: u64,
    /// Key changes of what this node sends, as of the last flow's end.
    #[serde(default)]
    pub key_updates_sent: u64,
    /// Key changes of what the other node sends.
    #[serde(default)]
    pub key_updates_received: u64,
}

/// A certificate of this node, or one that it waits for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertView {
    /// SPIFFE ID.
    pub principal: String,
    /// Whether it can be used.
    pub state: CertState,
    /// Serial number, hex; empty when there is none.
    pub serial: String,
    /// Valid from; 0 when there is none.
    pub not_before_unix_ns: u64,
    /// Valid until; 0 when there is none.
    pub not_after_unix_ns: u64,
    /// When the next request is due.
    pub renew_at_unix_ns: u64,
    /// Requests that failed since the last one that went well.
    pub failures: u32,
    /// Last failure; empty when the last request went well.
    #[serde(default)]
    pub last_error: String,
}

/// Whether a certificate can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CertState {
    /// Asked for, none yet.
    Waiting,
    /// In use.
    Valid,
    /// In use, but the last renewal failed.
    Failing,
    /// Past its end: no tunnel can be had.
    Expired,
}

impl CertState {
    /// Name for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Valid => "valid",
            Self::Failing => "failing",
            Self::Expired => "expired",
        }
    }
}
