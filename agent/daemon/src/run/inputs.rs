//! What the command line names, looked at before anything is made: a start that fails here leaves nothing behind.

use std::net::{SocketAddr, TcpListener as StdListener};

use anyhow::{Context as _, bail};
use kumiko_core::manifest::Scope;
use kumiko_kernel::bpf::{self, ObjectSource};
use kumiko_kernel::{cgroup, privileges};

use crate::identity::Manager;
use crate::issuer::IssuerClient;
use crate::options::RunOptions;
use crate::source::{self, Source, Taking};

/// All of it, read.
pub(super) struct Inputs {
    pub(super) object: ObjectSource,
    /// Id and depth of kubelet's cgroup; zeros without one.
    pub(super) kubelet: (u64, u32),
    pub(super) manager: Manager,
}

/// Folder of the last good versions of manifests, in the agent's directory.
pub(super) const LAST_GOOD: &str = "last-good";

impl Inputs {
    /// Reads what is there. An issuer may come later, and is waited for.
    pub(super) fn read(options: &RunOptions) -> anyhow::Result<Self> {
        check_privileges()?;
        bpf::check_bpffs(&options.places.bpffs)?;
        let object = super::object(options.bpf_object.as_deref())?;
        drop(object.read()?);
        let kubelet = options.kubelet_cgroup.as_deref().map(cgroup::id_and_level).transpose();
        let kubelet = kubelet.context("--kubelet-cgroup")?.unwrap_or_default();
        let client =
            IssuerClient::from_files(options.issuer, &options.node, &options.issuer_root, &options.join_token)?;
        let manager = Manager::new(client, &options.node, &options.trust_domain)?;
        Ok(Self { object, kubelet, manager })
    }
}

/// Starts the source, whose folder may come later, and is waited for. It keeps what is in force in the agent's directory, so no
/// other agent may be there.
pub(super) fn source(options: &RunOptions) -> anyhow::Result<Source> {
    let last_good = Some(options.places.run_dir.join(LAST_GOOD));
    let taking = Taking { scope: Scope::Policy, last_good };
    Ok(source::start(&options.source, &options.trust_domain, taking)?)
}

/// Without them every later step fails on something that says less.
pub(super) fn check_privileges() -> anyhow::Result<()> {
    let missing = privileges::missing().context("cannot tell what this process may do")?;
    if !missing.is_empty() {
        bail!("this process has no {}: run it as root, or give it these capabilities", missing.join(", no "));
    }
    Ok(())
}

/// Listens before the kernel part is touched: an address that cannot be had must not cost the node its agent half way.
pub(super) fn listen_for_metrics(address: SocketAddr) -> anyhow::Result<StdListener> {
    let listener = StdListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.with_context(|| format!("cannot serve metrics on {address} (--metrics)"))
}
