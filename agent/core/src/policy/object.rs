//! The documents that platform and application teams write, as Rust types: `deploy/crds` is generated from them.
//!
//! Doc comments of fields are what `kubectl explain` says, so they speak of YAML. What a schema cannot say (references,
//! clashes, what a subject may not be chosen by) is checked when documents are read, by [`crate::manifest`].

#![allow(unreachable_pub, reason = "the schema derive repeats each type in a function")]

mod baseline;
mod exception;
mod mesh_policy;
mod parts;
mod settings;

pub use baseline::{
    BaselineDirection, BaselineEgress, BaselineIngress, BaselineSubject, MeshBaseline, MeshBaselineSpec,
};
pub use exception::{MeshException, MeshExceptionSpec, Suspends};
pub use mesh_policy::{MeshPolicy, MeshPolicySpec, PolicySubject};
pub use parts::{
    Action, EgressRule, Entity, IngressRule, IpBlock, Mode, OnRevoke, Peer, Port, PortRef, TransportProtocol,
};
pub use settings::{MeshSettings, MeshSettingsSpec, MinStage, StageName, WithoutAgent};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

/// The definitions of all kinds, by the names of their files.
pub fn definitions() -> [(&'static str, CustomResourceDefinition); 4] {
    [
        ("meshbaselines.yaml", MeshBaseline::crd()),
        ("meshexceptions.yaml", MeshException::crd()),
        ("meshpolicies.yaml", MeshPolicy::crd()),
        ("meshsettings.yaml", MeshSettings::crd()),
    ]
}
