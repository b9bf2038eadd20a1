//! An edge that remembers what was done and panics at what must never be.

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::rc::Rc;

use kumiko_abi::flow::{TCP, flags};
use kumiko_abi::map::{endpoint_flags, workload_flags};
use kumiko_abi::{AddrKind, Backend, CommandResult, Direction, Flow, FlowId, FlowKey, FlowState, Reason, Stage};
use kumiko_core::addr::{ends, flow_key, to_abi};
use kumiko_core::compile::{Desired, Handles, Op};
use kumiko_core::model::Attachment;
use kumiko_core::policy::compile::Image;
use kumiko_core::stage::legacy::Older;
use kumiko_kernel::bpf::BpfError;

use super::super::edge::{Edge, EdgeError, Ended, NoVeth, Veth};

#[derive(Debug, Clone, Default)]
pub(super) struct Fake(Rc<RefCell<State>>);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) maps: Desired,
    pub(super) hooks: BTreeSet<u32>,
    pub(super) flows: HashMap<FlowKey, Flow>,
    pub(super) saved: Option<Handles>,
    /// Somebody took the socket lookup off.
    pub(super) lookup_off: bool,
    pub(super) log: Vec<String>,
    pub(super) epoch: u32,
    /// The next so many writes and hooks fail.
    pub(super) failing: u32,
    pub(super) guard_leaks: bool,
    /// Endpoints of Services whose choice was to be forgotten.
    pub(super) forgotten: HashSet<Backend>,
    pub(super) addresses: HashMap<String, IpAddr>,
    pub(super) shaped: HashSet<u32>,
    veths: BTreeMap<String, u32>,
    sockets: HashMap<u32, Vec<Older>>,
    uses: BTreeSet<u32>,
    /// Endpoints whose sockets were listed while they were in `learn`.
    listed: BTreeSet<u32>,
}

/// An entry of a state between two interfaces.
pub(super) fn flow(state: FlowState, src_ifindex: u32, dst_ifindex: u32) -> Flow {
    Flow {
        id: FlowId([7; 16]),
        first_ns: 1,
        last_syn_ns: 1,
        last_ns: 1,
        over_ns: 0,
        src: 1,
        dst: 3,
        service: 0,
        src_ifindex,
        dst_ifindex,
        generation: 1,
        epoch: 0,
        isn: 0,
        flags: 0,
        shard: 0,
        reason: 1,
        state: state as u8,
        verdict: 1,
        _pad: [0; 2],
        not_after: 0,
        dir: [Direction::default(); 2],
    }
}

impl Fake {
    pub(super) fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    pub(super) fn veth(&self, name: &str, ifindex: u32) {
        self.state().veths.insert(name.to_owned(), ifindex);
    }

    pub(super) fn remove_veth(&self, name: &str) {
        let mut state = self.state();
        if let Some(ifindex) = state.veths.remove(name) {
            state.hooks.remove(&ifindex);
        }
    }

    pub(super) fn socket(&self, ifindex: u32, pod: &str, peer: &str) {
        let older = Older { pod: pod.parse().unwrap(), peer: peer.parse().unwrap(), pod_began: None };
        self.state().sockets.entry(ifindex).or_default().push(older);
    }

    /// A socket in SYN_SENT.
    pub(super) fn connecting(&self, ifindex: u32, pod: &str, peer: &str) {
        let older = Older { pod: pod.parse().unwrap(), peer: peer.parse().unwrap(), pod_began: Some(true) };
        self.state().sockets.entry(ifindex).or_default().push(older);
    }

    pub(super) fn flow(&self, from: &str, to: &str, flow: Flow) {
        let (key, initiator) = flow_key(from.parse().unwrap(), to.parse().unwrap(), TCP);
        self.state().flows.insert(key, Flow { flags: flow.flags | initiator, ..flow });
    }

    pub(super) fn end(&self, from: &str, to: &str) {
        let (key, _) = flow_key(from.parse().unwrap(), to.parse().unwrap(), TCP);
        self.state().flows.get_mut(&key).unwrap().flags |= flags::OVER_FIN;
    }

    fn fails(&self) -> Result<(), EdgeError> {
        let mut state = self.state();
        if state.failing == 0 {
            return Ok(());
        }
        state.failing -= 1;
        Err(BpfError::Command(io::Error::other("not now")).into())
    }
}

