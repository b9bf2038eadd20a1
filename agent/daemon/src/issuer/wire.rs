//! What agent and issuer say to each other: JSON over HTTP/1.1 over TLS 1.3.

use serde::{Deserialize, Serialize};

/// Name in the issuer's TLS certificate. No SVID has a DNS name, so no workload's key can play the issuer.
pub const SERVER_NAME: &str = "issuer.kumiko.internal";

/// Paths.
pub mod path {
    /// `POST` [`super::SignRequest`], answers [`super::SignResponse`].
    pub const SIGN: &str = "/v1/sign";
    /// `GET`, answers [`super::BundleResponse`].
    pub const BUNDLE: &str = "/v1/bundle";
}

/// An agent asks for a certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignRequest {
    /// Name of the asking node.
    pub node: String,
    /// Join token of this node.
    pub token: String,
    /// PKCS #10 request, PEM, with one SAN: the principal's URI.
    pub csr: String,
}

/// The certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignResponse {
    /// Leaf first, PEM.
    pub chain: String,
    /// Roots to trust, PEM each.
    pub bundle: Vec<String>,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
    /// Hex.
    pub serial: String,
}

/// Roots to trust.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BundleResponse {
    /// PEM each.
    pub bundle: Vec<String>,
}

/// A refusal.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorResponse {
    /// What was wrong and what to do.
    pub error: String,
}
