//! `kumiko policy apply`: documents into the folder that agents read, and the wait until they are in force.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kumiko_core::api::{Applied, AppliedState, Status, path, query};
use kumiko_core::manifest::{Digest, FileContent, MAX_BYTES, digest};
use serde::Serialize;

use super::{folder, get, json_out, read};
use crate::fetch::print;
use crate::options::ApplyArgs;
use crate::{Answer, Error};

/// Seconds that an agent may wait before it answers that nothing has changed; less than the client waits for it.
const ASK_FOR: u64 = 20;

/// A document to be applied.
pub(super) struct Document {
    /// Its name in the folder.
    pub(super) name: String,
    pub(super) text: String,
    digest: Digest,
}

/// An agent that is to have it in force.
struct Agent<'a> {
    socket: &'a Path,
    status: Status,
    folder: PathBuf,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Done<'a> {
    files: Vec<&'a str>,
    folders: Vec<&'a Path>,
    /// Epochs by node, once in force there.
    in_force: BTreeMap<&'a str, u32>,
}

/// Checks, puts, waits.
pub(super) async fn apply(args: &ApplyArgs, socket: &Path, json: bool) -> Result<Answer, Error> {
    let documents = documents(&args.files)?;
    let mut agents = Vec::new();
    for socket in std::iter::once(socket).chain(args.also.iter().map(PathBuf::as_path)) {
        let status: Status = read(&get(socket, path::STATUS).await?)?;
        let folder = folder_of(&status, args.folder.as_deref())?;
        agents.push(Agent { socket, status, folder });
    }
    let mut folders: BTreeMap<&Path, Vec<&Agent<'_>>> = BTreeMap::new();
    for agent in &agents {
        folders.entry(&agent.folder).or_default().push(agent);
    }
    // All of them first: nothing is changed anywhere if something is bad somewhere.
    for (dir, agents) in &folders {
        for agent in agents {
            folder::check_with(dir, &documents, &agent.status)?;
        }
    }
    for dir in folders.keys() {
        for document in &documents {
            put(dir, document)
                .map_err(|error| Error::Refused(format!("{}: {error}", dir.join(&document.name).display())))?;
        }
    }
    let mut done = Done {
        files: documents.iter().map(|document| document.name.as_str()).collect(),
        folders: folders.keys().copied().collect(),
        in_force: BTreeMap::new(),
    };
    if args.wait {
        let until = Instant::now() + Duration::from_secs(args.timeout);
        for agent in &agents {
            let mut epoch = 0;
            for document in &documents {
                epoch = in_force(agent, document, until, args.timeout).await?;
            }
            done.in_force.insert(&agent.status.node, epoch);
        }
    }
    if json {
        json_out(&done)?;
    } else {
        print(&text(&done), "\n")?;
    }
    Ok(Answer::Positive)
}

fn text(done: &Done<'_>) -> String {
    let folders: Vec<String> = done.folders.iter().map(|dir| dir.display().to_string()).collect();
    let put = format!("{} put into {}", done.files.join(", "), folders.join(", "));
    let nodes: Vec<String> = done.in_force.iter().map(|(node, epoch)| format!("{node} (epoch {epoch})")).collect();
    let state = if nodes.is_empty() { String::new() } else { format!("; in force on {}", nodes.join(", ")) };
    crate::table::clean(put + &state)
}

fn documents(files: &[PathBuf]) -> Result<Vec<Document>, Error> {
    let mut documents: Vec<Document> = Vec::new();
    for file in files {
        let wrong = |why: String| Error::Refused(format!("{}: {why}", file.display()));
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') || !(name.ends_with(".yaml") || name.ends_with(".yml")) {
            return Err(wrong("an agent reads *.yaml and *.yml that are not hidden: give it such a name".to_owned()));
        }
        if documents.iter().any(|other| other.name == name) {
            return Err(wrong("another file of this name is given: one would take the other's place".to_owned()));
        }
        let size = fs::metadata(file).map_err(|error| wrong(error.to_string()))?.len();
        if size > MAX_BYTES as u64 {
            return Err(wrong(format!("{size} bytes are more than the {MAX_BYTES} that an agent reads: split it")));
        }
        let text = fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
        let content = FileContent::Text(text.clone());
        documents.push(Document { name, text, digest: digest(&content) });
    }
    Ok(documents)
}

