//! Desired state from a watched folder of manifests.
//!
//! Notifications only say when to look: every look reads the whole folder, so a lost or misunderstood one costs time and
//! never truth. Atomic renames, editors' temporary files, ConfigMap mounts (`..data`) and folders that are replaced as
//! a whole all end in the same reading. What is read comes into force as one new [`World`], or not at all.

mod held;
mod last_good;
mod notified;
mod since;
mod watch;

pub use held::{Held, Version};
pub use kumiko_folder::{MAX_FILES, Reading, read};
pub use since::Since;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kumiko_core::api::{SourceDiagnostic, SourceStatus};
use kumiko_core::manifest::{Diagnostic, FolderState, Place, Problem, Scope};
use kumiko_core::model::World;
use kumiko_core::policy::foreign::Raised;
use kumiko_core::policy::load::{load_after, load_in};
use kumiko_core::principal::PrincipalError;
use kumiko_folder::KeepOut;
use kumiko_kernel::lease::keep_writers_out;
use thiserror::Error;
use tokio::sync::watch as channel;
use tracing::{info, warn};

use crate::clock;
use crate::options::SourceUrl;

use last_good::LastGood;

/// Why a source cannot begin.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The trust domain of the command line.
    #[error("--trust-domain: {0}")]
    TrustDomain(#[from] PrincipalError),
    /// Its folder, where it is named from the working directory.
    #[error("--source: the working directory cannot be told: {0}: name the folder by its whole path")]
    Folder(#[source] std::io::Error),
    /// Its thread.
    #[error("the source's thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// A source that runs.
#[derive(Debug, Clone)]
pub struct Source {
    /// The model in force; epoch 0 until the folder was read for the first time.
    pub world: channel::Receiver<Arc<World>>,
    /// What is in force and what is refused.
    pub status: channel::Receiver<Arc<SourceStatus>>,
    /// Versions of its files; newer than, or as new as, the status.
    pub held: Arc<Mutex<Held>>,
    /// Since when its workloads are as they are in the model.
    pub since: Arc<Mutex<Since>>,
    /// For metrics.
    pub counters: Arc<SourceCounters>,
}

impl Source {
    /// Waits for the first reading.
    ///
    /// # Errors
    /// The source has ended.
    pub async fn synced(&mut self) -> Result<Arc<World>, channel::error::RecvError> {
        Ok(self.world.wait_for(|world| world.epoch() > 0).await?.clone())
    }
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct SourceCounters {
    readings: AtomicU64,
    changes: AtomicU64,
    refusals: AtomicU64,
    failures: AtomicU64,
}

impl SourceCounters {
    /// Times that the folder was read.
    pub fn readings(&self) -> u64 {
        self.readings.load(Ordering::Relaxed)
    }

    /// Models that came into force.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Versions of files that were refused.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Readings that failed because the folder itself could not be read.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// What a source takes, and what it keeps.
#[derive(Debug, Clone, Default)]
pub struct Taking {
    /// Kinds of documents.
    pub scope: Scope,
    /// Folder for the last good version of each file, for the next start.
    pub last_good: Option<PathBuf>,
}

/// Starts reading and watching. Returns after the first reading; the thread ends when every receiver is dropped.
///
/// # Errors
/// The trust domain is none, or no thread can be had. A folder that is missing or unreadable is no error: status says
/// so, and it is read when it is there.
pub fn start(url: &SourceUrl, trust_domain: &str, taking: Taking) -> Result<Source, SourceError> {
    start_reading(url, trust_domain, taking, keep_writers_out)
}

fn start_reading(
    url: &SourceUrl,
    trust_domain: &str,
    taking: Taking,
    keep_out: KeepOut,
) -> Result<Source, SourceError> {
    let SourceUrl::Dir(dir) = url;
    // As notifications name it, and so that it stays the same folder.
    let dir = std::path::absolute(dir).map_err(SourceError::Folder)?;
    let (publisher, source) = Publisher::new(dir.clone(), trust_domain, taking)?;
    watch::spawn(dir, publisher, keep_out)?;
    Ok(source)
}

/// Turns readings into models.
#[derive(Debug)]
struct Publisher {
    trust_domain: String,
    folder: FolderState,
    last_good: Option<LastGood>,
    /// Policy was in force, of this start or an earlier one.
    had_policy: bool,
    /// What was to be kept for the next start could not be written.
    unkept: bool,
    /// Files whose new versions are not in force as they stand; none at all are where the platform's policy is not fit.
    unfit_files: Option<HashSet<String>>,
    /// Stages above observe that were in force, of this start or an earlier one.
    raised: Raised,
    world: channel::Sender<Arc<World>>,
    status: channel::Sender<Arc<SourceStatus>>,
    held: Arc<Mutex<Held>>,
    since: Arc<Mutex<Since>>,
    counters: Arc<SourceCounters>,
    /// Refused files of the last reading, to count each refusal once.
    refused: Vec<SourceDiagnostic>,
}

impl Publisher {
    fn new(dir: PathBuf, trust_domain: &str, taking: Taking) -> Result<(Self, Source), SourceError> {
        let mut folder = FolderState::of(taking.scope);
        let (mut last_good, mut policy, mut had_policy, mut raised) = (None, Arc::default(), false, Raised::default());
        if let Some(kept) = taking.last_good {
            // Of this source: another folder's files of the same names are others.
            let of = last_good::name_of(&dir);
            match LastGood::open(kept.join(of)) {
                Ok((opened, files)) => {
                    folder.apply(files);
                    let before = load_in(Some(trust_domain), folder.objects());
                    if before.is_fit() {
                        had_policy = folder.files_in_force() > 0;
                        policy = Arc::new(before);
                    }
                    raised = opened.raised().unwrap_or_else(|| asked_for(trust_domain, &folder));
                    last_good = Some(opened);
                }
                // An agent that does not start is worse.
                Err(error) => warn!(%error, folder = %kept.display(), "last good versions of files cannot be kept"),
            }
        }
        let (empty, _) = World::build_under(policy, trust_domain, 0, std::iter::empty())?;
        let (world, world_rx) = channel::channel(Arc::new(empty));
        let status = SourceStatus { url: format!("dir:{}", dir.display()), ..SourceStatus::default() };
        let (status, status_rx) = channel::channel(Arc::new(status));
        let counters = Arc::new(SourceCounters::default());
        let held = Arc::<Mutex<Held>>::default();
        let (since, counted) = (Arc::default(), counters.clone());
        let source = Source { world: world_rx, status: status_rx, held: held.clone(), since, counters: counted };
        let publisher = Self {
            trust_domain: trust_domain.to_owned(),
            folder,
            last_good,
            had_policy,
            unkept: false,
            unfit_files: None,
            raised,
            world,
            status,
            held,
            since: source.since.clone(),
            counters,
            refused: Vec::new(),
        };
        Ok((publisher, source))
    }

    /// Nobody listens any more.
    fn unwanted(&self) -> bool {
        self.world.is_closed() && self.status.is_closed()
    }

    /// Whether any object of a file is in force.
    fn has_in_force(&self, file: &str) -> bool {
        self.folder.objects().any(|(of, _)| of == file)
    }

    /// Wants another reading, though nothing has changed.
    fn owes(&self) -> bool {
        self.unkept
    }

    /// Takes a reading of the whole folder, or the reason why there is none.
    fn take(&mut self, reading: std::io::Result<Reading>) {
        self.counters.readings.fetch_add(1, Ordering::Relaxed);
        let files = match reading {
            Ok(reading) => reading.files,
            Err(error) => return self.unreadable(&error),
        };
        let synced = self.status.borrow().synced;
        let healed = self.refused.iter().any(|refused| refused.file.is_empty());
        let news = self.last_good.as_ref().map(|kept| kept.news(&files)).unwrap_or_default();
        let there: HashSet<String> = files.keys().cloned().collect();
        if !self.folder.apply(files) && synced && !healed {
            if self.unkept {
                self.keep(&news, &there);
            }
            return;
        }
        let epoch = self.world.borrow().epoch();
        let policy = Arc::new(load_after(&self.raised, Some(&self.trust_domain), self.folder.objects()));
        let unfit: Vec<SourceDiagnostic> = policy.problems.iter().map(SourceDiagnostic::from).collect();
        let fit = policy.is_fit();
        let unfit_files: HashSet<String> = policy.unfit_files().map(str::to_owned).collect();
        // Half of a policy would be another policy: the last good one stays in force as a whole.
        let policy = match (fit, self.had_policy) {
            (true, _) => policy.with_teams_of(self.world.borrow().policy()),
            (false, true) => Arc::new(self.world.borrow().policy().going_on(&policy)),
            (false, false) => Arc::new(policy.fit_part()),
        };
        self.had_policy |= fit;
        let built = World::build_under(policy, &self.trust_domain, epoch, self.folder.objects());
        let (world, lowered) = match built {
            Ok(built) => built,
            Err(error) => {
                // Names were validated, so only a trust domain could be wrong, and that was checked at the start.
                warn!(%error, "the model could not be built: the last one stays in force");
                return;
            }
        };
        let mut diagnostics: Vec<_> = self.folder.diagnostics().chain(&lowered).map(SourceDiagnostic::from).collect();
        diagnostics.extend(unfit);
        self.raised.follow(&world);
        self.unfit_files = fit.then_some(unfit_files);
        self.keep(&news, &there);
        let disputed = u32::try_from(world.disputed().len()).unwrap_or(u32::MAX);
        let changed = !synced || world != **self.world.borrow();
        self.tell(diagnostics);
        // Before the status: what that says is in force is.
        if changed {
            self.counters.changes.fetch_add(1, Ordering::Relaxed);
            let world = world.at_epoch(epoch + 1).sharing(&self.world.borrow());
            let world = Arc::new(world);
            self.since.lock().unwrap_or_else(PoisonError::into_inner).take(&world, clock::unix_seconds());
            info!(epoch = world.epoch(), workloads = world.workloads().count(), "desired state came into force");
            self.world.send_replace(world);
        }
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take(
            &self.folder,
            |name| self.unfit_files.as_ref().is_some_and(|unfit| !unfit.contains(name)),
            epoch + u64::from(changed),
            &self.refused,
        );
        self.status.send_modify(|status| {
            let mut next = SourceStatus::clone(status);
            next.synced = true;
            next.disputed = disputed;
            next.files = u32::try_from(self.folder.files_in_force()).unwrap_or(u32::MAX);
            next.objects = u32::try_from(self.folder.objects_in_force()).unwrap_or(u32::MAX);
            if changed {
                next.epoch = epoch + 1;
                next.changed_unix_ns = unix_ns();
            }
            next.diagnostics.clone_from(&self.refused);
            *status = Arc::new(next);
        });
    }

    /// Keeps for the next start what is in force.
    fn keep(&mut self, news: &[(String, String)], there: &HashSet<String>) {
        let Some(kept) = &mut self.last_good else { return };
        let stages = kept.keep_raised(&self.raised);
        let files = self.unfit_files.as_ref().map_or(Ok(()), |unfit| {
            let mut refused = self.folder.refused_files();
            refused.extend(unfit.iter().map(String::as_str));
            kept.keep(news, &refused, there)
        });
        let done = stages.and(files);
        if let Err(error) = &done
            && !self.unkept
        {
            warn!(%error, "last good versions of files could not be kept for the next start: tried again");
        }
        self.unkept = done.is_err();
    }

    fn unreadable(&mut self, error: &std::io::Error) {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        let why = error.to_string();
        let whole = Diagnostic { file: String::new(), place: Place::FILE, problem: Problem::Folder { why } };
        let mut diagnostics: Vec<SourceDiagnostic> = vec![SourceDiagnostic::from(&whole)];
        diagnostics.extend(self.refused.iter().filter(|refused| !refused.file.is_empty()).cloned());
        if diagnostics == self.refused {
            return;
        }
        self.tell(diagnostics);
        self.status.send_modify(|status| {
            let mut next = SourceStatus::clone(status);
            next.diagnostics.clone_from(&self.refused);
            *status = Arc::new(next);
        });
    }

    /// Counts and logs what is newly refused.
    fn tell(&mut self, diagnostics: Vec<SourceDiagnostic>) {
        for new in diagnostics.iter().filter(|diagnostic| !self.refused.contains(diagnostic)) {
            self.counters.refusals.fetch_add(1, Ordering::Relaxed);
            warn!(file = new.file, line = new.line, column = new.column, "refused: {}", new.message);
        }
        self.refused = diagnostics;
    }
}

/// Stages above observe that files ask for which an agent kept that did not keep stages: they were in force.
fn asked_for(trust_domain: &str, folder: &FolderState) -> Raised {
    let mut raised = Raised::default();
    if let Ok((world, _)) = World::build_under(Arc::default(), trust_domain, 0, folder.objects()) {
        raised.follow(&world);
    }
    raised
}

fn unix_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
