//! The kernel programs from user space: loading, re-adopting what is pinned, attaching, typed maps, commands.
//!
//! Everything that must outlive the agent is pinned under one directory, `<bpffs>/kumiko/v<LAYOUT>`: the maps by their
//! names, the links under `links/`. A starting agent takes the maps over after checking their layout, loads fresh
//! programs upon them and puts those in the links' places (`BPF_LINK_UPDATE`), so that there is no moment without a
//! program. Attaching is by tcx (6.6 and newer), before that by a clsact filter; minimum kernel 6.1.
//!
//! Interfaces are named by index in the calling thread's network namespace: call from the host's.

mod attach;
mod commands;
mod error;
mod filter;
mod flows;
mod layout;
mod maps;
mod object;
mod raw_map;
mod rings;
mod sys;

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError, SchedClassifier, SkLookup},
};
use kumiko_abi::{LAYOUT, programs};

pub use commands::Commands;
pub use error::BpfError;
pub use flows::FlowTable;
pub use maps::{Maps, Verdicts};
pub use object::ObjectSource;
pub use rings::{EventRing, SynRing};

use attach::Links;

/// What [`Datapath::load`] needs to know.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where the programs are.
    pub object: ObjectSource,
    /// Directory for pins, made when missing: [`pin_dir`] of the node's bpffs.
    pub pin_dir: PathBuf,
}

/// Directory of all layouts' pins under a bpf file system.
pub fn pin_root(bpffs: &Path) -> PathBuf {
    bpffs.join("kumiko")
}

/// Pin directory under a bpf file system.
pub fn pin_dir(bpffs: &Path) -> PathBuf {
    pin_root(bpffs).join(format!("v{LAYOUT}"))
}

/// Whether maps can be pinned there, told before anything is made.
///
/// # Errors
/// [`BpfError::NotBpffs`]; [`BpfError::PinDir`] when it cannot be looked at.
pub fn check_bpffs(path: &Path) -> Result<(), BpfError> {
    match rustix::fs::statfs(path) {
        Ok(found) if found.f_type == libc::BPF_FS_MAGIC => Ok(()),
        Ok(_) => Err(BpfError::NotBpffs { path: path.to_owned() }),
        Err(error) => Err(BpfError::PinDir { path: path.to_owned(), source: error.into() }),
    }
}

/// The loaded programs and maps of one node.
pub struct Datapath {
    /// Kept for the programs; classifiers are also attached through it where tcx is missing.
    ebpf: Mutex<Ebpf>,
    fds: Arc<ProgramFds>,
    verified: Vec<(&'static str, u32)>,
    maps: Maps,
    links: Links,
}

/// Descriptors of the loaded programs.
struct ProgramFds {
    pod_ingress: OwnedFd,
    pod_egress: OwnedFd,
    agent_ingress: OwnedFd,
    agent_lookup: OwnedFd,
    flow_command: OwnedFd,
}

impl Datapath {
    /// Loads the programs over the pinned maps, or over fresh ones, and puts them in the place of those that an agent
    /// before this one attached.
    ///
    /// # Errors
    /// Any [`BpfError`]; [`BpfError::Layout`] when the pins are of another version.
    pub fn load(options: &LoadOptions) -> Result<Self, BpfError> {
        Self::load_with_log(options, 0)
    }

    /// The same with the programs' log statements up to `level` (1 error to 5 trace) compiled in; they come out of
    /// [`Datapath::logger`]. For debugging: each statement that is on costs thousands of verified instructions.
    ///
    /// # Errors
    /// As for [`Datapath::load`].
    pub fn load_with_log(options: &LoadOptions, level: u8) -> Result<Self, BpfError> {
        let object = options.object.read()?;
        let dir = &options.pin_dir;
        fs::create_dir_all(dir.join(attach::LINKS_DIR))
            .map_err(|source| BpfError::PinDir { path: dir.clone(), source })?;
        for map in layout::MAPS {
            map.check_pin(dir)?;
        }
        let mut loader = EbpfLoader::new();
        loader.override_global("AYA_LOG_LEVEL", &level, false);
        for map in layout::MAPS {
            loader.map_pin_path(map.name, dir.join(map.name));
        }
        let mut ebpf = loader.load(&object).map_err(Box::new)?;
        let mut verified = Vec::new();
        let fds = ProgramFds {
            pod_ingress: load_program(&mut ebpf, programs::POD_INGRESS, &mut verified)?,
            pod_egress: load_program(&mut ebpf, programs::POD_EGRESS, &mut verified)?,
            agent_ingress: load_program(&mut ebpf, programs::AGENT_INGRESS, &mut verified)?,
            agent_lookup: load_program(&mut ebpf, programs::AGENT_LOOKUP, &mut verified)?,
            flow_command: load_program(&mut ebpf, programs::FLOW_COMMAND, &mut verified)?,
        };
        let maps = Maps::open(dir)?;
        let links = Links::new(dir);
        let datapath = Self { ebpf: Mutex::new(ebpf), fds: Arc::new(fds), verified, maps, links };
        datapath.links.readopt(&datapath)?;
        Ok(datapath)
    }

