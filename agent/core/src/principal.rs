//! SPIFFE identities: what TLS proves, what certificates and tunnels belong to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>` (SPIFFE ID specification, section 2).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Principal {
    /// Trust domain, lower case.
    pub trust_domain: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
}

/// Why a text is no principal.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PrincipalError {
    /// Not of the form `spiffe://<td>/ns/<ns>/sa/<sa>`.
    #[error("{0:?} is not of the form spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>")]
    Form(String),
    /// A part that is empty, too long or has a character that is not allowed.
    #[error("{part} {value:?} may only hold lower-case letters, digits, '-', '.' and '_', 1 to 253 of them")]
    Part {
        /// Which part.
        part: &'static str,
        /// What it held.
        value: String,
    },
}

impl Principal {
    /// Checks the three parts.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, PrincipalError> {
        for (part, value) in
            [("trust domain", trust_domain), ("namespace", namespace), ("service account", service_account)]
        {
            let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_');
            if value.is_empty() || value.len() > 253 || !value.bytes().all(fine) || value == "." || value == ".." {
                return Err(PrincipalError::Part { part, value: value.to_owned() });
            }
        }
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        })
    }

    /// Name by which a dialler asks for this principal's certificate: first 32 hex digits of SHA-256 of the SPIFFE ID,
    /// then `.kumiko.internal`.
    pub fn server_name(&self) -> String {
        let digest = Sha256::digest(self.to_string().as_bytes());
        let mut name = String::with_capacity(32 + 16);
        for byte in digest.iter().take(16) {
            name.push_str(&format!("{byte:02x}"));
        }
        name.push_str(".kumiko.internal");
        name
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for Principal {
    type Err = PrincipalError;

    fn from_str(text: &str) -> Result<Self, PrincipalError> {
        let form = || PrincipalError::Form(text.to_owned());
        let rest = text.strip_prefix("spiffe://").ok_or_else(form)?;
        let parts: Vec<&str> = rest.split('/').collect();
        match parts.as_slice() {
            [td, "ns", ns, "sa", sa] => Self::new(td, ns, sa),
            _ => Err(form()),
        }
    }
}

impl Serialize for Principal {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Principal {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_server_name() {
        let p = Principal::new("cluster.local", "demo", "web").unwrap();
        assert_eq!(p.to_string(), "spiffe://cluster.local/ns/demo/sa/web");
        assert_eq!(p.to_string().parse::<Principal>().unwrap(), p);
        let name = p.server_name();
        assert_eq!(name.len(), 32 + ".kumiko.internal".len());
        assert!(name.ends_with(".kumiko.internal"));
    }

    #[test]
    fn refuses_other_forms() {
        for bad in [
            "",
            "spiffe://td",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns/a/sa/b/c",
            "https://td/ns/a/sa/b",
            "spiffe://TD/ns/a/sa/b",
        ] {
            assert!(bad.parse::<Principal>().is_err(), "{bad}");
        }
    }
}
