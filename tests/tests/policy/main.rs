//! Who may talk to whom, on real sockets: what a rule refuses is refused at `connect()`, and nothing else is.

mod addresses;
mod asked;
mod changes;
mod datagrams;
mod documents;
mod echoes;
mod ends;
mod kinds;
mod older;
mod others;
mod unfit;
mod world;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::agents::binary;
use kumiko_lab::command::wait_for;
use kumiko_lab::peer::{Peer, Step};
use kumiko_lab::{Family, Net, Stage, state};
use kumiko_tests::harness;
use libtest_mimic::Arguments;
use serde_json::Value;

use documents::{AUDITED, BASELINE, CLEAR, EGRESS, EGRESS_CLEAR, KUBERNETES, NOBODY, OBSERVED, PROBES, TEAM};
use world::{OPEN, Open, PROBED, SHUT, World, within};

const NAMES: &[&str] = &[
    "new_connections_keep_to_the_rules",
    "exceptions_end_by_themselves",
    "open_connections_lose_their_right",
    "revoked_after_a_while_or_never",
    "verdicts_outlive_the_agent",
    "what_would_be_refused_is_told",
    "what_never_was_valid_refuses",
    "a_team_whose_rules_are_too_much_is_held_back_alone",
    "an_address_that_two_claim_is_nobodys",
    "the_nodes_own_processes_are_told_by_their_sockets",
    "datagrams_keep_to_the_rules",
    "exchanges_that_are_open_lose_their_right",
    "echoes_keep_to_the_rules",
    "what_is_explained_is_what_connect_says",
    "what_is_applied_is_in_force_when_the_command_returns",
    "flows_are_explained_by_what_judged_them",
    "a_pod_has_the_rights_of_its_labels",
    "a_namespace_that_comes_back_inherits_nothing",
    "who_gets_an_address_inherits_nothing",
    "an_address_of_somebody_else_gains_nothing",
    "what_becomes_of_open_connections_may_change",
    "an_agent_that_comes_back_knows_the_rules_first",
    "exceptions_end_without_an_agent",
    "older_connections_are_cut_by_the_platform_alone",
    "policy_of_others_raises_nobody_until_it_is_accepted",
    "a_process_of_the_node_is_judged_by_its_own_address",
    "what_a_pod_sends_within_its_link_is_judged",
    "each_kind_of_rule_decides",
];

fn main() -> ExitCode {
    harness::main(NAMES, run)
}

fn run(args: &Arguments) -> Result<bool> {
    if harness::without_mesh() {
        eprintln!("skipped: without a mesh there are no rules");
        return Ok(true);
    }
    let tests: [fn() -> Result<()>; 28] = [
        rules,
        ends::exceptions,
        open,
        revoked,
        restarted,
        audited,
        unfit::invalid,
        unfit::too_much,
        unfit::disputed,
        probed,
        datagrams::rules,
        datagrams::open,
        echoes::rules,
        asked::agreed,
        asked::applied,
        asked::explained,
        changes::relabelled,
        changes::recreated,
        changes::inherited,
        changes::forged,
        changes::revoked_otherwise,
        changes::meanwhile,
        ends::without_agent,
        older::cut,
        others::accepted,
        addresses::of_the_node,
        addresses::of_the_link,
        kinds::decide,
    ];
    let trials = NAMES.iter().zip(tests).map(|(name, test)| harness::trial(*name, test));
    Ok(harness::run_trials(args, trials.collect()))
}

