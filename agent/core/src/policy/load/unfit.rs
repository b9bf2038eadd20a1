//! Why an object would not do what it says.

use ipnet::IpNet;
use kumiko_abi::Stage;
use thiserror::Error;

use crate::manifest::{Place, Protocol, STAGE_LABEL};
use crate::policy::foreign::ForeignObject;
use crate::policy::rule::Direction;
use crate::stage;

/// A problem with its place.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{file}:{}:{}: {problem}", place.line, place.column)]
pub struct Told {
    /// File, relative to the folder.
    pub file: String,
    /// Where in it.
    pub place: Place,
    /// What.
    pub problem: Unfit,
}

/// Why an object would not do what it says.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Unfit {
    /// A label that the namespace's own team may set.
    #[error(
        "{object}: {path}: {key:?} is no label of the platform's: a team that sets it would choose for itself; list its \
         prefix in MeshSettings' platformLabelPrefixes, or choose by namespace"
    )]
    TeamsLabel {
        /// The object.
        object: String,
        /// The field.
        path: String,
        /// The label.
        key: String,
    },
    /// An exception suspends what is not there.
    #[error(
        "{exception}: there is no {rule} in a MeshBaseline {baseline}: see its name, or remove it from spec.suspends"
    )]
    NothingToSuspend {
        /// The exception.
        exception: String,
        /// The baseline that it names.
        baseline: String,
        /// The rule that it names.
        rule: String,
    },
    /// A namespace's stage is below what the platform wants of it.
    #[error(
        "Namespace {namespace}: its stage {} is below {}, the lowest that MeshSettings' minStage lets it have, which it has \
         instead: raise its label {STAGE_LABEL}", stage::name(*is), stage::name(*least)
    )]
    StageTooLow {
        /// The namespace.
        namespace: String,
        /// Its stage.
        is: Stage,
        /// The lowest that it may have.
        least: Stage,
    },
    /// Policy that is not enforced keeps a namespace from being raised.
    #[error(
        "Namespace {namespace}: its stage would be {} and is {}, for kumiko does not enforce {object}: say the same in a \
         MeshPolicy or NetworkPolicy and remove it, or list {} in MeshSettings' acceptedPolicyKinds", stage::name(*wanted),
        stage::name(*is), object.kind.name()
    )]
    NotRaised {
        /// The namespace.
        namespace: String,
        /// The stage that it would have.
        wanted: Stage,
        /// The one that it has.
        is: Stage,
        /// The object, or the first of them.
        object: ForeignObject,
    },
    /// Policy that is not enforced came into a namespace that is above observe.
    #[error(
        "{object}{}: kumiko does not enforce this kind, and namespace {namespace} goes on at {}: say the same in a MeshPolicy or \
         NetworkPolicy and remove it, or list {} in MeshSettings' acceptedPolicyKinds", more(*others), stage::name(*is),
        object.kind.name()
    )]
    NotEnforced {
        /// The object, or the first of them.
        object: ForeignObject,
        /// How many others there are.
        others: usize,
        /// The namespace.
        namespace: String,
        /// Its stage.
        is: Stage,
    },
    /// A SPIFFE ID that nobody here has.
    #[error(
        "{object}: {id} is not of the trust domain {domains}: nobody here has it, so that a rule which denies by it would \
         deny nobody; mend it, or say --trust-domain or MeshSettings' trustDomains"
    )]
    TrustDomain {
        /// The object.
        object: String,
        /// The SPIFFE ID.
        id: String,
        /// What it may be of.
        domains: String,
    },
    /// The settings do not know this agent's own trust domain.
    #[error(
        "MeshSettings: spec.trustDomains does not list {own}, the trust domain of this agent: add it, or give the agent \
         another --trust-domain"
    )]
    OwnTrustDomain {
        /// The agent's.
        own: String,
    },
    /// A policy in audit takes the place of none.
    #[error("{policy}: there is no MeshPolicy {replaced} to replace: see its name, or remove it from spec.replaces")]
    NothingToReplace {
        /// The policy.
        policy: String,
        /// What it names.
        replaced: String,
    },
    /// A rule that allows names nobody ([`super::nobody`]).
    #[error(
        "{object}: {rule} allows nobody, for nobody is whom it names (a warning): see its namespace, account and labels, for \
         an entity MeshSettings; it holds for who is to come"
    )]
    AllowsNobody {
        /// The object.
        object: String,
        /// The rule.
        rule: String,
    },
    /// An object is about nobody.
    #[error(
        "{object} selects no workload that there is, so it does nothing (a warning): see its subject's namespace, account and \
         labels; it holds for who is to come"
    )]
    SelectsNobody {
        /// The object.
        object: String,
    },
    /// An exception that is over.
    #[error("{exception} ended on {day}, so it suspends nothing (a warning): remove it, or give it another end")]
    HasEnded {
        /// The exception.
        exception: String,
        /// The day.
        day: String,
    },
    /// A direction of a baseline without a rule or a ceiling.
    #[error(
        "{object}: spec.{direction} has no rule, so it says nothing (a warning): write `allow: []` for a ceiling that lets nothing \
         pass, or remove the field"
    )]
    SaysNothing {
        /// The object.
        object: String,
        /// Which.
        direction: Direction,
    },
    /// A name that no port has where it would be looked for.
    #[error(
        "{object}: {rule}: no pod that it is about calls a {protocol} port {name:?}, so it means none (a warning): see the pods' \
         ports; it holds for those who are to come"
    )]
    PortOfNobody {
        /// The object.
        object: String,
        /// The rule.
        rule: String,
        /// The protocol.
        protocol: Protocol,
        /// The name.
        name: String,
    },
    /// A rule about Services' own addresses.
    #[error(
        "{object}: {rule}: {net} is of MeshSettings' serviceCidrs (a warning): a rule is asked about the pod that a Service has \
         chosen, not about the Service's address; name the pods"
    )]
    ServicesNetwork {
        /// The object.
        object: String,
        /// The rule.
        rule: String,
        /// The network.
        net: IpNet,
    },
    /// A rule that denies names nobody.
    #[error(
        "{object}: {rule} denies nobody, for nobody is whom it names, so the object is degraded: mend its namespace, account \
         or SPIFFE ID, for an entity MeshSettings (podCidrs, apiServer), or remove the rule; it holds for who is to come"
    )]
    DeniesNobody {
        /// The object.
        object: String,
        /// The rule.
        rule: String,
    },
}

impl Unfit {
    /// Whether it is made good by itself, and only told: a namespace has a stage that it may have.
    pub fn is_made_good(&self) -> bool {
        matches!(self, Self::StageTooLow { .. } | Self::NotRaised { .. } | Self::NotEnforced { .. })
    }

    /// Whether it is told in passing: nothing is wrong yet.
    pub fn is_warning(&self) -> bool {
        matches!(
            self,
            Self::AllowsNobody { .. }
                | Self::SelectsNobody { .. }
                | Self::HasEnded { .. }
                | Self::SaysNothing { .. }
                | Self::PortOfNobody { .. }
                | Self::ServicesNetwork { .. }
        )
    }
}

fn more(others: usize) -> String {
    if others == 0 { String::new() } else { format!(" (and {others} more)") }
}
