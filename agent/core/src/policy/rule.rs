//! Objects of all kinds in one form, which the verdict is made from.

use std::fmt;

use k8s_openapi::jiff::Timestamp;

use super::object::{Mode, OnRevoke};
use super::port::{Asked, Ports};
use super::selector::{Peer, Selector, Who};
use crate::model::Workload;

/// Which way a flow goes, seen from the end that is judged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs, reason = "each variant is named after what it is")]
pub enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    /// As the other end sees the flow.
    pub const fn opposite(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// What a rule is part of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum List {
    /// A baseline's `deny`.
    Deny,
    /// A baseline's `allow`: its ceiling.
    Ceiling,
    /// A baseline's `guarantee`.
    Guarantee,
    /// A MeshPolicy's.
    Team,
    /// A NetworkPolicy's: an address is enough, and networks mean workloads, too.
    Kubernetes,
}

impl List {
    /// Whether the platform alone may widen or narrow what its rules mean: they choose by nothing that a team writes.
    pub const fn is_platforms(self) -> bool {
        matches!(self, Self::Deny | Self::Ceiling | Self::Guarantee)
    }
}

/// Kinds of objects that decide.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs, reason = "each variant is named after the kind")]
pub enum ObjectKind {
    MeshBaseline,
    MeshPolicy,
    MeshException,
    NetworkPolicy,
}

impl ObjectKind {
    /// Its name in manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MeshBaseline => "MeshBaseline",
            Self::MeshPolicy => "MeshPolicy",
            Self::MeshException => "MeshException",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }
}

/// An object's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectId {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its namespace; empty for those of the whole cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        f.write_str(kind.name())?;
        if namespace.is_empty() { write!(f, "/{name}") } else { write!(f, "/{namespace}/{name}") }
    }
}

/// One rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Its name in its list; NetworkPolicies have none, so theirs is its place, from 0.
    pub name: String,
    /// Of which list.
    pub list: List,
    /// Whom it is about; `None`: anybody.
    pub peers: Option<Vec<Who>>,
    /// On which ports; `None`: any.
    pub ports: Option<Vec<Ports>>,
    /// An address is enough.
    pub unauthenticated: bool,
}

impl Rule {
    /// Where it stands in its object: `ingress.deny.no-dev`.
    pub fn path(&self, direction: Direction) -> String {
        match self.list {
            List::Deny => format!("{direction}.deny.{}", self.name),
            List::Ceiling => format!("{direction}.allow.{}", self.name),
            List::Guarantee => format!("{direction}.guarantee.{}", self.name),
            List::Team => format!("{direction}.{}", self.name),
            List::Kubernetes => format!("{direction}[{}]", self.name),
        }
    }
}

/// How a rule matches a flow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Match {
    /// Not.
    No,
    /// If the peer is who its address says.
    IfProved,
    /// Whoever says so: it names no identity.
    Anyhow,
}

impl Rule {
    /// Whether it is about this peer and port. An address of a workload is that workload's: to allow, networks mean the
    /// others only.
    pub fn matches(&self, peer: &Peer<'_>, asked: Asked, destination: Option<&Workload>) -> Match {
        let on_port = self.ports.as_ref().is_none_or(|ports| ports.iter().any(|port| port.mean(asked, destination)));
        if !on_port {
            return Match::No;
        }
        let Some(peers) = &self.peers else { return Match::Anyhow };
        peers.iter().map(|who| self.is(who, peer)).max().unwrap_or(Match::No)
    }

    fn is(&self, who: &Who, peer: &Peer<'_>) -> Match {
        match who {
            Who::Workload(selector) if peer.member.is_some_and(|member| selector.means(member)) => {
                if self.unauthenticated { Match::Anyhow } else { Match::IfProved }
            }
            Who::Block(block) => {
                let counts = peer.member.is_none() || matches!(self.list, List::Deny | List::Kubernetes);
                if counts && block.has(peer.ip) { Match::Anyhow } else { Match::No }
            }
            Who::Entity(entity) if peer.entities.contains(entity) => Match::Anyhow,
            Who::Workload(_) | Who::Entity(_) => Match::No,
        }
    }

