//! What the agent saw: live flows, records of finished ones, counters.
//!
//! The kernel's flow table and event ring tell about every flow; shards add what only they know through a [`FlowSink`].

mod report;

pub use report::{FlowEnded, FlowOpened, FlowReport, FlowReports, FlowSink, FlowStart, REPORT_QUEUE, flow_reports};
