//! `cargo xtask lab`: a lab that stays after the command.

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use kumiko_lab::state::{self, LabState};
use kumiko_lab::{Lab, LabSpec, Net, Stage, status};

use crate::{build, setup};

/// Arguments of `lab`.
#[derive(Args)]
pub(crate) struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Subcommand)]
enum LabCommand {
    /// Make one: two pods a node (`client-N`, `server-N`) in namespace `demo`, agents and issuer running.
    Up {
        /// Nodes.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
        /// How pods are joined to their node: routed or bridged.
        #[arg(long, default_value_t = Net::Routed)]
        net: Net,
        /// Stage of namespace `demo`: off, observe, permissive or strict.
        #[arg(long, default_value_t = Stage::Off)]
        stage: Stage,
        /// Its name; labs of different names stand side by side.
        #[arg(long, default_value = "lab")]
        name: String,
        /// Without issuer and agents.
        #[arg(long)]
        no_mesh: bool,
        /// With the binaries that are there.
        #[arg(long)]
        no_build: bool,
        /// How to print where everything is.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Take it down.
    Down {
        /// Its name.
        #[arg(long, default_value = "lab")]
        name: String,
        /// Every lab of this checkout.
        #[arg(long)]
        all: bool,
    },
    /// Where its parts are.
    Status {
        /// Its name.
        #[arg(long, default_value = "lab")]
        name: String,
        /// Format.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Runs it.
pub(crate) fn run(args: LabArgs) -> Result<()> {
    match args.command {
        LabCommand::Up { nodes, net, stage, name, no_mesh, no_build, output } => {
            setup::run(false)?;
            if !no_build {
                build::all(false)?;
            }
            let spec = LabSpec { keep: true, ..LabSpec::standard(&name, nodes, net, stage) };
            let lab = if no_mesh { Lab::build(&spec)? } else { Lab::up(&spec)? };
            print(&lab.state, output)
        }
        LabCommand::Down { name, all } => down(&name, all),
        LabCommand::Status { name, output } => print(&LabState::find(&name)?, output),
    }
}

fn print(state: &LabState, output: Output) -> Result<()> {
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&status::of(state))?),
        Output::Table => print!("{}", status::table(state)),
    }
    Ok(())
}

fn down(name: &str, all: bool) -> Result<()> {
    let checkout = state::checkout();
    let mine: Vec<LabState> =
        state::all().into_iter().filter(|lab| lab.checkout == checkout && (all || lab.name == name)).collect();
    if mine.is_empty() && !all {
        bail!("no lab {name:?} of this checkout stands");
    }
    for lab in mine {
        let _lock = state::lock()?;
        state::remove(&lab.id)?;
        eprintln!("lab {} is gone", lab.name);
    }
    Ok(())
}
