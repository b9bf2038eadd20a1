//! What is asked about policy, and who answers.

use kumiko_core::api::{PolicyObjectView, SetsView, query};
use kumiko_core::flow_record::PartyMatch;
use kumiko_core::manifest::Protocol;
use kumiko_core::policy::ask::Asking;
use kumiko_core::policy::explain::Explanation;
use kumiko_core::policy::port::Asked;

/// Answers about policy in force; an error says why there is none, and what to do.
pub trait PolicyState {
    /// Why a flow may be, or may not.
    ///
    /// # Errors
    /// It cannot be said.
    fn explain(&self, asked: &Asking) -> Result<Explanation, String>;
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
}

/// Reads the query of a request for an explanation; the error says what is wrong with it.
pub(crate) fn asking(text: &str) -> Result<Asking, String> {
    let (mut from, mut to, mut port, mut protocol) = (None, None, None, Protocol::Tcp);
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
                protocol = match value.as_str() {
                    "tcp" => Protocol::Tcp,
                    "udp" => Protocol::Udp,
                    _ => return Err(format!("protocol is tcp or udp, not {value:?}")),
                };
            }
            _ => return Err(format!("no {name:?} here: there are from, to, port and protocol")),
        }
    }
    match (from, to, port) {
        (Some(from), Some(to), Some(port)) => Ok(Asking { from, to, asked: Asked { protocol, port } }),
        _ => Err("say from, to and port".to_owned()),
    }
}
