//! Packets that are not what they look like: flooded by a bridge, forged, or the beginning of another flow.

use std::{
    io::{ErrorKind, Read, Write},
    time::Duration,
};

use kumiko_abi::{
    AddrEntry, AddrKind, CommandResult, Endpoint, EventKind, Flow, FlowState, Reason, Stage, Stat,
    flow::flags,
    segment::bits::{ACK, SYN},
};
use kumiko_kernel::{netns::Netns, sockets::connect_as};
use nix::net::if_::if_nametoindex;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    fixture::{addr, alone, endpoint, ip},
    frames::{self, Extra, Tcp, ethernet, ip_frame},
    inbound::icmp_error,
    node::*,
    world::{FAMILIES, Net, World, connect, listen, mac, netns, socket, wait},
};

#[test]
fn sources() {
    alone("sources", |dir| {
        let mut node = node(dir, Stage::Permissive);
        for src in [LOCAL_4, REMOTE_4, "10.9.9.9", "169.254.7.7"] {
            for bits in [SYN, ACK, SYN | ACK] {
                let frame = Tcp::syn(src, OUTSIDE_4).with(|t| t.flags = bits).frame();
                assert_eq!(node.sends(&frame), DROP, "flags {bits} from {src}");
            }
        }
        let udp = |src, dst| ip_frame(src, dst, 17, &[0, 68, 0, 67, 0, 8, 0, 0], &Extra::default());
        assert_eq!(node.sends(&udp("10.9.9.9", OUTSIDE_4)), DROP);
        assert_eq!(node.stat(Stat::Spoofed), 13);
        for (src, dst) in [
            (POD_4, OUTSIDE_4),
            ("0.0.0.0", "255.255.255.255"),
            ("169.254.7.7", "169.254.1.1"),
            ("fe80::1", "ff02::2"),
            (POD_6, OUTSIDE_6),
        ] {
            assert_eq!(node.sends(&udp(src, dst)), PASS, "{src}");
        }
        assert_eq!(node.sends(&Tcp::syn("fe80::1", "fe80::2").frame()), PASS);
        // A packet of a flow that is another interface's.
        let syn = Tcp::syn(LOCAL_4, OUTSIDE_4);
        let flow = Flow { src_ifindex: OTHER_POD, ..fake(&syn) };
        assert_eq!(node.datapath.commands().create(&key(&syn), &flow).unwrap(), CommandResult::Done);
        assert_eq!(node.sends(&syn.clone().with(|t| t.flags = ACK).frame()), DROP);
        assert_eq!(node.stat(Stat::WrongInterface), 1);
        while node.event().is_some() {}
        // Older than this pod's attachment: the host's stack stands for it, until it speaks.
        let old = Tcp::syn(POD_4, OUTSIDE_4).with(|t| t.sport = 99);
        assert_eq!(node.datapath.commands().create(&key(&old), &fake(&old)).unwrap(), CommandResult::Done);
        assert_eq!(node.sends(&old.clone().with(|t| t.flags = ACK).frame()), PASS);
        assert_eq!(node.flow(&old).unwrap().src_ifindex, HERE);
        // In another's name it does not.
        let far = Tcp::syn(OUTSIDE_4, LOCAL_4);
        let flow = Flow { dst_ifindex: OTHER_POD, ..fake(&far) };
        assert_eq!(node.datapath.commands().create(&key(&far), &flow).unwrap(), CommandResult::Done);
        assert_eq!(node.sends(&far.clone().with(|t| t.flags = ACK).frame()), DROP);
        assert_eq!((node.flow(&far).unwrap().src_ifindex, node.stat(Stat::WrongInterface)), (0, 2));
    });
}

#[test]
fn what_a_bridge_floods_is_another_pods() {
    alone("what_a_bridge_floods_is_another_pods", |dir| {
        let mut node = node(dir, Stage::Observe);
        let (syn, stray) = (Tcp::syn(OUTSIDE_4, LOCAL_4), Tcp::syn(OUTSIDE_6, LOCAL_6).with(|t| t.flags = ACK));
        let datagram = ip_frame(OUTSIDE_4, LOCAL_4, 17, &[0; 8], &Extra::default());
        for (stage, action) in [(Stage::Observe, PASS), (Stage::Permissive, PASS), (Stage::Strict, DROP)] {
            node.endpoint(|_| (), stage);
            for frame in [syn.frame(), stray.frame(), datagram.clone()] {
                assert_eq!(node.gets(&frame), action, "{stage:?}");
            }
            assert!(node.flow(&syn).is_none() && node.flow(&stray).is_none() && node.event().is_none(), "{stage:?}");
        }
        assert_eq!((node.stat(Stat::Stray), node.stat(Stat::NotTcp)), (0, 0));
        // Addressed to this pod's own card it is for this pod, whatever the IP address.
        node.endpoint(|e| e.pod_mac = frames::GATEWAY, Stage::Strict);
        assert_eq!(node.gets(&syn.frame()), REDIRECT);
        assert_eq!(node.event().unwrap().0, EventKind::Denied);
    });
}

