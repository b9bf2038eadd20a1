//! Policy from documents: what only all of them together can say is checked here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kumiko_abi::Stage;
use thiserror::Error;

use super::judge::Policies;
use super::object::Mode;
use super::rule::{Direction, Exception, List, Object, ObjectId, ObjectKind, Rule, Suspended};
use super::selector::{Selector, Who};
use super::settings::Settings;
use crate::manifest::{self, Claim, Kind, Place, PlatformLabel, STAGE_LABEL};
use crate::principal::Principal;
use crate::stage;

/// Policy that may be judged by.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Loaded {
    /// Who may talk to whom.
    pub policies: Policies,
    /// What the platform decides.
    pub settings: Settings,
    /// Files of the objects and their places there, by `kind/namespace/name` or `kind/name`.
    pub files: BTreeMap<String, (String, Place)>,
    /// Why some of it would not do what it says; while there is any, no verdict is sure.
    pub problems: Vec<Told>,
    /// What of it would not.
    unfit: BTreeSet<ObjectId>,
    /// Something of the platform's would not.
    platform_unfit: bool,
}

/// A problem with its place.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{file}:{}:{}: {problem}", place.line, place.column)]
pub struct Told {
    /// File, relative to the folder.
    pub file: String,
    /// Where in it.
    pub place: Place,
    /// What.
    pub problem: Unfit,
}

/// Why an object would not do what it says.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Unfit {
    /// A label that the namespace's own team may set.
    #[error(
        "{object}: {path}: {key:?} is no label of the platform's: a team that sets it would choose for itself; list its \
         prefix in MeshSettings' platformLabelPrefixes, or choose by namespace"
    )]
    TeamsLabel {
        /// The object.
        object: String,
        /// The field.
        path: String,
        /// The label.
        key: String,
    },
    /// An exception suspends what is not there.
    #[error(
        "{exception}: there is no {rule} in a MeshBaseline {baseline}: see its name, or remove it from spec.suspends"
    )]
    NothingToSuspend {
        /// The exception.
        exception: String,
        /// The baseline that it names.
        baseline: String,
        /// The rule that it names.
        rule: String,
    },
    /// A namespace's stage is below what the platform wants of it.
    #[error(
        "Namespace {namespace}: its stage {} is below {}, the lowest that MeshSettings' minStage lets it have, which it has \
         instead: raise its label {STAGE_LABEL}", stage::name(*is), stage::name(*least)
    )]
    StageTooLow {
        /// The namespace.
        namespace: String,
        /// Its stage.
        is: Stage,
        /// The lowest that it may have.
        least: Stage,
    },
    /// A SPIFFE ID that nobody here has.
    #[error(
        "{object}: {id} is not of the trust domain {domains}: nobody here has it, so that a rule which denies by it would \
         deny nobody; mend it, or say --trust-domain or MeshSettings' trustDomains"
    )]
    TrustDomain {
        /// The object.
        object: String,
        /// The SPIFFE ID.
        id: String,
        /// What it may be of.
        domains: String,
    },
    /// The settings do not know this agent's own trust domain.
    #[error(
        "MeshSettings: spec.trustDomains does not list {own}, the trust domain of this agent: add it, or give the agent \
         another --trust-domain"
    )]
    OwnTrustDomain {
        /// The agent's.
        own: String,
    },
    /// A policy in audit takes the place of none.
    #[error("{policy}: there is no MeshPolicy {replaced} to replace: see its name, or remove it from spec.replaces")]
    NothingToReplace {
        /// The policy.
        policy: String,
        /// What it names.
        replaced: String,
    },
    /// A rule that allows names nobody ([`super::nobody`]).
    #[error(
        "{object}: {rule} allows nobody, for no workload is whom it names (a warning): see its namespace, account and labels; \
         it holds for who is to come"
    )]
    AllowsNobody {
        /// The object.
        object: String,
        /// The rule.
        rule: String,
    },
    /// A rule that denies names nobody.
    #[error(
        "{object}: {rule} denies nobody, for no workload is whom it names, so the object is degraded: mend its namespace, \
         account or SPIFFE ID, or remove the rule; it holds for who is to come"
    )]
    DeniesNobody {
        /// The object.
        object: String,
        /// The rule.
        rule: String,
    },
}

impl Unfit {
    /// Whether it is made good by itself, and only told: a namespace has the lowest stage that it may have.
    pub fn is_made_good(&self) -> bool {
        matches!(self, Self::StageTooLow { .. })
    }

    /// Whether it is told in passing: nothing is wrong yet.
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::AllowsNobody { .. })
    }
}

impl Loaded {
    /// Whether it may come into force: what the platform says does what it says. A team's policy that does not is held back
    /// alone ([`Self::with_teams_of`]), or a team could keep the platform's next word from everybody.
    pub fn is_fit(&self) -> bool {
        !self.platform_unfit
    }

    /// Files whose new versions are not in force as they stand.
    pub fn unfit_files(&self) -> impl Iterator<Item = &str> {
        self.problems.iter().filter(|told| !told.problem.is_made_good()).map(|told| told.file.as_str())
    }

