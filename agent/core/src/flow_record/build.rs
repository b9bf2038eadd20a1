//! From the kernel's entry to a record.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use kumiko_abi::flow::{ICMP, ICMPV6, SCTP, TCP, UDP, dir_flags, flags};
use kumiko_abi::{Flow, FlowId, FlowState, Reason, Stage, Verdict};

use super::{
    AgentFacts, Entry, FlowClose, FlowDirection, FlowPath, FlowPhase, FlowRecord, FlowSide, Party, PartyKind,
    PartyName, ServiceName,
};
use crate::addr;

/// From `CLOCK_MONOTONIC` to Unix time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Clock {
    /// Unix time minus monotonic time, in ns.
    pub unix_minus_monotonic: i64,
}

impl Clock {
    /// Unix nanoseconds of a monotonic time; 0 stays 0 ("never").
    pub fn unix(self, monotonic_ns: u64) -> u64 {
        if monotonic_ns == 0 { 0 } else { monotonic_ns.saturating_add_signed(self.unix_minus_monotonic) }
    }
}

/// Who is behind an address or a handle, as the model knows now. Shared values: a full flow table names each workload
/// many times.
pub trait Directory {
    /// The workload with this handle.
    fn by_handle(&self, handle: u32) -> Option<Arc<PartyName>>;
    /// The workload or node with this address.
    fn by_ip(&self, ip: IpAddr) -> Option<Arc<PartyName>>;
    /// The Service behind an address, port and IP protocol.
    fn service(&self, asked: SocketAddr, proto: u8) -> Option<Arc<ServiceName>>;
    /// The Service with this number, asked by a client of IPv6 or of IPv4: of a flow whose endpoint the programs chose.
    fn service_of(&self, _number: u32, _v6: bool) -> Option<Arc<ServiceName>> {
        None
    }
}

/// Names of both ends, as they were when the flow began: a record outlives its workloads.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    /// The end that began it.
    pub source: Option<Arc<PartyName>>,
    /// The other end.
    pub destination: Option<Arc<PartyName>>,
    /// Service that was asked for.
    pub service: Option<Arc<ServiceName>>,
}

impl Names {
    /// Looks up what is not known yet. Handles speak before addresses: an address can have been reused meanwhile.
    pub fn complete(&mut self, directory: &dyn Directory, entry: &Entry, facts: &AgentFacts) {
        let flow = &entry.flow;
        let (source, asked) = addr::ends(&entry.key, flow.flags);
        let look = |handle: u32, ip: IpAddr| {
            (handle != 0).then(|| directory.by_handle(handle)).flatten().or_else(|| directory.by_ip(ip))
        };
        if self.source.is_none() {
            self.source = look(flow.src, source.ip());
        }
        if self.service.is_none() {
            let known = match flow.service {
                0 => None,
                number if flow.flags & flags::TURNED != 0 => directory.service_of(number, asked.is_ipv6()),
                _ => directory.service(asked, entry.key.proto),
            };
            self.service = facts.service.clone().map(Arc::new).or(known);
        }
        if self.destination.is_none() {
            let target = facts.target.unwrap_or(asked);
            // The address of a Service names no workload until an endpoint was chosen.
            let chosen = facts.target.is_some() || flow.flags & flags::TURNED != 0;
            if chosen || self.service.is_none() || flow.dst != 0 {
                self.destination = look(flow.dst, target.ip());
            }
        }
    }
}

