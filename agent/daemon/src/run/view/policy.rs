//! What the admin API says of policy.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{MutexGuard, PoisonError};

use kumiko_core::api::{Applied, AppliedState, PolicyObjectView, SetView, SetsView};
use kumiko_core::flow_record::hex_id;
use kumiko_core::policy::ask::{Asking, NoFlow};
use kumiko_core::policy::explain::{Claims, Explanation, InForce, PeerEpoch, explain, name, waits};
use kumiko_core::policy::history::History;
use kumiko_core::policy::list;
use kumiko_core::policy::rule::ObjectKind;
use kumiko_core::policy::seen::explain_seen;
use kumiko_core::policy::verdict::{End, Evaluator};

use super::View;
use crate::admin::{AppliedQuery, ExplainQuery, PolicyState};
use crate::clock;
use crate::source::Version;

/// Where names are looked up.
const PLACE: &str = "the model that is in force";

impl View {
    fn history(&self) -> MutexGuard<'_, History> {
        // A panic ends the process, so a poisoned lock cannot be met; taking the value keeps this total.
        self.reconciled.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl View {
    /// How old is what the source says of the ends of a flow that are workloads.
    fn claims(&self, ends: [&End; 2]) -> Vec<Claims> {
        let (known, now) = (self.source.since.lock().unwrap_or_else(PoisonError::into_inner), clock::unix_seconds());
        let one = |end: &&End| {
            let workload = end.workload.as_ref()?;
            let since = known.of(workload)?;
            Some(Claims { workload: name(end), since, age: now.saturating_sub(since).max(0) })
        };
        ends.iter().filter_map(one).collect()
    }

    /// What the nodes of ends that are workloads elsewhere judge by, as far as flows have told.
    fn peers(&self, ends: [&End; 2]) -> Vec<PeerEpoch> {
        let nodes = ends.iter().filter_map(|end| Some(end.workload.as_ref()?.node.as_str()));
        let others: BTreeSet<&str> = nodes.filter(|node| !node.is_empty() && *node != &*self.common.node).collect();
        let now = clock::monotonic_ns();
        let one = |node: &str| {
            let told = self.telemetry.peer_epoch(node);
            let age =
                told.map(|(_, began)| i64::try_from(now.saturating_sub(began) / 1_000_000_000).unwrap_or(i64::MAX));
            PeerEpoch { node: node.to_owned(), epoch: told.map(|(epoch, _)| epoch), age }
        };
        others.into_iter().map(one).collect()
    }

    /// Whether a file has policies of namespaces whose teams' policies are not in force.
    fn is_held_back(&self, file: &str, held: &[String]) -> bool {
        let world = self.source.world.borrow();
        let files = &world.policy().files;
        let of = |namespace: &String| {
            let kinds = [ObjectKind::MeshPolicy, ObjectKind::NetworkPolicy];
            let heads = kinds.map(|kind| format!("{}/{namespace}/", kind.name()));
            files.iter().any(|(name, (of, _))| of == file && heads.iter().any(|head| name.starts_with(head.as_str())))
        };
        held.iter().any(of)
    }

    fn explain_asked(&self, asked: &Asking) -> Result<Explanation, String> {
        self.telemetry.settle();
        let (epoch, world) = {
            let history = self.history();
            let (epoch, world) = history.now().map_err(|unknown| unknown.to_string())?;
            (epoch, world.clone())
        };
        let flow = asked.flow(&world, PLACE).map_err(|no_flow| match &no_flow {
            NoFlow::Nobody { .. } if asked.flow(&self.reconciled.state.load().world, PLACE).is_ok() => {
                format!("{no_flow} yet, so it is refused everything: see `kumiko status`")
            }
            _ => no_flow.to_string(),
        })?;
        let answer = explain(&Evaluator::of(&world), &flow, clock::unix_seconds());
        let (policy, source) = (self.reconciled.state.load().policy(), self.source.status.borrow().epoch);
        let waits = waits(&policy.problem, policy.source_epoch, source);
        let claims = self.claims([&flow.source, &flow.destination]);
        let peers = self.peers([&flow.source, &flow.destination]);
        Ok(answer.in_force(InForce { node: self.common.node.to_string(), epoch, now: true, waits, claims, peers }))
    }
}

impl PolicyState for View {
    fn explain(&self, asked: &ExplainQuery) -> Result<Explanation, String> {
        let id = match asked {
            ExplainQuery::Asked(asked) => return self.explain_asked(asked),
            ExplainQuery::Seen(id) => *id,
        };
        self.telemetry.settle();
        let gone = || {
            format!(
                "no flow {} is known here: this node never saw it, or its record made place for newer ones (`kumiko flows` \
                 lists those that are kept)",
                hex_id(id)
            )
        };
        let record = self.telemetry.find(id).ok_or_else(gone)?;
        explain_seen(&record, &self.history())
    }

