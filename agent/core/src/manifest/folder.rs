//! A folder of manifests over time: what is in force, and what is refused and why.
//!
//! A file is taken whole or not at all. A new version that cannot be read, or that claims what another file has, is
//! refused: the last good version of that file stays. Who had a name or an address first keeps it; on a fresh start the
//! file whose name comes first does. Only what two workloads say of an address is not settled here ([`crate::model`]). A
//! refused version is tried again whenever anything changes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::refused::{self, Refused};
use super::{
    Claim, ClaimKey, ClaimedAddresses, Diagnostic, Kind, MAX_DIAGNOSTICS, Object, Place, Problem, Scope, parse_in,
};

/// What was read from a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileContent {
    /// Its text.
    Text(String),
    /// It is no UTF-8 from this place on.
    NotText(Place),
    /// It is longer than [`super::MAX_BYTES`]; it was not read.
    TooLarge(usize),
    /// It could not be read: the operating system's words.
    Unreadable(String),
    /// Somebody has it open and writes it.
    Unfinished,
    /// The folder holds too many files; this one was not read. Carries the limit.
    TooMany(usize),
    /// It is a folder that lies too deep; nothing in it was read. Carries the limit.
    TooDeep(usize),
}

/// Tells versions of a file apart: a SHA-256.
pub type Digest = [u8; 32];

/// A file's objects, shared between versions.
type Objects = Arc<Vec<Object>>;

#[derive(Clone, Debug, Default)]
struct File {
    digest: Digest,
    /// The last version that was read.
    newest: Option<Result<Objects, Bad>>,
    /// The version in force.
    good: Option<Objects>,
    /// Why the newest version is not in force though it could be read.
    clashes: Vec<Diagnostic>,
    /// Policy of the newest version of which nothing is in force, and what stands for it.
    never_valid: Vec<(Option<Object>, Diagnostic)>,
    /// Addresses that the newest version claims for workloads, and that workloads in force have.
    claimed: Vec<Object>,
}

/// Which files claim something, with what they say and where.
type Owners<'a> = HashMap<ClaimKey<'a>, Vec<(&'a str, &'a Claim, Place)>>;

/// A version that is refused.
#[derive(Clone, Debug)]
struct Bad {
    diagnostics: Vec<Diagnostic>,
    policy: Vec<Refused>,
}

/// Every file of the folder with its last good version.
#[derive(Clone, Debug, Default)]
pub struct FolderState {
    scope: Scope,
    files: BTreeMap<String, File>,
}

impl FolderState {
    /// Of no file yet, for a reader of these kinds.
    pub fn of(scope: Scope) -> Self {
        Self { scope, files: BTreeMap::new() }
    }

    /// Takes a complete reading of the folder, by file name; files that are not in it are gone. Says whether the objects
    /// in force or the diagnostics changed.
    pub fn apply(&mut self, read: BTreeMap<String, FileContent>) -> bool {
        let gone: Vec<String> = self.files.keys().filter(|name| !read.contains_key(*name)).cloned().collect();
        let mut changed = !gone.is_empty();
        for name in gone {
            self.files.remove(&name);
        }
        for (name, content) in read {
            let digest = digest(&content);
            let file = self.files.entry(name.clone()).or_default();
            if file.newest.is_none() || file.digest != digest {
                file.digest = digest;
                file.newest = Some(understand(self.scope, &name, content));
                changed = true;
            }
        }
        if changed {
            self.settle();
        }
        changed
    }

    /// Decides which files' newest versions come into force.
    fn settle(&mut self) {
        let mut held_back = self.hold_back();
        // Holding one file back can free what another was held back for.
        loop {
            let owners = self.owners(&held_back);
            let Some(free) = held_back.iter().find(|name| self.clashes(name, &owners).next().is_none()).cloned() else {
                break;
            };
            held_back.remove(&free);
        }
        let owners = self.owners(&held_back);
        let mut clashes: HashMap<String, Vec<Diagnostic>> = held_back
            .iter()
            .map(|name| (name.clone(), self.clashes(name, &owners).take(MAX_DIAGNOSTICS).collect()))
            .collect();
        for (name, file) in &mut self.files {
            file.clashes = clashes.remove(name).unwrap_or_default();
            file.clashes.sort_by_key(|diagnostic| diagnostic.place);
            if let (Some(Ok(newest)), false) = (&file.newest, held_back.contains(name)) {
                file.good = Some(newest.clone());
            }
        }
        self.stand_in(&held_back);
        self.claim(&held_back);
    }

