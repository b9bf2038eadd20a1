//! The maps, typed.

mod services;

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use kumiko_abi::{
    Addr, AddrEntry, Backend, BackendKey, Config, Endpoint, EndpointUse, Flow, FlowKey, PairCount, PairKey,
    ServiceEntry, ServiceKey, Workload,
    map::{ProbePort, STATS_LEN},
    names,
    policy::{Cell, Chunk, NetKey, Row, Set},
    reason::REASONS_LEN,
};

use super::{
    error::BpfError,
    raw_map::{Put, RawMap},
    sys,
};

/// Every map of the data path. Cheap to clone, usable from every thread; each call is one system call an element.
#[derive(Clone)]
pub struct Maps(Arc<Inner>);

struct Inner {
    flows: RawMap<FlowKey, Flow>,
    endpoints: RawMap<u32, Endpoint>,
    endpoint_use: RawMap<u32, EndpointUse>,
    workloads: RawMap<u32, Workload>,
    addrs: RawMap<Addr, AddrEntry>,
    services: RawMap<ServiceKey, ServiceEntry>,
    backends: RawMap<BackendKey, Backend>,
    translations: RawMap<FlowKey, Backend>,
    probe_ports: RawMap<ProbePort, u8>,
    config: RawMap<u32, Config>,
    listeners: RawMap<u32, u32>,
    syns: RawMap<u32, u32>,
    events: OwnedFd,
    stats: RawMap<u32, u64>,
    reasons: RawMap<u32, u64>,
    pairs: RawMap<PairKey, PairCount>,
    nets: RawMap<NetKey, [u32; 2]>,
    sets: RawMap<u32, Set>,
    rows: RawMap<u32, Row>,
    chunks: RawMap<u32, u32>,
    columns: RawMap<u32, Chunk>,
    cells: RawMap<u32, Cell>,
    cpus: usize,
}

