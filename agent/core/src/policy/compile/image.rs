//! The maps' contents.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;

use ipnet::IpNet;
use kumiko_abi::policy::{
    CELLS_LEN, CHUNK_PORTS, CHUNKS_LEN, COLUMNS_LEN, Cell, Chunk, Maps, NETS_LEN, NO_SET, ROWS_LEN, Row, SETS_LEN, Set,
    TABLE_CHUNKS, UNKNOWN_CLASS,
};

use super::columns::Columns;
use super::{Compiled, TooComplex, Verdict, reason};
use crate::manifest::Protocol;

/// Contents of the maps that hold verdicts; what is equal stands in them once.
///
/// Of each array, even epochs have the first half and odd ones the second: what is in force is never written over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// The epoch that it is for.
    pub epoch: u32,
    /// `SETS`.
    pub sets: Vec<Set>,
    /// `ROWS`.
    pub rows: Vec<Row>,
    /// `CHUNKS`.
    pub chunks: Vec<u32>,
    /// `COLUMNS`.
    pub columns: Vec<Chunk>,
    /// `CELLS`.
    pub cells: Vec<Cell>,
    /// Class of the node's own processes.
    pub host: u32,
    /// Classes of workloads' and nodes' addresses.
    pub addrs: BTreeMap<IpAddr, u32>,
    /// Classes of all other addresses, by the longest network that has them.
    pub nets: BTreeMap<IpNet, u32>,
    /// Sets of the endpoints, by UID.
    pub ends: BTreeMap<String, u32>,
}

/// Values in which equal runs stand once.
struct Slab<T> {
    base: u32,
    values: Vec<T>,
    begins: HashMap<Vec<T>, u32>,
}

impl<T: Clone + Eq + Hash> Slab<T> {
    fn new(base: u32) -> Self {
        Self { base, values: Vec::new(), begins: HashMap::new() }
    }

    /// Where a run begins.
    fn place(&mut self, run: Vec<T>) -> u32 {
        if let Some(begin) = self.begins.get(&run) {
            return *begin;
        }
        let begin = self.base.saturating_add(number(self.values.len()));
        self.values.extend(run.iter().cloned());
        self.begins.insert(run, begin);
        begin
    }

