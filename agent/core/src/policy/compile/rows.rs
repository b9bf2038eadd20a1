//! Sets on their way: which classes they tell apart, and what is said of each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use kumiko_abi::policy::UNKNOWN_CLASS;

use super::super::port;
use super::super::rule::Direction;
use super::super::verdict::{End, Evaluator};
use super::cells::{About, Judge};
use super::classes::Classes;
use super::columns::{Columns, PORTED};
use super::facts::{Asked, Signature};
use super::subjects::{Group, Key};
use super::{Line, Set, TooComplex};
use crate::manifest::Protocol;

/// A set, with all that is needed to follow a change. A *kind* is what it does not tell apart of classes.
#[derive(Debug)]
pub(super) struct SetState {
    group: Group,
    /// Which of its exceptions have not ended.
    lives: Vec<bool>,
    asked: Asked,
    /// Ports of its endpoints that are each one for itself.
    own: BTreeSet<(Protocol, u16)>,
    /// Ports that peers have under a name that is asked for.
    called: BTreeSet<u16>,
    numbers: BTreeMap<Signature, u32>,
    /// By kind: what is so of it, and how many classes are of it. Without any it is free.
    kinds: Vec<(Signature, usize)>,
    free: BTreeSet<u32>,
    /// Kinds that are yet to be judged.
    due: BTreeSet<u32>,
    /// A kind that nobody was of when it was judged.
    nobody: Option<u32>,
    made: Arc<Set>,
}

impl SetState {
    pub(super) fn new(number: u32, key: &Key, group: Group, asked: Asked, now: i64) -> Self {
        let probed = key.probed.iter().copied();
        let own = key.named.iter().map(|(protocol, _, port)| (*protocol, *port)).chain(probed).collect();
        let none = || Arc::new(Columns::default());
        let made = Set {
            number,
            objects: key.objects.clone(),
            columns: [none(), none()],
            kinds: Vec::new(),
            lines: [Vec::new(), Vec::new()],
        };
        Self {
            lives: lives(&group, now),
            group,
            asked,
            own,
            called: BTreeSet::new(),
            numbers: BTreeMap::new(),
            kinds: Vec::new(),
            free: BTreeSet::new(),
            due: BTreeSet::new(),
            nobody: None,
            made: Arc::new(made),
        }
    }

    pub(super) fn number(&self) -> u32 {
        self.made.number
    }

    pub(super) fn asked(&self) -> &Asked {
        &self.asked
    }

    pub(super) fn made(&self) -> Arc<Set> {
        self.made.clone()
    }

    /// Whether the same rules hold for these endpoints.
    pub(super) fn is_of(&self, group: &Group, now: i64) -> bool {
        self.group.policies == group.policies && self.lives == lives(group, now)
    }

    /// Who stands for its endpoints now.
    pub(super) fn subject(&mut self, group: Group) {
        self.group = group;
    }

    /// How many verdicts it has, of both proofs.
    pub(super) fn verdicts(&self) -> usize {
        let columns: usize = self.made.columns.iter().map(|columns| columns.ports.len()).sum();
        self.numbers.len().saturating_mul(columns).saturating_mul(2)
    }

    /// Whether any kind is yet to be judged.
    pub(super) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Follows the classes: of those that are `changed` something else is so than before.
    pub(super) fn classify(&mut self, classes: &Classes, changed: &BTreeSet<u32>) -> Result<(), TooComplex> {
        let begun = !self.made.kinds.is_empty();
        let mut of = self.made.kinds.clone();
        let nothing = Signature::default();
        let (mut named, mut left) = (false, Vec::new());
        let count = classes.len();
        left.extend(of.drain(count.min(of.len())..));
        let all = u32::try_from(count).unwrap_or(u32::MAX);
        let new = u32::try_from(of.len()).unwrap_or(u32::MAX)..all;
        for class in changed.iter().copied().filter(|class| *class < new.start).chain(new.clone()) {
            let signature = self.asked.of(classes.signature(class).unwrap_or(&nothing));
            named |= signature.named_ports().next().is_some();
            let kind = self.enter(signature);
            match of.get_mut(class as usize) {
                Some(of) => left.push(std::mem::replace(of, kind)),
                None => of.push(kind),
            }
        }
        for kind in left {
            named |= self.leave(kind);
        }
        // The class of who is unknown may be nobody's, and its kind with it.
        let unknown = of.get(UNKNOWN_CLASS as usize).copied().unwrap_or_default();
        let someone = (0_u32..).zip(&of).any(|(class, kind)| *kind == unknown && !classes.is_empty(class));
        if someone == (self.nobody == Some(unknown)) {
            self.nobody = None;
            self.due.insert(unknown);
        }
        if of != self.made.kinds {
            Arc::make_mut(&mut self.made).kinds = of;
        }
        if named || !begun {
            self.columns(begun)?;
        }
        Ok(())
    }