    /// The same, with the versions that were in force before of the teams' policies that are not fit. One of which none was does
    /// not count as none: whom it selects is refused what no other one allows.
    pub fn with_teams_of(self: Arc<Self>, before: &Self) -> Arc<Self> {
        if self.unfit.is_empty() {
            return self;
        }
        let was = |id: &ObjectId| before.policies.objects().iter().find(|object| object.id == *id && !object.invalid);
        let instead = |object: &Arc<Object>| -> Option<Object> {
            if !self.unfit.contains(&object.id) {
                return Some(Object::clone(object));
            }
            let closed = || (object.mode == Mode::Enforce).then(|| object.closed());
            was(&object.id).map(|known| Object::clone(known)).or_else(closed)
        };
        let objects = self.policies.objects().iter().filter_map(instead).collect();
        let exceptions = self.policies.exceptions().iter().map(|exception| Exception::clone(exception)).collect();
        Arc::new(Self { policies: Policies::new(objects, exceptions), ..Self::clone(&self) })
    }

    /// What may be in force of it, where nothing was before: what does what it says. Whom a team's policy selects that does not
    /// is refused what no other one allows.
    pub fn fit_part(&self) -> Self {
        let fit = |id: &ObjectId| !self.unfit.contains(id);
        let objects = self.policies.objects().iter().filter_map(|object| {
            let closes = object.id.kind == ObjectKind::MeshPolicy && object.mode == Mode::Enforce;
            if fit(&object.id) { Some(Object::clone(object)) } else { closes.then(|| object.closed()) }
        });
        let exceptions = self.policies.exceptions().iter().filter(|exception| fit(&exception.id()));
        let policies =
            Policies::new(objects.collect(), exceptions.map(|exception| Exception::clone(exception)).collect());
        Self {
            policies,
            settings: self.settings.clone(),
            files: self.files.clone(),
            problems: Vec::new(),
            unfit: BTreeSet::new(),
            platform_unfit: false,
        }
    }

    /// What was in force goes on while `wanted` is not fit. Policies that are new there do not count as none: whom they
    /// select is refused what no other one allows.
    pub fn going_on(&self, wanted: &Self) -> Self {
        let mut objects: Vec<Object> = self
            .policies
            .objects()
            .iter()
            .filter(|object| !object.invalid)
            .map(|object| Object::clone(object))
            .collect();
        let known: BTreeSet<ObjectId> = objects.iter().map(|object| object.id.clone()).collect();
        let new = wanted.policies.objects().iter().filter(|object| {
            let closes = matches!(object.id.kind, ObjectKind::MeshPolicy | ObjectKind::NetworkPolicy);
            closes && object.mode == Mode::Enforce && !known.contains(&object.id)
        });
        objects.extend(new.map(|object| object.closed()));
        let exceptions = self.policies.exceptions().iter().map(|exception| Exception::clone(exception)).collect();
        Self { policies: Policies::new(objects, exceptions), ..self.clone() }
    }
}

/// Takes the policy among objects, each with its file. SPIFFE IDs may be of any trust domain, unless the settings list some.
pub fn load<'a>(objects: impl IntoIterator<Item = (&'a str, &'a manifest::Object)>) -> Loaded {
    load_in(None, objects)
}

