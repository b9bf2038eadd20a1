//! The formula once more, as it stands in the design, over the documents themselves: slow, and nothing shared with the
//! evaluator but the documents' types.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use kumiko_core::policy::object::{
    BaselineSubject, Entity, IpBlock, MeshBaselineSpec, MeshExceptionSpec, MeshPolicySpec, Mode, Peer, Port, PortRef,
    TransportProtocol,
};

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub namespace: String,
    pub namespace_labels: BTreeMap<String, String>,
    pub account: String,
    pub labels: BTreeMap<String, String>,
    pub node: String,
    pub ips: Vec<IpAddr>,
    /// Name, number, UDP, probed.
    pub ports: Vec<(String, u16, bool, bool)>,
    /// 0 off, 1 observe, 2 permissive, 3 strict.
    pub stage: u8,
}

/// All that there is.
#[derive(Clone, Debug, Default)]
pub struct Everything {
    pub pods: Vec<Pod>,
    pub nodes: Vec<(String, IpAddr)>,
    pub inside: Vec<String>,
    pub api_server: Vec<IpAddr>,
    pub baselines: Vec<(String, MeshBaselineSpec)>,
    pub policies: Vec<(String, String, MeshPolicySpec)>,
    pub network: Vec<(String, String, NetworkPolicySpec)>,
    pub exceptions: Vec<(String, MeshExceptionSpec)>,
    /// Names of policies of which no version ever was valid.
    pub broken: Vec<String>,
    pub now: i64,
}

/// One question.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub from: IpAddr,
    pub to: IpAddr,
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
}

/// IP protocol numbers: of what has ports.
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;
/// And of what has none.
pub const ICMP: u8 = 1;
pub const GRE: u8 = 47;

/// What refuses on one side: a letter of the formula, and the first object of it by name.
pub type Refusal = Option<(char, String)>;

struct Sided<'a> {
    all: &'a Everything,
    own: &'a Pod,
    peer: IpAddr,
    peer_pod: Option<&'a Pod>,
    ingress: bool,
    asked: Asked,
    proved: bool,
    audit: bool,
}

impl Everything {
    fn pod(&self, ip: IpAddr) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.ips.contains(&ip))
    }
}

/// Whether each end is more than an address to the other.
pub fn proved(all: &Everything, asked: Asked) -> bool {
    match (all.pod(asked.from), all.pod(asked.to)) {
        (Some(a), Some(b)) if a.node == b.node && a.stage > 0 && b.stage > 0 => true,
        (Some(a), Some(b)) => asked.proto == TCP && a.stage > 1 && b.stage > 1,
        _ => false,
    }
}

/// Egress and ingress; the outer `None`: nothing is asked.
pub fn verdict(all: &Everything, asked: Asked, audit: bool) -> [Option<Refusal>; 2] {
    judged(all, asked, proved(all, asked), audit)
}

/// The same, were all strict that are enrolled: a tunnel carries what is TCP between two of them.
pub fn were_both_strict(all: &Everything, asked: Asked) -> [Option<Refusal>; 2] {
    let mut strict = all.clone();
    strict.pods.iter_mut().filter(|pod| pod.stage > 0).for_each(|pod| pod.stage = 3);
    let enrolled = |ip| all.pod(ip).is_some_and(|pod| pod.stage > 0);
    let tunnelled = asked.proto == TCP && enrolled(asked.from) && enrolled(asked.to);
    judged(&strict, asked, proved(all, asked) || tunnelled, false)
}

fn judged(all: &Everything, asked: Asked, proved: bool, audit: bool) -> [Option<Refusal>; 2] {
    let (from, to) = (all.pod(asked.from), all.pod(asked.to));
    let own = matches!((from, to), (Some(a), Some(b)) if a.name == b.name && a.namespace == b.namespace);
    let side = |me: Option<&Pod>, peer: IpAddr, peer_pod, ingress| {
        let me = me.filter(|me| me.stage > 0 && !own)?;
        Some(Sided { all, own: me, peer, peer_pod, ingress, asked, proved, audit }.refusal())
    };
    [side(from, asked.to, to, false), side(to, asked.from, from, true)]
}

