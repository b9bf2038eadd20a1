//! `kumiko policy`, against a folder.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use kumiko_core::flow_record::PartyMatch;
use kumiko_core::manifest::{FolderState, Protocol, Scope};
use kumiko_core::model::{Service, World};
use kumiko_core::policy::explain::{Explanation, explain};
use kumiko_core::policy::load::{Loaded, load_in};
use kumiko_core::policy::port::Asked;
use kumiko_core::policy::verdict::{End, Evaluator, Flow};
use serde::Serialize;

use crate::fetch::print;
use crate::format::some;
use crate::options::{ExplainArgs, FolderArgs, PolicyCommand, ProtocolName};
use crate::table::wrap;
use crate::terminal::{Paint, Terminal};
use crate::{Answer, Error};

/// The longest word before a line's text, and the space behind it.
const LABEL: usize = 18;

/// Answers without an agent.
pub(crate) fn run(command: &PolicyCommand, json: bool) -> Result<Answer, Error> {
    match command {
        PolicyCommand::Explain(args) => explained(args, json),
        PolicyCommand::Check(args) => check(args, json),
    }
}

/// A folder, as it was read.
struct Folder {
    world: World,
    loaded: Loaded,
    /// Everything that is wrong, with file and line.
    problems: Vec<String>,
    objects: usize,
}

fn read(args: &FolderArgs) -> Result<Folder, Error> {
    let dir = &args.folder;
    let cannot = |why: String| Error::CannotSay(format!("{}: {why}", dir.display()));
    let reading = kumiko_folder::read(dir).map_err(|error| cannot(error.to_string()))?;
    let mut state = FolderState::of(Scope::Policy);
    state.apply(reading.files);
    let built = World::build(&args.trust_domain, 1, state.objects()).map_err(|error| cannot(error.to_string()))?;
    let (world, lowered) = built;
    let loaded = load_in(Some(&args.trust_domain), state.objects());
    let mut problems: Vec<String> = state.diagnostics().chain(&lowered).map(ToString::to_string).collect();
    problems.extend(loaded.problems.iter().map(ToString::to_string));
    Ok(Folder { world, loaded, problems, objects: state.objects_in_force() })
}

#[derive(Serialize)]
struct Checked<'a> {
    objects: usize,
    policies: usize,
    exceptions: usize,
    problems: &'a [String],
}

fn check(args: &FolderArgs, json: bool) -> Result<Answer, Error> {
    let Folder { loaded, problems, objects, .. } = read(args)?;
    let policies = loaded.policies.objects().len();
    let exceptions = loaded.policies.exceptions().len();
    if json {
        json_out(&Checked { objects, policies, exceptions, problems: &problems })?;
    } else {
        let mut text = format!(
            "{}, of which {} and {}\n",
            some(objects as u64, "object", "objects"),
            some(policies as u64, "policy", "policies"),
            some(exceptions as u64, "exception", "exceptions")
        );
        for problem in &problems {
            let _ = writeln!(text, "{problem}");
        }
        print(&text, "")?;
    }
    Ok(if problems.is_empty() { Answer::Positive } else { Answer::Negative })
}

fn explained(args: &ExplainArgs, json: bool) -> Result<Answer, Error> {
    let folder = read(&args.folder)?;
    if !folder.problems.is_empty() {
        return Err(Error::CannotSay(format!("the folder has problems:\n{}", folder.problems.join("\n"))));
    }
    let source = end(&folder.world, &args.from, None)?;
    let destination = end(&folder.world, &args.to, Some(source.ip))?;
    let source = end(&folder.world, &args.from, Some(destination.ip))?;
    if source.ip.is_ipv4() != destination.ip.is_ipv4() {
        let why = format!("{} and {} have no addresses of one family", args.from, args.to);
        return Err(Error::CannotSay(why));
    }
    let protocol = match args.protocol {
        ProtocolName::Tcp => Protocol::Tcp,
        ProtocolName::Udp => Protocol::Udp,
    };
    let flow = Flow { source, destination, asked: Asked { protocol, port: args.port } };
    let Loaded { policies, settings, .. } = &folder.loaded;
    let evaluator = Evaluator { world: &folder.world, policies, settings };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let answer = explain(&evaluator, &flow, i64::try_from(now).unwrap_or(i64::MAX));
    if json {
        json_out(&answer)?;
    } else {
        print(&text(&answer, Terminal::of_stdout()), "")?;
    }
    Ok(if answer.verdict == "allow" { Answer::Positive } else { Answer::Negative })
}

/// The end that somebody means; a workload's address is of the other's family, if it has one.
fn end(world: &World, who: &PartyMatch, like: Option<IpAddr>) -> Result<End, Error> {
    let text = who.to_string();
    let nobody = |why: &str| Error::CannotSay(format!("{text}: {why}"));
    if let PartyMatch::Ip(ip) = who {
        let ip = ip.to_canonical();
        // A verdict is about the endpoint that was chosen, on its own port.
        let of = |service: &&Arc<Service>| service.cluster_ips.contains(&ip) || service.outer_ips.contains(&ip);
        if world.is_disputed(ip) {
            return Err(nobody(
                "is nobody's (see `kumiko policy check`): what uses it is refused, with disputed_address",
            ));
        }
        let Some(service) = world.services().find(of) else { return Ok(End::at(world, ip)) };
        let service = format!("{}/{}", service.namespace, service.name);
        return Err(nobody(&format!("is an address of Service {service}: name one of its workloads, and its port")));
    }
    let (namespace, name) = text.split_once('/').ok_or_else(|| nobody("write NAMESPACE/WORKLOAD or an IP address"))?;
    if name.is_empty() {
        return Err(nobody("is a namespace: name one of its workloads"));
    }
    let workload = world.workload_named(namespace, name);
    let workload = workload.ok_or_else(|| nobody("no workload of this name is in the folder"))?;
    let ip = like.and_then(|like| workload.ip_like(like)).or_else(|| workload.ips.first().copied());
    let ip = ip.ok_or_else(|| nobody("the workload has no address"))?;
    Ok(End { ip, workload: Some(workload.clone()) })
}

fn json_out(value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::Output(error.into()))?;
    print(&text, "\n")
}

fn text(answer: &Explanation, terminal: Terminal) -> String {
    let mut text = String::new();
    let (word, paint) = if answer.verdict == "allow" { ("ALLOW", Paint::Good) } else { ("DENY", Paint::Bad) };
    terminal.paint(&mut text, paint, word);
    if !answer.because.is_empty() {
        let _ = write!(text, " ({})", answer.because);
    }
    let _ = writeln!(text, "  {} -> {}  {} {}", answer.from, answer.to, answer.protocol, answer.port);
    let longest = answer.lines.iter().map(|line| line.label.len()).max().unwrap_or(0).min(LABEL);
    let width = terminal.width.map_or(usize::MAX, |width| width.saturating_sub(longest + 4));
    for line in &answer.lines {
        let mut label = line.label.as_str();
        for part in wrap(&line.text, width) {
            let _ = writeln!(text, "  {label:longest$}  {part}");
            label = "";
        }
    }
    text
}