/// An idle pod's MAC is forgotten by the bridge: the next SYN goes to every port, pod b's included.
#[test]
fn a_flooded_connection_works() {
    for stage in [Stage::Observe, Stage::Permissive] {
        alone("a_flooded_connection_works", move |dir| {
            let world = World::new(dir, Net::Bridged, stage);
            for (client, server, port) in [("a", "b", 80), ("b", "a", 81)] {
                for of in &FAMILIES {
                    let ip_of = |pod| if pod == "a" { of.a } else { of.b };
                    let listener = listen(server, ip_of(server), port);
                    let mac = mac(Some(server), "eth0").map(|b| format!("{b:02x}")).join(":");
                    ip(&format!("neigh replace {} lladdr {mac} dev br0 nud permanent", ip_of(server)));
                    ip(&format!("link set v{server} type bridge_slave learning off"));
                    ip(&format!("link set v{server} type bridge_slave fdb_flush"));
                    let (stream, _) = connect(Some("out"), socket(ip_of(server), port)).join().unwrap();
                    let mut stream = stream.unwrap();
                    let (mut served, from) = listener.accept().unwrap();
                    served.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                    stream.write_all(b"flooded").unwrap();
                    let mut got = [0; 7];
                    served.read_exact(&mut got).unwrap();
                    let flow = world.flow(from, socket(ip_of(server), port)).unwrap();
                    let ifindex = if server == "a" { world.a } else { world.b };
                    assert_eq!((flow.dst_ifindex, flow.dir[0].bytes), (ifindex, 7), "{client} saw it too");
                    ip(&format!("link set v{server} type bridge_slave learning on"));
                }
            }
        });
    }
}

#[test]
fn the_fast_path_takes_nothing_from_the_stack() {
    alone("the_fast_path_takes_nothing_from_the_stack", |dir| {
        let node = node(dir, Stage::Strict);
        let syn = Tcp::syn(LOCAL_4, POD_4);
        let flow = Flow { state: FlowState::Fast as u8, src_ifindex: OTHER_POD, dst_ifindex: HERE, ..fake(&syn) };
        assert_eq!(node.datapath.commands().create(&key(&syn), &flow).unwrap(), CommandResult::Done);
        for flags in [SYN, SYN | ACK, ACK] {
            let forged = Tcp { flags, payload: vec![1; 10], ..syn.clone() };
            assert_eq!(node.gets(&forged.frame()), DROP);
        }
        assert_eq!(node.stat(Stat::WrongInterface), 3);
        assert_eq!(node.flow(&syn).unwrap().dir[0].packets, 0);
        node.endpoint(|_| (), Stage::Observe);
        assert_eq!(node.gets(&syn.frame()), PASS, "observe stops nothing");
    });
}

/// A flow of two pods of the node through the host's stack: what the wire or a third pod brings of it is none of theirs.
#[test]
fn a_clear_flow_of_two_pods_takes_nothing_from_elsewhere() {
    const BRIDGE: u32 = 91;
    const WIRE: u32 = 92;
    alone("a_clear_flow_of_two_pods_takes_nothing_from_elsewhere", |dir| {
        let node = node(dir, Stage::Strict);
        let maps = node.datapath.maps();
        let other = Endpoint { master: BRIDGE, ..endpoint(3, Stage::Strict) };
        maps.set_endpoint(OTHER_POD, &other).unwrap();
        let syn = Tcp::syn(LOCAL_4, POD_4);
        let flow = Flow {
            src_ifindex: OTHER_POD,
            dst_ifindex: HERE,
            flags: fake(&syn).flags | flags::JUDGED_BOTH,
            ..fake(&syn)
        };
        assert_eq!(node.datapath.commands().create(&key(&syn), &flow).unwrap(), CommandResult::Done);
        let data = Tcp { flags: ACK, payload: vec![1; 10], ..syn.clone() }.frame();
        let error = icmp_error(OUTSIDE_4, POD_4, &reply(&syn, ACK));
        let gets = |by| (node.gets_by(by, &data), node.gets_by(by, &error));
        for by in [0, OTHER_POD, BRIDGE] {
            assert_eq!(gets(by), (PASS, PASS), "{by}");
        }
        assert_eq!(node.stat(Stat::WrongInterface), 0);
        assert_eq!(gets(WIRE), (DROP, DROP));
        assert_eq!(node.gets_by(WIRE, &syn.frame()), DROP);
        assert_eq!(node.stat(Stat::WrongInterface), 3);
        // On the fast path, errors are all that the stack brings.
        node.set_state(&syn, FlowState::Fast);
        assert_eq!((node.gets_by(BRIDGE, &error), node.gets_by(WIRE, &error)), (PASS, DROP));
        node.set_state(&syn, FlowState::Direct);
        // Nothing is known of the other's bridge any more; a third pod is still a third pod.
        maps.remove_endpoint(OTHER_POD).unwrap();
        assert_eq!((gets(BRIDGE), gets(HERE)), ((PASS, PASS), (DROP, DROP)));
        // Observe counts.
        maps.set_endpoint(OTHER_POD, &other).unwrap();
        node.endpoint(|_| (), Stage::Observe);
        assert_eq!(gets(WIRE), (PASS, PASS));
        assert_eq!(node.stat(Stat::WrongInterface), 8);

        // A pod that sends errors about a flow of two others.
        node.endpoint(|_| (), Stage::Strict);
        let far = Tcp::syn(LOCAL_4, REMOTE_4);
        let flow = Flow { src_ifindex: OTHER_POD, dst_ifindex: 99, ..fake(&far) };
        assert_eq!(node.datapath.commands().create(&key(&far), &flow).unwrap(), CommandResult::Done);
        assert_eq!(node.sends(&icmp_error(POD_4, LOCAL_4, &far)), DROP);
        assert_eq!(node.stat(Stat::WrongInterface), 9);
    });
}

