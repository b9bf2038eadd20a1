//! Verdicts as the maps hold them, and the way from a question to its cell.
//!
//! ```text
//! set, class of the peer -> row, in each direction
//! set, direction, protocol, port -> column
//! row, column, proof -> cell
//! ```
//!
//! Nothing here depends on how many policies there are: five array elements are read, whatever is asked.

use core::mem::size_of;

/// Class of an address that nothing is known of and no rule names.
pub const UNKNOWN_CLASS: u32 = 0;
/// Set of an endpoint that no verdict is made for; sets of the others begin at 1.
pub const NO_SET: u32 = 0;
/// Ports of one [`Chunk`].
pub const CHUNK_PORTS: u32 = 64;
/// Chunks of one port table.
pub const TABLE_CHUNKS: u32 = 65_536 / CHUNK_PORTS;
/// Columns of a row, over both protocols.
pub const MAX_COLUMNS: u32 = 256;

/// Which verdict is meant: bits of [`Cell::allows`], places of [`Cell::reasons`].
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum View {
    /// By what is enforced.
    Enforced = 0,
    /// By what is enforced and what is in audit, without what that replaces.
    WithAudit = 1,
    /// By what is enforced, were the endpoint strict.
    Strict = 2,
}

impl View {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Enforced, Self::WithAudit, Self::Strict];
}

/// [`Cell::revoke`]: a flow that it no longer allows is reset at once. Other numbers are the seconds that it has left.
pub const REVOKE_CUT: u32 = 0;
/// [`Cell::revoke`]: a flow that it no longer allows goes on until it ends.
pub const REVOKE_KEEP: u32 = u32::MAX;

/// Value of `SETS`: what endpoints with the same rules share.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Set {
    /// First of its rows, one for each class.
    pub rows: u32,
    /// How many classes have one.
    pub classes: u32,
    /// First chunks of its port tables: TCP to it, UDP to it, TCP from it, UDP from it.
    pub tables: [u32; 4],
}

/// Value of `ROWS`: first cells of a peer's class, by direction.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Row {
    /// What the peer sends.
    pub ingress: u32,
    /// What the endpoint sends.
    pub egress: u32,
}

/// Value of `COLUMNS`: the column of each of 64 ports.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Chunk(pub [u8; CHUNK_PORTS as usize]);

/// Value of `CELLS`: a verdict.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Cell {
    /// One bit for each [`View`]: it allows.
    pub allows: u8,
    /// By [`View`]: number of the [`crate::Reason`] why not, 0 where it allows. Of one that allows for a time: why not
    /// then.
    pub reasons: [u8; 3],
    /// What becomes of a flow that was allowed before: [`REVOKE_CUT`], [`REVOKE_KEEP`] or seconds.
    pub revoke: u32,
    /// Second since the boot (`CLOCK_BOOTTIME`) from which it allows no more; 0: for good. The views but
    /// [`View::Enforced`] know no time.
    pub not_after: u32,
    /// The agent's number for what decided.
    pub why: u32,
}

impl Cell {
    /// Whether a view allows, at a second since the boot.
    #[inline(always)]
    pub const fn allows(&self, view: View, now: u32) -> bool {
        let in_time = self.not_after == 0 || now < self.not_after || !matches!(view, View::Enforced);
        self.allows & (1 << view as u8) != 0 && in_time
    }
}

/// A question about one end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// Set of the endpoint.
    pub set: u32,
    /// Class of its peer.
    pub class: u32,
    /// Whether the peer began the flow.
    pub ingress: bool,
    /// UDP, not TCP.
    pub udp: bool,
    /// Whether the peer is proved.
    pub proved: bool,
    /// The destination's port.
    pub port: u16,
}

/// The maps, however they are read.
pub trait Maps {
    /// `SETS`, by set.
    fn set(&self, at: u32) -> Option<Set>;
    /// `ROWS`.
    fn row(&self, at: u32) -> Option<Row>;
    /// `CHUNKS`: where a port table's chunk is in `COLUMNS`.
    fn chunk(&self, at: u32) -> Option<u32>;
    /// A byte of `COLUMNS`.
    fn column(&self, chunk: u32, port: u32) -> Option<u8>;
    /// `CELLS`.
    fn cell(&self, at: u32) -> Option<Cell>;
}

/// The cell that answers; `None`: there is none, which denies.
#[inline(always)]
pub fn find(maps: &impl Maps, q: Question) -> Option<Cell> {
    let set = maps.set(q.set)?;
    if q.class >= set.classes {
        return None;
    }
    let row = maps.row(set.rows.wrapping_add(q.class))?;
    let [tcp_in, udp_in, tcp_out, udp_out] = set.tables;
    // Each element by its name: what an index chooses, the verifier has to be shown the bounds of.
    let table = match (q.ingress, q.udp) {
        (true, false) => tcp_in,
        (true, true) => udp_in,
        (false, false) => tcp_out,
        (false, true) => udp_out,
    };
    let port = q.port as u32;
    let chunk = maps.chunk(table.wrapping_add(port / CHUNK_PORTS))?;
    let column = maps.column(chunk, port % CHUNK_PORTS)? as u32;
    let first = if q.ingress { row.ingress } else { row.egress };
    maps.cell(first.wrapping_add(column * 2 + q.proved as u32))
}

const _: () = assert!(size_of::<Set>() == 24);
const _: () = assert!(size_of::<Row>() == 8);
const _: () = assert!(size_of::<Chunk>() == 64);
const _: () = assert!(size_of::<Cell>() == 16);
