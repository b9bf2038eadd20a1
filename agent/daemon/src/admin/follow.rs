//! Flows as they happen, one JSON value a line.

use std::sync::Arc;

use http_body_util::channel::Sender;
use hyper::body::Bytes;
use kumiko_core::api::{FlowLine, FlowRecord};
use kumiko_core::flow_record::FlowFilter;
use serde::Serialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

/// Lines are sent together up to about this size.
const CHUNK: usize = 64 * 1024;

/// Sends what is there already, then what comes, until the reader or the agent goes. A reader that is slower than the
/// flows loses lines and is told how many, between the lines around the gap.
pub(super) async fn follow(
    before: Vec<FlowRecord>,
    mut flows: Receiver<Arc<FlowRecord>>,
    filter: FlowFilter,
    mut to: Sender<Bytes>,
) {
    let mut chunk = Vec::new();
    for record in &before {
        line(&mut chunk, record);
        if chunk.len() >= CHUNK && !send(&mut to, &mut chunk).await {
            return;
        }
    }
    loop {
        // Everything that waits goes out in few writes; then the next one is waited for.
        match flows.try_recv() {
            Ok(record) => take(&mut chunk, &filter, &record),
            Err(TryRecvError::Lagged(lost)) => line(&mut chunk, &FlowLine::Lost { lost }),
            Err(TryRecvError::Closed) => {
                send(&mut to, &mut chunk).await;
                return;
            }
            Err(TryRecvError::Empty) => {
                if !send(&mut to, &mut chunk).await {
                    return;
                }
                match flows.recv().await {
                    Ok(record) => take(&mut chunk, &filter, &record),
                    Err(RecvError::Lagged(lost)) => line(&mut chunk, &FlowLine::Lost { lost }),
                    Err(RecvError::Closed) => return,
                }
            }
        }
        if chunk.len() >= CHUNK && !send(&mut to, &mut chunk).await {
            return;
        }
    }
}

fn take(chunk: &mut Vec<u8>, filter: &FlowFilter, record: &FlowRecord) {
    if filter.matches(record) {
        line(chunk, record);
    }
}

fn line<T: Serialize>(chunk: &mut Vec<u8>, value: &T) {
    let before = chunk.len();
    match serde_json::to_writer(&mut *chunk, value) {
        Ok(()) => chunk.push(b'\n'),
        // Half a line would spoil the next one.
        Err(_) => chunk.truncate(before),
    }
}

/// Waits until the reader has taken what was sent before. `false`: it is gone.
async fn send(to: &mut Sender<Bytes>, chunk: &mut Vec<u8>) -> bool {
    chunk.is_empty() || to.send_data(Bytes::from(std::mem::take(chunk))).await.is_ok()
}
