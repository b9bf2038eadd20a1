//! The real edge: kumiko-kernel and one file.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kumiko_abi::flow::flags;
use kumiko_abi::map::ProbePort;
use kumiko_abi::policy::{CELLS_LEN, CHUNKS_LEN, COLUMNS_LEN, ROWS_LEN, SETS_LEN};
use kumiko_abi::{Backend, CommandResult, Config, Flow, FlowKey, Reason, Workload};
use kumiko_core::addr::from_abi;
use kumiko_core::compile::{Desired, Handles, Op, net_key, service_key};
use kumiko_core::model::Attachment;
use kumiko_core::policy::compile::{Image, runs};
use kumiko_core::stage::legacy::Older;
use kumiko_kernel::bpf::{BpfError, Commands, Datapath, FlowTable, Maps, Verdicts};
use kumiko_kernel::diag::{self, Diag, TcpState};
use kumiko_kernel::netns::Netns;
use kumiko_kernel::{qdisc, veth};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use tracing::warn;

use super::edge::{Edge, EdgeError, Ended, NoVeth, Veth};
use super::touched::{Element, Touched};

/// File of the numbers, in the agent's directory.
const HANDLES: &str = "handles.json";

/// Maps, hooks, interfaces and sockets of this node.
pub struct KernelEdge {
    datapath: Arc<Datapath>,
    maps: Maps,
    commands: Commands,
    flows: FlowTable,
    host: Netns,
    agent: Netns,
    agent_ifindex: u32,
    handles: PathBuf,
    /// Verdicts as they were written last, by epoch's parity; none: not known.
    halves: [Option<Image>; 2],
    /// What may still be read as it was.
    touched: Touched,
}

impl KernelEdge {
    /// `host` is the namespace that interfaces are looked up in; `agent_ifindex` is the way into the agent's there.
    pub fn new(datapath: Arc<Datapath>, host: Netns, agent: Netns, agent_ifindex: u32, run_dir: &Path) -> Self {
        let (maps, commands, flows) = (datapath.maps(), datapath.commands(), datapath.flows());
        Self {
            datapath,
            maps,
            commands,
            flows,
            host,
            agent,
            agent_ifindex,
            handles: run_dir.join(HANDLES),
            halves: [None, None],
            touched: Touched::new(),
        }
    }

    /// Before an element is replaced or removed, or anything else is written: waits for programs that may read what was there.
    fn touch(&mut self, element: Option<Element>) -> Result<(), EdgeError> {
        if self.touched.must_wait(element) {
            self.maps.wait_for_programs()?;
            self.touched.waited();
        }
        element.into_iter().for_each(|element| self.touched.touch(element));
        Ok(())
    }

    fn file(&self, source: io::Error) -> EdgeError {
        EdgeError::File { path: self.handles.display().to_string(), source }
    }
}

