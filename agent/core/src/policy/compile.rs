//! From objects and workloads to the verdicts of one node's endpoints, as the kernel looks them up
//! ([`kumiko_abi::policy`]).
//!
//! An address has a *class*: everything that the rules of this node's endpoints ask about a peer. An endpoint has a *set*,
//! which it shares with all that the same rules select. A set has a *row* for each class in each direction, and a *column*
//! for each group of ports that no rule tells apart. What no local endpoint asks costs nothing here, and a verdict comes
//! from [`super::judge`], the one evaluator.

mod cells;
mod classes;
mod columns;
mod compiler;
mod facts;
mod image;
mod layout;
mod prefixes;
mod rows;
mod sizes;
mod subjects;

pub use compiler::Compiler;
pub use image::{Image, runs};
pub use layout::Layout;
pub use prefixes::Prefixes;
pub use sizes::Size;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use kumiko_abi::Reason;
use kumiko_abi::policy::MAX_COLUMNS;
use thiserror::Error;

use super::judge::Term;
use super::rule::{Direction, ObjectId};
use super::verdict::Evaluator;

use columns::Columns;

/// Verdicts of a node's endpoints.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Compiled {
    /// How many classes there are, those among them that nobody has; [`kumiko_abi::policy::UNKNOWN_CLASS`] is the first.
    pub classes: u32,
    /// Class of the node's own processes.
    pub host: u32,
    /// Classes of workloads' and nodes' addresses.
    pub addrs: Arc<BTreeMap<IpAddr, u32>>,
    /// Classes of all other addresses, by the longest network that has them.
    pub nets: Arc<Prefixes<u32>>,
    /// Sets of the endpoints by UID: indexes into `sets`.
    pub ends: BTreeMap<String, usize>,
    /// Sets.
    pub sets: Vec<Arc<Set>>,
    /// What decided, by [`Verdict::why`].
    pub whys: Arc<Vec<Why>>,
}

/// What endpoints with the same rules share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// The same from one compilation to the next.
    number: u32,
    /// Objects that speak about them, in their order.
    pub objects: Vec<ObjectId>,
    /// Columns of the ports.
    columns: [Arc<Columns>; 2],
    /// Lines by class, indexes into `lines`: what it does not tell apart has the same.
    kinds: Vec<u32>,
    lines: [Vec<Line>; 2],
}

/// Verdicts about one peer by column, claimed and proved.
type Line = Arc<[[Verdict; 2]]>;

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
        Term::Invalid => Reason::PolicyInvalid,
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
        "rules about {of} ({direction}) tell {columns} groups of ports apart or more, and {MAX_COLUMNS} are the most: use ranges"
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

/// Whether there is room for what is needed.
fn room(of: &'static str, need: usize, room: usize) -> Result<(), TooComplex> {
    if need > room { Err(TooComplex::Room { of, need, room }) } else { Ok(()) }
}

/// Verdicts of a node's endpoints at a moment (seconds since 1970). The same input gives the same output.
///
/// # Errors
/// More than the maps hold.
pub fn compile(evaluator: &Evaluator<'_>, node: &str, now: i64) -> Result<Compiled, TooComplex> {
    Compiler::new(node).compile(evaluator, now)
}
