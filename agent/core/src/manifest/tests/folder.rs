//! Files over time.

use std::collections::BTreeMap;

use super::super::*;
use proptest::prelude::*;

fn workload(name: &str, uid: &str, ip: &str) -> String {
    format!(
        "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: demo, uid: {uid}}}\nspec: \
         {{serviceAccount: a, node: n1, ips: [{ip}]}}\n---\n"
    )
}

fn node(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{addresses: [{{type: InternalIP, address: {ip}}}]}}\n---\n"
    )
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: demo}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n---\n"
    )
}

fn files<const N: usize>(files: [(&str, String); N]) -> BTreeMap<String, FileContent> {
    files.into_iter().map(|(name, text)| (name.to_owned(), FileContent::Text(text))).collect()
}

/// Claims in force, with their files.
fn in_force(state: &FolderState) -> Vec<(String, String)> {
    state
        .objects()
        // What only stands for others claims nothing.
        .filter(|(_, object)| !object.claims.is_empty())
        .map(|(file, object)| {
            let Claim::Name(_, _, name) = &object.claims[0].0 else { panic!() };
            (file.to_owned(), name.clone())
        })
        .collect()
}

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
    pairs.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
}

fn told(state: &FolderState) -> Vec<String> {
    state.diagnostics().map(Diagnostic::to_string).collect()
}

#[test]
fn a_bad_version_leaves_the_last_good_one() {
    let mut state = FolderState::default();
    let good = workload("a", "u1", "10.0.0.1") + &workload("b", "u2", "10.0.0.2");
    assert!(state.apply(files([("a.yaml", good.clone())])));
    assert!(!state.apply(files([("a.yaml", good.clone())])), "nothing changed");
    // The first document is changed, the second is bad: nothing of it is applied.
    let bad = workload("c", "u3", "10.0.0.3") + &workload("b", "u2", "10.0.0.999");
    assert!(state.apply(files([("a.yaml", bad)])));
    assert_eq!(in_force(&state), pairs([("a.yaml", "a"), ("a.yaml", "b")]));
    assert_eq!(told(&state), ["a.yaml:9:43: spec.ips[0]: \"10.0.0.999\" must be an IPv4 or IPv6 address"]);
    assert!(state.refused_files().contains("a.yaml"));
    assert!(state.apply(files([("a.yaml", good)])));
    assert!(told(&state).is_empty());
    assert!(state.apply(BTreeMap::new()), "the file is gone, and with it what it held");
    assert_eq!(in_force(&state), pairs([]));
}

#[test]
fn on_a_fresh_start_only_the_bad_file_is_left_out() {
    let mut state = FolderState::default();
    let mut read = files([("a.yaml", "nonsense".into()), ("b.yaml", workload("b", "u2", "10.0.0.2"))]);
    read.insert("c.yaml".into(), FileContent::NotText(Place { line: 7, column: 3 }));
    read.insert("d.yaml".into(), FileContent::TooLarge(9_000_000));
    read.insert("e.yaml".into(), FileContent::Unreadable("Permission denied (os error 13)".into()));
    read.insert("f.yaml".into(), FileContent::TooMany(10_000));
    read.insert("g.yaml".into(), FileContent::Unfinished);
    read.insert("h".into(), FileContent::TooDeep(8));
    state.apply(read);
    assert_eq!(in_force(&state), pairs([("b.yaml", "b")]));
    assert_eq!(
        told(&state),
        [
            "a.yaml:1:1: a document must be an object with apiVersion, kind and metadata: write these, or remove it",
            "c.yaml:7:3: is not UTF-8 text: save it as UTF-8",
            "d.yaml: is 9000000 bytes long, the limit is 8388608: split it into several files",
            "e.yaml: cannot be read: Permission denied (os error 13): check its permissions, and of a link, where it leads",
            "f.yaml: the folder holds more than 10000 manifests: this file is left out; put several documents into one file",
            "g.yaml: is still being written: it is read when its writer closes it",
            "h: lies below 8 other folders: nothing in it is read; move it up",
        ]
    );
    assert_eq!(state.files_in_force(), 1);
}