    /// Which of two workloads an address belongs to is not for the order of files to say.
    fn claim(&mut self, held_back: &BTreeSet<String>) {
        let good = self.files.values().filter_map(|file| file.good.as_ref()).flat_map(|objects| objects.iter());
        let workloads = good.filter_map(|object| match &object.kind {
            Kind::Workload(workload) => Some(workload),
            _ => None,
        });
        let had: HashSet<IpAddr> = workloads.flat_map(|workload| workload.ips.iter().copied()).collect();
        for (name, file) in &mut self.files {
            let newest = file.newest.as_ref().and_then(|newest| newest.as_ref().ok());
            let newest = newest.filter(|_| held_back.contains(name)).into_iter().flat_map(|objects| objects.iter());
            let claimed = newest.filter_map(|object| {
                let Kind::Workload(workload) = &object.kind else { return None };
                let ips: Vec<IpAddr> = workload.ips.iter().copied().filter(|ip| had.contains(ip)).collect();
                let (uid, node) = (workload.uid.clone(), workload.node.clone());
                let workload = format!("{}/{}", workload.namespace, workload.name);
                let kind = Kind::Claimed(ClaimedAddresses { workload, uid, node, ips });
                Some(Object { kind, place: object.place, claims: Vec::new() })
            });
            file.claimed = claimed.collect();
        }
    }

    /// Puts something in the place of policy that never was in force.
    fn stand_in(&mut self, held_back: &BTreeSet<String>) {
        let good = self.files.values().filter_map(|file| file.good.as_ref()).flat_map(|objects| objects.iter());
        let there: HashSet<Claim> = good.flat_map(|object| &object.claims).map(|(claim, _)| claim.clone()).collect();
        let mut taken = HashSet::new();
        for (name, file) in &mut self.files {
            let refused = match &file.newest {
                Some(Err(bad)) => bad.policy.clone(),
                Some(Ok(newest)) if held_back.contains(name) => refused::of_objects(newest),
                _ => Vec::new(),
            };
            let mut one = |refused: Refused| {
                let (namespace, own) = refused.name.clone();
                let claim = Claim::Name(refused.kind, namespace, own);
                if there.contains(&claim) {
                    return None;
                }
                let place = refused.place;
                let unique = format!("{name}:{}:{}", place.line, place.column);
                let (object, problem) = refused.stand_in(&unique, !taken.insert(claim));
                Some((object, Diagnostic { file: name.clone(), place, problem }))
            };
            file.never_valid = refused.into_iter().filter_map(&mut one).collect();
        }
    }

    /// The version that would be in force, and whether it is a new one.
    fn version<'a>(&self, name: &str, file: &'a File, held_back: &BTreeSet<String>) -> (Option<&'a Objects>, bool) {
        match &file.newest {
            Some(Ok(newest)) if !held_back.contains(name) => {
                let new = file.good.as_ref().is_none_or(|good| !Arc::ptr_eq(good, newest));
                (Some(newest), new)
            }
            _ => (file.good.as_ref(), false),
        }
    }

    /// Files whose new versions claim what another file has or had first.
    fn hold_back(&self) -> BTreeSet<String> {
        // As it was claimed: who had a pod's address with others has no right to it for a Service.
        let had: HashSet<(&str, &Claim)> = self
            .files
            .iter()
            .flat_map(|(name, file)| claims(file.good.as_ref()).map(move |(claim, _)| (name.as_str(), claim)))
            .collect();
        let mut held_back = BTreeSet::new();
        loop {
            let lost = self.lost(&held_back, &had);
            let losers: BTreeSet<&str> = lost.iter().map(|(loser, _)| *loser).collect();
            // Who lost against one that loses as well may yet get what it wants.
            let sure = lost.iter().filter(|(_, winner)| !losers.contains(winner)).map(|(loser, _)| *loser);
            let sure: BTreeSet<&str> = sure.collect();
            match (sure.is_empty(), losers.first()) {
                (false, _) => held_back.extend(sure.into_iter().map(str::to_owned)),
                (true, Some(first)) => drop(held_back.insert((*first).to_owned())),
                (true, None) => return held_back,
            }
        }
    }

    /// Who loses a claim with its new version, and to whom.
    fn lost<'a>(&'a self, held_back: &BTreeSet<String>, had: &HashSet<(&str, &Claim)>) -> BTreeSet<(&'a str, &'a str)> {
        let mut owners: HashMap<ClaimKey<'a>, (&'a str, &'a Claim)> = HashMap::new();
        let mut lost = BTreeSet::new();
        // What is in force already comes first: it can lose to nobody.
        for newcomers in [false, true] {
            for (name, file) in &self.files {
                let (objects, new) = self.version(name, file, held_back);
                if new != newcomers {
                    continue;
                }
                for (claim, _) in claims(objects) {
                    let (owner, theirs) = *owners.entry(claim.key()).or_insert((name, claim));
                    if owner == name || !claim.clashes(theirs) {
                        continue;
                    }
                    if new && had.contains(&(name.as_str(), claim)) {
                        // Had it before the one that was met first here: that one is a newcomer too.
                        lost.insert((owner, name.as_str()));
                        owners.insert(claim.key(), (name, claim));
                    } else {
                        lost.insert((name.as_str(), owner));
                    }
                }
            }
        }
        lost
    }

    /// Every claim of the versions that would be in force.
    fn owners<'a>(&'a self, held_back: &BTreeSet<String>) -> Owners<'a> {
        let mut owners = Owners::new();
        for (name, file) in &self.files {
            for (claim, place) in claims(self.version(name, file, held_back).0) {
                owners.entry(claim.key()).or_default().push((name, claim, *place));
            }
        }
        owners
    }

    /// What the newest version of a file claims that is another's.
    fn clashes<'a>(&'a self, name: &'a str, owners: &'a Owners<'_>) -> impl Iterator<Item = Diagnostic> + 'a {
        let newest = self.files.get(name).and_then(|file| file.newest.as_ref()?.as_ref().ok());
        claims(newest).filter_map(move |(claim, place)| {
            let mut others = owners.get(&claim.key())?.iter();
            let (other, _, theirs) = others.find(|(owner, theirs, _)| *owner != name && claim.clashes(theirs))?;
            let problem = Problem::Claimed { claim: claim.clone(), file: (*other).to_owned(), place: *theirs };
            Some(Diagnostic { file: name.to_owned(), place: *place, problem })
        })
    }

    /// Objects in force with their file, by file name and then as they stand in it, and at a file's end what stands for its
    /// policy that never was in force, and what its new workloads claim.
    pub fn objects(&self) -> impl Iterator<Item = (&str, &Object)> {
        self.files.iter().flat_map(|(name, file)| {
            let good = file.good.iter().flat_map(|objects| objects.iter());
            let stand_ins = file.never_valid.iter().filter_map(|(object, _)| object.as_ref());
            good.chain(stand_ins).chain(&file.claimed).map(move |object| (name.as_str(), object))
        })
    }

    /// Number of objects in force, without what stands for policy that never was.
    pub fn objects_in_force(&self) -> usize {
        self.files.values().filter_map(|file| file.good.as_ref()).map(|objects| objects.len()).sum()
    }

    /// Everything that is refused, by file and place.
    pub fn diagnostics(&self) -> impl Iterator<Item = &Diagnostic> {
        self.files.values().flat_map(|file| {
            let unreadable = match &file.newest {
                Some(Err(bad)) => bad.diagnostics.as_slice(),
                _ => &[],
            };
            let stand_ins = file.never_valid.iter().take(MAX_DIAGNOSTICS).map(|(_, diagnostic)| diagnostic);
            unreadable.iter().chain(&file.clashes).chain(stand_ins)
        })
    }

    /// Number of files of which a version is in force.
    pub fn files_in_force(&self) -> usize {
        self.files.values().filter(|file| file.good.is_some()).count()
    }

    /// What was read last of each file, and whether it is in force.
    pub fn versions(&self) -> impl Iterator<Item = (&str, Digest, bool)> {
        let good = |file: &File| matches!((&file.newest, &file.good), (Some(Ok(newest)), Some(good)) if Arc::ptr_eq(newest, good));
        self.files.iter().map(move |(name, file)| (name.as_str(), file.digest, good(file)))
    }

    /// Names of the files whose newest version is refused.
    pub fn refused_files(&self) -> HashSet<&str> {
        let refused = |file: &File| matches!(file.newest, Some(Err(_))) || !file.clashes.is_empty();
        self.files.iter().filter(|(_, file)| refused(file)).map(|(name, _)| name.as_str()).collect()
    }
}

