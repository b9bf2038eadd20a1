//! Changes of a lab's folder, and when they are what every node judges by.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::Lab;
use kumiko_lab::command::wait_for;
use serde_json::Value;

/// For a change to be in force on every node.
const WITHIN: Duration = Duration::from_secs(30);

/// Changes the folder, so that it says something else than before, and waits until every node judges by it.
pub fn after(lab: &Lab, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let nodes = || lab.nodes.iter().map(|node| node.number);
    // What is in force is told a moment after it is.
    let before = wait_for("all documents are in force", WITHIN, || {
        nodes().map(|node| epochs(lab, node)).collect::<Result<Vec<_>>>()
    })?;
    change()?;
    wait_for("the policy is in force", WITHIN, || {
        for (node, [before, _]) in nodes().zip(&before) {
            let [source, judged] = epochs(lab, node)?;
            ensure!(source > *before && judged == source, "n{node}: {before} before, {source}, {judged}");
        }
        Ok(())
    })
}

/// The source's epoch of a node, and that of the policy that it judges by. What it has to say of its documents is an error.
fn epochs(lab: &Lab, node: u8) -> Result<[u64; 2]> {
    let status = lab.admin(node, "/v1/status")?;
    let told = status.pointer("/source/diagnostics").and_then(Value::as_array).context("no diagnostics")?;
    ensure!(told.is_empty(), "{told:?}");
    let number = |at: &str| status.pointer(at).and_then(Value::as_u64).context("no such number");
    Ok([number("/source/epoch")?, number("/policy/sourceEpoch")?])
}