/// The same for who is of a trust domain.
pub fn load_in<'a>(
    trust_domain: Option<&str>,
    objects: impl IntoIterator<Item = (&'a str, &'a manifest::Object)>,
) -> Loaded {
    let (mut policies, mut exceptions, mut settings) = (Vec::new(), Vec::new(), Settings::default());
    let (mut namespaces, mut files, mut settings_at) = (Vec::new(), BTreeMap::new(), None);
    for (file, object) in objects {
        if matches!(object.kind, Kind::Policy(_) | Kind::Exception(_) | Kind::Settings(_)) {
            files.extend(names(object).map(|name| (name, (file.to_owned(), object.place))));
        }
        match &object.kind {
            Kind::Policy(policy) => policies.push((file, object.place, policy)),
            Kind::Exception(exception) => exceptions.push((file, object.place, exception)),
            Kind::Settings(found) => {
                settings = found.clone();
                settings_at = Some((file, object.place));
            }
            Kind::Namespace(namespace) => namespaces.push((file, object.place, namespace)),
            _ => {}
        }
    }
    let (mut problems, mut unfit) = (Vec::new(), BTreeSet::new());
    let mut told = |file: &str, place, problem| problems.push(Told { file: file.to_owned(), place, problem });
    let listed = settings.trust_domains.iter().map(String::as_str);
    let domains: Vec<&str> =
        if settings.trust_domains.is_empty() { trust_domain.into_iter().collect() } else { listed.collect() };
    let mut platform_unfit = false;
    if let (Some(own), Some((file, place))) = (trust_domain.filter(|own| !domains.contains(own)), settings_at) {
        platform_unfit = true;
        told(file, place, Unfit::OwnTrustDomain { own: own.to_owned() });
    }
    let strange = |object: &str, subject: &Selector, rules: &[&Rule]| -> Vec<Unfit> {
        if domains.is_empty() {
            return Vec::new();
        }
        let others = principals(subject, rules).filter(|principal| !domains.contains(&principal.trust_domain.as_str()));
        let unfit = |principal: &Principal| Unfit::TrustDomain {
            object: object.to_owned(),
            id: principal.to_string(),
            domains: domains.join(" or "),
        };
        others.map(unfit).collect()
    };
    for (file, place, namespace) in namespaces {
        if let Some(least) = settings.least(&namespace.labels).filter(|least| namespace.stage < *least) {
            let (namespace, is) = (namespace.name.clone(), namespace.stage);
            told(file, place, Unfit::StageTooLow { namespace, is, least });
        }
    }
    let foreign = |labels: &[PlatformLabel], object: &str| -> Vec<(Place, Unfit)> {
        let labels = labels.iter().filter(|label| !settings.is_platforms(&label.key));
        let unfit = |label: &PlatformLabel| Unfit::TeamsLabel {
            object: object.to_owned(),
            path: label.path.clone(),
            key: label.key.clone(),
        };
        labels.map(|label| (label.place, unfit(label))).collect()
    };
    let names: BTreeSet<_> = policies.iter().map(|(_, _, policy)| &policy.object.id).collect();
    for (file, place, policy) in &policies {
        let id = &policy.object.id;
        for (place, problem) in foreign(&policy.platform_labels, &id.to_string()) {
            unfit.insert(id.clone());
            told(file, place, problem);
        }
        let both = [&policy.object.ingress, &policy.object.egress].into_iter().flatten();
        let rules: Vec<&Rule> = both.flat_map(|rules| &rules.rules).collect();
        for problem in strange(&id.to_string(), &policy.object.subject, &rules) {
            unfit.insert(id.clone());
            told(file, *place, problem);
        }
        for name in &policy.object.replaces {
            let wanted = super::rule::ObjectId { name: name.clone(), ..id.clone() };
            if !names.contains(&wanted) {
                let replaced = format!("{}/{name}", id.namespace);
                unfit.insert(id.clone());
                told(file, *place, Unfit::NothingToReplace { policy: id.to_string(), replaced });
            }
        }
    }
    let baselines = policies.iter().map(|(_, _, policy)| &policy.object);
    let baselines: BTreeMap<&str, &Object> = baselines
        .filter(|object| object.id.kind == ObjectKind::MeshBaseline)
        .map(|object| (object.id.name.as_str(), object))
        .collect();
    for (file, place, exception) in &exceptions {
        let id = exception.exception.id();
        let name = id.to_string();
        for (place, problem) in foreign(&exception.platform_labels, &name) {
            unfit.insert(id.clone());
            told(file, place, problem);
        }
        for problem in strange(&name, &exception.exception.subject, &[&exception.exception.rule]) {
            unfit.insert(id.clone());
            told(file, *place, problem);
        }
        let unknown = |suspended: &&Suspended| {
            !baselines.get(suspended.baseline.as_str()).is_some_and(|baseline| has(baseline, suspended))
        };
        for suspended in exception.exception.suspends.iter().filter(unknown) {
            let (baseline, rule) = (suspended.baseline.clone(), suspended.to_string());
            unfit.insert(id.clone());
            told(file, *place, Unfit::NothingToSuspend { exception: name.clone(), baseline, rule });
        }
    }
    platform_unfit |= unfit.iter().any(|id| id.kind != ObjectKind::MeshPolicy);
    let objects: Vec<Object> = policies.iter().map(|(_, _, policy)| policy.object.clone()).collect();
    let exceptions: Vec<Exception> = exceptions.iter().map(|(_, _, exception)| exception.exception.clone()).collect();
    Loaded { policies: Policies::new(objects, exceptions), settings, files, problems, unfit, platform_unfit }
}

/// The name that an object claims.
fn names(object: &manifest::Object) -> impl Iterator<Item = String> + '_ {
    object.claims.iter().filter_map(|(claim, _)| match claim {
        Claim::Name(kind, namespace, name) if namespace.is_empty() => Some(format!("{kind}/{name}")),
        Claim::Name(kind, namespace, name) => Some(format!("{kind}/{namespace}/{name}")),
        _ => None,
    })
}

/// SPIFFE IDs that something chooses by.
fn principals<'a>(subject: &'a Selector, rules: &'a [&Rule]) -> impl Iterator<Item = &'a Principal> {
    let peers = rules.iter().flat_map(|rule| rule.peers.iter().flatten());
    let chosen = peers.filter_map(|who| if let Who::Workload(selector) = who { Some(selector) } else { None });
    chosen.chain([subject]).filter_map(|selector| selector.principal.as_ref())
}

/// Whether a baseline has what is to be suspended.
fn has(baseline: &Object, suspended: &Suspended) -> bool {
    let rules = match suspended.direction {
        Direction::Ingress => &baseline.ingress,
        Direction::Egress => &baseline.egress,
    };
    rules.as_ref().is_some_and(|rules| match &suspended.deny {
        Some(name) => rules.of(&[List::Deny]).any(|rule| rule.name == *name),
        None => rules.ceiling,
    })
}
