use super::*;
use crate::manifest::parse;

const TWO: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: demo, labels: {kumiko.dev/stage: permissive}}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: kumiko.dev/v1alpha1
kind: Workload
metadata: {name: web-1, namespace: demo, uid: u1, labels: {app: web}}
spec: {serviceAccount: web, node: n1, ips: [10.0.0.1, 'fd00::1'], ports: [{name: http, port: 8080}]}
---
apiVersion: kumiko.dev/v1alpha1
kind: Workload
metadata: {name: web-2, namespace: demo, uid: u2, labels: {app: web, kumiko.dev/stage: strict}}
spec: {serviceAccount: web, node: n2, ips: [10.0.0.2], ports: [{name: http, port: 8081}]}
---
";

fn world(more: &str) -> World {
    let objects = parse("f", &format!("{TWO}{more}")).unwrap_or_else(|problems| panic!("{}", problems[0]));
    World::build("td", 7, objects.iter().map(|object| ("f", object))).unwrap().0
}

fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: demo}}\nspec: {{{spec}}}\n---\n")
}

fn slice(name: &str, service: &str, body: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: demo, labels: \
         {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\n{body}\n---\n"
    )
}

const BY_NAME: &str =
    "clusterIPs: [10.9.0.1, 'fd00:9::1'], selector: {app: web}, ports: [{port: 80, targetPort: http}]";

/// Addresses of the ready endpoints, and whether they are captured.
fn backends(world: &World, ip: &str) -> (Vec<String>, bool) {
    let ip = ip.parse().unwrap();
    let (_, port) = world.service_at(ip, 80, Protocol::Tcp).unwrap();
    let backends = port.backends(ip);
    (backends.ready.iter().map(|backend| backend.addr.to_string()).collect(), backends.capture)
}

#[test]
fn lookups() {
    let world = world("");
    let web = world.workload("u1").unwrap();
    assert_eq!(world.workload_at("fd00::1".parse().unwrap()), Some(web));
    assert_eq!(world.workload_named("demo", "web-1"), Some(web));
    assert_eq!((web.stage, world.workload("u2").unwrap().stage), (Stage::Permissive, Stage::Strict));
    assert_eq!(world.node_at("192.168.0.1".parse().unwrap()).unwrap().name, "n1");
    assert_eq!(world.namespace_stage("nowhere"), Stage::Off);
    assert_eq!((world.epoch(), world.trust_domain()), (7, "td"));
    assert_eq!(world.workloads_on("n1").count(), 1);
}

#[test]
fn a_node_has_the_principals_of_its_pods() {
    let world = world("");
    let principal = |account| Principal::new("td", "demo", account).unwrap();
    assert!(world.node_has_principal("n1", &principal("web")));
    assert!(!world.node_has_principal("n3", &principal("web")));
    assert!(!world.node_has_principal("n1", &principal("db")));
    assert!(!world.node_has_principal("n1", &Principal::new("other", "demo", "web").unwrap()));
    assert_eq!(world.principals_on("n2").count(), 1);
}

#[test]
fn endpoints_follow_from_the_selector() {
    let world = world(&service(BY_NAME));
    // A named port is each workload's own.
    assert_eq!(backends(&world, "10.9.0.1"), (vec!["10.0.0.1:8080".into(), "10.0.0.2:8081".into()], true));
    assert_eq!(backends(&world, "fd00:9::1"), (vec!["[fd00::1]:8080".into()], true));
}

#[test]
fn not_ready_is_no_endpoint_and_not_meshed_is_no_capture() {
    let third = |more: &str| {
        format!(
            "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: web-3, namespace: {more} \
             uid: u3, labels: {{app: web}}}}\nspec: {{serviceAccount: web, node: n1, ips: [10.0.0.3], ports: [{{name: \
             http, port: 1}}], ready: false}}\n---\n"
        )
    };
    let demo = third("demo,");
    assert_eq!(backends(&world(&(service(BY_NAME) + &demo)), "10.9.0.1").0.len(), 2);
    let published = BY_NAME.to_owned() + ", publishNotReadyAddresses: true";
    assert_eq!(backends(&world(&(service(&published) + &demo)), "10.9.0.1").0.len(), 3);
    let elsewhere = third("other,").replace("ready: false", "ready: true");
    assert_eq!(backends(&world(&(service(BY_NAME) + &elsewhere)), "10.9.0.1").0.len(), 2, "another namespace's");
    let none = BY_NAME.replace("app: web", "app: none");
    assert_eq!(backends(&world(&service(&none)), "10.9.0.1"), (vec![], false));
    let off = TWO.replace("permissive", "off");
    let objects = parse("f", &(off + &service(BY_NAME))).unwrap();
    let (world, _) = World::build("td", 1, objects.iter().map(|object| ("f", object))).unwrap();
    assert!(!backends(&world, "10.9.0.1").1, "one endpoint is off");
}

