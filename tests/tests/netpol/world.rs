//! The lab of upstream's model: pods a, b and c in the namespaces x, y and z, each behind a Service of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use kumiko_lab::{Family, Lab, LabSpec, Net, PodSpec, ServiceSpec, Stage};
use kumiko_tests::echo::{Datagrams, Echo};
use kumiko_tests::in_force;
use kumiko_tests::probe::{self, Probe, Protocol, Refusal};

use super::table::{Case, Pairs, Step, expected};

/// Ports that every pod has, and its Service.
const PORTS: [u16; 2] = [80, 81];
/// Below those that the kernel gives by itself.
const FIRST_PORT: u16 = 1024;
/// More than the probes of a pod.
const PORTS_OF_A_LOOK: u16 = 64;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Namespaces with the labels that recipes choose by.
const NAMESPACES: [(&str, &str); 3] = [
    ("x", "ns: x"),
    ("y", "ns: y, project: myproject, user: alice, namespace: frontend"),
    ("z", "ns: z, namespace: backend"),
];
/// Pods with the labels that recipes choose by.
const PODS: [(&str, &str); 3] = [("a", "role: db"), ("b", "role: frontend"), ("c", "role: client")];

/// The lab, and what is in its folder.
pub(super) struct World {
    lab: Lab,
    /// Files as they are to be, by their names.
    wanted: BTreeMap<String, String>,
    /// Files as they are.
    written: BTreeMap<String, String>,
    /// Specs by namespace and name.
    policies: BTreeMap<(&'static str, &'static str), &'static str>,
    /// Files without what a case changed.
    plain: BTreeMap<String, String>,
    /// The next source port for datagrams.
    next_port: u16,
    _echoes: Vec<Echo>,
    _datagrams: Vec<Datagrams>,
}

/// A pod's name in the lab.
fn lab_name(pod: &str) -> String {
    pod.replace('/', "-")
}

fn pods() -> impl Iterator<Item = String> {
    NAMESPACES.iter().flat_map(|(namespace, _)| PODS.iter().map(move |(pod, _)| format!("{namespace}/{pod}")))
}

fn policy_file() -> String {
    "policy.yaml".into()
}
fn namespace_file(namespace: &str) -> String {
    format!("namespace-{namespace}.yaml")
}
fn workload_file(pod: &str) -> String {
    format!("workload-{}.yaml", lab_name(pod))
}

/// Every pod has some on its own node, and some on the other one, of its own namespace and of others.
fn spec() -> LabSpec {
    let name = format!("netpol-{}", std::process::id());
    let mut spec = LabSpec::standard(&name, 2, Net::Routed, Stage::Permissive);
    spec.namespaces = NAMESPACES.map(|(name, _)| (name.into(), Stage::Permissive)).to_vec();
    (spec.pods, spec.services, spec.datagrams) = (Vec::new(), Vec::new(), true);
    for (number, pod) in pods().enumerate() {
        let (namespace, name) = (&pod[..1], lab_name(&pod));
        let mut made = PodSpec::new(&name, namespace, if number % 2 == 0 { 1 } else { 2 });
        made.ports.clear();
        spec.pods.push(made);
        spec.services.push(ServiceSpec {
            name: name.clone(),
            namespace: namespace.into(),
            pods: vec![name],
            ports: PORTS.map(|port| (port, port)).to_vec(),
        });
    }
    spec
}

impl World {
    pub(super) fn up() -> Result<Self> {
        let mut lab = Lab::build(&spec())?;
        let plain = documents(&lab)?;
        for (file, text) in &plain {
            std::fs::write(lab.manifests().join(file), text).with_context(|| format!("writing {file}"))?;
        }
        lab.start_mesh()?;
        let (mut echoes, mut datagrams) = (Vec::new(), Vec::new());
        for pod in &lab.pods {
            for (family, port) in FAMILIES.iter().flat_map(|family| PORTS.map(|port| (*family, port))) {
                echoes.push(Echo::start(&pod.netns, SocketAddr::new(pod.ip(family), port))?);
                datagrams.push(Datagrams::start(&pod.netns, SocketAddr::new(pod.ip(family), port))?);
            }
        }
        let (wanted, written, policies) = (plain.clone(), plain.clone(), BTreeMap::new());
        Ok(Self {
            lab,
            wanted,
            written,
            policies,
            plain,
            next_port: FIRST_PORT,
            _echoes: echoes,
            _datagrams: datagrams,
        })
    }

