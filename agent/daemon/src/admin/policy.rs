//! What is asked about policy, and who answers.

use std::pin::Pin;
use std::time::Duration;

use kumiko_abi::FlowId;
use kumiko_core::api::{Applied, PolicyObjectView, SetsView, query};
use kumiko_core::flow_record::{PartyMatch, id_from_hex};
use kumiko_core::manifest::{Digest, Protocol};
use kumiko_core::policy::ask::Asking;
use kumiko_core::policy::explain::Explanation;
use kumiko_core::policy::port::Asked;

/// Answers about policy in force; an error says why there is none, and what to do.
pub trait PolicyState {
    /// Why a flow may be, or may not; of one that was seen, why it was let or refused.
    ///
    /// # Errors
    /// It cannot be said.
    fn explain(&self, asked: &ExplainQuery) -> Result<Explanation, String>;
    /// Everything that decides.
    ///
    /// # Errors
    /// Nothing is in force.
    fn policy(&self) -> Result<Vec<PolicyObjectView>, String>;
    /// The tables of verdicts.
    ///
    /// # Errors
    /// Nothing is in force.
    fn sets(&self) -> Result<SetsView, String>;
    /// How far a version of a file has come.
    ///
    /// # Errors
    /// No policy is taken.
    fn applied(&self, asked: &AppliedQuery) -> Result<Applied, String>;
    /// Done when that may be another answer than now.
    fn change(&self) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Longest wait for a version to be settled, in seconds: who asks asks again.
pub const MAX_WAIT: u64 = 20;

/// Which version is asked about, and how long it may take to answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppliedQuery {
    /// Name of the file in the source.
    pub file: String,
    /// Of its content.
    pub digest: Digest,
    /// Longest wait until it is settled.
    pub wait: Duration,
}

/// Reads the query of a request about a version; the error says what is wrong with it.
pub(crate) fn applied(text: &str) -> Result<AppliedQuery, String> {
    let (mut file, mut digest, mut wait) = (None, None, 0);
    for (name, value) in query::pairs(text) {
        match name.as_str() {
            "file" => file = Some(value),
            "digest" => {
                let wrong = || format!("digest is the SHA-256 of a version, 64 hex digits, not {value:?}");
                digest = Some(digest_of(&value).ok_or_else(wrong)?);
            }
            "wait" => {
                let seconds = value.parse().ok().filter(|seconds| *seconds <= MAX_WAIT);
                wait = seconds.ok_or_else(|| format!("wait is a number of seconds up to {MAX_WAIT}, not {value:?}"))?;
            }
            _ => return Err(format!("no {name:?} here: there are file, digest and wait")),
        }
    }
    match (file, digest) {
        (Some(file), Some(digest)) => Ok(AppliedQuery { file, digest, wait: Duration::from_secs(wait) }),
        _ => Err("say file and digest".to_owned()),
    }
}

fn digest_of(text: &str) -> Option<Digest> {
    let (mut digest, mut pairs) = (Digest::default(), text.as_bytes().chunks_exact(2));
    for byte in &mut digest {
        *byte = u8::from_str_radix(std::str::from_utf8(pairs.next()?).ok()?, 16).ok()?;
    }
    (text.len() == 2 * digest.len()).then_some(digest)
}

/// What is to be explained.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ExplainQuery {
    /// A flow that somebody thinks of.
    Asked(Asking),
    /// One that was seen.
    Seen(FlowId),
}

/// Reads the query of a request for an explanation; the error says what is wrong with it.
pub(crate) fn explaining(text: &str) -> Result<ExplainQuery, String> {
    let (mut from, mut to, mut port, mut protocol, mut flow) = (None, None, None, None, None);
    for (name, value) in query::pairs(text) {
        let party = || value.parse::<PartyMatch>().map_err(|error| format!("{name}: {error}"));
        match name.as_str() {
            "from" => from = Some(party()?),
            "to" => to = Some(party()?),
            "port" => {
                let number = value.parse::<u16>().ok().filter(|port| *port > 0);
                port = Some(number.ok_or_else(|| format!("port is a number from 1 to 65535, not {value:?}"))?);
            }
            "protocol" => {
                let named = Protocol::of_name(&value);
                if named.name() != value {
                    return Err(format!("protocol is tcp, udp, sctp, icmp or other, not {value:?}"));
                }
                protocol = Some(named);
            }
            "flow" => {
                let id = id_from_hex(&value);
                let wrong = || format!("flow is an id of 32 hex digits, not {value:?}: see `kumiko flows -o json`");
                flow = Some(id.ok_or_else(wrong)?);
            }
            _ => return Err(format!("no {name:?} here: there are from, to, port and protocol, or flow")),
        }
    }
    match (from, to, port, flow) {
        (None, None, None, Some(id)) if protocol.is_none() => Ok(ExplainQuery::Seen(id)),
        (Some(from), Some(to), port, None) => {
            let protocol = protocol.unwrap_or(Protocol::Tcp);
            let asked = Asked { protocol, port: port.unwrap_or_default() };
            match (protocol.has_ports(), port) {
                (true, None) => Err(format!("say the port of {protocol}")),
                (false, Some(_)) => Err(format!("{protocol}: without ports, so leave port away")),
                _ => Ok(ExplainQuery::Asked(Asking { from, to, asked })),
            }
        }
        (.., Some(_)) => Err("flow says all: leave from, to, port and protocol away".to_owned()),
        _ => Err("say from, to and port, or flow".to_owned()),
    }
}
