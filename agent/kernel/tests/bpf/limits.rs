//! What is full stays full: nothing is thrown out for a new flow, and nothing is left behind by one that found no room.

use kumiko_abi::{CommandResult, FlowKey, FlowState, Reason, Stage, Stat, flow::TCP};

use crate::{
    commands::some_flow,
    fixture::{addr, alone},
    frames::Tcp,
    node::*,
};

#[test]
fn a_full_ring_takes_no_entry() {
    alone("a_full_ring_takes_no_entry", |dir| {
        let mut node = node(dir, Stage::Strict);
        node.endpoint(|e| (e.max_pending, e.max_flows) = (u32::MAX, u32::MAX), Stage::Strict);
        let syn = |port| Tcp::syn(POD_4, REMOTE_4).with(|t| t.sport = port);
        let full = (1..u16::MAX).find(|port| {
            assert_eq!(node.sends(&syn(*port).frame()), DROP);
            node.stat(Stat::RingFull) == 1
        });
        let full = full.unwrap();
        assert!(full > 100, "room for {full}");
        assert!(node.flow(&syn(full)).is_none() && node.flow(&syn(full - 1)).is_some());
        let used = node.maps.endpoint_use(HERE).unwrap().unwrap();
        assert_eq!((used.pending, used.flows), (u64::from(full) - 1, u64::from(full) - 1));
        assert_eq!(node.maps.reasons().unwrap()[Reason::RingFull as usize], 1);
        assert!(node.event().is_none(), "it is not denied: it comes again");
        // The shard takes one out.
        assert_eq!(node.syns.next().unwrap().key, key(&syn(1)));
        while node.syns.next().is_some() {}
        assert_eq!(node.sends(&syn(full).frame()), DROP);
        assert_eq!(node.syns.next().unwrap().key, key(&syn(full)));
    });
}

#[test]
fn a_full_table_denies_new_flows_and_keeps_the_old_ones() {
    alone("a_full_table_denies_new_flows_and_keeps_the_old_ones", |dir| {
        let mut node = node(dir, Stage::Strict);
        let old = Tcp::syn(POD_4, OUTSIDE_4);
        assert_eq!(node.sends(&old.frame()), PASS);
        let commands = node.datapath.commands();
        let mut made = 0;
        'full: for host in 1..=u8::MAX {
            for port in 1..=u16::MAX {
                let to = format!("10.99.0.{host}");
                let key = FlowKey::of_packet(&addr("10.98.0.1"), port, &addr(&to), 80, TCP).0;
                match commands.create(&key, &some_flow(0)).unwrap() {
                    CommandResult::Done => made += 1,
                    other => {
                        assert_eq!(other, CommandResult::Full);
                        break 'full;
                    }
                }
            }
        }
        assert!(made > 200_000, "{made}");
        while node.event().is_some() {}
        for (dst, stat) in [(REMOTE_4, 1), (OUTSIDE_4, 2), (LOCAL_4, 3)] {
            let syn = Tcp::syn(POD_4, dst).with(|t| t.sport = 7);
            assert_eq!(node.sends(&syn.frame()), REDIRECT, "to {dst}");
            assert_eq!(node.event().unwrap().1, Reason::TableFull);
            assert_eq!(node.stat(Stat::TableFull), stat);
            assert!(node.flow(&syn).is_none());
        }
        assert!(node.syns.next().is_none());
        let used = node.maps.endpoint_use(HERE).unwrap().unwrap();
        assert_eq!((used.pending, used.flows), (0, 1));
        assert_eq!(node.flow(&old).unwrap().state, FlowState::Direct as u8);
        node.endpoint(|_| (), Stage::Observe);
        for dst in [REMOTE_4, OUTSIDE_4, LOCAL_4] {
            let syn = Tcp::syn(POD_4, dst).with(|t| t.sport = 7);
            assert_eq!((node.sends(&syn.frame()), node.gets(&reply(&syn, 2).frame())), (PASS, PASS), "to {dst}");
        }
    });
}
