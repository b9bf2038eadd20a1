//! `MeshPolicy`: what a team allows within the platform's baseline.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{EgressRule, IngressRule, Mode, OnRevoke};

/// Whom a policy is about: workloads of its namespace. All that is named must be so; an empty subject is all of them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicySubject {
    /// Pods with all of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Pods of this service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account: Option<String>,
}

/// What a team allows for its own workloads. Whoever is selected by any policy in a direction is refused what none of
/// them allows.
#[derive(CustomResource, Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, KubeSchema)]
#[kube(group = "kumiko.dev", version = "v1alpha1", kind = "MeshPolicy", namespaced, shortname = "mp")]
#[kube(plural = "meshpolicies", category = "kumiko")]
#[kube(doc = "What a team allows for its own workloads, within the platform's baseline.")]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.replaces) || size(self.replaces) == 0 || self.mode == 'audit'", "replaces is for a policy in mode audit"))]
#[x_kube(validation = ("has(self.ingress) || has(self.egress)", "without ingress and egress it would enforce nothing"))]
pub struct MeshPolicySpec {
    /// `enforce` or `audit`.
    #[serde(default)]
    pub mode: Mode,
    /// With `audit`: names of the namespace's policies that this one is to take the place of. What it would change is
    /// judged without them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub replaces: Vec<String>,
    /// What becomes of connections that are open when their right ends; `cut` without the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_revoke: Option<OnRevoke>,
    /// Whom it is about.
    #[serde(default)]
    pub subject: PolicySubject,
    /// What may come in; `[]` is nothing, without the field it says nothing about that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub ingress: Option<Vec<IngressRule>>,
    /// Where to go; `[]` is nowhere, without the field it says nothing about that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub egress: Option<Vec<EgressRule>>,
}
