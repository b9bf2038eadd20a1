//! Policy of a folder, without an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use kumiko_core::api::{SourceDiagnostic, Status};
use kumiko_core::manifest::{Diagnostic, FileContent, FolderState, Scope};
use kumiko_core::model::World;
use kumiko_core::policy::ask::Asking;
use kumiko_core::policy::compile::{Image, compile};
use kumiko_core::policy::explain::{Explanation, explain};
use kumiko_core::policy::load::{self, Loaded, load_in};
use kumiko_core::policy::nobody;
use kumiko_core::policy::verdict::Evaluator;
use kumiko_core::principal::PrincipalError;
use serde::Serialize;

use super::apply::Document;
use super::json_out;
use crate::fetch::print;
use crate::format::some;
use crate::options::FolderArgs;
use crate::table::clean_lines;
use crate::{Answer, Error};

/// A folder, as it was read.
struct Folder {
    world: World,
    loaded: Loaded,
    /// Everything that is wrong.
    problems: Vec<Told>,
    objects: usize,
}

/// Something that is wrong, with file and line.
#[derive(PartialEq, Eq)]
struct Told {
    said: SourceDiagnostic,
    /// The agent makes it good, and only tells.
    made_good: bool,
}

fn read(args: &FolderArgs) -> Result<Folder, Error> {
    let dir = &args.folder;
    let mut state = FolderState::of(Scope::Policy);
    state.apply(files(dir)?);
    understand(&state, &args.trust_domain).map_err(|why| Error::CannotSay(format!("{}: {why}", dir.display())))
}

fn files(dir: &Path) -> Result<BTreeMap<String, FileContent>, Error> {
    let reading = kumiko_folder::read(dir);
    Ok(reading.map_err(|error| Error::CannotSay(format!("{}: {error}", dir.display())))?.files)
}

/// What the agent makes of a folder.
fn understand(state: &FolderState, trust_domain: &str) -> Result<Folder, PrincipalError> {
    let (world, lowered) = World::build(trust_domain, 1, state.objects())?;
    let loaded = load_in(Some(trust_domain), state.objects());
    let told = |said: &Diagnostic, made_good| Told { said: said.into(), made_good };
    let mut problems: Vec<Told> = state.diagnostics().map(|problem| told(problem, false)).collect();
    problems.extend(lowered.iter().map(|problem| told(problem, true)));
    problems.extend(
        loaded.problems.iter().map(|problem| Told { said: problem.into(), made_good: problem.problem.is_made_good() }),
    );
    Ok(Folder { world, loaded, problems, objects: state.objects_in_force() })
}

/// Whether documents may take their places in a folder that an agent reads: what is bad is told as the agent would.
pub(super) fn check_with(dir: &Path, documents: &[Document], status: &Status) -> Result<(), Error> {
    let mut files = files(dir)?;
    // As the agent does: who had a name or an address first keeps it.
    let mut state = FolderState::of(Scope::Policy);
    state.apply(files.clone());
    let refuse = |why: String| Error::Refused(format!("nothing was changed in {}: {why}", dir.display()));
    let read = |state: &FolderState| {
        let folder = understand(state, &status.trust_domain);
        folder.map_err(|error| refuse(error.to_string()))
    };
    let said = |folder: &Folder| nobody::told(&folder.world, &folder.loaded, now());
    let before = read(&state)?;
    let (named_nobody, there) = (said(&before), names(&before));
    let before = before.problems;
    files.extend(documents.iter().map(|document| (document.name.clone(), FileContent::Text(document.text.clone()))));
    state.apply(files);
    let folder = read(&state)?;
    // What the agent makes good is told once, when it is new.
    for told in folder.problems.iter().filter(|told| told.made_good && !before.contains(told)) {
        eprintln!("{}", clean_lines(&told.said.to_string()));
    }
    let bad: Vec<String> =
        folder.problems.iter().filter(|told| !told.made_good).map(|told| told.said.to_string()).collect();
    if !bad.is_empty() {
        return Err(refuse(format!("the agent of {} would refuse it:\n{}", status.node, bad.join("\n"))));
    }
    for told in said(&folder).iter().filter(|told| !named_nobody.iter().any(|known| known.problem == told.problem)) {
        eprintln!("{}", clean_lines(&told.to_string()));
    }
    // A file of the same name takes the place of whatever was in it.
    for gone in there.difference(&names(&folder)) {
        eprintln!("{gone} goes out of force: what is put in its file's place has it no more");
    }
    let Loaded { policies, settings, .. } = &folder.loaded;
    let (evaluator, now) = (Evaluator { world: &folder.world, policies, settings }, now());
    let compiled = compile(&evaluator, &status.node, now).and_then(|compiled| Image::of(&compiled, now, 1));
    compiled.map(drop).map_err(|error| refuse(format!("on {}, {error}", status.node)))
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX)
}