    fn policy(&self) -> Result<Vec<PolicyObjectView>, String> {
        let world = self.history().now().map_err(|unknown| unknown.to_string())?.1.clone();
        Ok(list::list(&world, &self.common.node, clock::unix_seconds()))
    }

    fn applied(&self, asked: &AppliedQuery) -> Result<Applied, String> {
        drop(self.history());
        let (version, refused) = {
            let held = self.source.held.lock().unwrap_or_else(PoisonError::into_inner);
            (held.files.get(&asked.file).copied(), held.refused.clone())
        };
        let node = self.reconciled.state.load();
        let policy = node.policy();
        let state = match version {
            Some(Version { read, .. }) if read != asked.digest => AppliedState::Unread,
            None => AppliedState::Unread,
            Some(Version { in_force: Some((digest, epoch)), .. }) if digest == asked.digest => {
                // The other way round a flow could be told to end between the two looks.
                let held = || self.is_held_back(&asked.file, &policy.held);
                if policy.source_epoch < epoch || held() || node.changes_stages() || self.common.registry.ends() {
                    AppliedState::Coming
                } else {
                    AppliedState::InForce
                }
            }
            Some(_) => AppliedState::Refused,
        };
        Ok(Applied { state, epoch: policy.epoch, problem: policy.problem, diagnostics: refused })
    }

    fn change(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (mut source, mut passes) = (self.source.status.clone(), self.reconciled.changed.clone());
        let mut ended = self.common.registry.ended();
        source.mark_unchanged();
        passes.mark_unchanged();
        Box::pin(async move {
            let changed = tokio::select! {
                changed = source.changed() => changed.is_ok(),
                changed = passes.changed() => changed.is_ok(),
                changed = ended.changed() => changed.is_ok(),
            };
            if !changed {
                // The agent is ending: nothing changes any more.
                std::future::pending::<()>().await;
            }
        })
    }

    fn sets(&self) -> Result<SetsView, String> {
        let world = self.history().now().map_err(|unknown| unknown.to_string())?.1.clone();
        let state = self.reconciled.state.load_full();
        let image = state.verdicts().ok_or("no verdicts are in force yet: see `kumiko status`")?;
        let evaluator = Evaluator::of(&world);
        let sizes = image.sizes();
        let mut sets: BTreeMap<u32, SetView> = BTreeMap::new();
        for (uid, id) in &image.ends {
            let set = sets.entry(*id).or_insert_with(|| {
                let size = sizes.get(id).copied().unwrap_or_default();
                SetView {
                    id: *id,
                    classes: size.classes,
                    columns: size.columns,
                    cells: size.cells,
                    bytes: size.bytes,
                    ..SetView::default()
                }
            });
            let Some(workload) = world.workload(uid) else { continue };
            if set.workloads.is_empty() {
                set.objects =
                    list::about(&evaluator, evaluator.member(workload)).iter().map(ToString::to_string).collect();
            }
            set.workloads.push(format!("{}/{}", workload.namespace, workload.name));
        }
        sets.values_mut().for_each(|set| set.workloads.sort());
        Ok(SetsView { epoch: image.epoch, sets: sets.into_values().collect(), tables: image.uses() })
    }
}
