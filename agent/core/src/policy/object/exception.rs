//! `MeshException`: what the platform lets somebody do for a while against its own baseline.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{BaselineSubject, OnRevoke, Peer, Port};

/// Rules of a baseline that an exception suspends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Suspends {
    /// Name of the baseline.
    #[schemars(length(min = 1, max = 253))]
    pub baseline: String,
    /// `ingress.deny.NAME` or `egress.deny.NAME`: a deny rule. `ingress.allow` or `egress.allow`: the whole ceiling.
    #[schemars(
        length(min = 1, max = 64),
        inner(regex(pattern = r"^(ingress|egress)\.(deny\.[a-z0-9]([-a-z0-9]*[a-z0-9])?|allow)$"))
    )]
    pub rules: Vec<String>,
}

/// Rules of baselines that do not hold for some peers of a subject, with an owner and an end. A team's policies must
/// still allow what it makes possible.
#[derive(CustomResource, Clone, PartialEq, Eq, Debug, Serialize, Deserialize, KubeSchema)]
#[kube(group = "kumiko.dev", version = "v1alpha1", kind = "MeshException", shortname = "mx", category = "kumiko")]
#[kube(doc = "Suspends rules of a baseline for some peers of a subject, until a moment.")]
#[serde(rename_all = "camelCase")]
pub struct MeshExceptionSpec {
    /// What is suspended.
    #[schemars(length(min = 1, max = 64))]
    pub suspends: Vec<Suspends>,
    /// For whom: the end that the baseline is about.
    pub subject: BaselineSubject,
    /// Towards whom; any one of them. Pod labels are refused, and named ports.
    #[schemars(length(min = 1, max = 256))]
    pub peers: Vec<Peer>,
    /// On which ports; without the field on any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub ports: Option<Vec<Port>>,
    /// Who answers for it.
    #[schemars(length(min = 1, max = 253))]
    pub owner: String,
    /// When it ends (RFC 3339). The kernel holds to it without an agent.
    pub expires: Time,
    /// What becomes of connections that are open then; `cut` without the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_expiry: Option<OnRevoke>,
}
