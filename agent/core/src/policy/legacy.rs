//! What becomes of connections that are older than their pod's enrolment: they go on, but for what the platform says.

use kumiko_abi::Reason;

use super::compile::reason;
use super::judge::{Policies, Proof, Term, View};
use super::revoke::Refused;
use super::settings::Settings;
use super::verdict::{Evaluator, Flow, Judged};

/// What becomes of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It goes on.
    GoesOn,
    /// It has so many seconds left.
    Left(i64),
    /// It has to end now.
    Ends(Reason),
}

/// Whether any of them can have to end.
pub fn can_end(policies: &Policies, settings: &Settings) -> bool {
    settings.legacy_max_age.is_some() || cutting(policies)
}

fn cutting(policies: &Policies) -> bool {
    policies.objects().iter().any(|object| object.cut_legacy)
}

/// What becomes of a connection that kumiko has known for `age` seconds, at a moment (seconds since 1970). `refused` is what the
/// rules say of it as it is: in the clear, so that an address alone speaks for its ends. A baseline that cuts is asked about
/// whom the addresses mean: that nobody proved it is not what it denies.
pub fn fate(evaluator: &Evaluator<'_>, flow: &Flow, refused: Option<Refused>, age: i64, now: i64) -> Fate {
    if let Some(reason) = cut_by_baseline(evaluator, flow, now) {
        return Fate::Ends(reason);
    }
    match (refused, evaluator.settings.legacy_max_age) {
        (Some(Refused { reason, .. }), Some(most)) if age >= i64::from(most) => Fate::Ends(reason),
        (Some(_), Some(most)) => Fate::Left(i64::from(most) - age),
        _ => Fate::GoesOn,
    }
}

/// Of a connection that nobody saw begin, from what would become of it whichever end began it: what a baseline denies in either
/// direction ends, anything else if it has to in both.
pub fn either(one: Fate, other: Fate) -> Fate {
    match (one, other) {
        (Fate::Ends(Reason::BaselineDenied), _) | (_, Fate::Ends(Reason::BaselineDenied)) => {
            Fate::Ends(Reason::BaselineDenied)
        }
        (Fate::GoesOn, _) | (_, Fate::GoesOn) => Fate::GoesOn,
        (Fate::Left(one), Fate::Left(other)) => Fate::Left(one.max(other)),
        (Fate::Left(left), Fate::Ends(_)) | (Fate::Ends(_), Fate::Left(left)) => Fate::Left(left),
        (Fate::Ends(reason), Fate::Ends(_)) => Fate::Ends(reason),
    }
}

