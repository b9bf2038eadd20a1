//! What a packet of a known flow changes in its entry.

use kumiko_abi::{
    EventKind, FlowState,
    flow::{
        dir_flags,
        flags::{OVER, OVER_FIN, OVER_RST},
    },
    segment::{bits, end_fits, next_seq, reaches, rst_fits},
};

use crate::{
    atomic,
    counters::{self, coarse_now},
    maps::Scratch,
    table::{Entry, get, set},
};

/// Packets of the reset end that still were on their way end by then; later ones say that it ignored the RST.
const RST_GRACE_NS: u64 = 500_000_000;

/// Counts the packet and follows its sequence numbers, FINs and RSTs.
#[inline(never)]
pub(crate) fn track(s: &Scratch, entry: Entry, from_initiator: bool) {
    let p = &s.packet;
    let now = coarse_now();
    let (own, other) = if from_initiator {
        // SAFETY: pointers to fields of a live element.
        unsafe { (&raw mut (*entry.0).dir[0], &raw mut (*entry.0).dir[1]) }
    } else {
        // SAFETY: as above.
        unsafe { (&raw mut (*entry.0).dir[1], &raw mut (*entry.0).dir[0]) }
    };
    set!(entry, last_ns = now);
    // SAFETY: aligned fields of a live element; the counters are exact under concurrency, the rest tolerates that the
    // last writer wins, since one direction's packets of one flow arrive in order on one CPU nearly always.
    unsafe {
        if p.flags & bits::RST != 0 && rst_fits(p.seq, p.ack, &*own, &*other) {
            (*own).flags |= dir_flags::RST;
            finish(s, entry, OVER_RST, counters::now());
        }
        let fin = p.flags & bits::FIN != 0 && end_fits(p.seq, &*own, &*other);
        let first = atomic::fetch_add(&raw mut (*own).packets, 1) == 0;
        if p.payload != 0 {
            atomic::fetch_add(&raw mut (*own).bytes, u64::from(p.payload));
        }
        if p.flags & bits::RST != 0 {
            return;
        }
        let next = next_seq(p.seq, p.payload, p.flags);
        if first || reaches(next, (*own).seq) {
            (*own).seq = next;
        }
        if p.flags & bits::SYN != 0 {
            (*own).flags |= dir_flags::SYN;
        }
        if fin {
            (*own).fin_seq = next;
            (*own).flags |= dir_flags::FIN;
        }
        if p.flags & bits::ACK != 0 {
            (*own).ack = p.ack;
            let theirs = (*other).flags;
            if theirs & (dir_flags::FIN | dir_flags::FIN_ACKED) == dir_flags::FIN && reaches(p.ack, (*other).fin_seq) {
                (*other).flags = theirs | dir_flags::FIN_ACKED;
                if (*own).flags & dir_flags::FIN_ACKED != 0 {
                    finish(s, entry, OVER_FIN, counters::now());
                }
            }
        }
        revive(entry, &mut (*other).flags, now);
    }
}

/// The end that was reset in the clear talks on: it took the RST for a forgery, so the record goes on too.
#[inline(always)]
fn revive(entry: Entry, theirs: &mut u32, now: u64) {
    if *theirs & dir_flags::RST == 0 || !matches!(entry.state(), FlowState::Direct | FlowState::Fast) {
        return;
    }
    if get!(entry, over_ns).wrapping_add(RST_GRACE_NS) < now {
        *theirs &= !dir_flags::RST;
        set!(entry, over_ns = 0);
        entry.clear(OVER_RST);
    }
}

/// Marks the flow as over, once, and says so. `now` is exact time: a short flow would end before it began otherwise.
#[inline(always)]
pub(crate) fn finish(s: &Scratch, entry: Entry, how: u32, now: u64) {
    if entry.raise(how) & OVER == 0 {
        set!(entry, over_ns = now);
        counters::emit(EventKind::Over, &s.key, entry.value());
    }
}
