//! Against a real issuer.

use std::net::SocketAddr;
use std::sync::Mutex;

use kumiko_core::manifest;
use kumiko_core::model::World;
use kumiko_core::origin::Origin;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::issuer::{Issuer, IssuerClient, NodeWorkloads, StateDir};

const SOON: Duration = Duration::from_secs(60);

/// What the issuer knows, and the UID that the namespace has there; shared with the test, which changes it.
#[derive(Clone, Default)]
struct Known(Arc<Mutex<Vec<Principal>>>, Arc<Mutex<&'static str>>);

impl NodeWorkloads for Known {
    fn origin(&self, node: &str, principal: &Principal) -> Option<Origin> {
        let known = node == "n1" && self.0.lock().unwrap().contains(principal);
        let namespace_uid = (*self.1.lock().unwrap()).to_owned();
        known.then(|| Origin { node: node.to_owned(), namespace_uid, ..Origin::default() })
    }
}

fn world(epoch: u64, accounts: &[&str]) -> Arc<World> {
    world_of(epoch, accounts, "")
}

/// The same with a UID of the namespace; empty: not known.
fn world_of(epoch: u64, accounts: &[&str], uid: &str) -> Arc<World> {
    let namespace = match uid {
        "" => String::new(),
        uid => format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: demo, uid: {uid}}}\n"),
    };
    let text: String = accounts
        .iter()
        .enumerate()
        .map(|(n, account)| {
            format!(
                "---\napiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {account}, namespace: demo, uid: u-{n}}}\n\
                 spec: {{serviceAccount: {account}, node: n1, ips: [10.0.0.{}]}}\n",
                n + 1
            )
        })
        .collect();
    let text = namespace + &text;
    let objects = manifest::parse("test.yaml", &text).unwrap();
    let (world, problems) = World::build("cluster.local", epoch, objects.iter().map(|o| ("test.yaml", o))).unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    Arc::new(world)
}

fn principal(account: &str) -> Principal {
    Principal::new("cluster.local", "demo", account).unwrap()
}

struct Issuing {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Issuing {
    async fn start(state: &StateDir, known: Known, ttl: Duration, at: SocketAddr) -> Self {
        let issuer = Issuer::new(state.clone(), "cluster.local", ttl, Arc::new(known)).unwrap();
        let listener = Issuer::listen(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let stop = async {
                let _ = stopped.await;
            };
            Arc::new(issuer).serve(listener, stop).await.unwrap();
        });
        Self { address, stop: Some(stop), task }
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.await.unwrap();
    }
}

fn manager(state: &StateDir, address: SocketAddr) -> Manager {
    let token = state.token_key().unwrap().issue("n1", SystemTime::now(), Duration::from_secs(3600));
    let root = std::fs::read_to_string(state.root_path()).unwrap();
    let file = state.root_path().with_file_name("token");
    std::fs::write(&file, token).unwrap();
    let client = IssuerClient::new(address, "n1", &root, &file).unwrap();
    Manager::new(client, "n1", "cluster.local").unwrap()
}

/// An issuer that knows `web`, in a folder of its own, and who asks it.
async fn begun(known: &Known) -> (tempfile::TempDir, Issuing, Manager) {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    known.0.lock().unwrap().push(principal("web"));
    let any = "127.0.0.1:0".parse().unwrap();
    let issuer = Issuing::start(&state, known.clone(), Duration::from_secs(3600), any).await;
    let manager = manager(&state, issuer.address);
    (directory, issuer, manager)
}

