//! Why a flow may be, or may not: for people, and as values for programs.

mod allowed;
mod in_force;
mod nearest;

use std::borrow::Cow;

use kumiko_abi::Stage;
use serde::{Deserialize, Serialize};

pub use in_force::{Claims, InForce, PeerEpoch, waits};

use super::judge::{Answer, Proof, Side, Source, Term, View};
use super::port::Asked;
use super::rule::{Direction, Exception, ObjectKind};
use super::selector::Selector;
use super::verdict::{End, Evaluator, Flow, Judged};
use crate::manifest::Protocol;
use crate::stage;

/// Why.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `allow` or `deny`.
    pub verdict: Cow<'static, str>,
    /// What kind of term refused it; empty for an allowed flow.
    pub because: Cow<'static, str>,
    /// Which end refused it.
    pub side: Option<String>,
    /// Who begins the flow.
    pub from: String,
    /// Whom it goes to.
    pub to: String,
    /// Protocol.
    pub protocol: String,
    /// The destination's port.
    pub port: u16,
    /// `tls`, `veth` or `claim`.
    pub proof: Cow<'static, str>,
    /// Whose policy it is; none: a folder's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<InForce>,
    /// The flow that was seen; none: somebody thinks of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<Seen>,
    /// Each end's terms.
    pub sides: Vec<SideView>,
    /// The same for people: a word, and what is to be said of it.
    pub lines: Vec<Line>,
}

/// A flow that was seen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// Its id, 32 hex digits.
    pub id: String,
    /// First packet.
    pub start_unix_ns: u64,
    /// Stable name of the reason in its record.
    pub reason: String,
}

/// One end's terms.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SideView {
    /// `egress` or `ingress`.
    pub direction: String,
    /// The end's stage.
    pub stage: Cow<'static, str>,
    /// Whether its rules let the flow.
    pub allows: bool,
    /// Whether that counts.
    pub enforced: bool,
    /// Whether they would let it with every object in audit enforced.
    pub with_audit: bool,
    /// Terms in their order; none: the end is not enrolled, or talks to itself.
    pub terms: Vec<TermView>,
}

/// One term.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TermView {
    /// Its name.
    pub term: String,
    /// Whether it lets the flow.
    pub holds: bool,
    /// Whether it decided for its end.
    #[serde(default)]
    pub decides: bool,
    /// Rules or objects that made it so; none: nothing speaks in it.
    pub by: Vec<String>,
    /// Exceptions but for which it would be otherwise.
    pub suspended_by: Vec<String>,
}

/// A line for people.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Line {
    /// A word.
    pub label: String,
    /// What is to be said of it.
    pub text: String,
}

impl Explanation {
    /// Whether it is this term that refuses.
    pub(super) fn refuses_by(&self, term: Term) -> bool {
        let side = self.side.as_ref().and_then(|side| self.sides.iter().find(|view| view.direction == *side));
        side.is_some_and(|side| side.terms.iter().any(|view| view.decides && view.term == term.to_string()))
    }
}

/// One end that refuses, to be explained.
struct Refusing<'a> {
    evaluator: &'a Evaluator<'a>,
    flow: &'a Flow,
    direction: Direction,
    judged: &'a Judged<'a>,
    now: i64,
}

impl Line {
    /// A word, and what is to be said of it.
    pub(super) fn new(label: &str, text: impl Into<String>) -> Self {
        Self { label: label.to_owned(), text: text.into() }
    }
}

struct Lines(Vec<Line>);

impl Lines {
    fn say(&mut self, label: &str, text: impl Into<String>) {
        self.0.push(Line::new(label, text));
    }
}

/// Explains a flow's verdict at a moment (seconds since 1970).
pub fn explain(evaluator: &Evaluator<'_>, flow: &Flow, now: i64) -> Explanation {
    explain_proved(evaluator, flow, flow.proof(), now)
}

