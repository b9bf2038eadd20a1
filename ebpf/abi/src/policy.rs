//! Verdicts as the maps hold them, and the way from a question to its cell.
//!
//! ```text
//! set, class of the peer -> row, in each direction
//! set, direction, protocol, port -> column; without ports: set, direction, ICMP or not -> column
//! row, column, proof -> cell
//! ```
//!
//! Nothing here depends on how many policies there are: five array elements are read, whatever is asked.

use core::mem::size_of;

use crate::Stage;
use crate::flow::{self, Addr};
use crate::judge::{Action, Decision};
use crate::reason::{Reason, Verdict};

/// Class of an address that nothing is known of and no rule names.
pub const UNKNOWN_CLASS: u32 = 0;
/// Class of an address whose holder the tables were not made for: whatever is asked about it is denied.
pub const DENY_CLASS: u32 = u32::MAX;
/// Set of an endpoint that no verdict is made for; sets of the others begin at 1.
pub const NO_SET: u32 = 0;
/// Set without verdicts: whatever is asked of it is denied.
pub const DENY_SET: u32 = u32::MAX;
/// Ports of one [`Chunk`].
pub const CHUNK_PORTS: u32 = 64;
/// Chunks of one port table.
pub const TABLE_CHUNKS: u32 = 65_536 / CHUNK_PORTS;
/// Columns of a row, over all protocols.
pub const MAX_COLUMNS: u32 = 256;

/// Which verdict is meant: bits of [`Cell::allows`], places of [`Cell::reasons`].
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum View {
    /// By what is enforced.
    Enforced = 0,
    /// By what is enforced and what is in audit, without what that replaces.
    WithAudit = 1,
    /// By what is enforced, were the endpoint strict, and so all other pods that are enrolled: TCP between them is proved.
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

/// Elements of `SETS`.
pub const SETS_LEN: u32 = 4_096;
/// Elements of `ROWS`.
pub const ROWS_LEN: u32 = 1_048_576;
/// Elements of `CHUNKS`: 1,024 port tables.
pub const CHUNKS_LEN: u32 = 1_024 * TABLE_CHUNKS;
/// Elements of `COLUMNS`.
pub const COLUMNS_LEN: u32 = 16_384;
/// Elements of `CELLS`.
pub const CELLS_LEN: u32 = 524_288;
/// Most entries of `NETS`.
pub const NETS_LEN: u32 = 16_384;

/// Key of `NETS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NetKey {
    /// Length of the prefix, in bits of the sixteen bytes: 96 more than IPv4's own.
    pub prefix: u32,
    /// The network.
    pub net: Addr,
}

/// Value of `SETS`: what endpoints with the same rules share.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Set {
    /// First of its rows, one for each class.
    pub rows: u32,
    /// How many classes have one.
    pub classes: u32,
    /// First chunks of its port tables: to it TCP, UDP, SCTP, then from it.
    pub tables: [u32; 6],
    /// Columns of what has no ports: to it ICMP and all the rest, then from it.
    pub portless: [u8; 4],
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

    /// [`crate::flow::flags`] of a flow that it is about: what would be said if more were enforced.
    #[inline(always)]
    pub const fn flags(&self, now: u32) -> u32 {
        let differs = self.allows(View::WithAudit, now) != self.allows(View::Enforced, now);
        let strict = !self.allows(View::Strict, now);
        (if differs { flow::flags::AUDIT_DIFFERS } else { 0 }) | if strict { flow::flags::STRICT_REFUSES } else { 0 }
    }

    /// Why a view does not allow, at a second since the boot.
    #[inline(always)]
    pub const fn refusal(&self, view: View, now: u32) -> Option<Reason> {
        let [enforced, with_audit, strict] = self.reasons;
        let number = match view {
            View::Enforced => enforced,
            View::WithAudit => with_audit,
            View::Strict => strict,
        };
        if self.allows(view, now) { None } else { Some(refusal(number)) }
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
    /// IP protocol number.
    pub proto: u8,
    /// Whether the peer is proved.
    pub proved: bool,
    /// The destination's port; of a protocol without any it does not count.
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
    // Each element by its name: what an index chooses, the verifier has to be shown the bounds of.
    let [tcp_in, udp_in, sctp_in, tcp_out, udp_out, sctp_out] = set.tables;
    let [icmp_in, rest_in, icmp_out, rest_out] = set.portless;
    let (tcp, udp, sctp, icmp, rest) = if q.ingress {
        (tcp_in, udp_in, sctp_in, icmp_in, rest_in)
    } else {
        (tcp_out, udp_out, sctp_out, icmp_out, rest_out)
    };
    let column = if flow::has_ports(q.proto) {
        let table = match q.proto {
            flow::TCP => tcp,
            flow::UDP => udp,
            _ => sctp,
        };
        let port = q.port as u32;
        let chunk = maps.chunk(table.wrapping_add(port / CHUNK_PORTS))?;
        maps.column(chunk, port % CHUNK_PORTS)?
    } else if matches!(q.proto, flow::ICMP | flow::ICMPV6) {
        icmp
    } else {
        rest
    } as u32;
    let first = if q.ingress { row.ingress } else { row.egress };
    maps.cell(first.wrapping_add(column * 2 + q.proved as u32))
}