impl Sided<'_> {
    fn refusal(&self) -> Refusal {
        let mut denies = Vec::new();
        let mut ceilings = Vec::new();
        let (mut c_lenient, mut g, mut g_lenient) = (false, false, false);
        let mut capped = false;
        for (name, spec) in &self.all.baselines {
            let counts = if self.audit { true } else { spec.mode == Mode::Enforce };
            if !counts || !self.subject(&spec.subject, self.own) {
                continue;
            }
            let (deny, allow, guarantee) = match (self.ingress, &spec.ingress, &spec.egress) {
                (true, Some(d), _) => (
                    d.deny.iter().map(rule_in).collect::<Vec<_>>(),
                    d.allow.as_ref().map(|r| r.iter().map(rule_in).collect::<Vec<_>>()),
                    d.guarantee.iter().map(rule_in).collect::<Vec<_>>(),
                ),
                (false, _, Some(d)) => (
                    d.deny.iter().map(rule_out).collect(),
                    d.allow.as_ref().map(|r| r.iter().map(rule_out).collect()),
                    d.guarantee.iter().map(rule_out).collect(),
                ),
                _ => continue,
            };
            for rule in &deny {
                let matches = self.some_peer(rule.1, true, true) && self.some_port(rule.2);
                if matches && !self.suspended(name, &format!("deny.{}", rule.0)) {
                    denies.push(name.clone());
                }
            }
            let hits = |rules: &[Raw<'_>]| {
                let hit = rules.iter().filter(|rule| self.allows(rule));
                (hit.clone().count() > 0, hit.clone().any(|rule| self.lenient(rule)))
            };
            let (guaranteed, guaranteed_lenient) = hits(&guarantee);
            g |= guaranteed;
            g_lenient |= guaranteed_lenient;
            if let Some(allow) = &allow {
                capped = true;
                let (allowed, allowed_lenient) = hits(allow);
                if !allowed && !guaranteed && !self.suspended(name, "allow") {
                    ceilings.push(name.clone());
                }
                c_lenient |= allowed_lenient || guaranteed_lenient;
            }
        }
        if let Some(name) = denies.iter().min() {
            return Some(('D', name.clone()));
        }
        if let Some(name) = ceilings.iter().min() {
            return Some(('C', name.clone()));
        }
        if let Some(selecting) = self.kubernetes() {
            return Some(self.default('K', &selecting));
        }
        let (mut selecting, mut t, mut t_lenient) = (Vec::new(), false, false);
        for (namespace, name, spec) in &self.all.policies {
            let replaced = self
                .all
                .policies
                .iter()
                .any(|(other, _, by)| other == namespace && by.mode == Mode::Audit && by.replaces.contains(name));
            let counts = if self.audit { !replaced } else { spec.mode == Mode::Enforce };
            let account = spec.subject.service_account.as_ref().is_none_or(|account| *account == self.own.account);
            if !counts || *namespace != self.own.namespace || !account || !has(&self.own.labels, &spec.subject.labels) {
                continue;
            }
            let rules: Vec<Raw<'_>> = match (self.ingress, &spec.ingress, &spec.egress) {
                (true, Some(rules), _) => rules.iter().map(rule_in).collect(),
                (false, _, Some(rules)) => rules.iter().map(rule_out).collect(),
                _ => continue,
            };
            selecting.push(name.clone());
            let known = !self.all.broken.contains(name);
            for rule in rules.iter().filter(|rule| known && self.allows(rule)) {
                t = true;
                t_lenient |= self.lenient(rule);
            }
        }
        let selecting_none = selecting.is_empty();
        if !selecting_none && !t && !g {
            return Some(self.default('T', &selecting));
        }
        let probe = self.ingress && self.entity(Entity::Probe);
        // Unlisted protocols are denied where T or C is active; elsewhere nothing is said of them.
        let silent = self.bare() && !capped && selecting_none;
        let fine = silent || !self.ingress || self.believed() || probe || c_lenient || t_lenient || g_lenient;
        (!fine).then(|| ('P', String::new()))
    }

    fn believed(&self) -> bool {
        self.proved || self.own.stage == 2
    }

    /// A rule that allows: identities need belief, unless it says otherwise.
    fn allows(&self, rule: &Raw<'_>) -> bool {
        self.some_peer(rule.1, self.believed() || rule.3, false) && self.some_port(rule.2)
    }

    /// A rule that has matched: whether an address is enough for it.
    fn lenient(&self, rule: &Raw<'_>) -> bool {
        rule.3
            || rule.1.is_some_and(|peers| {
                peers
                    .iter()
                    .any(|peer| (peer.ip_block.is_some() || peer.entity.is_some()) && self.is(peer, true, false))
            })
    }

    fn some_peer(&self, peers: Option<&[Peer]>, believed: bool, deny: bool) -> bool {
        peers.is_none_or(|peers| peers.iter().any(|peer| self.is(peer, believed, deny)))
    }

    fn is(&self, peer: &Peer, believed: bool, deny: bool) -> bool {
        if let Some(block) = &peer.ip_block {
            return (deny || self.peer_pod.is_none()) && within(block, self.peer);
        }
        if let Some(entity) = peer.entity {
            return self.entity(entity);
        }
        let Some(pod) = self.peer_pod else { return false };
        believed
            && peer.namespace.as_ref().is_none_or(|name| *name == pod.namespace)
            && peer.service_account.as_ref().is_none_or(|name| *name == pod.account)
            && peer.spiffe_id.as_ref().is_none_or(|id| *id == spiffe(pod))
            && has(&pod.namespace_labels, &peer.namespace_labels)
            && has(&pod.labels, &peer.labels)
    }

    fn subject(&self, subject: &BaselineSubject, pod: &Pod) -> bool {
        subject.namespace.as_ref().is_none_or(|name| *name == pod.namespace)
            && subject.service_account.as_ref().is_none_or(|name| *name == pod.account)
            && subject.spiffe_id.as_ref().is_none_or(|id| *id == spiffe(pod))
            && has(&pod.namespace_labels, &subject.namespace_labels)
    }

    fn suspended(&self, baseline: &str, what: &str) -> bool {
        let wanted = format!("{}.{what}", if self.ingress { "ingress" } else { "egress" });
        self.all.exceptions.iter().any(|(_, spec)| {
            spec.expires.0.as_second() > self.all.now
                && spec.suspends.iter().any(|s| s.baseline == baseline && s.rules.contains(&wanted))
                && self.subject(&spec.subject, self.own)
                && self.some_peer(Some(&spec.peers), self.believed(), false)
                && self.some_port(spec.ports.as_deref())
        })
    }

    fn some_port(&self, ports: Option<&[Port]>) -> bool {
        ports.is_none_or(|ports| {
            ports.iter().any(|port| {
                let proto = match port.protocol {
                    TransportProtocol::Tcp => TCP,
                    TransportProtocol::Udp => UDP,
                    TransportProtocol::Sctp => SCTP,
                    TransportProtocol::Icmp => ICMP,
                };
                proto == self.asked.proto
                    && match &port.port {
                        None => true,
                        Some(PortRef::Number(first)) => {
                            *first <= self.asked.port && self.asked.port <= port.end_port.unwrap_or(*first)
                        }
                        Some(PortRef::Name(name)) => self.named(name),
                    }
            })
        })
    }

    /// Whether the destination's pod calls the asked port so.
    fn named(&self, name: &str) -> bool {
        let destination = if self.ingress { Some(self.own) } else { self.peer_pod };
        let is = |(its, number, udp, _): &(String, u16, bool, bool)| {
            its == name && self.is_of(*udp) && *number == self.asked.port
        };
        destination.is_some_and(|pod| pod.ports.iter().any(is))
    }

    /// Whether a pod's port is of the asked protocol.
    fn is_of(&self, udp: bool) -> bool {
        self.asked.proto == if udp { UDP } else { TCP }
    }

    /// Without ports.
    fn bare(&self) -> bool {
        matches!(self.asked.proto, ICMP | GRE)
    }

    fn entity(&self, entity: Entity) -> bool {
        if self.peer_pod.is_some() {
            return false;
        }
        let node = self.all.nodes.iter().find(|(_, ip)| *ip == self.peer);
        let host = node.is_some_and(|(name, _)| *name == self.own.node);
        let probed = |(_, number, udp, probe): &(String, u16, bool, bool)| {
            *probe && *number == self.asked.port && self.is_of(*udp)
        };
        match entity {
            Entity::Host => host,
            Entity::Node => node.is_some(),
            Entity::Probe => host && self.ingress && self.own.ports.iter().any(probed),
            Entity::KubeApiserver => self.all.api_server.contains(&self.peer),
            Entity::World => {
                node.is_none()
                    && !self.all.inside.is_empty()
                    && !self.all.inside.iter().any(|net| in_net(net, self.peer))
            }
        }
    }

    /// A refusal by default, in which the rules of one that selects may be unknown.
    fn default(&self, letter: char, selecting: &[String]) -> (char, String) {
        let unknown = selecting.iter().any(|name| self.all.broken.contains(name));
        (if unknown { 'I' } else { letter }, selecting.iter().min().cloned().unwrap_or_default())
    }

    /// The NetworkPolicies that select and none of which allows.
    fn kubernetes(&self) -> Option<Vec<String>> {
        // Other protocols are not Kubernetes' business.
        if self.entity(Entity::Host) || self.bare() {
            return None;
        }
        let mut selecting = Vec::new();
        for (namespace, name, spec) in &self.all.network {
            if *namespace != self.own.namespace || !selects(spec.pod_selector.as_ref(), &self.own.labels) {
                continue;
            }
            let types = spec.policy_types.clone().unwrap_or_default();
            // Of one that is refused an empty list may have lost what it had.
            let broken = self.all.broken.contains(name);
            let has_egress = spec.egress.as_ref().is_some_and(|rules| broken || !rules.is_empty());
            let about = match (self.ingress, types.is_empty()) {
                (true, true) => true,
                (false, true) => has_egress,
                (true, false) => types.contains(&"Ingress".to_owned()),
                (false, false) => types.contains(&"Egress".to_owned()),
            };
            if !about {
                continue;
            }
            selecting.push(name.clone());
            let rules: Vec<(Vec<NetworkPolicyPeer>, Vec<NetworkPolicyPort>)> = if self.ingress {
                let rules = spec.ingress.iter().flatten();
                rules.map(|r| (r.from.clone().unwrap_or_default(), r.ports.clone().unwrap_or_default())).collect()
            } else {
                let rules = spec.egress.iter().flatten();
                rules.map(|r| (r.to.clone().unwrap_or_default(), r.ports.clone().unwrap_or_default())).collect()
            };
            for (peers, ports) in rules.iter().filter(|_| !broken) {
                let peer = peers.is_empty() || peers.iter().any(|peer| self.kubernetes_peer(namespace, peer));
                let port = ports.is_empty() || ports.iter().any(|port| self.kubernetes_port(port));
                if peer && port {
                    return None;
                }
            }
        }
        (!selecting.is_empty()).then_some(selecting)
    }

    fn kubernetes_peer(&self, namespace: &str, peer: &NetworkPolicyPeer) -> bool {
        if let Some(block) = &peer.ip_block {
            let except = block.except.clone().unwrap_or_default();
            return within(&IpBlock { cidr: block.cidr.clone(), except }, self.peer);
        }
        self.peer_pod.is_some_and(|pod| {
            let place = match &peer.namespace_selector {
                Some(selector) => selects(Some(selector), &pod.namespace_labels),
                None => pod.namespace == namespace,
            };
            place && selects(peer.pod_selector.as_ref(), &pod.labels)
        })
    }

    fn kubernetes_port(&self, port: &NetworkPolicyPort) -> bool {
        let proto = match port.protocol.as_deref() {
            Some("UDP") => UDP,
            Some("SCTP") => SCTP,
            _ => TCP,
        };
        proto == self.asked.proto
            && match (&port.port, port.end_port) {
                (None, _) => true,
                (Some(IntOrString::Int(first)), end) => {
                    (*first..=end.unwrap_or(*first)).contains(&i32::from(self.asked.port))
                }
                (Some(IntOrString::String(name)), _) => self.named(name),
            }
    }
}

