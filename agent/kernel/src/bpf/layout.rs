//! The shape of every pinned map, to be compared with what a former agent left.

use std::{mem::size_of, path::Path};

use kumiko_abi::{
    Addr, AddrEntry, Backend, BackendKey, Config, Endpoint, EndpointUse, Flow, FlowKey, MAX_SHARDS, PairCount, PairKey,
    ServiceEntry, ServiceKey, Workload,
    map::{ProbePort, STATS_LEN},
    names,
    policy::{CELLS_LEN, CHUNKS_LEN, COLUMNS_LEN, Cell, Chunk, NETS_LEN, NetKey, ROWS_LEN, Row, SETS_LEN, Set},
    reason::REASONS_LEN,
};

use super::{error::BpfError, sys};

/// Bytes of a shard's ring.
pub(super) const SYN_RING_BYTES: u32 = 256 * 1024;
const EVENT_RING_BYTES: u32 = 1024 * 1024;

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PER_CPU_HASH: u32 = 5;
const PER_CPU_ARRAY: u32 = 6;
const LPM_TRIE: u32 = 11;
const ARRAY_OF_MAPS: u32 = 12;
const SOCKMAP: u32 = 15;
const RING: u32 = 27;

/// Shape of one map.
pub(super) struct Shape {
    pub(super) name: &'static str,
    map_type: u32,
    key: usize,
    value: usize,
    entries: u32,
}

const fn shape(name: &'static str, map_type: u32, key: usize, value: usize, entries: u32) -> Shape {
    Shape { name, map_type, key, value, entries }
}

const fn hash<K, V>(name: &'static str, entries: u32) -> Shape {
    shape(name, HASH, size_of::<K>(), size_of::<V>(), entries)
}

const fn array<V>(name: &'static str, entries: u32) -> Shape {
    shape(name, ARRAY, 4, size_of::<V>(), entries)
}

/// All of them.
pub(super) const MAPS: &[Shape] = &[
    hash::<FlowKey, Flow>(names::FLOWS, 262_144),
    hash::<u32, Endpoint>(names::ENDPOINTS, 4_096),
    hash::<u32, EndpointUse>(names::ENDPOINT_USE, 4_096),
    array::<Workload>(names::WORKLOADS, 65_536),
    hash::<Addr, AddrEntry>(names::ADDRS, 131_072),
    hash::<ServiceKey, ServiceEntry>(names::SERVICES, 65_536),
    hash::<BackendKey, Backend>(names::BACKENDS, 65_536),
    hash::<FlowKey, Backend>(names::TRANSLATIONS, 131_072),
    hash::<ProbePort, u8>(names::PROBE_PORTS, 65_536),
    array::<Config>(names::CONFIG, 1),
    shape(names::LISTENERS, SOCKMAP, 4, 4, MAX_SHARDS * 2),
    shape(names::SYNS, ARRAY_OF_MAPS, 4, 4, MAX_SHARDS),
    shape(names::EVENTS, RING, 0, 0, EVENT_RING_BYTES),
    shape(names::STATS, PER_CPU_ARRAY, 4, 8, STATS_LEN),
    shape(names::REASONS, PER_CPU_ARRAY, 4, 8, REASONS_LEN),
    shape(names::PAIRS, PER_CPU_HASH, size_of::<PairKey>(), size_of::<PairCount>(), 16_384),
    shape(names::NETS, LPM_TRIE, size_of::<NetKey>(), size_of::<[u32; 2]>(), NETS_LEN),
    array::<Set>(names::SETS, SETS_LEN),
    array::<Row>(names::ROWS, ROWS_LEN),
    array::<u32>(names::CHUNKS, CHUNKS_LEN),
    array::<Chunk>(names::COLUMNS, COLUMNS_LEN),
    array::<Cell>(names::CELLS, CELLS_LEN),
];

impl Shape {
    /// Compares the pinned map with this shape, if there is one.
    pub(super) fn check_pin(&self, dir: &Path) -> Result<(), BpfError> {
        let path = dir.join(self.name);
        let fd = match sys::get(&path) {
            Ok(fd) => fd,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(source) => return Err(BpfError::PinDir { path, source }),
        };
        let found = std::os::fd::AsFd::as_fd(&fd);
        let found = sys::map_info(found).map_err(|source| BpfError::PinDir { path: path.clone(), source })?;
        let found = (found.map_type, found.key_size as usize, found.value_size as usize, found.max_entries);
        let expected = (self.map_type, self.key, self.value, self.entries);
        if found == expected {
            return Ok(());
        }
        let tell = |(kind, key, value, entries): (u32, usize, usize, u32)| {
            format!("type {kind}, key {key}, value {value}, {entries} entries")
        };
        Err(BpfError::Layout { path, expected: tell(expected), found: tell(found) })
    }
}
