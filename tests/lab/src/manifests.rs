//! The watched folder of a lab: the desired state as YAML documents.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::netns::Netns;
use crate::spec::{LabSpec, PodSpec, ServiceSpec, Stage, node_ips};
use crate::state::replace;
use crate::topology::netns_name;

/// Writes the whole folder.
pub fn write(dir: &Path, id: &str, spec: &LabSpec) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    replace(&dir.join("nodes.yaml"), nodes(spec).as_bytes())?;
    for (name, stage) in &spec.namespaces {
        set_stage(dir, name, *stage)?;
    }
    replace(&dir.join("accounts.yaml"), accounts(spec).as_bytes())?;
    for index in 0..spec.pods.len() {
        write_workload(dir, id, spec, index)?;
    }
    for index in 0..spec.services.len() {
        write_service(dir, spec, index)?;
    }
    Ok(())
}

/// Moves a namespace to a stage: one label, one rename.
pub fn set_stage(dir: &Path, namespace: &str, stage: Stage) -> Result<()> {
    let text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  uid: {}\n  labels:\n    \
         kumiko.dev/stage: \"{stage}\"\n",
        namespace_uid(namespace)
    );
    replace(&dir.join(format!("namespace-{namespace}.yaml")), text.as_bytes())
}

/// UID of a namespace.
pub fn namespace_uid(namespace: &str) -> String {
    format!("ns-{namespace}")
}

/// UID of a node.
pub fn node_uid(node: u8) -> String {
    format!("node-{node}")
}

/// UID of a service account.
pub fn account_uid(namespace: &str, account: &str) -> String {
    format!("sa-{namespace}-{account}")
}

fn accounts(spec: &LabSpec) -> String {
    let all: BTreeSet<_> = spec.pods.iter().map(|pod| (&pod.namespace, &pod.service_account)).collect();
    let one = |(namespace, account): (&String, &String)| {
        let uid = account_uid(namespace, account);
        format!(
            "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {account}, namespace: {namespace}, uid: {uid}}}\n"
        )
    };
    all.into_iter().map(one).collect()
}

fn nodes(spec: &LabSpec) -> String {
    let mut text = String::new();
    for node in 1..=spec.nodes {
        let ([v4, v6], uid) = (node_ips(node), node_uid(node));
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: n{node}\n  uid: {uid}\nstatus:\n  addresses:\n    \
             - type: InternalIP\n      address: {v4}\n    - type: InternalIP\n      address: \"{v6}\"\n"
        );
    }
    text
}

/// Writes the Workload of a pod, if the mesh shall know it.
pub fn write_workload(dir: &Path, id: &str, spec: &LabSpec, index: usize) -> Result<()> {
    let Some(pod) = spec.pods.get(index).filter(|pod| pod.workload) else { return Ok(()) };
    let path = dir.join(format!("workload-{}.yaml", pod.name));
    replace(&path, workload(id, spec, index, pod).as_bytes())
}

fn workload(id: &str, spec: &LabSpec, index: usize, pod: &PodSpec) -> String {
    let [v4, v6] = spec.pod_ips(index);
    let ns = Netns::named(netns_name(id, &pod.name));
    let mut text = format!(
        "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  \
         uid: {uid}\n  labels:\n    app: {account}\n    pod: {name}\nspec:\n  serviceAccount: {account}\n  \
         node: n{node}\n  ips: [\"{v4}\", \"{v6}\"]\n  attachment:\n    netns: {netns}\n    interface: eth0\n",
        name = pod.name,
        namespace = pod.namespace,
        uid = uid(id, index),
        account = pod.service_account,
        node = pod.node,
        netns = ns.path().display(),
    );
    if !pod.ports.is_empty() {
        text += "  ports:\n";
    }
    for (n, port) in pod.ports.iter().enumerate() {
        let _ = writeln!(text, "    - {{name: p{port}, port: {port}, protocol: TCP, probe: {}}}", n == 0);
    }
    text
}

/// UID of the pod at `index`.
pub fn uid(id: &str, index: usize) -> String {
    format!("0000{id}-0000-4000-8000-{index:012}")
}

/// Writes a Service. One pod behind it is selected by its label `pod`; several (or none) are listed in slices, as the
/// control plane of Kubernetes writes them.
pub fn write_service(dir: &Path, spec: &LabSpec, index: usize) -> Result<()> {
    let Some(service) = spec.services.get(index) else { return Ok(()) };
    let [v4, v6] = LabSpec::service_ips(index);
    let (name, namespace) = (&service.name, &service.namespace);
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  \
         clusterIP: {v4}\n  clusterIPs: [\"{v4}\", \"{v6}\"]\n  ports:\n"
    );
    for (protocol, port, target) in ports(spec, service) {
        let name = protocol.to_lowercase();
        let _ =
            writeln!(text, "    - {{name: {name}{port}, port: {port}, targetPort: {target}, protocol: {protocol}}}");
    }
    if let [only] = service.pods.as_slice() {
        let _ = write!(text, "  selector:\n    pod: {only}\n");
    } else {
        text += &slices(spec, service);
    }
    replace(&dir.join(format!("service-{namespace}-{name}.yaml")), text.as_bytes())
}

/// Ports of a Service with their protocols.
fn ports<'a>(spec: &LabSpec, service: &'a ServiceSpec) -> impl Iterator<Item = (&'static str, u16, u16)> + 'a {
    let protocols: &[&str] = if spec.datagrams { &["TCP", "UDP"] } else { &["TCP"] };
    let all = |(port, target): &'a (u16, u16)| protocols.iter().map(move |protocol| (*protocol, *port, *target));
    service.ports.iter().flat_map(all)
}

fn slices(spec: &LabSpec, service: &ServiceSpec) -> String {
    let (name, namespace) = (&service.name, &service.namespace);
    let mut text = String::new();
    for (family, kind) in [(0, "IPv4"), (1, "IPv6")] {
        let _ = write!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{}\n  \
             namespace: {namespace}\n  labels:\n    kubernetes.io/service-name: {name}\naddressType: {kind}\nports:\n",
            kind.to_lowercase()
        );
        for (protocol, port, target) in ports(spec, service) {
            let name = protocol.to_lowercase();
            let _ = writeln!(text, "  - {{name: {name}{port}, port: {target}, protocol: {protocol}}}");
        }
        text += "endpoints:\n";
        for (at, pod) in spec.pods.iter().enumerate().filter(|(_, pod)| service.pods.contains(&pod.name)) {
            let Some(ip) = spec.pod_ips(at).get(family).copied() else { continue };
            let _ = write!(
                text,
                "  - addresses: [\"{ip}\"]\n    conditions: {{ready: true}}\n    nodeName: n{}\n    \
                 targetRef: {{kind: Pod, name: {}, namespace: {}}}\n",
                pod.node, pod.name, pod.namespace
            );
        }
    }
    text
}
