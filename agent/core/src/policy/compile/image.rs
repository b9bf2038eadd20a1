//! The maps' contents.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;

use ipnet::IpNet;
use kumiko_abi::policy::{CHUNK_PORTS, Cell, Chunk, Maps, NO_SET, Row, Set, TABLE_CHUNKS, UNKNOWN_CLASS};

use super::columns::Columns;
use super::{Compiled, Verdict, reason};
use crate::manifest::Protocol;

/// Contents of the maps that hold verdicts; what is equal stands in them once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Image {
    /// `SETS`; none is [`NO_SET`].
    pub sets: Vec<Set>,
    /// `ROWS`.
    pub rows: Vec<Row>,
    /// `CHUNKS`.
    pub chunks: Vec<u32>,
    /// `COLUMNS`.
    pub columns: Vec<Chunk>,
    /// `CELLS`.
    pub cells: Vec<Cell>,
    /// Classes of workloads' and nodes' addresses.
    pub addrs: BTreeMap<IpAddr, u32>,
    /// Classes of all other addresses, by the longest network that has them.
    pub nets: BTreeMap<IpNet, u32>,
    /// Sets of the endpoints, by UID.
    pub ends: BTreeMap<String, u32>,
}

/// Values in which equal runs stand once.
struct Slab<T> {
    values: Vec<T>,
    begins: HashMap<Vec<T>, u32>,
}

impl<T: Clone + Eq + Hash> Slab<T> {
    fn new() -> Self {
        Self { values: Vec::new(), begins: HashMap::new() }
    }

    /// Where a run begins.
    fn place(&mut self, run: Vec<T>) -> u32 {
        if let Some(begin) = self.begins.get(&run) {
            return *begin;
        }
        let begin = number(self.values.len());
        self.values.extend(run.iter().cloned());
        self.begins.insert(run, begin);
        begin
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

impl Image {
    /// Of verdicts; `booted` is the second since 1970 at which the clock of [`Cell::not_after`] began.
    pub fn of(compiled: &Compiled, booted: i64) -> Self {
        let (mut rows, mut chunks, mut columns, mut cells) = (Slab::new(), Slab::new(), Slab::new(), Slab::new());
        let mut sets = vec![Set::default()];
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
            sets.push(Set { rows: rows.place(both.collect()), classes: compiled.classes, tables });
        }
        let ends = compiled.ends.iter().map(|(uid, set)| (uid.clone(), number(*set) + NO_SET + 1)).collect();
        let (rows, chunks) = (rows.values, chunks.values);
        let (columns, cells) = (columns.values, cells.values);
        Self { sets, rows, chunks, columns, cells, addrs: compiled.addrs.clone(), nets: compiled.nets.clone(), ends }
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

/// The columns of all ports of a protocol.
fn table(columns: &Columns, protocol: Protocol) -> Vec<Chunk> {
    let mut ranges = columns.ranges(protocol).iter().copied().peekable();
    let mut column = 0;
    let mut ports = 0..=u16::MAX;
    let mut chunk = || {
        let mut bytes = [0; CHUNK_PORTS as usize];
        for byte in &mut bytes {
            let port = ports.next().unwrap_or(u16::MAX);
            if let Some((_, next)) = ranges.next_if(|(first, _)| *first == port) {
                column = next;
            }
            *byte = column;
        }
        Chunk(bytes)
    };
    (0..TABLE_CHUNKS).map(|_| chunk()).collect()
}

impl Maps for Image {
    fn set(&self, at: u32) -> Option<Set> {
        self.sets.get(at as usize).copied()
    }

    fn row(&self, at: u32) -> Option<Row> {
        self.rows.get(at as usize).copied()
    }

    fn chunk(&self, at: u32) -> Option<u32> {
        self.chunks.get(at as usize).copied()
    }

    fn column(&self, chunk: u32, port: u32) -> Option<u8> {
        self.columns.get(chunk as usize)?.0.get(port as usize).copied()
    }

    fn cell(&self, at: u32) -> Option<Cell> {
        self.cells.get(at as usize).copied()
    }
}
