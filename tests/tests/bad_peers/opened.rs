//! Flows that are opened on tunnels that are right in themselves.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kumiko_abi::FlowId;
use kumiko_core::Principal;
use kumiko_core::frame::Open;
use kumiko_core::manifest::{Scope, parse_in};
use kumiko_core::model::{World as Model, node_hash};
use kumiko_core::origin::Origin;
use kumiko_core::route::label_digest;
use kumiko_lab::Family;
use kumiko_lab::agents::TRUST_DOMAIN;
use kumiko_lab::command::wait_for;
use kumiko_lab::peer::{Action, Step};
use kumiko_tests::in_force;
use kumiko_tunnel::identity::{Bundle, Identities, Svid};
use kumiko_tunnel::{Tunnel, TunnelOptions, dial};
use nix::sys::signal::Signal;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::authority::honest;
use super::{HOUR, NODE, World, client};

impl World {
    /// Opens a flow with a right certificate of `client`, as if from `source`, for what it says is server-2's address.
    pub(super) fn open(&self, source: &str, destination: &str) -> Result<()> {
        self.open_until(source, destination, self.now + HOUR, Duration::ZERO)
    }

    /// The same by a certificate that ends after `life`, on a tunnel that is older.
    pub(super) fn open_at_the_end_of(&self, source: &str, destination: &str, life: Duration) -> Result<()> {
        // Certificates tell whole seconds.
        self.open_until(source, destination, SystemTime::now() + life, life + Duration::from_secs(1))
    }

    fn open_until(&self, source: &str, destination: &str, to: SystemTime, wait: Duration) -> Result<()> {
        self.ask(&self.flow(source, destination)?, &honest(), to, wait)
    }

    /// What is opened, as if from `source`.
    fn flow(&self, source: &str, destination: &str) -> Result<Open> {
        Ok(Open {
            flow_id: FlowId([9; 16]),
            client: SocketAddr::new(self.side.lab.pod(source)?.ip(Family::V4), 40_000),
            destination: SocketAddr::new(self.side.lab.pod(destination)?.ip(Family::V4), 8080),
            destination_uid: self.uid("server-2")?,
            source_uid: self.uid(source)?,
            label_digest: Vec::new(),
            service: None,
            epoch: 0,
        })
    }

    /// Opens a right flow of client-1 by a certificate that was given to somebody else of the same name.
    pub(super) fn open_as_given_to(&self, change: impl FnOnce(&mut Origin)) -> Result<()> {
        let mut origin = honest();
        change(&mut origin);
        self.ask(&self.flow("client-1", "server-2")?, &origin, self.now + HOUR, Duration::ZERO)
    }

    /// Puts a rule into the folder that chooses by labels; it is enforced by nobody. The digest is that of other labels than
    /// client-1 has.
    pub(super) fn choose_by_labels(&self) -> Result<Vec<u8>> {
        let policy = "apiVersion: kumiko.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {name: labels, namespace: demo}\nspec:\n  \
                      mode: audit\n  subject: {labels: {app: server}}\n  ingress: [{name: client, from: [{namespace: demo, \
                      labels: {app: client}}]}]\n";
        in_force::after(&self.side.lab, || {
            fs::write(self.side.lab.manifests().join("policy.yaml"), policy).context("the policy's file")
        })?;
        let pod = "---\napiVersion: kumiko.dev/v1alpha1\nkind: Workload\nmetadata: {name: client-1, namespace: demo, uid: u, \
                   labels: {app: before}}\nspec: {serviceAccount: client, node: n1, ips: [10.0.0.1]}\n";
        let objects =
            parse_in(Scope::Policy, "before", &format!("{policy}{pod}")).map_err(|errors| anyhow!("{errors:?}"))?;
        let (world, _) = Model::build(TRUST_DOMAIN, 1, objects.iter().map(|object| ("before", object)))?;
        let client = world.workload_named("demo", "client-1").context("client-1")?;
        Ok(label_digest(&world, client))
    }

