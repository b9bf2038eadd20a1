//! What the fuzz targets of `fuzz/` run; the tests run the same over the kept corpora.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a panic is how a fuzz target speaks"
)]

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use kumiko_core::Principal;
use kumiko_core::api::query;
use rustls_pki_types::PrivatePkcs8KeyDer;

use crate::admin::asked::FlowsQuery;
use crate::admin::{MAX_LIMIT, policy};
use crate::identity::request;
use crate::issuer::fuzz::{Signing, authority_of, extra_roots, pinned};
use crate::issuer::{BundleResponse, SignResponse, TokenKey};

/// A moment that every certificate and token of the corpora is good at.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(2_000_000_000)
}

fn web() -> Principal {
    Principal::new("td", "x", "a").unwrap()
}

/// The query of a request for flows: what is understood can be asked for again.
pub fn admin(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (_, _) = (policy::explaining(text), policy::applied(text));
    let Ok(asked) = FlowsQuery::parse(text) else { return };
    assert!(asked.limit <= MAX_LIMIT);
    let mut again = String::new();
    for (name, party) in [("from", &asked.filter.from), ("to", &asked.filter.to)] {
        if let Some(party) = party {
            query::push(&mut again, name, &party.to_string());
        }
    }
    query::push(&mut again, "limit", &asked.limit.to_string());
    query::push(&mut again, "follow", &asked.follow.to_string());
    let read = FlowsQuery::parse(&again).unwrap_or_else(|error| panic!("{again}: {error}"));
    assert_eq!((read.filter.from, read.filter.to), (asked.filter.from, asked.filter.to));
    assert_eq!((read.limit, read.follow), (asked.limit, asked.follow));
}

/// A request for a certificate; the first byte says which part of it is `bytes`: the whole body, the CSR's text, or its
/// DER. Only the one principal of the asking node is signed, as a leaf and for as long as it should be.
pub fn issuer_request(bytes: &[u8]) {
    static SIGNING: OnceLock<Signing> = OnceLock::new();
    let Some((&part, rest)) = bytes.split_first() else { return };
    let signing = SIGNING.get_or_init(|| Signing::new("td", "n1", web()));
    let token = || signing.token("n1", now());
    let body = match part {
        b'b' => rest.to_vec(),
        b'c' => {
            let csr = String::from_utf8_lossy(rest);
            serde_json::json!({ "node": "n1", "token": token(), "csr": csr }).to_string().into_bytes()
        }
        _ => serde_json::json!({ "node": "n1", "token": token(), "csr": csr(rest) }).to_string().into_bytes(),
    };
    signing.check(&body, now());
}

fn csr(der: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", STANDARD.encode(der))
}

/// A join token, or changes to a good one (place and byte, behind a zero): only the good one is taken.
pub fn token(bytes: &[u8]) {
    static KEY: OnceLock<(TokenKey, String)> = OnceLock::new();
    let (key, good) = KEY.get_or_init(|| {
        let key = TokenKey::new(b"a key of the fuzz target");
        let good = key.issue("n1", now(), Duration::from_secs(60));
        (key, good)
    });
    let text = match bytes {
        [0, changes @ ..] => {
            let mut text = good.clone().into_bytes();
            for [place, byte] in changes.as_chunks::<2>().0 {
                let place = usize::from(*place) % text.len();
                text[place] = *byte;
            }
            String::from_utf8_lossy(&text).into_owned()
        }
        _ => String::from_utf8_lossy(bytes).into_owned(),
    };
    assert_eq!(key.check(&text, "n1", now()).is_ok(), text == *good, "{text}");
    assert!(key.check(&text, "n2", now()).is_err() && key.check(&text, "n1", now() + Duration::from_secs(60)).is_err());
}

/// The issuer's answer, as the agent reads it: status (200 for a zero) and body. A certificate is taken for this key and
/// principal only.
pub fn issuer_answer(bytes: &[u8]) {
    let Some((&status, body)) = bytes.split_first() else { return };
    let status = StatusCode::from_u16(200 + u16::from(status)).unwrap();
    if let Ok(answer) = crate::issuer::fuzz::read_answer::<BundleResponse>(status, body) {
        assert_eq!(status, StatusCode::OK);
        if let Ok(roots) = request::roots(&answer.bundle) {
            assert!(!roots.is_empty());
            let _ = pinned(&answer.bundle.concat());
        }
    }
    let Ok(answer) = crate::issuer::fuzz::read_answer::<SignResponse>(status, body) else { return };
    assert_eq!(status, StatusCode::OK);
    let key = PrivatePkcs8KeyDer::from(include_bytes!("fuzzing/key.der").as_slice());
    if let Ok(granted) = request::granted(&answer, key.into(), &web(), now()) {
        assert!(*granted.svid.principal() == web() && granted.svid.not_after() > now() && !granted.roots.is_empty());
    }
}

/// Files of the issuer's directory: root key and root certificate, a zero between them; and each as a further root, and
/// as what an agent is pinned to.
pub fn issuer_state(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (key, root) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    for file in [key, root] {
        if let Ok(roots) = extra_roots(file) {
            // What is passed on is one certificate each, and reads back.
            for root in roots {
                assert_eq!(extra_roots(root.as_bytes()).unwrap(), [root]);
            }
        }
        if let Ok(text) = std::str::from_utf8(file) {
            let _ = pinned(text);
        }
    }
    let (Ok(key), Ok(root)) = (std::str::from_utf8(key), std::str::from_utf8(root)) else { return };
    if let Ok(authority) = authority_of(key, root, "td") {
        let again = authority_of(key, authority.root_pem(), "td").unwrap();
        assert_eq!(again.root(), authority.root());
    }
}

#[cfg(test)]
mod tests {
    use kumiko_corpus::{dir, replay};

    use super::*;

    #[test]
    fn corpora() {
        replay("admin", admin);
        replay("issuer_answer", issuer_answer);
        replay("issuer_request", issuer_request);
        replay("issuer_state", issuer_state);
        replay("token", token);
    }

    #[test]
    fn the_good_ones_of_the_corpora_are_good() {
        let read = |path: &str| std::fs::read(dir(path)).unwrap();
        let signing = Signing::new("td", "n1", web());
        let token = signing.token("n1", now());
        let body = |csr: String| serde_json::json!({ "node": "n1", "token": token, "csr": csr }).to_string();
        for (name, signed) in [("good", true), ("other", false), ("two", false), ("p384", false)] {
            let csr = csr(&read(&format!("issuer_request/{name}"))[1..]);
            assert_eq!(signing.check(body(csr).as_bytes(), now()), signed, "{name}");
        }
        let answer = serde_json::from_slice(&read("issuer_answer/good")[1..]).unwrap();
        let key = || PrivatePkcs8KeyDer::from(include_bytes!("fuzzing/key.der").as_slice()).into();
        request::granted(&answer, key(), &web(), now()).unwrap();
        let other = Principal::new("td", "x", "b").unwrap();
        assert!(request::granted(&answer, key(), &other, now()).is_err());
        let state = read("issuer_state/good");
        let mut parts = state.splitn(2, |byte| *byte == 0).map(|part| std::str::from_utf8(part).unwrap());
        authority_of(parts.next().unwrap(), parts.next().unwrap(), "td").unwrap();
    }
}
