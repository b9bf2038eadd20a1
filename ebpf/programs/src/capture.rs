//! Honest connect, the kernel's half: a SYN is parked with the shard that will dial.

use aya_ebpf::helpers::generated as helpers;
use kumiko_abi::{
    Config, Flow, FlowState, MAX_SHARDS, Reason, Stat, SynRecord,
    config::config_flags,
    flow::flags::COUNTED_PENDING,
    judge::{self, Action, Decision},
    map::endpoint_flags,
    record::SYN_MAX,
    segment::{OptionStep, option_step},
};

use crate::{
    counters::{self, count, ring},
    ends::{Hook, stage},
    judge::{compose, count_judged, deny},
    maps::{LISTENERS, SYNS, Scratch, opaque},
    skb::Skb,
    table::{self, Inserted},
};

/// Most TCP options in a header: 40 bytes.
const MAX_OPTIONS: u32 = 40;

/// What came of parking a SYN. Without payload: the debug information of a variant with one is BTF that no kernel takes.
#[derive(Clone, Copy)]
pub(crate) enum Parked {
    /// It is with the agent, or there is no room for it: drop the packet.
    Done,
    /// Denied and counted: into the agent's namespace with it.
    Refused,
    /// It cannot be captured; `s.decision` is what becomes of it.
    Instead,
}

/// Slot of a shard's listener in `LISTENERS`.
#[inline(always)]
pub(crate) fn slot(shard: u32, v6: bool) -> u32 {
    shard * 2 + u32::from(v6)
}

/// Whether the listener still exists: the socket's death empties the slot, so no heartbeat is needed.
#[inline(always)]
pub(crate) fn alive(slot: u32) -> bool {
    // SAFETY: a lookup in a map of sockets takes a reference, which is given back at once.
    unsafe {
        let socket = helpers::bpf_map_lookup_elem(ring(&LISTENERS), (&raw const slot).cast());
        if socket.is_null() {
            return false;
        }
        helpers::bpf_sk_release(socket);
        true
    }
}