#[test]
fn a_target_that_begins_anew_is_judged() {
    alone("a_target_that_begins_anew_is_judged", |dir| {
        let mut node = node(dir, Stage::Strict);
        let syn = Tcp::syn(POD_4, OUTSIDE_4);
        assert_eq!(node.sends(&syn.frame()), PASS);
        // Before it said anything, it is a simultaneous open and goes on.
        assert_eq!(node.gets(&reply(&syn, SYN).frame()), PASS);
        assert_eq!(node.event().unwrap().0, EventKind::New);
        let flow = node.flow(&syn).unwrap();
        assert_eq!((flow.dir[1].packets, flow.flags & flags::OVER), (1, 0));
        // After that, it is a connection to the port that the pod had connected from.
        assert_eq!(node.gets(&reply(&syn, SYN).with(|t| t.seq = 77).frame()), REDIRECT);
        assert_eq!(node.event().unwrap().0, EventKind::Replaced);
        let (kind, reason, _) = node.event().unwrap();
        assert_eq!((kind, reason), (EventKind::Denied, Reason::HostRefused));
        assert!(node.flow(&syn).is_none());
        // The same from a pod that had answered: its own connection, to a pod that is captured.
        node.endpoint(|_| (), Stage::Permissive);
        let syn = Tcp::syn(REMOTE_4, POD_4);
        assert_eq!(node.gets(&syn.frame()), PASS);
        assert_eq!(node.sends(&reply(&syn, SYN).with(|t| t.seq = 55).frame()), PASS, "a simultaneous open");
        assert_eq!(node.sends(&reply(&syn, SYN).with(|t| t.seq = 77).frame()), DROP);
        assert_eq!(node.syns.next().unwrap().key, key(&syn));
        assert_eq!(node.flow(&syn).unwrap().isn, 77);
    });
}

#[test]
fn another_syn_from_outside_begins_another_flow() {
    alone("another_syn_from_outside_begins_another_flow", |dir| {
        let mut node = node(dir, Stage::Permissive);
        let syn = Tcp::syn(OBSERVED, POD_4);
        assert_eq!((node.gets(&syn.frame()), node.gets(&syn.frame())), (PASS, PASS));
        let first = node.flow(&syn).unwrap();
        assert_eq!((node.event().unwrap().0, first.dir[0].packets), (EventKind::New, 2));
        assert_eq!(node.gets(&syn.clone().with(|t| t.seq = 5000).frame()), PASS);
        let second = node.flow(&syn).unwrap();
        assert_ne!(first.id, second.id);
        assert_eq!((second.isn, second.dir[0].packets), (5000, 1));
        assert_eq!((node.event().unwrap().0, node.event().unwrap().0), (EventKind::Replaced, EventKind::New));
    });
}

