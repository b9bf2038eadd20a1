//! The source on a real folder: what comes into force of it, and what stays.

mod writers;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use kumiko_abi::Stage;
use kumiko_core::manifest::FileContent;

use super::*;

const WITHIN: Duration = Duration::from_secs(60);

fn workload(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: demo, uid: u-{name}}}\nspec: \
         {{serviceAccount: a, node: n1, ips: [{ip}]}}\n---\n"
    )
}

fn source(dir: &Path) -> Source {
    start(&SourceUrl::Dir(dir.to_owned()), "td", Taking::default()).unwrap()
}

/// Waits until exactly these workloads are in force.
async fn wait_names(source: &mut Source, names: &[&str]) {
    let fits = |world: &Arc<World>| {
        let mut there: Vec<&str> = world.workloads().map(|workload| workload.name.as_str()).collect();
        there.sort_unstable();
        there == names
    };
    let waited = tokio::time::timeout(WITHIN, source.world.wait_for(fits)).await.is_ok();
    assert!(waited, "not {names:?} but {:?}", source.world.borrow().workloads().collect::<Vec<_>>());
}

async fn wait_status(source: &mut Source, fits: impl FnMut(&Arc<SourceStatus>) -> bool) -> Arc<SourceStatus> {
    let status = tokio::time::timeout(WITHIN, source.status.wait_for(fits)).await;
    status.expect("the status does not come").unwrap().clone()
}

/// As careful writers do it.
fn put(dir: &Path, name: &str, text: &str) {
    let temporary = dir.join(format!(".{name}.swp"));
    fs::write(&temporary, text).unwrap();
    fs::rename(&temporary, dir.join(name)).unwrap();
}

#[tokio::test]
async fn the_first_reading_is_there_at_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), workload("a", "10.0.0.1")).unwrap();
    fs::write(dir.path().join("b.yml"), workload("b", "10.0.0.2")).unwrap();
    fs::write(dir.path().join("c.json"), "not read").unwrap();
    fs::write(dir.path().join(".d.yaml"), "hidden").unwrap();
    fs::write(dir.path().join("e.yaml~"), "an editor's").unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/f.yaml"), workload("f", "10.0.0.3")).unwrap();
    let mut source = source(dir.path());
    assert_eq!(source.synced().await.unwrap().workloads().count(), 3);
    let status = source.status.borrow().clone();
    assert_eq!((status.synced, status.files, status.objects, status.epoch), (true, 3, 3, 1));
    assert!(status.diagnostics.is_empty() && status.url.starts_with("dir:/"));
}

#[tokio::test]
async fn every_way_of_writing_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = source(dir.path());
    // In place.
    fs::write(dir.path().join("a.yaml"), workload("a", "10.0.0.1")).unwrap();
    wait_names(&mut source, &["a"]).await;
    // By renaming.
    put(dir.path(), "b.yaml", &workload("b", "10.0.0.2"));
    wait_names(&mut source, &["a", "b"]).await;
    put(dir.path(), "b.yaml", &workload("c", "10.0.0.2"));
    wait_names(&mut source, &["a", "c"]).await;
    // By renaming a folder.
    fs::create_dir(dir.path().join(".new")).unwrap();
    fs::write(dir.path().join(".new/d.yaml"), workload("d", "10.0.0.3")).unwrap();
    fs::rename(dir.path().join(".new"), dir.path().join("new")).unwrap();
    wait_names(&mut source, &["a", "c", "d"]).await;
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    fs::remove_dir_all(dir.path().join("new")).unwrap();
    wait_names(&mut source, &["c"]).await;
}