impl State {
    fn check(&self, op: &Op) {
        match *op {
            Op::SetAddr(_, entry) if entry.kind == AddrKind::Workload as u8 => {
                assert!(self.maps.workloads.contains_key(&entry.handle), "an address points at no workload");
            }
            Op::ClearWorkload(handle) => {
                assert!(self.maps.addrs.values().all(|addr| addr.handle != handle), "an address still points at it");
            }
            Op::SetEndpoint(ifindex, endpoint) => {
                assert!(self.uses.contains(&ifindex), "an endpoint without counters");
                let was = self.maps.endpoints.get(&ifindex).copied().unwrap_or_default();
                let enforced =
                    |e: kumiko_abi::Endpoint| Stage::from_u8(e.stage).meshed() && e.flags & endpoint_flags::LEARN == 0;
                if enforced(endpoint) && (!enforced(was) || endpoint.stage > was.stage) {
                    assert!(was.flags & endpoint_flags::LEARN != 0, "enforced without learning");
                    assert!(self.hooks.contains(&ifindex), "enforced without hooks");
                    assert!(self.listed.contains(&ifindex), "enforced before its sockets were listed");
                }
            }
            Op::RemoveEndpoint(ifindex) => {
                assert!(!self.hooks.contains(&ifindex), "hooks without an endpoint judge nothing");
            }
            Op::SetWorkload(_, workload)
                if workload.flags & workload_flags::LOCAL != 0 && Stage::from_u8(workload.stage).meshed() =>
            {
                let attached = workload.flags & workload_flags::ATTACHED != 0;
                assert_eq!(attached, self.hooks.contains(&workload.ifindex));
            }
            Op::SetWorkload(handle, workload)
                if self.guard_leaks
                    && Stage::from_u8(workload.stage).meshed()
                    && workload.flags & (workload_flags::ATTACHED | workload_flags::LOCAL) == 0 =>
            {
                for (key, flow) in &self.flows {
                    let (_, server) = ends(key, flow.flags);
                    let to_it = self.maps.addrs.get(&to_abi(server.ip())).is_some_and(|addr| addr.handle == handle);
                    assert!(!to_it || flow.flags & flags::LEGACY != 0, "counted as a leak");
                }
            }
            _ => {}
        }
    }
}

impl Edge for Fake {
    fn load(&mut self) -> Result<Option<Handles>, EdgeError> {
        Ok(self.state().saved.clone())
    }

    fn save(&mut self, handles: &Handles) -> Result<(), EdgeError> {
        self.state().saved = Some(handles.clone());
        Ok(())
    }

    fn written(&mut self, handles: &Handles) -> Result<Desired, EdgeError> {
        let mut maps = self.state().maps.clone();
        maps.workloads.retain(|handle, _| handles.workloads.name(*handle).is_some());
        Ok(maps)
    }

    fn write(&mut self, op: &Op) -> Result<(), EdgeError> {
        self.fails()?;
        let mut state = self.state();
        state.check(op);
        state.maps.apply(op);
        state.log.push(format!("write {op:?}"));
        Ok(())
    }

    fn forget_backends(&mut self, gone: &HashSet<Backend>) -> Result<(), EdgeError> {
        self.state().forgotten.extend(gone);
        Ok(())
    }

    fn epoch(&mut self) -> Result<u32, EdgeError> {
        Ok(self.state().epoch)
    }

    fn set_verdicts(&mut self, image: &Image) -> Result<(), EdgeError> {
        self.fails()?;
        self.state().log.push(format!("verdicts of epoch {}", image.epoch));
        Ok(())
    }

    fn set_epoch(&mut self, image: &Image) -> Result<(), EdgeError> {
        self.fails()?;
        let epoch = image.epoch;
        self.state().epoch = epoch;
        self.state().log.push(format!("epoch {epoch}"));
        Ok(())
    }

    fn hooked(&mut self) -> Result<Vec<u32>, EdgeError> {
        Ok(self.state().hooks.iter().copied().collect())
    }

    fn restore_way(&mut self) -> Result<bool, EdgeError> {
        Ok(false)
    }

    fn restore_lookup(&mut self) -> Result<bool, EdgeError> {
        Ok(std::mem::take(&mut self.state().lookup_off))
    }