    /// All values, unless there are more than an array's half of `len`.
    fn finish(self, of: &'static str, len: u32) -> Result<Vec<T>, TooComplex> {
        let (need, room) = (self.values.len(), (len / 2) as usize);
        if need > room { Err(TooComplex::Room { of, need, room }) } else { Ok(self.values) }
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

impl Image {
    /// Of verdicts, for an epoch; `booted` is the second since 1970 at which the clock of [`Cell::not_after`] began.
    ///
    /// # Errors
    /// More than the arrays hold.
    pub fn of(compiled: &Compiled, booted: i64, epoch: u32) -> Result<Self, TooComplex> {
        let mut rows = Slab::new(begin(ROWS_LEN, epoch));
        let mut chunks = Slab::new(begin(CHUNKS_LEN, epoch));
        let mut columns = Slab::new(begin(COLUMNS_LEN, epoch));
        let mut cells = Slab::new(begin(CELLS_LEN, epoch));
        // [`NO_SET`] is the first of the first half.
        let mut sets = Slab { base: begin(SETS_LEN, epoch), values: vec![Set::default()], begins: HashMap::new() };
        let mut numbers = Vec::new();
        for set in &compiled.sets {
            let [ingress, egress] = [0, 1].map(|direction| {
                let lines = set.lines.get(direction).into_iter().flatten();
                let lines: Vec<u32> = lines.map(|line| cells.place(line_cells(line, booted))).collect();
                let rows = set.rows.get(direction).into_iter().flatten();
                rows.map(|row| lines.get(*row as usize).copied().unwrap_or_default()).collect::<Vec<u32>>()
            });
            let both = ingress.into_iter().zip(egress).map(|(ingress, egress)| Row { ingress, egress });
            let [ingress, egress] = &set.columns;
            let tables =
                [(ingress, Protocol::Tcp), (ingress, Protocol::Udp), (egress, Protocol::Tcp), (egress, Protocol::Udp)];
            let tables = tables.map(|(of, protocol)| {
                let table = table(of, protocol).into_iter().map(|chunk| columns.place(vec![chunk])).collect();
                chunks.place(table)
            });
            let set = Set { rows: rows.place(both.collect()), classes: compiled.classes, tables };
            numbers.push(sets.place(vec![set]));
        }
        if compiled.nets.len() > NETS_LEN as usize {
            return Err(TooComplex::Room { of: "networks", need: compiled.nets.len(), room: NETS_LEN as usize });
        }
        let number = |set: &usize| numbers.get(*set).copied().unwrap_or(NO_SET);
        Ok(Self {
            epoch,
            sets: sets.finish("sets", SETS_LEN)?,
            rows: rows.finish("rows", ROWS_LEN)?,
            chunks: chunks.finish("chunks of port tables", CHUNKS_LEN)?,
            columns: columns.finish("distinct chunks of port tables", COLUMNS_LEN)?,
            cells: cells.finish("cells", CELLS_LEN)?,
            host: compiled.host,
            addrs: compiled.addrs.clone(),
            nets: compiled.nets.clone(),
            ends: compiled.ends.iter().map(|(uid, set)| (uid.clone(), number(set))).collect(),
        })
    }

    /// Where its elements begin in an array of `len`.
    pub const fn begin(&self, len: u32) -> u32 {
        begin(len, self.epoch)
    }

    fn at<T: Copy>(&self, of: &[T], len: u32, at: u32) -> Option<T> {
        of.get(at.checked_sub(self.begin(len))? as usize).copied()
    }

    /// The class of an address.
    pub fn class(&self, ip: IpAddr) -> u32 {
        let longest = || {
            let nets = self.nets.iter().filter(|(net, _)| net.contains(&ip));
            nets.max_by_key(|(net, _)| net.prefix_len()).map(|(_, class)| *class)
        };
        self.addrs.get(&ip).copied().or_else(longest).unwrap_or(UNKNOWN_CLASS)
    }
}

fn line_cells(line: &[[Verdict; 2]], booted: i64) -> Vec<Cell> {
    line.iter().flatten().map(|verdict| cell(verdict, booted)).collect()
}

fn cell(verdict: &Verdict, booted: i64) -> Cell {
    let why_not = |term| u8::try_from(reason(term) as u16).unwrap_or(u8::MAX);
    let mut cell = Cell { revoke: verdict.revoke, why: verdict.why, ..Cell::default() };
    for (at, (reason, refusal)) in cell.reasons.iter_mut().zip(verdict.refusals).enumerate() {
        match refusal {
            Some(term) => *reason = why_not(term),
            None => cell.allows |= 1 << at,
        }
    }
    if let Some((at, term)) = verdict.until {
        // 0 would be for good.
        cell.not_after = u32::try_from(at.saturating_sub(booted).max(1)).unwrap_or(u32::MAX);
        let [enforced, ..] = &mut cell.reasons;
        *enforced = why_not(term);
    }
    cell
}

/// Where the elements of an epoch begin in an array.
const fn begin(len: u32, epoch: u32) -> u32 {
    if epoch.is_multiple_of(2) { 0 } else { len / 2 }
}

/// The columns of all ports of a protocol.
fn table(columns: &Columns, protocol: Protocol) -> Vec<Chunk> {
    let mut ranges = columns.ranges(protocol).iter().copied().peekable();
    let mut column = 0;
    let mut chunk = |chunk: u32| {
        let first = chunk * CHUNK_PORTS;
        let mut bytes = [column; CHUNK_PORTS as usize];
        while let Some((port, next)) = ranges.next_if(|(port, _)| u32::from(*port) < first + CHUNK_PORTS) {
            column = next;
            let rest = u32::from(port).saturating_sub(first) as usize;
            bytes.get_mut(rest..).unwrap_or_default().fill(column);
        }
        Chunk(bytes)
    };
    (0..TABLE_CHUNKS).map(&mut chunk).collect()
}

impl Maps for Image {
    fn set(&self, at: u32) -> Option<Set> {
        self.at(&self.sets, SETS_LEN, at)
    }

    fn row(&self, at: u32) -> Option<Row> {
        self.at(&self.rows, ROWS_LEN, at)
    }

    fn chunk(&self, at: u32) -> Option<u32> {
        self.at(&self.chunks, CHUNKS_LEN, at)
    }

    fn column(&self, chunk: u32, port: u32) -> Option<u8> {
        self.at(&self.columns, COLUMNS_LEN, chunk)?.0.get(port as usize).copied()
    }

    fn cell(&self, at: u32) -> Option<Cell> {
        self.at(&self.cells, CELLS_LEN, at)
    }
}
