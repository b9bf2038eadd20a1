//! Real packets through the hooks: two pods, a stranger, the agent's namespace; routed and bridged, IPv4 and IPv6.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use kumiko_abi::{
    CommandResult, Config, EventKind, Flow, FlowId, FlowState, Reason, Stage, Stat, Verdict,
    flow::flags::{self, DELIVERED, INITIATOR_IS_LO, OVER_FIN},
};
use kumiko_kernel::sockets::{connect_as, set_linger_off};

use crate::{
    fixture::{addr, alone},
    world::{FAMILIES, Family, Net, World, connect, key, listen, socket, wait},
};

/// Nobody waits longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test for both kinds of network, each in a world of its own.
fn each_net(name: &str, stage: Stage, test: fn(&mut World, &Family)) {
    for net in [Net::Routed, Net::Bridged] {
        alone(name, move |dir| {
            let mut world = World::new(dir, net, stage);
            for family in &FAMILIES {
                println!("{net:?}, IPv6 {}", family.v6);
                test(&mut world, family);
            }
            assert_eq!(stat(&world, Stat::LeakBytes), 0);
        });
    }
}

fn stat(world: &World, stat: Stat) -> u64 {
    world.datapath.maps().stats().unwrap()[stat as usize]
}

/// Sends a mebibyte one way and its half back, ends in order both ways.
fn exchange(mut client: TcpStream, mut server: TcpStream) {
    let up: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    let down = up[..1 << 19].to_vec();
    let (sent, answer) = (up.clone(), down.clone());
    let serving = thread::spawn(move || {
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert!(got == up, "{} bytes up", got.len());
        server.write_all(&down).unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        set_linger_off(&server).unwrap();
    });
    client.write_all(&sent).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got == answer, "{} bytes down", got.len());
    serving.join().unwrap();
}

/// What [`exchange`] sent was counted; more, when the busy machine made a segment go twice.
fn assert_exchanged(flow: &Flow) {
    let [up, down] = flow.dir.map(|d| d.bytes);
    assert!((1 << 20..2 << 20).contains(&up) && (1 << 19..2 << 19).contains(&down), "{up} up, {down} down");
}

#[test]
fn fast_path() {
    each_net("fast_path", Stage::Strict, |world, of| {
        let server = listen("b", of.b, 80);
        let before = stat(world, Stat::Fast);
        let (client, _) = connect(Some("a"), socket(of.b, 80)).join().unwrap();
        let client = client.unwrap();
        let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let (served, peer) = server.accept().unwrap();
        assert_eq!(peer, from);
        exchange(client, served);
        assert!(stat(world, Stat::Fast) > before + 20);
        let flow = wait("the end", || world.flow(from, to).filter(|f| f.flags & OVER_FIN != 0));
        assert_eq!(flow.state, FlowState::Fast as u8);
        assert_eq!((flow.src, flow.dst, flow.src_ifindex, flow.dst_ifindex), (1, 3, world.a, world.b));
        assert_exchanged(&flow);
        assert_eq!(world.event().kind, EventKind::New as u8);
        assert_eq!(world.event().kind, EventKind::Over as u8);
        // Nobody listens: the pod's own RST comes back at once.
        let (refused, again) = connect(Some("a"), socket(of.b, 81)).join().unwrap();
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(again, 0, "not at the first SYN");
        world.event();
        world.event();
    });
}

#[test]
fn what_is_sent_to_a_pod_that_is_gone_is_reset() {
    each_net("what_is_sent_to_a_pod_that_is_gone_is_reset", Stage::Strict, |world, of| {
        let server = listen("b", of.b, 80);
        let (client, _) = connect(Some("a"), socket(of.b, 80)).join().unwrap();
        let mut client = client.unwrap();
        let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let _served = server.accept().unwrap();
        let flow = world.flow(from, to).unwrap();
        assert_eq!(flow.state, FlowState::Fast as u8);
        let told = world.datapath.commands().flag(&key(from, to), &flow.id, flags::OVER_GONE).unwrap();
        assert_eq!(told, CommandResult::Done);
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"are you there?").unwrap();
        assert_eq!(client.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        world.event();
        world.event();
    });
}