    fn hook(&mut self, ifindex: u32) -> Result<(), EdgeError> {
        self.fails()?;
        let mut state = self.state();
        assert!(state.maps.endpoints.contains_key(&ifindex), "hooks before their endpoint");
        assert!(state.veths.values().any(|known| *known == ifindex), "no such interface");
        state.hooks.insert(ifindex);
        state.log.push(format!("hook {ifindex}"));
        Ok(())
    }

    fn unhook(&mut self, ifindex: u32) -> Result<(), EdgeError> {
        let mut state = self.state();
        let there = state.veths.values().any(|known| *known == ifindex);
        let carried = state.flows.values().any(|flow| {
            flow.flags & flags::OVER == 0
                && flow.state != FlowState::Direct as u8
                && (flow.src_ifindex == ifindex || flow.dst_ifindex == ifindex)
        });
        assert!(!there || !carried, "payload of a captured flow would leave in the clear");
        state.hooks.remove(&ifindex);
        state.log.push(format!("unhook {ifindex}"));
        Ok(())
    }

    fn init_use(&mut self, ifindex: u32) -> Result<(), EdgeError> {
        self.state().uses.insert(ifindex);
        Ok(())
    }

    fn remove_use(&mut self, ifindex: u32) -> Result<(), EdgeError> {
        self.state().uses.remove(&ifindex);
        Ok(())
    }

    fn resolve(&mut self, attachment: &Attachment) -> Result<Veth, NoVeth> {
        let Attachment::Veth { name } = attachment else { panic!() };
        match self.state().veths.get(name) {
            Some(ifindex) => Ok(Veth {
                ifindex: *ifindex,
                name: name.clone(),
                pod_mac: [2, 0, 0, 0, 0, 1],
                gateway_mac: [2, 0, 0, 0, 0, 2],
                master: 0,
                running: true,
                netns: None,
            }),
            None => Err(NoVeth { problem: format!("no interface {name}"), may_come: true }),
        }
    }

    fn addresses(&mut self, interface: &str) -> io::Result<Vec<IpAddr>> {
        Ok(self.state().addresses.get(interface).copied().into_iter().collect())
    }

    fn shaped(&mut self) -> io::Result<HashSet<u32>> {
        Ok(self.state().shaped.clone())
    }

    fn sockets(&mut self, veth: &Veth) -> io::Result<Option<Vec<Older>>> {
        let mut state = self.state();
        let learns = state.maps.endpoints[&veth.ifindex].flags & endpoint_flags::LEARN != 0;
        assert!(learns, "sockets listed before the hooks learn: what begins meanwhile is lost");
        state.listed.insert(veth.ifindex);
        Ok(Some(state.sockets.get(&veth.ifindex).cloned().unwrap_or_default()))
    }

    fn flow(&self, key: &FlowKey) -> Option<Flow> {
        self.state().flows.get(key).copied()
    }

    fn scan(&self, each: &mut dyn FnMut(&FlowKey, &Flow)) -> Result<(), EdgeError> {
        let flows = self.state().flows.clone();
        flows.iter().for_each(|(key, flow)| each(key, flow));
        Ok(())
    }

    fn create(&self, key: &FlowKey, flow: &Flow) -> Result<CommandResult, EdgeError> {
        let mut state = self.state();
        if state.flows.contains_key(key) {
            return Ok(CommandResult::Exists);
        }
        state.flows.insert(*key, *flow);
        Ok(CommandResult::Done)
    }

    fn cut(&mut self, key: &FlowKey, _: &Flow, reason: Reason, _: &Ended) -> Result<(), EdgeError> {
        let mut state = self.state();
        let Some(flow) = state.flows.get_mut(key) else { return Ok(()) };
        (flow.state, flow.reason) = (FlowState::Cut as u8, reason as u16);
        Ok(())
    }

    fn flag(&self, key: &FlowKey, flow: &Flow, bits: u32) -> Result<CommandResult, EdgeError> {
        match self.state().flows.get_mut(key) {
            Some(there) if there.id == flow.id => {
                there.flags |= bits;
                Ok(CommandResult::Done)
            }
            Some(_) => Ok(CommandResult::Differs),
            None => Ok(CommandResult::Missing),
        }
    }
}