/// The same of a flow that was seen to be proved so.
pub fn explain_proved(evaluator: &Evaluator<'_>, flow: &Flow, proof: Proof, now: i64) -> Explanation {
    let verdict = evaluator.judge_proved(flow, proof, now, View::Enforced);
    let audited = evaluator.judge_proved(flow, proof, now, View::WithAudit);
    let ends = [
        (Direction::Egress, &verdict.egress, &audited.egress),
        (Direction::Ingress, &verdict.ingress, &audited.ingress),
    ];
    let mut lines = Lines(Vec::new());
    // The term that speaks first, of either end; of both, egress.
    let refusing = ends.iter().filter(|(_, judged, _)| judged.refuses()).min_by_key(|(_, judged, _)| judged.refusal());
    let (mut because, mut side) = ("", None);
    if let Some((direction, judged, _)) = refusing {
        side = Some(direction.to_string());
        because = Refusing { evaluator, flow, direction: *direction, judged, now }.say(&mut lines);
    } else {
        for (direction, judged, _) in &ends {
            allowed::say(flow, *direction, judged, &mut lines);
        }
    }
    for (direction, judged, audited) in &ends {
        if judged.allows() != audited.allows() {
            let would = if audited.allows() { "allow" } else { "refuse" };
            lines.say("audit", format!("{direction}: with what is in audit it would {would} this"));
        }
    }
    if evaluator.may_be_probe(flow) {
        let other = Flow { other_process: true, ..flow.clone() };
        let is_let = evaluator.judge_proved(&other, proof, now, View::Enforced).allows();
        let other = if is_let { "let, too" } else { "refused" };
        let about = "this is about the kubelet, whose port it is; any other process of the node is";
        lines.say("probe", format!("{about} {other}"));
    }
    let view = |(direction, judged, audited): &(Direction, &Judged<'_>, &Judged<'_>)| SideView {
        direction: direction.to_string(),
        stage: stage::name(judged.stage).into(),
        allows: judged.allows(),
        enforced: judged.enforced(),
        with_audit: audited.allows(),
        terms: judged.side.iter().flat_map(|side| terms(*direction, side)).collect(),
    };
    let Asked { protocol, port } = flow.asked;
    Explanation {
        verdict: if refusing.is_some() { "deny" } else { "allow" }.into(),
        because: because.into(),
        side,
        from: name(&flow.source),
        to: name(&flow.destination),
        protocol: protocol.to_string(),
        port,
        proof: proof_word(proof).into(),
        in_force: None,
        flow: None,
        sides: ends.iter().map(view).collect(),
        lines: lines.0,
    }
}

fn terms(direction: Direction, side: &Side<'_>) -> Vec<TermView> {
    let decides = side.deciding().map(|answer| answer.term);
    side.answers.iter().map(|answer| term_view(direction, answer, decides == Some(answer.term))).collect()
}

fn term_view(direction: Direction, answer: &Answer<'_>, decides: bool) -> TermView {
    TermView {
        term: answer.term.to_string(),
        holds: answer.holds,
        decides,
        by: answer.by.iter().map(|source| provenance(direction, source)).collect(),
        suspended_by: answer.suspended_by.iter().map(|exception| exception_name(exception)).collect(),
    }
}

/// An end by its name, or its address.
pub fn name(end: &End) -> String {
    match &end.workload {
        Some(workload) => format!("{}/{}", workload.namespace, workload.name),
        None => end.ip.to_string(),
    }
}

fn proof_word(proof: Proof) -> &'static str {
    match proof {
        Proof::Claim => "claim",
        Proof::Veth => "veth",
        Proof::Tls => "tls",
    }
}

/// `MeshBaseline/bank ingress.deny.no-dev`.
fn provenance(direction: Direction, source: &Source<'_>) -> String {
    let id = &source.object.id;
    match source.rule {
        Some(rule) => format!("{id} {}", rule.path(direction)),
        None if id.kind == ObjectKind::MeshBaseline => format!("{id} {direction}.allow: none matches"),
        None => id.to_string(),
    }
}

fn exception_name(exception: &Exception) -> String {
    let date = exception.expires.strftime("%Y-%m-%d");
    format!("MeshException/{}, {date}, {}", exception.name, exception.owner)
}

