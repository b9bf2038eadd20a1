//! Policy of a folder, without an agent.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use kumiko_core::manifest::{FolderState, Scope};
use kumiko_core::model::World;
use kumiko_core::policy::ask::Asking;
use kumiko_core::policy::explain::{Explanation, explain};
use kumiko_core::policy::load::{Loaded, foreign, load};
use kumiko_core::policy::verdict::Evaluator;
use serde::Serialize;

use super::json_out;
use crate::fetch::print;
use crate::format::some;
use crate::options::FolderArgs;
use crate::{Answer, Error};

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
    let loaded = load(state.objects());
    let mut problems: Vec<String> = state.diagnostics().chain(&lowered).map(ToString::to_string).collect();
    problems.extend(loaded.problems.iter().map(ToString::to_string));
    let foreign = foreign(&loaded.policies, &args.trust_domain);
    problems.extend(foreign.into_iter().map(|problem| format!("{problem}: mend it, or say --trust-domain")));
    Ok(Folder { world, loaded, problems, objects: state.objects().count() })
}

#[derive(Serialize)]
struct Checked<'a> {
    objects: usize,
    policies: usize,
    exceptions: usize,
    problems: &'a [String],
}

/// Whether a folder's policy can be read and does what it says.
pub(super) fn check(args: &FolderArgs, json: bool) -> Result<Answer, Error> {
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

/// Explains a flow by what the folder says.
pub(super) fn explained(args: &FolderArgs, asking: &Asking) -> Result<Explanation, Error> {
    let folder = read(args)?;
    if !folder.problems.is_empty() {
        return Err(Error::CannotSay(format!("the folder has problems:\n{}", folder.problems.join("\n"))));
    }
    let flow = asking.flow(&folder.world, "the folder").map_err(|no_flow| Error::CannotSay(no_flow.to_string()))?;
    let Loaded { policies, settings, .. } = &folder.loaded;
    let evaluator = Evaluator { world: &folder.world, policies, settings };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok(explain(&evaluator, &flow, i64::try_from(now).unwrap_or(i64::MAX)))
}
