//! What the CLI reads from the agent's socket.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{ApiError, CertView, FlowLine, FlowRecord, Status, TunnelView, WorkloadView};

/// An answer of the admin API, of the type that the first byte names: what can be read is written as it was read.
pub fn answers(bytes: &[u8]) {
    let Some((&kind, text)) = bytes.split_first() else { return };
    match kind {
        b's' => again::<Status>(text),
        b'w' => again::<Vec<WorkloadView>>(text),
        b't' => again::<Vec<TunnelView>>(text),
        b'c' => again::<Vec<CertView>>(text),
        b'l' => again::<FlowLine>(text),
        b'e' => again::<ApiError>(text),
        _ => again::<Vec<FlowRecord>>(text),
    }
}

fn again<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(text) else { return };
    let written = serde_json::to_vec(&value).unwrap();
    assert_eq!(serde_json::from_slice::<T>(&written).unwrap(), value);
}