#[tokio::test]
async fn it_is_known_which_version_of_a_file_is_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let taking = Taking { scope: Scope::Policy, last_good: None };
    let mut source = start(&SourceUrl::Dir(dir.path().to_owned()), "td", taking).unwrap();
    let version = |text: &str| kumiko_core::manifest::digest(&FileContent::Text(text.to_owned()));
    let held = |source: &Source| source.held.lock().unwrap().files.get("a.yaml").copied();
    assert_eq!(held(&source), None);
    let first = workload("a", "10.0.0.1");
    put(dir.path(), "a.yaml", &first);
    wait_names(&mut source, &["a"]).await;
    wait_status(&mut source, |status| status.files == 1).await;
    let of_first = Some((version(&first), 2));
    assert_eq!(held(&source), Some(Version { read: version(&first), in_force: of_first }));
    // Another text that means the same, one that means nothing, and one that makes the policy unfit.
    let same = format!("# the same\n{first}");
    let wait_read = async |source: &Source, digest| {
        let deadline = tokio::time::Instant::now() + WITHIN;
        while held(source).is_none_or(|version| version.read != digest) {
            assert!(tokio::time::Instant::now() < deadline, "never read");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    put(dir.path(), "a.yaml", &same);
    wait_read(&source, version(&same)).await;
    let of_same = Some((version(&same), 2));
    assert_eq!(held(&source).unwrap().in_force, of_same);
    let unfit = format!(
        "{first}apiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: p, namespace: demo}}\n\
         spec: {{mode: audit, replaces: [gone], ingress: []}}\n"
    );
    for bad in ["kind: none\n", &unfit] {
        put(dir.path(), "a.yaml", bad);
        wait_read(&source, version(bad)).await;
        assert_eq!(held(&source).unwrap().in_force, of_same);
        assert_eq!(source.held.lock().unwrap().refused.len(), 1);
    }
    // A team that writes so keeps nobody from the platform's word.
    let baseline =
        "apiVersion: kumiko.dev/v1alpha1\nkind: MeshBaseline\nmetadata: {name: p}\nspec: {subject: {}, ingress: {}}\n";
    put(dir.path(), "b.yaml", baseline);
    let has = |world: &Arc<World>| world.policy().policies.objects().iter().any(|object| object.id.name == "p");
    tokio::time::timeout(WITHIN, source.world.wait_for(has)).await.unwrap().unwrap();
    let second = workload("b", "10.0.0.1");
    put(dir.path(), "a.yaml", &second);
    wait_names(&mut source, &["b"]).await;
    wait_read(&source, version(&second)).await;
    let (digest, epoch) = held(&source).unwrap().in_force.unwrap();
    assert_eq!((digest, epoch), (version(&second), source.world.borrow().epoch()));
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    wait_names(&mut source, &[]).await;
    wait_status(&mut source, |status| status.files == 1).await;
    assert_eq!(held(&source), None);
}

#[tokio::test]
async fn a_configmap_mount_changes_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let version = |number: u32, ip: &str| {
        let folder = dir.path().join(format!("..v{number}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a.yaml"), workload("a", ip)).unwrap();
        fs::write(folder.join("b.yaml"), workload(&format!("b{number}"), "10.0.0.9")).unwrap();
        symlink(format!("..v{number}"), dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    };
    version(1, "10.0.0.1");
    for name in ["a.yaml", "b.yaml"] {
        symlink(format!("..data/{name}"), dir.path().join(name)).unwrap();
    }
    let mut source = source(dir.path());
    wait_names(&mut source, &["a", "b1"]).await;
    version(2, "10.0.0.2");
    fs::remove_dir_all(dir.path().join("..v1")).unwrap();
    wait_names(&mut source, &["a", "b2"]).await;
    assert!(source.world.borrow().workload_at("10.0.0.2".parse().unwrap()).is_some());
}

#[tokio::test]
async fn a_start_with_a_bad_file_goes_on_with_its_last_good_version() {
    let (dir, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let taking = Taking { last_good: Some(kept.path().to_owned()), ..Taking::default() };
    let begin = || start(&SourceUrl::Dir(dir.path().to_owned()), "td", taking.clone()).unwrap();
    fs::create_dir(dir.path().join("deep")).unwrap();
    fs::write(dir.path().join("deep/a.yaml"), workload("a", "10.0.0.1")).unwrap();
    put(dir.path(), "b.yaml", &workload("b", "10.0.0.2"));
    let mut first = begin();
    wait_names(&mut first, &["a", "b"]).await;
    drop(first);
    // A start with both of them bad, and one that never was good.
    for name in ["deep/a.yaml", "b.yaml", "c.yaml"] {
        fs::write(dir.path().join(name), "kind: [").unwrap();
    }
    let mut second = begin();
    wait_names(&mut second, &["a", "b"]).await;
    let status = wait_status(&mut second, |status| status.synced).await;
    let told: HashSet<&str> = status.diagnostics.iter().map(|told| told.file.as_str()).collect();
    assert_eq!(told, HashSet::from(["deep/a.yaml", "b.yaml", "c.yaml"]), "{status:?}");
    // What goes meanwhile is not kept.
    fs::remove_file(dir.path().join("b.yaml")).unwrap();
    wait_names(&mut second, &["a"]).await;
    drop(second);
    put(dir.path(), "b.yaml", "kind: [");
    let mut third = begin();
    wait_names(&mut third, &["a"]).await;
    // Another folder's files are others, whatever their names.
    let other = tempfile::tempdir().unwrap();
    fs::create_dir(other.path().join("deep")).unwrap();
    fs::write(other.path().join("deep/a.yaml"), "kind: [").unwrap();
    let mut fourth = start(&SourceUrl::Dir(other.path().to_owned()), "td", taking.clone()).unwrap();
    fourth.synced().await.unwrap();
    assert_eq!(fourth.world.borrow().workloads().count(), 0);
}

#[tokio::test]
async fn what_could_not_be_kept_is_kept_when_it_can_be() {
    let (dir, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = kept.path().join(last_good::name_of(dir.path()));
    // A folder stands where the file has to be.
    fs::create_dir_all(place.join("a.yaml")).unwrap();
    put(dir.path(), "a.yaml", &workload("a", "10.0.0.1"));
    let taking = Taking { last_good: Some(kept.path().to_owned()), ..Taking::default() };
    let mut source = start(&SourceUrl::Dir(dir.path().to_owned()), "td", taking).unwrap();
    wait_names(&mut source, &["a"]).await;
    assert!(place.join("a.yaml").is_dir());
    fs::remove_dir(place.join("a.yaml")).unwrap();
    let until = tokio::time::Instant::now() + WITHIN;
    while !place.join("a.yaml").is_file() {
        assert!(tokio::time::Instant::now() < until, "it is not tried again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn policy_that_is_not_enforced_raises_nobody_and_lowers_nobody() {
    let (dir, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let taking = Taking { scope: Scope::Policy, last_good: Some(kept.path().to_owned()) };
    let begin = || start(&SourceUrl::Dir(dir.path().to_owned()), "td", taking.clone()).unwrap();
    let namespace = |name: &str, stage: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{kumiko.dev/stage: {stage}}}}}\n"
        );
        put(dir.path(), &format!("{name}.yaml"), &text);
    };
    let foreign = |namespace: &str| {
        let text = format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: l7, namespace: {namespace}}}\n"
        );
        put(dir.path(), &format!("cilium-{namespace}.yaml"), &text);
    };
    async fn stages(source: &mut Source, wanted: [Stage; 2]) {
        let fits = |world: &Arc<World>| ["old", "new"].map(|name| world.namespace_stage(name)) == wanted;
        tokio::time::timeout(WITHIN, source.world.wait_for(fits)).await.unwrap().unwrap();
    }
    use Stage::{Observe, Permissive, Strict};
    namespace("old", "permissive");
    foreign("new");
    namespace("new", "strict");
    let mut first = begin();
    stages(&mut first, [Permissive, Observe]).await;
    let told = wait_status(&mut first, |status| !status.diagnostics.is_empty()).await.diagnostics[0].clone();
    assert!(
        told.file == "new.yaml" && told.message.starts_with("Namespace new: its stage would be strict and is observe")
    );
    foreign("old");
    wait_status(&mut first, |status| status.diagnostics.len() == 2).await;
    stages(&mut first, [Permissive, Observe]).await;
    drop(first);
    // The agent after it knows what was in force; no higher than that.
    namespace("old", "strict");
    let mut second = begin();
    stages(&mut second, [Permissive, Observe]).await;
    put(
        dir.path(),
        "s.yaml",
        &policy("MeshSettings", "mesh", "{acceptedPolicyKinds: [CiliumNetworkPolicy.cilium.io]}"),
    );
    stages(&mut second, [Strict, Strict]).await;
    wait_status(&mut second, |status| status.diagnostics.is_empty()).await;
    fs::remove_file(dir.path().join("s.yaml")).unwrap();
    wait_status(&mut second, |status| status.diagnostics.len() == 2).await;
    stages(&mut second, [Strict, Strict]).await;
    // What is missing in one reading is no change of mind.
    let moved = fs::read_to_string(dir.path().join("new.yaml")).unwrap();
    fs::remove_file(dir.path().join("new.yaml")).unwrap();
    stages(&mut second, [Strict, Stage::Off]).await;
    put(dir.path(), "moved.yaml", &moved);
    stages(&mut second, [Strict, Strict]).await;
    fs::remove_file(dir.path().join("moved.yaml")).unwrap();
    put(dir.path(), "new.yaml", &moved);
    // Whoever goes down by their own label goes up no more, unless the platform says so.
    namespace("old", "observe");
    stages(&mut second, [Observe, Strict]).await;
    namespace("old", "strict");
    wait_status(&mut second, |status| status.diagnostics.iter().any(|told| told.message.contains("Namespace old")))
        .await;
    stages(&mut second, [Observe, Strict]).await;
    put(dir.path(), "s.yaml", &policy("MeshSettings", "mesh", "{minStage: [{stage: permissive}]}"));
    stages(&mut second, [Permissive, Strict]).await;
    drop(second);
    // An agent before this one kept files and no stages.
    fs::remove_file(dir.path().join("s.yaml")).unwrap();
    fs::remove_file(kept.path().join(last_good::name_of(dir.path())).join(".raised")).unwrap();
    let mut third = begin();
    stages(&mut third, [Strict, Strict]).await;
}