impl Refusing<'_> {
    /// Says why; returns the word for it.
    fn say(&self, lines: &mut Lines) -> &'static str {
        let Self { flow, direction, judged, .. } = *self;
        let Some(side) = &judged.side else { return "" };
        let Some(answer) = side.refusal() else { return "" };
        let of = |term| side.answers.iter().find(move |answer| answer.term == term);
        let own = flow.end(direction);
        match answer.term {
            Term::Deny | Term::Ceiling => {
                let mut first = true;
                for refusing in [Term::Deny, Term::Ceiling].into_iter().filter_map(of).filter(|answer| !answer.holds) {
                    for source in &refusing.by {
                        lines.say(if first { "by" } else { "also" }, provenance(direction, source));
                        first = false;
                    }
                }
                if answer.term == Term::Ceiling {
                    self.near(answer, lines);
                }
                lines.say("team", "cannot allow this");
                self.expired(answer, lines);
                lines.say("next", "ask platform for a MeshException");
                if answer.term == Term::Deny { "baseline" } else { "ceiling" }
            }
            Term::NetworkPolicy | Term::Team | Term::Invalid => {
                lines.say("by", format!("no {direction} rule matches"));
                for source in &answer.by {
                    let selects = selects(&source.object.subject);
                    let never = if source.object.invalid { ", without rules that are known" } else { "" };
                    lines.say("default", format!("caused by {} (selects {selects}{never})", source.object.id));
                }
                self.near(answer, lines);
                for source in of(Term::Ceiling).iter().flat_map(|ceiling| &ceiling.by) {
                    lines.say("ceiling", format!("{} would allow it", provenance(direction, source)));
                }
                let namespace = own.workload.as_ref().map_or("", |workload| workload.namespace.as_str());
                let (next, word) = match answer.term {
                    Term::Team => (format!("team {namespace} adds a rule"), "team default"),
                    Term::Invalid => {
                        (format!("team {namespace} mends its policy: see `kumiko status`"), "policy invalid")
                    }
                    _ => {
                        let where_to = "to a NetworkPolicy (a MeshPolicy does not help here)";
                        (format!("team {namespace} adds a rule {where_to}"), "network policy")
                    }
                };
                lines.say("next", next);
                word
            }
            Term::Proof => {
                let peer = name(flow.end(direction.opposite()));
                lines.say("by", format!("{} is strict, and only an address speaks for {peer}", name(own)));
                let meshed =
                    flow.end(direction.opposite()).workload.as_ref().is_some_and(|w| w.stage >= Stage::Permissive);
                let protocol = flow.asked.protocol;
                let next = if flow.end(direction.opposite()).workload.is_none() {
                    format!("allow {peer} by a rule that names its network (ipBlock) or entity")
                } else if meshed && protocol != Protocol::Tcp {
                    format!(
                        "allow {peer} by a rule with unauthenticated: true: between nodes nothing proves {protocol} yet"
                    )
                } else {
                    format!("enrol {peer}, or allow it by a rule with unauthenticated: true")
                };
                lines.say("next", next);
                "unproved"
            }
        }
    }

    /// The rule that came nearest to allowing the flow.
    fn near(&self, answer: &Answer<'_>, lines: &mut Lines) {
        let Self { evaluator, flow, direction, judged, .. } = *self;
        let (own, other) = (flow.end(direction), flow.end(direction.opposite()));
        let Some(subject) = &own.workload else { return };
        let peer = evaluator.peer(other, subject, direction, flow.asked);
        let destination = flow.destination.workload.as_deref();
        if let Some((rule, why)) = nearest::find(direction, answer, &peer, flow.asked, destination, judged.proof) {
            lines.say("nearest", format!("rule {}: {}", rule.name, why.join("; ")));
        }
    }

    /// Exceptions that would have suspended what refuses, had they not ended.
    fn expired(&self, answer: &Answer<'_>, lines: &mut Lines) {
        let lapsed = self.evaluator.ask(self.flow, self.judged.proof, self.direction, self.now, |question| {
            let each = answer.by.iter().flat_map(|source| self.evaluator.policies.lapsed(question, source));
            each.map(exception_name).collect::<Vec<_>>()
        });
        lapsed.unwrap_or_default().into_iter().for_each(|name| lines.say("expired", name));
    }
}

fn selects(subject: &Selector) -> String {
    let account = subject.service_account.iter().map(|account| format!("service account {account}"));
    let all: Vec<String> = subject.labels.iter().map(ToString::to_string).chain(account).collect();
    if all.is_empty() { "every workload of its namespace".to_owned() } else { all.join(", ") }
}