impl FlowRecord {
    /// The record of an entry, seen from `node`.
    pub fn build(node: &str, clock: Clock, entry: &Entry, names: &Names, facts: &AgentFacts) -> Self {
        let flow = &entry.flow;
        let has = |flag: u32| flow.flags & flag != 0;
        let (source_addr, asked) = addr::ends(&entry.key, flow.flags);
        let destination_addr = facts.target.filter(|_| names.service.is_some()).unwrap_or(asked);

        let reason = reason(flow, facts);
        // A refusal has no flags: its reason tells.
        let by_host = has(flags::HOST) || reason == Reason::HostRefused;
        let from_host = by_host || has(flags::PROBE);
        let source = if from_host && names.source.as_ref().is_none_or(|s| s.kind != PartyKind::Workload) {
            host(source_addr, node)
        } else {
            party(source_addr, names.source.as_deref())
        };
        let destination = match (&names.destination, &names.service) {
            (None, Some(service)) if facts.target.is_none() && !has(flags::TURNED) => {
                service_party(destination_addr, service)
            }
            (name, _) => party(destination_addr, name.as_deref()),
        };

        let verdict = verdict(flow, reason);
        let state = FlowState::from_u8(flow.state);
        let phase = phase(flow, state, verdict, facts);
        let path = path(state, verdict, remote(node, &source, &destination, facts), entry.flow.flags);
        let close = (phase == FlowPhase::Closed).then(|| close(flow, verdict, reason, facts)).flatten();
        // Times of packets and of the end are of a coarser clock: a short flow would end before it began.
        let end = if flow.over_ns != 0 { flow.over_ns } else { flow.last_ns }.max(flow.first_ns);
        let [sent, received] = flow.dir;

        Self {
            id: hex_id(flow.id),
            node: node.to_owned(),
            report: 0,
            start_unix_ns: clock.unix(flow.first_ns),
            end_unix_ns: clock.unix(end),
            direction: direction(node, flow, &source, &destination, facts),
            service: names.service.as_deref().cloned(),
            protocol: protocol(entry.key.proto),
            path,
            encrypted: path == FlowPath::Tunnel && (facts.opened || state == Some(FlowState::Captured)),
            legacy: has(flags::LEGACY),
            downgraded: has(flags::DOWNGRADED),
            plaintext: has(flags::PLAINTEXT),
            probe: has(flags::PROBE),
            host: by_host,
            other_port: has(flags::OTHER_PORT),
            hairpin: has(flags::HAIRPIN),
            observed: has(flags::OBSERVED),
            audit_differs: has(flags::AUDIT_DIFFERS),
            strict_refuses: has(flags::STRICT_REFUSES),
            stage: local_stage(node, names),
            state: phase,
            verdict,
            reason: Cow::Borrowed(reason.name()),
            reason_text: Cow::Borrowed(reason.text()),
            hint: Cow::Borrowed(reason.hint()),
            errno: facts.errno,
            bytes_sent: sent.bytes,
            bytes_received: received.bytes,
            packets_sent: sent.packets,
            packets_received: received.packets,
            rtt_us: facts.rtt_us,
            retransmits: facts.retransmits,
            close,
            closed_by: close.and_then(|_| closed_by(flow, verdict, facts)),
            peer_node: facts.peer_node.clone(),
            tunnel: facts.tunnel,
            handshake_us: facts.handshake_us,
            connect_us: facts.connect_us,
            epoch: facts.epoch.unwrap_or(flow.epoch),
            peer_epoch: facts.peer_epoch,
            proof: Cow::Borrowed(proof(flow, path, phase, facts, destination.node == node)),
            source,
            destination,
        }
    }
}

fn party(at: SocketAddr, name: Option<&PartyName>) -> Party {
    let name = name.cloned().unwrap_or_default();
    Party {
        kind: name.kind,
        namespace: name.namespace,
        name: name.name,
        service_account: name.service_account,
        principal: name.principal,
        ip: at.ip(),
        port: at.port(),
        node: name.node,
    }
}

fn host(at: SocketAddr, node: &str) -> Party {
    let name =
        PartyName { kind: PartyKind::Node, name: node.to_owned(), node: node.to_owned(), ..PartyName::default() };
    party(at, Some(&name))
}

fn service_party(at: SocketAddr, service: &ServiceName) -> Party {
    let name = PartyName {
        kind: PartyKind::Service,
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        ..PartyName::default()
    };
    party(at, Some(&name))
}