async fn until(identities: &Identities, what: &str, holds: impl Fn(&Identities) -> bool) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !holds(identities) {
        assert!(tokio::time::Instant::now() < deadline, "{what}: {:?}", identities.certs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_new_workload_gets_a_certificate_and_a_gone_one_loses_it() {
    let known = Known::default();
    let (_directory, issuer, manager) = begun(&known).await;
    let identities = manager.identities();
    let (send, receive) = watch::channel(world(1, &["web"]));
    let running = tokio::spawn(manager.run(receive, std::future::pending()));

    let web = identities.client_for(&principal("web"), SOON).await.unwrap();
    assert_eq!(web.svid.principal(), &principal("web"));
    let cert = identities.certs().remove(0);
    assert_eq!((cert.state, cert.failures, cert.serial.as_str()), (CertState::Valid, 0, web.svid.serial()));
    let half = (cert.not_after_unix_ns - unix_ns(SystemTime::now())) / 2;
    let renew_in = cert.renew_at_unix_ns - unix_ns(SystemTime::now());
    assert!(renew_in.abs_diff(half) < half / 5, "renews at half life, give or take: {renew_in} of {half}");

    // The issuer does not know the second one yet: it is waited for, and the first one keeps working.
    send.send(world(2, &["web", "db"])).unwrap();
    until(&identities, "refused", |i| i.certs().iter().any(|c| c.failures > 1)).await;
    let waiting = identities.certs().into_iter().find(|c| c.principal.ends_with("db")).unwrap();
    assert_eq!(waiting.state, CertState::Waiting);
    assert!(waiting.last_error.contains("no workload of"), "{}", waiting.last_error);
    assert!(!identities.complete());
    assert!(identities.client_for(&principal("db"), Duration::from_millis(1)).await.is_none());
    known.0.lock().unwrap().push(principal("db"));
    assert!(identities.client_for(&principal("db"), SOON).await.is_some());
    assert!(identities.complete() && identities.status().valid == 2);

    send.send(world(3, &["db"])).unwrap();
    until(&identities, "dropped", |i| i.current().client_for(&principal("web")).is_none()).await;
    assert_eq!(identities.certs().len(), 1);
    running.abort();
    issuer.stop().await;
}

#[tokio::test]
async fn renewal_goes_on_and_an_issuer_that_is_down_costs_nothing_until_expiry() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    let known = Known::default();
    known.0.lock().unwrap().push(principal("web"));
    // Its port is wanted twice: on the address of the other tests one of them could be given it meanwhile.
    let any = "127.0.0.3:0".parse().unwrap();
    // Renewed at its half; in the other half it must be seen that it is kept.
    let ttl = Duration::from_secs(8);
    let issuer = Issuing::start(&state, known.clone(), ttl, any).await;
    let address = issuer.address;
    let manager = manager(&state, address);
    let identities = manager.identities();
    let (_send, receive) = watch::channel(world(1, &["web"]));
    let running = tokio::spawn(manager.run(receive, std::future::pending()));

    let first = identities.client_for(&principal("web"), SOON).await.unwrap().svid.serial().to_owned();
    until(&identities, "renewed", |i| i.certs().iter().any(|c| !c.serial.is_empty() && c.serial != first)).await;
    issuer.stop().await;
    until(&identities, "failing", |i| i.certs().iter().any(|c| c.state == CertState::Failing)).await;
    assert!(identities.current().client_for(&principal("web")).is_some(), "the old one is kept until it expires");
    assert!(identities.status().last_error.contains("cannot reach the issuer"), "{}", identities.status().last_error);
    until(&identities, "expired", |i| i.current().client_for(&principal("web")).is_none()).await;
    assert!(!identities.complete());

    let issuer = Issuing::start(&state, known, ttl, address).await;
    assert!(identities.client_for(&principal("web"), SOON).await.is_some());
    assert_eq!(identities.status().last_error, "");
    running.abort();
    issuer.stop().await;
}

#[tokio::test]
async fn a_namespace_that_comes_back_gets_another_certificate() {
    let known = Known::default();
    *known.1.lock().unwrap() = "first";
    let (_directory, issuer, manager) = begun(&known).await;
    let identities = manager.identities();
    let (send, receive) = watch::channel(world_of(1, &["web"], "first"));
    let running = tokio::spawn(manager.run(receive, std::future::pending()));
    let said = |identities: &Identities| {
        let now = identities.current();
        let origin = now.client_for(&principal("web")).and_then(|web| web.svid.origin().cloned());
        origin.map(|origin| (origin.node, origin.namespace_uid))
    };
    let is = |uid: &str| Some(("n1".to_owned(), uid.to_owned()));
    until(&identities, "the first", |now| said(now) == is("first")).await;
    // The issuer hears of it later than this node: asked again until it has.
    send.send(world_of(2, &["web"], "second")).unwrap();
    let asked_again = |now: &Identities| now.issued.load(Ordering::Relaxed) >= 3;
    until(&identities, "asked again", asked_again).await;
    *known.1.lock().unwrap() = "second";
    until(&identities, "the second", |now| said(now) == is("second")).await;
    running.abort();
    issuer.stop().await;
}
