//! Links and where they are pinned.
//!
//! A link's pin is named after its hook and the interface: `pod-7-in`, `pod-7-out`, `agent-3-in`, `lookup`. Where the
//! kernel has no tcx, a directory `clsact-pod-7-in` stands for the filter that netlink attached: a filter is no object
//! that could be pinned, and lives until it is removed or the interface goes.

use std::{
    ffi::CStr,
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::{
        PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType, TcHandle,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, qdisc_add_clsact, qdisc_detach_program},
};
use kumiko_abi::programs;

use super::{
    Datapath,
    error::BpfError,
    filter,
    sys::{self, AttachType},
};

/// Directory of the links' pins, inside the pin directory.
pub(super) const LINKS_DIR: &str = "links";
const LOOKUP: &str = "lookup";
/// Of our clsact filters: ahead of what asks for a number of its own (the kernel gives 49152 and below).
const PRIORITY: u16 = 1;
const HANDLE: u32 = 0x6b75;

/// A tc hook that one of the programs belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hook {
    kind: Kind,
    ifindex: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    PodIn,
    PodOut,
    AgentIn,
}

impl Hook {
    const fn new(kind: Kind, ifindex: u32) -> Self {
        Self { kind, ifindex }
    }

    fn pin(self) -> String {
        let (who, way) = match self.kind {
            Kind::PodIn => ("pod", "in"),
            Kind::PodOut => ("pod", "out"),
            Kind::AgentIn => ("agent", "in"),
        };
        format!("{who}-{}-{way}", self.ifindex)
    }

    /// The hook of a pin's name, and whether it is a clsact filter's.
    fn of_pin(name: &str) -> Option<(Self, bool)> {
        let (name, clsact) = name.strip_prefix("clsact-").map_or((name, false), |rest| (rest, true));
        let mut parts = name.split('-');
        let (who, ifindex, way) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
        let kind = match (who, way) {
            ("pod", "in") => Kind::PodIn,
            ("pod", "out") => Kind::PodOut,
            ("agent", "in") => Kind::AgentIn,
            _ => return None,
        };
        Some((Self { kind, ifindex }, clsact))
    }

    fn program(self) -> &'static str {
        match self.kind {
            Kind::PodIn => programs::POD_INGRESS,
            Kind::PodOut => programs::POD_EGRESS,
            Kind::AgentIn => programs::AGENT_INGRESS,
        }
    }

    fn tcx(self) -> AttachType {
        if self.kind == Kind::PodOut { AttachType::TcxEgress } else { AttachType::TcxIngress }
    }

    fn clsact(self) -> TcAttachType {
        if self.kind == Kind::PodOut { TcAttachType::Egress } else { TcAttachType::Ingress }
    }

    /// Whether its clsact filter is there: nobody is told when somebody else removes it.
    fn has_filter(self) -> Result<bool, BpfError> {
        filter::is_on(self.ifindex, self.kind == Kind::PodOut, PRIORITY, HANDLE).map_err(|e| self.failed(e))
    }

    fn failed(self, source: io::Error) -> BpfError {
        BpfError::Attach { program: self.program(), target: format!("interface {}", self.ifindex), source }
    }
}

/// The links of one pin directory.
pub(super) struct Links {
    dir: PathBuf,
    clsact: AtomicBool,
}

impl Links {
    pub(super) fn new(pin_dir: &Path) -> Self {
        Self { dir: pin_dir.join(LINKS_DIR), clsact: AtomicBool::new(false) }
    }

    pub(super) fn force_clsact(&self) {
        self.clsact.store(true, Ordering::Relaxed);
    }

