//! By whose verdicts something is explained, and how old is what they rest on.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Explanation, Line};

/// Verdicts of an agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InForce {
    /// Its node.
    pub node: String,
    /// The policy's epoch there.
    pub epoch: u32,
    /// Whether it is the one in force now.
    pub now: bool,
    /// Why a newer one is not in force yet; empty: there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waits: String,
    /// How old is what the source claims of the ends: their labels, account, node and addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<Claims>,
    /// What other nodes of the ends judge by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerEpoch>,
}

/// The epoch of another node's policy, in that node's own counting. It is told with each flow in a tunnel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerEpoch {
    /// The node.
    pub node: String,
    /// Its epoch; none: no flow told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u32>,
    /// Seconds from the flow that told it to the answer; none: it is this very flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age: Option<i64>,
}

impl PeerEpoch {
    fn say(&self) -> String {
        let Self { node, epoch, age } = self;
        match (epoch, age) {
            (None, _) => format!("epoch on {node} is not known here, no flow in a tunnel told it: ask its agent"),
            (Some(epoch), None) => format!("epoch {epoch} on {node}, when it let this flow"),
            (Some(epoch), Some(age)) => format!("epoch {epoch} on {node}, {} ago", aged(*age)),
        }
    }
}

/// Since when the source says of a workload what it says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claims {
    /// `namespace/name`.
    pub workload: String,
    /// Second since 1970 at which this agent read it first.
    pub since: i64,
    /// Seconds from then until the answer.
    pub age: i64,
}

impl Claims {
    pub(in crate::policy) fn say(&self) -> String {
        let Self { workload, since, age } = self;
        let age = aged(*age);
        let since = Timestamp::from_second(*since).map_or(String::new(), |at| format!(", since {at}"));
        format!("of {workload} by the source, {age} old{since}")
    }
}

/// Seconds, in a unit that fits.
fn aged(seconds: i64) -> String {
    let (number, unit) = match seconds {
        ..120 => (seconds, "s"),
        120..7_200 => (seconds / 60, "min"),
        7_200..172_800 => (seconds / 3_600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{number} {unit}")
}

/// Why a newer policy than the one in force waits, if one does: the source has changed since (`source`, and `of` which the
/// verdicts are, are its epochs), or its verdicts could not be made.
pub fn waits(problem: &str, of: u64, source: u64) -> String {
    match (problem.is_empty(), of < source) {
        (false, _) => format!("a newer one of the source is not in force: {problem}"),
        (true, true) => "a newer one of the source is coming into force: ask again".to_owned(),
        (true, false) => String::new(),
    }
}

impl Explanation {
    /// The same, by an agent's verdicts.
    pub fn in_force(mut self, by: InForce) -> Self {
        let InForce { node, epoch, now, waits, claims, peers } = &by;
        let past = if *now { "" } else { ", which is in force no more" };
        self.lines.push(Line::new("policy", format!("epoch {epoch} on {node}{past}")));
        self.lines.extend(peers.iter().map(|peer| Line::new("policy", peer.say())));
        if !waits.is_empty() {
            self.lines.push(Line::new("waits", waits.as_str()));
        }
        self.lines.extend(claims.iter().map(|claims| Line::new("claims", claims.say())));
        self.in_force = Some(by);
        self
    }
}
