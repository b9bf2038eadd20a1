//! The flow table: lookup, insertion within quotas, replacement, deletion.
//!
//! An entry is replaced or deleted only by whoever set its `CLAIMED` bit first. So a delete that was decided on one CPU
//! never hits the entry that a new SYN put there on another.

use core::ptr;

use aya_ebpf::helpers::generated as helpers;
use kumiko_abi::{
    Config, EndpointUse, EventKind, Flow, FlowId, FlowKey, FlowState,
    flow::flags::{CLAIMED, COUNTED_PENDING, INITIATOR_IS_LO, OBSERVED, OVER, OVER_GONE},
};

use crate::{
    atomic,
    counters::{self, NOEXIST},
    maps::{ENDPOINT_USE, ENDPOINTS, FLOWS, Scratch, read},
};

/// An entry in the map, which other CPUs write at the same time.
#[derive(Clone, Copy)]
pub(crate) struct Entry(pub(crate) *mut Flow);

/// Reads a field of an entry once.
macro_rules! get {
    ($entry:expr, $field:ident) => {
        // SAFETY: the memory stays an element's of this map; a torn or stale value is a value, as is that of the flow which got
        // the element of one that was reaped a moment ago.
        unsafe { core::ptr::read_volatile(&raw const (*$entry.0).$field) }
    };
}
/// Writes a field of an entry.
macro_rules! set {
    ($entry:expr, $field:ident = $value:expr) => {
        // SAFETY: as for reading; these fields tolerate that the last writer wins.
        unsafe { core::ptr::write_volatile(&raw mut (*$entry.0).$field, $value) }
    };
}
pub(crate) use {get, set};

/// `EEXIST`.
const EEXIST: i32 = -17;

/// What came of an insertion.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inserted {
    Done,
    /// The table is full.
    Full,
    /// The endpoint has too many entries.
    Quota,
    /// Another CPU is at the same entry.
    Busy,
}

/// The entry of a key.
#[inline(always)]
pub(crate) fn find(key: &FlowKey) -> Option<Entry> {
    FLOWS.get_ptr_mut(key).map(Entry)
}

impl Entry {
    #[inline(always)]
    pub(crate) fn flags(self) -> u32 {
        get!(self, flags)
    }

    /// Sets flags and tells which stood before.
    #[inline(always)]
    pub(crate) fn raise(self, bits: u32) -> u32 {
        // SAFETY: the element stays mapped; `flags` is aligned and only touched atomically or read.
        unsafe { atomic::fetch_or(&raw mut (*self.0).flags, bits) }
    }

    /// Clears flags and tells which stood before.
    #[inline(always)]
    pub(crate) fn clear(self, bits: u32) -> u32 {
        // SAFETY: as above.
        unsafe { atomic::fetch_and(&raw mut (*self.0).flags, !bits) }
    }

    #[inline(always)]
    pub(crate) fn is_over(self) -> bool {
        self.flags() & OVER != 0
    }

    #[inline(always)]
    pub(crate) fn state(self) -> FlowState {
        // Whoever has the address of a pod that is gone knows nothing of its flows: what their other ends still send is
        // reset, like a cut flow's. `observe` leaves that to the pod's own kernel.
        if self.flags() & (OVER_GONE | OBSERVED) == OVER_GONE {
            return FlowState::Cut;
        }
        // A byte that is no state is treated like a cut flow: nothing of it passes.
        FlowState::from_u8(get!(self, state)).unwrap_or(FlowState::Cut)
    }

    /// Captured or pending under an agent that runs no more.
    #[inline(always)]
    pub(crate) fn is_orphan(self, config: &Config) -> bool {
        matches!(self.state(), FlowState::Pending | FlowState::Captured) && get!(self, generation) != config.generation
    }

    /// Whether a packet, of which `src_is_lo` is known, is the initiator's.
    #[inline(always)]
    pub(crate) fn by_initiator(self, src_is_lo: bool) -> bool {
        (self.flags() & INITIATOR_IS_LO != 0) == src_is_lo
    }

    /// Interface of the packet's sender.
    #[inline(always)]
    pub(crate) fn sender(self, from_initiator: bool) -> u32 {
        if from_initiator { get!(self, src_ifindex) } else { get!(self, dst_ifindex) }
    }