    /// The maps.
    pub fn maps(&self) -> Maps {
        self.maps.clone()
    }

    /// The command program.
    pub fn commands(&self) -> Commands {
        Commands::new(Arc::clone(&self.fds))
    }

    /// The flow table, for reading.
    pub fn flows(&self) -> FlowTable {
        FlowTable::new(self.maps.clone())
    }

    /// The ring of a shard's parked SYNs. It is made with the first agent that asks and stays; a second reader at the
    /// same time would take records away from the first.
    ///
    /// # Errors
    /// [`BpfError::Map`], [`BpfError::Ring`].
    pub fn syn_ring(&self, shard: u16) -> Result<SynRing, BpfError> {
        SynRing::open(&self.maps, shard)
    }

    /// The ring of flow events.
    ///
    /// # Errors
    /// [`BpfError::Ring`].
    pub fn event_ring(&self) -> Result<EventRing, BpfError> {
        EventRing::open(&self.maps)
    }

    /// Reads the programs' log ring (see [`Datapath::load_with_log`]); poll its descriptor, then `flush` it.
    ///
    /// # Errors
    /// When the object carries no log ring.
    pub fn logger(&self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, aya_log::Error> {
        aya_log::EbpfLogger::init(&mut self.ebpf.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many instructions the verifier walked for each program.
    pub fn verified_instructions(&self) -> Vec<(&'static str, u32)> {
        self.verified.clone()
    }

    /// Attaches both hooks of a pod's veth, or puts the current programs into the hooks that are there already.
    ///
    /// # Errors
    /// [`BpfError::Attach`].
    pub fn attach_pod(&self, ifindex: u32) -> Result<(), BpfError> {
        self.links.attach_pod(self, ifindex)
    }

    /// Detaches both hooks of a pod's veth; not an error when the interface is gone. Only when no captured or fast
    /// entry names it any more: what of a captured flow is on its way would leave in the clear.
    ///
    /// # Errors
    /// [`BpfError::PinDir`] when a pin cannot be removed.
    pub fn detach_pod(&self, ifindex: u32) -> Result<(), BpfError> {
        self.links.detach_pod(ifindex)
    }

    /// The interfaces with both pod hooks, sorted. Interfaces that are gone are not in it.
    ///
    /// # Errors
    /// [`BpfError::PinDir`].
    pub fn attached(&self) -> Result<Vec<u32>, BpfError> {
        self.links.attached()
    }

    /// Attaches to the host's side of the veth into the agent's namespace.
    ///
    /// # Errors
    /// [`BpfError::Attach`].
    pub fn attach_agent_veth(&self, ifindex: u32) -> Result<(), BpfError> {
        self.links.attach_agent_veth(self, ifindex)
    }

    /// Attaches there again if somebody else took the hook off; says whether it was.
    ///
    /// # Errors
    /// [`BpfError::Attach`].
    pub fn restore_agent_veth(&self, ifindex: u32) -> Result<bool, BpfError> {
        self.links.restore_agent_veth(self, ifindex)
    }

    /// Attaches the socket lookup to the agent's namespace.
    ///
    /// # Errors
    /// [`BpfError::Attach`].
    pub fn attach_lookup(&self, netns: BorrowedFd<'_>) -> Result<(), BpfError> {
        self.links.attach_lookup(self, netns)
    }

    /// Attaches it there again if somebody else took it off; says whether it was.
    ///
    /// # Errors
    /// [`BpfError::Attach`].
    pub fn restore_lookup(&self, netns: BorrowedFd<'_>) -> Result<bool, BpfError> {
        self.links.restore_lookup(self, netns)
    }

    /// How hooks are put on here: `tcx`, or `clsact` where the kernel refused tcx (before 6.6).
    pub fn attach_mode(&self) -> &'static str {
        self.links.mode()
    }

    /// Uses clsact filters even where tcx exists: how tests reach the path of kernels before 6.6.
    #[doc(hidden)]
    pub fn force_clsact(&self) {
        self.links.force_clsact();
    }

    /// Runs a program once on a packet, as tests do. Context: the bytes of `struct __sk_buff`.
    ///
    /// # Errors
    /// What the kernel says.
    #[doc(hidden)]
    pub fn test_run(&self, program: &str, packet: &[u8], context: Option<&[u8]>) -> std::io::Result<i32> {
        let fd = self.program(program).as_fd();
        sys::test_run_with(fd, packet, context, &mut []).map(|(value, _)| value.cast_signed())
    }

    /// The same, and writes the packet, as the program leaves it, into `out`, which is as large as that.
    ///
    /// # Errors
    /// What the kernel says.
    #[doc(hidden)]
    pub fn test_run_shows(
        &self,
        program: &str,
        packet: &[u8],
        context: Option<&[u8]>,
        out: &mut [u8],
    ) -> std::io::Result<i32> {
        let fd = self.program(program).as_fd();
        sys::test_run_with(fd, packet, context, out).map(|(value, _)| value.cast_signed())
    }

    /// The same as [`Self::test_run`], for its nanoseconds.
    ///
    /// # Errors
    /// What the kernel says.
    #[doc(hidden)]
    pub fn test_time(&self, program: &str, packet: &[u8], context: Option<&[u8]>) -> std::io::Result<u32> {
        let fd = self.program(program).as_fd();
        sys::test_run_with(fd, packet, context, &mut []).map(|(_, nanoseconds)| nanoseconds)
    }

    fn program(&self, name: &str) -> &OwnedFd {
        match name {
            programs::POD_INGRESS => &self.fds.pod_ingress,
            programs::POD_EGRESS => &self.fds.pod_egress,
            programs::AGENT_INGRESS => &self.fds.agent_ingress,
            _ => &self.fds.flow_command,
        }
    }

    /// Removes links and pins of a directory, this agent's or another's, in an order that never lets traffic of a
    /// captured flow pass: pods' hooks last. The maps live on for as long as a process holds them.
    ///
    /// # Errors
    /// [`BpfError::PinDir`], with the first pin that could not be removed; all others are removed all the same.
    pub fn remove_everything(pin_dir: &Path) -> Result<(), BpfError> {
        attach::remove_everything(pin_dir)
    }
}

/// How often a load that was interrupted is tried again.
const LOADS_AGAIN: u32 = 20;

/// The verifier takes up to seconds on a busy machine, and gives up with EAGAIN when a signal comes for its thread.
fn is_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. } if io_error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Loads one program; its descriptor outlives aya's object.
fn load_program(
    ebpf: &mut Ebpf,
    name: &'static str,
    verified: &mut Vec<(&'static str, u32)>,
) -> Result<OwnedFd, BpfError> {
    let program = ebpf.program_mut(name).ok_or(BpfError::MissingProgram(name))?;
    let failed = |source: ProgramError| BpfError::Program { program: name, source: Box::new(source) };
    let mut left = LOADS_AGAIN;
    loop {
        let loaded = match program {
            Program::SchedClassifier(classifier) => SchedClassifier::load(classifier),
            Program::SkLookup(lookup) => SkLookup::load(lookup),
            _ => return Err(BpfError::MissingProgram(name)),
        };
        match loaded {
            Err(error) if left > 0 && is_interrupted(&error) => left -= 1,
            other => break other.map_err(failed)?,
        }
    }
    let count = program.info().map_err(failed)?.verified_instruction_count();
    verified.push((name, count.unwrap_or(0)));
    let fd = program.fd().map_err(failed)?;
    fd.as_fd().try_clone_to_owned().map_err(|e| failed(ProgramError::IOError(e)))
}