#[derive(Serialize)]
struct Checked<'a> {
    objects: usize,
    policies: usize,
    exceptions: usize,
    problems: &'a [SourceDiagnostic],
    warnings: &'a [SourceDiagnostic],
}

/// Whether a folder's policy can be read and does what it says.
pub(super) fn check(args: &FolderArgs, json: bool) -> Result<Answer, Error> {
    let Folder { world, loaded, problems, objects } = read(args)?;
    let (warnings, degraded): (Vec<_>, Vec<_>) =
        nobody::told(&world, &loaded, now()).into_iter().partition(|told| told.problem.is_warning());
    let is_good = problems.is_empty() && degraded.is_empty();
    let policies = loaded.policies.objects().len();
    let exceptions = loaded.policies.exceptions().len();
    if json {
        let warnings: Vec<_> = warnings.iter().map(SourceDiagnostic::from).collect();
        let problems: Vec<_> =
            problems.into_iter().map(|told| told.said).chain(degraded.iter().map(SourceDiagnostic::from)).collect();
        json_out(&Checked { objects, policies, exceptions, problems: &problems, warnings: &warnings })?;
    } else {
        let mut text = format!(
            "{}, of which {} and {}\n",
            some(objects as u64, "object", "objects"),
            some(policies as u64, "policy", "policies"),
            some(exceptions as u64, "exception", "exceptions")
        );
        let of_rules = |told: &[load::Told]| told.iter().map(ToString::to_string).collect::<Vec<_>>();
        let problems = problems.into_iter().map(|told| told.said.to_string());
        for problem in of_rules(&warnings).into_iter().chain(problems).chain(of_rules(&degraded)) {
            let _ = writeln!(text, "{}", clean_lines(&problem));
        }
        print(&text, "")?;
    }
    Ok(if is_good { Answer::Positive } else { Answer::Negative })
}

/// Explains a flow by what the folder says.
pub(super) fn explained(args: &FolderArgs, asking: &Asking) -> Result<Explanation, Error> {
    let folder = read(args)?;
    if !folder.problems.is_empty() {
        let problems: Vec<String> = folder.problems.iter().map(|told| told.said.to_string()).collect();
        return Err(Error::CannotSay(format!("the folder has problems:\n{}", problems.join("\n"))));
    }
    let flow = asking.flow(&folder.world, "the folder").map_err(|no_flow| Error::CannotSay(no_flow.to_string()))?;
    let Loaded { policies, settings, .. } = &folder.loaded;
    let evaluator = Evaluator { world: &folder.world, policies, settings };
    Ok(explain(&evaluator, &flow, now()))
}

/// Names of what is in force of policy.
fn names(folder: &Folder) -> BTreeSet<String> {
    let policies = &folder.loaded.policies;
    let objects = policies.objects().iter().map(|object| object.id.to_string());
    objects.chain(policies.exceptions().iter().map(|exception| exception.id().to_string())).collect()
}
