//! Every map, and per-CPU scratch space.
//!
//! All are BTF maps. The loader pins those that [`kumiko_abi::names`] names, in a directory that carries the layout's
//! version; the others ([`SCRATCH`], [`FRAGMENTS`] and their like) live as long as the programs.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SockMap},
    macros::btf_map,
};
use kumiko_abi::{
    Addr, AddrEntry, Backend, BackendKey, Config, Endpoint, EndpointUse, Flow, FlowId, FlowKey, MAX_SHARDS, PairCount,
    PairKey, ProbePort, ServiceEntry, ServiceKey, Workload, element,
    judge::Decision,
    map::STATS_LEN,
    policy::{CELLS_LEN, CHUNKS_LEN, COLUMNS_LEN, Cell, Chunk, NETS_LEN, Question, ROWS_LEN, Row, SETS_LEN, Set},
    reason::REASONS_LEN,
};

use crate::{
    ends::{Ends, Target},
    packet::Packet,
};

/// `BPF_F_NO_PREALLOC`: memory follows what is used. Since Linux 6.1 an element that was removed or replaced is at once the
/// next one's (`htab_elem_free` in kernel/bpf/hashtab.c), whoever still reads it: see [`read`].
const NO_PREALLOC: usize = 1;
/// Bytes of a shard's ring: about 850 parked SYNs.
pub(crate) const SYN_RING_BYTES: usize = 256 * 1024;
/// Bytes of the event ring.
const EVENT_RING_BYTES: usize = 1024 * 1024;

#[btf_map]
pub(crate) static FLOWS: HashMap<FlowKey, Flow, 262_144, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(crate) static ENDPOINTS: HashMap<u32, Endpoint, 4_096, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(crate) static ENDPOINT_USE: HashMap<u32, EndpointUse, 4_096, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(crate) static WORKLOADS: Array<Workload, 65_536> = Array::new();
#[btf_map]
pub(crate) static ADDRS: HashMap<Addr, AddrEntry, 131_072, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(crate) static SERVICES: HashMap<ServiceKey, ServiceEntry, 65_536, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(crate) static BACKENDS: HashMap<BackendKey, Backend, 65_536, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(crate) static TRANSLATIONS: HashMap<FlowKey, Backend, 131_072, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(crate) static PROBE_PORTS: HashMap<ProbePort, u8, 65_536, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(crate) static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
pub(crate) static LISTENERS: SockMap<{ MAX_SHARDS as usize * 2 }> = SockMap::new();
#[btf_map]
pub(crate) static SYNS: ArrayOfMaps<RingBuf<u8, SYN_RING_BYTES>, { MAX_SHARDS as usize }> = ArrayOfMaps::new();
#[btf_map]
pub(crate) static EVENTS: RingBuf<u8, EVENT_RING_BYTES> = RingBuf::new();
#[btf_map]
pub(crate) static STATS: PerCpuArray<u64, { STATS_LEN as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static REASONS: PerCpuArray<u64, { REASONS_LEN as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static PAIRS: PerCpuHashMap<PairKey, PairCount, 16_384, NO_PREALLOC> = PerCpuHashMap::new();
#[btf_map]
pub(crate) static NETS: LpmTrie<Addr, [u32; 2], { NETS_LEN as usize }> = LpmTrie::new();
#[btf_map]
pub(crate) static SETS: Array<Set, { SETS_LEN as usize }> = Array::new();
#[btf_map]
pub(crate) static ROWS: Array<Row, { ROWS_LEN as usize }> = Array::new();
#[btf_map]
pub(crate) static CHUNKS: Array<u32, { CHUNKS_LEN as usize }> = Array::new();
#[btf_map]
pub(crate) static COLUMNS: Array<Chunk, { COLUMNS_LEN as usize }> = Array::new();
#[btf_map]
pub(crate) static CELLS: Array<Cell, { CELLS_LEN as usize }> = Array::new();

/// What the fragments of one datagram have in common, where they pass.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FragmentKey {
    pub(crate) src: [u64; 2],
    pub(crate) dst: [u64; 2],
    pub(crate) id: u32,
    pub(crate) ifindex: u32,
}

/// What became of the first of them.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Fragment {
    /// The address that was written into it.
    pub(crate) to: [u64; 2],
    /// What became of it.
    pub(crate) fate: u32,
    /// Which address was written: none, the destination's, the source's.
    pub(crate) turned: u32,
}

/// What became of the first fragments of datagrams. The oldest gives way: its datagram is complete, or will never be.
#[btf_map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, Fragment, 4_096> = LruHashMap::new();

