//! Documents that do not do what they say, or say what is not so.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::{Family, Net};
use serde_json::{Value, json};

use super::documents::TEAM;
use super::world::{OPEN, SHUT, World, within};

pub(super) fn invalid() -> Result<()> {
    within("invalid", Net::Routed, |world| {
        let open = [
            (("client-1", "server-1", OPEN), true),
            (("client-1", "server-2", OPEN), true),
            (("client-1", "other-2", OPEN), true),
        ];
        let refused = [
            (("client-1", "server-1", OPEN), false),
            (("client-1", "server-2", OPEN), false),
            (("client-1", "other-2", OPEN), true),
        ];
        world.all(&open)?;
        // Its subject can be read; it is no YAML, so that it is about all of its namespace, both ways.
        let all = refused.map(|(one, _)| (one, false));
        for (bad, refused) in [(TEAM.replace("ports", "port"), refused), (TEAM.replace("20000}", "20000"), all)] {
            world.put(&bad)?;
            wait_for("it refuses what it selects", Duration::from_secs(20), || world.all(&refused))?;
            is_told(world, 2, "policy_invalid")?;
            world.put("")?;
            wait_for("it is gone", Duration::from_secs(20), || world.all(&open))?;
        }
        // A version that was in force stays.
        world.apply(TEAM)?;
        world.all(&open)?;
        world.put(&TEAM.replace("ports", "port"))?;
        wait_for("the bad version is told", Duration::from_secs(20), || {
            let status = world.lab.admin(2, "/v1/status")?;
            let told = status.pointer("/source/diagnostics").and_then(Value::as_array).context("no diagnostics")?;
            ensure!(told.len() == 1, "{told:?}");
            Ok(())
        })?;
        world.all(&open)?;
        world.all(&[(("client-1", "server-2", SHUT), false), (("other-1", "server-2", OPEN), false)])
    })
}

/// A team's rules that are more than the tables hold neither keep the platform's next word from coming into force, nor another
/// team's.
pub(super) fn too_much() -> Result<()> {
    // Each rule within its bounds; together they tell more groups of ports apart than a set may.
    let ports = |first: u16| {
        let all: Vec<String> = (0..256).map(|number| format!("{{port: {}}}", first + 2 * number)).collect();
        all.join(", ")
    };
    let rule = |name: &str, first| {
        format!("    - {{name: {name}, from: [{{namespace: other}}], ports: [{}]}}\n", ports(first))
    };
    let much = format!("{TEAM}{}{}", rule("one", 20_000), rule("two", 30_000));
    let platform = "---
apiVersion: kumiko.dev/v1alpha1
kind: MeshBaseline
metadata: {name: platform}
spec:
  subject: {namespace: demo}
  ingress: {deny: [{name: no-client, from: [{namespace: demo, serviceAccount: client}]}]}
---
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: closed, namespace: other}
spec:
  ingress: [{name: client, from: [{namespace: demo}], ports: [{port: 20000}]}]
";
    within("much", Net::Routed, |world| {
        let held = |world: &World| -> Result<()> {
            for node in [1, 2] {
                let status = world.lab.admin(node, "/v1/status")?;
                let policy = status.get("policy").context("nothing is said of policy")?;
                let told = policy.get("problem").and_then(Value::as_str).unwrap_or_default();
                let right = policy.get("held") == Some(&json!(["demo"])) && told.contains("groups of ports");
                ensure!(right, "n{node}: {policy}");
            }
            Ok(())
        };
        let own = |served| [(("client-1", "server-1", OPEN), served), (("client-1", "server-2", OPEN), served)];
        let others = [
            (("other-1", "server-1", OPEN), false),
            (("other-1", "server-2", OPEN), false),
            (("client-1", "other-2", OPEN), true),
            (("client-1", "other-2", SHUT), false),
        ];
        world.apply(TEAM)?;
        world.all(&own(true))?;
        world.apply(&much).context("a team's rules are too much")?;
        held(world)?;
        world.all(&own(true)).context("those before stay")?;
        world.apply(&format!("{much}{platform}")).context("the platform's next word")?;
        held(world)?;
        world.all(&own(false)).context("the platform's next word")?;
        world.all(&others).context("another team's")?;
        // Who knows of none before lets nobody in by them.
        world.apply(&format!("{much}{}", platform.replace("no-client", "nobody").replace("client}", "nobody}")))?;
        world.all(&own(true))?;
        world.lab.kill_agent(1)?;
        world.lab.start_agent(1)?;
        wait_for("it refuses what it selects", Duration::from_secs(20), || {
            world.all(&[(("client-1", "server-1", OPEN), false), (("other-1", "server-1", OPEN), false)])
        })?;
        world.all(&others)?;
        world.apply(TEAM).context("it fits again")?;
        world.all(&own(true))?;
        let policy = world.lab.admin(1, "/v1/status")?;
        ensure!(policy.pointer("/policy/problem") == Some(&json!("")), "{policy}");
        Ok(())
    })
}

/// Somebody's document says that the servers' addresses are its own pod's: nobody may talk to these until it is gone.
pub(super) fn disputed() -> Result<()> {
    within("disputed", Net::Routed, |world| {
        let open = [
            (("client-1", "server-1", OPEN), true),
            (("client-1", "server-2", OPEN), true),
            (("other-1", "server-2", OPEN), true),
        ];
        let refused = open.map(|(one, _)| (one, false));
        let others = [(("client-1", "other-2", OPEN), true)];
        world.all(&open)?;
        let ips: Vec<String> = ["server-1", "server-2"]
            .iter()
            .map(|pod| {
                Ok([Family::V4, Family::V6].map(|family| world.lab.pod(pod).map(|pod| pod.ip(family).to_string())))
            })
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect::<Result<_>>()?;
        let claim = format!(
            "apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: liar, namespace: other, uid: liar}}\nspec: \
             {{serviceAccount: other, node: n2, ips: {ips:?}}}\n"
        );
        world.put(&claim)?;
        wait_for("they are nobody's", Duration::from_secs(20), || world.all(&refused))?;
        world.all(&others)?;
        let status = world.lab.admin(1, "/v1/status")?;
        ensure!(status.pointer("/source/disputed").and_then(Value::as_u64) == Some(4), "{status}");
        is_told(world, 1, "disputed_address")?;
        world.put("")?;
        wait_for("they are the servers' again", Duration::from_secs(20), || world.all(&open))
    })
}

/// A refusal's record comes soon, not at once.
fn is_told(world: &World, node: u8, reason: &str) -> Result<()> {
    wait_for("the refusal is told", Duration::from_secs(20), || {
        let flows = world.lab.admin(node, "/v1/flows?verdict=deny")?.to_string();
        ensure!(flows.contains(reason), "no {reason}: {flows}");
        Ok(())
    })
}