/// The shard of a flow, from its key.
#[inline(always)]
fn shard_of(s: &Scratch, config: &Config) -> u32 {
    let shards = if config.shards == 0 || config.shards > MAX_SHARDS { 1 } else { config.shards };
    let p = &s.packet;
    let ends = p.src[0] ^ p.src[1] ^ p.dst[0].rotate_left(17) ^ p.dst[1].rotate_left(31);
    let mix = (ends ^ u64::from(p.sport) << 16 ^ u64::from(p.dport)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // Scaled instead of divided: the same spread, and no division by a number that the verifier does not know.
    (((mix >> 32) * u64::from(shards)) >> 32) as u32
}

/// Parks the SYN in hand, or says what else becomes of it.
#[inline(never)]
pub(crate) fn park(hook: &Hook<'_>, s: &mut Scratch, old: *mut Flow) -> Parked {
    let Hook { skb, config, endpoint, ifindex } = *hook;
    let stage = stage(endpoint);
    let shard = shard_of(s, config);
    // Liveness first: a dead agent must leave no pending entry behind.
    if !alive(slot(shard, s.packet.v6)) {
        let clear = config.flags & config_flags::PERMISSIVE_WITHOUT_AGENT != 0
            && endpoint.flags & endpoint_flags::REFUSED_WITHOUT_AGENT == 0;
        s.decision = judge::without_agent(stage, clear);
        return Parked::Instead;
    }
    if signed(skb, s) {
        s.decision = judge::uncarriable(stage);
        if !matches!(s.decision.action, Action::Capture) {
            return Parked::Instead;
        }
    }
    if !table::take_pending(ifindex, endpoint.max_pending) {
        count(Stat::PendingFull);
        counters::reason(Reason::PendingQuota);
        return Parked::Done;
    }
    s.ends.dst_ifindex = config.agent_ifindex;
    s.decision.flags |= COUNTED_PENDING;
    compose(s, config, FlowState::Pending);
    s.flow.shard = shard as u16;
    let failed = match hand_over(skb, s, config, old) {
        Ok(()) => {
            count_judged(s, config);
            return Parked::Done;
        }
        Err(failed) => failed,
    };
    table::give_pending(ifindex);
    let reason = match failed {
        Failed::Ring => {
            count(Stat::RingFull);
            counters::reason(Reason::RingFull);
            return Parked::Done;
        }
        Failed::Insert(Inserted::Full) => {
            count(Stat::TableFull);
            Reason::TableFull
        }
        Failed::Insert(Inserted::Quota) => {
            count(Stat::QuotaFull);
            Reason::FlowQuota
        }
        Failed::Insert(_) => return Parked::Done,
        Failed::Headers => {
            count(Stat::Unparsable);
            Reason::Unparsable
        }
    };
    s.decision = Decision::refuse(reason);
    deny(s, config, old);
    Parked::Refused
}

enum Failed {
    /// The shard has no ring, or it is full.
    Ring,
    /// The headers are longer than a record takes.
    Headers,
    /// No entry could be made.
    Insert(Inserted),
}

/// Reserves the record, makes the entry, submits: in this order a record never lacks its entry, and an entry never
/// waits for a record that found no room.
#[inline(always)]
fn hand_over(skb: Skb, s: &mut Scratch, config: &Config, old: *mut Flow) -> Result<(), Failed> {
    let length = s.packet.l4 + s.packet.header;
    let Some(length) = within(length, 54, SYN_MAX as u32) else { return Err(Failed::Headers) };
    let Some(syns) = SYNS.get(u32::from(s.flow.shard)) else { return Err(Failed::Ring) };
    // SAFETY: null or memory of the asked size, which is submitted or discarded on every path; all fields but the
    // unused end of `frame` are written.
    unsafe {
        let record = helpers::bpf_ringbuf_reserve(ring(syns), size_of::<SynRecord>() as u64, 0).cast::<SynRecord>();
        if record.is_null() {
            return Err(Failed::Ring);
        }
        let frame = (&raw mut (*record).frame).cast::<u8>();
        if !skb.load_at(0, frame, length) {
            helpers::bpf_ringbuf_discard(record.cast(), 0);
            return Err(Failed::Headers);
        }
        // The payload of a TFO SYN is cut off, so the lengths change; the client sends it again.
        let p = &s.packet;
        let (at, value) = if p.v6 { (18, length - 54) } else { (16, length - 14) };
        frame.add(at).cast::<[u8; 2]>().write((value as u16).to_be_bytes());
        core::ptr::copy_nonoverlapping(&raw const s.key, &raw mut (*record).key, 1);
        (*record).id = s.flow.id;
        (*record).first_ns = s.flow.first_ns;
        (*record).generation = s.flow.generation;
        (*record).ifindex = s.flow.src_ifindex;
        (*record).src = s.flow.src;
        (*record).dst = s.flow.dst;
        (*record).service = s.flow.service;
        (*record).flags = s.flow.flags;
        (*record).shard = s.flow.shard;
        (*record).len = length as u16;
        (*record).l3 = 14;
        (*record).l4 = p.l4 as u16;
        let inserted = table::insert(s, config, old);
        if inserted != Inserted::Done {
            helpers::bpf_ringbuf_discard(record.cast(), 0);
            return Err(Failed::Insert(inserted));
        }
        helpers::bpf_ringbuf_submit(record.cast(), 0);
    }
    Ok(())
}

/// The length, if it lies between `least` and `most`: both bounds known to the verifier.
#[inline(always)]
fn within(length: u32, least: u64, most: u32) -> Option<u32> {
    let length = u64::from(length);
    if length > u64::from(most) {
        return None;
    }
    let length = opaque(length);
    if length < least { None } else { Some(length as u32) }
}

/// Whether the SYN carries a signature option.
#[inline(always)]
fn signed(skb: Skb, s: &mut Scratch) -> bool {
    let Some(length) = within(s.packet.header.wrapping_sub(20), 4, MAX_OPTIONS) else { return false };
    // SAFETY: at most 40 of the 64 bytes.
    if !unsafe { skb.load_at(s.packet.l4 + 20, (&raw mut s.options).cast(), length) } {
        return false;
    }
    s.option_at = 0;
    for _ in 0..MAX_OPTIONS {
        // SAFETY: a field of scratch; volatile, so that it is a number from memory for the verifier, every time.
        let at = unsafe { core::ptr::read_volatile(&raw const s.option_at) };
        if at >= length {
            return false;
        }
        let kind = s.options.get((at & 63) as usize).copied().unwrap_or(0);
        let bytes = s.options.get(((at + 1) & 63) as usize).copied().unwrap_or(0);
        match option_step(kind, bytes) {
            OptionStep::End => return false,
            OptionStep::Signed => return true,
            // SAFETY: as above.
            OptionStep::Skip(by) => unsafe {
                core::ptr::write_volatile(&raw mut s.option_at, at + u32::from(by));
            },
        }
    }
    false
}
