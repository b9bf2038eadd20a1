use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use kumiko_kernel::qdisc::shaped;
use kumiko_kernel::veth::{Attachment, PodVeth, VethError, resolve};

use crate::world::{Space, root, run};

fn by_netns(pod: &Space, host: &Space) -> Result<PodVeth, VethError> {
    resolve(&Attachment::Netns { path: pod.path(), interface: "eth0".into() }, &host.netns)
}

fn by_name(name: &str, host: &Space) -> Result<PodVeth, VethError> {
    resolve(&Attachment::Veth { name: name.into() }, &host.netns)
}

fn spaces(tag: &str) -> Option<(Space, Space)> {
    root().then(|| (Space::new(&format!("{tag}h")), Space::new(&format!("{tag}p"))))
}

#[test]
fn a_routed_pod_is_found_from_either_side() {
    let Some((host, pod)) = spaces("routed") else { return };
    // Other interfaces first, so that indexes of the two ends differ.
    host.ip("link add pad type bridge");
    pod.ip("link add pad1 type bridge");
    pod.ip("link add pad2 type bridge");
    host.ip(&format!("link add vpod type veth peer name eth0 mtu 1450 netns {}", pod.name));
    for veth in [by_netns(&pod, &host).unwrap(), by_name("vpod", &host).unwrap()] {
        assert_eq!((veth.ifindex, veth.name.as_str()), (host.ifindex("vpod"), "vpod"));
        assert_eq!((veth.pod_mac, veth.gateway_mac), (pod.mac("eth0"), host.mac("vpod")));
        assert!(veth.netns.unwrap().is(&pod.netns));
        assert_eq!((veth.mtu, veth.running, veth.master), (1450, false, 0));
    }
    host.ip("link set vpod up");
    pod.ip("link set eth0 up");
    assert!(by_netns(&pod, &host).unwrap().running);
}

#[test]
fn a_bridged_pods_gateway_is_the_bridge() {
    let Some((host, pod)) = spaces("bridged") else { return };
    host.ip("link add br0 type bridge");
    host.ip("link set br0 address 02:00:00:00:00:77");
    host.ip(&format!("link add vpod master br0 type veth peer name eth0 netns {}", pod.name));
    for veth in [by_netns(&pod, &host).unwrap(), by_name("vpod", &host).unwrap()] {
        assert_eq!((veth.ifindex, veth.gateway_mac), (host.ifindex("vpod"), [2, 0, 0, 0, 0, 0x77]));
        assert_eq!(veth.master, host.ifindex("br0"));
    }
}

#[test]
fn limits_of_either_direction_are_seen() {
    let Some((host, pod)) = spaces("shaped") else { return };
    for name in ["vfree", "vslow", "vifb", "vhooks"] {
        host.ip(&format!("link add {name} type veth peer name {name}p netns {}", pod.name));
    }
    let tc = |args: &str| run("tc", &format!("-n {} {args}", host.name));
    tc("qdisc add dev vslow root tbf rate 10mbit burst 64k latency 50ms");
    tc("qdisc add dev vifb handle ffff: ingress");
    tc("qdisc add dev vhooks clsact");
    let wanted = ["vslow", "vifb"].map(|name| host.ifindex(name));
    assert_eq!(shaped(&host.netns).unwrap(), wanted.into());
    tc("qdisc del dev vslow root");
    assert_eq!(shaped(&host.netns).unwrap(), [host.ifindex("vifb")].into());
}

/// A process in a namespace that no file leads to.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_pod_without_a_file_is_found_through_its_process() {
    if !root() {
        return;
    }
    let host = Space::new("nofile");
    let child = Command::new("unshare").args(["-n", "sleep", "60"]).stdin(Stdio::null()).spawn().unwrap();
    let sleeper = Sleeper(child);
    let own = std::fs::metadata("/proc/self/ns/net").unwrap();
    let path = PathBuf::from(format!("/proc/{}/ns/net", sleeper.0.id()));
    crate::world::eventually("the process has a namespace of its own", || {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&path).unwrap().ino() != own.ino()
    });
    host.ip(&format!("link add vpod type veth peer name eth0 netns {}", sleeper.0.id()));
    let veth = by_name("vpod", &host).unwrap();
    let found = veth.netns.unwrap();
    assert!(found.is(&kumiko_kernel::netns::Netns::open(&path).unwrap()));
    let veth = resolve(&Attachment::Netns { path, interface: "eth0".into() }, &host.netns).unwrap();
    assert_eq!(veth.ifindex, host.ifindex("vpod"));
}

#[test]
fn what_cannot_be_captured_is_refused_by_name() {
    let Some((host, pod)) = spaces("refused") else { return };
    let text = |result: Result<PodVeth, VethError>| result.unwrap_err().to_string();

    let missing = by_netns(&pod, &host).unwrap_err();
    assert!(matches!(missing, VethError::NoInterface { .. }) && missing.may_come());
    let gone = Attachment::Netns { path: "/run/netns/kumiko-is-not-here".into(), interface: "eth0".into() };
    let gone = resolve(&gone, &host.netns).unwrap_err();
    assert!(matches!(gone, VethError::Netns { .. }) && gone.may_come());
    assert!(matches!(by_netns(&host, &host).unwrap_err(), VethError::HostNetwork { .. }));
    assert!(matches!(by_name("vpod", &host).unwrap_err(), VethError::NoInterface { .. }));

    host.ip("link add br0 type bridge");
    assert!(text(by_name("br0", &host)).contains("br0 in the host's namespace is bridge, not a veth"));
    host.ip("link add vup type veth peer name vdown");
    host.ip(&format!("link add link vup name mv netns {} type macvlan", pod.name));
    pod.ip("link set mv name eth0");
    let macvlan = by_netns(&pod, &host).unwrap_err();
    assert!(matches!(&macvlan, VethError::NotVeth { kind, .. } if kind == "macvlan"), "{macvlan}");
    assert!(!macvlan.may_come());
    pod.ip("link del eth0");

    // Both ends in one namespace.
    assert!(matches!(by_name("vup", &host).unwrap_err(), VethError::PeerElsewhere { .. }));
    pod.ip("link add eth0 type veth peer name eth1");
    assert!(matches!(by_netns(&pod, &host).unwrap_err(), VethError::PeerElsewhere { .. }));
    pod.ip("link del eth0");

    // The other end in a third namespace, where it has the index of a veth of the host.
    let third = Space::new("refused3");
    host.ip("link add name v100 index 100 type veth peer name v101 index 101");
    third.ip(&format!("link add name other index 100 type veth peer name eth0 index 101 netns {}", pod.name));
    let elsewhere = text(by_netns(&pod, &host));
    assert!(elsewhere.contains("leads to another namespace"), "{elsewhere}");
}