#[test]
fn strangers_are_refused_at_once() {
    each_net("strangers_are_refused_at_once", Stage::Strict, |world, of| {
        let _server = listen("a", of.a, 80);
        for (who, reason) in [(Some("out"), Reason::PlaintextRefused), (None, Reason::HostRefused)] {
            let (refused, again) = connect(who, socket(of.a, 80)).join().unwrap();
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{who:?}");
            assert_eq!(again, 0, "not at the first SYN");
            let event = world.event();
            assert_eq!((event.kind, event.flow.reason), (EventKind::Denied as u8, reason as u16));
        }
        // Outwards in the clear, both ways.
        let outside = listen("out", of.outside, 80);
        let (client, _) = connect(Some("a"), socket(of.outside, 80)).join().unwrap();
        let client = client.unwrap();
        let from = client.local_addr().unwrap();
        let (served, peer) = outside.accept().unwrap();
        assert_eq!(peer, from);
        exchange(client, served);
        let over = || world.flow(from, socket(of.outside, 80)).filter(|f| f.flags & OVER_FIN != 0);
        let flow = wait("the end", over);
        assert!(flow.flags & flags::PLAINTEXT != 0);
        assert_exchanged(&flow);
        world.event();
        world.event();
    });
}

#[test]
fn permissive_accepts_the_clear() {
    each_net("permissive_accepts_the_clear", Stage::Permissive, |world, of| {
        let server = listen("a", of.a, 80);
        for who in [Some("out"), None] {
            let (client, _) = connect(who, socket(of.a, 80)).join().unwrap();
            let client = client.unwrap();
            let from = client.local_addr().unwrap();
            exchange(client, server.accept().unwrap().0);
            let flow = wait("the end", || world.flow(from, socket(of.a, 80)).filter(|f| f.flags & OVER_FIN != 0));
            assert_eq!(flow.reason, Reason::PlaintextAccepted as u16);
            assert_eq!(flow.flags & flags::HOST != 0, who.is_none());
            assert_exchanged(&flow);
        }
    });
}

#[test]
fn honest_connect() {
    each_net("honest_connect", Stage::Strict, |world, of| {
        let to = socket(of.remote, 80);
        let set = |world: &World, key, id: &FlowId, state, reason, verdict| {
            let done = world.datapath.commands().set_state(key, id, state, reason, verdict, 0).unwrap();
            assert_eq!(done, CommandResult::Done);
        };
        // Carried.
        let connecting = connect(Some("a"), to);
        let record = world.syn();
        assert!(!connecting.is_finished());
        set(world, &record.key, &record.id, FlowState::Captured, Reason::Allowed, Verdict::Allow);
        world.injector.inject_syn(&record).unwrap();
        let (served, peer) = world.accept(of.v6);
        let client = connecting.join().unwrap().0.unwrap();
        assert_eq!((peer, served.local_addr().unwrap()), (client.local_addr().unwrap(), to));
        assert_eq!(key(peer, to), record.key);
        exchange(client, served);
        let flow = wait("the end", || world.flow(peer, to).filter(|f| f.flags & OVER_FIN != 0));
        assert_exchanged(&flow);
        assert_eq!(world.event().kind, EventKind::Over as u8);

        // The far end refused: so is the client, at the same call.
        let connecting = connect(Some("a"), to);
        let record = world.syn();
        set(world, &record.key, &record.id, FlowState::Cut, Reason::ConnectRefused, Verdict::Allow);
        world.injector.inject_syn(&record).unwrap();
        let refused = connecting.join().unwrap().0.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(world.event().flow.reason, Reason::ConnectRefused as u16);

        // The agent dies under a flow: an RST, and new connects are refused at once.
        let connecting = connect(Some("a"), to);
        let record = world.syn();
        set(world, &record.key, &record.id, FlowState::Captured, Reason::Allowed, Verdict::Allow);
        world.injector.inject_syn(&record).unwrap();
        let (served, _) = world.accept(of.v6);
        let mut client = connecting.join().unwrap().0.unwrap();
        drop(served);
        assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(world.event().kind, EventKind::Over as u8);
    });
}

