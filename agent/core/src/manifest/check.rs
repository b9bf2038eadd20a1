//! The rules that a value has to keep, and the place where it breaks one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use kumiko_abi::Stage;

use super::broken::Broken;
use super::node::{Node, Step};
use super::{Claim, Place, PlatformLabel, Problem, Protocol, STAGE_LABEL};
use crate::stage;

/// Collects the problems of one document.
pub(super) struct Checker<'a> {
    root: &'a Node,
    problems: &'a mut Vec<(Place, Problem)>,
    claims: Vec<(Claim, Place)>,
    platforms: Vec<PlatformLabel>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(root: &'a Node, problems: &'a mut Vec<(Place, Problem)>) -> Self {
        Self { root, problems, claims: Vec::new(), platforms: Vec::new() }
    }

    pub(super) fn claims(self) -> Vec<(Claim, Place)> {
        self.claims
    }

    /// A namespace label that only the platform may choose by: [`MeshSettings`](crate::policy::settings) say whether it
    /// is one.
    pub(super) fn platforms(&mut self, path: &[Step<'_>], key: &str) {
        self.platforms.push(PlatformLabel {
            key: key.to_owned(),
            path: text_of(path),
            place: self.root.place_of(path),
        });
    }

    /// What [`Self::platforms`] has collected.
    pub(super) fn take_platforms(&mut self) -> Vec<PlatformLabel> {
        std::mem::take(&mut self.platforms)
    }

    pub(super) fn claim(&mut self, path: &[Step<'_>], claim: Claim) {
        self.claims.push((claim, self.root.place_of(path)));
    }

    pub(super) fn problem(&mut self, path: &[Step<'_>], problem: Problem) {
        self.problems.push((self.root.place_of(path), problem));
    }

    /// A value that breaks a rule.
    pub(super) fn broken(&mut self, path: &[Step<'_>], value: &str, rule: Broken) {
        // A megabyte of nonsense must not be repeated into every status page.
        let value = value.chars().take(80).collect();
        self.problem(path, Problem::Value { path: text_of(path), value, rule });
    }

    /// A list that may not be longer than this; the part of it that is to be read.
    pub(super) fn at_most<'v, T>(&mut self, path: &[Step<'_>], list: &'v [T], max: usize) -> &'v [T] {
        if list.len() > max {
            self.problem(path, Problem::TooLong { path: text_of(path), found: list.len(), max });
        }
        list.get(..max).unwrap_or(list)
    }

    fn must(&mut self, fine: bool, path: &[Step<'_>], value: &str, rule: Broken) {
        if !fine {
            self.broken(path, value, rule);
        }
    }

    /// A field that has to be there and not be empty.
    pub(super) fn present<'v>(&mut self, path: &[Step<'_>], value: Option<&'v str>) -> Option<&'v str> {
        let value = value.filter(|value| !value.is_empty());
        if value.is_none() {
            self.problem(path, Problem::Missing { path: text_of(path) });
        }
        value
    }

    /// A required name of one label.
    pub(super) fn label(&mut self, path: &[Step<'_>], value: Option<&str>) -> String {
        let Some(value) = self.present(path, value) else { return String::new() };
        self.must(is_label(value), path, value, Broken::Label);
        value.to_owned()
    }

    /// A required name of labels joined by dots.
    pub(super) fn subdomain(&mut self, path: &[Step<'_>], value: Option<&str>) -> String {
        let Some(value) = self.present(path, value) else { return String::new() };
        self.must(is_subdomain(value), path, value, Broken::Subdomain);
        value.to_owned()
    }

    /// Who answers for something.
    pub(super) fn owner(&mut self, path: &[Step<'_>], value: &str) {
        self.present(path, Some(value));
        self.must(value.chars().count() <= 253, path, value, Broken::Owner);
    }

    /// A label that something is chosen by: one that no object can have would choose nothing, and nobody would notice.
    pub(super) fn label_key(&mut self, path: &[Step<'_>], key: &str) {
        let (prefix, name) = key.rsplit_once('/').unwrap_or(("x", key));
        let fine = prefix.len() <= 253 && prefix.split('.').all(is_label) && !name.is_empty() && is_label_part(name);
        self.must(fine, path, key, Broken::LabelKey);
    }

    /// The value of such a label.
    pub(super) fn label_value(&mut self, path: &[Step<'_>], value: &str) {
        self.must(is_label_part(value), path, value, Broken::LabelValue);
    }

    pub(super) fn uid(&mut self, path: &[Step<'_>], value: Option<&str>) -> String {
        let Some(value) = self.present(path, value) else { return String::new() };
        let fine = value.len() <= 128 && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        self.must(fine, path, value, Broken::Uid);
        value.to_owned()
    }

    /// A unicast address; `None` when it is not one.
    pub(super) fn ip(&mut self, path: &[Step<'_>], value: &str) -> Option<IpAddr> {
        let Ok(ip) = value.parse::<IpAddr>() else {
            self.broken(path, value, Broken::Ip);
            return None;
        };
        let fine = is_unicast(ip);
        self.must(fine, path, value, Broken::Unicast);
        fine.then_some(ip)
    }

    /// A network, as Kubernetes takes it: bits behind its prefix mean nothing.
    pub(super) fn net(&mut self, path: &[Step<'_>], value: &str) -> Option<IpNet> {
        let net = value.parse::<IpNet>().ok();
        self.must(net.is_some(), path, value, Broken::Net);
        net.map(|net| net.trunc())
    }

    /// Networks that a node's pods' addresses are of.
    pub(super) fn pod_cidrs(&mut self, spec: &core::NodeSpec) -> Vec<IpNet> {
        let at = Step::Key("spec");
        let listed = spec.pod_cidrs.iter().flatten().enumerate();
        let listed = listed.map(|(index, text)| (vec![at, Step::Key("podCIDRs"), Step::Index(index)], text));
        // podCIDR repeats the first of podCIDRs.
        let single = spec.pod_cidr.iter().map(|text| (vec![at, Step::Key("podCIDR")], text));
        let mut nets = Vec::new();
        for (path, text) in listed.chain(single).filter(|(_, text)| !text.is_empty()) {
            nets.extend(self.net(&path, text).filter(|net| !nets.contains(net)));
        }
        nets
    }

    pub(super) fn port(&mut self, path: &[Step<'_>], value: i64) -> u16 {
        match u16::try_from(value) {
            Ok(port) if port > 0 => port,
            _ => {
                self.broken(path, &value.to_string(), Broken::Port);
                0
            }
        }
    }

    pub(super) fn port_name(&mut self, path: &[Step<'_>], value: &str) {
        self.must(is_label(value) && value.bytes().any(|b| b.is_ascii_lowercase()), path, value, Broken::PortName);
    }

    pub(super) fn protocol(&mut self, path: &[Step<'_>], value: Option<&str>) -> Protocol {
        match value {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(other) => {
                self.broken(path, other, Broken::Protocol);
                Protocol::Tcp
            }
        }
    }

    /// Whether a field of a Service's spec has the second of its two values; without one it has the first.
    pub(super) fn is(&mut self, field: &'static str, value: Option<&str>, [first, second]: [&str; 2]) -> bool {
        let value = value.unwrap_or(first);
        self.must(value == first || value == second, &[Step::Key("spec"), Step::Key(field)], value, Broken::OneOfTwo);
        value == second
    }

    pub(super) fn interface(&mut self, path: &[Step<'_>], value: &str) {
        // dev_valid_name() of net/core/dev.c.
        let fine = (1..=15).contains(&value.len())
            && value != "."
            && value != ".."
            && value.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
        self.must(fine, path, value, Broken::Interface);
    }

    pub(super) fn netns(&mut self, path: &[Step<'_>], value: &str) {
        let fine = value.starts_with('/')
            && value.len() <= 4096
            && !value.contains('\0')
            && !value.split('/').any(|part| part == "..");
        self.must(fine, path, value, Broken::Netns);
    }

    /// The stage that the labels ask for.
    pub(super) fn stage(&mut self, labels: Option<&BTreeMap<String, String>>) -> Option<Stage> {
        let value = labels?.get(STAGE_LABEL)?;
        let stage = stage::parse(value);
        if stage.is_none() {
            let value = value.chars().take(80).collect();
            self.problem(&stage_path(), Problem::BadStage { value });
        }
        stage
    }
}

/// Where the stage label stands.
pub(super) fn stage_path() -> [Step<'static>; 3] {
    [Step::Key("metadata"), Step::Key("labels"), Step::Key(STAGE_LABEL)]
}

pub(super) fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_part(text)
}

/// A name of parts that dots join, as Kubernetes takes it: only the whole is bounded (`IsDNS1123Subdomain` of its apimachinery).
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_part)
}

fn is_part(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// What a label's key and value are made of; it may be empty.
fn is_label_part(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_link_local()
                || v4.octets()[0] == 0)
        }
        IpAddr::V6(v6) => {
            !(v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some())
        }
    }
}

/// `metadata.labels.x`, `spec.ips[1]`.
pub(super) fn text_of(path: &[Step<'_>]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(name) if text.is_empty() => text.push_str(name),
            Step::Key(name) => {
                text.push('.');
                text.push_str(name);
            }
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}
