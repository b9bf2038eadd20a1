//! The benchmark and its helpers: server, load, plain relay.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use kumiko_bench::load::Mode;
use kumiko_bench::report::Report;
use kumiko_bench::{load, measure, policy, relay};
use kumiko_lab::Net;

/// Benchmarks of kumiko; start it with `cargo xtask bench`.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure everything.
    Run {
        /// Rounds.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Seconds of each measurement.
        #[arg(long, default_value_t = 2)]
        seconds: u64,
        /// How pods are joined to their node.
        #[arg(long, default_value_t = Net::Routed)]
        net: Net,
        /// Where the JSON goes.
        #[arg(long)]
        json: PathBuf,
        /// What was typed.
        #[arg(long)]
        command: String,
    },
    /// Measure policy: compiling it, and asking it in the kernel.
    Policy {
        /// What was typed.
        #[arg(long)]
        command: String,
    },
    /// Answer the load.
    Serve {
        /// Address.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Make load.
    Load {
        /// The server.
        #[arg(long)]
        to: SocketAddr,
        /// What kind.
        #[arg(long)]
        mode: Mode,
        /// Connections at once.
        #[arg(long)]
        at_once: usize,
        /// How long.
        #[arg(long)]
        millis: u64,
    },
    /// Copy between two sockets.
    Relay {
        /// Address.
        #[arg(long)]
        listen: SocketAddr,
        /// Where to.
        #[arg(long)]
        to: SocketAddr,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Run { rounds, seconds, net, json, command } => {
            let results = measure::all(net, rounds, Duration::from_secs(seconds))?;
            let report = Report {
                date: kumiko_lab::command::run("date", &["-u", "+%Y-%m-%d"])?.trim().to_owned(),
                kernel: kumiko_lab::command::run("uname", &["-r"])?.trim().to_owned(),
                processors: std::thread::available_parallelism().map_or(1, usize::from),
                command,
                results,
            };
            std::fs::write(&json, serde_json::to_vec_pretty(&report)?)
                .with_context(|| format!("writing {}", json.display()))?;
            println!("{}", report.table());
            Ok(())
        }
        Command::Policy { command } => {
            println!("{}", policy::run(&command)?);
            Ok(())
        }
        Command::Serve { listen } => load::serve(listen),
        Command::Load { to, mode, at_once, millis } => {
            let sample = load::client(to, mode, at_once, Duration::from_millis(millis))?;
            println!("{}", serde_json::to_string(&sample)?);
            Ok(())
        }
        Command::Relay { listen, to } => relay::run(listen, to),
    }
}