/// The SYN of a captured flow comes to a listener for this agent's own dials only: those of an agent before it, and what was
/// delivered to the pod, have nobody there who waits.
#[test]
fn a_listener_takes_its_own_agents_dials_only() {
    each_net("a_listener_takes_its_own_agents_dials_only", Stage::Strict, |world, of| {
        let maps = world.datapath.maps();
        let now = maps.config().unwrap();
        for delivered in [false, true] {
            let connecting = connect(Some("a"), socket(of.remote, 80));
            let record = world.syn();
            let commands = world.datapath.commands();
            let (state, reason) = (FlowState::Captured, Reason::Allowed);
            let marks = if delivered { DELIVERED } else { 0 };
            let done = commands.set_state(&record.key, &record.id, state, reason, Verdict::Allow, marks).unwrap();
            assert_eq!(done, CommandResult::Done);
            if !delivered {
                maps.set_config(&Config { generation: 2, ..now }).unwrap();
            }
            world.injector.inject_syn(&record).unwrap();
            let refused = connecting.join().unwrap().0.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "delivered: {delivered}");
            world.event();
            maps.set_config(&now).unwrap();
        }
    });
}

#[test]
fn a_dead_agent_refuses() {
    each_net("a_dead_agent_refuses", Stage::Strict, |world, of| {
        world.listeners.clear();
        let (refused, again) = connect(Some("a"), socket(of.remote, 80)).join().unwrap();
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(again, 0, "not at the first SYN");
        let event = world.event();
        assert_eq!((event.kind, event.flow.reason), (EventKind::Denied as u8, Reason::AgentDown as u16));
    });
}

#[test]
fn delivery() {
    each_net("delivery", Stage::Strict, |world, of| {
        let server = listen("b", of.b, 80);
        let (client, to) = (socket(of.remote, 5555), socket(of.b, 80));
        let deliver = |world: &World, to| {
            let key = key(client, to);
            let lo = key.lo == addr(of.remote);
            let flow = Flow {
                id: FlowId([9; 16]),
                first_ns: 0,
                last_syn_ns: 0,
                last_ns: 0,
                over_ns: 0,
                src: 2,
                dst: 3,
                service: 0,
                src_ifindex: world.agent.host_ifindex,
                dst_ifindex: world.b,
                generation: 1,
                epoch: 0,
                isn: 0,
                flags: DELIVERED | if lo { INITIATOR_IS_LO } else { 0 },
                shard: 0,
                reason: Reason::Allowed as u16,
                state: FlowState::Captured as u8,
                verdict: Verdict::Allow as u8,
                _pad: [0; 2],
                not_after: 0,
                dir: Default::default(),
            };
            assert_eq!(world.datapath.commands().create(&key, &flow).unwrap(), CommandResult::Done);
            world.agent.netns.within(|| connect_as(client, to)).unwrap()
        };
        let upstream = deliver(world, to);
        let (served, peer) = server.accept().unwrap();
        assert_eq!(peer, client, "the pod sees the client itself");
        upstream.set_nonblocking(false).unwrap();
        set_linger_off(&upstream).unwrap();
        exchange(upstream, served);
        let flow = wait("the end", || world.flow(client, to).filter(|f| f.flags & OVER_FIN != 0));
        assert_exchanged(&flow);
        // The same tuple again, over our own TIME_WAIT or the pod's.
        world.event();
        let again = deliver(world, to);
        let (_served, peer) = server.accept().unwrap();
        assert_eq!(peer, client);
        assert_eq!(world.event().kind, EventKind::Replaced as u8);
        drop(again);
        assert_eq!(world.event().kind, EventKind::Over as u8);
        // Nobody listens.
        let refused = deliver(world, socket(of.b, 81));
        let error = wait("the refusal", || refused.take_error().unwrap());
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        world.event();
    });
}
