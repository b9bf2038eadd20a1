//! The guard: a process that takes a lab down when its maker is gone, whatever ended it.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::agents::binary;
use crate::command::wait_for;
use crate::state;
use crate::topology::netns_name;

/// A running guard. Its end of the pipe closes with the owner.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    _pipe: Option<ChildStdin>,
}

impl Guard {
    /// Starts one for the lab `id`, in its own process group: Ctrl-C must not end it first.
    pub fn start(id: &str) -> Result<Self> {
        let mut command = Command::new(binary("kumiko-peer")?);
        command.args(["guard", id]).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let mut child = command.spawn().context("starting the lab's guard")?;
        let pipe = child.stdin.take();
        Ok(Self { child, _pipe: pipe })
    }

    /// Ends it: the lab has been taken down in order.
    pub fn dismiss(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the guard does: waits for the end of its input, then removes the lab.
pub fn run(id: &str) -> Result<()> {
    let mut rest = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut rest);
    let _lock = state::lock()?;
    // What its maker had just started (an `ip` that makes a namespace) may come to its end only now.
    wait_for("the lab goes", Duration::from_secs(30), || {
        ensure!(!is_made(id)?, "a namespace of it is being made");
        state::remove(id)
    })
}

/// Whether an `ip netns add` for the lab still runs.
fn is_made(id: &str) -> Result<bool> {
    let wanted = format!("\0netns\0add\0{}", netns_name(id, ""));
    let processes = fs::read_dir("/proc").context("listing processes")?.flatten();
    let lines = processes.filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok());
    Ok(lines.into_iter().any(|line| line.contains(&wanted)))
}
