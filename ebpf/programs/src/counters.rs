//! Counters and events.

use core::ptr;

use aya_ebpf::helpers::generated as helpers;
use kumiko_abi::{Config, Event, EventKind, Flow, FlowKey, PairCount, PairKey, Reason, Stat, Verdict, Workload};

use crate::maps::{EVENTS, PAIRS, REASONS, STATS, Scratch, WORKLOADS};

/// `BPF_NOEXIST`.
pub(crate) const NOEXIST: u64 = 1;

/// Adds to a counter of this CPU.
#[inline(always)]
pub(crate) fn add(stat: Stat, n: u64) {
    if let Some(slot) = STATS.get_ptr_mut(stat as u32) {
        // SAFETY: a per-CPU slot, and the program is not interrupted by itself.
        unsafe { *slot += n }
    }
}

/// Counts one.
#[inline(always)]
pub(crate) fn count(stat: Stat) {
    add(stat, 1);
}

/// Counts a reason.
#[inline(always)]
pub(crate) fn reason(reason: Reason) {
    if let Some(slot) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: as above.
        unsafe { *slot += 1 }
    }
}

/// Coarse `CLOCK_MONOTONIC`: a third of the price of the exact one, good enough for "last seen".
#[inline(always)]
pub(crate) fn coarse_now() -> u64 {
    // SAFETY: plain helper call.
    unsafe { helpers::bpf_ktime_get_coarse_ns() }
}

/// Exact `CLOCK_MONOTONIC`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: plain helper call.
    unsafe { helpers::bpf_ktime_get_ns() }
}

/// The class of a workload, 0 when it is none.
#[inline(always)]
fn class(handle: u32, config: &Config) -> u32 {
    if handle == 0 {
        return 0;
    }
    let Some(Workload { class: [even, odd], .. }) = WORKLOADS.get(handle) else { return 0 };
    if config.epoch & 1 == 0 { *even } else { *odd }
}

/// What a pair counter is about.
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) src: u32,
    pub(crate) dst: u32,
    pub(crate) port: u16,
    pub(crate) proto: u8,
    pub(crate) verdict: Verdict,
    pub(crate) reason: Reason,
    pub(crate) bytes: u64,
}

/// Counts a judged flow, or a packet of another protocol, between two classes.
#[inline(always)]
pub(crate) fn pair(s: &mut Scratch, config: &Config, of: Pair) {
    s.pair = PairKey {
        src_class: class(of.src, config),
        dst_class: class(of.dst, config),
        port: of.port,
        reason: of.reason as u16,
        proto: of.proto,
        verdict: of.verdict as u8,
        _pad: [0; 2],
    };
    add_pair(&mut s.pair, of.bytes);
}

#[inline(never)]
fn add_pair(key: &mut PairKey, bytes: u64) {
    if bump(key, bytes) {
        return;
    }
    let first = PairCount { events: 1, bytes };
    if PAIRS.insert(&*key, first, NOEXIST).is_ok() {
        return;
    }
    count(Stat::PairsOverflow);
    *key = PairKey::default();
    bump(key, bytes);
}

#[inline(always)]
fn bump(key: &PairKey, bytes: u64) -> bool {
    let Some(slot) = PAIRS.get_ptr_mut(key) else { return false };
    // SAFETY: a per-CPU value.
    unsafe {
        (*slot).events += 1;
        (*slot).bytes += bytes;
    }
    true
}

/// Tells the agent about a flow. A full ring loses the event, and counts that.
#[inline(never)]
pub(crate) fn emit(kind: EventKind, key: &FlowKey, flow: &Flow) {
    // SAFETY: the helper gives null or memory of the asked size; every field of it is written before it is handed over.
    unsafe {
        let event = helpers::bpf_ringbuf_reserve(ring(&EVENTS), size_of::<Event>() as u64, 0).cast::<Event>();
        if event.is_null() {
            count(Stat::EventsLost);
            return;
        }
        (*event).at_ns = now();
        ptr::copy_nonoverlapping(key, &raw mut (*event).key, 1);
        (*event).kind = kind as u8;
        (*event)._pad = [0; 7];
        ptr::copy_nonoverlapping(flow, &raw mut (*event).flow, 1);
        helpers::bpf_ringbuf_submit(event.cast(), 0);
    }
}

/// The map's address, as helpers want it.
#[inline(always)]
pub(crate) fn ring<T>(map: &T) -> *mut core::ffi::c_void {
    ptr::from_ref(map).cast_mut().cast()
}