    /// Runs a case.
    pub(super) fn run(&mut self, case: &Case) -> Result<()> {
        self.wanted = self.plain.clone();
        self.policies.clear();
        for (number, step) in (1..).zip(case.steps) {
            let done = self.step(step).with_context(|| format!("step {number}"));
            done.map_err(|cause| cause.context(self.lab.evidence(20)))?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match *step {
            Step::Policy(namespace, name, spec) => {
                self.policies.insert((namespace, name), spec);
                self.say_policies()
            }
            Step::Delete => {
                self.policies.clear();
                self.say_policies()
            }
            Step::Namespace(namespace, label) => self.label(&namespace_file(namespace), label),
            Step::Pod(pod, label) => self.label(&workload_file(pod), label),
            Step::Tcp(port, pairs) => self.look(Protocol::Tcp, port, pairs),
            Step::Udp(port, pairs) => self.look(Protocol::Udp(Refusal::MayBeSilent), port, pairs),
        }
    }

    fn say_policies(&mut self) -> Result<()> {
        let mut text = String::new();
        for ((namespace, name), spec) in &self.policies {
            text += &format!(
                "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                 metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
            );
        }
        for pod in pods() {
            for family in FAMILIES {
                let ip = self.lab.pod(&lab_name(&pod))?.ip(family);
                text = text.replace(&format!("<{pod} {family}>"), &ip.to_string());
            }
        }
        self.wanted.insert(policy_file(), text);
        Ok(())
    }

    fn label(&mut self, file: &str, label: &str) -> Result<()> {
        let text = self.wanted.get_mut(file).with_context(|| format!("no file {file}"))?;
        *text = text.replacen("  labels:\n", &format!("  labels:\n    {label}\n"), 1);
        Ok(())
    }

    /// Writes what is to be otherwise, and waits until both nodes judge by it.
    fn say(&mut self) -> Result<()> {
        for (file, text) in &self.wanted {
            if self.written.get(file) == Some(text) {
                continue;
            }
            let path = self.lab.manifests().join(file);
            in_force::after(&self.lab, || std::fs::write(&path, text).with_context(|| format!("writing {file}")))?;
            self.written.insert(file.clone(), text.clone());
        }
        Ok(())
    }

    /// Looks at every pair of two pods, by both families, by the pod's address and by its Service's.
    fn look(&mut self, protocol: Protocol, port: u16, pairs: &[Pairs]) -> Result<()> {
        self.say()?;
        let mut probes = Vec::new();
        for from in pods() {
            let mut own = Vec::new();
            for to in pods().filter(|to| *to != from) {
                for family in FAMILIES {
                    let name = lab_name(&to);
                    let ips: [(&str, IpAddr); 2] =
                        [("pod", self.lab.pod(&name)?.ip(family)), ("Service", self.lab.service_ip(&name, family)?)];
                    own.extend(ips.map(|(by, ip)| Probe {
                        from_port: 0,
                        what: format!("{from} to {to}, {family}, by {by}"),
                        to: SocketAddr::new(ip, port),
                        reaches: expected(pairs, &from, &to),
                    }));
                }
            }
            // Of each pod's own, so those of another may be the same.
            for (probe, port) in own.iter_mut().zip(self.next_port..) {
                probe.from_port = port;
            }
            probes.push((&self.lab.pod(&lab_name(&from))?.netns, own));
        }
        self.next_port += PORTS_OF_A_LOOK;
        let (wrong, all) = (probe::wrong(protocol, &probes)?, probes.iter().map(|(_, own)| own.len()).sum::<usize>());
        let few = wrong.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n");
        ensure!(wrong.is_empty(), "{protocol:?} {port}: {} of {all} are wrong:\n{few}", wrong.len());
        Ok(())
    }
}

/// The lab's documents as upstream has them: a pod's label, its named ports, further labels. No policy.
fn documents(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::from([(policy_file(), String::new())]);
    for (namespace, labels) in NAMESPACES {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  labels:\n    \
             kumiko.dev/stage: permissive\n    {}\n",
            labels.replace(", ", "\n    ")
        );
        all.insert(namespace_file(namespace), text);
        for (pod, labels) in PODS {
            let whole = format!("{namespace}/{pod}");
            let name = lab_name(&whole);
            let own = format!("    pod: {name}\n");
            let read = |file: &str| {
                let text =
                    std::fs::read_to_string(lab.manifests().join(file)).with_context(|| format!("reading {file}"));
                text.and_then(|text| {
                    ensure!(text.contains(&own), "{file} has no label pod: {text}");
                    Ok(text)
                })
            };
            let mut workload = read(&workload_file(&whole))?.replace(&own, &format!("    pod: {pod}\n    {labels}\n"));
            workload += "  ports:\n";
            for port in PORTS {
                for protocol in ["TCP", "UDP"] {
                    let name = format!("serve-{port}-{}", protocol.to_lowercase());
                    workload += &format!("    - {{name: {name}, port: {port}, protocol: {protocol}}}\n");
                }
            }
            all.insert(workload_file(&whole), workload);
            let service = format!("service-{namespace}-{name}.yaml");
            all.insert(service.clone(), read(&service)?.replace(&own, &format!("    pod: {pod}\n")));
        }
    }
    Ok(all)
}
