//! A question about a flow in people's words, and the flow that it means.

use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;

use super::port::Asked;
use super::verdict::{End, Flow};
use crate::flow_record::PartyMatch;
use crate::model::{Service, World};

/// Who, to whom, at which port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asking {
    /// Who begins the flow.
    pub from: PartyMatch,
    /// Whom it goes to.
    pub to: PartyMatch,
    /// The destination's port.
    pub asked: Asked,
}

/// Why a question means no flow.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum NoFlow {
    /// A verdict is about the endpoint that was chosen, on its own port.
    #[error("{ip}: is an address of Service {service}: name one of its workloads, and its port")]
    Service {
        /// What was asked for.
        ip: IpAddr,
        /// Whose it is.
        service: String,
    },
    /// The same by its name.
    #[error("{who}: is a Service, not a workload: name one of the workloads behind it, and its own port")]
    ServiceName {
        /// What was asked for.
        who: PartyMatch,
    },
    /// Many workloads.
    #[error("{who}: is a namespace: name one of its workloads")]
    Namespace {
        /// What was asked for.
        who: PartyMatch,
    },
    /// A name that nobody has.
    #[error("{who}: no workload of this name is in {place}")]
    Nobody {
        /// Who was asked for.
        who: PartyMatch,
        /// Where.
        place: &'static str,
    },
    /// An address that is nobody's.
    #[error("{ip}: is nobody's (see `kumiko status`): what uses it is refused, with disputed_address")]
    Disputed {
        /// What was asked for.
        ip: IpAddr,
    },
    /// A workload that cannot be reached.
    #[error("{who}: the workload has no address")]
    NoAddress {
        /// Who was asked for.
        who: PartyMatch,
    },
    /// One has IPv4 only, the other one IPv6.
    #[error("{from} and {to} have no addresses of one family")]
    Families {
        /// Who begins the flow.
        from: PartyMatch,
        /// Whom it goes to.
        to: PartyMatch,
    },
}

impl Asking {
    /// The flow that is meant; `place` says where the world is from.
    ///
    /// # Errors
    /// There is none.
    pub fn flow(&self, world: &World, place: &'static str) -> Result<Flow, NoFlow> {
        let source = end(world, &self.from, None, place)?;
        let destination = end(world, &self.to, Some(source.ip), place)?;
        let source = end(world, &self.from, Some(destination.ip), place)?;
        if source.ip.is_ipv4() != destination.ip.is_ipv4() {
            return Err(NoFlow::Families { from: self.from.clone(), to: self.to.clone() });
        }
        Ok(Flow::new(source, destination, self.asked))
    }
}

/// The end that somebody means; a workload's address is of the other's family, if it has one.
fn end(world: &World, who: &PartyMatch, like: Option<IpAddr>, place: &'static str) -> Result<End, NoFlow> {
    let (namespace, name) = match who {
        PartyMatch::Ip(ip) => {
            let ip = ip.to_canonical();
            let of = |service: &&Arc<Service>| service.cluster_ips.contains(&ip) || service.outer_ips.contains(&ip);
            if world.is_disputed(ip) {
                return Err(NoFlow::Disputed { ip });
            }
            let Some(service) = world.services().find(of) else { return Ok(End::at(world, ip)) };
            return Err(NoFlow::Service { ip, service: format!("{}/{}", service.namespace, service.name) });
        }
        PartyMatch::Name { name: None, .. } => return Err(NoFlow::Namespace { who: who.clone() }),
        PartyMatch::Name { namespace, name: Some(name) } => (namespace, name),
    };
    let nobody = || {
        let who = who.clone();
        let service = world.services().any(|service| service.namespace == *namespace && service.name == *name);
        if service { NoFlow::ServiceName { who } } else { NoFlow::Nobody { who, place } }
    };
    let workload = world.workload_named(namespace, name).ok_or_else(nobody)?;
    let ip = like.and_then(|like| workload.ip_like(like)).or_else(|| workload.ips.first().copied());
    let ip = ip.ok_or_else(|| NoFlow::NoAddress { who: who.clone() })?;
    Ok(End { ip, workload: Some(workload.clone()) })
}