    /// Whether the target's end has sent anything.
    #[inline(always)]
    pub(crate) fn target_spoke(self) -> bool {
        // SAFETY: an aligned field of a live element.
        let packets = unsafe { ptr::read_volatile(&raw const (*self.0).dir[1].packets) };
        packets != 0
    }

    /// The entry as a value, for an event.
    #[inline(always)]
    pub(crate) fn value(&self) -> &Flow {
        // SAFETY: the element stays mapped; the copy may mix fields of two moments, which an event tolerates.
        unsafe { &*self.0 }
    }

    #[inline(always)]
    fn claim(self) -> bool {
        self.raise(CLAIMED) & CLAIMED == 0
    }
}

/// The endpoint that an entry counts against: the pod that began it, else the pod it goes to.
#[inline(always)]
fn owner(src_ifindex: u32, dst_ifindex: u32, config: &Config) -> u32 {
    if src_ifindex != 0 && src_ifindex != config.agent_ifindex { src_ifindex } else { dst_ifindex }
}

#[inline(always)]
pub(crate) fn add(counter: *mut u64) -> u64 {
    // SAFETY: an aligned field of a map element that is only touched atomically.
    unsafe { atomic::fetch_add(counter, 1) }
}

#[inline(always)]
fn sub(counter: *mut u64) {
    // SAFETY: as above. Never below zero: an endpoint's use may have been made anew meanwhile.
    unsafe {
        if ptr::read_volatile(counter) > 0 {
            atomic::fetch_add(counter, u64::MAX);
        }
    }
}

#[inline(always)]
fn endpoint_use(ifindex: u32) -> Option<*mut EndpointUse> {
    ENDPOINT_USE.get_ptr_mut(ifindex)
}

/// Takes a place among the endpoint's pending flows; false when there is none. Counting first and taking it back after
/// keeps the bound exact when two CPUs ask at once.
#[inline(always)]
pub(crate) fn take_pending(ifindex: u32, max: u32) -> bool {
    let Some(of) = endpoint_use(ifindex) else { return true };
    // SAFETY: a pointer to a field of a live element.
    let pending = unsafe { &raw mut (*of).pending };
    if max != 0 && add(pending) >= u64::from(max) {
        sub(pending);
        return false;
    }
    true
}

/// Gives it back.
#[inline(always)]
pub(crate) fn give_pending(ifindex: u32) {
    if let Some(of) = endpoint_use(ifindex) {
        // SAFETY: as above.
        sub(unsafe { &raw mut (*of).pending });
    }
}

/// An entry leaves the state pending: it no longer counts against that quota.
#[inline(always)]
pub(crate) fn settle(entry: Entry) {
    if entry.clear(COUNTED_PENDING) & COUNTED_PENDING != 0 {
        give_pending(get!(entry, src_ifindex));
    }
}

/// An entry goes: it no longer counts against any quota.
#[inline(always)]
fn uncount(entry: Entry, config: &Config) {
    settle(entry);
    if let Some(of) = endpoint_use(owner(get!(entry, src_ifindex), get!(entry, dst_ifindex), config)) {
        // SAFETY: a pointer to a field of a live element.
        sub(unsafe { &raw mut (*of).flows });
    }
}

/// Writes the flow's id and times. `now` is exact time.
#[inline(always)]
pub(crate) fn stamp(s: &mut Scratch, config: &Config, now: u64) {
    s.flow.id = next_id(&mut s.sequence, config, now);
    s.flow.first_ns = now;
    s.flow.last_syn_ns = now;
    s.flow.last_ns = now;
}

/// Node hash, time, and a sequence that differs between CPUs.
#[inline(always)]
pub(crate) fn next_id(sequence: &mut u32, config: &Config, now: u64) -> FlowId {
    *sequence = sequence.wrapping_add(1);
    // SAFETY: plain helper call.
    let cpu = unsafe { helpers::bpf_get_smp_processor_id() };
    let [h0, h1, h2, h3, h4, h5] = config.node_hash;
    let [t0, t1, t2, t3, t4, t5, t6, t7] = now.to_be_bytes();
    FlowId([h0, h1, h2, h3, h4, h5, t0, t1, t2, t3, t4, t5, t6, t7, cpu as u8, *sequence as u8])
}

