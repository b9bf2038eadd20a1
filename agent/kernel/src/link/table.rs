//! What is known of the links, so that only changes are told. A plain value.

use std::collections::{HashMap, HashSet, VecDeque};

use super::LinkEvent;
use crate::netlink::link::Link;

/// Known links. As large as the kernel's own list.
#[derive(Debug, Default)]
pub(super) struct Table {
    known: HashMap<u32, Known>,
    /// Links that the running dump, or a message during it, told of.
    seen: Option<HashSet<u32>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Known {
    name: String,
    running: bool,
}

impl Table {
    /// A dump begins.
    pub(super) fn begin(&mut self) {
        self.seen = Some(HashSet::new());
    }

    /// A link is there (`there`) or is not any more.
    pub(super) fn told(&mut self, there: bool, link: &Link, events: &mut VecDeque<LinkEvent>) {
        if link.family != 0 {
            // A bridge about its port: the link itself is told of besides.
            return;
        }
        let ifindex = link.index;
        if !there {
            if let Some(seen) = &mut self.seen {
                seen.remove(&ifindex);
            }
            if self.known.remove(&ifindex).is_some() {
                events.push_back(LinkEvent::Gone { ifindex });
            }
            return;
        }
        if let Some(seen) = &mut self.seen {
            seen.insert(ifindex);
        }
        let now = Known { name: link.name.clone(), running: link.running };
        let before = self.known.get(&ifindex);
        if before.is_none_or(|before| before.name != now.name) {
            events.push_back(LinkEvent::Appeared { ifindex, name: now.name.clone() });
        }
        if before.map_or(now.running, |before| before.running != now.running) {
            events.push_back(LinkEvent::Running { ifindex, running: now.running });
        }
        self.known.insert(ifindex, now);
    }

    /// The dump is complete: what it did not tell of is gone.
    pub(super) fn end(&mut self, events: &mut VecDeque<LinkEvent>) {
        let Some(seen) = self.seen.take() else { return };
        self.known.retain(|ifindex, _| {
            let stays = seen.contains(ifindex);
            if !stays {
                events.push_back(LinkEvent::Gone { ifindex: *ifindex });
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, running: bool) -> Link {
        Link { index, name: name.into(), running, ..Link::default() }
    }

    fn appeared(ifindex: u32, name: &str) -> LinkEvent {
        LinkEvent::Appeared { ifindex, name: name.into() }
    }

    #[test]
    fn only_changes_are_told() {
        let (mut table, mut events) = (Table::default(), VecDeque::new());
        table.told(true, &link(3, "veth3", false), &mut events);
        table.told(true, &link(3, "veth3", false), &mut events);
        table.told(true, &link(3, "veth3", true), &mut events);
        table.told(true, &link(3, "pod3", true), &mut events);
        table.told(false, &link(3, "pod3", true), &mut events);
        table.told(false, &link(3, "pod3", true), &mut events);
        let expected = [
            appeared(3, "veth3"),
            LinkEvent::Running { ifindex: 3, running: true },
            appeared(3, "pod3"),
            LinkEvent::Gone { ifindex: 3 },
        ];
        assert_eq!(events, expected);
    }

    #[test]
    fn a_second_dump_tells_what_was_missed() {
        let (mut table, mut events) = (Table::default(), VecDeque::new());
        table.begin();
        for index in 1..=3 {
            table.told(true, &link(index, "a", false), &mut events);
        }
        table.end(&mut events);
        events.clear();
        table.begin();
        table.told(true, &link(1, "a", false), &mut events);
        table.told(true, &link(4, "b", false), &mut events);
        // Made and deleted while the dump ran.
        table.told(true, &link(5, "c", false), &mut events);
        table.told(false, &link(5, "c", false), &mut events);
        table.told(false, &link(2, "a", false), &mut events);
        table.end(&mut events);
        let gone = |ifindex| LinkEvent::Gone { ifindex };
        assert_eq!(events, [appeared(4, "b"), appeared(5, "c"), gone(5), gone(2), gone(3)]);
    }

    #[test]
    fn a_port_that_leaves_its_bridge_is_not_gone() {
        let (mut table, mut events) = (Table::default(), VecDeque::new());
        table.told(true, &link(3, "veth3", false), &mut events);
        events.clear();
        table.told(false, &Link { family: 7, ..link(3, "veth3", false) }, &mut events);
        assert!(events.is_empty());
    }
}