/// Pod a is observed, so nothing that it sends is stopped at its own hook; it knows the tuple of another pod's flow to b.
#[test]
fn a_third_pod_is_not_the_sender() {
    alone("a_third_pod_is_not_the_sender", |dir| {
        let world = World::new(dir, Net::Bridged, Stage::Observe);
        let maps = world.datapath.maps();
        maps.set_endpoint(world.b, &endpoint(3, Stage::Strict)).unwrap();
        let (from, to) = (socket("10.1.0.9", 5555), socket(FAMILIES[0].b, 80));
        let server = listen("b", FAMILIES[0].b, 80);
        server.set_nonblocking(true).unwrap();
        let syn = Tcp::syn("10.1.0.9", FAMILIES[0].b).with(|t| t.sport = 5555);
        let flow = Flow {
            src_ifindex: 9999,
            dst_ifindex: world.b,
            flags: fake(&syn).flags | flags::JUDGED_BOTH,
            ..fake(&syn)
        };
        assert_eq!(world.datapath.commands().create(&key(&syn), &flow).unwrap(), CommandResult::Done);
        ip("-n a addr add 10.1.0.9/24 dev eth0");
        let _client = netns("a").within(|| connect_as(from, to)).unwrap();
        wait("both hooks", || (maps.stats().unwrap()[Stat::WrongInterface as usize] >= 2).then_some(()));
        assert_eq!(server.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(world.flow(from, to).unwrap().dir[0].packets, 0);
    });
}

/// Sends a frame out of an interface of a namespace.
fn send_raw(netns: &Netns, link: &str, frame: &[u8]) {
    netns
        .within(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
            // SAFETY: zeroes are a sockaddr_ll, which the storage has room for.
            let ((), to) = unsafe {
                SockAddr::try_init(|storage, length| {
                    let address = storage.cast::<libc::sockaddr_ll>();
                    (*address).sll_family = libc::AF_PACKET as u16;
                    (*address).sll_ifindex = if_nametoindex(link)? as i32;
                    *length = size_of::<libc::sockaddr_ll>() as u32;
                    Ok(())
                })
            }?;
            socket.send_to(frame, &to).map(|sent| assert_eq!(sent, frame.len()))
        })
        .unwrap();
}

/// When a frame is received, the kernel takes its tag off and keeps it beside the data, which then looks like any other.
#[test]
fn a_tag_beside_the_frame_is_seen() {
    alone("a_tag_beside_the_frame_is_seen", |dir| {
        let mut world = World::new(dir, Net::Routed, Stage::Strict);
        let syn = Tcp::syn(FAMILIES[0].a, FAMILIES[0].remote).frame();
        let count = |world: &World, of: Stat| world.datapath.maps().stats().unwrap()[of as usize];
        for kind in [0x8100, 0x88a8] {
            let before = count(&world, Stat::Vlan);
            send_raw(&netns("a"), "eth0", &ethernet(kind, &[&[0, 5], &syn[12..]].concat()));
            wait("it is counted", || (count(&world, Stat::Vlan) > before).then_some(()));
            assert!(world.syns.next().is_none(), "its inside was taken for an untagged frame");
        }
        send_raw(&netns("a"), "eth0", &syn);
        world.syn();
    });
}

/// An IPv6 header with IPv4's addresses in it has the key of the IPv4 flow.
#[test]
fn mapped_addresses_are_nobodys() {
    alone("mapped_addresses_are_nobodys", |dir| {
        let node = node(dir, Stage::Strict);
        let (own, far) = (format!("::ffff:{POD_4}"), format!("::ffff:{REMOTE_4}"));
        for (src, dst) in [(own.as_str(), far.as_str()), (POD_6, far.as_str()), (own.as_str(), REMOTE_6)] {
            assert_eq!(node.sends(&Tcp::syn(src, dst).frame()), DROP, "{src} to {dst}");
            assert_eq!(node.gets(&Tcp::syn(dst, src).frame()), DROP, "{dst} to {src}");
        }
        assert_eq!(node.stat(Stat::Unparsable), 6);
        assert!(node.flow(&Tcp::syn(POD_4, REMOTE_4)).is_none());
    });
}

/// Masqueraded traffic has the node's address, and so may anything from the wire.
#[test]
fn what_the_node_forwards_is_not_its_own() {
    alone("what_the_node_forwards_is_not_its_own", |dir| {
        let world = World::new(dir, Net::Routed, Stage::Permissive);
        for of in &FAMILIES {
            let entry = AddrEntry { handle: 0, kind: AddrKind::ThisNode as u8, _pad: [0; 3], class: [0; 2] };
            world.datapath.maps().set_addr(&addr(of.outside), &entry).unwrap();
            let _server = listen("a", of.a, 80);
            for (who, host) in [(Some("out"), 0), (None, flags::HOST)] {
                let (client, _) = connect(who, socket(of.a, 80)).join().unwrap();
                let from = client.unwrap().local_addr().unwrap();
                let flow = world.flow(from, socket(of.a, 80)).unwrap();
                assert_eq!(flow.flags & (flags::HOST | flags::PLAINTEXT), flags::PLAINTEXT | host, "{who:?}");
            }
        }
    });
}