    fn enter(&mut self, signature: Signature) -> u32 {
        let kind = self.numbers.get(&signature).copied().unwrap_or_else(|| {
            let kind = self.free.pop_first().unwrap_or_else(|| {
                self.kinds.push(Default::default());
                u32::try_from(self.kinds.len().saturating_sub(1)).unwrap_or(u32::MAX)
            });
            self.numbers.insert(signature.clone(), kind);
            self.due.insert(kind);
            if let Some(place) = self.kinds.get_mut(kind as usize) {
                *place = (signature, 0);
            }
            kind
        });
        if let Some((_, classes)) = self.kinds.get_mut(kind as usize) {
            *classes += 1;
        }
        kind
    }

    /// Whether the last class of a kind left, and had ports that are asked for by name.
    fn leave(&mut self, kind: u32) -> bool {
        let Some((signature, classes)) = self.kinds.get_mut(kind as usize) else { return false };
        *classes = classes.saturating_sub(1);
        if *classes > 0 {
            return false;
        }
        let signature = std::mem::take(signature);
        self.numbers.remove(&signature);
        self.due.remove(&kind);
        self.free.insert(kind);
        self.nobody = self.nobody.filter(|nobody| *nobody != kind);
        signature.named_ports().next().is_some()
    }

    /// Groups the ports again, if peers call others by name than before.
    fn columns(&mut self, begun: bool) -> Result<(), TooComplex> {
        let called: BTreeSet<u16> = self.numbers.keys().flat_map(Signature::named_ports).collect();
        if begun && called == self.called {
            return Ok(());
        }
        let each = |port: &u16| PORTED.map(|protocol| (protocol, *port));
        let towards = called.iter().flat_map(each).collect();
        let of = |direction, own| {
            Columns::of(&self.group.policies, direction, own).map(Arc::new).map_err(|columns| TooComplex::Columns {
                of: format!("{}/{}", self.group.subject.namespace, self.group.subject.name),
                direction,
                columns,
            })
        };
        let columns = [of(Direction::Ingress, &self.own)?, of(Direction::Egress, &towards)?];
        Arc::make_mut(&mut self.made).columns = columns;
        self.called = called;
        self.due = self.numbers.values().copied().collect();
        Ok(())
    }

    /// Judges the kinds that are yet to be.
    pub(super) fn judge(&mut self, judge: &mut Judge, evaluator: &Evaluator<'_>, witnesses: &[Option<End>], now: i64) {
        let mut ends: BTreeMap<u32, &End> = BTreeMap::new();
        for (kind, end) in self.made.kinds.iter().zip(witnesses) {
            if let (true, Some(end)) = (self.due.contains(kind), end) {
                ends.entry(*kind).or_insert(end);
            }
        }
        // Nobody is of the kind: what is said of it is what is said of an unknown address.
        let nobody = End { ip: Ipv4Addr::UNSPECIFIED.into(), workload: None };
        let made = Arc::make_mut(&mut self.made);
        let columns = made.columns.clone();
        let about = About { evaluator, group: &self.group, now };
        let directions = [Direction::Ingress, Direction::Egress];
        for ((lines, columns), direction) in made.lines.iter_mut().zip(&columns).zip(directions) {
            lines.resize(self.kinds.len(), Line::default());
            self.free.iter().for_each(|kind| put(lines, *kind, Line::default()));
            for kind in &self.due {
                let end = ends.get(kind).copied().unwrap_or(&nobody);
                let of = |asked: &port::Asked| judge.both(&about, direction, end, *asked);
                put(lines, *kind, columns.ports.iter().map(of).collect());
            }
        }
        self.nobody = self.due.iter().find(|kind| !ends.contains_key(kind)).copied().or(self.nobody);
        self.due.clear();
    }
}

fn put(lines: &mut [Line], kind: u32, line: Line) {
    if let Some(place) = lines.get_mut(kind as usize) {
        *place = line;
    }
}

fn lives(group: &Group, now: i64) -> Vec<bool> {
    group.policies.exceptions().iter().map(|exception| exception.lives(now)).collect()
}