/// The folder that an agent reads.
fn folder_of(status: &Status, said: Option<&Path>) -> Result<PathBuf, Error> {
    let (node, url) = (&status.node, &status.source.url);
    if !status.policy.enforced {
        let why = format!("the agent of {node} is too old to take policy: it refuses such documents");
        return Err(Error::Refused(why));
    }
    let Some(folder) = url.strip_prefix("dir:") else {
        let why = format!(
            "the agent of {node} has its policy from {url}, not from a folder: apply it there (kubectl apply -f)"
        );
        return Err(Error::Refused(why));
    };
    match said {
        Some(said) => Ok(said.to_owned()),
        None if Path::new(folder).is_absolute() => Ok(PathBuf::from(folder)),
        None => Err(Error::Refused(format!(
            "the agent of {node} reads {folder}, which depends on where it was started: say --folder"
        ))),
    }
}

/// Puts a document into its place, whole or not at all: hidden names are not read.
fn put(dir: &Path, document: &Document) -> io::Result<()> {
    let (place, hidden) = (dir.join(&document.name), dir.join(format!(".{}.{}", document.name, std::process::id())));
    let permissions = match fs::symlink_metadata(&place) {
        Ok(found) if found.is_file() => Some(found.permissions()),
        Ok(_) => return Err(io::Error::other("is there and no plain file: change what it leads to, or remove it")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let written = (|| {
        let mut file = fs::File::create(&hidden)?;
        file.write_all(document.text.as_bytes())?;
        if let Some(permissions) = permissions {
            file.set_permissions(permissions)?;
        }
        file.sync_all()?;
        fs::rename(&hidden, &place)?;
        fs::File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&hidden);
    }
    written
}

/// Waits until an agent has a document in force; its epoch.
async fn in_force(agent: &Agent<'_>, document: &Document, until: Instant, timeout: u64) -> Result<u32, Error> {
    let (node, name) = (&agent.status.node, &document.name);
    let hex: String = document.digest.iter().map(|byte| format!("{byte:02x}")).collect();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up: the last question may wait for what is left of a second.
        let wait = left.as_secs().saturating_add(u64::from(!left.is_zero())).min(ASK_FOR);
        let mut text = String::new();
        for (name, value) in [("file", name), ("digest", &hex), ("wait", &wait.to_string())] {
            query::push(&mut text, name, value);
        }
        let applied: Applied = read(&get(agent.socket, &format!("{}?{text}", path::APPLIED)).await?)?;
        match applied.state {
            AppliedState::InForce => return Ok(applied.epoch),
            AppliedState::Refused => {
                let why: String = applied.diagnostics.iter().map(|said| format!("\n{said}")).collect();
                return Err(Error::Refused(format!("the agent of {node} has read {name} and refuses it:{why}")));
            }
            AppliedState::Unread | AppliedState::Coming if wait > 0 => {
                let there = fs::read_to_string(agent.folder.join(name)).ok();
                if there.as_deref() != Some(&document.text) {
                    let why = "somebody has put another version into the folder, or has removed it";
                    return Err(Error::Refused(format!("{name}: {why}")));
                }
            }
            AppliedState::Unread => {
                let dir = agent.folder.display();
                let why = format!(
                    "the agent of {node} has not read {name} within {timeout} s: is {dir} the folder that it reads?"
                );
                return Err(Error::Refused(why));
            }
            AppliedState::Coming => {
                let problem = if applied.problem.is_empty() { String::new() } else { format!(": {}", applied.problem) };
                let why = format!("{name} is not in force on {node} within {timeout} s{problem}");
                return Err(Error::Refused(format!("{why}\n  It stays in the folder: see `kumiko status`.")));
            }
        }
    }
}