fn rules() -> Result<()> {
    within("rules", Net::Routed, |world| {
        let free = [
            (("client-1", "server-1", OPEN), true),
            (("client-1", "server-2", SHUT), true),
            (("other-1", "server-1", OPEN), true),
            (("other-1", "server-2", OPEN), true),
            (("watched-1", "other-2", OPEN), true),
            (("clear-1", "server-1", SHUT), false),
            (("clear-1", "server-2", SHUT), false),
            (("client-1", "clear-1", OPEN), true),
            (("client-2", "clear-1", OPEN), true),
        ];
        world.all(&free)?;
        world.apply(TEAM).context("a team's rule")?;
        world.all(&[
            (("client-1", "server-1", OPEN), true),
            (("client-1", "server-2", OPEN), true),
            (("client-2", "server-1", OPEN), true),
            (("client-1", "server-1", SHUT), false),
            (("client-1", "server-2", SHUT), false),
            (("other-1", "server-1", OPEN), false),
            (("other-1", "server-2", OPEN), false),
        ])?;
        world.apply(EGRESS).context("a rule about where to go")?;
        world.all(&[
            (("client-1", "server-1", OPEN), true),
            (("client-1", "server-2", OPEN), true),
            (("client-1", "server-1", SHUT), false),
            (("client-1", "server-2", SHUT), false),
            (("client-1", "other-2", OPEN), false),
            (("other-1", "server-2", SHUT), true),
            // A Service that is not captured is no way round.
            (("client-1", "clear-1", OPEN), false),
            (("client-2", "clear-1", SHUT), false),
        ])?;
        world.apply(EGRESS_CLEAR).context("a rule about going outside of the mesh")?;
        world.all(&[(("client-1", "clear-1", OPEN), true), (("client-1", "clear-1", SHUT), false)])?;
        world.apply(KUBERNETES).context("a NetworkPolicy")?;
        world.all(&[
            (("client-1", "server-1", OPEN), false),
            (("client-1", "server-2", OPEN), false),
            (("other-1", "server-1", SHUT), true),
            (("other-1", "server-2", OPEN), true),
        ])?;
        world.apply(BASELINE).context("a baseline that denies what a team allows")?;
        let denied = [
            (("client-1", "server-1", OPEN), true),
            (("client-1", "server-2", OPEN), true),
            (("other-1", "server-1", OPEN), false),
            (("other-1", "server-2", OPEN), false),
        ];
        world.all(&denied)?;
        world.apply(CLEAR).context("a rule that takes an address for enough")?;
        world.all(&[
            (("clear-1", "server-1", SHUT), true),
            (("clear-1", "server-2", SHUT), true),
            (("clear-1", "server-1", OPEN), false),
            (("client-1", "server-2", SHUT), false),
        ])?;
        world.apply(OBSERVED).context("observe enforces nothing")?;
        world.all(&[(("watched-1", "other-2", OPEN), true)])?;
        world.apply("")?;
        world.all(&free)
    })
}

fn open() -> Result<()> {
    within("open", Net::Routed, |world| {
        let tries = [
            (("client-1", "server-1", OPEN), true),
            (("client-1", "server-2", OPEN), true),
            (("client-2", "server-1", OPEN), true),
            (("client-1", "server-1", SHUT), false),
            (("client-1", "server-2", SHUT), false),
            (("other-1", "server-1", OPEN), false),
            (("other-1", "server-2", OPEN), false),
            (("other-2", "server-1", OPEN), false),
            (("other-1", "other-2", SHUT), true),
            (("clear-1", "other-2", OPEN), true),
        ];
        let mut all = Vec::new();
        for (one, stays) in tries {
            all.extend(world.open(one, stays)?);
        }
        world.apply(TEAM)?;
        all.iter_mut().try_for_each(Open::check)?;
        // A higher stage refuses new ones, and cuts nobody.
        world.lab.set_stage("other", Stage::Strict)?;
        world.lab.wait_stage("other", Stage::Strict)?;
        all.iter_mut().filter(|open| open.stays).try_for_each(Open::check).context("after raising")?;
        world.all(&[(("clear-1", "other-2", OPEN), false), (("other-1", "other-2", OPEN), true)])?;
        // What a rule lets in though the stage would not goes with its rule.
        let mut ruled = {
            world.apply(CLEAR)?;
            world.open(("clear-1", "server-2", SHUT), false)?
        };
        world.apply(TEAM)?;
        ruled.iter_mut().try_for_each(Open::check).context("let in by a rule that is gone")
    })
}

fn revoked() -> Result<()> {
    within("revoked", Net::Routed, |world| {
        let tries = [("other-1", "server-1", OPEN), ("other-1", "server-2", OPEN)];
        let with = |on_revoke: &str| TEAM.replace("spec:", &format!("spec:\n  onRevoke: {on_revoke}"));
        let open = || -> Result<Vec<Open>> {
            Ok(tries
                .iter()
                .map(|one| world.open(*one, true))
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .flatten()
                .collect())
        };
        let mut kept = open()?;
        world.apply(&with("{action: keep}"))?;
        kept.iter_mut().try_for_each(Open::check).context("kept")?;
        world.all(&tries.map(|one| (one, false)))?;
        world.apply("")?;
        kept.iter_mut().try_for_each(Open::check).context("kept, and allowed again")?;
        world.apply(&with("{action: grace, seconds: 12}"))?;
        kept.iter_mut().try_for_each(Open::check).context("with a while left")?;
        kept.iter_mut().for_each(|open| open.stays = false);
        world.wait_closed("other-1").context("the while is over")?;
        kept.iter_mut().try_for_each(Open::check).context("after the while")
    })
}

