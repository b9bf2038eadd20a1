//! A new model: numbers, who is local, where their veths are.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use kumiko_abi::Stage;
use kumiko_core::compile::Handles;
use kumiko_core::model::World;
use kumiko_core::stage::Phase;
use tracing::{info, warn};

use super::super::edge::Edge;
use super::super::local::{Leaving, Local};
use super::Engine;

/// Retired handles that may pile up before the flow table is searched for those that nobody needs any more.
const RETIRED: usize = 1024;

impl<E: Edge> Engine<E> {
    pub(super) fn follow(&mut self, world: Arc<World>, now: Instant) {
        self.number(&world);
        for local in self.locals.values() {
            let uid = &local.workload.uid;
            let stays = world.workload(uid).is_some_and(|new| new.meshed());
            if local.workload.meshed() && !stays {
                self.lowered.insert(uid.clone(), now);
            }
        }
        let gone: Vec<String> = self
            .locals
            .iter()
            .filter(|(uid, local)| {
                let new = world.workload(uid).filter(|new| new.node == self.node);
                new.is_none_or(|new| new.attachment != local.workload.attachment)
            })
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            if let Some(local) = self.locals.remove(&uid) {
                self.leave(local);
            }
        }
        for workload in world.workloads_on(&self.node) {
            let Some(handle) = self.handles.workload(&workload.uid) else { continue };
            match self.locals.get_mut(&workload.uid) {
                Some(local) => {
                    local.workload = workload.clone();
                    local.handle = handle;
                }
                None => drop(self.locals.insert(workload.uid.clone(), Local::new(workload.clone(), handle))),
            }
        }
        self.world = world;
    }

    /// Gives numbers to what is new, and makes the lookups of the snapshot.
    fn number(&mut self, world: &World) {
        let before = self.handles.clone();
        let shortage = self.handles.assign(world, &self.node);
        if shortage.workloads > 0 && shortage != self.shortage {
            warn!(without = shortage.workloads, "too many workloads: some count as outside the mesh");
        }
        self.shortage = shortage;
        if self.handles.workloads.retired().count() > RETIRED {
            let mut referenced: HashSet<u32> = self.leaving.values().map(|leaving| leaving.handle).collect();
            referenced.extend(self.locals.values().map(|local| local.handle));
            match self.edge.scan(&mut |_, flow| referenced.extend([flow.src, flow.dst])) {
                Ok(()) => self.handles.workloads.release(&referenced),
                Err(error) => warn!(%error, "handles that nobody needs could not be found"),
            }
        }
        if self.handles != before {
            // Before any of them is in a map: the next agent must read entries as we do.
            if let Err(error) = self.edge.save(&self.handles) {
                warn!(%error, "numbers are not kept: an agent that starts now cannot name older flows");
            }
        }
        let handles: &Handles = &self.handles;
        let retired: HashSet<u32> = handles.workloads.retired().map(|(handle, _)| handle).collect();
        let mut workloads: HashMap<u32, _> = self
            .workloads
            .iter()
            .filter(|(handle, _)| retired.contains(handle))
            .map(|(handle, workload)| (*handle, workload.clone()))
            .collect();
        for workload in world.workloads() {
            if let Some(handle) = handles.workload(&workload.uid) {
                workloads.insert(handle, workload.clone());
            }
        }
        let mut services: HashMap<u32, _> = HashMap::new();
        for service in world.services() {
            for port in &service.ports {
                let reference = service.reference(port);
                if let Some(id) = handles.service(&reference) {
                    services.insert(id, reference);
                }
            }
        }
        let retired_classes = handles.classes.retired().map(|(class, name)| (class, name.to_owned()));
        let classes = handles.classes.live().map(|(name, class)| (class, name.to_owned()));
        self.classes = Arc::new(retired_classes.chain(classes).collect());
        self.numbers = Arc::new(handles.workloads.live().map(|(uid, handle)| (uid.to_owned(), handle)).collect());
        self.workloads = Arc::new(workloads);
        self.services = Arc::new(services);
    }

    /// A local workload is no more; its hooks stay while they carry something.
    fn leave(&mut self, local: Local) {
        let Some(endpoint) = local.endpoint() else { return };
        let uid = local.workload.uid.clone();
        info!(workload = local.name(), ifindex = endpoint.ifindex, "workload is gone");
        let leaving = Leaving { uid, handle: local.handle, endpoint, begun: false };
        self.leaving.insert(endpoint.ifindex, leaving);
    }

    /// Finds the veths of enrolled workloads that are not known yet.
    pub(super) fn resolve(&mut self) {
        let unknown: Vec<String> = self
            .locals
            .iter()
            .filter(|(_, local)| local.veth.is_none() && local.workload.stage != Stage::Off)
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in &unknown {
            self.resolve_one(uid);
        }
        if !unknown.is_empty() {
            self.look_for_limits();
        }
        let coming_back = |leaving: &Leaving, locals: &std::collections::BTreeMap<String, Local>| {
            locals.get(&leaving.uid).is_some_and(|local| local.veth.is_none() && local.workload.stage != Stage::Off)
        };
        let mut left = Vec::new();
        for leaving in self.leaving.values_mut().filter(|leaving| !leaving.begun) {
            // Found at the start, and its workload's veth cannot be found just now: it stays as it is.
            if coming_back(leaving, &self.locals) {
                continue;
            }
            leaving.begun = true;
            leaving.endpoint.phase = Phase::Enforcing(Stage::Off);
            left.push((leaving.uid.clone(), leaving.handle, leaving.endpoint.ifindex));
        }
        for (uid, handle, ifindex) in left {
            self.tell_gone(&uid, handle, ifindex);
        }
    }

    fn resolve_one(&mut self, uid: &str) {
        let Some(local) = self.locals.get(uid) else { return };
        let Some(attachment) = local.workload.attachment.clone() else {
            return self.problem(
                uid,
                "it is enrolled on this node but has no spec.attachment: say where its veth is",
                false,
            );
        };
        let veth = match self.edge.resolve(&attachment) {
            Ok(veth) => veth,
            Err(missing) => return self.problem(uid, &missing.problem, missing.may_come),
        };
        let taken = self.locals.iter().find(|(_, other)| other.ifindex() == Some(veth.ifindex));
        if let Some((_, other)) = taken {
            let owner = other.name();
            let problem = format!("{} is the interface of {owner} already: give each workload its own", veth.name);
            return self.problem(uid, &problem, true);
        }
        if let Some(ip) = self.node_address_of(&veth.name) {
            let problem = format!("{} has this node's own address {ip}: it is the node's way out, no pod's", veth.name);
            return self.problem(uid, &problem, true);
        }
        let before = self.leaving.remove(&veth.ifindex);
        let Some(local) = self.locals.get_mut(uid) else { return };
        local.problem.clear();
        local.retry = false;
        let mut replaced = None;
        if let Some(before) = before {
            // The hooks are on. Another workload had the interface: its entries are not ours, so it learns anew.
            let same = before.uid == uid && !before.begun;
            local.phase = if same { before.endpoint.phase } else { Phase::Enforcing(Stage::Off) };
            replaced = (before.uid != uid && !before.begun).then_some((before.uid, before.handle));
        }
        info!(workload = local.name(), interface = veth.name, ifindex = veth.ifindex, "veth found");
        let ifindex = veth.ifindex;
        local.veth = Some(veth);
        if let Some((gone, handle)) = replaced {
            // What it has in tunnels is proved by its name, not by the newcomer's.
            self.tell_gone(&gone, handle, ifindex);
        }
    }

    /// An address of this node that an interface has: hooks there would judge the node's own traffic as a pod's.
    fn node_address_of(&mut self, interface: &str) -> Option<IpAddr> {
        let node = self.world.node(&self.node)?.addresses.clone();
        match self.edge.addresses(interface) {
            Ok(addresses) => addresses.into_iter().find(|ip| node.contains(ip)),
            Err(error) => {
                warn!(%error, interface, "its addresses cannot be listed");
                None
            }
        }
    }

    /// Looks at a veth again that is known; it stays if it is the same interface.
    pub(super) fn resolve_again(&mut self, uid: &str) {
        let Some(local) = self.locals.get_mut(uid) else { return };
        let (Some(attachment), Some(known)) = (&local.workload.attachment, &mut local.veth) else { return };
        match self.edge.resolve(attachment) {
            Ok(veth) if veth.ifindex == known.ifindex => *known = veth,
            // The link watch tells when it is gone.
            _ => {}
        }
    }

    pub(super) fn problem(&mut self, uid: &str, problem: &str, retry: bool) {
        let Some(local) = self.locals.get_mut(uid) else { return };
        if local.problem != problem {
            warn!(workload = local.name(), problem, "a workload of this node is not where it should be");
            problem.clone_into(&mut local.problem);
        }
        local.retry = retry;
    }
}
