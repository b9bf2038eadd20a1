//! Asks the tables who may talk to whom. An endpoint without a set is judged by its stage alone.

use aya_ebpf::{btf_maps::lpm_trie::Key, helpers::generated as helpers};
use kumiko_abi::{
    Addr, AddrEntry, Config, Endpoint,
    judge::{Asker, Peer},
    policy::{self, Cell, Maps, NO_SET, Question, Row, Set, UNKNOWN_CLASS, find},
};

use crate::{
    ends::{self, Hook, bytes, stage},
    maps::{CELLS, CHUNKS, COLUMNS, ENDPOINTS, NETS, ROWS, SETS, Scratch, forget},
};

/// The pinned maps.
struct Tables;

impl Maps for Tables {
    #[inline(always)]
    fn set(&self, at: u32) -> Option<Set> {
        SETS.get(at).copied()
    }

    #[inline(always)]
    fn row(&self, at: u32) -> Option<Row> {
        ROWS.get(at).copied()
    }

    #[inline(always)]
    fn chunk(&self, at: u32) -> Option<u32> {
        CHUNKS.get(at).copied()
    }

    #[inline(always)]
    fn column(&self, chunk: u32, port: u32) -> Option<u8> {
        COLUMNS.get(chunk)?.0.get(port as usize).copied()
    }

    #[inline(always)]
    fn cell(&self, at: u32) -> Option<Cell> {
        CELLS.get(at).copied()
    }
}

#[inline(always)]
fn by_epoch([even, odd]: [u32; 2], epoch: u32) -> u32 {
    if epoch & 1 == 0 { even } else { odd }
}

/// The epoch, read once for a packet: sets and classes of two would not fit together.
#[inline(always)]
fn epoch(config: &Config) -> u32 {
    // SAFETY: an aligned field of a live element; volatile, so that it is not read again.
    unsafe { core::ptr::read_volatile(&raw const config.epoch) }
}

/// Class of an address.
#[inline(always)]
fn class(of: [u64; 2], epoch: u32) -> u32 {
    if let Some(AddrEntry { class, .. }) = ends::addr(of) {
        return by_epoch(class, epoch);
    }
    let key: Key<Addr> = Key::new(128, bytes(of));
    match NETS.get(&key) {
        Some(class) => by_epoch(*class, epoch),
        None => UNKNOWN_CLASS,
    }
}

/// Seconds since the boot.
#[inline(always)]
fn since_boot() -> u32 {
    // SAFETY: plain helper call.
    (unsafe { helpers::bpf_ktime_get_boot_ns() } / 1_000_000_000) as u32
}

/// Looks the answer to `s.question` up, whose class is that of the packet's source (or destination), or of this node's
/// processes, into `s.cell`. No cell denies.
#[inline(never)]
fn ask(s: &mut Scratch, config: &Config, epoch: u32, host: bool) {
    let peer = if s.question.ingress { s.packet.src } else { s.packet.dst };
    s.question.class = if host { by_epoch(config.host_class, epoch) } else { class(peer, epoch) };
    s.cell = find(&Tables, s.question).unwrap_or_default();
}

/// Fills `s.question` and looks it up; says whether there is anything to ask. For the SYN in hand; `host`: a process of
/// this node sends it, from whatever address (a bridge's, for one).
#[inline(always)]
fn asked(
    s: &mut Scratch,
    (config, epoch): (&Config, u32),
    endpoint: &Endpoint,
    (ingress, proved, host): (bool, bool, bool),
) -> bool {
    let set = by_epoch(endpoint.set, epoch);
    if set == NO_SET {
        return false;
    }
    s.question = Question { set, class: UNKNOWN_CLASS, ingress, udp: false, proved, port: s.packet.dport };
    forget(&mut s.question);
    ask(s, config, epoch, host);
    true
}

/// Asks the rules of both ends, as far as they are here, about a SYN that a pod sends. A Service's endpoint is chosen by
/// the agent, which asks about it then.
#[inline(never)]
pub(crate) fn outbound(hook: &Hook<'_>, s: &mut Scratch) {
    let (config, target, stages) = ((hook.config, epoch(hook.config)), s.target, s.decision);
    if target.handle != 0 && target.handle == hook.endpoint.handle {
        // A pod may always talk to itself.
        return;
    }
    if target.service == 0 {
        // Over TCP, TLS proves a meshed peer before a byte leaves; the veth proves one of this node.
        let tunnel = stage(hook.endpoint).meshed() && matches!(target.peer, Peer::Remote | Peer::LocalDetached);
        let proved = tunnel || target.ifindex != 0;
        if asked(s, config, hook.endpoint, (false, proved, false)) {
            s.decision = policy::rule(s.decision, stage(hook.endpoint), &s.cell, since_boot());
            forget(&mut s.decision);
        }
    }
    // Also of one that only observes, which counts as outside of the mesh.
    if target.ifindex != 0
        // SAFETY: read at once.
        && let Some(theirs) = unsafe { ENDPOINTS.get(target.ifindex) }
        && asked(s, config, theirs, (true, true, false))
    {
        let ingress = policy::rule(stages, stage(theirs), &s.cell, since_boot());
        s.decision = policy::both(s.decision, ingress);
        forget(&mut s.decision);
    }
}

/// Asks the rules of the pod that a SYN in the clear goes to.
#[inline(never)]
pub(crate) fn inbound(hook: &Hook<'_>, s: &mut Scratch, asker: Asker) {
    let stage = stage(hook.endpoint);
    // Of the node itself the tables say of "proved": it is the kubelet, at a declared port.
    let (probe, host) = (matches!(asker, Asker::Probe), matches!(asker, Asker::Host | Asker::Probe));
    if asked(s, (hook.config, epoch(hook.config)), hook.endpoint, (true, probe, host)) {
        let flags = kumiko_abi::judge::clear_flags(asker);
        s.decision = policy::rule_clear(s.decision, stage, &s.cell, since_boot(), flags);
        forget(&mut s.decision);
    }
}
