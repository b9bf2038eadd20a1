//! From objects and workloads to the verdicts of one node's endpoints, as the kernel looks them up
//! ([`kumiko_abi::policy`]).
//!
//! An address has a *class*: everything that the rules of this node's endpoints ask about a peer. An endpoint has a *set*,
//! which it shares with all that the same rules select. A set has a *row* for each class in each direction, and a *column*
//! for each group of ports that no rule tells apart. What no local endpoint asks costs nothing here, and a verdict comes
//! from [`super::judge`], the one evaluator.

mod columns;
mod facts;
mod image;
mod rows;
mod sizes;

pub use image::Image;
pub use sizes::Size;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kumiko_abi::policy::{MAX_COLUMNS, UNKNOWN_CLASS};
use kumiko_abi::{Reason, Stage};
use thiserror::Error;

use super::judge::{self, Policies, Term};
use super::port::Ports;
use super::rule::{Direction, ObjectId};
use super::verdict::Evaluator;
use crate::manifest::Protocol;
use crate::model::Workload;

use columns::Columns;
use facts::Facts;
use rows::Rows;

/// Verdicts of a node's endpoints.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Compiled {
    /// How many classes there are; [`kumiko_abi::policy::UNKNOWN_CLASS`] is the first.
    pub classes: u32,
    /// Class of the node's own processes.
    pub host: u32,
    /// Classes of workloads' and nodes' addresses.
    pub addrs: BTreeMap<IpAddr, u32>,
    /// Classes of all other addresses, by the longest network that has them.
    pub nets: BTreeMap<IpNet, u32>,
    /// Sets of the endpoints by UID: indexes into `sets`.
    pub ends: BTreeMap<String, usize>,
    /// Sets.
    pub sets: Vec<Set>,
    /// What decided, by [`Verdict::why`].
    pub whys: Vec<Why>,
}

/// What endpoints with the same rules share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// Objects that speak about them, in their order.
    pub objects: Vec<ObjectId>,
    /// Columns of the ports.
    columns: [Columns; 2],
    /// Rows by class, indexes into `lines`.
    rows: [Vec<u32>; 2],
    /// Distinct rows: by column, claimed and proved.
    lines: [Vec<Vec<[Verdict; 2]>>; 2],
}

/// A verdict about one end; see [`kumiko_abi::policy::Cell`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Verdict {
    /// By view: why not.
    pub refusals: [Option<Term>; 3],
    /// Seconds since 1970 from which what is enforced allows it no more, and why not.
    pub until: Option<(i64, Term)>,
    /// What becomes of a flow that it does not allow, or no more.
    pub revoke: u32,
    /// What decided: an index of [`Compiled::whys`].
    pub why: u32,
}

/// What decided, by view: the objects that made the deciding term what it is, with their rules.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Why(pub [Vec<(ObjectId, Option<String>)>; 3]);

/// The reason that stands for a term which refuses.
pub const fn reason(term: Term) -> Reason {
    match term {
        Term::Deny => Reason::BaselineDenied,
        Term::Ceiling => Reason::AboveCeiling,
        Term::NetworkPolicy => Reason::NetworkPolicyDefault,
        Term::Team => Reason::TeamDefault,
        Term::Proof => Reason::PeerUnproved,
    }
}

/// More than the maps hold: what was in force stays so.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum TooComplex {
    /// Of the maps' elements.
    #[error(
        "the rules of this node's workloads take {need} {of}, and {room} are the most: choose peers by namespace or \
         service account instead of labels that each pod has alone"
    )]
    Room {
        /// What of.
        of: &'static str,
        /// How many it takes.
        need: usize,
        /// How many there are.
        room: usize,
    },
    /// Of ports.
    #[error(
        "rules about {of} ({direction}) tell {columns} groups of ports apart, and {MAX_COLUMNS} are the most: use ranges"
    )]
    Columns {
        /// A workload.
        of: String,
        /// Which way.
        direction: Direction,
        /// Groups of ports.
        columns: usize,
    },
}

/// What makes a set: who has the same has the same verdicts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key {
    objects: Vec<ObjectId>,
    exceptions: Vec<String>,
    lenient: bool,
    /// What rules about it call its ports.
    named: Vec<(Protocol, String, u16)>,
    /// Where it is probed.
    probed: Vec<(Protocol, u16)>,
}

/// A set on its way.
struct Group {
    /// One of its endpoints: any stands for all.
    subject: Arc<Workload>,
    policies: Policies,
}

/// Verdicts of a node's endpoints at a moment (seconds since 1970). The same input gives the same output.
///
/// # Errors
/// More than the maps hold.
pub fn compile(evaluator: &Evaluator<'_>, node: &str, now: i64) -> Result<Compiled, TooComplex> {
    let mut groups: BTreeMap<Key, Group> = BTreeMap::new();
    let mut members: BTreeMap<String, Key> = BTreeMap::new();
    for workload in evaluator.world.workloads_on(node).filter(|workload| workload.stage != Stage::Off) {
        let policies = evaluator.policies.about_subject(evaluator.member(workload));
        let key = key(workload, &policies);
        members.insert(workload.uid.clone(), key.clone());
        groups.entry(key).or_insert_with(|| Group { subject: workload.clone(), policies });
    }
    let facts = Facts::of(groups.values().map(|group| &group.policies));
    let classes = facts.classify(evaluator, node);
    let mut rows = Rows { evaluator, now, whys: BTreeMap::new() };
    let mut sets = Vec::new();
    for (key, group) in &groups {
        sets.push(rows.set(key, group, &facts, &classes)?);
    }
    let numbers: BTreeMap<&Key, usize> = groups.keys().zip(0..).collect();
    let ends = members.iter().filter_map(|(uid, key)| Some((uid.clone(), *numbers.get(key)?))).collect();
    let mut whys: Vec<(Why, u32)> = rows.whys.into_iter().collect();
    whys.sort_by_key(|(_, number)| *number);
    let whys = whys.into_iter().map(|(why, _)| why).collect();
    let count = u32::try_from(classes.peers.len()).unwrap_or(u32::MAX);
    let own = evaluator.world.node(node).and_then(|node| node.addresses.first());
    let host = own.and_then(|ip| classes.addrs.get(ip)).copied().unwrap_or(UNKNOWN_CLASS);
    Ok(Compiled { classes: count, host, addrs: classes.addrs, nets: classes.nets, ends, sets, whys })
}

fn key(workload: &Workload, policies: &Policies) -> Key {
    let asked: Vec<&Ports> = columns::ports(policies, Direction::Ingress).collect();
    let called = |port: &&crate::model::WorkloadPort| {
        asked.iter().any(
            |ports| matches!(ports, Ports::Named(protocol, name) if *protocol == port.protocol && *name == port.name),
        )
    };
    let mut named: Vec<_> =
        workload.ports.iter().filter(called).map(|port| (port.protocol, port.name.clone(), port.port)).collect();
    let mut probed: Vec<_> =
        workload.ports.iter().filter(|port| port.probe).map(|port| (port.protocol, port.port)).collect();
    named.sort();
    probed.sort();
    Key {
        objects: policies.objects().iter().map(|object| object.id.clone()).collect(),
        exceptions: policies.exceptions().iter().map(|exception| exception.name.clone()).collect(),
        lenient: judge::lenient(workload),
        named,
        probed,
    }
}