/// Refused connections of this node's pods that came by way of the host, which may have translated them: their refusal goes
/// back that way. The oldest gives way: its client has been told, or will try again.
#[btf_map]
pub(crate) static TRANSLATED: LruHashMap<FlowKey, u8, 1_024> = LruHashMap::new();

/// What does not fit into 512 bytes of stack.
#[repr(C, align(8))]
pub(crate) struct Scratch {
    /// The packet in hand.
    pub(crate) packet: Packet,
    /// Key of its flow, or of the flow that an ICMP error is about.
    pub(crate) key: FlowKey,
    /// An entry being made.
    pub(crate) flow: Flow,
    /// A command's flow id.
    pub(crate) id: FlowId,
    /// The verdict on the packet in hand.
    pub(crate) decision: Decision,
    /// The ends of the flow that it begins.
    pub(crate) ends: Ends,
    /// Who it is for.
    pub(crate) target: Target,
    /// The policy's epoch, read once for the packet in hand: sets and classes of two would not fit together.
    pub(crate) epoch: u32,
    /// The Service of an exchange, 0 for none.
    pub(crate) service: u32,
    /// Whom the question is about.
    pub(crate) peer: [u64; 2],
    /// Its address, as the client asked for it.
    pub(crate) asked: Backend,
    /// The endpoint that was chosen for it.
    pub(crate) chosen: Backend,
    /// Key of another element than the flow's.
    pub(crate) other: FlowKey,
    /// What is asked of the tables of verdicts.
    pub(crate) question: Question,
    /// Their answer.
    pub(crate) cell: Cell,
    /// Second since the boot from which one of the verdicts on the packet in hand holds no more; 0: for good.
    pub(crate) not_after: u32,
    /// Not 0: the flow in hand is to be judged again.
    pub(crate) old: u32,
    /// Key of a pair counter.
    pub(crate) pair: PairKey,
    /// TCP options.
    pub(crate) options: [u8; 64],
    /// Position in them. In memory, so that the verifier forgets its value and one pass covers every option.
    pub(crate) option_at: u32,
    /// Flow ids made on this CPU.
    pub(crate) sequence: u32,
}

#[btf_map]
pub(crate) static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
/// A second one, since a command may be interrupted by a packet on the same CPU.
#[btf_map]
pub(crate) static COMMAND_SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
/// The endpoint of the hook, copied.
#[btf_map]
pub(crate) static HERE: PerCpuArray<Endpoint, 1> = PerCpuArray::new();

/// Reads an element that others may replace or remove meanwhile, as [`element::read`] does.
#[inline(always)]
pub(crate) fn read<V, T: Default>(find: impl Fn() -> Option<*const V>, mut of: impl FnMut(&V) -> T) -> Option<T> {
    // SAFETY: what was an element stays memory of this map's elements, plain words, until the program ends.
    let (value, there) = element::read(find, |at| of(unsafe { &*at }));
    // Else the compiler lets registers of the paths that found nothing hold pointers, and narrows them.
    if opaque(u64::from(there)) != 0 { Some(value) } else { None }
}

/// Makes the compiler, and so the verifier, take `value` for unknown from here on. Variants of it that differ by known
/// constants become one state that way, instead of each being walked to the program's end.
#[inline(always)]
pub(crate) fn forget<T>(value: &mut T) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: moves a register to itself. (With no instruction, two lines would share one offset: refused line info.)
    unsafe {
        core::arch::asm!("{v} = {v}", v = inout(reg) core::ptr::from_mut(value) => _, options(nostack));
    }
    #[cfg(not(target_arch = "bpf"))]
    core::hint::black_box(value);
}

/// The same number, of which the compiler knows nothing. Between two checks of one length it keeps LLVM from making one
/// comparison of both (`len - LOW > HIGH - LOW`), from which older verifiers (6.1) learn no lower bound.
#[inline(always)]
pub(crate) fn opaque(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: moves a register to itself.
        unsafe {
            core::arch::asm!("{v} = {v}", v = inout(reg) value, options(nostack, nomem));
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    core::hint::black_box(value)
}

// Addresses in the key are written as pairs of words.
const _: () = assert!(core::mem::offset_of!(Scratch, key) % 8 == 0);
const _: () = assert!(core::mem::offset_of!(Scratch, other) % 8 == 0);
const _: () = assert!(core::mem::offset_of!(Scratch, asked) % 8 == 0);
const _: () = assert!(core::mem::offset_of!(Scratch, chosen) % 8 == 0);
const _: () = assert!(core::mem::offset_of!(Scratch, flow) % 8 == 0);
const _: () = assert!(core::mem::offset_of!(Scratch, id) % 8 == 0);
