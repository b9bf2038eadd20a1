//! Connections that are older than their pod's enrolment go on in the clear, but for what a baseline cuts and what is too old.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::{Net, Stage};
use serde_json::Value;

use super::world::{OPEN, Open, SHUT, World, within};

/// What the platform denies: new ones of it are refused, and those that are open are another matter.
const DENY: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshBaseline
metadata: {name: platform}
spec:
  subject: {namespace: clear}
  ingress: {deny: [{name: no-other, from: [{namespace: other}]}]}
";

/// A port is open to who is known by an address only.
const TEAM: &str = "
---
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: server, namespace: clear}
spec: {ingress: [{name: all, from: [{namespace: demo}], unauthenticated: true, ports: [{port: 20001}]}]}
";

const AGE: &str = "
---
apiVersion: kumiko.dev/v1alpha1
kind: MeshSettings
metadata: {name: mesh}
spec: {legacyMaxAge: 1s}
";

pub(super) fn cut() -> Result<()> {
    within("older", Net::Routed, |world| {
        let mut own = world.open(("client-2", "clear-1", OPEN), true)?;
        let mut ruled = world.open(("client-2", "clear-1", SHUT), true)?;
        let mut others = world.open(("other-2", "clear-1", OPEN), true)?;
        world.lab.set_stage("clear", Stage::Strict)?;
        world.lab.wait_stage("clear", Stage::Strict)?;
        let go_on = |all: [&mut Vec<Open>; 3], when: &str| {
            all.into_iter().flatten().try_for_each(Open::check).with_context(|| when.to_owned())
        };
        go_on([&mut own, &mut ruled, &mut others], "enrolled")?;
        world.apply(&format!("{DENY}{TEAM}"))?;
        world.all(&[(("other-2", "clear-1", OPEN), false), (("client-2", "clear-1", OPEN), false)])?;
        go_on([&mut own, &mut ruled, &mut others], "denied, and older")?;
        world.apply(&format!("{}{TEAM}", DENY.replace("spec:", "spec:\n  cutLegacy: true")))?;
        others.iter_mut().for_each(|open| open.stays = false);
        go_on([&mut own, &mut ruled, &mut others], "the baseline cuts")?;
        world.apply(&format!("{DENY}{TEAM}{AGE}"))?;
        // Time passes; the connections are asked only once, since what is asked tells of the cut.
        wait_for("what is too old is cut", Duration::from_secs(120), || {
            let open = listed(world, OPEN)?;
            ensure!(open == 0, "{open} connections are open");
            Ok(())
        })?;
        ensure!(listed(world, SHUT)? > 0, "what a rule lets is cut, too");
        own.iter_mut().for_each(|open| open.stays = false);
        go_on([&mut own, &mut ruled, &mut others], "too old")
    })
}

/// Open legacy connections to a port that the server's node lists.
fn listed(world: &World, port: u16) -> Result<usize> {
    let flows = world.lab.admin(1, "/v1/flows?limit=1000")?;
    let is_one = |flow: &&Value| {
        flow.get("legacy") == Some(&Value::Bool(true))
            && flow.get("state").and_then(Value::as_str) == Some("open")
            && flow.pointer("/destination/port").and_then(Value::as_u64) == Some(u64::from(port))
    };
    Ok(flows.as_array().into_iter().flatten().filter(is_one).count())
}
