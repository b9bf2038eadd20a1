//! Exchanges of datagrams, of all but TCP: between two addresses and ports (or what stands for them), begun by whoever sent the
//! first one.
//!
//! What answers belongs to the exchange as long as it lives. An entry that lives no more stays for a while, so that a late
//! answer is told from an exchange that its sender begins: it is dropped, and never judged in reverse.

use crate::judge::{Action, Asker, Decision, Peer};
use crate::{Reason, Stage, Verdict, flow};

const SECOND: u64 = 1_000_000_000;
/// An exchange that nobody has answered lives this long after its last datagram, ns.
pub const UNREPLIED_NS: u64 = 30 * SECOND;
/// One that was answered, ns.
pub const REPLIED_NS: u64 = 180 * SECOND;

/// How long an exchange lives after its last datagram, ns.
#[inline(always)]
pub const fn life(replied: bool) -> u64 {
    if replied { REPLIED_NS } else { UNREPLIED_NS }
}

/// Whether an exchange whose last datagram was at `last_ns` lives no more.
#[inline(always)]
pub const fn idle(replied: bool, last_ns: u64, now_ns: u64) -> bool {
    now_ns.saturating_sub(last_ns) >= life(replied)
}

const fn allow(reason: Reason, flags: u32) -> Decision {
    Decision { action: Action::Direct, verdict: Verdict::Allow, reason, flags }
}

const UNTOUCHED: Decision =
    Decision { action: Action::Untouched, verdict: Verdict::Allow, reason: Reason::None, flags: 0 };

/// What stage alone says of a datagram that a local endpoint sends first. Nothing of UDP is tunnelled.
///
/// While an endpoint is being raised (`learn`) its datagrams pass unjudged: an answer to one from before would be taken for
/// the beginning of an exchange.
#[inline(always)]
pub const fn outbound(stage: Stage, learn: bool, peer: Peer) -> Decision {
    let both = flow::flags::JUDGED_BOTH | flow::flags::VETH_PROVED;
    let strict = match stage {
        Stage::Off => return UNTOUCHED,
        Stage::Observe => {
            let proof = if matches!(peer, Peer::Local) { both } else { 0 };
            return allow(Reason::Observed, flow::flags::OBSERVED | proof);
        }
        Stage::Permissive => false,
        Stage::Strict => true,
    };
    if learn {
        return UNTOUCHED;
    }
    match peer {
        Peer::Local => allow(Reason::Allowed, both),
        Peer::Remote | Peer::LocalDetached => allow(Reason::DatagramClear, flow::flags::PLAINTEXT),
        Peer::Outside | Peer::Tunnel => allow(Reason::PeerOutsideMesh, flow::flags::PLAINTEXT),
        Peer::Service | Peer::OpenService => allow(Reason::ServiceNotMeshed, flow::flags::PLAINTEXT),
        Peer::Outer if strict => Decision::refuse(Reason::OuterAddressRefused),
        Peer::Outer => allow(Reason::OuterAddress, flow::flags::PLAINTEXT),
        Peer::Disputed => Decision::refuse(Reason::DisputedAddress),
    }
}

/// What stage alone says of a datagram that reaches a local endpoint first. Rules say the rest: an address is not enough
/// for a strict end, unless one says that it is.
#[inline(always)]
pub const fn inbound(stage: Stage, learn: bool, asker: Asker) -> Decision {
    let host = if matches!(asker, Asker::Host | Asker::Probe) { flow::flags::HOST } else { 0 };
    match stage {
        Stage::Off => UNTOUCHED,
        Stage::Observe => allow(Reason::Observed, flow::flags::OBSERVED | host),
        Stage::Permissive | Stage::Strict if matches!(asker, Asker::Disputed) => {
            Decision::refuse(Reason::DisputedAddress)
        }
        Stage::Permissive | Stage::Strict if learn => UNTOUCHED,
        Stage::Permissive | Stage::Strict if matches!(asker, Asker::Neighbour) => {
            allow(Reason::Allowed, flow::flags::VETH_PROVED)
        }
        Stage::Permissive | Stage::Strict => allow(Reason::DatagramClear, flow::flags::PLAINTEXT | host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_lives_longer_once_it_was_answered() {
        let at = 1_000 * SECOND;
        assert!(!idle(false, at, at + UNREPLIED_NS - 1) && idle(false, at, at + UNREPLIED_NS));
        assert!(!idle(true, at, at + REPLIED_NS - 1) && idle(true, at, at + REPLIED_NS));
        // The clock of an entry may be a little ahead of the one that asks.
        assert!(!idle(false, at + 1, at));
    }

    #[test]
    fn stages() {
        let sent = |stage, peer| outbound(stage, false, peer);
        assert_eq!(sent(Stage::Off, Peer::Outside).action, Action::Untouched);
        assert_eq!(sent(Stage::Observe, Peer::Disputed).action, Action::Direct);
        for stage in [Stage::Permissive, Stage::Strict] {
            assert_eq!(outbound(stage, true, Peer::Outside).action, Action::Untouched);
            assert_eq!(inbound(stage, true, Asker::Unknown).action, Action::Untouched);
            let local = sent(stage, Peer::Local);
            assert_eq!(local.flags, flow::flags::JUDGED_BOTH | flow::flags::VETH_PROVED);
            let remote = sent(stage, Peer::Remote);
            assert_eq!((remote.reason, remote.flags), (Reason::DatagramClear, flow::flags::PLAINTEXT));
            assert_eq!(inbound(stage, false, Asker::Host).flags, flow::flags::PLAINTEXT | flow::flags::HOST);
        }
        assert_eq!(sent(Stage::Strict, Peer::Outer).action, Action::Refuse);
        assert_eq!(sent(Stage::Permissive, Peer::Disputed).action, Action::Refuse);
        assert_eq!(inbound(Stage::Permissive, true, Asker::Disputed).action, Action::Refuse);
        assert_eq!(sent(Stage::Permissive, Peer::Outer).action, Action::Direct);
    }
}
