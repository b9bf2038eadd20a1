//! Policy that kumiko knows and cannot enforce: other products' kinds, which their own data path enforces, and capture goes past.
//!
//! What is not enforced must not be taken for enforced. So a namespace that such an object is about is not raised to permissive
//! or strict while the platform has not accepted its kind in `MeshSettings`. One that was raised before is never lowered:
//! whoever may write such an object could otherwise take a namespace out of the mesh.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use kumiko_abi::Stage;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::model::World;

macro_rules! kinds {
    ($($variant:ident = $name:literal $reach:ident,)*) => {
        /// A kind of policy, by its kind and API group.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[allow(missing_docs, reason = "each variant is named after what it is")]
        pub enum ForeignKind {
            $($variant,)*
        }

        impl ForeignKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            /// Their names.
            pub const NAMES: &[&str] = &[$($name,)*];

            /// `Kind.group`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            const fn reach(self) -> Reach {
                match self {
                    $(Self::$variant => Reach::$reach,)*
                }
            }
        }
    };
}

/// Whom objects of a kind are about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Their namespace.
    Namespace,
    /// Any: whom they choose is theirs to say.
    Cluster,
}

kinds! {
    Admin = "AdminNetworkPolicy.policy.networking.k8s.io" Cluster,
    BaselineAdmin = "BaselineAdminNetworkPolicy.policy.networking.k8s.io" Cluster,
    Cluster = "ClusterNetworkPolicy.policy.networking.k8s.io" Cluster,
    Cilium = "CiliumNetworkPolicy.cilium.io" Namespace,
    CiliumClusterwide = "CiliumClusterwideNetworkPolicy.cilium.io" Cluster,
    Calico = "NetworkPolicy.projectcalico.org" Namespace,
    CalicoGlobal = "GlobalNetworkPolicy.projectcalico.org" Cluster,
    CalicoStored = "NetworkPolicy.crd.projectcalico.org" Namespace,
    CalicoGlobalStored = "GlobalNetworkPolicy.crd.projectcalico.org" Cluster,
    Antrea = "NetworkPolicy.crd.antrea.io" Namespace,
    AntreaCluster = "ClusterNetworkPolicy.crd.antrea.io" Cluster,
    Istio = "AuthorizationPolicy.security.istio.io" Namespace,
    Linkerd = "AuthorizationPolicy.policy.linkerd.io" Namespace,
}

impl ForeignKind {
    /// The kind of a document, in any version of its group.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let (group, _) = api_version.split_once('/')?;
        Self::ALL.iter().copied().find(|known| known.name().split_once('.') == Some((kind, group)))
    }

    /// Whether its objects are of a namespace.
    pub fn is_namespaced(self) -> bool {
        self.reach() == Reach::Namespace
    }
}

impl Serialize for ForeignKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for ForeignKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let known = Self::ALL.iter().copied().find(|kind| kind.name() == text);
        known.ok_or_else(|| de::Error::unknown_variant(&text, Self::NAMES))
    }
}

impl JsonSchema for ForeignKind {
    fn schema_name() -> Cow<'static, str> {
        "ForeignKind".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "enum": Self::NAMES })
    }
}

/// An object of such a kind.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ForeignObject {
    /// Its kind.
    pub kind: ForeignKind,
    /// Its namespace, empty for one of the whole cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ForeignObject {
    /// Whether it may be about workloads of a namespace.
    pub fn is_about(&self, namespace: &str) -> bool {
        !self.kind.is_namespaced() || self.namespace == namespace
    }
}

impl std::fmt::Display for ForeignObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind.name(), self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind.name(), self.name),
        }
    }
}

/// Stages above observe that were in force: what no object may take away.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Raised {
    /// Of namespaces.
    pub namespaces: BTreeMap<String, Stage>,
    /// The highest of workloads that their own label raised, by namespace.
    pub workloads: BTreeMap<String, Stage>,
}

/// Namespaces that are not there any more are remembered as long as there are no more of them: they may come back.
const MAX_GONE: usize = 1_024;

impl Raised {
    /// Takes the stages that are in force now. Only a namespace that is there and asks for no more than observe is forgotten: a
    /// document that is missing in one reading, or pods that are not there for a while, are no change of mind.
    pub fn follow(&mut self, world: &World) {
        for (namespace, stage) in world.namespaces() {
            if stage.meshed() {
                self.namespaces.insert(namespace.to_owned(), stage);
            } else {
                self.namespaces.remove(namespace);
            }
        }
        for workload in world.workloads().filter(|workload| workload.stage.meshed()) {
            let (namespace, of) = (&workload.namespace, world.namespace_stage(&workload.namespace));
            if of.meshed() && !self.namespaces.contains_key(namespace) {
                self.namespaces.insert(namespace.clone(), of);
            }
            if workload.stage > of {
                let known = self.workloads.entry(namespace.clone()).or_default();
                *known = workload.stage.max(*known);
            }
        }
        let there: BTreeSet<&str> = world.namespaces().map(|(name, _)| name).collect();
        for all in [&mut self.namespaces, &mut self.workloads] {
            let gone: Vec<String> = all.keys().filter(|name| !there.contains(name.as_str())).cloned().collect();
            for name in gone.iter().skip(MAX_GONE) {
                all.remove(name);
            }
        }
    }
}

