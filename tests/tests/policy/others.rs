//! Policy that is not kumiko's to enforce.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use kumiko_core::api::Status;
use kumiko_lab::command::wait_for;
use kumiko_lab::{Family, Net, Stage};

use super::world::{OPEN, within};

/// For an answer.
const WITHIN: Duration = Duration::from_secs(30);

const CILIUM: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: l7, namespace: clear}
spec: {endpointSelector: {}}
";

const ACCEPTED: &str = "
---
apiVersion: kumiko.dev/v1alpha1
kind: MeshSettings
metadata: {name: mesh}
spec: {acceptedPolicyKinds: [CiliumNetworkPolicy.cilium.io]}
";

pub(super) fn accepted() -> Result<()> {
    within("others", Net::Routed, |world| {
        let says = |fits: &dyn Fn(&[String]) -> bool| {
            wait_for("it is told", WITHIN, || {
                let status: Status = serde_json::from_value(world.lab.admin(1, "/v1/status")?)?;
                let told: Vec<String> = status.source.diagnostics.into_iter().map(|told| told.message).collect();
                ensure!(fits(&told), "{told:?}");
                Ok(())
            })
        };
        // At strict it lets nobody in who is known by an address only, such as another node's own processes.
        let to = SocketAddr::new(world.lab.pod("clear-1")?.ip(Family::V4), OPEN);
        let asks = |allowed: bool| {
            let connected = world.lab.node(2)?.netns.within(|| Ok(TcpStream::connect_timeout(&to, WITHIN)))?;
            let kind = connected.err().map(|error| error.kind());
            ensure!(kind == if allowed { None } else { Some(ErrorKind::ConnectionRefused) }, "{kind:?}");
            Ok(())
        };
        world.apply(CILIUM)?;
        world.lab.set_stage("clear", Stage::Strict)?;
        world.lab.wait_stage("clear", Stage::Observe)?;
        asks(true)?;
        let why = "Namespace clear: its stage would be strict and is observe, for kumiko does not enforce \
                   CiliumNetworkPolicy.cilium.io clear/l7";
        says(&|told| told.iter().any(|told| told.starts_with(why)))?;
        world.put(&format!("{CILIUM}{ACCEPTED}"))?;
        world.lab.wait_stage("clear", Stage::Strict)?;
        asks(false)?;
        says(&|told| told.is_empty())?;
        // Accepted no more: nobody who may write such an object takes a namespace out of the mesh.
        world.put(CILIUM)?;
        says(&|told| told.iter().any(|told| told.contains("namespace clear goes on at strict")))?;
        asks(false)?;
        world.lab.wait_stage("clear", Stage::Strict)
    })
}
