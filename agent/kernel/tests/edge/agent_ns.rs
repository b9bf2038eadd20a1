use std::fs;

use kumiko_kernel::agent_ns::{AGENT_MAC, AgentNs, AgentNsError, HOST_MAC};
use kumiko_kernel::netns::Netns;

use crate::world::{Node, RunDir, Space, read_sysctl, root, run};

/// `ip` in the agent's namespace, which has no name that `ip -n` takes.
fn inside(agent: &AgentNs, args: &str) -> String {
    agent.netns.within(|| Ok(run("ip", args))).unwrap()
}

fn check(agent: &AgentNs, host: &Space) {
    for family in ["-4", "-6"] {
        let rules = inside(agent, &format!("{family} rule"));
        assert!(!rules.lines().any(|line| line.starts_with("0:")), "{rules}");
        assert!(rules.contains("10:\tfrom all iif eth0 lookup local"), "{rules}");
        assert!(rules.contains("20:\tfrom all lookup main"), "{rules}");
        let local = inside(agent, &format!("{family} route show table local"));
        assert!(local.contains("local default dev lo"), "{local}");
        let main = inside(agent, &format!("{family} route show"));
        assert!(main.contains("default via") && main.contains("dev eth0"), "{main}");
        let neighbours = inside(agent, &format!("{family} neigh show"));
        assert!(neighbours.contains("lladdr 02:6b:75:6d:69:01 PERMANENT"), "{neighbours}");
    }
    let addresses = inside(agent, "-6 addr show dev eth0");
    assert!(!addresses.contains("inet6"), "{addresses}");
    for key in ["ipv4/conf/all/rp_filter", "ipv4/conf/eth0/rp_filter", "ipv4/ip_forward", "ipv6/conf/eth0/accept_ra"] {
        assert_eq!(read_sysctl(&agent.netns, key), "0", "{key}");
    }
    for key in ["ipv4/tcp_congestion_control", "ipv4/tcp_syncookies", "ipv4/tcp_wmem"] {
        assert_eq!(read_sysctl(&agent.netns, key), host.read_sysctl(key), "{key}");
    }
    assert_eq!((host.mac("kumiko0"), host.ifindex("kumiko0")), (HOST_MAC, agent.host_ifindex));
    let link = host.ip("link show kumiko0");
    assert!(link.contains("mtu 65535") && link.contains("LOWER_UP"), "{link}");
    let link = inside(agent, "link show eth0");
    assert!(link.contains("mtu 65535") && link.contains("LOWER_UP") && link.contains("02:6b:75:6d:69:02"), "{link}");
    assert_eq!((agent.agent_mac, agent.host_mac), (AGENT_MAC, HOST_MAC));
}

#[test]
fn is_made_taken_over_repaired_and_removed() {
    if !root() {
        return;
    }
    let host = Space::new("ansh");
    host.sysctl("ipv4/tcp_congestion_control", "reno");
    host.sysctl("ipv4/tcp_wmem", "4096 20000 3000000");
    let folder = RunDir::new(&host);
    // Not there yet.
    let run_dir = folder.path().to_owned();
    fs::remove_dir(&run_dir).unwrap();
    let agent = AgentNs::ensure(&run_dir, "kumiko", &host.netns).unwrap();
    check(&agent, &host);
    assert_eq!(host.read_sysctl("ipv6/conf/kumiko0/disable_ipv6"), "1");
    assert!(!host.ip("addr show kumiko0").contains("inet"));

    let again = AgentNs::ensure(&run_dir, "kumiko", &host.netns).unwrap();
    check(&again, &host);
    assert!(again.netns.is(&agent.netns));
    assert_eq!((again.host_ifindex, again.agent_ifindex), (agent.host_ifindex, agent.agent_ifindex));

    // What somebody broke is put right, on the same interfaces.
    inside(&agent, "rule del pref 10");
    inside(&agent, "-6 rule add pref 0 lookup local");
    inside(&agent, "route del default");
    inside(&agent, "link set eth0 down");
    inside(&agent, "link set eth0 address 02:00:00:00:00:01 mtu 1500");
    host.ip("link set kumiko0 mtu 1400");
    let repaired = AgentNs::ensure(&run_dir, "kumiko", &host.netns).unwrap();
    check(&repaired, &host);
    assert_eq!(repaired.host_ifindex, agent.host_ifindex);

    // The pair is gone; then the namespace.
    host.ip("link del kumiko0");
    check(&AgentNs::ensure(&run_dir, "kumiko", &host.netns).unwrap(), &host);
    run("umount", &format!("-l {}", run_dir.join("netns/kumiko").display()));
    let anew = AgentNs::ensure(&run_dir, "kumiko", &host.netns).unwrap();
    check(&anew, &host);
    assert!(!anew.netns.is(&agent.netns));

    AgentNs::remove(&run_dir, "kumiko", &host.netns).unwrap();
    AgentNs::remove(&run_dir, "kumiko", &host.netns).unwrap();
    assert_eq!(fs::read_dir(&run_dir).unwrap().count(), 0);
    assert!(!host.ip("link").contains("kumiko0"));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(folder.path().to_str().unwrap()));
}

#[test]
fn two_agents_share_a_host_and_strangers_keep_their_interface() {
    if !root() {
        return;
    }
    let host = Space::new("ans2");
    let folder = RunDir::new(&host);
    let one = AgentNs::ensure(folder.path(), "one", &host.netns).unwrap();
    let two = AgentNs::ensure(folder.path(), "two", &host.netns).unwrap();
    assert_ne!(one.host_ifindex, two.host_ifindex);
    assert_eq!((one.host_name.as_str(), two.host_name.as_str()), ("one0", "two0"));
    AgentNs::remove(folder.path(), "one", &host.netns).unwrap();
    assert!(two.netns.is(&Netns::open(folder.path().join("netns/two")).unwrap()));
    AgentNs::remove(folder.path(), "two", &host.netns).unwrap();
    host.ip("link add mine0 type bridge");
    let refused = AgentNs::ensure(folder.path(), "mine", &host.netns).unwrap_err();
    assert!(matches!(&refused, AgentNsError::Taken { kind, .. } if kind == "bridge"), "{refused}");
    AgentNs::remove(folder.path(), "mine", &host.netns).unwrap();
    assert!(host.ip("link").contains("mine0"));
}

#[test]
fn what_arrives_is_local_whatever_its_address() {
    let Some(node) = Node::new("anyaddr") else { return };
    for (family, to) in crate::world::ELSEWHERE.iter().enumerate() {
        let to = crate::world::addr(to, [4321, 4322][family]);
        let refused = node.pod.connect(to).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED), "no listener: an RST from {to}");
        let any = if family == 0 { "0.0.0.0:4321" } else { "[::]:4322" };
        let listener = node.agent.netns.within(|| std::net::TcpListener::bind(any)).unwrap();
        let client = node.pod.connect(to).unwrap();
        let (served, from) = listener.accept().unwrap();
        assert_eq!(served.local_addr().unwrap(), to);
        assert_eq!(from, client.local_addr().unwrap());
    }
}