/// How high labels may raise namespaces and workloads.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Gates {
    /// Of namespaces that an object is about: their own stage, and that of their workloads.
    by_name: BTreeMap<String, [Stage; 2]>,
    /// An object is about all others, too.
    others: bool,
}

impl Gates {
    /// What objects that are not accepted leave, after these stages were in force.
    pub fn of<'a>(objects: impl IntoIterator<Item = &'a ForeignObject>, before: &Raised) -> Self {
        let had = |all: &BTreeMap<String, Stage>, name: &str| all.get(name).copied().unwrap_or_default();
        let most = |name: &str| {
            let own = had(&before.namespaces, name).max(Stage::Observe);
            [own, had(&before.workloads, name).max(own)]
        };
        let mut gates = Self::default();
        for object in objects {
            if object.kind.is_namespaced() {
                gates.by_name.entry(object.namespace.clone()).or_insert_with(|| most(&object.namespace));
            } else if !gates.others {
                gates.others = true;
                let known = before.namespaces.keys().chain(before.workloads.keys());
                gates.by_name.extend(known.map(|name| (name.clone(), most(name))));
            }
        }
        gates
    }

    fn most(&self, namespace: &str) -> Option<[Stage; 2]> {
        let others = self.others.then_some([Stage::Observe; 2]);
        self.by_name.get(namespace).copied().or(others)
    }

    /// The stage that a namespace has whose label asks for one.
    pub fn namespace(&self, name: &str, wanted: Stage) -> Stage {
        self.most(name).map_or(wanted, |[own, _]| wanted.min(own))
    }

    /// The same of a workload of it.
    pub fn workload(&self, namespace: &str, wanted: Stage) -> Stage {
        self.most(namespace).map_or(wanted, |[_, workloads]| wanted.min(workloads))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: ForeignKind, namespace: &str) -> ForeignObject {
        ForeignObject { kind, namespace: namespace.into(), name: "x".into() }
    }

    #[test]
    fn kinds_are_known_in_every_version_of_their_group() {
        assert_eq!(ForeignKind::of("cilium.io/v2", "CiliumNetworkPolicy"), Some(ForeignKind::Cilium));
        assert_eq!(ForeignKind::of("cilium.io/v2alpha1", "CiliumNetworkPolicy"), Some(ForeignKind::Cilium));
        assert_eq!(ForeignKind::of("projectcalico.org/v3", "NetworkPolicy"), Some(ForeignKind::Calico));
        assert_eq!(ForeignKind::of("networking.k8s.io/v1", "NetworkPolicy"), None);
        assert_eq!(ForeignKind::of("v1", "NetworkPolicy"), None);
    }

    #[test]
    fn nobody_is_raised_and_nobody_is_lowered() {
        use Stage::{Observe, Off, Permissive, Strict};
        let namespaces = BTreeMap::from([("old".to_owned(), Permissive), ("top".to_owned(), Strict)]);
        let before = Raised { namespaces, workloads: BTreeMap::from([("pods".to_owned(), Strict)]) };
        let gates = |objects: &[ForeignObject]| Gates::of(objects, &before);
        let own = gates(&["new", "old", "pods"].map(|namespace| object(ForeignKind::Cilium, namespace)));
        for (namespace, wanted, has, workload) in [
            ("new", Off, Off, Off),
            ("new", Observe, Observe, Observe),
            ("new", Permissive, Observe, Observe),
            ("new", Strict, Observe, Observe),
            ("old", Strict, Permissive, Permissive),
            ("old", Permissive, Permissive, Permissive),
            ("old", Observe, Observe, Observe),
            ("pods", Strict, Observe, Strict),
            ("top", Strict, Strict, Strict),
            ("other", Strict, Strict, Strict),
        ] {
            let found = (own.namespace(namespace, wanted), own.workload(namespace, wanted));
            assert_eq!(found, (has, workload), "{namespace} {wanted:?}");
        }
        let all = gates(&[object(ForeignKind::CalicoGlobal, "")]);
        for (namespace, has) in [("new", Observe), ("old", Permissive), ("top", Strict)] {
            assert_eq!(all.namespace(namespace, Strict), has, "{namespace}");
        }
        assert_eq!(gates(&[]).namespace("new", Strict), Strict);
    }
}
