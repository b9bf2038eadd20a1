//! `MeshSettings`: what the platform decides for the whole mesh.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use kumiko_abi::Stage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::foreign::ForeignKind;

/// A stage, by its name in labels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StageName {
    /// Not enrolled.
    Off,
    /// Seen, not changed.
    Observe,
    /// In tunnels where it can be.
    Permissive,
    /// In tunnels, or refused.
    Strict,
}

impl From<StageName> for Stage {
    fn from(name: StageName) -> Self {
        match name {
            StageName::Off => Self::Off,
            StageName::Observe => Self::Observe,
            StageName::Permissive => Self::Permissive,
            StageName::Strict => Self::Strict,
        }
    }
}

/// What a permissive pod's new connections do while its node's agent is down.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WithoutAgent {
    /// What the agent's option `--permissive-without-agent` says.
    #[default]
    Agent,
    /// They are refused, whatever the option says.
    Refuse,
}

/// The lowest stage of some namespaces.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MinStage {
    /// Namespaces with all of these labels, whose prefixes are listed in `platformLabelPrefixes`; without any, all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub namespace_labels: BTreeMap<String, String>,
    /// A label that asks for less is refused.
    pub stage: StageName,
}

/// What the platform decides for the whole mesh. There is one, named `mesh`.
#[derive(CustomResource, Clone, PartialEq, Eq, Debug, Serialize, Deserialize, KubeSchema)]
#[kube(group = "kumiko.dev", version = "v1alpha1", kind = "MeshSettings", plural = "meshsettings", category = "kumiko")]
#[kube(doc = "What the platform decides for the whole mesh.")]
#[kube(validation = ("self.metadata.name == 'mesh'", "there is one MeshSettings, named mesh"))]
#[serde(rename_all = "camelCase")]
pub struct MeshSettingsSpec {
    /// Prefixes of the namespace labels that only the platform sets, such as `platform.bank/`: baselines select by them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub platform_label_prefixes: Vec<String>,
    /// Lowest stages, by namespace label; the highest that fits counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub min_stage: Vec<MinStage>,
    /// Networks of pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub pod_cidrs: Vec<String>,
    /// Networks of Services' addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub service_cidrs: Vec<String>,
    /// Networks of nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub node_cidrs: Vec<String>,
    /// Addresses of the API server: the entity `kube-apiserver`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub api_server: Vec<String>,
    /// Trust domains that SPIFFE IDs of rules may be of, each agent's own among them; without any, the agent's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub trust_domains: Vec<String>,
    /// How long a connection that is older than its pod's enrolment, and that the rules would refuse, may go on: a number of
    /// `s`, `m`, `h` or `d`, such as `24h`. Without the field until it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 10), regex(pattern = r"^[1-9][0-9]*[smhd]$"))]
    pub legacy_max_age: Option<String>,
    /// What a permissive pod's new connections do while its node's agent is down.
    #[serde(default)]
    pub permissive_without_agent: WithoutAgent,
    /// Whether flows between two pods of one node go straight from one to the other, past the host's network stack.
    #[serde(default = "yes")]
    #[schemars(default = "yes")]
    pub same_node_fast_path: bool,
    /// Kinds of policy that kumiko does not enforce and that keep no namespace from being raised to permissive or strict: what
    /// they say is then enforced by nobody. Without it a namespace that has such policy stays as it is, at observe if it is new.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub accepted_policy_kinds: Vec<ForeignKind>,
}

const fn yes() -> bool {
    true
}
