//! Keeps the certificates: who is wanted, what is due, what failed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use kumiko_core::Principal;
use kumiko_core::api::{CertState, CertView};
use kumiko_core::model::World;
use kumiko_core::origin::Origin;
use kumiko_tunnel::identity::{Bundle, Identities as TlsIdentities, IdentityError, Svid};
use rand::Rng as _;
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::request::{Granted, RequestError, request, roots};
use super::{Facts, Identities, unix_ns};
use crate::issuer::IssuerClient;

/// Requests at once.
const MAX_IN_FLIGHT: usize = 8;
/// First wait after a failure, doubled with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// Longest wait after a failure.
const MAX_RETRY: Duration = Duration::from_secs(30);
/// How often the trust bundle is asked for.
const BUNDLE_EVERY: Duration = Duration::from_secs(60);
/// What is wrong with a certificate that peers would not take.
const OTHER_NAMES: &str = "the issuer's documents have another UID, or none, of the node, namespace or service account than \
                           this node's: peers refuse the certificate (stale_identity); give the issuer the same documents";
/// Longest sleep: wall clocks jump, and due times are wall-clock times.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Why identities cannot begin.
#[derive(Debug, Error)]
#[error("--issuer-root cannot be a trust bundle: {0}")]
pub struct StartError(#[from] IdentityError);

/// See the module's text. Runs as one task.
#[derive(Debug)]
pub struct Manager {
    shared: Arc<Identities>,
    client: IssuerClient,
    node: String,
    trust_domain: String,
    slots: BTreeMap<Principal, Slot>,
    roots: Vec<CertificateDer<'static>>,
    bundle_due: SystemTime,
    work: JoinSet<Done>,
    asking_bundle: bool,
}

#[derive(Debug)]
struct Slot {
    /// What its certificate has to say, as far as this node's model knows.
    origin: Origin,
    svid: Option<Arc<Svid>>,
    due: SystemTime,
    failures: u32,
    /// Certificates in a row that are of names as they were before.
    early: u32,
    last_error: String,
    in_flight: bool,
}

impl Slot {
    /// Whether its certificate is one of the names as they are now.
    fn serves(&self) -> bool {
        self.serves_as(&self.origin)
    }

    fn serves_as(&self, origin: &Origin) -> bool {
        let said = self.svid.as_ref().map(|svid| svid.origin().cloned().unwrap_or_default());
        said.is_some_and(|said| said.is_of(origin))
    }
}

enum Done {
    Certificate(Principal, Result<Granted, RequestError>),
    Bundle(Result<Vec<CertificateDer<'static>>, RequestError>),
}

impl Manager {
    /// Begins with the issuer's pinned root as bundle and no certificate.
    pub fn new(client: IssuerClient, node: &str, trust_domain: &str) -> Result<Self, StartError> {
        let roots = client.roots().to_vec();
        let tls = TlsIdentities::new([], &Bundle::new(trust_domain, roots.clone()))?;
        let count = u32::try_from(roots.len()).unwrap_or(u32::MAX);
        let shared = Arc::new(Identities::new(tls, client.address().to_string(), count));
        Ok(Self {
            shared,
            client,
            node: node.to_owned(),
            trust_domain: trust_domain.to_owned(),
            slots: BTreeMap::new(),
            roots,
            bundle_due: SystemTime::now() + BUNDLE_EVERY,
            work: JoinSet::new(),
            asking_bundle: false,
        })
    }

    /// What the shards use.
    pub fn identities(&self) -> Arc<Identities> {
        self.shared.clone()
    }

    /// Keeps certificates for the workloads of this node until `stop` is done.
    pub async fn run(mut self, mut world: watch::Receiver<Arc<World>>, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut model_lives = true;
        self.want(&world.borrow_and_update().clone());
        loop {
            self.begin_due();
            let wake = tokio::time::sleep(self.next_wake());
            tokio::select! {
                () = &mut stop => return,
                changed = world.changed(), if model_lives => {
                    model_lives = changed.is_ok();
                    let model = world.borrow_and_update().clone();
                    self.want(&model);
                }
                Some(done) = self.work.join_next() => match done {
                    Ok(Done::Certificate(principal, result)) => self.answered(&principal, result),
                    Ok(Done::Bundle(result)) => self.bundle_answered(result),
                    // Cancelled with the runtime.
                    Err(error) => debug!(%error, "request ended"),
                },
                () = wake => self.expire(),
            }
        }
    }

    /// Takes the principals of this node's workloads as what is wanted.
    fn want(&mut self, world: &World) {
        let wanted: BTreeSet<&Principal> = world.principals_on(&self.node).collect();
        let before = self.slots.len();
        self.slots.retain(|principal, _| wanted.contains(principal));
        let dropped = before - self.slots.len();
        let now = SystemTime::now();
        for (principal, slot) in &mut self.slots {
            let origin = world.origin(principal, &self.node);
            if slot.svid.is_none() || (slot.origin != origin && !slot.serves_as(&origin)) {
                // The issuer may have refused because its model was older; it changes with ours.
                slot.due = now;
            }
            slot.origin = origin;
        }
        for principal in &wanted {
            self.slots.entry((*principal).clone()).or_insert_with(|| Slot {
                origin: world.origin(principal, &self.node),
                svid: None,
                due: now,
                failures: 0,
                early: 0,
                last_error: String::new(),
                in_flight: false,
            });
        }
        if dropped > 0 {
            self.publish();
        } else {
            self.show();
        }
    }

    fn begin_due(&mut self) {
        let now = SystemTime::now();
        for (principal, slot) in &mut self.slots {
            if self.work.len() >= MAX_IN_FLIGHT {
                return;
            }
            if !slot.in_flight && slot.due <= now {
                slot.in_flight = true;
                let (client, principal) = (self.client.clone(), principal.clone());
                self.work.spawn(async move {
                    let result = request(&client, &principal).await;
                    Done::Certificate(principal, result)
                });
            }
        }
        if !self.asking_bundle && self.bundle_due <= now {
            self.asking_bundle = true;
            let client = self.client.clone();
            self.work.spawn(async move {
                let answer = client.bundle().await.map_err(RequestError::from);
                Done::Bundle(answer.and_then(|bundle| roots(&bundle)))
            });
        }
    }

    fn next_wake(&self) -> Duration {
        let now = SystemTime::now();
        let expiries = self.slots.values().filter_map(|slot| slot.svid.as_ref().map(|svid| svid.not_after()));
        let dues = self.slots.values().filter(|slot| !slot.in_flight).map(|slot| slot.due);
        // What is due but waits for a place among the requests is begun when one of them ends.
        let full = self.work.len() >= MAX_IN_FLIGHT;
        let next = dues.filter(|due| !full || *due > now).chain(expiries.filter(|end| *end > now)).min();
        let next = next.map_or(LONGEST_SLEEP, |at| at.duration_since(now).unwrap_or_default());
        next.clamp(Duration::from_millis(1), LONGEST_SLEEP)
    }

    fn answered(&mut self, principal: &Principal, result: Result<Granted, RequestError>) {
        // Its last workload has gone meanwhile.
        let Some(slot) = self.slots.get_mut(principal) else { return };
        slot.in_flight = false;
        let now = SystemTime::now();
        match result {
            Ok(granted) => {
                let life = granted.svid.not_after().duration_since(now).unwrap_or_default();
                // Agents that started together do not come back together.
                slot.due = now + life.mul_f64(rand::rng().random_range(0.45..0.55));
                slot.failures = 0;
                slot.last_error.clear();
                info!(%principal, serial = granted.svid.serial(), "certificate");
                slot.svid = Some(granted.svid);
                if slot.serves() {
                    slot.early = 0;
                } else {
                    slot.early = slot.early.saturating_add(1);
                    slot.failures = slot.early;
                    slot.due = now + backoff(slot.early);
                    slot.last_error = OTHER_NAMES.to_owned();
                    warn!(%principal, error = OTHER_NAMES, failures = slot.early, "a certificate of other names");
                }
                self.shared.issued.fetch_add(1, Ordering::Relaxed);
                self.take_roots(granted.roots);
                self.error("");
                self.publish();
            }
            Err(error) => {
                slot.failures = slot.failures.saturating_add(1);
                slot.last_error = error.to_string();
                slot.due = now + backoff(slot.failures);
                let message = slot.last_error.clone();
                let valid = slot.svid.is_some();
                warn!(%principal, error = message, valid, failures = slot.failures, "no certificate");
                self.shared.failures.fetch_add(1, Ordering::Relaxed);
                self.error(&message);
                self.show();
            }
        }
    }

    fn bundle_answered(&mut self, result: Result<Vec<CertificateDer<'static>>, RequestError>) {
        self.asking_bundle = false;
        self.bundle_due = SystemTime::now() + BUNDLE_EVERY.mul_f64(rand::rng().random_range(0.9..1.1));
        match result {
            Ok(roots) => {
                if self.take_roots(roots) {
                    info!(roots = self.roots.len(), "trust bundle changed");
                    self.publish();
                }
            }
            Err(error) => {
                warn!(%error, "trust bundle could not be refreshed");
                self.shared.failures.fetch_add(1, Ordering::Relaxed);
                self.error(&error.to_string());
            }
        }
    }

    /// Takes another bundle, if it is another and can be used.
    fn take_roots(&mut self, roots: Vec<CertificateDer<'static>>) -> bool {
        if roots == self.roots {
            return false;
        }
        match TlsIdentities::new([], &Bundle::new(self.trust_domain.as_str(), roots.clone())) {
            Ok(_) => {
                if let Err(error) = self.client.trust(&roots) {
                    warn!(%error, "the issuer's next root cannot be used to reach it");
                }
                self.roots = roots;
                true
            }
            Err(error) => {
                warn!(%error, "the issuer's trust bundle cannot be used; the last one stays");
                false
            }
        }
    }

    /// Lets go of certificates that are past their end.
    fn expire(&mut self) {
        let now = SystemTime::now();
        let mut gone = false;
        for (principal, slot) in &mut self.slots {
            if slot.svid.as_ref().is_some_and(|svid| svid.not_after() <= now) {
                warn!(%principal, "certificate expired");
                slot.svid = None;
                gone = true;
            }
        }
        if gone {
            self.publish();
        }
    }

    fn publish(&mut self) {
        let bundle = Bundle::new(self.trust_domain.as_str(), self.roots.clone());
        let svids = self.slots.values().filter_map(|slot| slot.svid.clone());
        match TlsIdentities::new(svids, &bundle) {
            Ok(tls) => {
                self.shared.tls.store(Arc::new(tls));
                self.show();
                self.shared.version.send_modify(|version| *version += 1);
            }
            Err(error) => {
                warn!(%error, "identities cannot be used; the last ones stay");
                self.error(&error.to_string());
                self.show();
            }
        }
    }

    fn show(&self) {
        let certs = self.slots.iter().map(|(principal, slot)| view(principal, slot)).collect();
        self.shared.certs.store(Arc::new(certs));
    }

    fn error(&self, message: &str) {
        let roots = u32::try_from(self.roots.len()).unwrap_or(u32::MAX);
        self.shared.facts.store(Arc::new(Facts { roots, last_error: message.to_owned() }));
    }
}

fn view(principal: &Principal, slot: &Slot) -> CertView {
    let state = match (&slot.svid, slot.failures) {
        (None, _) => CertState::Waiting,
        (Some(_), 0) => CertState::Valid,
        (Some(_), _) => CertState::Failing,
    };
    CertView {
        principal: principal.to_string(),
        state,
        serial: slot.svid.as_ref().map(|svid| svid.serial().to_owned()).unwrap_or_default(),
        not_before_unix_ns: slot.svid.as_ref().map_or(0, |svid| unix_ns(svid.not_before())),
        not_after_unix_ns: slot.svid.as_ref().map_or(0, |svid| unix_ns(svid.not_after())),
        renew_at_unix_ns: unix_ns(slot.due),
        failures: slot.failures,
        last_error: slot.last_error.clone(),
    }
}

/// Doubles up to [`MAX_RETRY`], a random half of it off.
fn backoff(failures: u32) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(MAX_RETRY).mul_f64(rand::rng().random_range(0.5..1.0))
}
