//! `kumiko policy apply` against agents with a real source.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use kumiko_agent::options::SourceUrl;
use kumiko_agent::source::{Taking, start};
use kumiko_core::manifest::Scope;

use super::sample::{Sample, Server, kumiko};

const WORLD: &str = include_str!("../../../core/src/policy/tests/told/world.yaml");
const TEAM: &str = "apiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {name: api, namespace: payments}\nspec: {ingress: []}\n";

/// A folder, documents to be applied, and an agent that reads the folder.
struct Place {
    folder: tempfile::TempDir,
    documents: tempfile::TempDir,
    server: Server,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("world.yaml"), WORLD).unwrap();
        let server = agent(folder.path());
        Self { folder, documents: tempfile::tempdir().unwrap(), server }
    }

    fn document(&self, name: &str, text: &str) -> PathBuf {
        let path = self.documents.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn apply(&self, files: &[&Path], more: &[&str]) -> (Option<i32>, String, String) {
        apply(&self.server.socket, files, more)
    }

    fn there(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn agent(folder: &Path) -> Server {
    let taking = Taking { scope: Scope::Policy, last_good: None };
    let source = start(&SourceUrl::Dir(folder.to_owned()), "cluster.local", taking).unwrap();
    let url = format!("dir:{}", folder.display());
    Server::start(Sample { source: Some(source), url, ..Sample::new() })
}

fn apply(socket: &Path, files: &[&Path], more: &[&str]) -> (Option<i32>, String, String) {
    let files: Vec<&str> = files.iter().map(|file| file.to_str().unwrap()).collect();
    let args = [&["policy", "apply"], &files[..], more].concat();
    let Output { status, stdout, stderr } = kumiko(socket, Some(100), &args).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn documents_are_in_force_when_it_ends() {
    let place = Place::new();
    let (one, two) =
        (place.document("team.yaml", TEAM), place.document("more.yml", &TEAM.replace("name: api", "name: more")));
    let dir = place.folder.path().display();
    let (code, shown, told) = place.apply(&[&one, &two], &["--wait"]);
    let expected = format!("team.yaml, more.yml put into {dir}; in force on n1 (epoch 12)\n");
    assert_eq!((code, shown, told.as_str()), (Some(0), expected, ""));
    assert_eq!(fs::read_to_string(place.folder.path().join("team.yaml")).unwrap(), TEAM);
    assert_eq!(place.there(), ["more.yml", "team.yaml", "world.yaml"]);
    // Once more is no change, and in force.
    let (code, shown, _) = place.apply(&[&one], &["--wait", "-o", "json"]);
    let done: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((code, &done["inForce"]["n1"]), (Some(0), &serde_json::json!(12)));
    let (code, shown, _) = place.apply(&[&one], &[]);
    assert_eq!((code, shown), (Some(0), format!("team.yaml put into {dir}\n")));
    // Another team's file of the same name.
    let other = place.document("team.yaml", &TEAM.replace("name: api", "name: other"));
    let (code, _, told) = place.apply(&[&other], &["--wait"]);
    let expected = "MeshPolicy/payments/api goes out of force: what is put in its file's place has it no more\n";
    assert_eq!((code, told.as_str()), (Some(0), expected));
}

#[test]
fn documents_do_not_steer_the_terminal() {
    let place = Place::new();
    let file = place.document("a.yaml", &TEAM.replace("ingress", "\"in\\e[31mgress\""));
    let (code, _, told) = place.apply(&[&file], &[]);
    assert!(code == Some(1) && told.contains("in\u{fffd}[31mgress") && !told.contains('\u{1b}'), "{told:?}");
}

#[test]
fn what_is_bad_changes_nothing() {
    let place = Place::new();
    let good = place.document("good.yaml", TEAM);
    for (name, text, words) in [
        ("syntax.yaml", "kind: MeshPolicy\n", "syntax.yaml:1:1: apiVersion is missing: add it"),
        ("field.yaml", &*TEAM.replace("ingress", "ingres"), "field.yaml:4:8: "),
        (
            "same.yaml",
            &*format!("# another file\n{TEAM}"),
            "same.yaml:4:18: MeshPolicy payments/api is already claimed at good.yaml:3: ",
        ),
        (
            "replaces.yaml",
            &*TEAM.replace("name: api", "name: x").replace("spec: {", "spec: {mode: audit, replaces: [gone], "),
            "replaces.yaml:1:1: MeshPolicy/payments/x: there is no MeshPolicy payments/gone to replace",
        ),
        (
            "foreign.yaml",
            &*TEAM
                .replace("name: api", "name: x")
                .replace("[]", "[{name: a, from: [{spiffeId: \"spiffe://b.example/ns/a/sa/b\"}]}]"),
            "is not of the trust domain cluster.local: nobody here has it",
        ),
    ] {
        let file = place.document(name, text);
        let (code, shown, told) = place.apply(&[&good, &file], &["--wait"]);
        let begins = format!(
            "kumiko: nothing was changed in {}: the agent of n1 would refuse it:\n",
            place.folder.path().display()
        );
        assert_eq!((code, shown.as_str()), (Some(1), ""), "{told}");
        assert!(told.starts_with(&begins) && told.contains(words), "{told}");
        assert_eq!(place.there(), ["world.yaml"], "{name}");
    }
    let hidden = place.document(".hidden.yaml", TEAM);
    let other = place.document("team.json", TEAM);
    let fs_twin = tempfile::tempdir().unwrap();
    let twin = fs_twin.path().join("good.yaml");
    fs::write(&twin, TEAM).unwrap();
    let nowhere = PathBuf::from("/nonexistent/a.yaml");
    for (files, words) in [
        (&[&*hidden][..], "give it such a name"),
        (&[&*other], "give it such a name"),
        (&[&*good, &*twin], "another file of this name is given"),
        (&[&*nowhere], "/nonexistent/a.yaml: No such file"),
    ] {
        let (code, _, told) = place.apply(files, &[]);
        assert!(code == Some(1) && told.contains(words), "{told}");
    }
    std::os::unix::fs::symlink("world.yaml", place.folder.path().join("good.yaml")).unwrap();
    let (code, _, told) = place.apply(&[&good], &[]);
    assert_eq!(code, Some(1));
    // What a link leads to claims what it leads from.
    assert!(told.contains("good.yaml"), "{told}");
}

#[test]
fn agents_that_take_no_policy_or_another_folders_are_told() {
    let place = Place::new();
    let team = place.document("team.yaml", TEAM);
    let without = Server::start(Sample::new());
    let (code, _, told) = apply(&without.socket, &[&team], &["--wait"]);
    assert_eq!(code, Some(1));
    assert_eq!(told, "kumiko: the agent of n1 is too old to take policy: it refuses such documents\n");
    let (code, _, told) = apply(Path::new("/nonexistent/admin.sock"), &[&team], &[]);
    assert_eq!(code, Some(3), "{told}");
    // One of two agents reads another folder than the one that is named.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("world.yaml"), WORLD).unwrap();
    let second = agent(elsewhere.path());
    let both = ["--also", second.socket.to_str().unwrap(), "--wait"];
    let (code, shown, told) = place.apply(&[&team], &both);
    assert_eq!((code, told.as_str()), (Some(0), ""), "{shown}");
    for dir in [place.folder.path(), elsewhere.path()] {
        assert_eq!(fs::read_to_string(dir.join("team.yaml")).unwrap(), TEAM);
    }
    let other = place.document("other.yaml", &TEAM.replace("name: api", "name: other"));
    let named = [&both[..], &["--timeout", "1", "--folder", place.folder.path().to_str().unwrap()]].concat();
    let (code, _, told) = place.apply(&[&other], &named);
    assert_eq!(code, Some(1));
    assert!(told.contains("has not read other.yaml within 1 s: is "), "{told}");
}
