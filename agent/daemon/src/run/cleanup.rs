//! `kumiko-agent cleanup`: resets what is captured, then removes every trace.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kumiko_abi::config::config_flags;
use kumiko_abi::flow::flags;
use kumiko_abi::{Flow, FlowKey, FlowState, Reason, Verdict};
use kumiko_core::addr;
use kumiko_kernel::agent_ns::AgentNs;
use kumiko_kernel::alive::{HostLock, PinLock, RunLock, patiently};
use kumiko_kernel::bpf::{self, Datapath, LoadOptions};
use kumiko_kernel::netns::Netns;
use kumiko_kernel::{diag, veth};
use tracing::{info, warn};

use crate::options::CleanupOptions;

/// How long resets may take to be seen in the flow table.
const RESET_WITHIN: Duration = Duration::from_secs(3);

/// Cleans up after an agent that has been stopped. The process has to be in the node's host namespace.
pub fn cleanup(options: &CleanupOptions) -> anyhow::Result<()> {
    let places = &options.places;
    super::inputs::check_privileges()?;
    let lock = patiently(|| RunLock::acquire(&places.run_dir)).context("only after the agent")?;
    let _host_lock = patiently(HostLock::acquire).context("only after the agent")?;
    let host = Netns::current().context("cannot open this process's network namespace")?;
    let pin_dir = bpf::pin_dir(&places.bpffs);
    if pin_dir.exists() {
        let _pin_lock =
            patiently(|| PinLock::acquire(&bpf::pin_root(&places.bpffs))).context("only after the agent")?;
        let object = super::object(options.bpf_object.as_deref())?;
        match Datapath::load(&LoadOptions { object, pin_dir: pin_dir.clone() }) {
            Ok(datapath) => reset_flows(&datapath, &host)?,
            // Hooks without their maps cannot carry anything that could be reset.
            Err(error) => warn!(%error, "programs cannot be loaded; what is pinned is removed as it is"),
        }
        Datapath::remove_everything(&pin_dir)?;
        info!(dir = %pin_dir.display(), "programs and maps removed");
    }
    AgentNs::remove(&places.run_dir, &places.netns_name, &host)?;
    for left in ["handles.json", "admin.sock"] {
        let path = places.run_dir.join(left);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                warn!(path = %path.display(), %error, "cannot be removed");
            }
            _ => {}
        }
    }
    let last_good = places.run_dir.join(super::inputs::LAST_GOOD);
    match std::fs::remove_dir_all(&last_good) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            warn!(path = %last_good.display(), %error, "cannot be removed");
        }
        _ => {}
    }
    lock.remove()?;
    // With somebody else's files in it, it stays.
    let _busy = std::fs::remove_dir(&places.run_dir);
    info!("nothing of kumiko is left on this node");
    Ok(())
}

/// Refuses new SYNs, resets every captured flow, and waits until the table shows it: a captured flow whose hooks are
/// taken off while its sockets live would go on in the clear.
fn reset_flows(datapath: &Datapath, host: &Netns) -> anyhow::Result<()> {
    let maps = datapath.maps();
    let mut config = maps.config()?;
    config.flags |= config_flags::CLOSING;
    maps.set_config(&config)?;
    maps.clear_listeners()?;
    let carried = carried(datapath)?;
    let commands = datapath.commands();
    for (key, flow) in &carried {
        commands.set_state(key, &flow.id, FlowState::Cut, Reason::AgentClosing, Verdict::Deny, 0)?;
    }
    let mut missing = HashSet::new();
    for (key, flow) in &carried {
        let (initiator, target) = addr::ends(key, flow.flags);
        for (ifindex, local, remote) in [(flow.src_ifindex, initiator, target), (flow.dst_ifindex, target, initiator)] {
            if ifindex == 0 || ifindex == config.agent_ifindex {
                continue;
            }
            match pod_namespace(ifindex, host) {
                // Wakes those that only wait: their application sees the connection aborted.
                Some(netns) => drop(diag::Diag::open(&netns).and_then(|mut diag| diag.destroy(local, remote))),
                None => drop(missing.insert(ifindex)),
            }
        }
    }
    for ifindex in missing {
        warn!(ifindex, "the pod's namespace is not found: its idle flows end with their next packet only");
    }
    let deadline = Instant::now() + RESET_WITHIN;
    let mut left = self::carried(datapath)?.len();
    while left > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        left = self::carried(datapath)?.len();
    }
    info!(reset = carried.len() - left.min(carried.len()), unanswered = left, "captured flows");
    Ok(())
}

/// Flows that need the hooks and are not over.
fn carried(datapath: &Datapath) -> anyhow::Result<Vec<(FlowKey, Flow)>> {
    let mut found = Vec::new();
    datapath.flows().scan(&mut |key, flow| {
        let state = FlowState::from_u8(flow.state);
        let needs = matches!(state, Some(FlowState::Captured | FlowState::Pending | FlowState::Cut));
        if needs && flow.flags & flags::OVER == 0 {
            found.push((*key, *flow));
        }
    })?;
    Ok(found)
}

fn pod_namespace(ifindex: u32, host: &Netns) -> Option<Netns> {
    let name = nix::net::if_::if_indextoname(ifindex).ok()?.into_string().ok()?;
    veth::resolve(&veth::Attachment::Veth { name }, host).ok()?.netns
}
