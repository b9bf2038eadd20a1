//! Why a flow that was seen was let or refused: by the policy that was in force when it was judged.

use std::net::IpAddr;

use kumiko_abi::{Reason, Verdict};

use super::compile::reason;
use super::explain::{Explanation, InForce, Line, PeerEpoch, Seen, explain_proved};
use super::history::History;
use super::judge::{Proof, Term};
use super::port::Asked;
use super::verdict::{End, Evaluator, Flow};
use crate::flow_record::{FlowPath, FlowPhase, FlowRecord, Party, PartyKind};
use crate::manifest::Protocol;
use crate::model::World;

/// Explains a flow's record.
///
/// # Errors
/// It cannot be said: why not, and what can be asked instead.
pub fn explain_seen(record: &FlowRecord, history: &History) -> Result<Explanation, String> {
    let protocol = Protocol::of_name(&record.protocol);
    let about = Asked { protocol, port: record.destination.port };
    if let Some(why) = unasked(record) {
        return Err(format!("no rule was asked about flow {}: {why}", record.id));
    }
    let (now, _) = history.now().map_err(|unknown| unknown.to_string())?;
    let ips = [record.source.ip, record.destination.ip].map(|ip| ip.to_canonical());
    let world = history.at(record.epoch, &ips).map_err(|unknown| format!("{unknown}{}", instead(record, about)))?;
    let [from, to] = ips;
    let (source, destination) = (source(record, &world, from), End::at(&world, to));
    for (end, party) in [(&source, &record.source), (&destination, &record.destination)] {
        let named = end.workload.as_ref().map(|workload| (workload.namespace.as_str(), workload.name.as_str()));
        let told = (party.kind == PartyKind::Workload).then_some((party.namespace.as_str(), party.name.as_str()));
        if named != told {
            let who = told.map_or_else(|| party.ip.to_string(), |(namespace, name)| format!("{namespace}/{name}"));
            let other = named.map_or_else(|| "nobody".to_owned(), |(namespace, name)| format!("{namespace}/{name}"));
            let epoch = record.epoch;
            return Err(format!("{who} was {other} in epoch {epoch}{}", instead(record, about)));
        }
    }
    let flow = Flow { source, destination, asked: about, other_process: record.host && !record.probe };
    let proof = match &*record.proof {
        "tls" => Proof::Tls,
        "veth" => Proof::Veth,
        "claim" => Proof::Claim,
        _ => flow.proof(),
    };
    let refused = record.verdict == Verdict::Deny;
    // What was open and is cut was judged then, anything else when it began.
    let at = if refused { record.end_unix_ns } else { record.start_unix_ns } / 1_000_000_000;
    let answer = explain_proved(&Evaluator::of(&world), &flow, proof, i64::try_from(at).unwrap_or(i64::MAX));
    let mut answer = told(record, answer, refused)?;
    answer.lines.push(Line::new("flow", story(record)));
    answer.flow = Some(Seen {
        id: record.id.clone(),
        start_unix_ns: record.start_unix_ns,
        reason: record.reason.clone().into_owned(),
    });
    let by = InForce {
        node: record.node.clone(),
        epoch: record.epoch,
        now: record.epoch == now,
        waits: String::new(),
        claims: Vec::new(),
        peers: peers(record),
    };
    Ok(answer.in_force(by))
}

/// The other node's epoch: of a refused flow it is not that of the refusal, and nothing is said.
fn peers(record: &FlowRecord) -> Vec<PeerEpoch> {
    let let_it = record.peer_epoch.filter(|_| record.verdict != Verdict::Deny);
    let peer = let_it.map(|epoch| PeerEpoch { node: record.peer_node.clone(), epoch: Some(epoch), age: None });
    peer.into_iter().collect()
}

