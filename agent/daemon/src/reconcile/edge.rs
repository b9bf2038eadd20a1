//! What the control loop needs of the kernel. One implementation does it, another one in the tests remembers it.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use kumiko_abi::{Backend, CommandResult, Flow, FlowKey, Reason};
use kumiko_core::compile::{Desired, Handles, Op};
use kumiko_core::model::Attachment;
use kumiko_core::policy::compile::Image;
use kumiko_core::stage::legacy::Older;
use kumiko_kernel::bpf::BpfError;
use kumiko_kernel::netns::Netns;
use thiserror::Error;

/// Something that the kernel or a file did not do.
#[derive(Debug, Error)]
pub enum EdgeError {
    /// Maps, programs, hooks.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// On a test's demand.
    #[error(transparent)]
    Injected(#[from] kumiko_fault::Injected),
    /// The flow table could not be read.
    #[error("the flow table cannot be read: {0}")]
    Scan(#[source] io::Error),
    /// The file of numbers.
    #[error("{path}: {source}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A pod's veth.
#[derive(Debug, Clone)]
pub struct Veth {
    /// Host-side index.
    pub ifindex: u32,
    /// Host-side name.
    pub name: String,
    /// MAC of the pod.
    pub pod_mac: [u8; 6],
    /// MAC that the pod sends to.
    pub gateway_mac: [u8; 6],
    /// Bridge or VRF that the host's side is a port of; 0: none.
    pub master: u32,
    /// Both ends are up.
    pub running: bool,
    /// The pod's namespace, if it could be found.
    pub netns: Option<Arc<Netns>>,
}

/// Why a veth is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoVeth {
    /// What is wrong and what to do.
    pub problem: String,
    /// It may come by itself.
    pub may_come: bool,
}

/// A flow to be ended, with the namespaces of its ends as far as they are known.
#[derive(Debug)]
pub struct Ended {
    /// Its initiator.
    pub client: SocketAddr,
    /// Its target.
    pub server: SocketAddr,
    /// Epoch of the verdict that ends it.
    pub epoch: u32,
    /// Where their sockets are.
    pub netns: [Option<Arc<Netns>>; 2],
}

/// The kernel, as far as the control loop changes it.
pub trait Edge {
    /// Numbers that the last agent gave, if it left them.
    fn load(&mut self) -> Result<Option<Handles>, EdgeError>;
    /// Keeps the numbers for the next agent.
    fn save(&mut self, handles: &Handles) -> Result<(), EdgeError>;
    /// What the maps hold; workloads as far as they have one of these numbers.
    fn written(&mut self, handles: &Handles) -> Result<Desired, EdgeError>;
    /// One write to a map.
    fn write(&mut self, op: &Op) -> Result<(), EdgeError>;
    /// Forgets the choice of these endpoints for exchanges with Services: their next datagrams go to others.
    fn forget_backends(&mut self, gone: &HashSet<Backend>) -> Result<(), EdgeError>;
    /// The epoch whose verdicts are in force.
    fn epoch(&mut self) -> Result<u32, EdgeError>;
    /// Writes tables of verdicts, which are in force from their epoch on.
    fn set_verdicts(&mut self, image: &Image) -> Result<(), EdgeError>;
    /// Lets the verdicts of an image's epoch hold, for all at once.
    fn set_epoch(&mut self, image: &Image) -> Result<(), EdgeError>;
    /// Interfaces that carry both hooks.
    fn hooked(&mut self) -> Result<Vec<u32>, EdgeError>;
    /// Puts the hook on the way into the agent's namespace back if it was taken off; says whether it was.
    fn restore_way(&mut self) -> Result<bool, EdgeError>;
    /// The same with the socket lookup of the agent's namespace.
    fn restore_lookup(&mut self) -> Result<bool, EdgeError>;
    /// Puts both hooks on an interface whose endpoint is written.
    fn hook(&mut self, ifindex: u32) -> Result<(), EdgeError>;
    /// Takes both hooks off.
    fn unhook(&mut self, ifindex: u32) -> Result<(), EdgeError>;
    /// Makes the counters of an endpoint, before it is written.
    fn init_use(&mut self, ifindex: u32) -> Result<(), EdgeError>;
    /// Drops the counters of an interface that is gone.
    fn remove_use(&mut self, ifindex: u32) -> Result<(), EdgeError>;
    /// Finds a pod's veth.
    fn resolve(&mut self, attachment: &Attachment) -> Result<Veth, NoVeth>;
    /// Addresses of an interface of the host.
    fn addresses(&mut self, interface: &str) -> io::Result<Vec<IpAddr>>;
    /// Interfaces of the host that limit or delay what passes them.
    fn shaped(&mut self) -> io::Result<HashSet<u32>>;
    /// TCP connections of a pod; `None` when its namespace is not known.
    fn sockets(&mut self, veth: &Veth) -> io::Result<Option<Vec<Older>>>;
    /// An entry of the flow table.
    fn flow(&self, key: &FlowKey) -> Option<Flow>;
    /// Calls `each` for every entry of the flow table.
    fn scan(&self, each: &mut dyn FnMut(&FlowKey, &Flow)) -> Result<(), EdgeError>;
    /// Inserts an entry unless a live one is there.
    fn create(&self, key: &FlowKey, flow: &Flow) -> Result<CommandResult, EdgeError>;
    /// Ends a flow: its sockets are destroyed, which tells the other end, and no packet of it passes any more.
    fn cut(&mut self, key: &FlowKey, flow: &Flow, reason: Reason, ended: &Ended) -> Result<(), EdgeError>;
    /// Or-s flags into the entry of this key if it still is this flow.
    fn flag(&self, key: &FlowKey, flow: &Flow, flags: u32) -> Result<CommandResult, EdgeError>;
}
