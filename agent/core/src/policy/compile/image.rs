//! The maps' contents.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use kumiko_abi::policy::{
    CELLS_LEN, CHUNK_PORTS, CHUNKS_LEN, COLUMNS_LEN, Cell, Chunk, Maps, ROWS_LEN, Row, SETS_LEN, Set, TABLE_CHUNKS,
    UNKNOWN_CLASS,
};

use super::{Compiled, Layout, Prefixes, TooComplex, Verdict, reason};

/// Contents of the maps that hold verdicts; what is equal stands in them once.
///
/// Of each array, even epochs have the first half and odd ones the second: what is in force is never written over.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Image {
    /// The epoch that it is for.
    pub epoch: u32,
    /// `SETS`.
    pub sets: Arc<Vec<Set>>,
    /// `ROWS`.
    pub rows: Arc<Vec<Row>>,
    /// `CHUNKS`.
    pub chunks: Arc<Vec<u32>>,
    /// `COLUMNS`.
    pub columns: Arc<Vec<Chunk>>,
    /// `CELLS`.
    pub cells: Arc<Vec<Cell>>,
    /// Class of the node's own processes.
    pub host: u32,
    /// Classes of workloads' and nodes' addresses.
    pub addrs: Arc<BTreeMap<IpAddr, u32>>,
    /// Classes of all other addresses, by the longest network that has them.
    pub nets: Arc<Prefixes<u32>>,
    /// Sets of the endpoints, by UID.
    pub ends: BTreeMap<String, u32>,
}

/// Elements that may stand between two changes and are written with them: a call costs more.
const BETWEEN: usize = 8;

/// What of an array is to be written, with where it begins, if `before` is what stands there.
pub fn runs<'a, T: PartialEq>(before: &[T], now: &'a [T]) -> Vec<(u32, &'a [T])> {
    if std::ptr::eq(before, now) {
        return Vec::new();
    }
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (at, _) in now.iter().enumerate().filter(|(at, value)| before.get(*at) != Some(*value)) {
        match runs.last_mut() {
            Some(run) if run.end + BETWEEN >= at => run.end = at + 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs.into_iter().filter_map(|run| Some((u32::try_from(run.start).ok()?, now.get(run)?))).collect()
}

impl Image {
    /// Of verdicts, for an epoch, in places of its own; see [`Layout::image`].
    ///
    /// # Errors
    /// More than the arrays hold.
    pub fn of(compiled: &Compiled, booted: i64, epoch: u32) -> Result<Self, TooComplex> {
        Layout::default().image(compiled, booted, epoch)
    }

    /// Takes the arrays of another one of the same parity.
    pub(super) fn share(&mut self, other: &Self) {
        let Self { sets, rows, chunks, columns, cells, .. } = other.clone();
        *self = Self { sets, rows, chunks, columns, cells, ..std::mem::take(self) };
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
        let own = self.addrs.get(&ip).or_else(|| self.nets.of(ip).next());
        own.copied().unwrap_or(UNKNOWN_CLASS)
    }
}

pub(super) fn line_cells(line: &[[Verdict; 2]], booted: i64) -> Vec<Cell> {
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
pub(super) const fn begin(len: u32, epoch: u32) -> u32 {
    if epoch.is_multiple_of(2) { 0 } else { len / 2 }
}

/// The columns of all ports, of where ranges of them begin.
pub(super) fn table(ranges: &[(u16, u8)]) -> Vec<Chunk> {
    let mut ranges = ranges.iter().copied().peekable();
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
