//! Benchmarks: the mesh beside the direct way and beside a plain-copy relay without TLS in the same place, all three in
//! one run, their rounds interleaved.
//!
//! Every namespace uses TCP reno: what new namespaces inherit may halve direct throughput and hide all differences.

pub mod forms;
pub mod load;
pub mod measure;
pub mod policy;
pub mod relay;
pub mod report;
