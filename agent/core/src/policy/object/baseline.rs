//! `MeshBaseline`: what the platform denies, caps and guarantees.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EgressRule, IngressRule, Mode, OnRevoke};

/// Whom a baseline is about: workloads, by what only the platform decides. All that is named must be so; an empty
/// subject is every workload.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
// These fields are those of a peer that is a workload, but for pod labels: a shared type flattened into both would lose
// the place of what is wrong in it.
#[x_kube(validation = ("!has(self.serviceAccount) || has(self.__namespace__) || has(self.namespaceLabels)", "an account's name means nothing without its namespace"))]
pub struct BaselineSubject {
    /// The namespace with this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Namespaces with all of these labels, whose prefixes `MeshSettings` lists as the platform's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub namespace_labels: BTreeMap<String, String>,
    /// Pods of this service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account: Option<String>,
    /// Who has this SPIFFE ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^spiffe://[^/]+/ns/[^/]+/sa/[^/]+$"))]
    pub spiffe_id: Option<String>,
}

/// One direction of a baseline.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", bound(deserialize = "R: Deserialize<'de>"))]
pub struct BaselineDirection<R> {
    /// What no team can allow. Peers are chosen as subjects are, or by address; pod labels and named ports are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub deny: Vec<R>,
    /// A ceiling: teams may allow what one of these allows, and nothing else. Several baselines' ceilings intersect. An
    /// empty list allows nothing; without the field there is no ceiling. Pod labels and named ports are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub allow: Option<Vec<R>>,
    /// What no team can refuse: scraping, DNS. Pod labels and named ports are refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub guarantee: Vec<R>,
}

/// What may come in.
pub type BaselineIngress = BaselineDirection<IngressRule>;
/// Where to go.
pub type BaselineEgress = BaselineDirection<EgressRule>;

/// What the platform denies, caps and guarantees, whatever teams write.
#[derive(CustomResource, Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, KubeSchema)]
#[kube(group = "kumiko.dev", version = "v1alpha1", kind = "MeshBaseline", shortname = "mb", category = "kumiko")]
#[kube(doc = "What the platform denies, caps and guarantees: teams narrow it, never widen it.")]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.ingress) || has(self.egress)", "without ingress and egress it would enforce nothing"))]
pub struct MeshBaselineSpec {
    /// `enforce` or `audit`.
    #[serde(default)]
    pub mode: Mode,
    /// What becomes of connections that are open when this baseline denies them; `cut` without the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_revoke: Option<OnRevoke>,
    /// Cuts what it denies also among the connections that are older than their pod's enrolment, which go on otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut_legacy: bool,
    /// Whom it is about.
    pub subject: BaselineSubject,
    /// What may come in; without the field it says nothing about that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<BaselineIngress>,
    /// Where to go; without the field it says nothing about that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<BaselineEgress>,
}
