//! A cluster of many workloads and policies, as one node sees it.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};
use kumiko_core::manifest::{Object, Scope, parse_in};
use kumiko_core::model::World;

/// The node whose tables are made.
pub(super) const NODE: &str = "n1";
/// Pods of it: the kubelet's default bound, each of another application.
pub(super) const LOCAL: usize = 110;
/// Rules of a policy, half of them in each direction; each names one peer and one port.
pub(super) const RULES: usize = 10;
/// Ports that rules name.
pub(super) const PORTS: [u16; 8] = [8080, 8443, 9090, 5432, 6379, 9092, 3306, 9200];

const NAMESPACES: usize = 1_000;
/// Applications of a namespace, each with a service account of its own.
const APPS: usize = 10;
/// Pods of an application.
const PODS: usize = 5;

/// All workloads of the cluster.
pub(super) const WORKLOADS: usize = NAMESPACES * APPS * PODS;

/// Documents of the cluster.
pub(super) struct Cluster {
    objects: Vec<Object>,
    epoch: u64,
}

/// An application, by number; the node's own come first.
fn name(app: usize) -> (String, String) {
    (format!("ns{}", app % NAMESPACES), format!("app{}", app / NAMESPACES))
}

fn peer(app: usize, rule: usize) -> usize {
    // Any number that is prime to theirs: peers all over the cluster.
    (app * 7_919 + rule * 6_007 + 131) % (NAMESPACES * APPS)
}

fn pod(app: usize, pod: usize, again: &str) -> String {
    let (namespace, name) = name(app);
    let at = app * PODS + pod + 256;
    let node = if app < LOCAL && pod == 0 { NODE.to_owned() } else { format!("n{}", 2 + at % 453) };
    let [_, a, b, c] = u32::try_from(at).unwrap_or_default().to_be_bytes();
    format!(
        "---\napiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}-{pod}, namespace: {namespace}, \
         uid: u{app}-{pod}{again}, labels: {{app: {name}, pod-template-hash: h{app}}}}}\nspec: {{serviceAccount: {name}, \
         node: {node}, ips: [10.{a}.{b}.{c}, 'fd00::{at:x}'], ports: [{{name: web, port: 8080, probe: true}}]}}\n"
    )
}

fn policy(app: usize, grace: u32) -> String {
    let (namespace, name_of) = name(app);
    let mut text = format!(
        "---\napiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: {name_of}, namespace: {namespace}}}\n\
         spec:\n  subject: {{labels: {{app: {name_of}}}}}\n  onRevoke: {{action: grace, seconds: {grace}}}\n"
    );
    for (direction, who, first) in [("ingress", "from", 0), ("egress", "to", RULES / 2)] {
        let _ = writeln!(text, "  {direction}:");
        for rule in first..first + RULES / 2 {
            let (namespace, account) = name(peer(app, rule));
            let port = PORTS.get((app + rule * 3) % PORTS.len()).copied().unwrap_or_default();
            let _ = writeln!(
                text,
                "  - {{name: r{rule}, {who}: [{{namespace: {namespace}, serviceAccount: {account}}}], ports: [{{port: {port}}}]}}"
            );
        }
    }
    text
}

fn parse(text: &str) -> Result<Vec<Object>> {
    parse_in(Scope::Policy, "bench", text).map_err(|problems| match problems.first() {
        Some(problem) => anyhow!("{problem}"),
        None => anyhow!("refused without a word"),
    })
}

impl Cluster {
    /// With so many policies, those about the node's own pods first.
    pub(super) fn new(policies: usize) -> Result<Self> {
        let mut objects = Vec::new();
        let mut text = String::new();
        for at in 0..NAMESPACES {
            let _ = write!(
                text,
                "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: ns{at}, labels: {{kumiko.dev/stage: strict}}}}\n"
            );
        }
        for node in 1..456 {
            let (a, b) = (node / 250, 1 + node % 250);
            let _ = write!(
                text,
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: n{node}}}\nstatus: {{addresses: [{{type: InternalIP, \
                 address: 172.16.{a}.{b}}}]}}\n"
            );
        }
        text += "---\napiVersion: kumiko.dev/v1alpha1\nkind: MeshSettings\nmetadata: {name: mesh}\nspec: {podCidrs: \
                 [10.0.0.0/8, 'fd00::/16'], nodeCidrs: [172.16.0.0/16]}\n";
        objects.extend(parse(&text)?);
        for app in 0..NAMESPACES * APPS {
            let mut text: String = (0..PODS).map(|at| pod(app, at, "")).collect();
            if app < policies {
                text += &policy(app, 60);
            }
            objects.extend(parse(&text)?);
        }
        Ok(Self { objects, epoch: 0 })
    }

    /// The model of them.
    pub(super) fn world(&mut self) -> Result<World> {
        self.epoch += 1;
        let named = self.objects.iter().map(|object| ("bench", object));
        Ok(World::build("cluster.local", self.epoch, named)?.0)
    }

    fn put(&mut self, text: &str) -> Result<()> {
        for object in parse(text)? {
            let name = object.claims.first().map(|(name, _)| name);
            self.objects.retain(|other| other.claims.first().map(|(name, _)| name) != name);
            self.objects.push(object);
        }
        Ok(())
    }

    /// One pod of an application goes.
    pub(super) fn remove_pod(&mut self, app: usize, at: usize) -> Result<()> {
        let text = pod(app, at, "");
        self.put(&text)?;
        self.objects.pop();
        Ok(())
    }

    /// It comes, under a new UID if `again`.
    pub(super) fn add_pod(&mut self, app: usize, at: usize, again: bool) -> Result<()> {
        let uid = if again { format!("-{}", self.epoch) } else { String::new() };
        self.put(&pod(app, at, &uid))
    }

    /// The policy of an application says something else.
    pub(super) fn change_policy(&mut self, app: usize) -> Result<()> {
        self.put(&policy(app, 61 + u32::try_from(self.epoch % 60)?))
    }

    /// The first peer that the rules of a local pod name.
    pub(super) fn named_peer() -> usize {
        peer(0, 0)
    }

    /// An application that no rule about a local pod names, and that is elsewhere.
    pub(super) fn unnamed_peer() -> usize {
        let named: Vec<usize> = (0..LOCAL).flat_map(|app| (0..RULES).map(move |rule| peer(app, rule))).collect();
        (LOCAL..).find(|app| !named.contains(app)).unwrap_or(LOCAL)
    }
}