impl Edge for KernelEdge {
    fn load(&mut self) -> Result<Option<Handles>, EdgeError> {
        match fs::read(&self.handles) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.file(error)),
            Ok(bytes) => match Handles::read(&bytes) {
                Ok(handles) => Ok(Some(handles)),
                Err(error) => {
                    warn!(file = %self.handles.display(), %error, "numbers of the last agent cannot be read: begun anew");
                    Ok(None)
                }
            },
        }
    }

    fn save(&mut self, handles: &Handles) -> Result<(), EdgeError> {
        let bytes = serde_json::to_vec(handles).map_err(|error| self.file(error.into()))?;
        let temporary = self.handles.with_extension("json.new");
        // Not flushed to the disk: the maps that the numbers belong to do not outlive the machine either.
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&temporary).and_then(|mut file| file.write_all(&bytes));
        written.and_then(|()| fs::rename(&temporary, &self.handles)).map_err(|error| self.file(error))
    }

    fn written(&mut self, handles: &Handles) -> Result<Desired, EdgeError> {
        let mut written = Desired {
            addrs: self.maps.addrs()?.into_iter().collect(),
            endpoints: self.maps.endpoints()?.into_iter().collect(),
            probe_ports: self.maps.probe_ports()?.into_iter().map(|probe| (probe.handle, probe.port)).collect(),
            backends: self.maps.backends()?.into_iter().collect(),
            services: self.maps.services()?.into_iter().map(|(k, v)| ((k.addr, k.port, k.proto), v)).collect(),
            nets: self.maps.nets()?.into_iter().map(|(key, classes)| ((key.net, key.prefix), classes)).collect(),
            ..Desired::default()
        };
        let live = handles.workloads.live().map(|(_, handle)| handle);
        for handle in live.chain(handles.workloads.retired().map(|(handle, _)| handle)) {
            let workload = self.maps.workload(handle)?;
            if workload != Workload::default() {
                written.workloads.insert(handle, workload);
            }
        }
        Ok(written)
    }

    fn write(&mut self, op: &Op) -> Result<(), EdgeError> {
        self.touch(Element::of(op))?;
        let probe = |handle, port| ProbePort { handle, port, _pad: 0 };
        match *op {
            Op::SetWorkload(handle, workload) => self.maps.set_workload(handle, &workload)?,
            Op::SetAddr(addr, entry) => self.maps.set_addr(&addr, &entry)?,
            Op::SetProbePort(handle, port) => self.maps.set_probe_port(&probe(handle, port))?,
            Op::SetEndpoint(ifindex, endpoint) => self.maps.set_endpoint(ifindex, &endpoint)?,
            Op::SetService(key, entry) => self.maps.set_service(&service_key(key), &entry)?,
            Op::SetBackend(key, backend) => self.maps.set_backend(&key, &backend)?,
            Op::RemoveBackend(key) => drop(self.maps.remove_backend(&key)?),
            Op::SetNet(net, classes) => self.maps.set_net(&net_key(net), classes)?,
            Op::RemoveNet(net) => drop(self.maps.remove_net(&net_key(net))?),
            Op::RemoveService(key) => drop(self.maps.remove_service(&service_key(key))?),
            Op::RemoveEndpoint(ifindex) => drop(self.maps.remove_endpoint(ifindex)?),
            Op::RemoveProbePort(handle, port) => drop(self.maps.remove_probe_port(&probe(handle, port))?),
            Op::RemoveAddr(addr) => drop(self.maps.remove_addr(&addr)?),
            Op::ClearWorkload(handle) => self.maps.set_workload(handle, &Workload::default())?,
        }
        Ok(())
    }

    fn forget_backends(&mut self, gone: &HashSet<Backend>) -> Result<(), EdgeError> {
        for (key, chosen) in self.maps.translations()? {
            if gone.contains(&chosen) {
                self.maps.remove_translation(&key)?;
            }
        }
        Ok(())
    }

    fn epoch(&mut self) -> Result<u32, EdgeError> {
        Ok(self.maps.config()?.epoch)
    }

    fn set_verdicts(&mut self, image: &Image) -> Result<(), EdgeError> {
        self.touch(None)?;
        let Some(half) = self.halves.get_mut((image.epoch % 2) as usize) else { return Ok(()) };
        // Should a write fail, nobody knows what stands there.
        let before = half.take().unwrap_or_default();
        write_verdicts(&self.maps, &before, image)?;
        *half = Some(image.clone());
        Ok(())
    }

    fn set_epoch(&mut self, image: &Image) -> Result<(), EdgeError> {
        let mut config = self.maps.config()?;
        if let Some(slot) = config.host_class.get_mut((image.epoch % 2) as usize) {
            *slot = image.host;
        }
        // The slot first: a program may see a part of one write, and reads no slot of an epoch that is yet to come.
        self.maps.set_config(&config)?;
        self.maps.set_config(&Config { epoch: image.epoch, ..config })?;
        // After a wait no packet passes by older verdicts, and what the next ones need may be written over theirs. The new ones
        // are in force even if it cannot be waited now.
        self.touched.flipped();
        if let Err(error) = self.touch(None) {
            warn!(%error, "packets may pass by older verdicts for a moment: waited for before anything is written again");
        }
        Ok(())
    }

    fn hooked(&mut self) -> Result<Vec<u32>, EdgeError> {
        Ok(self.datapath.attached()?)
    }

    fn restore_way(&mut self) -> Result<bool, EdgeError> {
        Ok(self.datapath.restore_agent_veth(self.agent_ifindex)?)
    }

    fn restore_lookup(&mut self) -> Result<bool, EdgeError> {
        Ok(self.datapath.restore_lookup(self.agent.as_fd())?)
    }

    fn hook(&mut self, ifindex: u32) -> Result<(), EdgeError> {
        Ok(self.datapath.attach_pod(ifindex)?)
    }

    fn unhook(&mut self, ifindex: u32) -> Result<(), EdgeError> {
        Ok(self.datapath.detach_pod(ifindex)?)
    }

    fn init_use(&mut self, ifindex: u32) -> Result<(), EdgeError> {
        self.touch(Some(Element::Use(ifindex)))?;
        Ok(self.maps.init_use(ifindex)?)
    }

    fn remove_use(&mut self, ifindex: u32) -> Result<(), EdgeError> {
        self.touch(Some(Element::Use(ifindex)))?;
        Ok(self.maps.remove_use(ifindex).map(drop)?)
    }

    fn resolve(&mut self, attachment: &Attachment) -> Result<Veth, NoVeth> {
        let attachment = match attachment {
            Attachment::Netns { path, interface } => {
                veth::Attachment::Netns { path: path.into(), interface: interface.clone() }
            }
            Attachment::Veth { name } => veth::Attachment::Veth { name: name.clone() },
        };
        match veth::resolve(&attachment, &self.host) {
            Ok(found) if found.ifindex == self.agent_ifindex => Err(NoVeth {
                problem: format!("{} leads into the agent's own namespace, not into a pod", found.name),
                may_come: false,
            }),
            Ok(found) => Ok(Veth {
                ifindex: found.ifindex,
                name: found.name,
                pod_mac: found.pod_mac,
                gateway_mac: found.gateway_mac,
                master: found.master,
                running: found.running,
                netns: found.netns.map(Arc::new),
            }),
            Err(error) => Err(NoVeth { problem: error.to_string(), may_come: error.may_come() }),
        }
    }

    fn addresses(&mut self, interface: &str) -> io::Result<Vec<IpAddr>> {
        let all = self.host.within(|| Ok(getifaddrs()?.collect::<Vec<_>>()))?;
        let own = all.iter().filter(|one| one.interface_name == interface).filter_map(|one| one.address.as_ref());
        Ok(own.filter_map(ip_of).collect())
    }

    fn shaped(&mut self) -> io::Result<HashSet<u32>> {
        qdisc::shaped(&self.host)
    }

    fn sockets(&mut self, veth: &Veth) -> io::Result<Option<Vec<Older>>> {
        let Some(netns) = &veth.netns else { return Ok(None) };
        let older = |socket: diag::TcpSocket| Older {
            pod: socket.local,
            peer: socket.remote,
            pod_began: match socket.state {
                TcpState::SynSent => Some(true),
                TcpState::SynReceived => Some(false),
                _ => None,
            },
        };
        // What is only remembered needs nothing: its last packets were judged with the flow, or learnt.
        let lives = |socket: &diag::TcpSocket| socket.state != TcpState::TimeWait;
        Ok(Some(diag::dump(netns)?.into_iter().filter(lives).map(older).collect()))
    }

    fn flow(&self, key: &FlowKey) -> Option<Flow> {
        self.flows.get(key)
    }

    fn scan(&self, each: &mut dyn FnMut(&FlowKey, &Flow)) -> Result<(), EdgeError> {
        self.flows.scan(each).map_err(EdgeError::Scan)
    }

    fn create(&self, key: &FlowKey, flow: &Flow) -> Result<CommandResult, EdgeError> {
        // A connection to a Service whose endpoint the programs chose is known under that endpoint's address.
        if self.maps.translation(key)?.is_some() {
            return Ok(CommandResult::Exists);
        }
        Ok(self.commands.create(key, flow)?)
    }

    fn cut(&mut self, key: &FlowKey, flow: &Flow, reason: Reason, ended: &Ended) -> Result<(), EdgeError> {
        // The sockets first: their RST still passes to an end that is elsewhere. One that is gone needs none.
        // Of a flow whose endpoint the programs chose, the client's socket has the Service for its peer.
        let turned = if flow.flags & flags::TURNED != 0 { self.maps.translation(key)? } else { None };
        let peer = turned.map_or(ended.server, |asked| SocketAddr::new(from_abi(&asked.addr), asked.port));
        let ends = [(ended.client, peer), (ended.server, ended.client)];
        for (netns, (local, remote)) in ended.netns.iter().zip(ends) {
            if let Some(netns) = netns
                && let Err(error) = Diag::open(netns).and_then(|mut diag| diag.destroy(local, remote))
            {
                warn!(%local, %remote, %error, "a socket whose flow is cut could not be closed: its next packet will be reset");
            }
        }
        self.commands.cut(key, &flow.id, reason, ended.epoch)?;
        Ok(())
    }

    fn flag(&self, key: &FlowKey, flow: &Flow, flags: u32) -> Result<CommandResult, EdgeError> {
        Ok(self.commands.flag(key, &flow.id, flags)?)
    }
}

/// Writes what differs, what is pointed at first.
fn write_verdicts(maps: &Maps, before: &Image, image: &Image) -> Result<(), BpfError> {
    let none = Verdicts::default();
    for (at, cells) in runs(&before.cells, &image.cells) {
        maps.set_verdicts(&Verdicts { cells: (image.begin(CELLS_LEN) + at, cells), ..none })?;
    }
    for (at, columns) in runs(&before.columns, &image.columns) {
        maps.set_verdicts(&Verdicts { columns: (image.begin(COLUMNS_LEN) + at, columns), ..none })?;
    }
    for (at, chunks) in runs(&before.chunks, &image.chunks) {
        maps.set_verdicts(&Verdicts { chunks: (image.begin(CHUNKS_LEN) + at, chunks), ..none })?;
    }
    for (at, rows) in runs(&before.rows, &image.rows) {
        maps.set_verdicts(&Verdicts { rows: (image.begin(ROWS_LEN) + at, rows), ..none })?;
    }
    for (at, sets) in runs(&before.sets, &image.sets) {
        maps.set_verdicts(&Verdicts { sets: (image.begin(SETS_LEN) + at, sets), ..none })?;
    }
    Ok(())
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}
