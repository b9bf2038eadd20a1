//! The command against agents: what is applied is in force when it returns, and what is explained is what sockets meet.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::Net;
use kumiko_lab::agents::{NodeFiles, binary};
use kumiko_lab::command::wait_for;
use serde_json::Value;

use super::documents::{BASELINE, EGRESS, TEAM};
use super::world::{OPEN, Open, SHUT, Try, World, within};

/// Pairs of which each is asked about, too.
const PAIRS: [Try; 8] = [
    ("client-1", "server-1", OPEN),
    ("client-1", "server-2", OPEN),
    ("client-1", "server-1", SHUT),
    ("client-1", "server-2", SHUT),
    ("client-2", "server-1", OPEN),
    ("other-1", "server-1", OPEN),
    ("other-1", "server-2", OPEN),
    ("other-1", "other-2", SHUT),
];

/// `kumiko` for the agent of a node.
fn kumiko(world: &World, node: u8, args: &[&str]) -> Result<Output> {
    let mut command = std::process::Command::new(binary("kumiko")?);
    command.arg("--socket").arg(socket(world, node)).args(args);
    command.env_remove("COLUMNS").output().context("kumiko")
}

fn socket(world: &World, node: u8) -> PathBuf {
    NodeFiles::new(&world.lab.dir(), node).socket()
}

/// `kumiko policy apply --wait` for both agents.
fn apply_file(world: &World, file: &Path) -> Result<Output> {
    let other = socket(world, 2);
    let args = ["policy", "apply", &file.to_string_lossy(), "--wait", "--also", &other.to_string_lossy()];
    kumiko(world, 1, &args)
}

/// Applies documents to both nodes; they are in force when this returns.
fn apply(world: &World, text: &str) -> Result<()> {
    let documents = world.lab.dir().join("documents");
    std::fs::create_dir_all(&documents)?;
    let file = documents.join("policy.yaml");
    std::fs::write(&file, text)?;
    let output = apply_file(world, &file)?;
    let (shown, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{shown}{told}");
    ensure!(shown.contains("; in force on n1 (epoch ") && shown.contains(", n2 (epoch "), "{shown}");
    Ok(())
}

fn full((name, port): (&str, u16)) -> (String, String) {
    let namespace = if name.starts_with("other") { "other" } else { "demo" };
    (format!("{namespace}/{name}"), port.to_string())
}

/// What both agents say of a pair is what `connect()` says.
fn agrees(world: &World, one: Try, allowed: bool) -> Result<()> {
    world.all(&[(one, allowed)])?;
    let (from, to, port) = one;
    let ((from, _), (to, port)) = (full((from, port)), full((to, port)));
    for node in 1..=2 {
        let args = ["policy", "explain", "--from", &from, "--to", &to, "--port", &port];
        let output = kumiko(world, node, &args)?;
        let shown = String::from_utf8_lossy(&output.stdout);
        let expected = if allowed { 0 } else { 1 };
        ensure!(output.status.code() == Some(expected), "n{node}, {one:?}: {output:?}");
        ensure!(shown.contains(&format!(" on n{node}\n")), "{shown}");
    }
    Ok(())
}

pub(super) fn agreed() -> Result<()> {
    within("agreed", Net::Routed, |world| {
        for (text, allowed) in [
            (TEAM, [true, true, false, false, true, false, false, true]),
            (EGRESS, [true, true, false, false, true, true, true, true]),
            (BASELINE, [true, true, true, true, true, false, false, true]),
            ("", [true; 8]),
        ] {
            apply(world, text)?;
            PAIRS.iter().zip(allowed).try_for_each(|(one, allowed)| agrees(world, *one, allowed))?;
        }
        let listed = kumiko(world, 1, &["policy", "list"])?;
        ensure!(String::from_utf8_lossy(&listed.stdout).starts_with("No policy"), "{listed:?}");
        Ok(())
    })
}

/// No waiting between the command's return and the check: what lost its right is cut.
pub(super) fn applied() -> Result<()> {
    within("applied", Net::Routed, |world| {
        let tries = [
            (("client-1", "server-1", OPEN), true),
            (("client-1", "server-2", OPEN), true),
            (("client-1", "server-1", SHUT), false),
            (("client-1", "server-2", SHUT), false),
            (("other-1", "server-1", OPEN), false),
            (("other-2", "server-2", OPEN), false),
        ];
        for _ in 0..5 {
            let mut all = Vec::new();
            for (one, stays) in tries {
                all.extend(world.open(one, stays)?);
            }
            apply(world, TEAM)?;
            all.iter_mut().try_for_each(Open::check)?;
            world.all(&tries)?;
            apply(world, "")?;
            world.all(&tries.map(|(one, _)| (one, true)))?;
        }
        let before = world.judged()?;
        let bad = world.lab.dir().join("documents/bad.yaml");
        std::fs::write(&bad, TEAM.replace("ingress", "ingres"))?;
        let output = apply_file(world, &bad)?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && told.contains("\nbad.yaml:"), "{told}");
        ensure!(!world.lab.manifests().join("bad.yaml").exists() && world.judged()? == before, "{told}");
        Ok(())
    })
}

