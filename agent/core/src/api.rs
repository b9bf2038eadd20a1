//! What the agent's admin API answers: shared by the agent and the CLI.
//!
//! JSON in camelCase. Times are Unix nanoseconds (`…UnixNs`) or durations with their unit in the name. Fields are only
//! ever added; a reader skips what it does not know, and what a writer leaves out takes the default.

mod policy;
pub mod query;
mod status;
mod view;

pub use policy::{Applied, AppliedState, PolicyObjectView, SetView, SetsView, TableUse};
pub use status::{
    EndpointCounts, FlowTableStatus, IdentityStatus, KernelStatus, PolicyStatus, ReasonCount, SourceDiagnostic,
    SourceStatus, Status, TunnelCounts,
};
pub use view::{AttachmentState, CertState, CertView, TunnelView, WorkloadView};

pub use crate::flow_record::{FlowLine, FlowRecord, Party};

use serde::{Deserialize, Serialize};

/// Paths of the admin API, all `GET`.
pub mod path {
    /// [`super::Status`].
    pub const STATUS: &str = "/v1/status";
    /// Array of [`super::WorkloadView`].
    pub const WORKLOADS: &str = "/v1/workloads";
    /// Array of [`super::FlowRecord`]; with `follow=true` one [`super::FlowLine`] a line, without end.
    pub const FLOWS: &str = "/v1/flows";
    /// Array of [`super::TunnelView`].
    pub const TUNNELS: &str = "/v1/tunnels";
    /// Array of [`super::CertView`].
    pub const CERTS: &str = "/v1/certs";
    /// [`crate::policy::explain::Explanation`] of `from`, `to`, `port` and `protocol`, or of a `flow`.
    pub const EXPLAIN: &str = "/v1/policy/explain";
    /// Array of [`super::PolicyObjectView`].
    pub const POLICY: &str = "/v1/policy/objects";
    /// [`super::SetsView`].
    pub const SETS: &str = "/v1/policy/sets";
    /// [`super::Applied`] of the version of a `file` whose `digest` is said; answers when it is settled, or after `wait` seconds.
    pub const APPLIED: &str = "/v1/policy/applied";
    /// Prometheus text format.
    pub const METRICS: &str = "/metrics";
}

/// Header of a list of flows: how many older ones the limit left out.
pub const OMITTED_HEADER: &str = "kumiko-omitted";

/// What the admin API answers when it cannot answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ApiError {
    /// What was wrong and what to do.
    pub error: String,
}
