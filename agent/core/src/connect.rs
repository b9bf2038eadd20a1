//! Honest connect, decided: when a client has given up, and how a failed dial is told to it.

use kumiko_abi::{Reason, Stage};

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// Whether the client of a pending flow has stopped trying.
///
/// `first`, `last` and `now` are on one clock, in ns. A SYN is sent again after 1, 2, 4, ... s, so a silence of twice
/// the time tried so far (and 3 s at least) means that nobody waits any more.
pub fn gave_up(first: u64, last: u64, now: u64) -> bool {
    let tried = last.saturating_sub(first);
    let silence = now.saturating_sub(last);
    silence > (tried.saturating_mul(2).saturating_add(SECOND)).max(3 * SECOND)
}

/// How a failure reaches the client, so that its `connect` fails as it would without the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// RST: `ECONNREFUSED`.
    Reset,
    /// ICMP unreachable that carries this errno.
    Unreachable(i32),
    /// Nothing: its own retransmissions run out, as they would have.
    Silence,
    /// The entry passes: its retransmission goes out in the clear, once, marked `downgraded`.
    Downgrade,
}

/// errno numbers of Linux that a dial can end with (`asm-generic/errno.h`).
pub mod errno {
    /// Permission denied: ICMP "administratively prohibited" arrives as EHOSTUNREACH on IPv4 and EACCES on IPv6.
    pub const EACCES: i32 = 13;
    /// Protocol error: ICMPv6 "parameter problem".
    pub const EPROTO: i32 = 71;
    /// ICMP "protocol unreachable".
    pub const ENOPROTOOPT: i32 = 92;
    /// Network is unreachable.
    pub const ENETUNREACH: i32 = 101;
    /// Reset by peer.
    pub const ECONNRESET: i32 = 104;
    /// Timed out.
    pub const ETIMEDOUT: i32 = 110;
    /// Refused.
    pub const ECONNREFUSED: i32 = 111;
    /// ICMP "host down".
    pub const EHOSTDOWN: i32 = 112;
    /// No route to host.
    pub const EHOSTUNREACH: i32 = 113;
}

/// Reason of a connection towards a pod that failed with `number`.
pub fn connect_reason(number: i32) -> Reason {
    match number {
        errno::ECONNREFUSED | errno::ECONNRESET => Reason::ConnectRefused,
        errno::ETIMEDOUT => Reason::ConnectTimedOut,
        errno::ENETUNREACH
        | errno::EHOSTUNREACH
        | errno::EHOSTDOWN
        | errno::EACCES
        | errno::EPROTO
        | errno::ENOPROTOOPT => Reason::ConnectUnreachable,
        _ => Reason::ConnectFailed,
    }
}

/// How to tell the client about a failed dial.
///
/// `stages` are those of both ends; `errno` is what the far pod's connect gave, 0 if it was never tried.
pub fn answer(reason: Reason, errno: i32, stages: [Stage; 2]) -> Answer {
    match reason {
        Reason::ConnectTimedOut => Answer::Silence,
        // As a port without a server answers; an RST would have to be signed.
        Reason::MethodRefused => Answer::Unreachable(errno::ECONNREFUSED),
        Reason::ConnectUnreachable if errno != 0 => Answer::Unreachable(errno),
        Reason::EndpointNotAttached | Reason::DestinationGone => {
            Answer::Unreachable(if errno == 0 { errno::EHOSTUNREACH } else { errno })
        }
        reason if no_tunnel(reason) && stages == [Stage::Permissive; 2] => Answer::Downgrade,
        _ => Answer::Reset,
    }
}

/// Failures that mean "no tunnel to be had", before the far agent said anything about the flow.
fn no_tunnel(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NodeRefused
            | Reason::NodeUnreachable
            | Reason::NoSuchNode
            | Reason::NoCertificate
            | Reason::TlsFailed
            | Reason::TlsVersion
            | Reason::CertificateRefused
            | Reason::HandshakeTimedOut
            | Reason::NotTls
            | Reason::UnrecognizedName
            | Reason::PeerCertificateExpired
            | Reason::PeerCertificateUnknownIssuer
            | Reason::PeerCertificateInvalid
            | Reason::PeerCertificateMissing
            | Reason::PeerTrustDomain
            | Reason::TunnelLimit
            | Reason::PeerClosing
            | Reason::TunnelLost
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_doubles_its_timeout_has_not_given_up() {
        let mut sent = 0;
        for wait in [1, 2, 4, 8, 16, 32] {
            let next = sent + wait * SECOND;
            assert!(!gave_up(0, sent, next), "silent for {wait} s");
            sent = next;
        }
        assert!(gave_up(0, 0, 3 * SECOND + 1));
        assert!(gave_up(0, 7 * SECOND, 7 * SECOND + 15 * SECOND + 1));
    }

    #[test]
    fn failures_are_told_as_without_the_mesh() {
        let strict = [Stage::Strict, Stage::Permissive];
        let permissive = [Stage::Permissive; 2];
        assert_eq!(answer(Reason::ConnectRefused, errno::ECONNREFUSED, strict), Answer::Reset);
        assert_eq!(answer(Reason::ConnectTimedOut, errno::ETIMEDOUT, permissive), Answer::Silence);
        assert_eq!(
            answer(Reason::ConnectUnreachable, errno::ENETUNREACH, strict),
            Answer::Unreachable(errno::ENETUNREACH)
        );
        assert_eq!(answer(Reason::NodeRefused, 0, strict), Answer::Reset);
        assert_eq!(answer(Reason::NodeRefused, 0, permissive), Answer::Downgrade);
        // Who is refused by name is never let through in the clear.
        assert_eq!(answer(Reason::SourceMismatch, 0, permissive), Answer::Reset);
        assert_eq!(answer(Reason::PeerPrincipal, 0, permissive), Answer::Reset);
    }
}