/// What the rules of one end make of a flow that its stages let be.
#[inline(always)]
pub fn rule(decision: Decision, stage: Stage, cell: &Cell, now: u32) -> Decision {
    let carried = matches!(decision.action, Action::Direct | Action::Fast | Action::Capture);
    if !carried {
        return decision;
    }
    let allows = cell.allows(View::Enforced, now);
    let mut ruled = decision;
    ruled.flags |= cell.flags(now);
    if allows {
        return ruled;
    }
    let [enforced, ..] = cell.reasons;
    ruled.reason = refusal(enforced);
    if stage.meshed() {
        ruled.action = Action::Refuse;
        ruled.verdict = Verdict::Deny;
    } else {
        ruled.verdict = Verdict::Audit;
    }
    ruled
}

/// What both ends' rules make of a flow: who refuses, and of two that do the term that speaks first, the egress before the
/// ingress.
#[inline(always)]
pub fn both(egress: Decision, ingress: Decision) -> Decision {
    let rank = |of: &Decision| match of.verdict {
        Verdict::Deny => 0,
        Verdict::Audit => 1,
        Verdict::Allow => 2,
    };
    let (own, other) = (rank(&egress), rank(&ingress));
    let first = own < other || (own == other && (own == 2 || speaks(egress.reason) <= speaks(ingress.reason)));
    let ruled = if first { egress } else { ingress };
    let end = |of: &Decision| (matches!(of.verdict, Verdict::Allow), of.flags);
    Decision { flags: flags_of_both(end(&egress), end(&ingress)), ..ruled }
}

/// Flags of a flow from those of its ends' cells ([`Cell::flags`]), each with whether that end's rules let it: what is in audit
/// makes a difference only to what both ends let.
#[inline(always)]
pub const fn flags_of_both(egress: (bool, u32), ingress: (bool, u32)) -> u32 {
    // Without a branch: the verifier would follow each to the end of the program.
    let bit = flow::flags::AUDIT_DIFFERS.trailing_zeros();
    let (one, other) = (egress.0 as u32, ingress.0 as u32);
    let with_audit = (one ^ (egress.1 >> bit)) & (other ^ (ingress.1 >> bit));
    let differs = ((one & other) ^ with_audit) & 1;
    ((egress.1 | ingress.1) & !flow::flags::AUDIT_DIFFERS) | (differs << bit)
}

/// Which of two refusals is told: the lower one, in the order of the formula's terms, which numbers that came later do not
/// follow.
#[inline(always)]
pub const fn speaks(reason: Reason) -> u32 {
    match reason {
        Reason::PolicyInvalid => 2 * Reason::TeamDefault as u32 + 1,
        other => 2 * other as u32,
    }
}

/// What the rules of the end that is asked make of a flow that comes in the clear. `refused` is what stage alone says of
/// it in strict, where rules may let more in: those that take an address for enough.
#[inline(always)]
pub fn rule_clear(decision: Decision, stage: Stage, cell: &Cell, now: u32, flags: u32) -> Decision {
    let by_stage = matches!(decision.reason, Reason::PlaintextRefused | Reason::HostRefused);
    let asked = if by_stage {
        let flags = flags | flow::flags::RULED;
        Decision { action: Action::Direct, verdict: Verdict::Allow, reason: Reason::PlaintextAccepted, flags }
    } else {
        decision
    };
    let ruled = rule(asked, stage, cell, now);
    if by_stage && matches!(ruled.reason, Reason::PeerUnproved) {
        let would = flow::flags::AUDIT_DIFFERS | flow::flags::STRICT_REFUSES;
        Decision { flags: decision.flags | (ruled.flags & would), ..decision }
    } else {
        ruled
    }
}

/// The reason of a number in [`Cell::reasons`].
#[inline(always)]
const fn refusal(number: u8) -> Reason {
    match number {
        30 => Reason::BaselineDenied,
        31 => Reason::AboveCeiling,
        32 => Reason::NetworkPolicyDefault,
        33 => Reason::TeamDefault,
        34 => Reason::PeerUnproved,
        36 => Reason::PolicyInvalid,
        _ => Reason::PolicyMissing,
    }
}

const _: () = assert!(Reason::BaselineDenied as u16 == 30 && Reason::PeerUnproved as u16 == 34);
const _: () = assert!(Reason::PolicyInvalid as u16 == 36);
const _: () = assert!(size_of::<NetKey>() == 20);
const _: () = assert!(size_of::<Set>() == 36);
const _: () = assert!(size_of::<Row>() == 8);
const _: () = assert!(size_of::<Chunk>() == 64);
const _: () = assert!(size_of::<Cell>() == 16);
