//! Policy that kumiko knows and cannot enforce: other products' kinds, which their own data path enforces, and capture goes past.
//!
//! What is not enforced must not be taken for enforced. So a namespace that such an object is about is not raised to permissive
//! or strict while the platform has not accepted its kind in `MeshSettings`. One that was raised before is never lowered:
//! whoever may write such an object could otherwise take a namespace out of the mesh.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kumiko_abi::Stage;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

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

/// The highest stages that namespaces may have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Gates {
    /// Of namespaces that an object is about.
    by_name: BTreeMap<String, Stage>,
    /// Of all others, if one is about any.
    others: Option<Stage>,
}

impl Gates {
    /// What objects that are not accepted leave, after these stages were in force: `before` by namespace, as far as they are
    /// above observe.
    pub fn of<'a>(objects: impl IntoIterator<Item = &'a ForeignObject>, before: &BTreeMap<String, Stage>) -> Self {
        let most = |namespace: &str| before.get(namespace).copied().unwrap_or_default().max(Stage::Observe);
        let mut gates = Self::default();
        for object in objects {
            if object.kind.is_namespaced() {
                gates.by_name.insert(object.namespace.clone(), most(&object.namespace));
            } else {
                gates.others = Some(Stage::Observe);
                gates.by_name.extend(before.keys().map(|namespace| (namespace.clone(), most(namespace))));
            }
        }
        gates
    }

    /// The stage that a namespace, or a workload of it, has instead of one that it would have.
    pub fn cap(&self, namespace: &str, wanted: Stage) -> Stage {
        self.by_name.get(namespace).copied().or(self.others).map_or(wanted, |most| wanted.min(most))
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
        let before = BTreeMap::from([("old".to_owned(), Permissive), ("top".to_owned(), Strict)]);
        let gates = |objects: &[ForeignObject]| Gates::of(objects, &before);
        let own = gates(&[object(ForeignKind::Cilium, "new"), object(ForeignKind::Cilium, "old")]);
        for (namespace, wanted, has) in [
            ("new", Off, Off),
            ("new", Observe, Observe),
            ("new", Permissive, Observe),
            ("new", Strict, Observe),
            ("old", Strict, Permissive),
            ("old", Permissive, Permissive),
            ("old", Observe, Observe),
            ("top", Strict, Strict),
            ("other", Strict, Strict),
        ] {
            assert_eq!(own.cap(namespace, wanted), has, "{namespace} {wanted:?}");
        }
        let all = gates(&[object(ForeignKind::CalicoGlobal, "")]);
        for (namespace, has) in [("new", Observe), ("old", Permissive), ("top", Strict)] {
            assert_eq!(all.cap(namespace, Strict), has, "{namespace}");
        }
        assert_eq!(gates(&[]).cap("new", Strict), Strict);
    }
}