fn restarted() -> Result<()> {
    within("restart", Net::Routed, |world| {
        let own = [
            (("client-1", "server-1", OPEN), true),
            (("client-1", "server-1", SHUT), false),
            (("other-1", "server-1", OPEN), false),
        ];
        let all =
            [own[0], own[1], own[2], (("client-1", "server-2", OPEN), true), (("other-1", "server-2", OPEN), false)];
        world.apply(TEAM)?;
        world.all(&all)?;
        world.lab.kill_agent(1)?;
        // By the pods' own addresses: a Service's pod is chosen by the agent.
        for (one, allowed) in own {
            world.check_by_pod(one, allowed).context("while the agent is dead")?;
        }
        let policy = world.lab.manifests().join("policy.yaml");
        std::fs::write(&policy, format!("{TEAM}\n: no YAML")).context("a bad file")?;
        world.lab.start_agent(1)?;
        world.all(&all).context("after a start with a bad file")?;
        world.lab.kill_agent(1)?;
        std::fs::write(&policy, EGRESS).context("another policy")?;
        world.lab.start_agent(1)?;
        world.all(&[
            (("client-1", "other-2", OPEN), false),
            (("client-1", "server-1", SHUT), false),
            (("client-1", "server-1", OPEN), true),
            (("other-1", "server-1", OPEN), true),
        ])
    })
}

/// Sources and ports of flows that `kumiko flows --would-deny` lists on a node, by their destination's port.
fn would_deny(world: &World, node: u8) -> Result<BTreeSet<(String, u64)>> {
    let flows = world.lab.admin(node, "/v1/flows?wouldDeny=true&limit=1000")?;
    let one = |flow: &Value| {
        let source = flow.pointer("/source/name").and_then(Value::as_str)?;
        // Behind a Service's address, the pod's own port.
        Some((source.to_owned(), flow.pointer("/destination/port").and_then(Value::as_u64)?))
    };
    Ok(flows.as_array().into_iter().flatten().filter_map(one).collect())
}

fn audited() -> Result<()> {
    within("audit", Net::Routed, |world| {
        // Nothing is refused that was let before, and everything is told that would be.
        world.apply(AUDITED)?;
        let tries = [("client-1", "server-1", OPEN), ("client-1", "server-1", SHUT), ("other-1", "server-1", OPEN)];
        let far = [("client-1", "server-2", OPEN), ("client-1", "server-2", SHUT), ("other-1", "server-2", OPEN)];
        world.all(&tries.map(|one| (one, true)))?;
        world.all(&far.map(|one| (one, true)))?;
        // To the permissive one in the clear: strict would refuse that.
        world.all(&[(("clear-1", "other-2", OPEN), true)])?;
        let set = |all: &[(&str, u16)]| -> BTreeSet<(String, u64)> {
            all.iter().map(|(name, port)| ((*name).to_owned(), u64::from(*port))).collect()
        };
        let near = set(&[("client-1", SHUT), ("other-1", OPEN)]);
        let both = set(&[("client-1", SHUT), ("other-1", OPEN), ("clear-1", OPEN)]);
        wait_for("what would be refused is told", Duration::from_secs(20), || {
            let told = [would_deny(world, 1)?, would_deny(world, 2)?];
            ensure!(told == [near.clone(), both.clone()], "{told:?}");
            Ok(())
        })?;
        let socket = world.lab.dir().join("n2/run/admin.sock");
        let listed = std::process::Command::new(binary("kumiko")?)
            .args(["--socket", &socket.to_string_lossy(), "flows", "--would-deny", "--from", "other/"])
            .output()?;
        let text = String::from_utf8_lossy(&listed.stdout);
        ensure!(listed.status.success() && text.contains("audit would refuse it"), "{text}");
        Ok(())
    })
}

/// In a bridged network the node speaks to its pods from the bridge's address, which no document names.
fn probed() -> Result<()> {
    within("probed", Net::Bridged, |world| {
        let node = &world.lab.node(1)?.netns;
        let peer = |name: &str| Peer::start(node, &world.lab.dir().join(format!("peer-{name}.log")));
        let (kubelet, other) = (peer("kubelet")?, peer("other")?);
        let group = state::kubelet_cgroup(&world.lab.state.id, 1)?.join("cgroup.procs");
        std::fs::write(&group, kubelet.pid().to_string()).context("the kubelet's group")?;
        let ask = |caller: &Peer, port: u16, refused: bool| -> Result<()> {
            for family in [Family::V4, Family::V6] {
                let to = SocketAddr::new(world.lab.pod("server-1")?.ip(family), port);
                let report = caller.connect(to, 1, vec![Step::Close])?.report()?;
                ensure!(report.connect.as_deref() == refused.then_some("ECONNREFUSED"), "{to}: {report:?}");
            }
            Ok(())
        };
        for (policy, text, to_probed) in [
            ("none", "", true),
            ("Kubernetes lets a pod's own node", NOBODY, true),
            ("a team names probes", PROBES, true),
            ("a team names others", TEAM, false),
        ] {
            if !text.is_empty() {
                world.apply(text).context(policy)?;
                world.all(&[(("client-1", "server-1", SHUT), false)]).context(policy)?;
            }
            ask(&kubelet, PROBED, !to_probed).with_context(|| format!("kubelet: {policy}"))?;
            ask(&kubelet, OPEN, true).with_context(|| format!("kubelet, another port: {policy}"))?;
            ask(&other, PROBED, true).with_context(|| format!("another process: {policy}"))?;
        }
        Ok(())
    })
}
