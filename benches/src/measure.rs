//! What is measured, in rounds that go through all forms.

use std::time::Duration;

use anyhow::{Context, Result};
use kumiko_lab::Net;
use serde::Serialize;

use crate::forms::{Bed, Form};
use crate::load::{Mode, Sample};

/// A measurement.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Between the nodes, or inside one.
    pub cross_node: bool,
    /// What kind of load.
    pub mode: Mode,
    /// Connections at once.
    pub at_once: usize,
}

/// All of them.
pub const METRICS: &[Metric] = &[
    Metric { name: "one stream", cross_node: true, mode: Mode::Stream, at_once: 1 },
    Metric { name: "new connections, 1 in flight", cross_node: true, mode: Mode::Connect, at_once: 1 },
    Metric { name: "new connections, 16 in flight", cross_node: true, mode: Mode::Connect, at_once: 16 },
    Metric { name: "request/response, 1 connection", cross_node: true, mode: Mode::Request, at_once: 1 },
    Metric { name: "request/response, 16 connections", cross_node: true, mode: Mode::Request, at_once: 16 },
    Metric { name: "same node: one stream", cross_node: false, mode: Mode::Stream, at_once: 1 },
    Metric { name: "same node: new connections, 16 in flight", cross_node: false, mode: Mode::Connect, at_once: 16 },
    Metric { name: "same node: request/response, 1 connection", cross_node: false, mode: Mode::Request, at_once: 1 },
];

/// One round of one form.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// What the client measured.
    #[serde(flatten)]
    pub sample: Sample,
    /// CPU seconds of the agents, or of the plain relays.
    pub relay_cpu_seconds: f64,
}

/// All rounds of one metric.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Its name.
    pub name: &'static str,
    /// Whether bytes or events are counted.
    pub stream: bool,
    /// Rounds by form, in [`Form::ALL`]'s order.
    pub forms: Vec<(Form, Vec<Round>)>,
}

/// Measures everything.
pub fn all(net: Net, rounds: usize, time: Duration) -> Result<Vec<Measured>> {
    let beds = Form::ALL.iter().map(|form| Bed::new(*form, net)).collect::<Result<Vec<_>>>()?;
    let mut results: Vec<Measured> = METRICS
        .iter()
        .map(|metric| Measured {
            name: metric.name,
            stream: metric.mode == Mode::Stream,
            forms: Form::ALL.iter().map(|form| (*form, Vec::new())).collect(),
        })
        .collect();
    for round in 1..=rounds {
        for (metric, result) in METRICS.iter().zip(&mut results) {
            eprintln!("bench: round {round} of {rounds}: {}", metric.name);
            for (bed, (_, samples)) in beds.iter().zip(&mut result.forms) {
                let loaded = bed.load(metric.cross_node, metric.mode, metric.at_once, time);
                let (sample, relay_cpu_seconds) =
                    loaded.with_context(|| format!("{}, {}", metric.name, bed.form.name()))?;
                samples.push(Round { sample, relay_cpu_seconds });
            }
        }
    }
    Ok(results)
}
