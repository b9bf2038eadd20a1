//! One function a subcommand: asks, then shows.

use std::io::{self, Write};
use std::path::Path;

use kumiko_core::api::{CertView, FlowLine, FlowRecord, Status, TunnelView, WorkloadView, path, query};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::{self, ClientError, Whole};
use crate::options::{Cli, Command, FlowsArgs, Output};
use crate::show;
use crate::terminal::Terminal;
use crate::{Answer, Error, format};

/// Flows to begin with while following.
const FOLLOW_FROM: u32 = 10;

/// Runs one subcommand.
pub(crate) async fn run(cli: &Cli) -> Result<Answer, Error> {
    let ask = Ask { socket: &cli.socket, json: cli.output == Output::Json, terminal: Terminal::of_stdout() };
    match &cli.command {
        Command::Status => {
            let answer = ask.get(path::STATUS).await?;
            let status: Status = read(&answer)?;
            ask.show(&answer, || show::status(&status, format::now(), ask.terminal))?;
            Ok(if status.ready { Answer::Positive } else { Answer::Negative })
        }
        Command::Workloads => {
            ask.list(path::WORKLOADS, |list: &[WorkloadView]| show::workloads(list, ask.terminal)).await
        }
        Command::Tunnels => {
            ask.list(path::TUNNELS, |list: &[TunnelView]| show::tunnels(list, format::now(), ask.terminal)).await
        }
        Command::Certs => {
            ask.list(path::CERTS, |list: &[CertView]| show::certs(list, format::now(), ask.terminal)).await
        }
        Command::Flows(args) if args.follow => ask.follow(args).await,
        Command::Flows(args) => ask.flows(args).await,
        Command::Policy(command) => crate::policy::run(command, ask.socket, ask.json).await,
    }
}

struct Ask<'a> {
    socket: &'a Path,
    json: bool,
    terminal: Terminal,
}

impl Ask<'_> {
    async fn get(&self, target: &str) -> Result<Whole, Error> {
        Ok(client::get(self.socket, target).await?)
    }

    async fn list<T: DeserializeOwned>(
        &self,
        target: &str,
        table: impl FnOnce(&[T]) -> String,
    ) -> Result<Answer, Error> {
        let answer = self.get(target).await?;
        let list: Vec<T> = read(&answer)?;
        self.show(&answer, || table(&list))?;
        Ok(Answer::Positive)
    }

    /// As JSON (all that the agent said, also what this version does not know), or as a table.
    fn show(&self, answer: &Whole, table: impl FnOnce() -> String) -> Result<(), Error> {
        if self.json {
            let value: Value = read(answer)?;
            let text = serde_json::to_string_pretty(&value).map_err(|e| Error::Output(e.into()))?;
            return print(&text, "\n");
        }
        print(&table(), "")
    }

    async fn flows(&self, args: &FlowsArgs) -> Result<Answer, Error> {
        let answer = self.get(&target(args, args.last)).await?;
        let records: Vec<FlowRecord> = read(&answer)?;
        self.show(&answer, || show::flows(&records, self.terminal))?;
        if answer.omitted > 0 {
            let left_out = format::some(answer.omitted, "older flow", "older flows");
            eprintln!("({left_out} not shown: see --last, --from, --to and --verdict)");
        }
        Ok(Answer::Positive)
    }

    async fn follow(&self, args: &FlowsArgs) -> Result<Answer, Error> {
        let target = target(args, Some(args.last.unwrap_or(FOLLOW_FROM)));
        let mut lines = client::follow(self.socket, &target).await?;
        let stream = show::FlowStream::new(self.terminal);
        if !self.json {
            print(&stream.heads(), "\n")?;
        }
        while let Some(line) = lines.next().await? {
            if self.json {
                print(&line, "\n")?;
                continue;
            }
            match serde_json::from_str(&line).map_err(|error| ClientError::Answer(error.to_string()))? {
                FlowLine::Lost { lost } => {
                    eprintln!("({} lost: this reader was too slow)", format::some(lost, "line", "lines"));
                }
                FlowLine::Flow(record) => {
                    if let Some(row) = stream.row(&record) {
                        print(&row, "\n")?;
                    }
                }
            }
        }
        eprintln!("(the agent has ended)");
        Ok(Answer::Positive)
    }
}

fn target(args: &FlowsArgs, last: Option<u32>) -> String {
    let mut text = String::new();
    let parts = [
        ("from", args.from.as_ref().map(ToString::to_string)),
        ("to", args.to.as_ref().map(ToString::to_string)),
        ("verdict", args.verdict.map(|verdict| verdict.name().to_owned())),
        ("wouldDeny", args.would_deny.then(|| "true".to_owned())),
        ("limit", last.map(|last| last.to_string())),
        ("follow", args.follow.then(|| "true".to_owned())),
    ];
    for (name, value) in parts {
        if let Some(value) = value {
            query::push(&mut text, name, &value);
        }
    }
    if text.is_empty() { path::FLOWS.to_owned() } else { format!("{}?{text}", path::FLOWS) }
}

fn read<T: DeserializeOwned>(answer: &Whole) -> Result<T, Error> {
    serde_json::from_slice(&answer.body).map_err(|error| ClientError::Answer(error.to_string()).into())
}

pub(crate) fn print(text: &str, end: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.write_all(end.as_bytes()))
        .and_then(|()| stdout.flush())
        .map_err(Error::Output)
}
