//! How the agent is.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// One page about an agent.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Node that the agent serves.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Number of this run of the agent: pending and captured flows of another one are orphans.
    pub generation: u32,
    /// SPIFFE trust domain.
    pub trust_domain: String,
    /// When this run began.
    pub started_unix_ns: u64,
    /// Programs are attached, the source was read, certificates of all local principals are there.
    pub ready: bool,
    /// What is still missing for `ready`, one line each.
    pub waiting_for: Vec<String>,
    /// Drains: it takes no new flows.
    pub draining: bool,
    /// Shards that run.
    pub shards: u32,
    /// Kernel and programs.
    pub kernel: KernelStatus,
    /// Local workloads by stage.
    pub endpoints: EndpointCounts,
    /// Desired state.
    pub source: SourceStatus,
    /// Policy.
    pub policy: PolicyStatus,
    /// Issuer and certificates.
    pub identity: IdentityStatus,
    /// Tunnels.
    pub tunnels: TunnelCounts,
    /// Flow table and records.
    pub flows: FlowTableStatus,
    /// TCP payload bytes of strict endpoints to meshed peers outside a tunnel and not legacy. Must read 0.
    pub leak_bytes: u64,
    /// Kernel counters by name (`kumiko_abi::Stat`).
    pub stats: BTreeMap<String, u64>,
    /// What was refused, by reason, most frequent first.
    pub refused: Vec<ReasonCount>,
}

/// Kernel and programs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KernelStatus {
    /// `uname -r`.
    pub release: String,
    /// How programs are attached: `tcx` or `clsact`.
    pub attach: String,
    /// Version of the maps' layout.
    pub layout: u32,
    /// Verified instructions by program.
    pub instructions: BTreeMap<String, u32>,
    /// Map writes that failed since the start (a full map, for one); they are tried again.
    pub map_write_failures: u64,
}

/// Local workloads by stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointCounts {
    /// Not enrolled.
    pub off: u32,
    /// Counted and judged.
    pub observe: u32,
    /// Tunnels, accepts plaintext.
    pub permissive: u32,
    /// Tunnels only.
    pub strict: u32,
    /// Both hooks on the veth.
    pub attached: u32,
    /// Enrolled, but the veth is not there yet or could not be attached.
    pub waiting: u32,
}

/// Desired state.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceStatus {
    /// As given, such as `dir:/etc/kumiko`.
    pub url: String,
    /// Read at least once.
    pub synced: bool,
    /// Files in force.
    pub files: u32,
    /// Objects in force.
    pub objects: u32,
    /// Workloads and Service ports that the kernel's maps have no number for: they count as outside the mesh.
    pub without_number: u32,
    /// Addresses that are nobody's though workloads claim them; what uses them is denied.
    pub disputed: u32,
    /// Number of the snapshot in force.
    pub epoch: u64,
    /// When it came into force.
    pub changed_unix_ns: u64,
    /// What is refused: the last good state of these files stays in force.
    pub diagnostics: Vec<SourceDiagnostic>,
}

/// Policy in force on this node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyStatus {
    /// Verdicts are made of it.
    pub enforced: bool,
    /// Epoch of the verdicts in the kernel.
    pub epoch: u32,
    /// The source's epoch that they were made of.
    pub source_epoch: u64,
    /// Baselines, policies and exceptions of the cluster.
    pub objects: u32,
    /// Sets of rules of this node's workloads.
    pub sets: u32,
    /// Kinds of peers that these tell apart.
    pub classes: u32,
    /// Why the source's policy is not the one in force; empty when it is.
    pub problem: String,
    /// Namespaces whose teams' policies alone are not in force, for that reason; none: the whole policy is the one of before.
    pub held: Vec<String>,
}

/// Why (part of) a file is refused.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceDiagnostic {
    /// File.
    pub file: String,
    /// Line, from 1; 0: the whole file.
    pub line: u32,
    /// Column, from 1; 0: the whole line.
    pub column: u32,
    /// What is wrong and what to do.
    pub message: String,
}

impl SourceDiagnostic {
    /// File, line and column, as far as they are known.
    pub fn place(&self) -> String {
        let numbers = [self.line, self.column].into_iter().take_while(|number| *number > 0);
        numbers.fold(self.file.clone(), |place, number| format!("{place}:{number}"))
    }
}

impl fmt::Display for SourceDiagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.message)
    }
}

/// Issuer and certificates.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IdentityStatus {
    /// Where the issuer is.
    pub issuer: String,
    /// Principals of local workloads.
    pub wanted: u32,
    /// Of these, with a certificate that is valid now.
    pub valid: u32,
    /// Certificates that could not be had or renewed at the last try.
    pub failing: u32,
    /// Roots in the trust bundle.
    pub roots: u32,
    /// End of the certificate that expires first; 0: none.
    pub first_expiry_unix_ns: u64,
    /// Certificates got since the start.
    pub issued: u64,
    /// Failed requests since the start.
    pub failures: u64,
    /// Last failure, empty when the last request went well.
    pub last_error: String,
}

/// Tunnels by state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TunnelCounts {
    /// Carry a flow.
    pub busy: u32,
    /// Wait in a pool.
    pub idle: u32,
    /// Connections on the tunnel port whose handshake is not done.
    pub arriving: u32,
    /// Bytes of relay buffers that shards had lent to flows when they last looked.
    pub buffer_bytes: u64,
    /// Handshakes that went well since the start.
    pub handshakes: u64,
    /// Handshakes that failed since the start.
    pub handshake_failures: u64,
}

/// Flow table and records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FlowTableStatus {
    /// Entries at the last reading, those that are over included.
    pub entries: u64,
    /// Most entries the table holds.
    pub capacity: u64,
    /// Flows that live.
    pub open: u64,
    /// Flows that are being dialled.
    pub pending: u64,
    /// Flows older than their pod's enrolment.
    pub legacy: u64,
    /// Finished records that are kept.
    pub records: u64,
    /// Most finished records that are kept.
    pub record_capacity: u64,
    /// Finished records that made place for newer ones.
    pub records_dropped: u64,
    /// Events that the kernel could not hand over.
    pub events_lost: u64,
    /// Facts from shards that could not be handed over.
    pub reports_lost: u64,
    /// Entries that could not be reaped or read.
    pub errors: u64,
}

/// A reason with its count.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReasonCount {
    /// Stable name.
    pub reason: String,
    /// One line for people.
    pub text: String,
    /// What to do about it; may be empty.
    pub hint: String,
    /// Flows or packets that met it.
    pub count: u64,
}
