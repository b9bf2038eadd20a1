//! Where packets are sent to: into a pod, into the agent's namespace, on their way as if a pod had sent them.

use kumiko_abi::{Config, MARK_TRANSIT, Stat};

use crate::{
    counters::count,
    ends::Hook,
    maps::{ENDPOINT_USE, ENDPOINTS, Scratch, read},
    skb::{DROP, Skb},
};

/// A MAC address as three words of memory.
type Mac = [u16; 3];

#[inline(always)]
fn words(mac: [u8; 6]) -> Mac {
    let [a, b, c, d, e, f] = mac;
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])]
}

#[inline(always)]
fn known(mac: Mac) -> bool {
    mac[0] | mac[1] | mac[2] != 0
}

/// The pod's and its gateway's MAC: what the pod's own frames showed, else what netlink told.
#[inline(always)]
fn macs(ifindex: u32) -> Option<(Mac, Mac)> {
    let seen = read(|| ENDPOINT_USE.get_ptr(ifindex), |of| (words(of.pod_mac), words(of.gateway_mac)));
    let told = read(|| ENDPOINTS.get_ptr(ifindex), |of| (words(of.pod_mac), words(of.gateway_mac)));
    match (seen, told) {
        (Some((pod, gateway)), Some((told_pod, told_gateway))) => Some((
            if known(pod) { pod } else { told_pod },
            // Told first: what the pod's last frame was addressed to may have been a neighbour on its bridge.
            if known(told_gateway) { told_gateway } else { gateway },
        )),
        (Some(seen), None) if known(seen.0) => Some(seen),
        (None, Some(told)) => Some(told),
        _ => None,
    }
}

/// Whether a frame with this destination is for the pod of the hook.
#[inline(always)]
pub(crate) fn is_pod_mac(mac: Mac, hook: &Hook<'_>) -> bool {
    if mac == words(hook.endpoint.pod_mac) {
        return true;
    }
    read(|| ENDPOINT_USE.get_ptr(hook.ifindex), |of| mac == words(of.pod_mac)).unwrap_or(false)
}

/// Into the pod behind veth `ifindex`, addressed as its gateway would.
#[inline(never)]
pub(crate) fn into_pod(skb: Skb, ifindex: u32) -> i32 {
    if let Some(([p0, p1, p2], [g0, g1, g2])) = macs(ifindex)
        && !skb.set_macs(&[p0, p1, p2, g0, g1, g2])
    {
        return DROP;
    }
    skb.into_peer_of(ifindex)
}

/// From a pod (tc ingress) into the agent's namespace.
#[inline(always)]
pub(crate) fn into_agent(skb: Skb, config: &Config) -> i32 {
    count(Stat::ToAgent);
    if config.agent_ifindex == 0 {
        // No agent ever ran: nobody could reset it, and letting it pass would be worse.
        return DROP;
    }
    skb.into_peer_of(config.agent_ifindex)
}

/// From the host's stack (tc egress of a pod's veth) into the agent's namespace: `redirect_peer` works at ingress only,
/// so the frame goes out of `kumiko0`, addressed to the other end.
#[inline(always)]
pub(crate) fn out_to_agent(skb: Skb, config: &Config) -> i32 {
    count(Stat::ToAgent);
    if config.agent_ifindex == 0 || !skb.set_destination(&words(config.agent_mac)) {
        return DROP;
    }
    skb.out_of(config.agent_ifindex)
}

/// An answer in a pod's name to a peer outside: goes on as if the pod behind veth `ifindex` had sent it.
#[inline(always)]
pub(crate) fn as_if_from_pod(skb: Skb, ifindex: u32) -> i32 {
    let Some(([p0, p1, p2], [g0, g1, g2])) = macs(ifindex) else { return DROP };
    if !skb.set_macs(&[g0, g1, g2, p0, p1, p2]) {
        return DROP;
    }
    skb.set_mark(MARK_TRANSIT);
    skb.as_received_by(ifindex)
}

/// Remembers how the pod addresses its frames. Written only when it changed: a line that every packet dirties would
/// travel between CPUs.
#[inline(always)]
pub(crate) fn learn_macs(s: &Scratch, ifindex: u32) {
    let head = &s.packet.head;
    if !s.packet.unicast() {
        return;
    }
    let Some(of) = ENDPOINT_USE.get_ptr_mut(ifindex) else { return };
    // SAFETY: two-aligned fields of a live element; a torn MAC is healed by the next frame.
    unsafe {
        let pod = (&raw mut (*of).pod_mac).cast::<Mac>();
        if *pod != head.src_mac {
            *pod = head.src_mac;
        }
        let gateway = (&raw mut (*of).gateway_mac).cast::<Mac>();
        if *gateway != head.dst_mac {
            *gateway = head.dst_mac;
        }
    }
}