    pub(super) fn mode(&self) -> &'static str {
        if self.clsact.load(Ordering::Relaxed) { "clsact" } else { "tcx" }
    }

    /// Puts the new programs into every link that a former agent left; pins of vanished interfaces go.
    pub(super) fn readopt(&self, datapath: &Datapath) -> Result<(), BpfError> {
        for name in names(&self.dir)? {
            let path = self.dir.join(&name);
            if name == LOOKUP {
                let link = sys::get(&path).map_err(|source| BpfError::PinDir { path: path.clone(), source })?;
                let alive = sys::link_info(link.as_fd()).is_ok_and(|info| info.target != 0);
                if !alive || sys::update_link(link.as_fd(), datapath.fds.agent_lookup.as_fd()).is_err() {
                    remove_link(&path)?;
                }
                continue;
            }
            let Some((hook, clsact)) = Hook::of_pin(&name) else { continue };
            match clsact {
                true if hook.has_filter()? => self.attach_clsact(datapath, hook)?,
                true => remove_filter(&self.dir, hook)?,
                false if self.adopt_tcx(datapath, hook)? => {}
                false => remove_link(&path)?,
            }
        }
        Ok(())
    }

    pub(super) fn attach_pod(&self, datapath: &Datapath, ifindex: u32) -> Result<(), BpfError> {
        // Egress first: from the first packet that ingress judges on, nothing captured may come in by the host's stack.
        self.attach(datapath, Hook::new(Kind::PodOut, ifindex))?;
        self.attach(datapath, Hook::new(Kind::PodIn, ifindex))
    }

    pub(super) fn attach_agent_veth(&self, datapath: &Datapath, ifindex: u32) -> Result<(), BpfError> {
        self.attach(datapath, Hook::new(Kind::AgentIn, ifindex))
    }

    pub(super) fn restore_agent_veth(&self, datapath: &Datapath, ifindex: u32) -> Result<bool, BpfError> {
        let hook = Hook::new(Kind::AgentIn, ifindex);
        if self.link_of(hook).is_some() || hook.has_filter()? {
            return Ok(false);
        }
        self.attach(datapath, hook).map(|()| true)
    }

    pub(super) fn detach_pod(&self, ifindex: u32) -> Result<(), BpfError> {
        self.detach(Hook::new(Kind::PodIn, ifindex))?;
        self.detach(Hook::new(Kind::PodOut, ifindex))
    }

    pub(super) fn attached(&self) -> Result<Vec<u32>, BpfError> {
        let mut living = Vec::new();
        for (hook, clsact) in names(&self.dir)?.iter().filter_map(|n| Hook::of_pin(n)) {
            if if clsact { hook.has_filter()? } else { self.link_of(hook).is_some() } {
                living.push(hook);
            }
        }
        let pods = living.iter().filter(|hook| hook.kind == Kind::PodIn).map(|hook| hook.ifindex);
        let mut both: Vec<u32> = pods.filter(|&i| living.contains(&Hook::new(Kind::PodOut, i))).collect();
        both.sort_unstable();
        both.dedup();
        Ok(both)
    }

    pub(super) fn attach_lookup(&self, datapath: &Datapath, netns: BorrowedFd<'_>) -> Result<(), BpfError> {
        let prog = datapath.fds.agent_lookup.as_fd();
        if let Some(link) = self.lookup_of(netns)? {
            return sys::update_link(link.as_fd(), prog).map_err(lookup_failed);
        }
        // Gone, detached, or of a namespace that was made anew meanwhile.
        let path = self.dir.join(LOOKUP);
        remove_link(&path)?;
        let link = sys::link(prog, sys::netns_target(netns), AttachType::SkLookup).map_err(lookup_failed)?;
        sys::pin(link.as_fd(), &path).map_err(lookup_failed)
    }

    pub(super) fn restore_lookup(&self, datapath: &Datapath, netns: BorrowedFd<'_>) -> Result<bool, BpfError> {
        if self.lookup_of(netns)?.is_some() {
            return Ok(false);
        }
        self.attach_lookup(datapath, netns).map(|()| true)
    }

    /// The pinned link of the lookup, if it is on this namespace; a detached one says 0.
    fn lookup_of(&self, netns: BorrowedFd<'_>) -> Result<Option<std::os::fd::OwnedFd>, BpfError> {
        let inode = rustix::fs::fstat(netns).map_err(|e| lookup_failed(e.into()))?.st_ino;
        let Ok(link) = sys::get(&self.dir.join(LOOKUP)) else { return Ok(None) };
        let here = sys::link_info(link.as_fd()).is_ok_and(|info| u64::from(info.target) == inode);
        Ok(here.then_some(link))
    }

    /// The pinned tcx link of a hook, if its interface is still there.
    fn link_of(&self, hook: Hook) -> Option<std::os::fd::OwnedFd> {
        let link = sys::get(&self.dir.join(hook.pin())).ok()?;
        // A link whose interface went says 0; a number that was given out again is another interface's.
        let info = sys::link_info(link.as_fd()).ok()?;
        (info.target == hook.ifindex).then_some(link)
    }

    /// Puts the current program into a pinned tcx link; false when there is no living one.
    fn adopt_tcx(&self, datapath: &Datapath, hook: Hook) -> Result<bool, BpfError> {
        let Some(link) = self.link_of(hook) else { return Ok(false) };
        sys::update_link(link.as_fd(), program_fd(datapath, hook)).map_err(|e| hook.failed(e))?;
        Ok(true)
    }

    fn attach(&self, datapath: &Datapath, hook: Hook) -> Result<(), BpfError> {
        let path = self.dir.join(hook.pin());
        if self.adopt_tcx(datapath, hook)? {
            return Ok(());
        }
        remove_link(&path)?;
        if self.clsact.load(Ordering::Relaxed) {
            return self.attach_clsact(datapath, hook);
        }
        match sys::link(program_fd(datapath, hook), hook.ifindex, hook.tcx()) {
            Ok(link) => sys::pin(link.as_fd(), &path).map_err(|e| hook.failed(e)),
            // Before 6.6 the attach type is unknown.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                self.attach_clsact(datapath, hook).inspect(|()| self.force_clsact())
            }
            Err(e) => Err(hook.failed(e)),
        }
    }

    /// Attaches by netlink, or replaces the filter that is there.
    fn attach_clsact(&self, datapath: &Datapath, hook: Hook) -> Result<(), BpfError> {
        let failed = |e: ProgramError| hook.failed(io::Error::other(e));
        let interface = interface_name(hook.ifindex).map_err(|e| hook.failed(e))?;
        // There already: fine.
        let _exists = qdisc_add_clsact(&interface);
        let mut ebpf = datapath.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        let program: &mut SchedClassifier = ebpf
            .program_mut(hook.program())
            .ok_or(BpfError::MissingProgram(hook.program()))?
            .try_into()
            .map_err(failed)?;
        let handle = TcHandle::from(HANDLE);
        let marker = self.dir.join(format!("clsact-{}", hook.pin()));
        let id = if hook.has_filter()? {
            let link = SchedClassifierLink::attached(&interface, hook.clsact(), PRIORITY, handle, None)
                .map_err(|e| hook.failed(e))?;
            program.attach_to_link(link).map_err(failed)?
        } else {
            let options = NlOptions { priority: PRIORITY, handle, classid: None };
            program.attach_with_options(&interface, hook.clsact(), TcAttachOptions::Netlink(options)).map_err(failed)?
        };
        // Dropping the link would detach the filter, which has to outlive this process.
        std::mem::forget(program.take_link(id).map_err(failed)?);
        match fs::create_dir(&marker) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(hook.failed(e)),
            _ => Ok(()),
        }
    }

    fn detach(&self, hook: Hook) -> Result<(), BpfError> {
        remove_link(&self.dir.join(hook.pin()))?;
        remove_filter(&self.dir, hook)
    }
}