/// A baseline that selects by a label which is nobody's yet, and a team's policy.
const UNFIT: &str = "apiVersion: kumiko.dev/v1alpha1\nkind: MeshBaseline\nmetadata: {name: bank}\nspec:\n  subject: {namespaceLabels: \
                     {platform.bank/tier: prod}}\n  ingress: {deny: []}\n---\n";

fn policy(kind: &str, name: &str, spec: &str) -> String {
    let namespace = if kind == "MeshPolicy" { ", namespace: demo" } else { "" };
    format!("apiVersion: kumiko.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}{namespace}}}\nspec: {spec}\n---\n")
}

/// What is in force, each with `!` if it stands for one that is not.
fn policies(source: &Source) -> Vec<String> {
    let world = source.world.borrow();
    let one = |object: &std::sync::Arc<kumiko_core::policy::rule::Object>| {
        format!("{}{}", object.id, if object.invalid { "!" } else { "" })
    };
    world.policy().policies.objects().iter().map(one).collect()
}

#[tokio::test]
async fn while_policy_is_not_fit_new_policies_do_not_count_as_none() {
    let (dir, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let taking = Taking { scope: Scope::Policy, last_good: Some(kept.path().to_owned()) };
    let begin = || start(&SourceUrl::Dir(dir.path().to_owned()), "td", taking.clone()).unwrap();
    // Nothing was in force before: what does what it says is.
    put(dir.path(), "a.yaml", &policy("MeshPolicy", "one", "{ingress: []}"));
    put(
        dir.path(),
        "b.yaml",
        &(UNFIT.to_owned() + &policy("MeshBaseline", "fit", "{subject: {}, ingress: {deny: []}}")),
    );
    let mut first = begin();
    first.synced().await.unwrap();
    assert_eq!(policies(&first), ["MeshBaseline/fit", "MeshPolicy/demo/one"]);
    assert!(
        first.status.borrow().diagnostics.iter().any(|told| told.message.contains("is no label of the platform's"))
    );
    let settings = policy("MeshSettings", "mesh", "{platformLabelPrefixes: [platform.bank/]}");
    put(dir.path(), "c.yaml", &settings);
    wait_status(&mut first, |status| status.diagnostics.is_empty()).await;
    assert_eq!(policies(&first), ["MeshBaseline/bank", "MeshBaseline/fit", "MeshPolicy/demo/one"]);
    // It was: it goes on, and what is new only refuses.
    fs::remove_file(dir.path().join("c.yaml")).unwrap();
    put(dir.path(), "d.yaml", &policy("MeshPolicy", "two", "{egress: [{name: a, to: [{namespace: demo}]}]}"));
    wait_status(&mut first, |status| !status.diagnostics.is_empty()).await;
    let goes_on = ["MeshBaseline/bank", "MeshBaseline/fit", "MeshPolicy/demo/one", "MeshPolicy/demo/two!"];
    let fits = |world: &Arc<World>| world.policy().policies.objects().len() == goes_on.len();
    tokio::time::timeout(WITHIN, first.world.wait_for(fits)).await.unwrap().unwrap();
    assert_eq!(policies(&first), goes_on);
    drop(first);
    let mut second = begin();
    second.synced().await.unwrap();
    assert_eq!(policies(&second), goes_on, "after a restart, too");
    put(dir.path(), "c.yaml", &settings);
    wait_status(&mut second, |status| status.diagnostics.is_empty()).await;
    assert_eq!(policies(&second), goes_on.map(|name| name.trim_end_matches('!')));
}

#[tokio::test]
async fn a_bad_file_is_told_and_the_last_good_state_stays() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a.yaml", &workload("a", "10.0.0.1"));
    let mut source = source(dir.path());
    let epoch = source.world.borrow().epoch();
    put(dir.path(), "a.yaml", &workload("a", "10.0.0.300"));
    let status = wait_status(&mut source, |status| !status.diagnostics.is_empty()).await;
    let diagnostic = &status.diagnostics[0];
    assert_eq!((diagnostic.file.as_str(), diagnostic.line, diagnostic.column), ("a.yaml", 4, 43));
    assert_eq!(diagnostic.message, "spec.ips[0]: \"10.0.0.300\" must be an IPv4 or IPv6 address");
    assert_eq!((source.world.borrow().epoch(), source.counters.refusals()), (epoch, 1));
    wait_names(&mut source, &["a"]).await;
    put(dir.path(), "a.yaml", &workload("a", "10.0.0.30"));
    wait_status(&mut source, |status| status.diagnostics.is_empty() && status.epoch > epoch).await;
    assert!(source.world.borrow().workload_at("10.0.0.30".parse().unwrap()).is_some());
}