fn protocol(number: u8) -> Cow<'static, str> {
    match number {
        TCP => Cow::Borrowed("tcp"),
        UDP => Cow::Borrowed("udp"),
        SCTP => Cow::Borrowed("sctp"),
        ICMP | ICMPV6 => Cow::Borrowed("icmp"),
        other => Cow::Owned(other.to_string()),
    }
}

/// The agent's reason tells more than the kernel's, unless it only says that a stream ended as streams do.
fn reason(flow: &Flow, facts: &AgentFacts) -> Reason {
    let ordinary = |reason: &Reason| {
        matches!(reason, Reason::None | Reason::Allowed | Reason::Finished | Reason::ClientReset | Reason::ServerReset)
    };
    facts
        .reason
        .and_then(Reason::from_u16)
        .filter(|reason| !ordinary(reason))
        .or_else(|| Reason::from_u16(flow.reason))
        .unwrap_or(Reason::None)
}

fn verdict(flow: &Flow, reason: Reason) -> Verdict {
    if flow.verdict == Verdict::Audit as u8 && flow.reason == reason as u16 {
        // The kernel names what would refuse it, and let it be.
        return Verdict::Audit;
    }
    match reason as u16 {
        // What the connection would have met without the mesh too, though the entry was cut to say so.
        400..=402 | 404 | 407 | 411 => Verdict::Allow,
        // What the agent refused, or could not carry: policy, identity, capacity.
        20..=21 | 23..=399 | 600..=799 => Verdict::Deny,
        _ => match flow.verdict {
            2 => Verdict::Deny,
            3 => Verdict::Audit,
            _ => Verdict::Allow,
        },
    }
}

fn phase(flow: &Flow, state: Option<FlowState>, verdict: Verdict, facts: &AgentFacts) -> FlowPhase {
    let over = flow.over_ns != 0 || flow.flags & flags::OVER != 0;
    if over || facts.close.is_some() || verdict == Verdict::Deny || state == Some(FlowState::Cut) {
        FlowPhase::Closed
    } else if state == Some(FlowState::Pending) || unanswered(flow) {
        FlowPhase::Pending
    } else {
        FlowPhase::Open
    }
}

/// Whether a flow that the agent does not dial has had no answer yet: whether it will be one is not known.
pub fn unanswered(flow: &Flow) -> bool {
    let state = FlowState::from_u8(flow.state);
    let [sent, received] = flow.dir;
    matches!(state, Some(FlowState::Direct | FlowState::Fast))
        && flow.flags & (flags::LEGACY | flags::LEARNED) == 0
        && received.packets == 0
        // Where answers do not pass by the hooks, what is said shows that there was one.
        && sent.bytes == 0
}

fn path(state: Option<FlowState>, verdict: Verdict, remote: bool, flags: u32) -> FlowPath {
    match state {
        _ if verdict == Verdict::Deny => FlowPath::Refused,
        Some(FlowState::Direct) if flags & flags::VETH_PROVED != 0 => FlowPath::Local,
        Some(FlowState::Direct) => FlowPath::Clear,
        Some(FlowState::Fast) => FlowPath::Fast,
        Some(FlowState::Pending | FlowState::Captured | FlowState::Cut) if remote => FlowPath::Tunnel,
        Some(FlowState::Pending | FlowState::Captured | FlowState::Cut) => FlowPath::Agent,
        None => FlowPath::Refused,
    }
}

/// What spoke for each end to the other.
fn proof(flow: &Flow, path: FlowPath, phase: FlowPhase, facts: &AgentFacts, to_here: bool) -> &'static str {
    let by_agent = facts.opened || facts.delivering;
    match path {
        FlowPath::Tunnel | FlowPath::Agent if phase == FlowPhase::Pending => "",
        FlowPath::Tunnel => "tls",
        FlowPath::Agent | FlowPath::Fast | FlowPath::Local => "veth",
        FlowPath::Refused if by_agent => {
            if facts.remote {
                "tls"
            } else {
                "veth"
            }
        }
        // Of this node's pod to its peer; nothing came from that yet.
        FlowPath::Refused if flow.src_ifindex != 0 && !(to_here && flow.dst_ifindex != 0) => "",
        _ if flow.src_ifindex != 0 && flow.dst_ifindex != 0 => "veth",
        // Of its node the kubelet alone can be told, at ports for it.
        _ if flow.flags & flags::PROBE != 0 => "veth",
        _ => "claim",
    }
}

