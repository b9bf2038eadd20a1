//! The snapshot and its lookups.

mod ground;

pub use ground::Ground;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use kumiko_abi::Stage;

use super::dispute::{self, Claimant, Settled};
use super::service::Lookup;
use super::{Node, Protocol, Service, ServicePort, Workload};
use crate::manifest::{ClaimedAddresses, Diagnostic, Kind, Object, Place, Problem, WorkloadObject};
use crate::origin::Origin;
use crate::policy::load::{Loaded, load};
use crate::policy::selector::Member;
use crate::principal::{Principal, PrincipalError};
use crate::stage;

type Written<'a, T> = (&'a str, Place, &'a T);

/// Who claims which address.
fn claims<'a>(
    workloads: &[Written<'a, WorkloadObject>],
    others: &[Written<'a, ClaimedAddresses>],
) -> BTreeMap<IpAddr, Vec<Claimant<'a>>> {
    let mut claims: BTreeMap<IpAddr, Vec<Claimant<'a>>> = BTreeMap::new();
    for (file, place, object) in workloads.iter().copied() {
        let workload = format!("{}/{}", object.namespace, object.name);
        let one = Claimant { file, place, workload, uid: &object.uid, node: &object.node, here: true };
        object.ips.iter().for_each(|ip| claims.entry(*ip).or_default().push(one.clone()));
    }
    for (file, place, object) in others.iter().copied() {
        let workload = object.workload.clone();
        let one = Claimant { file, place, workload, uid: &object.uid, node: &object.node, here: false };
        object.ips.iter().for_each(|ip| claims.entry(*ip).or_default().push(one.clone()));
    }
    claims
}

#[derive(Clone, PartialEq, Debug)]
struct Namespace {
    stage: Stage,
    labels: BTreeMap<String, String>,
    uid: String,
}

/// Everything that is desired, at one moment. Addresses, UIDs and names are unique in it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct World {
    epoch: u64,
    trust_domain: String,
    namespaces: BTreeMap<String, Namespace>,
    /// UIDs of service accounts, by namespace and name.
    accounts: BTreeMap<(String, String), String>,
    workloads: BTreeMap<String, Arc<Workload>>,
    by_name: BTreeMap<(String, String), Arc<Workload>>,
    by_ip: HashMap<IpAddr, Arc<Workload>>,
    disputed: BTreeSet<IpAddr>,
    /// UIDs by node.
    by_node: HashMap<String, BTreeSet<String>>,
    nodes: BTreeMap<String, Node>,
    node_by_ip: HashMap<IpAddr, String>,
    services: Vec<Arc<Service>>,
    service_by_addr: HashMap<(IpAddr, u16, Protocol), (usize, usize)>,
    principals: HashMap<String, BTreeSet<Principal>>,
    policy: Arc<Loaded>,
}

