//! Join tokens: `kumiko1.<payload>.<mac>`, both base64url. Payload: JSON `{"node","exp"}`; MAC: HMAC-SHA256 (RFC 2104)
//! over everything before the second dot.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::hmac;
use serde::{Deserialize, Serialize};
use thiserror::Error;

const PREFIX: &str = "kumiko1";
/// Longest token that is looked at: node names have 253 characters at most.
const MAX_TOKEN: usize = 1024;

/// Key that makes and checks tokens.
#[derive(Debug, Clone)]
pub struct TokenKey(hmac::Key);

#[derive(Serialize, Deserialize)]
struct Payload {
    node: String,
    /// Unix seconds.
    exp: u64,
}

/// Why a token is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TokenError {
    /// Not made by this issuer, or changed.
    #[error("the join token was not made by this issuer: make one with `kumiko-agent token --state … --node {node}`")]
    Invalid {
        /// Node that showed it.
        node: String,
    },
    /// Too old.
    #[error("the join token of node {node} expired {ago} s ago: make a new one with `kumiko-agent token`")]
    Expired {
        /// Node that showed it.
        node: String,
        /// Seconds since.
        ago: u64,
    },
    /// Another node's.
    #[error("the join token is bound to node {bound:?}, but node {asked:?} asks: each node needs its own")]
    OtherNode {
        /// Node in the token.
        bound: String,
        /// Node in the request.
        asked: String,
    },
}

impl TokenKey {
    /// A key of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// A token with which `node` may ask until `ttl` after `now`.
    pub fn issue(&self, node: &str, now: SystemTime, ttl: Duration) -> String {
        let exp = unix_seconds(now).saturating_add(ttl.as_secs());
        let payload = serde_json::json!({ "node": node, "exp": exp }).to_string();
        let head = format!("{PREFIX}.{}", BASE64.encode(payload));
        let mac = hmac::sign(&self.0, head.as_bytes());
        format!("{head}.{}", BASE64.encode(mac.as_ref()))
    }

    /// Whether `token` lets `node` ask at `now`.
    pub fn check(&self, token: &str, node: &str, now: SystemTime) -> Result<(), TokenError> {
        let invalid = || TokenError::Invalid { node: node.to_owned() };
        if token.len() > MAX_TOKEN {
            return Err(invalid());
        }
        let (head, mac) = token.rsplit_once('.').ok_or_else(invalid)?;
        let mac = BASE64.decode(mac).map_err(|_| invalid())?;
        // Constant time; nothing of the payload is read before.
        hmac::verify(&self.0, head.as_bytes(), &mac).map_err(|_| invalid())?;
        let payload = head.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('.')).ok_or_else(invalid)?;
        let payload = BASE64.decode(payload).map_err(|_| invalid())?;
        let payload: Payload = serde_json::from_slice(&payload).map_err(|_| invalid())?;
        if payload.node != node {
            return Err(TokenError::OtherNode { bound: payload.node, asked: node.to_owned() });
        }
        let now = unix_seconds(now);
        if now >= payload.exp {
            return Err(TokenError::Expired { node: node.to_owned(), ago: now - payload.exp });
        }
        Ok(())
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_node_and_only_in_time() {
        let key = TokenKey::new(b"0123456789abcdef0123456789abcdef");
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let token = key.issue("n1", now, Duration::from_secs(60));
        assert_eq!(key.check(&token, "n1", now), Ok(()));
        assert_eq!(key.check(&token, "n2", now), Err(TokenError::OtherNode { bound: "n1".into(), asked: "n2".into() }));
        let later = now + Duration::from_secs(61);
        assert_eq!(key.check(&token, "n1", later), Err(TokenError::Expired { node: "n1".into(), ago: 1 }));
        assert!(TokenKey::new(b"another").check(&token, "n1", now).is_err());
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let key = TokenKey::new(b"k");
        let now = UNIX_EPOCH;
        let token = key.issue("n1", now, Duration::from_secs(60));
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(key.check(&changed, "n1", now).is_err(), "{changed}");
        }
        for garbage in ["", ".", "..", "kumiko1..", "kumiko1.e30.", &"x".repeat(5000)] {
            assert!(matches!(key.check(garbage, "n1", now), Err(TokenError::Invalid { .. })));
        }
    }
}
