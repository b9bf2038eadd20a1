//! Which flows somebody wants to see.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use kumiko_abi::Verdict;
use thiserror::Error;

use super::{FlowRecord, Party, ServiceName, words::verdict_name};

/// Why a filter cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FilterError {
    /// Not `namespace/name`, `namespace/` or an address.
    #[error("{0:?} names nobody: write NAMESPACE/NAME, NAMESPACE/ for a whole namespace, or an IP address")]
    Party(String),
    /// Not a verdict.
    #[error("{0:?} is no verdict: write allow, deny or audit")]
    Verdict(String),
    /// Neither true nor false.
    #[error("{0:?} is neither true nor false")]
    WouldDeny(String),
}

/// One end that is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PartyMatch {
    /// A workload by its name; as destination also a Service.
    Name {
        /// Namespace.
        namespace: String,
        /// Name; `None`: the whole namespace.
        name: Option<String>,
    },
    /// An address.
    Ip(IpAddr),
}

impl FromStr for PartyMatch {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Ip(ip));
        }
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.contains('/') => {
                let name = (!name.is_empty()).then(|| name.to_owned());
                Ok(Self::Name { namespace: namespace.to_owned(), name })
            }
            _ => Err(FilterError::Party(text.to_owned())),
        }
    }
}

impl fmt::Display for PartyMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Name { namespace, name } => write!(f, "{namespace}/{}", name.as_deref().unwrap_or("")),
        }
    }
}

impl PartyMatch {
    fn matches_party(&self, party: &Party) -> bool {
        match self {
            Self::Ip(ip) => party.ip == *ip,
            Self::Name { namespace, name } => {
                party.namespace == *namespace && name.as_ref().is_none_or(|name| party.name == *name)
            }
        }
    }

    fn matches_service(&self, service: &ServiceName) -> bool {
        match self {
            Self::Ip(ip) => service.ip == *ip,
            Self::Name { namespace, name } => {
                service.namespace == *namespace && name.as_ref().is_none_or(|name| service.name == *name)
            }
        }
    }
}

/// What all of has to hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FlowFilter {
    /// Source.
    pub from: Option<PartyMatch>,
    /// Destination, or Service that was asked for.
    pub to: Option<PartyMatch>,
    /// Verdict.
    pub verdict: Option<Verdict>,
    /// Only flows that go on and would not, were everything enforced that is in audit, and everybody strict.
    pub would_deny: bool,
}

impl FlowFilter {
    /// Whether somebody wants to see this flow.
    pub fn matches(&self, record: &FlowRecord) -> bool {
        let from = self.from.as_ref().is_none_or(|from| from.matches_party(&record.source));
        let to = self.to.as_ref().is_none_or(|to| {
            to.matches_party(&record.destination) || record.service.as_ref().is_some_and(|s| to.matches_service(s))
        });
        let verdict = self.verdict.is_none_or(|verdict| verdict == record.verdict);
        from && to && verdict && (!self.would_deny || record.would_be_refused())
    }

    /// Sets one part by its name in a query (`from`, `to`, `verdict`, `wouldDeny`). Says whether there is such a part.
    pub fn set(&mut self, part: &str, value: &str) -> Result<bool, FilterError> {
        match part {
            "from" => self.from = Some(value.parse()?),
            "to" => self.to = Some(value.parse()?),
            "verdict" => {
                self.verdict = Some(verdict_of(value).ok_or_else(|| FilterError::Verdict(value.to_owned()))?);
            }
            "wouldDeny" => {
                self.would_deny = value.parse().map_err(|_| FilterError::WouldDeny(value.to_owned()))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// The verdict of a name.
pub(super) fn verdict_of(name: &str) -> Option<Verdict> {
    [Verdict::Allow, Verdict::Deny, Verdict::Audit].into_iter().find(|verdict| verdict_name(*verdict) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parties_are_named_or_addressed() {
        for good in ["demo/client-1", "demo/", "10.0.0.1", "fd00::1"] {
            assert_eq!(good.parse::<PartyMatch>().unwrap().to_string(), good);
        }
        for bad in ["", "demo", "/x", "a/b/c"] {
            let error = bad.parse::<PartyMatch>().unwrap_err();
            assert!(error.to_string().contains("NAMESPACE/NAME"), "{error}");
        }
    }
}
