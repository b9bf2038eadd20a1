//! What is told of an end that lets a flow.

use kumiko_abi::Stage;

use super::{Lines, exception_name, name, provenance};
use crate::model::Workload;
use crate::policy::judge::{Answer, Proof, Term};
use crate::policy::rule::Direction;
use crate::policy::verdict::{Flow, Judged};
use crate::stage;

/// Says why an end lets the flow.
pub(super) fn say(flow: &Flow, direction: Direction, judged: &Judged<'_>, lines: &mut Lines) {
    let own = flow.end(direction);
    let label = direction.to_string();
    let Some(side) = &judged.side else {
        let why = if own.workload.is_some() && judged.stage == Stage::Off {
            "is off: no rule is asked"
        } else if own.workload.is_some() {
            "talks to itself"
        } else {
            "is no workload: no rule is asked"
        };
        return lines.say(&label, format!("{} {why}", name(own)));
    };
    let stage = stage::name(judged.stage);
    let enforced = if judged.enforced() { String::new() } else { ", so nothing is enforced".to_owned() };
    lines.say(&label, format!("{} is {stage}{enforced}", name(own)));
    let decides = side.deciding().map(|answer| answer.term);
    for answer in &side.answers {
        let by: Vec<String> = answer.by.iter().map(|source| provenance(direction, source)).collect();
        let (verb, by) = (if answer.holds { "yes" } else { "would refuse" }, by.join(", "));
        let mut text = if by.is_empty() { unspoken(answer, judged).to_owned() } else { format!("{verb}: {by}") };
        if decides == Some(answer.term) {
            text += " (decides)";
        }
        lines.say(&format!("  {}", answer.term), text);
        for exception in &answer.suspended_by {
            lines.say(&format!("  {}", answer.term), format!("suspended by {}", exception_name(exception)));
        }
    }
    if decides.is_none() {
        lines.say("  decides", "nothing speaks against it");
    }
    let other = flow.end(direction.opposite());
    if let Some(peer) = &other.workload {
        lines.say("  peer", proved(peer, judged.proof));
    }
}

/// What is to be said of a term that no rule or object speaks in.
fn unspoken(answer: &Answer<'_>, judged: &Judged<'_>) -> &'static str {
    let egress = judged.side.as_ref().is_some_and(|side| side.direction == Direction::Egress);
    match answer.term {
        Term::Deny if !answer.suspended_by.is_empty() => "yes: what denies it is suspended",
        Term::Ceiling if !answer.suspended_by.is_empty() => "yes: what caps it is suspended",
        Term::Deny => "no baseline denies it",
        Term::Ceiling => "no baseline has one here",
        Term::NetworkPolicy => "none selects it, or the peer is its own node",
        Term::Team => "no MeshPolicy selects it",
        Term::Invalid => "none without rules that are known selects it",
        Term::Proof if !answer.holds => "would refuse",
        Term::Proof if egress => "not asked for going out",
        Term::Proof if judged.proof.proves() => "yes",
        Term::Proof if judged.stage == Stage::Permissive => "permissive: an address is enough",
        Term::Proof => "yes: as the health check that a kubelet makes; no other process of the node is let",
    }
}

fn proved(peer: &Workload, proof: Proof) -> String {
    let labels: Vec<String> = peer.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let claimed = if labels.is_empty() { String::new() } else { format!("; claimed: {}", labels.join(", ")) };
    match proof {
        Proof::Tls => format!("proved by TLS: {}{claimed}", peer.principal),
        Proof::Veth => format!("proved by its veth: {}{claimed}", peer.principal),
        Proof::Claim => format!("claimed by its address: {}{claimed}", peer.principal),
    }
}