/// Claims the entry of a key, unless its element has become another key's since it was found.
#[inline(always)]
fn claim_of(key: &FlowKey, entry: Entry) -> bool {
    if !entry.claim() {
        return false;
    }
    if find(key).is_some_and(|now| now.0 == entry.0) {
        return true;
    }
    entry.clear(CLAIMED);
    false
}

/// Inserts `s.flow` under `s.key`, in the place of `old` if there is one.
#[inline(never)]
pub(crate) fn insert(s: &Scratch, config: &Config, old: *mut Flow) -> Inserted {
    let owner = owner(s.flow.src_ifindex, s.flow.dst_ifindex, config);
    let of = endpoint_use(owner);
    if let Some(of) = of {
        // SAFETY: a pointer to a field of a live element.
        let flows = unsafe { &raw mut (*of).flows };
        let max = read(|| ENDPOINTS.get_ptr(owner), |e| e.max_flows).unwrap_or(0);
        if add(flows) >= u64::from(max) && max != 0 {
            sub(flows);
            return Inserted::Quota;
        }
    }
    let done = if old.is_null() {
        FLOWS.insert(&s.key, &s.flow, NOEXIST)
    } else if claim_of(&s.key, Entry(old)) {
        let old = Entry(old);
        counters::emit(EventKind::Replaced, &s.key, old.value());
        uncount(old, config);
        // No memory: one that stays claimed would keep its tuple from everybody.
        FLOWS.insert(&s.key, &s.flow, 0).inspect_err(|_| {
            let _gone = FLOWS.remove(&s.key);
        })
    } else {
        Err(EEXIST)
    };
    let Err(error) = done else { return Inserted::Done };
    if let Some(of) = of {
        // SAFETY: as above.
        sub(unsafe { &raw mut (*of).flows });
    }
    if error == EEXIST { Inserted::Busy } else { Inserted::Full }
}

/// Deletes `old`, which a refused or untouched SYN has overtaken.
#[inline(never)]
pub(crate) fn overtake(s: &Scratch, config: &Config, old: *mut Flow) {
    if !old.is_null() && claim_of(&s.key, Entry(old)) {
        counters::emit(EventKind::Replaced, &s.key, Entry(old).value());
        uncount(Entry(old), config);
        let _gone = FLOWS.remove(&s.key);
    }
}

/// Deletes the entry if it has this id.
#[inline(always)]
pub(crate) fn reap(key: &FlowKey, id: &FlowId, config: &Config, entry: Entry) -> bool {
    if !same_id(entry, id) || !entry.claim() {
        return false;
    }
    if !same_id(entry, id) {
        // The element was recycled between the two looks.
        entry.clear(CLAIMED);
        return false;
    }
    uncount(entry, config);
    FLOWS.remove(key).is_ok()
}

#[inline(always)]
pub(crate) fn same_id(entry: Entry, id: &FlowId) -> bool {
    // SAFETY: both are 16 bytes, eight-aligned in their structs (asserted below for the entry, by Scratch for the id).
    unsafe {
        let a = ptr::read_volatile((&raw const (*entry.0).id).cast::<[u64; 2]>());
        let b = ptr::read_volatile(ptr::from_ref(id).cast::<[u64; 2]>());
        a[0] == b[0] && a[1] == b[1]
    }
}

/// A pod's interface takes the place of "the host's stack" in an entry that is older than the pod's attachment.
#[inline(always)]
pub(crate) fn adopt(entry: Entry, from_initiator: bool, ifindex: u32, config: &Config) -> bool {
    let before = owner(get!(entry, src_ifindex), get!(entry, dst_ifindex), config);
    // SAFETY: an aligned field of a live element.
    let slot =
        unsafe { if from_initiator { &raw mut (*entry.0).src_ifindex } else { &raw mut (*entry.0).dst_ifindex } };
    // SAFETY: as above.
    if !unsafe { atomic::replace_zero(slot, ifindex) } {
        return false;
    }
    let after = owner(get!(entry, src_ifindex), get!(entry, dst_ifindex), config);
    if before != after {
        // SAFETY: pointers to fields of live elements.
        unsafe {
            if let Some(of) = endpoint_use(before) {
                sub(&raw mut (*of).flows);
            }
            if let Some(of) = endpoint_use(after) {
                add(&raw mut (*of).flows);
            }
        }
    }
    true
}

const _: () = assert!(core::mem::offset_of!(Flow, id) == 0);