/// Why no rule was asked about a flow, if none was.
fn unasked(record: &FlowRecord) -> Option<String> {
    if record.legacy && record.verdict == Verdict::Deny {
        let why = &record.reason_text;
        return Some(format!(
            "it was older than its pod's enrolment, and was cut by MeshSettings' legacyMaxAge or a baseline's cutLegacy: {why}"
        ));
    }
    if record.legacy {
        return Some("it is older than its pod's enrolment".to_owned());
    }
    if record.destination.kind == PartyKind::Service {
        let Party { namespace, name, .. } = &record.destination;
        let why =
            if record.verdict == Verdict::Deny { record.reason_text.as_ref() } else { "its pod was chosen elsewhere" };
        return Some(format!("it went to Service {namespace}/{name}, and no pod of it is known here: {why}"));
    }
    (record.epoch == 0).then(|| "no policy was in force here when it began".to_owned())
}

/// The end that began it. A process of the node may speak from an address that no document names.
fn source(record: &FlowRecord, world: &World, ip: IpAddr) -> End {
    let own = world.node(&record.node).filter(|_| record.host || record.probe);
    let like = own.and_then(|node| node.addresses.iter().find(|own| own.is_ipv4() == ip.is_ipv4()).copied());
    like.map_or_else(|| End::at(world, ip), |ip| End { ip, workload: None })
}

/// The explanation, if it says what the record says.
fn told(record: &FlowRecord, mut answer: Explanation, refused: bool) -> Result<Explanation, String> {
    let refuses = answer.verdict == "deny";
    let term = Term::ALL.into_iter().find(|term| reason(*term).name() == record.reason);
    let agrees = match (refused, term) {
        (true, Some(term)) => refuses && answer.refuses_by(term),
        (true, None) => {
            let rules =
                if refuses { format!("would refuse it, too ({})", answer.because) } else { "would let it".to_owned() };
            answer.verdict = "deny".into();
            answer.because = record.reason.clone();
            answer.lines = vec![Line::new("by", record.reason_text.as_ref())];
            if !record.hint.is_empty() {
                answer.lines.push(Line::new("next", record.hint.as_ref()));
            }
            answer.lines.push(Line::new("rules", rules));
            true
        }
        (false, _) => !refuses,
    };
    if agrees {
        return Ok(answer);
    }
    let was = if refused { format!("refused ({})", record.reason) } else { "let".to_owned() };
    let would = if refuses { format!("refuse it ({})", answer.because) } else { "let it".to_owned() };
    let (id, epoch) = (&record.id, record.epoch);
    let why = if refused && !record.peer_node.is_empty() {
        format!("the agent of {} refused it by what was in force there: ask that one", record.peer_node)
    } else {
        "it was judged in the moment of a change, or its way is not asked about by all rules (docs/policy.md)"
            .to_owned()
    };
    Err(format!("flow {id} was {was}, but what epoch {epoch} is made of would {would}: {why}"))
}

/// How it went.
fn story(record: &FlowRecord) -> String {
    let path = match record.path {
        FlowPath::Tunnel => "in a tunnel",
        FlowPath::Agent => "through this node's agent",
        FlowPath::Fast | FlowPath::Local => "on this node",
        FlowPath::Clear => "in the clear",
        FlowPath::Refused => "refused",
    };
    let state = match record.state {
        FlowPhase::Pending => "dialled",
        FlowPhase::Open => "open",
        FlowPhase::Closed => "closed",
    };
    let reason = if record.reason == Reason::Allowed.name() { String::new() } else { format!(", {}", record.reason) };
    format!("{} {path}, {state}{reason}", record.id)
}

/// What can be asked instead.
fn instead(record: &FlowRecord, about: Asked) -> String {
    let who = |party: &Party| match party.kind {
        PartyKind::Workload => format!("{}/{}", party.namespace, party.name),
        _ => party.ip.to_string(),
    };
    let (from, to) = (who(&record.source), who(&record.destination));
    let port = if about.protocol.has_ports() { format!(" --port {}", about.port) } else { String::new() };
    let protocol = match about.protocol {
        Protocol::Tcp => String::new(),
        other => format!(" --protocol {}", other.name()),
    };
    format!(
        "\n  Its record says: {}, {}. Ask what is in force now: kumiko policy explain --from {from} --to {to}{port}{protocol}",
        crate::flow_record::verdict_name(record.verdict),
        record.reason_text,
    )
}

#[cfg(test)]
mod tests;
