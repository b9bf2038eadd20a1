//! Connections older than the enrolment of an end: which they are, and the entries that let them go on.

use std::net::SocketAddr;

use kumiko_abi::flow::{TCP, flags};
use kumiko_abi::{Direction, Flow, FlowId, FlowKey, FlowState, Reason, Stage, Verdict};

use crate::addr;
use crate::model::{Protocol, Workload, World};

/// First port that programs get without asking (`net.ipv4.ip_local_port_range`): a server's is nearly always below.
const FIRST_EPHEMERAL: u16 = 32_768;

/// A TCP connection that a pod has already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Older {
    /// The pod's end.
    pub pod: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// Whether the pod began it, if its state tells (SYN_SENT, SYN_RECV).
    pub pod_began: Option<bool>,
}

/// Numbers of the two ends, 0 where there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct End {
    /// Workload's handle.
    pub handle: u32,
    /// Host-side interface, when it carries the hooks.
    pub ifindex: u32,
}

/// Whether a socket of a pod can be the end of a flow that the hooks see.
pub fn crosses_veth(older: &Older, pod: &Workload) -> bool {
    let (own, peer) = (older.pod.ip().to_canonical(), older.peer.ip().to_canonical());
    pod.ips.contains(&own) && !pod.ips.contains(&peer) && !peer.is_loopback() && older.peer.port() != 0
}

/// The entry that lets an older connection go on outside the tunnel. Who began it is a guess where the state does not
/// tell; an entry with a wrong guess passes just as well, and what may end it asks about both directions.
pub fn entry(older: &Older, workload: &Workload, pod: End, peer: End) -> (FlowKey, Flow) {
    let pod_end = SocketAddr::new(older.pod.ip().to_canonical(), older.pod.port());
    let peer_end = SocketAddr::new(older.peer.ip().to_canonical(), older.peer.port());
    let declared = || workload.ports.iter().any(|p| p.protocol == Protocol::Tcp && p.port == pod_end.port());
    let serves = || pod_end.port() < FIRST_EPHEMERAL && peer_end.port() >= FIRST_EPHEMERAL;
    let pod_began = older.pod_began.unwrap_or_else(|| !declared() && !serves());
    let (client, server) = if pod_began { (pod_end, peer_end) } else { (peer_end, pod_end) };
    let (src, dst) = if pod_began { (pod, peer) } else { (peer, pod) };
    let (key, initiator) = addr::flow_key(client, server, TCP);
    let guess = if older.pod_began.is_none() { flags::LEARNED } else { 0 };
    let flow = Flow {
        id: FlowId::default(),
        first_ns: 0,
        last_syn_ns: 0,
        last_ns: 0,
        over_ns: 0,
        src: src.handle,
        dst: dst.handle,
        service: 0,
        src_ifindex: src.ifindex,
        dst_ifindex: dst.ifindex,
        generation: 0,
        epoch: 0,
        isn: 0,
        flags: flags::LEGACY | guess | initiator,
        shard: 0,
        reason: Reason::LegacyFlow as u16,
        state: FlowState::Direct as u8,
        verdict: Verdict::Allow as u8,
        _pad: [0; 2],
        not_after: 0,
        dir: [Direction::default(); 2],
    };
    (key, flow)
}

