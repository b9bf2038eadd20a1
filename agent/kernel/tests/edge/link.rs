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
        space.ip("link add bri0 type bridge");
        space.ip("link set late master bri0");
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

/// Makes and deletes links, and says more about lo than a receive buffer holds, while nobody reads.
fn storm(space: &Space, round: u32) {
    let added = (0..40).map(|n| format!("link add s{round}x{n} type veth peer name t{round}x{n}\n"));
    let noise = (0..5000).map(|n| format!("link set lo txqueuelen {}\n", 1000 + n));
    let deleted = (0..30).map(|n| format!("link del s{round}x{n}\n"));
    let batch: String = added.chain(noise).chain(deleted).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), batch).unwrap();
    space.ip(&format!("-batch {}", file.path().display()));
    space.ip(&format!("link add mark{round} type bridge"));
}

#[test]
fn what_was_lost_is_told_again() {
    if !root() {
        return;
    }
    let space = Space::new("storm");
    block_on(async {
        let mut watch = Watch::new(&space.netns).unwrap();
        let mut seen = until(&mut watch, |e| matches!(e, LinkEvent::Resync { .. })).await;
        storm(&space, 0);
        // The buffer ran over before this link was made, so a dump tells of it. What is lost while that dump is only
        // half read must not stay lost.
        seen.extend(until(&mut watch, |e| matches!(e, LinkEvent::Appeared { name, .. } if name == "mark0")).await);
        storm(&space, 1);
        seen.extend(until(&mut watch, |e| *e == LinkEvent::Resync { lost: true }).await);
        space.ip("link add last type bridge");
        seen.extend(until(&mut watch, |e| matches!(e, LinkEvent::Appeared { name, .. } if name == "last")).await);

        let mut known = BTreeMap::new();
        for event in seen {
            match event {
                LinkEvent::Appeared { ifindex, name } => drop(known.insert(ifindex, name)),
                LinkEvent::Gone { ifindex } => drop(known.remove(&ifindex)),
                _ => {}
            }
        }
        let listed: Vec<String> =
            space.ip("-o link").lines().map(|line| line.split([':', '@']).nth(1).unwrap().trim().to_owned()).collect();
        assert_eq!(known.into_values().collect::<Vec<_>>(), listed);
    });
}