/// Name, peers, ports, unauthenticated.
type Raw<'a> = (&'a str, Option<&'a [Peer]>, Option<&'a [Port]>, bool);

fn rule_in(rule: &kumiko_core::policy::object::IngressRule) -> Raw<'_> {
    (&rule.name, rule.from.as_deref(), rule.ports.as_deref(), rule.unauthenticated)
}

fn rule_out(rule: &kumiko_core::policy::object::EgressRule) -> Raw<'_> {
    (&rule.name, rule.to.as_deref(), rule.ports.as_deref(), rule.unauthenticated)
}

fn spiffe(pod: &Pod) -> String {
    format!("spiffe://td/ns/{}/sa/{}", pod.namespace, pod.account)
}

fn has(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn selects(selector: Option<&LabelSelector>, labels: &BTreeMap<String, String>) -> bool {
    let Some(selector) = selector else { return true };
    let expressions = selector.match_expressions.iter().flatten().all(|one| {
        let value = labels.get(&one.key);
        let listed = value.is_some_and(|value| one.values.iter().flatten().any(|other| other == value));
        match one.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            _ => value.is_none(),
        }
    });
    expressions && selector.match_labels.as_ref().is_none_or(|wanted| has(labels, wanted))
}

fn within(block: &IpBlock, ip: IpAddr) -> bool {
    in_net(&block.cidr, ip) && !block.except.iter().any(|net| in_net(net, ip))
}

/// Bit by bit.
fn in_net(net: &str, ip: IpAddr) -> bool {
    let (base, len) = net.split_once('/').unwrap();
    let (base, len): (IpAddr, u32) = (base.parse().unwrap(), len.parse().unwrap());
    let (a, b, width) = match (base, ip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(u32::from(a)), u128::from(u32::from(b)), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a), u128::from(b), 128),
        _ => return false,
    };
    len == 0 || (a ^ b) >> (width - len) == 0
}