fn remote(node: &str, source: &Party, destination: &Party, facts: &AgentFacts) -> bool {
    let elsewhere = |party: &Party| !party.node.is_empty() && party.node != node;
    facts.remote || facts.tunnel.is_some() || elsewhere(source) || elsewhere(destination)
}

fn direction(node: &str, flow: &Flow, source: &Party, destination: &Party, facts: &AgentFacts) -> FlowDirection {
    let here = |party: &Party, ifindex: u32| if party.node.is_empty() { ifindex != 0 } else { party.node == node };
    if facts.delivering && facts.remote {
        return FlowDirection::Inbound;
    }
    match (here(source, flow.src_ifindex), here(destination, flow.dst_ifindex)) {
        (true, true) => FlowDirection::Local,
        (false, true) => FlowDirection::Inbound,
        (true, false) => FlowDirection::Outbound,
        (false, false) if flow.src_ifindex == 0 && flow.dst_ifindex != 0 => FlowDirection::Inbound,
        (false, false) => FlowDirection::Outbound,
    }
}

fn local_stage(node: &str, names: &Names) -> Stage {
    let ends = [names.source.as_ref(), names.destination.as_ref()];
    ends.into_iter().flatten().filter(|name| name.node == node).map(|name| name.stage).max().unwrap_or(Stage::Off)
}

fn close(flow: &Flow, verdict: Verdict, reason: Reason, facts: &AgentFacts) -> Option<FlowClose> {
    if let Some(close) = facts.close {
        return Some(close);
    }
    if verdict == Verdict::Deny {
        return Some(FlowClose::Refused);
    }
    match reason {
        Reason::ConnectTimedOut => return Some(FlowClose::TimedOut),
        Reason::ClientGone => return Some(FlowClose::GaveUp),
        Reason::IdleExpired => return Some(FlowClose::Idle),
        Reason::TunnelLost => return Some(FlowClose::TunnelLost),
        reason if (400..600).contains(&(reason as u16)) => return Some(FlowClose::Refused),
        _ => {}
    }
    let [_, received] = flow.dir;
    let reset = flow.flags & flags::OVER_RST != 0;
    if reset && flow.flags & flags::LEARNED == 0 && refused_by_server(received.flags, received.bytes) {
        Some(FlowClose::Refused)
    } else if reset {
        Some(FlowClose::Rst)
    } else if flow.flags & flags::OVER_GONE != 0 {
        Some(FlowClose::EndpointGone)
    } else if flow.flags & flags::OVER_FIN != 0 {
        Some(FlowClose::Fin)
    } else {
        None
    }
}

/// An RST where a SYN-ACK was due.
fn refused_by_server(received_flags: u32, received_bytes: u64) -> bool {
    received_flags & dir_flags::RST != 0 && received_flags & dir_flags::SYN == 0 && received_bytes == 0
}

fn closed_by(flow: &Flow, verdict: Verdict, facts: &AgentFacts) -> Option<FlowSide> {
    if facts.closed_by.is_some() {
        return facts.closed_by;
    }
    if verdict == Verdict::Deny {
        return Some(FlowSide::Mesh);
    }
    let [sent, received] = flow.dir;
    match (sent.flags & dir_flags::RST != 0, received.flags & dir_flags::RST != 0) {
        (true, false) => Some(FlowSide::Source),
        (false, true) => Some(FlowSide::Destination),
        _ => None,
    }
}

/// 32 hex digits.
pub fn hex_id(id: FlowId) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| DIGITS.get(usize::from(n)).map_or('0', |b| char::from(*b));
    id.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The id of 32 hex digits.
pub fn id_from_hex(text: &str) -> Option<FlowId> {
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(|n| FlowId(n.to_be_bytes()))
}

#[cfg(test)]
mod tests;
