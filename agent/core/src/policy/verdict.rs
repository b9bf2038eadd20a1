//! Both sides' verdicts about a flow between two addresses of a world.

use std::net::IpAddr;
use std::sync::Arc;

use kumiko_abi::Stage;

use super::judge::{self, Policies, Proof, Question, Side, Term, View};
use super::object::Entity;
use super::port::Asked;
use super::rule::Direction;
use super::selector::{Member, Peer};
use super::settings::Settings;
use crate::manifest::Protocol;
use crate::model::{Workload, World};

/// One end of a flow.
#[derive(Clone, PartialEq, Debug)]
pub struct End {
    /// Its address.
    pub ip: IpAddr,
    /// Whose it is.
    pub workload: Option<Arc<Workload>>,
}

impl End {
    /// The end at an address.
    pub fn at(world: &World, ip: IpAddr) -> Self {
        Self { ip, workload: world.workload_at(ip).cloned() }
    }

    fn stage(&self) -> Stage {
        self.workload.as_ref().map_or(Stage::Off, |workload| workload.stage)
    }
}

/// A flow that is asked about.
#[derive(Clone, PartialEq, Debug)]
pub struct Flow {
    /// Who begins it.
    pub source: End,
    /// Whom it goes to: behind a Service, the endpoint that was chosen.
    pub destination: End,
    /// The destination's port.
    pub asked: Asked,
    /// It is from a process of the destination's node that is not the kubelet: declared ports let it no further than others.
    pub other_process: bool,
}

impl Flow {
    /// Between two ends, the kubelet's if it is from the destination's node.
    pub const fn new(source: End, destination: End, asked: Asked) -> Self {
        Self { source, destination, asked, other_process: false }
    }

    /// What speaks for each end to the other, when the data path carries the flow as it does. Towards the destination TLS
    /// counts as well: no byte leaves before it has proved it.
    pub fn proof(&self) -> Proof {
        let (Some(from), Some(to)) = (&self.source.workload, &self.destination.workload) else { return Proof::Claim };
        let both = |least: Stage| from.stage >= least && to.stage >= least;
        if from.node == to.node && both(Stage::Observe) {
            return Proof::Veth;
        }
        // Datagrams do not travel in tunnels.
        if self.asked.protocol == Protocol::Tcp && both(Stage::Permissive) { Proof::Tls } else { Proof::Claim }
    }

    /// The end whose rules of this direction are asked.
    pub fn end(&self, direction: Direction) -> &End {
        match direction {
            Direction::Egress => &self.source,
            Direction::Ingress => &self.destination,
        }
    }

    fn is_own(&self) -> bool {
        match (&self.source.workload, &self.destination.workload) {
            (Some(from), Some(to)) => from.uid == to.uid,
            _ => false,
        }
    }
}

/// One side of a flow: what its end's rules say, and whether that counts.
#[derive(Clone, PartialEq, Debug)]
pub struct Judged<'a> {
    /// The end's stage.
    pub stage: Stage,
    /// What speaks for its peer.
    pub proof: Proof,
    /// The terms; `None`: the end is not enrolled, or talks to itself.
    pub side: Option<Side<'a>>,
}

impl Judged<'_> {
    /// Whether the rules let the flow.
    pub fn allows(&self) -> bool {
        self.side.as_ref().is_none_or(Side::allows)
    }

    /// Whether what the rules say is enforced, not only recorded.
    pub fn enforced(&self) -> bool {
        self.side.is_some() && self.stage >= Stage::Permissive
    }

    /// The term by which the rules refuse the flow.
    pub fn refusal(&self) -> Option<Term> {
        self.side.as_ref()?.refusal().map(|answer| answer.term)
    }

    /// Whether this end refuses the flow.
    pub fn refuses(&self) -> bool {
        self.enforced() && !self.allows()
    }
}

/// A flow's verdict.
#[derive(Clone, PartialEq, Debug)]
pub struct Verdict<'a> {
    /// Of the source's end.
    pub egress: Judged<'a>,
    /// Of the destination's.
    pub ingress: Judged<'a>,
}

impl Verdict<'_> {
    /// Whether the flow may be.
    pub fn allows(&self) -> bool {
        !self.egress.refuses() && !self.ingress.refuses()
    }
}

