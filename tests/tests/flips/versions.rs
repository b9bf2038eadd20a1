//! Two versions of everything that a verdict is made of: they agree on each pair of pods, and no mixture of them does.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use kumiko_lab::{Lab, LabSpec, Net, PodSpec, ServiceSpec, Stage};

/// Where servers listen, and their Services.
pub(super) const PORT: u16 = 20_000;
/// The file of a version. One file is read as a whole.
pub(super) const FILE: &str = "version.yaml";

/// A client, a server, and whether both versions let the first call the second.
pub(super) type Pair = (&'static str, &'static str, bool);

/// On one node every half of a version decides; between two nodes each decides for its own end, and has versions of its
/// own, so a mixture is one of what one node has.
pub(super) const PAIRS: [Pair; 6] = [
    ("near-1", "open-1", true),
    ("far-1", "open-2", true),
    // Going out is refused.
    ("near-1", "shut-1", false),
    ("far-1", "shut-2", false),
    // Coming in is refused.
    ("far-1", "bolt-2", false),
    // Going out is refused by one, coming in by the other.
    ("near-1", "half-1", false),
];

/// The labels of a version, its rules about going out, and those about coming in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Version {
    pub(super) labels: char,
    pub(super) outward: char,
    pub(super) inward: char,
}

/// The two of them.
pub(super) const WHOLE: [Version; 2] = [whole('a'), whole('b')];

const fn whole(version: char) -> Version {
    Version { labels: version, outward: version, inward: version }
}

/// All mixtures of them, and the pairs on which each says something else than they do.
pub(super) const MIXED: [(Version, &[usize]); 6] = [
    (Version { labels: 'b', ..whole('a') }, &[0, 1, 2, 3, 4]),
    (Version { labels: 'a', ..whole('b') }, &[0, 1, 2, 3, 4]),
    (Version { outward: 'b', ..whole('a') }, &[0, 1, 2, 3, 5]),
    (Version { outward: 'a', ..whole('b') }, &[0, 1, 2, 3]),
    (Version { inward: 'b', ..whole('a') }, &[0, 1, 4]),
    (Version { inward: 'a', ..whole('b') }, &[0, 1, 4, 5]),
];

/// A lab whose folder has no pods yet: they come with a version.
pub(super) fn spec() -> LabSpec {
    let mut spec = LabSpec::standard(&format!("flips-{}", std::process::id()), 2, Net::Routed, Stage::Strict);
    (spec.pods, spec.services, spec.datagrams) = (Vec::new(), Vec::new(), true);
    for pod in ["near-1", "far-1", "open-1", "shut-1", "half-1", "open-2", "shut-2", "bolt-2"] {
        spec.pods.push(PodSpec::new(pod, "demo", if pod.ends_with('1') { 1 } else { 2 }));
        spec.services.push(ServiceSpec {
            name: pod.into(),
            namespace: "demo".into(),
            pods: vec![pod.into()],
            ports: vec![(PORT, PORT)],
        });
    }
    spec
}

/// Takes the pods' documents out of the folder, by name.
pub(super) fn take_pods(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let take = |pod: &kumiko_lab::Pod| {
        let file = lab.manifests().join(format!("workload-{}.yaml", pod.name));
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        ensure!(text.contains("  labels:\n"), "{text}");
        std::fs::remove_file(&file)?;
        Ok((pod.name.clone(), text))
    };
    lab.pods.iter().map(take).collect()
}

const fn other(version: char) -> char {
    if version == 'a' { 'b' } else { 'a' }
}

impl Version {
    /// Its documents. Between nodes a client's labels are compared, and may differ for a moment: those of `far` stay.
    pub(super) fn documents(self, pods: &BTreeMap<String, String>) -> String {
        let mut text = String::new();
        for (name, pod) in pods {
            let label = if name.starts_with("far-") { 'c' } else { self.labels };
            text += "---\n";
            text += &pod.replacen("  labels:\n", &format!("  labels:\n    v: {label}\n"), 1);
        }
        self.say_outward(&mut text);
        self.say_inward(&mut text);
        text
    }

    fn say_outward(self, text: &mut String) {
        let (own, other) = (self.outward, other(self.outward));
        let to = |app: &str, more: &str| {
            format!(
                "    - {{name: {app}, to: [{{namespace: demo, labels: {{app: {app}{more}}}}}], unauthenticated: true}}\n"
            )
        };
        let both = to("open", &format!(", v: {own}")) + &to("shut", &format!(", v: {other}"));
        // One of them refuses here, the other one at the server.
        let half = if own == 'b' { to("half", "") } else { String::new() };
        for (client, rules) in [("near", both.clone() + &half), ("far", both + &to("bolt", ""))] {
            *text += &policy(&format!("{client}-out-{own}"), &format!("app: {client}"), "egress", &rules);
        }
    }

    fn say_inward(self, text: &mut String) {
        let (own, other) = (self.inward, other(self.inward));
        let from = |who: &[&str], ports: &str| {
            let peers: Vec<String> = who.iter().map(|who| format!("{{namespace: demo, labels: {{{who}}}}}")).collect();
            format!("    - {{name: in, from: [{}], unauthenticated: true{ports}}}\n", peers.join(", "))
        };
        let near = format!("app: near, v: {own}");
        // Other ports make other tables.
        let ports = if own == 'a' {
            String::new()
        } else {
            format!(
                ", ports: [{{protocol: TCP, port: {PORT}}}, {{protocol: UDP, port: {PORT}, endPort: {}}}]",
                PORT + 7
            )
        };
        let all = ["app: near", "app: far"];
        *text += &policy(
            &format!("open-{own}"),
            &format!("app: open, v: {own}"),
            "ingress",
            &from(&[&near, "app: far"], &ports),
        );
        *text += &policy(&format!("not-open-{own}"), &format!("app: open, v: {other}"), "ingress", "");
        *text += &policy("shut", "app: shut", "ingress", &from(&all, ""));
        *text += &policy(&format!("bolt-{own}"), &format!("app: bolt, v: {other}"), "ingress", &from(&all, ""));
        *text += &policy(&format!("not-bolt-{own}"), &format!("app: bolt, v: {own}"), "ingress", "");
        if own == 'b' {
            *text += &policy("half", "app: half", "ingress", "");
            // And other kinds.
            for (name, label, ingress) in [("open", own, "ingress: [{}]"), ("not-open", other, "ingress: []")] {
                let _ = write!(
                    text,
                    "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: \
                     demo}}\nspec:\n  podSelector: {{matchLabels: {{app: open, v: {label}}}}}\n  policyTypes: [Ingress]\n  \
                     {ingress}\n"
                );
            }
        }
    }
}

fn policy(name: &str, subject: &str, direction: &str, rules: &str) -> String {
    let rules = if rules.is_empty() { " []\n".to_owned() } else { format!("\n{rules}") };
    format!(
        "---\napiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: {name}, namespace: demo}}\nspec:\n  \
         subject: {{labels: {{{subject}}}}}\n  {direction}:{rules}"
    )
}
