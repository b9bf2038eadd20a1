//! Random worlds: few names, so that rules meet; every kind of object, stage, peer and port.

mod admin;
mod change;
mod documents;

pub use documents::{broken, documents};

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::naive::{Asked, Everything, GRE, ICMP, Pod, SCTP, TCP, UDP};
use kumiko_core::policy::object::{
    BaselineDirection, BaselineSubject, EgressRule, Entity, IngressRule, IpBlock, MeshBaselineSpec, MeshExceptionSpec,
    MeshPolicySpec, Mode, Peer, PolicySubject, Port, PortRef, Suspends, TransportProtocol,
};
use kumiko_core::policy::rule::List;

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const TIER: &str = "platform.example/tier";
const TIERS: [&str; 2] = ["dev", "prod"];
const STAGES: [&str; 4] = ["off", "observe", "permissive", "strict"];
const ACCOUNTS: [&str; 2] = ["x", "y"];
const NETS: [&str; 6] = ["10.0.0.0/28", "10.0.0.0/8", "192.0.2.0/24", "0.0.0.0/0", "fd00::/64", "2001:db8::/32"];
const PORTS: [u16; 4] = [80, 81, 443, 9090];
/// Seconds since 1970 of every question.
const NOW: i64 = 1_800_000_000;

pub struct Random(StdRng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn some<T>(&mut self, one_in: usize, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.one_in(one_in).then(|| make(self))
    }

    fn list<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self, usize) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|number| make(self, number)).collect()
    }

    pub fn everything(&mut self) -> Everything {
        let tiers: Vec<&str> = NAMESPACES.iter().map(|_| self.pick(&TIERS)).collect();
        let stages: Vec<usize> = NAMESPACES.iter().map(|_| self.pick(&[0, 1, 2, 2, 3, 3, 3])).collect();
        let pods = (0..7).map(|number| self.pod(number, &tiers, &stages)).collect();
        let baselines = self.list(3, |r, n| (format!("base{n}"), r.baseline()));
        let policies = self.list(4, |r, n| (r.pick(&NAMESPACES).to_owned(), format!("team{n}"), r.policy()));
        let network = self.list(2, |r, n| (r.pick(&NAMESPACES).to_owned(), format!("net{n}"), r.network()));
        let exceptions = if baselines.is_empty() {
            Vec::new()
        } else {
            self.list(2, |r, n| (format!("exc{n}"), r.exception(&baselines)))
        };
        let exceptions = exceptions.into_iter().filter(|(_, spec)| !spec.suspends.is_empty()).collect();
        let replaceable: Vec<(String, String)> =
            policies.iter().map(|(namespace, name, _)| (namespace.clone(), name.clone())).collect();
        let mut policies = policies;
        for (namespace, name, spec) in policies.iter_mut().filter(|(_, _, spec)| spec.mode == Mode::Audit) {
            let others = replaceable.iter().filter(|(other, its)| other == namespace && its != name);
            spec.replaces = others.map(|(_, name)| name.clone()).take(self.below(2)).collect();
        }
        Everything {
            pods,
            nodes: [("n1", "172.16.0.1"), ("n2", "172.16.0.2"), ("n1", "2001:db8::5"), ("n2", "2001:db8::6")]
                .map(|(name, of)| (name.to_owned(), ip(of)))
                .into(),
            // Nodes are known, within these networks or not; without any nobody is outside.
            inside: ["10.0.0.0/8", "fd00::/16", "172.16.0.0/16"][..self.pick(&[0, 2, 2, 3, 3])]
                .iter()
                .map(ToString::to_string)
                .collect(),
            api_server: vec![ip("172.16.0.1"), ip("2001:db8::5")],
            baselines,
            policies,
            network,
            exceptions,
            broken: Vec::new(),
            now: NOW,
        }
    }

    /// Of some policies that are enforced no version ever was valid.
    pub fn breaks(&mut self, all: &mut Everything) {
        let enforced = all.policies.iter().filter(|(.., spec)| spec.mode == Mode::Enforce).map(|(_, name, _)| name);
        let names = enforced.chain(all.network.iter().map(|(_, name, _)| name));
        all.broken = names.filter(|_| self.one_in(6)).cloned().collect();
    }

    fn pod(&mut self, number: usize, tiers: &[&str], stages: &[usize]) -> Pod {
        let at = self.below(NAMESPACES.len());
        let namespace = NAMESPACES[at].to_owned();
        let own = [("kubernetes.io/metadata.name", namespace.as_str()), (TIER, tiers[at])];
        let web = self.pick(&PORTS);
        let ports = vec![("web".to_owned(), web, false, self.one_in(2)), ("dns".to_owned(), 443, true, false)];
        Pod {
            name: format!("pod{number}"),
            namespace_labels: own.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            namespace,
            account: self.pick(&ACCOUNTS).to_owned(),
            labels: self.labels(),
            node: self.pick(&["n1", "n2"]).to_owned(),
            ips: vec![ip(&format!("10.0.0.{}", number * 5 + 1)), ip(&format!("fd00::{}", number + 1))],
            ports,
            stage: u8::try_from(stages[at]).unwrap(),
        }
    }

    fn labels(&mut self) -> BTreeMap<String, String> {
        let pairs = [("app", ["1", "2"]), ("role", ["p", "q"])];
        pairs.iter().filter_map(|(key, of)| self.some(2, |r| ((*key).to_owned(), r.pick(of).to_owned()))).collect()
    }

    fn tier(&mut self, one_in: usize) -> BTreeMap<String, String> {
        self.some(one_in, |r| (TIER.to_owned(), r.pick(&TIERS).to_owned())).into_iter().collect()
    }

    fn subject(&mut self) -> BaselineSubject {
        let namespace = self.some(3, |r| r.pick(&NAMESPACES).to_owned());
        let service_account = namespace.is_some().then(|| self.some(3, |r| r.pick(&ACCOUNTS).to_owned())).flatten();
        let spiffe_id = if namespace.is_none() { self.some(6, Self::spiffe_id) } else { None };
        BaselineSubject { namespace, service_account, namespace_labels: self.tier(3), spiffe_id }
    }

    fn spiffe_id(&mut self) -> String {
        format!("spiffe://td/ns/{}/sa/{}", self.pick(&NAMESPACES), self.pick(&ACCOUNTS))
    }

    fn peer(&mut self, platforms: bool) -> Peer {
        match self.below(6) {
            0 => Peer { ip_block: Some(self.block()), ..Peer::default() },
            1 => {
                let all = [Entity::World, Entity::Host, Entity::Node, Entity::Probe, Entity::KubeApiserver];
                Peer { entity: Some(self.pick(&all)), ..Peer::default() }
            }
            2 => Peer { spiffe_id: Some(self.spiffe_id()), ..Peer::default() },
            3 => Peer {
                namespace_labels: BTreeMap::from([(TIER.to_owned(), self.pick(&TIERS).to_owned())]),
                ..Peer::default()
            },
            _ => Peer {
                namespace: Some(self.pick(&NAMESPACES).to_owned()),
                service_account: self.some(3, |r| r.pick(&ACCOUNTS).to_owned()),
                labels: if platforms { BTreeMap::new() } else { self.some(2, Self::labels).unwrap_or_default() },
                ..Peer::default()
            },
        }
    }

    fn block(&mut self) -> IpBlock {
        let cidr = self.pick(&NETS).to_owned();
        let except = match cidr.as_str() {
            "10.0.0.0/8" => vec!["10.0.0.0/29".to_owned()],
            "0.0.0.0/0" => vec!["192.0.2.0/25".to_owned(), "10.0.0.16/28".to_owned()],
            "fd00::/64" => vec!["fd00::2/127".to_owned()],
            "2001:db8::/32" => vec!["2001:db8::4/127".to_owned()],
            _ => Vec::new(),
        };
        IpBlock { cidr, except: if self.one_in(2) { except } else { Vec::new() } }
    }

    fn ports(&mut self, platforms: bool) -> Option<Vec<Port>> {
        self.some(2, |r| {
            let one = |r: &mut Self| {
                let (tcp, udp) = (TransportProtocol::Tcp, TransportProtocol::Udp);
                let protocol = match r.below(12) {
                    0..8 => tcp,
                    8..10 => udp,
                    10 => TransportProtocol::Icmp,
                    _ => TransportProtocol::Sctp,
                };
                if protocol == TransportProtocol::Icmp || r.one_in(12) {
                    return Port { protocol, port: None, end_port: None };
                }
                if !platforms && r.one_in(2) {
                    let name = PortRef::Name(r.pick(&["web", "dns", "none"]).to_owned());
                    return Port { protocol, port: Some(name), end_port: None };
                }
                let first = r.pick(&PORTS);
                Port {
                    protocol,
                    port: Some(PortRef::Number(first)),
                    end_port: r.some(3, |r| first + r.pick(&[0, 1, 400])),
                }
            };
            (0..=r.below(2)).map(|_| one(r)).collect()
        })
    }

    fn ingress(&mut self, number: usize, list: List) -> IngressRule {
        let platforms = list.is_platforms();
        let from =
            if self.one_in(8) { None } else { Some((0..=self.below(2)).map(|_| self.peer(platforms)).collect()) };
        let unauthenticated = list != List::Deny && self.one_in(4);
        IngressRule { name: format!("r{number}"), from, ports: self.ports(platforms), unauthenticated }
    }

    fn egress(&mut self, number: usize, list: List) -> EgressRule {
        let IngressRule { name, from, ports, unauthenticated } = self.ingress(number, list);
        EgressRule { name, to: from, ports, unauthenticated }
    }

    fn direction<R>(&mut self, rule: impl Fn(&mut Self, usize, List) -> R) -> BaselineDirection<R> {
        BaselineDirection {
            deny: self.list(1, |r, n| rule(r, n, List::Deny)),
            allow: self.some(3, |r| r.list(3, |r, n| rule(r, n, List::Ceiling))),
            guarantee: self.list(1, |r, n| rule(r, n, List::Guarantee)),
        }
    }

    /// Of which directions an object says something: of one at least.
    fn directions(&mut self) -> [bool; 2] {
        self.pick(&[[true, false], [false, true], [true, true]])
    }

    fn mode(&mut self) -> Mode {
        if self.one_in(4) { Mode::Audit } else { Mode::Enforce }
    }

    fn baseline(&mut self) -> MeshBaselineSpec {
        let [ingress, egress] = self.directions();
        MeshBaselineSpec {
            mode: self.mode(),
            on_revoke: None,
            cut_legacy: false,
            subject: self.subject(),
            ingress: ingress.then(|| self.direction(Self::ingress)),
            egress: egress.then(|| self.direction(Self::egress)),
        }
    }

    fn policy(&mut self) -> MeshPolicySpec {
        let [ingress, egress] = self.directions();
        MeshPolicySpec {
            mode: self.mode(),
            replaces: Vec::new(),
            on_revoke: None,
            subject: PolicySubject {
                labels: self.some(2, Self::labels).unwrap_or_default(),
                service_account: self.some(4, |r| r.pick(&ACCOUNTS).to_owned()),
            },
            ingress: ingress.then(|| self.list(3, |r, n| r.ingress(n, List::Team))),
            egress: egress.then(|| self.list(3, |r, n| r.egress(n, List::Team))),
        }
    }

    fn exception(&mut self, baselines: &[(String, MeshBaselineSpec)]) -> MeshExceptionSpec {
        let (name, spec) = self.pick(baselines);
        let mut rules = Vec::new();
        if let Some(ingress) = &spec.ingress {
            rules.extend(ingress.deny.iter().map(|rule| format!("ingress.deny.{}", rule.name)));
            rules.extend(ingress.allow.as_ref().map(|_| "ingress.allow".to_owned()));
        }
        if let Some(egress) = &spec.egress {
            rules.extend(egress.deny.iter().map(|rule| format!("egress.deny.{}", rule.name)));
            rules.extend(egress.allow.as_ref().map(|_| "egress.allow".to_owned()));
        }
        rules.retain(|_| !self.one_in(3));
        let suspends = if rules.is_empty() { Vec::new() } else { vec![Suspends { baseline: name, rules }] };
        let seconds = NOW + i64::try_from(self.below(4)).unwrap() - 1;
        MeshExceptionSpec {
            suspends,
            subject: self.subject(),
            peers: (0..=self.below(2)).map(|_| self.peer(true)).collect(),
            ports: self.ports(true),
            owner: "somebody".to_owned(),
            expires: Time(Timestamp::from_second(seconds).unwrap()),
            on_expiry: None,
        }
    }

    fn selector(&mut self, namespaces: bool) -> LabelSelector {
        let labels = if namespaces { self.tier(2) } else { self.labels() };
        let key = if namespaces { TIER } else { "app" };
        let expression = self.some(3, |r| {
            let operator = r.pick(&["In", "NotIn", "Exists", "DoesNotExist"]).to_owned();
            let values = operator.ends_with("In").then(|| vec![r.pick(&["1", "dev"]).to_owned(), "2".to_owned()]);
            LabelSelectorRequirement { key: key.to_owned(), operator, values }
        });
        LabelSelector { match_labels: Some(labels), match_expressions: expression.map(|one| vec![one]) }
    }

    fn network(&mut self) -> NetworkPolicySpec {
        let types = [None, Some(vec!["Ingress"]), Some(vec!["Egress"]), Some(vec!["Ingress", "Egress"])];
        let types = self.pick(&types).map(|types| types.into_iter().map(str::to_owned).collect());
        let parts = |r: &mut Self| (r.list(2, |r, _| r.network_peer()), r.list(2, |r, _| r.network_port()));
        let ingress = self.some(2, |r| r.list(2, |r, _| parts(r)));
        let egress = self.some(2, |r| r.list(2, |r, _| parts(r)));
        let rules_in = |rules: Vec<(Vec<_>, Vec<_>)>| {
            let rule = |(from, ports)| NetworkPolicyIngressRule { from: Some(from), ports: Some(ports) };
            rules.into_iter().map(rule).collect()
        };
        let rules_out = |rules: Vec<(Vec<_>, Vec<_>)>| {
            let rule = |(to, ports)| NetworkPolicyEgressRule { to: Some(to), ports: Some(ports) };
            rules.into_iter().map(rule).collect()
        };
        NetworkPolicySpec {
            pod_selector: Some(self.selector(false)),
            policy_types: types,
            ingress: ingress.map(rules_in),
            egress: egress.map(rules_out),
        }
    }

    fn network_peer(&mut self) -> NetworkPolicyPeer {
        if self.one_in(4) {
            let IpBlock { cidr, except } = self.block();
            let ip_block = Some(IPBlock { cidr, except: Some(except) });
            return NetworkPolicyPeer { ip_block, ..NetworkPolicyPeer::default() };
        }
        let namespace_selector = self.some(2, |r| r.selector(true));
        let pod_selector =
            if namespace_selector.is_none() || self.one_in(2) { Some(self.selector(false)) } else { None };
        NetworkPolicyPeer { ip_block: None, namespace_selector, pod_selector }
    }

    fn network_port(&mut self) -> NetworkPolicyPort {
        let protocol =
            self.pick(&[None, Some("TCP"), Some("TCP"), Some("UDP"), Some("UDP"), Some("SCTP")]).map(str::to_owned);
        let (port, end_port) = match self.below(4) {
            0 => (None, None),
            1 => (Some(IntOrString::String(self.pick(&["web", "dns"]).to_owned())), None),
            _ => {
                let first = i32::from(self.pick(&PORTS));
                (Some(IntOrString::Int(first)), self.some(3, |r| first + r.pick(&[0, 1, 400])))
            }
        };
        NetworkPolicyPort { protocol, port, end_port }
    }

    pub fn asked(&mut self, all: &Everything) -> Asked {
        let v6 = self.one_in(3);
        let some_ip = |r: &mut Self, pod: bool| {
            if pod || !r.one_in(4) {
                return all.pods[r.below(all.pods.len())].ips[usize::from(v6)];
            }
            let outer = if v6 {
                &["2001:db8::1", "fd00::ffff", "fe00::1", "2001:db8::5", "2001:db8::6", "fd00:1::1"][..]
            } else {
                &["192.0.2.1", "192.0.2.200", "172.16.0.1", "172.16.0.2"]
            };
            ip(r.pick(outer))
        };
        let from_pod = self.one_in(2);
        let from = some_ip(self, from_pod);
        let to = some_ip(self, !from_pod);
        let proto = self.pick(&[TCP, TCP, TCP, TCP, TCP, TCP, TCP, UDP, UDP, SCTP, ICMP, GRE]);
        Asked { from, to, port: if matches!(proto, ICMP | GRE) { 0 } else { self.pick(&PORTS) }, proto }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
