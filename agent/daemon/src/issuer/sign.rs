//! From a request's bytes to a certificate, or to a refusal. No I/O.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;

use super::authority::Request;
use super::{Authority, NodeWorkloads, SignError, SignRequest, Signed, TokenError, TokenKey};

/// A refusal with its HTTP status.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) StatusCode, pub(crate) String);

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        let status = match error {
            TokenError::OtherNode { .. } => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        };
        Self(status, error.to_string())
    }
}

impl From<SignError> for Refusal {
    fn from(error: SignError) -> Self {
        let status = match error {
            SignError::Sign(_) | SignError::Origin | SignError::Random => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        };
        Self(status, error.to_string())
    }
}

/// What signing takes.
#[derive(Debug)]
pub(crate) struct Signer {
    pub(crate) authority: Authority,
    pub(crate) tokens: TokenKey,
    pub(crate) svid_ttl: Duration,
    pub(crate) workloads: Arc<dyn NodeWorkloads>,
}

impl Signer {
    /// Reads a [`SignRequest`] in JSON, and signs what it may ask for.
    pub(crate) fn answer(&self, body: &[u8], now: SystemTime) -> Result<(SignRequest, Request, Signed), Refusal> {
        let request: SignRequest = serde_json::from_slice(body)
            .map_err(|error| Refusal(StatusCode::BAD_REQUEST, format!("the request cannot be read: {error}")))?;
        // Nothing of the request is parsed before the caller is known to be a node.
        self.tokens.check(&request.token, &request.node, now)?;
        let asked = self.authority.check(&request.csr)?;
        let Some(origin) = self.workloads.origin(&request.node, &asked.principal) else {
            let error = format!(
                "no workload of {} is on node {}: this issuer's source must hold the Workload",
                asked.principal, request.node
            );
            return Err(Refusal(StatusCode::FORBIDDEN, error));
        };
        let signed = self.authority.sign(&asked, &origin, now, self.svid_ttl)?;
        Ok((request, asked, signed))
    }
}