fn claims(objects: Option<&Objects>) -> impl Iterator<Item = &(Claim, Place)> {
    objects.into_iter().flat_map(|objects| objects.iter().flat_map(|object| &object.claims))
}

fn understand(scope: Scope, name: &str, content: FileContent) -> Result<Objects, Bad> {
    let place = if let FileContent::NotText(place) = content { place } else { Place::FILE };
    let problem = match content {
        FileContent::Text(text) => {
            let bad = |diagnostics| Bad { diagnostics, policy: refused::of_text(scope, &text) };
            return parse_in(scope, name, &text).map(Arc::new).map_err(bad);
        }
        FileContent::NotText(_) => Problem::NotText,
        FileContent::TooLarge(bytes) => Problem::TooLarge { bytes, max: super::MAX_BYTES },
        FileContent::Unreadable(why) => Problem::Unreadable { why },
        FileContent::Unfinished => Problem::Unfinished,
        FileContent::TooMany(max) => Problem::TooManyFiles { max },
        FileContent::TooDeep(max) => Problem::FolderTooDeep { max },
    };
    let diagnostics = vec![Diagnostic { file: name.to_owned(), place, problem }];
    Err(Bad { diagnostics, policy: Vec::new() })
}

/// What tells a version of a file from others.
pub fn digest(content: &FileContent) -> Digest {
    let (tag, text) = match content {
        FileContent::Text(text) => ("text", Cow::from(text)),
        FileContent::NotText(place) => ("not text", format!("{}:{}", place.line, place.column).into()),
        FileContent::TooLarge(_) => ("too large", Cow::default()),
        FileContent::Unreadable(why) => ("unreadable", why.into()),
        FileContent::Unfinished => ("unfinished", Cow::default()),
        FileContent::TooMany(_) => ("too many", Cow::default()),
        FileContent::TooDeep(_) => ("too deep", Cow::default()),
    };
    Sha256::new().chain_update(tag).chain_update([0]).chain_update(text.as_bytes()).finalize().into()
}