    /// Whether it lets in a peer that only its address speaks for.
    pub fn takes_unproved(&self, peer: &Peer<'_>, asked: Asked, destination: Option<&Workload>) -> bool {
        let names_no_identity = self.peers.as_ref().is_some_and(|peers| {
            peers.iter().any(|who| !matches!(who, Who::Workload(_)) && self.is(who, peer) == Match::Anyhow)
        });
        self.matches(peer, asked, destination) != Match::No && (self.unauthenticated || names_no_identity)
    }
}

/// What an object says about one direction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// Its rules, as they stand.
    pub rules: Vec<Rule>,
    /// A baseline has a ceiling, be it an empty one.
    pub ceiling: bool,
}

impl Rules {
    /// Rules of some lists.
    pub fn of(&self, lists: &[List]) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|rule| lists.contains(&rule.list))
    }
}

/// A baseline or policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    /// Its name.
    pub id: ObjectId,
    /// Whether it decides.
    pub mode: Mode,
    /// Names of policies of its namespace that it takes the place of, in audit.
    pub replaces: Vec<String>,
    /// What becomes of what is open.
    pub on_revoke: OnRevoke,
    /// A baseline cuts what it denies also of what is older than its pod's enrolment.
    pub cut_legacy: bool,
    /// Whom it is about.
    pub subject: Selector,
    /// What may come in; `None`: it does not say.
    pub ingress: Option<Rules>,
    /// Where to go; `None`: it does not say.
    pub egress: Option<Rules>,
    /// It never was valid, or is held back: it selects, and none of its rules is known.
    pub invalid: bool,
}

impl Object {
    /// The same without any rule: whom it selects is refused what no other one allows.
    pub fn closed(&self) -> Self {
        let none = |rules: &Option<Rules>| rules.as_ref().map(|_| Rules::default());
        let (ingress, egress) = (none(&self.ingress), none(&self.egress));
        Self { ingress, egress, replaces: Vec::new(), invalid: true, ..self.clone() }
    }

    /// What it says about a direction.
    pub fn rules(&self, direction: Direction) -> Option<&Rules> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

/// What an exception suspends.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Suspended {
    /// Name of the baseline.
    pub baseline: String,
    /// Of which direction.
    pub direction: Direction,
    /// A deny rule's name; `None`: the ceiling.
    pub deny: Option<String>,
}

/// An exception.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Its name.
    pub name: String,
    /// What does not hold.
    pub suspends: Vec<Suspended>,
    /// For whom.
    pub subject: Selector,
    /// Towards whom, on which ports; it is matched as an allow rule is.
    pub rule: Rule,
    /// Who answers for it.
    pub owner: String,
    /// When it ends.
    pub expires: Timestamp,
    /// What becomes of what is open then.
    pub on_expiry: OnRevoke,
}

impl Exception {
    /// Its name among objects of other kinds.
    pub fn id(&self) -> ObjectId {
        ObjectId { kind: ObjectKind::MeshException, namespace: String::new(), name: self.name.clone() }
    }

    /// Whether it has not ended, at a moment (seconds since 1970).
    pub fn lives(&self, now: i64) -> bool {
        self.expires.as_second() > now
    }
}

impl Suspended {
    /// Whether it is a part of this baseline.
    pub fn is_of(&self, baseline: &Object) -> bool {
        baseline.id.kind == ObjectKind::MeshBaseline && self.baseline == baseline.id.name
    }
}

impl fmt::Display for Suspended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.deny {
            Some(name) => write!(f, "{}.deny.{name}", self.direction),
            None => write!(f, "{}.allow", self.direction),
        }
    }
}
