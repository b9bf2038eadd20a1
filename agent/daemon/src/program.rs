//! The command line of `kumiko-agent`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use clap::Parser as _;
use kumiko_core::manifest::Scope;
use tracing_subscriber::EnvFilter;

use crate::issuer::{Issuer, StateDir};
use crate::options::{Cli, Command, IssuerOptions, TokenOptions};
use crate::signals::EndSignals;
use crate::source::Taking;
use crate::{run, source};

/// Reads the command line and does what it asks.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // State in doubt is never used: whoever meets a flow after a panic would meet half a decision.
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        std::process::abort();
    }));
    let result = match &cli.command {
        Command::Run(options) => log(&options.log).and_then(|()| run::run(options)),
        Command::Issuer(options) => log(&options.log).and_then(|()| issuer(options)),
        Command::Token(options) => token(options),
        Command::Cleanup(options) => log("info").and_then(|()| run::cleanup(options)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kumiko-agent: {}", causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, without those that a text before them has said already.
fn causes(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn log(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {filter:?}"))?;
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).init();
    Ok(())
}

fn issuer(options: &IssuerOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = EndSignals::new()?;
        // Policy is passed over: an issuer only asks who is where.
        let taking = Taking { scope: Scope::Policy, last_good: None };
        let mut source = source::start(&options.source, &options.trust_domain, taking)?;
        // A folder that is not there is waited for; a signal ends that too.
        tokio::select! {
            synced = source.synced() => drop(synced.context("the source ended before its first reading")?),
            () = signals.recv() => return Ok(()),
        }
        let workloads = Arc::new(source.world.clone());
        let state = StateDir::open(&options.state)?;
        let issuer = Issuer::new(state, &options.trust_domain, options.svid_ttl, workloads)?;
        let listener = Issuer::listen(options.listen).await?;
        let stop = async move { signals.recv().await };
        Arc::new(issuer).serve(listener, stop).await?;
        Ok(())
    })
}

fn token(options: &TokenOptions) -> anyhow::Result<()> {
    let key = StateDir::open(&options.state)?.token_key()?;
    println!("{}", key.issue(&options.node, SystemTime::now(), options.ttl));
    Ok(())
}
