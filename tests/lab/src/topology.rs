//! Namespaces, veths, bridges, addresses and routes of a lab.

use anyhow::Result;

use crate::netns::Netns;
use crate::spec::{LabSpec, Net, node_ips};

/// Interface of a node that faces the other nodes.
pub const WIRE: &str = "wire0";
/// Host number of the issuer on the nodes' network.
pub const ISSUER_HOST: u8 = 100;

/// Name of the namespace `what` of the lab `id`.
pub fn netns_name(id: &str, what: &str) -> String {
    format!("k{id}-{what}")
}

/// Host side of a pod's veth, in its node's namespace.
pub fn veth_name(pod: &str) -> String {
    format!("v{pod}")
}

/// Makes every namespace and link of the lab.
pub fn build(id: &str, spec: &LabSpec) -> Result<()> {
    let switch = Netns::create(netns_name(id, "switch"))?;
    switch.ip("link add br0 type bridge stp_state 0 forward_delay 0\nlink set br0 up")?;
    for node in 1..=spec.nodes {
        build_node(id, spec, node, &switch)?;
    }
    for index in 0..spec.pods.len() {
        build_pod(id, spec, index)?;
    }
    let issuer = Netns::create(netns_name(id, "issuer"))?;
    join_switch(&switch, &issuer, "issuer", ISSUER_HOST)
}

/// Joins a namespace to the switch: `wire0` with the host number's addresses.
fn join_switch(switch: &Netns, ns: &Netns, port: &str, host: u8) -> Result<()> {
    let [v4, v6] = node_ips(host);
    switch.ip(&format!(
        "link add p-{port} type veth peer name {WIRE} netns {}\nlink set p-{port} master br0 up",
        ns.name
    ))?;
    ns.ip(&format!("link set {WIRE} up\naddr add {v4}/24 dev {WIRE}\naddr add {v6}/64 dev {WIRE} nodad"))
}

fn build_node(id: &str, spec: &LabSpec, node: u8, switch: &Netns) -> Result<()> {
    let ns = Netns::create(netns_name(id, &format!("n{node}")))?;
    ns.sysctl("net.ipv4.ip_forward", "1")?;
    ns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    join_switch(switch, &ns, &format!("n{node}"), node)?;
    let mut lines = String::new();
    for other in (1..=spec.nodes).filter(|other| *other != node) {
        let [v4, v6] = node_ips(other);
        lines += &format!("route add 10.244.{other}.0/24 via {v4}\nroute add fd00:244:{other}::/64 via {v6}\n");
    }
    if spec.net == Net::Bridged {
        lines += &format!(
            "link add cni0 type bridge stp_state 0 forward_delay 0\nlink set cni0 up\n\
             addr add 10.244.{node}.1/24 dev cni0\naddr add fd00:244:{node}::1/64 dev cni0 nodad\n"
        );
    }
    ns.ip(&lines)?;
    if spec.net == Net::Bridged {
        give_up_soon(&ns, "cni0")?;
        // Replies between two ports of one bridge must pass conntrack too, or a translated flow is half undone.
        for table in ["iptables", "ip6tables"] {
            ns.sysctl(&format!("net.bridge.bridge-nf-call-{table}"), "1")?;
        }
    }
    Ok(())
}

/// An address that nobody has is given up in 0.6 s, before a client that sends two SYNs gives up by itself.
fn give_up_soon(ns: &Netns, interface: &str) -> Result<()> {
    ["ipv4", "ipv6"]
        .iter()
        .try_for_each(|family| ns.sysctl(&format!("net.{family}.neigh.{interface}.retrans_time_ms"), "200"))
}

fn build_pod(id: &str, spec: &LabSpec, index: usize) -> Result<()> {
    let Some(pod) = spec.pods.get(index).filter(|pod| !pod.gone) else { return Ok(()) };
    let [v4, v6] = spec.pod_ips(index);
    let (name, number) = (veth_name(&pod.name), pod.node);
    let ns = Netns::create(netns_name(id, &pod.name))?;
    let node = Netns::named(netns_name(id, &format!("n{number}")));
    node.ip(&format!("link add {name} type veth peer name eth0 netns {}\nlink set {name} up", ns.name))?;
    ns.ip("link set eth0 up")?;
    match spec.net {
        Net::Routed => {
            node.ip(&format!(
                "addr add 169.254.1.1/32 dev {name}\naddr add fe80::1/64 dev {name} nodad\n\
                 route add {v4} dev {name}\nroute add {v6} dev {name}"
            ))?;
            ns.ip(&format!(
                "addr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n\
                 route add 169.254.1.1 dev eth0 scope link\nroute add default via 169.254.1.1 dev eth0\n\
                 route add default via fe80::1 dev eth0"
            ))
        }
        Net::Bridged => {
            give_up_soon(&ns, "eth0")?;
            node.ip(&format!("link set {name} master cni0\nlink set {name} type bridge_slave hairpin on"))?;
            ns.ip(&format!(
                "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n\
                 route add default via 10.244.{number}.1 dev eth0\nroute add default via fd00:244:{number}::1 dev eth0"
            ))
        }
    }
}