    /// Opens a flow by a right certificate that says of client-1 what is so no more.
    pub(super) fn open_with(&self, change: impl FnOnce(&mut Open)) -> Result<()> {
        let mut open = self.flow("client-1", "server-2")?;
        change(&mut open);
        self.ask(&open, &honest(), self.now + HOUR, Duration::ZERO)
    }

    /// Opens a flow on a tunnel of `client` to `server` that is right in itself; must be refused.
    fn ask(&self, open: &Open, origin: &Origin, to: SystemTime, wait: Duration) -> Result<()> {
        self.on_tunnel(self.connect()?, origin, to, async |mut tunnel| {
            // The tunnel's certificate ends meanwhile: only time does that.
            tokio::time::sleep(wait).await;
            match tunnel.open(open).await {
                Ok(_) => bail!("the flow was opened: {open:?}"),
                Err(_) => Ok(()),
            }
        })
    }

    /// Makes a tunnel of `client` to `server` on this connection, by a certificate that is right until `to`.
    pub(super) fn on_tunnel(
        &self,
        stream: TcpStream,
        origin: &Origin,
        to: SystemTime,
        then: impl AsyncFnOnce(Tunnel) -> Result<()>,
    ) -> Result<()> {
        let (chain, key) = self.issuer.sign_for(&client(), origin, self.now - HOUR, to)?;
        let root = CertificateDer::from_pem_file(self.side.lab.dir().join("issuer/root.pem")).context("the root")?;
        let svid = Arc::new(Svid::new(chain, key)?);
        let identities = Identities::new([svid], &Bundle::new(TRUST_DOMAIN, vec![root]))?;
        let principal = |name: &str| Principal::new(TRUST_DOMAIN, "demo", name);
        stream.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::from_std(stream)?;
            let (local, expected) = (principal("client")?, principal("server")?);
            let dialled = dial(stream, &identities, &local, &expected, TunnelOptions::default()).await;
            then(dialled.context("the handshake itself is right")?).await
        })
    }

    /// server-2 dials client-1, whose agent stands still; meanwhile the same tuple is opened from the other end.
    pub(super) fn simultaneous(&self) -> Result<()> {
        let client = SocketAddr::new(self.side.lab.pod("client-1")?.ip(Family::V4), 40_100);
        let server = SocketAddr::new(self.side.lab.pod("server-2")?.ip(Family::V4), 8080);
        self.side.lab.signal_agent(1, Signal::SIGSTOP)?;
        let dialling = Action::Connect {
            to: client,
            from: Some(server),
            within_ms: Some(20_000),
            count: 1,
            script: vec![Step::Close],
        };
        let dialling = self.side.far.begin(dialling)?;
        let waits = wait_for("server-2's connect waits", Duration::from_secs(10), || {
            let status = self.side.lab.admin(NODE, "/v1/status")?;
            let pending = status.get("flows").and_then(|flows| flows.get("pending")?.as_u64());
            ensure!(pending == Some(1), "{pending:?}");
            Ok(())
        });
        let mut flow_id = [7; 16];
        for (to, from) in flow_id.iter_mut().zip(node_hash("n1")) {
            *to = from;
        }
        let open = Open {
            flow_id: FlowId(flow_id),
            client,
            destination: server,
            destination_uid: self.uid("server-2")?,
            source_uid: self.uid("client-1")?,
            label_digest: Vec::new(),
            service: None,
            epoch: 0,
        };
        let asked = waits.and_then(|()| self.ask(&open, &honest(), self.now + HOUR, Duration::ZERO));
        self.side.lab.signal_agent(1, Signal::SIGCONT)?;
        asked?;
        // Nobody listens there: told when its own agent goes on.
        let report = dialling.report()?;
        ensure!(report.connect.as_deref() == Some("ECONNREFUSED"), "{report:?}");
        Ok(())
    }
}