/// What is needed to judge.
#[derive(Clone, Copy, Debug)]
pub struct Evaluator<'a> {
    /// Who is where.
    pub world: &'a World,
    /// Who may talk to whom.
    pub policies: &'a Policies,
    /// What the platform decides.
    pub settings: &'a Settings,
}

impl<'a> Evaluator<'a> {
    /// Of a snapshot with its own policy.
    pub fn of(world: &'a World) -> Self {
        Self { world, policies: &world.policy().policies, settings: &world.policy().settings }
    }

    /// Judges a flow at a moment (seconds since 1970).
    pub fn judge(&self, flow: &Flow, now: i64, view: View) -> Verdict<'a> {
        self.judge_proved(flow, flow.proof(), now, view)
    }

    /// The same of a flow that was seen to be proved so.
    pub fn judge_proved(&self, flow: &Flow, proof: Proof, now: i64, view: View) -> Verdict<'a> {
        let side = |direction: Direction| {
            let side = self.ask(flow, proof, direction, now, |question| self.policies.side(question, view));
            Judged { stage: flow.end(direction).stage(), proof, side }
        };
        Verdict { egress: side(Direction::Egress), ingress: side(Direction::Ingress) }
    }

    /// Asks something about one end; `None`: nothing is asked about it.
    pub fn ask<T>(
        &self,
        flow: &Flow,
        proof: Proof,
        direction: Direction,
        now: i64,
        ask: impl FnOnce(&Question<'_>) -> T,
    ) -> Option<T> {
        let own = flow.end(direction);
        let enrolled = own.stage() != Stage::Off && !flow.is_own();
        let workload = own.workload.as_ref().filter(|_| enrolled)?;
        let mut peer = self.peer(flow.end(direction.opposite()), workload, direction, flow.asked);
        if flow.other_process {
            peer.entities.retain(|entity| *entity != Entity::Probe);
        }
        let (subject, asked) = (self.member(workload), flow.asked);
        let lenient = judge::lenient(workload);
        Some(ask(&Question { subject, peer: &peer, direction, asked, proof, lenient, now }))
    }

    /// A workload with its namespace's labels.
    pub fn member<'w>(&self, workload: &'w Workload) -> Member<'w>
    where
        'a: 'w,
    {
        self.world.member(workload)
    }

    /// The other end, as `subject` sees it.
    pub fn peer<'w>(&self, end: &'w End, subject: &Workload, direction: Direction, asked: Asked) -> Peer<'w>
    where
        'a: 'w,
    {
        let member = end.workload.as_ref().map(|workload| self.member(workload));
        let entities = if member.is_some() { Vec::new() } else { self.entities(end.ip, subject, direction, asked) };
        Peer { ip: end.ip, member, entities }
    }

    /// Whether a flow would be a probe, were it the kubelet's.
    pub fn may_be_probe(&self, flow: &Flow) -> bool {
        let entities = |subject| self.peer(&flow.source, subject, Direction::Ingress, flow.asked).entities;
        !flow.other_process
            && flow.destination.workload.as_deref().is_some_and(|own| entities(own).contains(&Entity::Probe))
    }

    fn entities(&self, ip: IpAddr, subject: &Workload, direction: Direction, asked: Asked) -> Vec<Entity> {
        let mut entities = Vec::new();
        if self.world.is_disputed(ip) {
            // Nobody's, and no guess: what uses it is denied before any rule is asked.
            return entities;
        }
        let node = self.world.node_at(ip);
        let own = node.is_some_and(|node| node.name == subject.node);
        if own {
            entities.push(Entity::Host);
            let declared = |port: &crate::model::WorkloadPort| {
                port.probe && port.port == asked.port && port.protocol == asked.protocol
            };
            if direction == Direction::Ingress && subject.ports.iter().any(declared) {
                entities.push(Entity::Probe);
            }
        }
        if node.is_some() {
            entities.push(Entity::Node);
        }
        if self.settings.api_server.contains(&ip) {
            entities.push(Entity::KubeApiserver);
        }
        if node.is_none() && self.settings.outside(ip) {
            entities.push(Entity::World);
        }
        entities
    }
}