/// Whether a flow that was let in goes on only because it is older than an enrolment: it passes in the clear between
/// two ends that would now use a tunnel, or into a strict workload that would now refuse it (unless its rules let it in).
pub fn outlived(world: &World, key: &FlowKey, flow: &Flow) -> bool {
    // A Service that was not meshed as a whole is in the clear from the beginning.
    let marked = flags::LEGACY | flags::PROBE | flags::OVER | flags::RULED | flags::TURNED;
    if FlowState::from_u8(flow.state) != Some(FlowState::Direct) || key.proto != TCP || flow.flags & marked != 0 {
        return false;
    }
    let (client, server) = addr::ends(key, flow.flags);
    let source = world.workload_at(client.ip());
    let target = world.workload_at(server.ip());
    let source_meshed = source.is_some_and(|source| source.meshed());
    let (target_meshed, target_strict) = match target {
        Some(target) => (target.meshed(), target.stage == Stage::Strict),
        None => {
            let service = world.service_at(server.ip(), server.port(), Protocol::Tcp);
            (service.is_some_and(|(_, port)| port.backends(server.ip()).capture), false)
        }
    };
    // Two pods of this node that take no fast path: the kernel knows both, so nothing is outlived.
    let proved = flags::JUDGED_BOTH | flags::VETH_PROVED;
    let attested = flow.flags & proved == proved && flow.flags & flags::OBSERVED == 0;
    !attested && ((source_meshed && target_meshed) || target_strict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;

    fn world(client: &str, server: &str) -> World {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: a, labels: {{kumiko.dev/stage: {client}}}}}\n---\n\
             apiVersion: v1\nkind: Namespace\nmetadata: {{name: b, labels: {{kumiko.dev/stage: {server}}}}}\n---\n\
             apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: c, namespace: a, uid: uc}}\n\
             spec: {{serviceAccount: c, node: n1, ips: [10.0.0.1]}}\n---\n\
             apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: s, namespace: b, uid: us, labels: {{app: s}}}}\n\
             spec: {{serviceAccount: s, node: n2, ips: [10.0.0.2], ports: [{{port: 40000}}]}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: b}}\n\
             spec: {{clusterIP: 10.9.0.1, selector: {{app: s}}, ports: [{{port: 80}}]}}\n"
        );
        let objects = parse("f", &text).unwrap();
        World::build("td", 1, objects.iter().map(|object| ("f", object))).unwrap().0
    }

    fn older(pod: &str, peer: &str) -> Older {
        Older { pod: pod.parse().unwrap(), peer: peer.parse().unwrap(), pod_began: None }
    }

    fn flow(from: &str, to: &str, extra: u32) -> (FlowKey, Flow) {
        let world = world("off", "off");
        let older = Older { pod_began: Some(true), ..older(from, to) };
        let (key, mut flow) = entry(&older, world.workload("uc").unwrap(), End::default(), End::default());
        flow.flags = flow.flags & !flags::LEGACY | extra;
        (key, flow)
    }

    #[test]
    fn who_began_it() {
        let world = world("off", "off");
        let (client, server) = (world.workload("uc").unwrap(), world.workload("us").unwrap());
        let (pod, peer) = (End { handle: 1, ifindex: 7 }, End { handle: 2, ifindex: 0 });
        let (key, flow) = entry(&older("10.0.0.1:50000", "10.0.0.2:80"), client, pod, peer);
        assert_eq!(addr::ends(&key, flow.flags).0, "10.0.0.1:50000".parse().unwrap());
        assert_eq!((flow.src, flow.dst, flow.src_ifindex, flow.dst_ifindex), (1, 2, 7, 0));
        assert_eq!(flow.flags & (flags::LEGACY | flags::LEARNED), flags::LEGACY | flags::LEARNED);
        // A port that it declares is a server's, however high.
        let (key, flow) = entry(&older("[::ffff:10.0.0.2]:40000", "10.0.0.1:50000"), server, pod, peer);
        assert_eq!(addr::ends(&key, flow.flags).1, "10.0.0.2:40000".parse().unwrap());
        assert_eq!((flow.src_ifindex, flow.dst_ifindex), (0, 7));
        let (key, flow) = entry(&older("10.0.0.1:80", "10.0.0.2:50000"), client, pod, peer);
        assert_eq!(addr::ends(&key, flow.flags).1, "10.0.0.1:80".parse().unwrap());
        let sent = Older { pod_began: Some(true), ..older("10.0.0.1:80", "10.0.0.2:50000") };
        let (key, flow) = entry(&sent, client, pod, peer);
        assert_eq!(addr::ends(&key, flow.flags).0, "10.0.0.1:80".parse().unwrap());
        assert_eq!(flow.flags & flags::LEARNED, 0);
    }

    #[test]
    fn what_stays_inside_the_pod_is_left_alone() {
        let world = world("off", "off");
        let pod = world.workload("uc").unwrap();
        assert!(crosses_veth(&older("10.0.0.1:80", "10.0.0.2:50000"), pod));
        assert!(crosses_veth(&older("[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.2]:50000"), pod));
        for (own, peer) in
            [("10.0.0.1:80", "10.0.0.1:50000"), ("127.0.0.1:1", "127.0.0.1:2"), ("10.0.0.9:1", "10.0.0.2:1")]
        {
            assert!(!crosses_veth(&older(own, peer), pod), "{own} {peer}");
        }
    }

    #[test]
    fn clear_flows_between_enrolled_ends_are_outlived() {
        let outlives = |client, server, (key, flow): (FlowKey, Flow)| outlived(&world(client, server), &key, &flow);
        let direct = || flow("10.0.0.1:50000", "10.0.0.2:80", 0);
        assert!(!outlives("strict", "observe", direct()));
        assert!(!outlives("off", "permissive", direct()), "a permissive server takes plaintext");
        assert!(outlives("off", "strict", direct()));
        assert!(outlives("permissive", "permissive", direct()));
        assert!(outlives("strict", "permissive", flow("10.0.0.1:50000", "10.9.0.1:80", 0)));
        assert!(!outlives("strict", "off", flow("10.0.0.1:50000", "10.9.0.1:80", 0)));
        for extra in [flags::LEGACY, flags::PROBE, flags::OVER_FIN, flags::JUDGED_BOTH | flags::VETH_PROVED] {
            assert!(!outlives("strict", "strict", flow("10.0.0.1:50000", "10.0.0.2:80", extra)), "{extra:x}");
        }
        let (key, mut fast) = direct();
        fast.state = FlowState::Fast as u8;
        assert!(!outlives("strict", "strict", (key, fast)));
    }
}
