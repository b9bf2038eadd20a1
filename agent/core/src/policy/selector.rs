//! Whom a subject or a peer means: conditions on a workload, networks, entities.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::object::Entity;
use crate::model::Workload;
use crate::principal::Principal;

/// Labels, of a namespace or a pod.
pub type Labels = BTreeMap<String, String>;

/// One condition on labels (`matchExpressions` of Kubernetes' LabelSelector; `matchLabels` are [`Self::In`] of one value).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Requirement {
    /// The label is there with one of these values.
    In(String, Vec<String>),
    /// The label is not there, or with another value.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is not there.
    DoesNotExist(String),
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In(key, values) if values.len() == 1 => write!(f, "{key}={}", values.concat()),
            Self::In(key, values) => write!(f, "{key} in ({})", values.join(", ")),
            Self::NotIn(key, values) => write!(f, "{key} not in ({})", values.join(", ")),
            Self::Exists(key) => write!(f, "a label {key}"),
            Self::DoesNotExist(key) => write!(f, "no label {key}"),
        }
    }
}

impl Requirement {
    /// The label that it looks at.
    pub fn key(&self) -> &str {
        let (Self::In(key, _) | Self::NotIn(key, _) | Self::Exists(key) | Self::DoesNotExist(key)) = self;
        key
    }

    /// Whether it is so of these labels.
    pub fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}

/// Conditions on a workload, which all have to hold; without any, every workload.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Selector {
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its namespace's labels.
    pub namespace_labels: Vec<Requirement>,
    /// Its own labels.
    pub labels: Vec<Requirement>,
    /// Its service account.
    pub service_account: Option<String>,
    /// Its SPIFFE ID.
    pub principal: Option<Principal>,
}

/// A workload, with what only its namespace has.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// The workload.
    pub workload: &'a Workload,
    /// Labels of its namespace.
    pub namespace_labels: &'a Labels,
}

impl Selector {
    /// Whether it means this workload.
    pub fn means(&self, member: Member<'_>) -> bool {
        let Member { workload, namespace_labels } = member;
        self.namespace.as_ref().is_none_or(|name| *name == workload.namespace)
            && self.service_account.as_ref().is_none_or(|name| *name == workload.service_account)
            && self.principal.as_ref().is_none_or(|principal| *principal == workload.principal)
            && self.namespace_labels.iter().all(|requirement| requirement.holds(namespace_labels))
            && self.labels.iter().all(|requirement| requirement.holds(&workload.labels))
    }
}

/// A network, but for parts of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Block {
    /// The network.
    pub net: IpNet,
    /// Parts of it that are not meant.
    pub except: Vec<IpNet>,
}

impl Block {
    /// Whether the address is meant.
    pub fn has(&self, ip: IpAddr) -> bool {
        self.net.contains(&ip) && !self.except.iter().any(|except| except.contains(&ip))
    }
}

/// One peer of a rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Who {
    /// Workloads.
    Workload(Selector),
    /// Addresses.
    Block(Block),
    /// Not a workload.
    Entity(Entity),
}

/// The other end of a flow, as one side sees it.
#[derive(Clone, Debug)]
pub struct Peer<'a> {
    /// Its address.
    pub ip: IpAddr,
    /// Whose address it is.
    pub member: Option<Member<'a>>,
    /// What else is known of it. Nothing, if it is a workload.
    pub entities: Vec<Entity>,
}