impl World {
    /// Builds the snapshot of objects that [`crate::manifest::FolderState`] holds in force (so names and addresses are
    /// unique; should they not be, the first claim wins). Labels that would lower a stage are refused and told.
    ///
    /// # Errors
    /// The trust domain is none.
    pub fn build<'a>(
        trust_domain: &str,
        epoch: u64,
        objects: impl IntoIterator<Item = (&'a str, &'a Object)>,
    ) -> Result<(Self, Vec<Diagnostic>), PrincipalError> {
        let objects: Vec<_> = objects.into_iter().collect();
        let policy = Arc::new(load(objects.iter().copied()));
        Self::build_under(policy, trust_domain, epoch, objects)
    }

    /// The same under another policy than that of the objects.
    ///
    /// # Errors
    /// The trust domain is none.
    pub fn build_under<'a>(
        policy: Arc<Loaded>,
        trust_domain: &str,
        epoch: u64,
        objects: impl IntoIterator<Item = (&'a str, &'a Object)>,
    ) -> Result<(Self, Vec<Diagnostic>), PrincipalError> {
        Principal::new(trust_domain, "x", "x")?;
        let mut world = Self { epoch, trust_domain: trust_domain.to_owned(), policy, ..Self::default() };
        let (mut workloads, mut others, mut services, mut slices) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (file, object) in objects {
            match &object.kind {
                Kind::Namespace(namespace) => {
                    let (name, labels) = (namespace.name.clone(), namespace.labels.clone());
                    // The platform's own word counts, whatever a team has beside it.
                    let stage = world.policy.gates.namespace(&name, namespace.stage).max(world.least(&labels));
                    let uid = namespace.uid.clone();
                    world.namespaces.entry(name).or_insert(Namespace { stage, labels, uid });
                }
                Kind::Node(node) => {
                    let node = Node {
                        name: node.name.clone(),
                        addresses: node.addresses.clone(),
                        pod_cidrs: node.pod_cidrs.clone(),
                        uid: node.uid.clone(),
                    };
                    for ip in &node.addresses {
                        world.node_by_ip.entry(*ip).or_insert_with(|| node.name.clone());
                    }
                    world.nodes.entry(node.name.clone()).or_insert(node);
                }
                Kind::ServiceAccount(account) => {
                    let name = (account.namespace.clone(), account.name.clone());
                    world.accounts.entry(name).or_insert_with(|| account.uid.clone());
                }
                Kind::Service(service) => services.push(service),
                Kind::EndpointSlice(slice) => slices.push(slice),
                Kind::Workload(workload) => workloads.push((file, object.place, workload)),
                Kind::Claimed(claimed) => others.push((file, object.place, claimed)),
                // They say nothing of who is where.
                Kind::Policy(_) | Kind::Exception(_) | Kind::Settings(_) | Kind::Foreign(_) => {}
            }
        }
        let Settled { owners, disputed, mut diagnostics } = dispute::settle(&world.nodes, claims(&workloads, &others));
        world.disputed = disputed;
        for (file, _, object) in workloads {
            diagnostics.extend(world.lowers(file, object));
            world.add(object, &owners)?;
        }
        world.resolve(&services, &slices);
        Ok((world, diagnostics))
    }

    /// What a certificate for a principal says that is given to a node, as far as it is known.
    pub fn origin(&self, principal: &Principal, node: &str) -> Origin {
        let account = (principal.namespace.clone(), principal.service_account.clone());
        Origin {
            node: node.to_owned(),
            node_uid: self.nodes.get(node).map_or(String::new(), |node| node.uid.clone()),
            namespace_uid: self.namespaces.get(&principal.namespace).map_or(String::new(), |of| of.uid.clone()),
            account_uid: self.accounts.get(&account).cloned().unwrap_or_default(),
        }
    }

    fn lowers(&self, file: &str, object: &WorkloadObject) -> Option<Diagnostic> {
        let namespace = self.namespace_stage(&object.namespace);
        let (label, place) = object.stage.filter(|(label, _)| *label < namespace)?;
        let workload = format!("{}/{}", object.namespace, object.name);
        Some(Diagnostic { file: file.to_owned(), place, problem: Problem::Lowers { workload, label, namespace } })
    }

    fn add(&mut self, object: &WorkloadObject, owners: &HashMap<IpAddr, String>) -> Result<(), PrincipalError> {
        let own = object.stage.map(|(stage, _)| stage);
        let has = |ip: &IpAddr| owners.get(ip) == Some(&object.uid);
        let (ips, rest): (Vec<IpAddr>, Vec<IpAddr>) = object.ips.iter().copied().partition(has);
        let namespace = self.namespace_stage(&object.namespace);
        let raised = self.policy.gates.workload(&object.namespace, stage::effective(namespace, own));
        let stage = raised.max(namespace);
        let disputed = rest.into_iter().filter(|ip| self.disputed.contains(ip)).collect();
        let workload = Arc::new(Workload {
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            uid: object.uid.clone(),
            service_account: object.service_account.clone(),
            principal: Principal::new(&self.trust_domain, &object.namespace, &object.service_account)?,
            labels: object.labels.clone(),
            node: object.node.clone(),
            ips,
            disputed,
            ports: object.ports.clone(),
            attachment: object.attachment.clone(),
            ready: object.ready,
            stage,
        });
        for ip in &workload.ips {
            self.by_ip.entry(*ip).or_insert_with(|| workload.clone());
        }
        self.by_node.entry(workload.node.clone()).or_default().insert(workload.uid.clone());
        self.principals.entry(workload.node.clone()).or_default().insert(workload.principal.clone());
        let name = (workload.namespace.clone(), workload.name.clone());
        self.by_name.entry(name).or_insert_with(|| workload.clone());
        self.workloads.entry(workload.uid.clone()).or_insert(workload);
        Ok(())
    }

    fn resolve(
        &mut self,
        services: &[&crate::manifest::ServiceObject],
        slices: &[&crate::manifest::EndpointSliceObject],
    ) {
        let by_ip = |ip: IpAddr| self.by_ip.get(&ip).cloned();
        let disputed = &self.disputed;
        let mut lookup = Lookup { slices: BTreeMap::new(), workloads: BTreeMap::new(), by_ip: &by_ip, disputed };
        for slice in slices {
            if let Some(service) = &slice.service {
                lookup.slices.entry((&slice.namespace, service)).or_default().push(slice);
            }
        }
        for workload in self.workloads.values() {
            lookup.workloads.entry(&workload.namespace).or_default().push(workload);
        }
        let resolved: Vec<Arc<Service>> = services.iter().map(|object| Arc::new(lookup.resolve(object))).collect();
        for (number, service) in resolved.iter().enumerate() {
            for (index, port) in service.ports.iter().enumerate() {
                for ip in &service.cluster_ips {
                    self.service_by_addr.entry((*ip, port.port, port.protocol)).or_insert((number, index));
                }
            }
        }
        self.services = resolved;
    }

    /// The same snapshot with other stages for some workloads, and with what follows from them for Services.
    pub fn with_stages(&self, stage: impl Fn(&Workload) -> Option<Stage>) -> Self {
        let mut world = self.clone();
        for workload in world.workloads.values_mut() {
            if let Some(stage) = stage(workload).filter(|stage| *stage != workload.stage) {
                *workload = Arc::new(Workload { stage, ..Workload::clone(workload) });
            }
        }
        world.refer();
        world
    }

    /// The same snapshot. Workloads that are as they were before are the very same values, so that whoever follows the model
    /// sees at a glance who is another.
    pub fn sharing(mut self, before: &Self) -> Self {
        for (uid, workload) in &mut self.workloads {
            if let Some(old) = before.workloads.get(uid).filter(|old| *old == workload) {
                workload.clone_from(old);
            }
        }
        self.refer();
        self
    }

    /// Puts the workloads, by UID, in all other places where they are.
    fn refer(&mut self) {
        let workloads = &self.workloads;
        let same = |old: &mut Arc<Workload>| {
            if let Some(new) = workloads.get(&old.uid) {
                old.clone_from(new);
            }
        };
        self.by_ip.values_mut().for_each(same);
        self.by_name.values_mut().for_each(same);
        for service in &mut self.services {
            *service = Arc::new(service.with_workloads(|uid| workloads.get(uid)));
        }
    }

    /// Who may talk to whom.
    pub fn policy(&self) -> &Arc<Loaded> {
        &self.policy
    }

    /// The same snapshot under a policy with the same settings and gates: stages stay as they are.
    pub fn under(&self, policy: Arc<Loaded>) -> Self {
        Self { policy, ..self.clone() }
    }

    /// The lowest stage that the platform lets a namespace with these labels have.
    fn least(&self, labels: &BTreeMap<String, String>) -> Stage {
        self.policy.settings.least(labels).unwrap_or_default()
    }

    /// Number of the snapshot; a later one is higher.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The same snapshot under another number.
    pub fn at_epoch(self, epoch: u64) -> Self {
        Self { epoch, ..self }
    }

    /// The trust domain of all principals.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Stage of a namespace: what its label says, unless policy that is not enforced keeps it lower, or the lowest that the
    /// platform lets it have; `off` without either.
    pub fn namespace_stage(&self, name: &str) -> Stage {
        self.namespaces.get(name).map_or_else(|| self.least(&BTreeMap::new()), |namespace| namespace.stage)
    }

    /// Namespaces with their stages, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = (&str, Stage)> {
        self.namespaces.iter().map(|(name, namespace)| (name.as_str(), namespace.stage))
    }

    /// Labels of a namespace; one that is not known has none.
    pub fn namespace_labels(&self, name: &str) -> &BTreeMap<String, String> {
        const NONE: &BTreeMap<String, String> = &BTreeMap::new();
        self.namespaces.get(name).map_or(NONE, |namespace| &namespace.labels)
    }

    /// A workload with its namespace's labels.
    pub fn member<'w>(&'w self, workload: &'w Workload) -> Member<'w> {
        Member { workload, namespace_labels: self.namespace_labels(&workload.namespace) }
    }

    /// All workloads, by UID.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// Workloads of a node, by UID.
    pub fn workloads_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Workload>> {
        let uids = self.by_node.get(node).into_iter().flatten();
        uids.filter_map(|uid| self.workloads.get(uid)).filter(move |workload| workload.node == node)
    }

    /// The workload with a UID.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload of a namespace and name.
    pub fn workload_named(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.by_name.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Whose address it is.
    pub fn workload_at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_ip.get(&ip)
    }

    /// Whether workloads claim it that may not have it, or more than one: nobody has it, and what uses it is denied.
    pub fn is_disputed(&self, ip: IpAddr) -> bool {
        self.disputed.contains(&ip)
    }

    /// Addresses that are nobody's though workloads claim them.
    pub fn disputed(&self) -> &BTreeSet<IpAddr> {
        &self.disputed
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The node that has an InternalIP.
    pub fn node_at(&self, ip: IpAddr) -> Option<&Node> {
        self.nodes.get(self.node_by_ip.get(&ip)?)
    }

    /// All Services.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// Whether the workload that has an address in a later model, if any, had it in this one.
    pub fn has_the_holder_of(&self, ip: IpAddr, later: &Self) -> bool {
        let holder = later.workload_at(ip);
        holder.is_none_or(|holder| self.workload_at(ip).is_some_and(|known| known.uid == holder.uid))
    }

    /// The Service and its port behind a cluster IP and port.
    pub fn service_at(&self, ip: IpAddr, port: u16, protocol: Protocol) -> Option<(&Arc<Service>, &ServicePort)> {
        let (number, index) = self.service_by_addr.get(&(ip, port, protocol))?;
        let service = self.services.get(*number)?;
        Some((service, service.ports.get(*index)?))
    }

    /// Whether a node has a workload with a principal: what an issuer may sign for it.
    pub fn node_has_principal(&self, node: &str, principal: &Principal) -> bool {
        self.principals.get(node).is_some_and(|principals| principals.contains(principal))
    }

    /// Principals of a node's workloads.
    pub fn principals_on(&self, node: &str) -> impl Iterator<Item = &Principal> {
        self.principals.get(node).into_iter().flatten()
    }

    /// Number of objects in force.
    pub fn objects(&self) -> usize {
        self.namespaces.len() + self.workloads.len() + self.nodes.len() + self.services.len()
    }
}
