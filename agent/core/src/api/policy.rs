//! Policy as the admin API shows it. Why a flow may be, or may not: [`crate::policy::explain::Explanation`].

use serde::{Deserialize, Serialize};

use super::SourceDiagnostic;

/// A baseline, policy, exception, or the settings.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyObjectView {
    /// Its kind.
    pub kind: String,
    /// Its namespace; empty for those of the whole cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `enforce` or `audit`; empty where there is no such choice.
    pub mode: String,
    /// It decides.
    pub enforced: bool,
    /// Why it does not; empty when it does.
    pub why: String,
    /// A rule of it that denies names a workload which nobody is.
    pub degraded: bool,
    /// Workloads of this node that it is about.
    pub selects: u32,
    /// Its rules that name a workload which nobody is.
    pub nobody: Vec<String>,
    /// File that it stands in.
    pub file: String,
}

/// The tables of this node's verdicts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SetsView {
    /// Epoch of the verdicts.
    pub epoch: u32,
    /// Sets by their number.
    pub sets: Vec<SetView>,
    /// What the kernel's tables hold of them.
    pub tables: Vec<TableUse>,
}

/// What workloads with the same rules share.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SetView {
    /// Its number in the kernel.
    pub id: u32,
    /// Workloads of this node that it is about: `namespace/name`.
    pub workloads: Vec<String>,
    /// Objects that speak about them.
    pub objects: Vec<String>,
    /// Kinds of peers that it has rows for.
    pub classes: u32,
    /// Groups of ports that it tells apart, coming in and going out.
    pub columns: [u32; 2],
    /// Verdicts.
    pub cells: u32,
    /// Bytes of the tables that it uses; others may use the same ones.
    pub bytes: u64,
}

/// How full a table is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TableUse {
    /// What it holds.
    pub of: String,
    /// Elements in use.
    pub used: u64,
    /// Most elements.
    pub most: u64,
    /// Bytes of those in use.
    pub bytes: u64,
}

/// How far a version of a file of the source has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AppliedState {
    /// The agent has not read it, but another version or none.
    #[default]
    Unread,
    /// It was read and is not in force: part of the source is refused.
    Refused,
    /// It is to be in force: verdicts are made, or open flows are looked at.
    Coming,
    /// It is in force for new flows, and every flow that was open was looked at and is cut if it has to be.
    InForce,
}

/// How far a version of a file of the source has come.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Applied {
    /// Where it is.
    pub state: AppliedState,
    /// Epoch of the verdicts in force.
    pub epoch: u32,
    /// Why it is not in force yet; may be empty.
    pub problem: String,
    /// What is refused of the source.
    pub diagnostics: Vec<SourceDiagnostic>,
}
