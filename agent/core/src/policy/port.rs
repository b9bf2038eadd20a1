//! Ports of rules.

use std::fmt;

use super::object::{Port, PortRef, TransportProtocol};
use crate::manifest::Protocol;
use crate::model::Workload;

/// A port that is asked for: at the destination, behind a Service's choice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Asked {
    /// Its protocol.
    pub protocol: Protocol,
    /// Number; 0 of a protocol without ports.
    pub port: u16,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, port } = self;
        if protocol.has_ports() { write!(f, "{protocol} {port}") } else { write!(f, "{protocol}") }
    }
}

/// Ports of a rule; one of its `Some` list.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Ports {
    /// All of a protocol.
    All(Protocol),
    /// From the first to the last.
    Range(Protocol, u16, u16),
    /// What the destination's pod calls so. Without the name there, or without a pod: none.
    Named(Protocol, String),
}

impl Ports {
    /// Whether the port is meant. `destination` is whose pod the port is of, if it is a pod's.
    pub fn mean(&self, asked: Asked, destination: Option<&Workload>) -> bool {
        match self {
            Self::All(protocol) => *protocol == asked.protocol,
            Self::Range(protocol, first, last) => *protocol == asked.protocol && (*first..=*last).contains(&asked.port),
            Self::Named(protocol, name) => destination.is_some_and(|workload| {
                let named = |port: &&crate::model::WorkloadPort| port.name == *name && port.protocol == *protocol;
                workload.ports.iter().any(|port| named(&port) && *protocol == asked.protocol && port.port == asked.port)
            }),
        }
    }
}

impl From<TransportProtocol> for Protocol {
    fn from(protocol: TransportProtocol) -> Self {
        match protocol {
            TransportProtocol::Tcp => Self::Tcp,
            TransportProtocol::Udp => Self::Udp,
            TransportProtocol::Sctp => Self::Sctp,
            TransportProtocol::Icmp => Self::Icmp,
        }
    }
}

impl From<&Port> for Ports {
    fn from(port: &Port) -> Self {
        let protocol = port.protocol.into();
        match &port.port {
            None => Self::All(protocol),
            Some(PortRef::Number(first)) => Self::Range(protocol, *first, port.end_port.unwrap_or(*first)),
            Some(PortRef::Name(name)) => Self::Named(protocol, name.clone()),
        }
    }
}
