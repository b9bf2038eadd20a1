//! Asks the tables who may talk to whom. An endpoint without a set is judged by its stage alone.

use aya_ebpf::{btf_maps::lpm_trie::Key, helpers::generated as helpers};
use kumiko_abi::{
    Addr, Config, Endpoint, FlowState, Reason, Stage, Verdict,
    flow::{
        TCP, UDP,
        flags::{HOST, LEGACY, OBSERVED, PROBE, REVOKED, RULED, TURNED, VETH_PROVED},
    },
    judge::{Action, Asker, Decision, Peer},
    policy::{self, Cell, Maps, NO_SET, Question, REVOKE_CUT, REVOKE_KEEP, Row, Set, UNKNOWN_CLASS, View, find},
};

use crate::{
    counters,
    ends::{self, Hook, by_epoch, bytes, stage},
    maps::{CELLS, CHUNKS, COLUMNS, ENDPOINTS, NETS, ROWS, SETS, Scratch, forget, read},
    table::{Entry, get, set},
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

/// The epoch, to be read once for a packet.
#[inline(always)]
pub(crate) fn epoch(config: &Config) -> u32 {
    // SAFETY: an aligned field of a live element; volatile, so that it is not read again.
    unsafe { core::ptr::read_volatile(&raw const config.epoch) }
}

/// Class of an address.
#[inline(always)]
fn class(of: [u64; 2], epoch: u32) -> u32 {
    if let Some(class) = ends::class(of, epoch) {
        return class;
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

/// Looks the answer to `s.question` up, whose class is that of `s.peer`, into `s.cell`. No cell denies. This node's processes may
/// have addresses that are not the node's, such as a bridge's: then the class is that of the node's first one.
#[inline(never)]
fn ask(s: &mut Scratch, config: &Config, host: bool, permissive: bool) {
    let stands_for = host && !ends::is_this_node(s.peer);
    s.question.class = if stands_for { by_epoch(config.host_class, s.epoch) } else { class(s.peer, s.epoch) };
    s.cell = find(&Tables, s.question).unwrap_or_default();
    if permissive && s.cell.reasons[0] == Reason::PeerUnproved as u8 {
        // Permissive asks for no proof: such tables are of the stage that the endpoint is about to have, or had.
        s.cell.allows |= 1 << View::Enforced as u8;
    }
}

/// Keeps the end of the verdict in `s.cell`, if it is the first of the packet's.
#[inline(always)]
fn keep_end(s: &mut Scratch) {
    // One less, so that none is the last of all.
    let end = s.cell.not_after.wrapping_sub(1);
    if end < s.not_after.wrapping_sub(1) {
        s.not_after = end.wrapping_add(1);
    }
    forget(&mut s.not_after);
}

/// Takes the end of a verdict that was added to a flow's, if it is the earlier one.
#[inline(always)]
pub(crate) fn take_end(s: &Scratch, entry: Entry) {
    if s.not_after.wrapping_sub(1) < get!(entry, not_after).wrapping_sub(1) {
        set!(entry, not_after = s.not_after);
    }
}

/// Whether the flow is to be judged again before the packet in hand passes: other rules are in force, or an exception has
/// ended that let it.
#[inline(always)]
pub(crate) fn is_old(s: &mut Scratch, entry: Entry) -> bool {
    let end = get!(entry, not_after);
    s.old = get!(entry, epoch) ^ s.epoch;
    if end != 0 && since_boot() >= end {
        s.old = 1;
    }
    forget(&mut s.old);
    s.old != 0
}

/// Of an endpoint, what says by which rules it is judged.
#[derive(Clone, Copy, Default)]
struct Rules {
    set: [u32; 2],
    stage: u8,
}

impl Rules {
    #[inline(always)]
    fn of(endpoint: &Endpoint) -> Self {
        Self { set: endpoint.set, stage: endpoint.stage }
    }

    #[inline(always)]
    fn stage(self) -> Stage {
        Stage::from_u8(self.stage)
    }
}

/// What is asked of one end's rules.
#[derive(Clone, Copy)]
struct Asked {
    ingress: bool,
    proved: bool,
    /// The peer is a process of this node, whatever its address (a bridge's, for one).
    host: bool,
    /// The destination's port.
    port: u16,
}

/// Fills `s.question` about `s.peer` and looks it up; says whether there is anything to ask.
#[inline(always)]
fn asked(s: &mut Scratch, config: &Config, rules: Rules, of: Asked) -> bool {
    let set = by_epoch(rules.set, s.epoch);
    if set == NO_SET {
        return false;
    }
    let Asked { ingress, proved, host, port } = of;
    let proto = s.packet.proto;
    s.question = Question { set, class: UNKNOWN_CLASS, ingress, proto, proved, port };
    forget(&mut s.question);
    ask(s, config, host, matches!(rules.stage(), Stage::Permissive));
    keep_end(s);
    true
}

/// Asks the rules of both ends, as far as they are here, about a flow that a pod begins. The endpoint of a Service that is
/// captured is chosen by the agent, which asks about it then.
#[inline(never)]
pub(crate) fn outbound(hook: &Hook<'_>, s: &mut Scratch) {
    let (config, target, stages) = (hook.config, s.target, s.decision);
    if target.handle != 0 && target.handle == hook.endpoint.handle {
        // A pod may always talk to itself.
        return;
    }
    let port = s.packet.dport;
    // Of a Service that is not translated here, its own address is asked about.
    if target.service == 0 || !matches!(s.packet.proto, TCP | UDP) {
        // Over TCP, TLS proves a meshed peer before a byte leaves; the veth proves one of this node.
        let tunnel = s.packet.proto == TCP
            && stage(hook.endpoint).meshed()
            && matches!(target.peer, Peer::Remote | Peer::LocalDetached);
        let proved = tunnel || target.ifindex != 0;
        s.peer = s.packet.dst;
        if asked(s, config, Rules::of(hook.endpoint), Asked { ingress: false, proved, host: false, port }) {
            s.decision = policy::rule(s.decision, stage(hook.endpoint), &s.cell, since_boot());
            forget(&mut s.decision);
        }
    }
    // Also of one that only observes, which counts as outside of the mesh.
    s.peer = s.packet.src;
    if target.ifindex != 0
        && let Some(theirs) = read(|| ENDPOINTS.get_ptr(target.ifindex), Rules::of)
        && asked(s, config, theirs, Asked { ingress: true, proved: true, host: false, port })
    {
        let ingress = policy::rule(stages, theirs.stage(), &s.cell, since_boot());
        s.decision = policy::both(s.decision, ingress);
        forget(&mut s.decision);
    }
}

/// Asks the rules of the pod that a flow in the clear goes to.
#[inline(never)]
pub(crate) fn inbound(hook: &Hook<'_>, s: &mut Scratch, asker: Asker) {
    let stage = stage(hook.endpoint);
    // Of the node itself the tables say of "proved": it is the kubelet, at a declared port.
    let (probe, host) = (matches!(asker, Asker::Probe), matches!(asker, Asker::Host | Asker::Probe));
    let (tcp, port) = (s.packet.proto == TCP, s.packet.dport);
    let proved = (probe && tcp) || matches!(asker, Asker::Neighbour);
    s.peer = s.packet.src;
    if asked(s, hook.config, Rules::of(hook.endpoint), Asked { ingress: true, proved, host, port }) {
        let flags = kumiko_abi::judge::clear_flags(asker);
        s.decision = policy::rule_clear(s.decision, stage, &s.cell, since_boot(), flags);
        forget(&mut s.decision);
    }
}

/// Asks the rules of the pod that answers a SYN which no hook has seen.
#[inline(never)]
pub(crate) fn answered(hook: &Hook<'_>, s: &mut Scratch) {
    let port = s.packet.sport;
    s.peer = s.packet.dst;
    if asked(s, hook.config, Rules::of(hook.endpoint), Asked { ingress: true, proved: false, host: false, port }) {
        let flags = kumiko_abi::judge::clear_flags(Asker::Unknown);
        s.decision = policy::rule_clear(s.decision, stage(hook.endpoint), &s.cell, since_boot(), flags);
        forget(&mut s.decision);
    }
}

/// Asks the rules of the pod to which the agent hands what came in a tunnel, which proved the source; false: they refuse it. The
/// agent asked by the same tables, for the dialler has to be told: this is what holds when they changed since.
#[inline(never)]
pub(crate) fn delivered(s: &mut Scratch, config: &Config, entry: Entry) -> bool {
    s.epoch = epoch(config);
    let (port, own) = (s.packet.dport, get!(entry, src) != 0 && get!(entry, src) == get!(entry, dst));
    let Some(endpoint) = read(|| ENDPOINTS.get_ptr(get!(entry, dst_ifindex)), Rules::of) else { return true };
    s.peer = s.packet.src;
    if own || !asked(s, config, endpoint, Asked { ingress: true, proved: true, host: false, port }) {
        return true;
    }
    let begun = Decision { action: Action::Direct, verdict: Verdict::Allow, reason: Reason::Allowed, flags: 0 };
    s.decision = policy::rule(begun, endpoint.stage(), &s.cell, since_boot());
    forget(&mut s.decision);
    if !matches!(s.decision.verdict, Verdict::Deny) {
        return true;
    }
    counters::reason(s.decision.reason);
    set!(entry, reason = s.decision.reason as u16);
    set!(entry, verdict = Verdict::Deny as u8);
    set!(entry, epoch = s.epoch);
    entry.raise(REVOKED);
    set!(entry, state = FlowState::Cut as u8);
    false
}

/// Asks the rules of both ends anew about a flow that passes and was judged under another epoch; `from`: the packet in hand
/// is its initiator's. False: they refuse it, and it is cut. What keeps its right for a while, or for good, is the agent's to
/// follow.
#[inline(never)]
pub(crate) fn again(s: &mut Scratch, config: &Config, entry: Entry, from: bool) -> bool {
    let flags = entry.flags();
    s.not_after = 0;
    let (src, dst) = (get!(entry, src_ifindex), get!(entry, dst_ifindex));
    let (p, epoch) = (&s.packet, s.epoch);
    let (client, server, port) = if from { (p.src, p.dst, p.dport) } else { (p.dst, p.src, p.sport) };
    let own = get!(entry, src) != 0 && get!(entry, src) == get!(entry, dst);
    if flags & (LEGACY | OBSERVED) == 0 && !own {
        let proved = (src != 0 && dst != 0) || flags & (VETH_PROVED | PROBE) != 0;
        let host = flags & (HOST | PROBE) != 0;
        let begun = Decision { action: Action::Direct, verdict: Verdict::Allow, reason: Reason::Allowed, flags: 0 };
        let (mut revoke, now) = (REVOKE_KEEP, since_boot());
        s.decision = begun;
        s.peer = server;
        let itself = get!(entry, service) == 0 || !matches!(s.packet.proto, TCP | UDP);
        if (itself || flags & TURNED != 0)
            && let Some(endpoint) = read(|| ENDPOINTS.get_ptr(src), Rules::of)
            && asked(s, config, endpoint, Asked { ingress: false, proved, host: false, port })
        {
            s.decision = policy::rule(begun, endpoint.stage(), &s.cell, now);
            forget(&mut s.decision);
            if matches!(s.decision.verdict, Verdict::Deny) {
                revoke = s.cell.revoke;
            }
        }
        s.peer = client;
        if let Some(endpoint) = read(|| ENDPOINTS.get_ptr(dst), Rules::of)
            && asked(s, config, endpoint, Asked { ingress: true, proved, host, port })
        {
            let ingress = policy::rule(begun, endpoint.stage(), &s.cell, now);
            if matches!(ingress.verdict, Verdict::Deny) && s.cell.revoke < revoke {
                revoke = s.cell.revoke;
            }
            s.decision = policy::both(s.decision, ingress);
            forget(&mut s.decision);
        }
        // What a higher stage alone refuses is older than that, and goes on: who is known by an address only is the agent's.
        let stranger = get!(entry, src) == 0 || get!(entry, dst) == 0;
        let sure = proved || stranger || flags & TURNED != 0;
        let by_rules =
            s.packet.proto != TCP || flags & RULED != 0 || (sure && !matches!(s.decision.reason, Reason::PeerUnproved));
        if matches!(s.decision.verdict, Verdict::Deny) && revoke == REVOKE_CUT && by_rules {
            counters::reason(s.decision.reason);
            set!(entry, reason = s.decision.reason as u16);
            set!(entry, verdict = Verdict::Deny as u8);
            set!(entry, epoch = epoch);
            entry.raise(REVOKED);
            set!(entry, state = FlowState::Cut as u8);
            return false;
        }
    }
    set!(entry, epoch = epoch);
    // What lasts no longer is kept, by an exception that says so, and not asked about for each packet.
    let end = if s.not_after > since_boot() { s.not_after } else { 0 };
    set!(entry, not_after = end);
    true
}
