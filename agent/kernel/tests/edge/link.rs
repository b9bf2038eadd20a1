use std::collections::BTreeMap;

use kumiko_kernel::link::{LinkEvent, Watch};

use crate::world::{SOON, Space, root};

/// Every test here drives the watch as a shard would.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(SOON * 6, work).await.expect("no event in time") })
}

async fn until(watch: &mut Watch, wanted: impl Fn(&LinkEvent) -> bool) -> Vec<LinkEvent> {
    let mut seen = Vec::new();
    loop {
        let event = watch.next().await.unwrap();
        seen.push(event.clone());
        if wanted(&event) {
            return seen;
        }
    }
}

fn appeared(ifindex: u32, name: &str) -> LinkEvent {
    LinkEvent::Appeared { ifindex, name: name.into() }
}

#[test]
fn links_come_change_and_go() {
    if !root() {
        return;
    }
    let space = Space::new("watch");
    space.ip("link add early type veth peer name earlyp");
    block_on(async {
        let mut watch = Watch::new(&space.netns).unwrap();
        let first = until(&mut watch, |e| *e == LinkEvent::Resync { lost: false }).await;
        assert!(first.contains(&appeared(space.ifindex("early"), "early")), "{first:?}");
        assert!(first.contains(&LinkEvent::Running { ifindex: 1, running: true }), "lo is up: {first:?}");

        space.ip("link add late type veth peer name latep");
        let late = space.ifindex("late");
        until(&mut watch, |e| *e == appeared(late, "late")).await;
        space.ip("link set late up");
        space.ip("link set latep up");
        until(&mut watch, |e| *e == LinkEvent::Running { ifindex: late, running: true }).await;

        // Into a bridge and out again, then another name: it is there all the while.
        space.ip("link add br type bridge");
        space.ip("link set late master br");
        space.ip("link set late nomaster");
        space.ip("link set late name renamed");
        let seen = until(&mut watch, |e| *e == appeared(late, "renamed")).await;
        assert!(!seen.contains(&LinkEvent::Gone { ifindex: late }), "{seen:?}");

        space.ip("link set latep down");
        until(&mut watch, |e| *e == LinkEvent::Running { ifindex: late, running: false }).await;
        let other = Space::new("moved");
        space.ip(&format!("link set renamed netns {}", other.name));
        until(&mut watch, |e| *e == LinkEvent::Gone { ifindex: late }).await;
        let early = space.ifindex("early");
        space.ip("link del early");
        until(&mut watch, |e| *e == LinkEvent::Gone { ifindex: early }).await;
    });
}

#[test]
fn what_was_lost_is_told_again() {
    if !root() {
        return;
    }
    let space = Space::new("storm");
    block_on(async {
        let mut watch = Watch::new(&space.netns).unwrap();
        let mut known = BTreeMap::new();
        let mut lost = false;
        let mut follow = async |mark: &str| {
            loop {
                match watch.next().await.unwrap() {
                    LinkEvent::Appeared { ifindex, name } => {
                        let found = name == mark;
                        known.insert(ifindex, name);
                        if found {
                            return (lost, known.clone());
                        }
                    }
                    LinkEvent::Gone { ifindex } => drop(known.remove(&ifindex)),
                    LinkEvent::Resync { lost: now } => lost |= now,
                    _ => {}
                }
            }
        };
        // More messages than the receive buffer holds, while nobody reads; how many that is depends on rmem_max.
        for round in 0.. {
            let added = (0..200).map(|n| format!("link add s{round}x{n} type veth peer name t{round}x{n}\n"));
            let deleted = (0..150).map(|n| format!("link del s{round}x{n}\n"));
            let batch: String = added.chain(deleted).collect();
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), batch).unwrap();
            space.ip(&format!("-batch {}", file.path().display()));
            space.ip(&format!("link add mark{round} type bridge"));
            let (lost, _) = follow(&format!("mark{round}")).await;
            if lost {
                break;
            }
            assert!(round < 20, "the receive buffer never ran over");
        }
        space.ip("link add last type bridge");
        let (_, known) = follow("last").await;
        let listed: Vec<String> =
            space.ip("-o link").lines().map(|line| line.split([':', '@']).nth(1).unwrap().trim().to_owned()).collect();
        assert_eq!(known.into_values().collect::<Vec<_>>(), listed);
    });
}
