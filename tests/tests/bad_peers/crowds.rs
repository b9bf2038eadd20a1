//! Crowds that knock at once.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_abi::Reason;
use kumiko_lab::command::wait_for;
use kumiko_lab::spec::node_ips;
use kumiko_lab::wire::TUNNEL_PORT;
use serde_json::Value;

use super::{HOUR, LIMIT, NODE, World, ends};

/// More silent connections than there are handshakes at once.
const CROWD: usize = 1200;

impl World {
    /// So many connections that say nothing that they would take all turns: none of them does.
    pub(super) fn crowd(&self) -> Result<()> {
        let (turned_away, given_up) = (self.count(Reason::TunnelLimit)?, self.count(Reason::HandshakeTimedOut)?);
        for mut stream in self.crowd_that_says(b"")? {
            ends(&mut stream)?;
        }
        wait_for("all of them are given up", Duration::from_secs(5), || {
            let now = self.count(Reason::HandshakeTimedOut)?;
            ensure!(now == given_up + CROWD as u64, "{given_up} before, {now} now: {:?}", self.refusals()?);
            Ok(())
        })?;
        ensure!(self.count(Reason::TunnelLimit)? == turned_away, "some waited for a turn: {:?}", self.refusals()?);
        // Whoever knocks does not write this node's log.
        let log = std::fs::read_to_string(&self.side.lab.node(NODE)?.files.log).context("reading the log")?;
        let lines = log.lines().filter(|line| line.contains(Reason::HandshakeTimedOut.name())).count();
        ensure!(lines < CROWD / 10, "{lines} lines about {CROWD} silent connections");
        Ok(())
    }

    /// So many connections that begin a handshake and stop, all from one of n1's addresses, that they would take every
    /// turn: whoever comes from another address shakes hands all the same.
    pub(super) fn half_spoken_crowd(&self) -> Result<()> {
        // A record of 512 bytes, a ClientHello of 508: the rest never comes.
        const BEGUN: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 252];
        let [_, v6] = node_ips(NODE);
        let crowd = self.crowd_that_says(BEGUN)?;
        wait_for("most of the crowd is inside", Duration::from_secs(4), || {
            let status = self.side.lab.admin(NODE, "/v1/status")?;
            let arriving = status.pointer("/tunnels/arriving").and_then(Value::as_u64).context("no arriving")?;
            ensure!(arriving > CROWD as u64 * 3 / 4, "{arriving} of {CROWD}");
            Ok(())
        })?;
        let made = self.on_tunnel(self.connect_to(v6)?, &super::authority::honest(), self.now + HOUR, async |_| Ok(()));
        made.with_context(|| format!("behind {CROWD} half-spoken handshakes of another address"))?;
        drop(crowd);
        Ok(())
    }

    /// A crowd of connections from one address, each of which says this. Made fast: the first are given up after seconds.
    fn crowd_that_says(&self, bytes: &[u8]) -> Result<Vec<TcpStream>> {
        let [v4, _] = node_ips(NODE);
        let one = || {
            let mut stream = TcpStream::connect((v4, TUNNEL_PORT)).context("connecting")?;
            stream.set_read_timeout(Some(LIMIT)).context("limiting reads")?;
            stream.write_all(bytes).context("speaking")?;
            Ok(stream)
        };
        self.side.lab.node(1)?.netns.within(|| (0..CROWD).map(|_| one()).collect())
    }
}