/// Flows that a node has recorded.
fn flows(world: &World, node: u8) -> Result<Vec<Value>> {
    let flows = world.lab.admin(node, "/v1/flows?limit=2000")?;
    Ok(flows.as_array().cloned().unwrap_or_default())
}

fn field<'a>(flow: &'a Value, at: &str) -> &'a str {
    flow.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

/// What is said of a flow between nodes has the epochs of both, each in its own node's counting.
fn both_nodes_are_told(world: &World) -> Result<()> {
    let epochs @ [first, second] = world.judged()?;
    for (node, own, there, other) in [(1, first, 2, second), (2, second, 1, first)] {
        let is = |flow: &Value| {
            field(flow, "/path") == "tunnel" && flow["epoch"] == own && field(flow, "/verdict") == "allow"
        };
        let flow = wait_for("a flow in a tunnel is told", Duration::from_secs(20), || {
            flows(world, node)?.into_iter().find(is).context("no flow in a tunnel")
        })?;
        ensure!(flow.get("peerEpoch") == Some(&other.into()), "{flow}; epochs: {epochs:?}");
        let asked = ["policy", "explain", "--from", "demo/client-1", "--to", "demo/server-2", "--port"];
        let port = OPEN.to_string();
        for (args, when) in [
            (vec!["policy", "explain", "--flow", field(&flow, "/id")], "when it let this flow"),
            (asked.into_iter().chain([port.as_str()]).collect(), " ago"),
        ] {
            let output = kumiko(world, node, &args)?;
            let shown = String::from_utf8_lossy(&output.stdout);
            for said in [format!("epoch {own} on n{node}"), format!("epoch {other} on n{there}, ")] {
                ensure!(shown.contains(&said) && shown.contains(when), "n{node}, {said}: {shown}");
            }
        }
    }
    Ok(())
}

/// Every flow that was seen is explained as it was judged, also after the policy has changed.
pub(super) fn explained() -> Result<()> {
    within("explained", Net::Routed, |world| {
        let mut open = world.open(("client-1", "server-2", SHUT), false)?;
        open.extend(world.open(("other-1", "server-1", OPEN), false)?);
        apply(world, TEAM)?;
        open.iter_mut().try_for_each(Open::check)?;
        let seen = |one, allowed| world.all(&[(one, allowed)]);
        seen(("client-1", "server-1", OPEN), true)?;
        seen(("client-1", "server-2", OPEN), true)?;
        both_nodes_are_told(world)?;
        seen(("client-1", "server-2", SHUT), false)?;
        seen(("other-1", "server-1", OPEN), false)?;
        seen(("other-1", "server-2", OPEN), false)?;
        for _ in 0..2 {
            for node in 1..=2 {
                let flows = flows(world, node)?;
                let (mut allowed, mut denied) = (0, 0);
                for flow in &flows {
                    let output = kumiko(world, node, &["policy", "explain", "--flow", field(flow, "/id")])?;
                    let shown = String::from_utf8_lossy(&output.stdout);
                    let deny = field(flow, "/verdict") == "deny";
                    let told = String::from_utf8_lossy(&output.stderr);
                    let far = deny && output.status.code() == Some(2) && told.contains(": ask that one");
                    if far {
                        // The other node was quicker with the new policy.
                        continue;
                    }
                    let right = output.status.code() == Some(i32::from(deny));
                    ensure!(right, "n{node}: {output:?}\n{flow}");
                    if deny {
                        denied += 1;
                        ensure!(shown.contains("caused by MeshPolicy/demo/server"), "{shown}\n{flow}");
                    } else {
                        allowed += 1;
                    }
                }
                ensure!(allowed >= 4 && denied >= 8, "n{node}: {allowed} and {denied} of {}", flows.len());
            }
            apply(world, EGRESS)?;
        }
        // Whoever comes after this agent does not know what it judged by.
        let flow = flows(world, 1)?.into_iter().find(|flow| field(flow, "/verdict") == "deny").context("no flow")?;
        world.lab.kill_agent(1)?;
        world.lab.start_agent(1)?;
        let output = kumiko(world, 1, &["policy", "explain", "--flow", field(&flow, "/id")])?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(2)
                && (told.contains("is known here") || told.contains("is of an agent before")),
            "{told}"
        );
        Ok(())
    })
}
