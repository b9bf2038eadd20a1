//! Addresses that are nobody's alone: a node has several, and each link its own.

use std::ffi::CString;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::spec::node_ips;
use kumiko_lab::{Family, Net};
use nix::net::if_::if_nametoindex;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use super::world::{OPEN, World, within};

const WITHIN: Duration = Duration::from_secs(20);
/// The node's address on each pod's link.
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const PORT: u16 = 7_788;

/// Nodes may come in, but from one network.
fn but_from(network: &str) -> String {
    format!(
        "
apiVersion: kumiko.dev/v1alpha1
kind: MeshBaseline
metadata: {{name: platform}}
spec:
  subject: {{namespace: demo}}
  ingress: {{deny: [{{name: network, from: [{{ipBlock: {{cidr: '{network}'}}}}]}}]}}
---
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {{name: nodes, namespace: demo}}
spec:
  ingress: [{{name: nodes, from: [{{entity: node}}]}}]
"
    )
}

const CLOSED: &str = "
apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: closed, namespace: demo}
spec: {egress: []}
";

/// Rules are asked about the address that a process of the node has, not about another one of the node's.
pub(super) fn of_the_node() -> Result<()> {
    within("node", Net::Routed, |world| {
        for (network, refused) in [("172.31.0.0/24", Family::V4), ("fd00:31::/64", Family::V6)] {
            world.apply(&but_from(network))?;
            for family in [Family::V4, Family::V6] {
                let [four, six] = node_ips(1);
                let from = SocketAddr::new(if family == Family::V4 { four } else { six }, 0);
                let to = SocketAddr::new(world.lab.pod("server-1")?.ip(family), OPEN);
                let told = world.lab.node(1)?.netns.within(|| {
                    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
                    socket.bind(&from.into()).with_context(|| format!("binding {from}"))?;
                    Ok(socket.connect_timeout(&to.into(), WITHIN).map_err(|error| error.kind()))
                })?;
                let wanted = if family == refused { Err(ErrorKind::ConnectionRefused) } else { Ok(()) };
                ensure!(told == wanted, "from {from}, without {network}: {told:?}");
            }
        }
        Ok(())
    })
}

/// What a pod sends within its link is judged as what it sends elsewhere.
pub(super) fn of_the_link() -> Result<()> {
    within("link", Net::Routed, |world| {
        let server = world.lab.node(1)?.netns.within(|| {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)).context("a server of the node")?;
            socket.set_read_timeout(Some(WITHIN))?;
            Ok(socket)
        })?;
        let client = client(world)?;
        client.send(b"asks").context("asking")?;
        let (_, from) = server.recv_from(&mut [0; 16]).context("what is asked")?;
        server.send_to(b"answers", from)?;
        client.recv(&mut [0; 16]).context("the answer: it is no exchange of its own")?;
        world.apply(CLOSED)?;
        let client = self::client(world)?;
        // Refused, if it is told at all: what the agent's namespace answers has no way to an address of the link.
        let _ = client.send(b"asks");
        wait_for("it is told as refused", WITHIN, || {
            let flows = world.lab.admin(1, "/v1/flows?verdict=deny")?;
            let of_the_link = |flow: &&Value| flow.to_string().contains(&GATEWAY.to_string());
            let count = flows.as_array().into_iter().flatten().filter(of_the_link).count();
            ensure!(count == 1, "{flows}");
            Ok(())
        })?;
        server.set_nonblocking(true)?;
        let came = server.recv(&mut [0; 16]).map_err(|error| error.kind());
        ensure!(came == Err(ErrorKind::WouldBlock), "{came:?}");
        Ok(())
    })
}

/// A socket of client-1, towards its node within the link.
fn client(world: &World) -> Result<UdpSocket> {
    world.lab.pod("client-1")?.netns.within(|| {
        let link = if_nametoindex(CString::new("eth0")?.as_c_str()).context("eth0")?;
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).context("a socket")?;
        socket.connect(SocketAddrV6::new(GATEWAY, PORT, 0, link)).context("the node's address on the link")?;
        socket.set_read_timeout(Some(WITHIN))?;
        Ok(socket)
    })
}
