//! Policy from documents: what only all of them together can say is checked here.

mod held;
mod stages;
mod unfit;

pub use held::Held;
pub use unfit::{Told, Unfit};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::foreign::{ForeignObject, Gates, Raised};
use super::judge::Policies;
use super::object::Mode;
use super::rule::{Direction, Exception, List, Object, ObjectId, ObjectKind, Rule, Suspended};
use super::selector::{Selector, Who};
use super::settings::Settings;
use crate::manifest::{self, Claim, Kind, Place, PlatformLabel};
use crate::principal::Principal;

/// Policy that may be judged by.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Loaded {
    /// Who may talk to whom.
    pub policies: Policies,
    /// What the platform decides.
    pub settings: Settings,
    /// Files of the objects and their places there, by `kind/namespace/name` or `kind/name`.
    pub files: BTreeMap<String, (String, Place)>,
    /// Policy that is not enforced, and whether the platform has accepted its kind.
    pub foreign: Vec<(ForeignObject, bool)>,
    /// How high it lets namespaces be.
    pub gates: Gates,
    /// Why some of it would not do what it says; while there is any, no verdict is sure.
    pub problems: Vec<Told>,
    /// What of it would not.
    unfit: BTreeSet<ObjectId>,
    /// Something of the platform's would not.
    platform_unfit: bool,
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
        Arc::new(self.with_before(before, |id| self.unfit.contains(id)))
    }

    /// The same with the versions of `before` of some objects. One of which none was there is without its rules: whom it selects is
    /// refused what no other one allows.
    fn with_before(&self, before: &Self, is_meant: impl Fn(&ObjectId) -> bool) -> Self {
        let was = |id: &ObjectId| before.policies.objects().iter().find(|object| object.id == *id && !object.invalid);
        let instead = |object: &Arc<Object>| -> Option<Object> {
            if !is_meant(&object.id) {
                return Some(Object::clone(object));
            }
            let closed = || (object.mode == Mode::Enforce).then(|| object.closed());
            was(&object.id).map(|known| Object::clone(known)).or_else(closed)
        };
        let objects = self.policies.objects().iter().filter_map(instead).collect();
        let exceptions = self.policies.exceptions().iter().map(|exception| Exception::clone(exception)).collect();
        Self { policies: Policies::new(objects, exceptions), ..self.clone() }
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
            foreign: self.foreign.clone(),
            gates: self.gates.clone(),
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
        let (foreign, gates, mut files) = (wanted.foreign.clone(), wanted.gates.clone(), self.files.clone());
        files.extend(wanted.files.clone());
        Self { policies: Policies::new(objects, exceptions), foreign, gates, files, ..self.clone() }
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
    load_after(&Raised::default(), trust_domain, objects)
}

/// The same where these stages were in force before.
pub fn load_after<'a>(
    before: &Raised,
    trust_domain: Option<&str>,
    objects: impl IntoIterator<Item = (&'a str, &'a manifest::Object)>,
) -> Loaded {
    let (mut policies, mut exceptions, mut settings) = (Vec::new(), Vec::new(), Settings::default());
    let (mut namespaces, mut files, mut settings_at) = (Vec::new(), BTreeMap::new(), None);
    let (mut foreign, mut workloads) = (Vec::new(), Vec::new());
    for (file, object) in objects {
        if matches!(object.kind, Kind::Policy(_) | Kind::Exception(_) | Kind::Settings(_) | Kind::Foreign(_)) {
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
            Kind::Foreign(found) => foreign.push((file, object.place, found)),
            Kind::Workload(workload) => workloads.push((file, object.place, workload)),
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
    let (gates, of_stages) = stages::decide(before, &settings, &foreign, &namespaces, &workloads);
    problems.extend(of_stages);
    let mut told = |file: &str, place, problem| problems.push(Told { file: file.to_owned(), place, problem });
    let accepted = |object: &ForeignObject| settings.accepted.contains(&object.kind);
    let foreign = foreign.into_iter().map(|(_, _, object)| (object.clone(), accepted(object))).collect();
    let teams = |labels: &[PlatformLabel], object: &str| -> Vec<(Place, Unfit)> {
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
        for (place, problem) in teams(&policy.platform_labels, &id.to_string()) {
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
        for (place, problem) in teams(&exception.platform_labels, &name) {
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
    let policies = Policies::new(objects, exceptions);
    Loaded { policies, settings, files, foreign, gates, problems, unfit, platform_unfit }
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