#[test]
fn an_unreadable_moment_keeps_the_last_good_state() {
    let mut state = FolderState::default();
    state.apply(files([("a.yaml", workload("a", "u1", "10.0.0.1"))]));
    state.apply(BTreeMap::from([("a.yaml".to_owned(), FileContent::Unreadable("gone".into()))]));
    assert_eq!(in_force(&state), pairs([("a.yaml", "a")]));
    state.apply(files([("a.yaml", workload("a", "u1", "10.0.0.1"))]));
    assert!(told(&state).is_empty());
}

#[test]
fn fresh_start_goes_by_name_later_the_first_keeps_it() {
    let mut state = FolderState::default();
    let (a, b) = (service("a", "10.0.0.1"), service("b", "10.0.0.1"));
    state.apply(files([("2.yaml", b.clone()), ("1.yaml", a.clone())]));
    assert_eq!(in_force(&state), pairs([("1.yaml", "a")]));
    assert_eq!(
        told(&state),
        ["2.yaml:4:19: address 10.0.0.1 is already claimed at 1.yaml:4: remove one of the claims"]
    );
    // A file with an earlier name comes later: it does not get the address.
    let c = service("c", "10.0.0.1");
    state.apply(files([("2.yaml", b.clone()), ("1.yaml", a.clone()), ("0.yaml", c.clone())]));
    assert_eq!(in_force(&state), pairs([("1.yaml", "a")]));
    // The owner lets go: among those who wait, the first by name gets it.
    state.apply(files([("2.yaml", b.clone()), ("1.yaml", service("a", "10.0.0.9")), ("0.yaml", c.clone())]));
    assert_eq!(in_force(&state), pairs([("0.yaml", "c"), ("1.yaml", "a")]));
}

#[test]
fn no_workload_is_kept_out_by_anothers_claim_to_its_address() {
    let mut state = FolderState::default();
    let (a, b) = (workload("a", "u1", "10.0.0.1"), workload("b", "u2", "10.0.0.1"));
    state.apply(files([("1.yaml", a.clone())]));
    state.apply(files([("1.yaml", a.clone()), ("2.yaml", b.clone())]));
    assert_eq!(in_force(&state), pairs([("1.yaml", "a"), ("2.yaml", "b")]));
    // What is a node's or a Service's is no pod's, and what is any pod's is not theirs.
    state.apply(files([("0.yaml", service("s", "10.0.0.1")), ("1.yaml", a.clone()), ("2.yaml", b.clone())]));
    assert_eq!(in_force(&state), pairs([("1.yaml", "a"), ("2.yaml", "b")]));
    assert_eq!(told(&state).len(), 1, "{:?}", told(&state));
    state.apply(files([("0.yaml", service("s", "10.0.0.1")), ("1.yaml", String::new()), ("2.yaml", b.clone())]));
    assert_eq!(in_force(&state), pairs([("2.yaml", "b")]));
    state.apply(files([("0.yaml", service("s", "10.0.0.1")), ("1.yaml", a.clone()), ("2.yaml", String::new())]));
    assert_eq!(in_force(&state), pairs([("0.yaml", "s")]));
    // Who has it with another one does not get it alone by making a Service of himself.
    let mut state = FolderState::default();
    state.apply(files([("1.yaml", a.clone()), ("2.yaml", b.clone())]));
    state.apply(files([("1.yaml", a), ("2.yaml", service("s", "10.0.0.1"))]));
    assert_eq!(in_force(&state), pairs([("1.yaml", "a"), ("2.yaml", "b")]));
    assert_eq!(told(&state).len(), 1, "{:?}", told(&state));
}

#[test]
fn objects_move_between_files_at_once() {
    let mut state = FolderState::default();
    let (a, b) = (workload("a", "u1", "10.0.0.1"), workload("b", "u2", "10.0.0.2"));
    state.apply(files([("1.yaml", a.clone()), ("2.yaml", b.clone())]));
    state.apply(files([("1.yaml", b.clone()), ("2.yaml", a.clone())]));
    assert!(told(&state).is_empty(), "{:?}", told(&state));
    assert_eq!(in_force(&state), pairs([("1.yaml", "b"), ("2.yaml", "a")]));
}

#[test]
fn a_move_whose_other_half_is_bad_does_not_happen() {
    let mut state = FolderState::default();
    let (a, b) = (workload("a", "u1", "10.0.0.1"), workload("b", "u2", "10.0.0.2"));
    state.apply(files([("1.yaml", a.clone()), ("2.yaml", b.clone())]));
    // 2 takes over `a`, but the version of 1 that lets go of it is bad: 1 still has it.
    state.apply(files([("1.yaml", "bad".into()), ("2.yaml", b.clone() + &a)]));
    assert_eq!(in_force(&state), pairs([("1.yaml", "a"), ("2.yaml", "b")]));
    assert_eq!(told(&state).len(), 3, "{:?}", told(&state));
}