#[test]
fn slices_go_before_the_selector() {
    let named = BY_NAME.replace("{port: 80, targetPort: http}", "{name: web, port: 80, targetPort: http}");
    let ready = "endpoints: [{addresses: [10.0.0.2]}, {addresses: [10.0.0.1], conditions: {ready: false}}]\n\
                 ports: [{name: web, port: 9000, protocol: TCP}, {name: other, port: 9001}]";
    let sliced = world(&(service(&named) + &slice("s1", "web", ready)));
    assert_eq!(backends(&sliced, "10.9.0.1"), (vec!["10.0.0.2:9000".into()], true));
    assert_eq!(backends(&sliced, "fd00:9::1"), (vec![], false));
    // Several slices, one endpoint in two of them, one that is not of the mesh.
    let more = "endpoints: [{addresses: [10.0.0.2]}, {addresses: [10.7.7.7]}]\nports: [{name: web, port: 9000}]";
    let two = world(&(service(&named) + &slice("s1", "web", ready) + &slice("s2", "web", more)));
    assert_eq!(backends(&two, "10.9.0.1"), (vec!["10.0.0.2:9000".into(), "10.7.7.7:9000".into()], false));
    let others = world(&(service(&named) + &slice("s1", "db", ready)));
    assert_eq!(backends(&others, "10.9.0.1").0.len(), 2, "another Service's slices");
    // A slice without a port number speaks for none.
    let portless = world(&(service(&named) + &slice("s1", "web", "endpoints: [{addresses: [10.0.0.2]}]")));
    assert_eq!(backends(&portless, "10.9.0.1"), (vec![], false));
}

#[test]
fn who_terminates_serves_while_nobody_is_ready() {
    let late = "{addresses: [10.0.0.1], conditions: {ready: false, serving: true, terminating: true}}";
    let slices = |endpoints: &str| {
        let named = BY_NAME.replace("{port: 80, targetPort: http}", "{name: web, port: 80}");
        let rest = format!("endpoints: [{endpoints}]\nports: [{{name: web, port: 9000}}]");
        world(&(service(&named) + &slice("s1", "web", &rest)))
    };
    assert_eq!(backends(&slices(late), "10.9.0.1"), (vec!["10.0.0.1:9000".into()], true));
    let both = slices(&format!("{late}, {{addresses: [10.0.0.2]}}"));
    assert_eq!(backends(&both, "10.9.0.1"), (vec!["10.0.0.2:9000".into()], true));
    let other_family = slices(&format!("{late}, {{addresses: ['fd00::1']}}"));
    assert_eq!(backends(&other_family, "10.9.0.1"), (vec!["10.0.0.1:9000".into()], true));
    let silent = slices(&late.replace("serving: true", "serving: false"));
    assert_eq!(backends(&silent, "10.9.0.1"), (vec![], false));
}

#[test]
fn other_stages_reach_every_lookup() {
    let before = world(&service(BY_NAME));
    let after = before.with_stages(|workload| (workload.uid == "u1").then_some(Stage::Observe));
    assert_eq!(after.workload("u1").unwrap().stage, Stage::Observe);
    assert_eq!(after.workload_at("fd00::1".parse().unwrap()).unwrap().stage, Stage::Observe);
    assert_eq!(after.workload_named("demo", "web-1").unwrap().stage, Stage::Observe);
    assert_eq!(after.workload("u2").unwrap().stage, Stage::Strict);
    assert!(backends(&before, "10.9.0.1").1 && !backends(&after, "10.9.0.1").1);
    assert_eq!(after.with_stages(|workload| (workload.uid == "u1").then_some(Stage::Permissive)), before);
}

#[test]
fn labels_that_lower_are_told() {
    let lower = TWO
        .replace("stage: permissive", "stage: strict")
        .replace("app: web, kumiko.dev/stage: strict", "kumiko.dev/stage: observe");
    let objects = parse("f.yaml", &lower).unwrap();
    let (world, told) = World::build("td", 1, objects.iter().map(|object| ("f.yaml", object))).unwrap();
    assert_eq!(world.workload("u2").unwrap().stage, Stage::Strict);
    assert_eq!(
        told.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "f.yaml:18:78: the label kumiko.dev/stage=observe would lower workload demo/web-2 below its namespace's strict: \
          the label is refused, the workload stays strict; a label may only raise"
        ]
    );
}

#[test]
fn a_trust_domain_has_to_be_one() {
    assert!(World::build("TD", 1, std::iter::empty()).is_err());
}

#[test]
fn a_namespace_has_the_lowest_stage_that_the_platform_lets_it_have() {
    let settings = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshSettings
metadata: {name: mesh}
spec:
  platformLabelPrefixes: [platform.example/]
  minStage:
    - {namespaceLabels: {platform.example/tier: prod}, stage: strict}
    - {stage: observe}
---
apiVersion: v1
kind: Namespace
metadata: {name: prod, labels: {kumiko.dev/stage: permissive, platform.example/tier: prod}}
---
apiVersion: v1
kind: Namespace
metadata: {name: out, labels: {kumiko.dev/stage: 'off'}}
";
    let objects = crate::manifest::parse_in(crate::manifest::Scope::Policy, "f", &format!("{TWO}{settings}")).unwrap();
    let named = || objects.iter().map(|object| ("f", object));
    let (world, _) = World::build("td", 1, named()).unwrap();
    let stages = ["prod", "out", "unheard-of", "demo"].map(|name| world.namespace_stage(name));
    assert_eq!(stages, [Stage::Strict, Stage::Observe, Stage::Observe, Stage::Permissive]);
    let told: Vec<String> = world.policy().problems.iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|told| told.contains("Namespace prod: its stage permissive is below strict")), "{told:?}");
    assert!(world.policy().is_fit());
}