/// Runs of elements of the arrays of verdicts, each with where it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Verdicts<'a> {
    /// `SETS`.
    pub sets: (u32, &'a [Set]),
    /// `ROWS`.
    pub rows: (u32, &'a [Row]),
    /// `CHUNKS`.
    pub chunks: (u32, &'a [u32]),
    /// `COLUMNS`.
    pub columns: (u32, &'a [Chunk]),
    /// `CELLS`.
    pub cells: (u32, &'a [Cell]),
}

impl Maps {
    /// Opens the pinned maps, whose shapes were checked.
    pub(super) fn open(dir: &Path) -> Result<Self, BpfError> {
        let get = |name: &str| {
            let path = dir.join(name);
            sys::get(&path).map_err(|source| BpfError::PinDir { path, source })
        };
        macro_rules! map {
            ($name:expr) => {
                RawMap::new(get($name)?, $name)
            };
        }
        let cpus = aya::util::nr_cpus().map_err(|(path, source)| BpfError::PinDir { path: path.into(), source })?;
        let inner = Inner {
            flows: map!(names::FLOWS),
            endpoints: map!(names::ENDPOINTS),
            endpoint_use: map!(names::ENDPOINT_USE),
            workloads: map!(names::WORKLOADS),
            addrs: map!(names::ADDRS),
            services: map!(names::SERVICES),
            backends: map!(names::BACKENDS),
            translations: map!(names::TRANSLATIONS),
            probe_ports: map!(names::PROBE_PORTS),
            config: map!(names::CONFIG),
            listeners: map!(names::LISTENERS),
            syns: map!(names::SYNS),
            events: get(names::EVENTS)?,
            stats: map!(names::STATS),
            reasons: map!(names::REASONS),
            pairs: map!(names::PAIRS),
            nets: map!(names::NETS),
            sets: map!(names::SETS),
            rows: map!(names::ROWS),
            chunks: map!(names::CHUNKS),
            columns: map!(names::COLUMNS),
            cells: map!(names::CELLS),
            cpus,
        };
        // The overflow bucket: there before the map can be full.
        inner.pairs.put_per_cpu_new(&PairKey::default(), &PairCount::default(), cpus)?;
        Ok(Self(Arc::new(inner)))
    }

    /// The node's configuration; all zeros before an agent wrote it.
    ///
    /// # Errors
    /// [`BpfError::Map`], as all methods here.
    pub fn config(&self) -> Result<Config, BpfError> {
        Ok(self.0.config.get(&0)?.unwrap_or_default())
    }

    /// Replaces the configuration. The programs may see a mix of both for an instant.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn set_config(&self, config: &Config) -> Result<(), BpfError> {
        self.0.config.put(&0, config, Put::Any)
    }

    /// Waits until each program has ended that was running when this began, and may still read what stood in the maps. An
    /// element must not be replaced or removed twice without it: `kumiko_abi::element`.
    ///
    /// # Errors
    /// [`BpfError::Wait`]: no packet socket could be made where `membarrier(2)` is refused.
    pub fn wait_for_programs(&self) -> Result<(), BpfError> {
        sys::wait_for_programs().map_err(BpfError::Wait)
    }

    /// Writes the endpoint of an interface.
    ///
    /// # Errors
    /// [`BpfError::Map`]; `E2BIG` when there are 4,096 already.
    pub fn set_endpoint(&self, ifindex: u32, endpoint: &Endpoint) -> Result<(), BpfError> {
        self.0.endpoints.put(&ifindex, endpoint, Put::Any)
    }

    /// Removes the endpoint of an interface, not its use; false when there was none.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn remove_endpoint(&self, ifindex: u32) -> Result<bool, BpfError> {
        self.0.endpoints.remove(&ifindex)
    }

    /// The endpoint of an interface.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn endpoint(&self, ifindex: u32) -> Result<Option<Endpoint>, BpfError> {
        self.0.endpoints.get(&ifindex)
    }

    /// Every endpoint.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn endpoints(&self) -> Result<Vec<(u32, Endpoint)>, BpfError> {
        self.0.endpoints.list()
    }

    /// What the kernel counts and learned about an endpoint.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn endpoint_use(&self, ifindex: u32) -> Result<Option<EndpointUse>, BpfError> {
        self.0.endpoint_use.get(&ifindex)
    }

    /// Makes the use of an endpoint, all zeros, unless it is there: what is there counts living flows. To be called
    /// before the endpoint is set; without it, quotas do not hold.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn init_use(&self, ifindex: u32) -> Result<(), BpfError> {
        self.0.endpoint_use.put_new(&ifindex, &EndpointUse::default()).map(drop)
    }

    /// Removes the use of an endpoint whose interface is gone; false when there was none.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn remove_use(&self, ifindex: u32) -> Result<bool, BpfError> {
        self.0.endpoint_use.remove(&ifindex)
    }

    /// Interfaces that have a use.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn uses(&self) -> Result<Vec<(u32, EndpointUse)>, BpfError> {
        self.0.endpoint_use.list()
    }

    /// Writes a workload; all zeros frees its handle.
    ///
    /// # Errors
    /// [`BpfError::Map`]; `E2BIG` when the handle is 65,536 or more.
    pub fn set_workload(&self, handle: u32, workload: &Workload) -> Result<(), BpfError> {
        self.0.workloads.put(&handle, workload, Put::Any)
    }

    /// The workload of a handle; all zeros when there is none.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn workload(&self, handle: u32) -> Result<Workload, BpfError> {
        Ok(self.0.workloads.get(&handle)?.unwrap_or_default())
    }

    /// Writes what an address is.
    ///
    /// # Errors
    /// [`BpfError::Map`]; `E2BIG` when the map is full.
    pub fn set_addr(&self, addr: &Addr, entry: &AddrEntry) -> Result<(), BpfError> {
        self.0.addrs.put(addr, entry, Put::Any)
    }

    /// Forgets an address; false when it was unknown.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn remove_addr(&self, addr: &Addr) -> Result<bool, BpfError> {
        self.0.addrs.remove(addr)
    }

    /// Every address.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn addrs(&self) -> Result<Vec<(Addr, AddrEntry)>, BpfError> {
        self.0.addrs.list()
    }

    /// Declares a port for probes.
    ///
    /// # Errors
    /// [`BpfError::Map`]; `E2BIG` when the map is full.
    pub fn set_probe_port(&self, port: &ProbePort) -> Result<(), BpfError> {
        self.0.probe_ports.put(port, &1, Put::Any)
    }

    /// Takes it back; false when it was not declared.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn remove_probe_port(&self, port: &ProbePort) -> Result<bool, BpfError> {
        self.0.probe_ports.remove(port)
    }

    /// Every declared port.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn probe_ports(&self) -> Result<Vec<ProbePort>, BpfError> {
        self.0.probe_ports.keys()
    }

    /// Writes verdicts, what is pointed at first: what points at it may be in use by the next packet.
    ///
    /// # Errors
    /// [`BpfError::Map`]; `E2BIG` when an array is shorter.
    pub fn set_verdicts(&self, of: &Verdicts<'_>) -> Result<(), BpfError> {
        self.0.cells.put_run(of.cells.0, of.cells.1)?;
        self.0.columns.put_run(of.columns.0, of.columns.1)?;
        self.0.chunks.put_run(of.chunks.0, of.chunks.1)?;
        self.0.rows.put_run(of.rows.0, of.rows.1)?;
        self.0.sets.put_run(of.sets.0, of.sets.1)
    }

    /// Writes the classes of a network's addresses, by epoch parity.
    ///
    /// # Errors
    /// [`BpfError::Map`]; `ENOSPC` when the map is full.
    pub fn set_net(&self, net: &NetKey, classes: [u32; 2]) -> Result<(), BpfError> {
        self.0.nets.put(net, &classes, Put::Any)
    }

    /// Forgets a network; false when it was unknown.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn remove_net(&self, net: &NetKey) -> Result<bool, BpfError> {
        self.0.nets.remove(net)
    }

    /// Every network.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn nets(&self) -> Result<Vec<(NetKey, [u32; 2])>, BpfError> {
        self.0.nets.list()
    }

    /// Counters, summed over CPUs; index with [`kumiko_abi::Stat`].
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn stats(&self) -> Result<Vec<u64>, BpfError> {
        (0..STATS_LEN).map(|at| self.sum(&self.0.stats, at)).collect()
    }

    /// How often each reason was met, summed over CPUs; index with [`kumiko_abi::Reason`]'s number.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn reasons(&self) -> Result<Vec<u64>, BpfError> {
        (0..REASONS_LEN).map(|at| self.sum(&self.0.reasons, at)).collect()
    }

    fn sum(&self, map: &RawMap<u32, u64>, at: u32) -> Result<u64, BpfError> {
        Ok(map.get_per_cpu(&at, self.0.cpus)?.iter().sum())
    }

    /// Pair counters, summed over CPUs. The key of zeros is the overflow bucket.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn pairs(&self) -> Result<Vec<(PairKey, PairCount)>, BpfError> {
        let mut all = Vec::new();
        for key in self.0.pairs.keys()? {
            let mut sum = PairCount::default();
            for of in self.0.pairs.get_per_cpu(&key, self.0.cpus)? {
                sum.events += of.events;
                sum.bytes += of.bytes;
            }
            all.push((key, sum));
        }
        Ok(all)
    }

    /// Puts a shard's listener where the programs look whether it lives, and where `sk_lookup` takes it from. The slot
    /// empties itself when the socket is closed.
    ///
    /// # Errors
    /// [`BpfError::Map`]; `EOPNOTSUPP` when the socket does not listen.
    pub fn set_listener(&self, shard: u16, v6: bool, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        let slot = u32::from(shard) * 2 + u32::from(v6);
        self.0.listeners.put(&slot, &socket.as_raw_fd().cast_unsigned(), Put::Any)
    }

    /// Empties every slot: from now on the programs see no agent.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn clear_listeners(&self) -> Result<(), BpfError> {
        (0..kumiko_abi::MAX_SHARDS * 2).try_for_each(|slot| self.0.listeners.remove(&slot).map(drop))
    }

    pub(super) fn flows(&self) -> &RawMap<FlowKey, Flow> {
        &self.0.flows
    }

    pub(super) fn syns(&self) -> &RawMap<u32, u32> {
        &self.0.syns
    }

    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.0.events.as_fd()
    }
}
