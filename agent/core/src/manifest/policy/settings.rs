//! `kumiko.dev/v1alpha1` MeshSettings.

use super::super::broken::Broken;
use super::super::check::Checker;
use super::super::node::{Node, Step};
use super::super::{Claim, Kind, Place, Problem};
use super::{Document, METADATA, MOST, MOST_OTHERS, Read, SPEC, document, requirements, rules};
use crate::policy::object::{MeshSettingsSpec, WithoutAgent};
use crate::policy::settings::{MinStage, Settings};
use crate::principal::Principal;

pub(in super::super) fn settings(root: &Node, problems: &mut Vec<(Place, Problem)>) -> Read {
    let raw: Document<MeshSettingsSpec> = document(root, "MeshSettings", problems)?;
    let mut check = Checker::new(root, problems);
    let path = [METADATA, Step::Key("name")];
    let name = check.subdomain(&path, raw.metadata.name.as_deref());
    if name != "mesh" {
        check.broken(&path, &name, Broken::SettingsName);
    }
    check.claim(&path, Claim::Name("MeshSettings", String::new(), name));
    let spec = raw.spec;
    let prefixes = [SPEC, Step::Key("platformLabelPrefixes")];
    for (index, prefix) in check.at_most(&prefixes, &spec.platform_label_prefixes, MOST_OTHERS).iter().enumerate() {
        if !prefix.ends_with('/') || prefix.len() < 2 {
            let path = [SPEC, Step::Key("platformLabelPrefixes"), Step::Index(index)];
            check.broken(&path, prefix, Broken::Prefix);
        }
    }
    let mut nets = |field, texts: &[String], max| {
        let path = [SPEC, Step::Key(field)];
        let texts = check.at_most(&path, texts, max);
        rules::nets(&mut check, &path, texts)
    };
    let pods = nets("podCidrs", &spec.pod_cidrs, MOST);
    let services = nets("serviceCidrs", &spec.service_cidrs, MOST_OTHERS);
    let nodes = nets("nodeCidrs", &spec.node_cidrs, MOST_OTHERS);
    let mut api_server = Vec::new();
    let listed = check.at_most(&[SPEC, Step::Key("apiServer")], &spec.api_server, MOST_OTHERS);
    for (index, text) in listed.iter().enumerate() {
        api_server.extend(check.ip(&[SPEC, Step::Key("apiServer"), Step::Index(index)], text));
    }
    let mut min_stages = Vec::new();
    let listed = check.at_most(&[SPEC, Step::Key("minStage")], &spec.min_stage, MOST_OTHERS);
    for (index, raw) in listed.iter().enumerate() {
        for key in raw.namespace_labels.keys() {
            let path = [SPEC, Step::Key("minStage"), Step::Index(index), Step::Key("namespaceLabels"), Step::Key(key)];
            if !spec.platform_label_prefixes.iter().any(|prefix| key.starts_with(prefix)) {
                check.broken(&path, key, Broken::TeamsLabel);
            }
        }
        let path = [SPEC, Step::Key("minStage"), Step::Index(index), Step::Key("namespaceLabels")];
        let labels = requirements(&mut check, &path, &raw.namespace_labels);
        min_stages.push(MinStage { labels, stage: raw.stage.into() });
    }
    let prefixes = spec.platform_label_prefixes;
    let listed = check.at_most(&[SPEC, Step::Key("trustDomains")], &spec.trust_domains, MOST_OTHERS);
    for (index, name) in listed.iter().enumerate() {
        if Principal::new(name, "x", "x").is_err() {
            let path = [SPEC, Step::Key("trustDomains"), Step::Index(index)];
            check.broken(&path, name, Broken::TrustDomain);
        }
    }
    let legacy_max_age = spec.legacy_max_age.as_ref().and_then(|text| {
        let seconds = seconds(text);
        if seconds.is_none() {
            check.broken(&[SPEC, Step::Key("legacyMaxAge")], text, Broken::Duration);
        }
        seconds
    });
    let accepted = [SPEC, Step::Key("acceptedPolicyKinds")];
    let settings = Settings {
        platform_label_prefixes: prefixes,
        min_stages,
        pods,
        services,
        nodes,
        api_server,
        trust_domains: spec.trust_domains,
        legacy_max_age,
        refused_without_agent: spec.permissive_without_agent == WithoutAgent::Refuse,
        slow_path: !spec.same_node_fast_path,
        accepted: check.at_most(&accepted, &spec.accepted_policy_kinds, MOST_OTHERS).to_vec(),
    };
    Some((Kind::Settings(settings), check.claims()))
}

/// `24h` in seconds.
fn seconds(text: &str) -> Option<u32> {
    const DAY: u32 = 86_400;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let each = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => DAY,
        _ => return None,
    };
    let fine = number.bytes().all(|b| b.is_ascii_digit()) && !number.starts_with('0');
    let seconds = number.parse::<u32>().ok().filter(|_| fine)?.checked_mul(each)?;
    (seconds <= 365 * DAY).then_some(seconds)
}
