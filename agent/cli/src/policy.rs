//! `kumiko policy`: what is in force on a node, or what a folder says.

mod apply;
mod folder;

use std::path::Path;

use kumiko_core::api::{PolicyObjectView, SetsView, path, query};
use kumiko_core::manifest::Protocol;
use kumiko_core::policy::ask::Asking;
use kumiko_core::policy::explain::Explanation;
use kumiko_core::policy::port::Asked;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::{self, ClientError, Whole};
use crate::fetch::print;
use crate::options::{ExplainArgs, FolderArgs, PolicyCommand, TRUST_DOMAIN};
use crate::terminal::Terminal;
use crate::{Answer, Error, show};

/// Answers, by the agent at `socket` or by a folder.
pub(crate) async fn run(command: &PolicyCommand, socket: &Path, json: bool) -> Result<Answer, Error> {
    let terminal = Terminal::of_stdout();
    match command {
        PolicyCommand::Explain(args) => explain(args, socket, json).await,
        PolicyCommand::List => {
            let answer = get(socket, path::POLICY).await?;
            let list: Vec<PolicyObjectView> = read(&answer)?;
            out(&answer, json, || show::policies(&list, terminal))
        }
        PolicyCommand::Sets => {
            let answer = get(socket, path::SETS).await?;
            let sets: SetsView = read(&answer)?;
            out(&answer, json, || show::sets(&sets, terminal))
        }
        PolicyCommand::Apply(args) => apply::apply(args, socket, json).await,
        PolicyCommand::Check(args) => folder::check(args, json),
    }
}

async fn explain(args: &ExplainArgs, socket: &Path, json: bool) -> Result<Answer, Error> {
    let protocol = Protocol::from(args.protocol);
    let port = match args.port {
        None if args.flow.is_none() && protocol.has_ports() => {
            return Err(Error::CannotSay(format!("which port of {protocol}? Say --port PORT, or --protocol icmp")));
        }
        Some(port) if !protocol.has_ports() => {
            return Err(Error::CannotSay(format!("--port {port}: {protocol} knows no ports; leave it away")));
        }
        port => port.unwrap_or_default(),
    };
    let asked = args.from.as_ref().zip(args.to.as_ref());
    let answer: Explanation = if let (Some(dir), Some((from, to))) = (&args.folder, asked) {
        let trust_domain = args.trust_domain.clone().unwrap_or_else(|| TRUST_DOMAIN.to_owned());
        let asking = Asking { from: from.clone(), to: to.clone(), asked: Asked { protocol, port } };
        let answer = folder::explained(&FolderArgs { folder: dir.clone(), trust_domain }, &asking)?;
        if json {
            json_out(&answer)?;
        }
        answer
    } else {
        let mut text = String::new();
        let parts = [
            ("flow", args.flow.clone()),
            ("from", args.from.as_ref().map(ToString::to_string)),
            ("to", args.to.as_ref().map(ToString::to_string)),
            ("port", args.port.map(|port| port.to_string())),
            ("protocol", asked.map(|_| protocol.name().to_owned())),
        ];
        for (name, value) in parts {
            value.iter().for_each(|value| query::push(&mut text, name, value));
        }
        let whole = get(socket, &format!("{}?{text}", path::EXPLAIN)).await?;
        if json {
            json_out(&read::<Value>(&whole)?)?;
        }
        read(&whole)?
    };
    if !json {
        print(&show::explanation(&answer, Terminal::of_stdout()), "")?;
    }
    Ok(if answer.verdict == "allow" { Answer::Positive } else { Answer::Negative })
}

/// Asks an agent; one that cannot say is no agent that is broken.
async fn get(socket: &Path, target: &str) -> Result<Whole, Error> {
    client::get(socket, target).await.map_err(|error| match error {
        ClientError::Refused { status: 400 | 422, message } => Error::CannotSay(message),
        other => other.into(),
    })
}

fn read<T: DeserializeOwned>(answer: &Whole) -> Result<T, Error> {
    serde_json::from_slice(&answer.body).map_err(|error| ClientError::Answer(error.to_string()).into())
}

/// As JSON (all that the agent said), or as text.
fn out(answer: &Whole, json: bool, text: impl FnOnce() -> String) -> Result<Answer, Error> {
    if json {
        json_out(&read::<Value>(answer)?)?;
    } else {
        print(&text(), "")?;
    }
    Ok(Answer::Positive)
}

fn json_out(value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::Output(error.into()))?;
    print(&text, "\n")
}