fn program_fd(datapath: &Datapath, hook: Hook) -> BorrowedFd<'_> {
    match hook.kind {
        Kind::PodIn => datapath.fds.pod_ingress.as_fd(),
        Kind::PodOut => datapath.fds.pod_egress.as_fd(),
        Kind::AgentIn => datapath.fds.agent_ingress.as_fd(),
    }
}

/// Removes a hook's clsact filter and its marker, if there is one.
fn remove_filter(dir: &Path, hook: Hook) -> Result<(), BpfError> {
    let marker = dir.join(format!("clsact-{}", hook.pin()));
    if !marker.exists() {
        return Ok(());
    }
    if let Ok(interface) = interface_name(hook.ifindex) {
        // An error means that it is gone already.
        let _gone = qdisc_detach_program(&interface, hook.clsact(), hook.program());
    }
    fs::remove_dir(&marker).map_err(|source| BpfError::PinDir { path: marker, source })
}

pub(super) fn remove_everything(pin_dir: &Path) -> Result<(), BpfError> {
    if !pin_dir.exists() {
        return Ok(());
    }
    let links = pin_dir.join(LINKS_DIR);
    let mut first = Ok(());
    let mut note = |result: Result<(), BpfError>| {
        if first.is_ok() {
            first = result;
        }
    };
    // `kumiko0` and the lookup first, the pods' hooks last: without the former, captured flows only fall silent.
    let mut names_of_links = names(&links).unwrap_or_default();
    names_of_links.sort_by_key(|name| name.contains("pod-"));
    for name in &names_of_links {
        match Hook::of_pin(name) {
            Some((hook, true)) => note(remove_filter(&links, hook)),
            _ => note(remove_link(&links.join(name))),
        }
    }
    for name in names(pin_dir)?.iter().filter(|name| *name != LINKS_DIR) {
        note(unpin(&pin_dir.join(name)));
    }
    for dir in [links.as_path(), pin_dir] {
        if let Err(source) = fs::remove_dir(dir) {
            note(Err(BpfError::PinDir { path: dir.to_owned(), source }));
        }
    }
    // `<bpffs>/kumiko` too, unless another layout lives beside.
    if let Some(parent) = pin_dir.parent() {
        let _busy = fs::remove_dir(parent);
    }
    first
}