fn cut_by_baseline(evaluator: &Evaluator<'_>, flow: &Flow, now: i64) -> Option<Reason> {
    if !cutting(evaluator.policies) {
        return None;
    }
    let verdict = evaluator.judge_proved(flow, Proof::Tls, now, View::Enforced);
    let cut = |judged: &Judged<'_>| -> Option<Reason> {
        let side = judged.side.as_ref().filter(|_| judged.enforced())?;
        let refusing =
            side.answers.iter().filter(|answer| matches!(answer.term, Term::Deny | Term::Ceiling) && !answer.holds);
        refusing
            .filter(|answer| answer.by.iter().any(|by| by.object.cut_legacy))
            .map(|answer| reason(answer.term))
            .next()
    };
    cut(&verdict.egress).or_else(|| cut(&verdict.ingress))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_began_it() {
        let (denied, capped) = (Fate::Ends(Reason::BaselineDenied), Fate::Ends(Reason::AboveCeiling));
        for (one, other, expected) in [
            (denied, Fate::GoesOn, denied),
            (capped, denied, denied),
            (capped, Fate::GoesOn, Fate::GoesOn),
            (capped, capped, capped),
            (capped, Fate::Left(3), Fate::Left(3)),
            (Fate::Left(5), Fate::Left(3), Fate::Left(5)),
            (Fate::Left(5), Fate::GoesOn, Fate::GoesOn),
        ] {
            assert_eq!((either(one, other), either(other, one)), (expected, expected));
        }
    }
    use crate::manifest::{Protocol, Scope, parse_in};
    use crate::model::World;
    use crate::policy::port::Asked;
    use crate::policy::verdict::End;
    use kumiko_abi::policy::REVOKE_CUT;

    /// Of a connection from a to b, whose rules are `more`.
    fn of(more: &str, stage: &str, refused: Option<Reason>, age: i64) -> Fate {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: n, labels: {{kumiko.dev/stage: {stage}}}}}\n---\n\
             apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: a, namespace: n, uid: a}}\n\
             spec: {{serviceAccount: a, node: n1, ips: [10.0.0.1]}}\n---\n\
             apiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: b, namespace: n, uid: b}}\n\
             spec: {{serviceAccount: b, node: n2, ips: [10.0.0.2]}}\n---\n{more}"
        );
        let objects = parse_in(Scope::Policy, "f", &text).unwrap_or_else(|problems| panic!("{}", problems[0]));
        let (world, _) = World::build("td", 1, objects.iter().map(|object| ("f", object))).unwrap();
        let end = |ip: &str| End::at(&world, ip.parse().unwrap());
        let asked = Asked { protocol: Protocol::Tcp, port: 80 };
        let flow = Flow::new(end("10.0.0.1"), end("10.0.0.2"), asked);
        let refused = refused.map(|reason| Refused { reason, revoke: REVOKE_CUT });
        let evaluator = Evaluator::of(&world);
        let fate = fate(&evaluator, &flow, refused, age, 0);
        assert!(can_end(evaluator.policies, evaluator.settings) || fate == Fate::GoesOn, "{more}");
        fate
    }

    fn settings(age: &str) -> String {
        format!(
            "apiVersion: kumiko.dev/v1alpha1\nkind: MeshSettings\nmetadata: {{name: mesh}}\nspec: {{legacyMaxAge: {age}}}\n"
        )
    }

    fn baseline(spec: &str) -> String {
        format!(
            "apiVersion: kumiko.dev/v1alpha1\nkind: MeshBaseline\nmetadata: {{name: b}}\nspec: {{subject: {{namespace: n}}, {spec}}}\n"
        )
    }

    #[test]
    fn what_the_rules_refuse_goes_on_for_a_while() {
        let refused = Some(Reason::PeerUnproved);
        assert_eq!(of("", "strict", refused, 1_000_000), Fate::GoesOn);
        assert_eq!(of(&settings("24h"), "strict", refused, 86_399), Fate::Left(1));
        assert_eq!(of(&settings("1d"), "strict", refused, 86_400), Fate::Ends(Reason::PeerUnproved));
        assert_eq!(of(&settings("30s"), "strict", refused, 30), Fate::Ends(Reason::PeerUnproved));
        assert_eq!(of(&settings("2m"), "strict", refused, 110), Fate::Left(10));
        assert_eq!(of(&settings("1s"), "strict", None, 1_000_000), Fate::GoesOn, "the rules let it");
    }

    #[test]
    fn a_baseline_that_cuts_ends_what_it_denies_and_nothing_else() {
        let refused = Some(Reason::BaselineDenied);
        let deny = "ingress: {deny: [{name: a, from: [{namespace: n, serviceAccount: a}]}]}";
        assert_eq!(of(&baseline(deny), "strict", refused, 0), Fate::GoesOn, "it does not say so");
        let cuts = format!("cutLegacy: true, {deny}");
        assert_eq!(of(&baseline(&cuts), "strict", refused, 0), Fate::Ends(Reason::BaselineDenied));
        assert_eq!(of(&baseline(&cuts), "observe", refused, 0), Fate::GoesOn, "nothing is enforced");
        assert_eq!(of(&baseline(&format!("mode: audit, {cuts}")), "strict", refused, 0), Fate::GoesOn);
        let others = cuts.replace("serviceAccount: a", "serviceAccount: c");
        assert_eq!(of(&baseline(&others), "strict", Some(Reason::TeamDefault), 0), Fate::GoesOn, "a team refuses it");
        // A ceiling has it, though nobody proved so.
        let ceiling = "cutLegacy: true, egress: {allow: [{name: b, to: [{namespace: n, serviceAccount: b}]}]}";
        assert_eq!(of(&baseline(ceiling), "strict", Some(Reason::AboveCeiling), 0), Fate::GoesOn);
        let nobody = "cutLegacy: true, egress: {allow: []}";
        assert_eq!(of(&baseline(nobody), "strict", None, 0), Fate::Ends(Reason::AboveCeiling));
    }
}
