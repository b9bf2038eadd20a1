//! Files that an agent keeps for the next one.

use std::collections::HashSet;
use std::sync::OnceLock;

use crate::compile::{Handles, MAX_HANDLE, Numbers};
use crate::model::World;

/// Two pods and a Service.
const OBJECTS: &str = "
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
---
{apiVersion: kumiko.dev/v1alpha1, kind: Workload, metadata: {name: a, namespace: x, uid: a},
 spec: {serviceAccount: s, node: n1, ips: [10.0.0.1]}}
---
{apiVersion: kumiko.dev/v1alpha1, kind: Workload, metadata: {name: b, namespace: x, uid: b},
 spec: {serviceAccount: s, node: n1, ips: [10.0.0.2]}}
---
{apiVersion: v1, kind: Service, metadata: {name: s, namespace: x},
 spec: {clusterIP: 10.9.0.1, ports: [{port: 80}], selector: {app: x}}}
";

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let objects = crate::manifest::parse("f", OBJECTS).unwrap();
        World::build("td", 1, objects.iter().map(|object| ("f", object))).unwrap().0
    })
}

/// Numbers of an agent before: what is taken from the file never gives two names one number, or a number that a map does
/// not have; and it can be written and read again.
pub fn handles(bytes: &[u8]) {
    let Ok(mut handles) = Handles::read(bytes) else { return };
    sound(&handles.workloads, MAX_HANDLE);
    let kernel: HashSet<u32> = bytes.iter().rev().take(3).map(|byte| u32::from(*byte)).chain([0, u32::MAX]).collect();
    handles.workloads.reserve(&kernel, MAX_HANDLE);
    sound(&handles.workloads, MAX_HANDLE);
    let before: Vec<_> = handles.workloads.live().map(|(name, number)| (name.to_owned(), number)).collect();
    let shortage = handles.assign(world(), "n1");
    sound(&handles.workloads, MAX_HANDLE);
    sound(&handles.classes, u32::MAX);
    sound(&handles.services, u32::MAX);
    sound(&handles.nodes, u32::from(u16::MAX));
    for uid in ["a", "b"] {
        let kept = before.iter().find(|(name, _)| name == uid).map(|(_, number)| *number);
        assert!(kept.is_none_or(|kept| handles.workload(uid) == Some(kept)));
        assert!(shortage.workloads > 0 || handles.workload(uid).is_some());
    }
    let written = serde_json::to_vec(&handles).unwrap();
    assert_eq!(Handles::read(&written).unwrap(), handles);
    handles.workloads.release(&HashSet::new());
    sound(&handles.workloads, MAX_HANDLE);
}

fn sound(numbers: &Numbers, max: u32) {
    let live = numbers.live().map(|(_, number)| number);
    let mut seen = HashSet::new();
    for number in live.chain(numbers.retired().map(|(number, _)| number)) {
        assert!((1..=max).contains(&number) && seen.insert(number), "{number} of {numbers:?}");
    }
}