fn lookup_failed(source: io::Error) -> BpfError {
    let target = "the agent's network namespace".to_owned();
    BpfError::Attach { program: programs::AGENT_LOOKUP, target, source }
}

fn names(dir: &Path) -> Result<Vec<String>, BpfError> {
    let failed = |source| BpfError::PinDir { path: dir.to_owned(), source };
    fs::read_dir(dir)
        .map_err(failed)?
        .map(|entry| entry.map_err(failed).map(|e| e.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Detaches a pinned link and removes its pin. Without the former the program would be there for a while yet, and could
/// not be attached again meanwhile.
fn remove_link(path: &Path) -> Result<(), BpfError> {
    if let Ok(link) = sys::get(path) {
        // An error means that it is detached already, with its interface or its namespace.
        let _gone = sys::detach_link(link.as_fd());
    }
    unpin(path)
}

fn unpin(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(BpfError::PinDir { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Name of an interface of the calling thread's namespace.
fn interface_name(ifindex: u32) -> io::Result<String> {
    let mut buffer = [0u8; libc::IFNAMSIZ];
    // SAFETY: the buffer has the size that the call fills.
    if unsafe { libc::if_indextoname(ifindex, buffer.as_mut_ptr().cast()) }.is_null() {
        return Err(io::Error::last_os_error());
    }
    let name = CStr::from_bytes_until_nul(&buffer).map_err(io::Error::other)?;
    Ok(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_name_their_hooks() {
        for kind in [Kind::PodIn, Kind::PodOut, Kind::AgentIn] {
            let hook = Hook::new(kind, 42);
            assert_eq!(Hook::of_pin(&hook.pin()), Some((hook, false)));
            assert_eq!(Hook::of_pin(&format!("clsact-{}", hook.pin())), Some((hook, true)));
        }
        for other in ["lookup", "pod-x-in", "pod-1", "agent-1-out", ""] {
            assert_eq!(Hook::of_pin(other), None, "{other}");
        }
    }
}