#[test]
fn addresses_are_unique_across_kinds() {
    let mut state = FolderState::default();
    state.apply(files([
        ("1.yaml", node("n1", "10.0.0.1")),
        ("2.yaml", workload("a", "u1", "10.0.0.1")),
        ("3.yaml", service("s", "10.0.0.1")),
        ("4.yaml", node("n1", "10.0.0.4")),
        ("5.yaml", service("s", "10.0.0.5")),
    ]));
    assert_eq!(in_force(&state), pairs([("1.yaml", "n1"), ("5.yaml", "s")]));
    assert_eq!(
        told(&state),
        [
            "2.yaml:4:43: address 10.0.0.1 is already claimed at 1.yaml:4: remove one of the claims",
            "3.yaml:3:18: Service demo/s is already claimed at 5.yaml:3: remove one of the claims",
            "3.yaml:4:19: address 10.0.0.1 is already claimed at 1.yaml:4: remove one of the claims",
            "4.yaml:3:18: Node n1 is already claimed at 1.yaml:3: remove one of the claims",
        ]
    );
}

#[derive(Clone, Debug)]
enum Change {
    Write(u8, Vec<(u8, u8)>),
    Bad(u8),
    Remove(u8),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (0_u8..5, proptest::collection::vec((0_u8..6, 1_u8..8), 0..4)).prop_map(|(f, objects)| Change::Write(f, objects)),
        1 => (0_u8..5).prop_map(Change::Bad),
        1 => (0_u8..5).prop_map(Change::Remove),
    ]
}

proptest! {
    /// Whatever is written, no claim is ever in force twice, good files that clash with nobody are in force, and a
    /// fresh start does not depend on the order of reading.
    #[test]
    fn in_force_is_always_consistent(batches in proptest::collection::vec(proptest::collection::vec(change(), 1..4), 1..10)) {
        let mut state = FolderState::default();
        let mut now: BTreeMap<String, FileContent> = BTreeMap::new();
        for batch in batches {
            let before: Vec<(String, String)> = in_force(&state);
            for change in batch {
                match change {
                    Change::Write(file, objects) => {
                        let text = objects.iter().map(|(n, ip)| {
                            let ip = format!("10.0.0.{ip}");
                            if *n < 2 { service(&format!("s{n}"), &ip) } else { workload(&format!("w{n}"), &format!("u{n}"), &ip) }
                        }).collect();
                        now.insert(format!("{file}.yaml"), FileContent::Text(text));
                    }
                    Change::Bad(file) => drop(now.insert(format!("{file}.yaml"), FileContent::Unfinished)),
                    Change::Remove(file) => drop(now.remove(&format!("{file}.yaml"))),
                }
            }
            state.apply(now.clone());
            let mut seen: std::collections::HashMap<ClaimKey<'_>, &Claim> = std::collections::HashMap::new();
            for (claim, _) in state.objects().flat_map(|(_, object)| &object.claims) {
                if let Some(other) = seen.insert(claim.key(), claim) {
                    prop_assert!(!claim.clashes(other), "{claim} twice");
                }
            }
            for (file, content) in &now {
                let FileContent::Text(text) = content else { continue };
                let Ok(objects) = parse(file, text) else { continue };
                let mine: Vec<_> = state.objects().filter(|(name, _)| name == file).map(|(_, o)| o.clone()).collect();
                if !state.refused_files().contains(file.as_str()) {
                    prop_assert_eq!(mine, objects);
                } else {
                    // It is refused because of a file that is in force.
                    let clash = objects.iter().flat_map(|o| &o.claims).any(|(claim, _)| {
                        state.objects().any(|(other, o)| other != file && o.claims.iter().any(|(c, _)| c.clashes(claim)))
                    });
                    prop_assert!(clash, "{} is refused for nothing", file);
                }
            }
            let gone: Vec<_> = before.iter().filter(|(file, _)| !now.contains_key(file)).collect();
            let after = in_force(&state);
            prop_assert!(gone.iter().all(|pair| !after.contains(pair)));
        }
    }
}