#[tokio::test]
async fn a_lowering_label_is_told_and_does_not_lower() {
    let dir = tempfile::tempdir().unwrap();
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo, labels: {kumiko.dev/stage: strict}}\n";
    put(dir.path(), "ns.yaml", namespace);
    put(
        dir.path(),
        "w.yaml",
        &workload("a", "10.0.0.1").replace("uid: u-a", "uid: u-a, labels: {kumiko.dev/stage: off}"),
    );
    let source = source(dir.path());
    let status = source.status.borrow().clone();
    assert_eq!(
        status.diagnostics[0].message,
        "the label kumiko.dev/stage=off would lower workload demo/a below its namespace's strict: the label is refused, \
         the workload stays strict; a label may only raise"
    );
    assert_eq!(source.world.borrow().workload("u-a").unwrap().stage, kumiko_abi::Stage::Strict);
}

#[tokio::test]
async fn a_folder_may_come_late_and_be_replaced() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("manifests");
    let mut source = source(&dir);
    assert!(!source.status.borrow().synced);
    assert!(source.status.borrow().diagnostics[0].message.starts_with("the folder cannot be read: "));
    assert_eq!(source.world.borrow().epoch(), 0);
    fs::create_dir(&dir).unwrap();
    put(&dir, "a.yaml", &workload("a", "10.0.0.1"));
    wait_names(&mut source, &["a"]).await;
    wait_status(&mut source, |status| status.synced && status.diagnostics.is_empty()).await;
    // Gone for a while: nothing changes.
    fs::rename(&dir, parent.path().join("old")).unwrap();
    wait_status(&mut source, |status| !status.diagnostics.is_empty()).await;
    assert_eq!(source.world.borrow().workloads().count(), 1);
    // Another one stands there.
    fs::create_dir(parent.path().join("next")).unwrap();
    put(&parent.path().join("next"), "b.yaml", &workload("b", "10.0.0.2"));
    fs::rename(parent.path().join("next"), &dir).unwrap();
    wait_names(&mut source, &["b"]).await;
    put(&dir, "c.yaml", &workload("c", "10.0.0.3"));
    wait_names(&mut source, &["b", "c"]).await;
    wait_status(&mut source, |status| status.diagnostics.is_empty()).await;
}
