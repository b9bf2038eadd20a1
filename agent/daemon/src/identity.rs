//! Certificates of this node's workloads: got from the issuer, renewed, handed to the shards.
//!
//! One key and certificate for each principal of a local workload, in memory only. A new principal is asked for as soon
//! as the model has its workload, and dropped with its last one.

mod manager;
pub(crate) mod request;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use kumiko_core::Principal;
use kumiko_core::api::{CertState, CertView, IdentityStatus};
use kumiko_tunnel::identity::{ClientIdentity, Identities as TlsIdentities, ServerIdentity};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

pub use manager::{Manager, StartError};

/// What the shards use and what people see; shared by all.
#[derive(Debug)]
pub struct Identities {
    tls: ArcSwap<TlsIdentities>,
    certs: ArcSwap<Vec<CertView>>,
    facts: ArcSwap<Facts>,
    /// Number of the set in `tls`; a new one means that certificates or roots changed.
    version: watch::Sender<u64>,
    issued: AtomicU64,
    failures: AtomicU64,
    issuer: String,
}

#[derive(Debug, Default)]
struct Facts {
    roots: u32,
    last_error: String,
}

impl Identities {
    fn new(tls: TlsIdentities, issuer: String, roots: u32) -> Self {
        Self {
            tls: ArcSwap::from_pointee(tls),
            certs: ArcSwap::from_pointee(Vec::new()),
            facts: ArcSwap::from_pointee(Facts { roots, last_error: String::new() }),
            version: watch::Sender::new(0),
            issued: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            issuer,
        }
    }

    /// What tunnels are made with now. A tunnel that was made with an older set stays valid until its flow ends.
    pub fn current(&self) -> Arc<TlsIdentities> {
        self.tls.load_full()
    }

    /// To dial as `principal`; waits up to `within` for a certificate that is being asked for.
    pub async fn client_for(&self, principal: &Principal, within: Duration) -> Option<ClientIdentity> {
        self.find(within, |now| now.client_for(principal).cloned()).await
    }

    /// To accept as the principal of a server name; waits up to `within` for its certificate.
    pub async fn server_for(&self, name: &str, within: Duration) -> Option<Arc<ServerIdentity>> {
        self.find(within, |now| Some(now.server()).filter(|server| server.has(name))).await
    }

    async fn find<T>(&self, within: Duration, find: impl Fn(&TlsIdentities) -> Option<T>) -> Option<T> {
        let find = || find(&self.current());
        if let Some(found) = find() {
            return Some(found);
        }
        let mut version = self.version.subscribe();
        let wait = async {
            loop {
                // Looked at after the subscription, so no change is missed.
                if let Some(found) = find() {
                    return Some(found);
                }
                version.changed().await.ok()?;
            }
        };
        tokio::time::timeout(within, wait).await.ok().flatten()
    }

    /// Tells of each change of certificates or roots, by a higher number: idle tunnels retire then.
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// One line a principal, in their order.
    pub fn certs(&self) -> Vec<CertView> {
        let now = unix_ns(SystemTime::now());
        let mut certs = self.certs.load().as_ref().clone();
        for cert in &mut certs {
            if cert.not_after_unix_ns != 0 && cert.not_after_unix_ns <= now {
                cert.state = CertState::Expired;
            }
        }
        certs
    }

    /// Whether every wanted certificate is there and valid.
    pub fn complete(&self) -> bool {
        self.certs().iter().all(|cert| matches!(cert.state, CertState::Valid | CertState::Failing))
    }

    /// In numbers.
    pub fn status(&self) -> IdentityStatus {
        let certs = self.certs();
        let count = |wanted: &[CertState]| {
            u32::try_from(certs.iter().filter(|cert| wanted.contains(&cert.state)).count()).unwrap_or(u32::MAX)
        };
        let facts = self.facts.load();
        IdentityStatus {
            issuer: self.issuer.clone(),
            wanted: u32::try_from(certs.len()).unwrap_or(u32::MAX),
            valid: count(&[CertState::Valid, CertState::Failing]),
            failing: u32::try_from(certs.iter().filter(|cert| cert.failures > 0).count()).unwrap_or(u32::MAX),
            roots: facts.roots,
            first_expiry_unix_ns: certs
                .iter()
                .map(|cert| cert.not_after_unix_ns)
                .filter(|end| *end != 0)
                .min()
                .unwrap_or(0),
            issued: self.issued.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            last_error: facts.last_error.clone(),
        }
    }
}

/// Unix time in ns.
fn unix_ns(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
