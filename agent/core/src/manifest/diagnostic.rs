//! What is wrong with a manifest, where, and what to do.

use std::fmt;
use std::net::IpAddr;

use kumiko_abi::Stage;
use thiserror::Error;

use super::broken::{Broken, Meanwhile};
use super::{Claim, MAX_BYTES, STAGE_LABEL, Scope};
use crate::api::SourceDiagnostic;
use crate::policy::load::Told;
use crate::principal::PrincipalError;
use crate::stage;

/// Line and column, both from 1; 0 means the whole file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Place {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Place {
    /// The file as such.
    pub const FILE: Self = Self { line: 0, column: 0 };
}

/// A problem with its place.
#[derive(Clone, PartialEq, Debug)]
pub struct Diagnostic {
    /// File, relative to the folder.
    pub file: String,
    /// Where in it.
    pub place: Place,
    /// What.
    pub problem: Problem,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::FILE => write!(f, "{}: {}", self.file, self.problem),
            Place { line, column } => write!(f, "{}:{line}:{column}: {}", self.file, self.problem),
        }
    }
}

impl From<&Diagnostic> for SourceDiagnostic {
    fn from(d: &Diagnostic) -> Self {
        Self { file: d.file.clone(), line: d.place.line, column: d.place.column, message: d.problem.to_string() }
    }
}

impl From<&Told> for SourceDiagnostic {
    fn from(told: &Told) -> Self {
        let (file, message) = (told.file.clone(), told.problem.to_string());
        Self { file, line: told.place.line, column: told.place.column, message }
    }
}

/// A value of another type than its field's.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Mismatch {
    /// Another type.
    #[error("found {found}, expected {expected}")]
    Type {
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
    },
    /// A text that YAML takes for something else.
    #[error("found {found}, expected {expected}: write it in quotes")]
    Unquoted {
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
    },
    /// A number that is two numbers.
    #[error(
        "{text} is one number to Kubernetes' tools (octal) and another one to others: write it without the leading 0, or a text in quotes"
    )]
    Octal {
        /// It, as it stands.
        text: String,
    },
    /// A field that has to be there.
    #[error("the field {field} is missing: add it")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// Not one of a few words.
    #[error("found the text {found:?}, expected one of {}", known.join(", "))]
    Word {
        /// What is there.
        found: String,
        /// What may be.
        known: &'static [&'static str],
    },
    /// The type's own words.
    #[error("cannot be read: {why}: a time is written as 2026-12-31T00:00:00Z, a number in digits")]
    Other {
        /// They.
        why: String,
    },
}

/// Why a workload has not an address that it claims.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum NotHad {
    /// It is not of its node.
    #[error("is outside of the podCIDRs of Node {node}, so it has it not: correct one of the two")]
    Outside {
        /// The node.
        node: String,
    },
    /// Another one claims it.
    #[error("is claimed by Workload {other}, too, so it is nobody's (disputed_address): remove one claim")]
    Claimed {
        /// Namespace and name.
        other: String,
    },
    /// Two nodes have its network.
    #[error("is of the podCIDRs of Nodes {one} and {other}, so it is nobody's: correct one of them")]
    Shared {
        /// One node.
        one: String,
        /// The other one.
        other: String,
    },
}

/// Why a file, or a label in it, is refused.
#[derive(Clone, PartialEq, Debug, Error)]
pub enum Problem {
    /// The file could not be read.
    #[error("cannot be read: {why}: check its permissions, and of a link, where it leads")]
    Unreadable {
        /// The operating system's words.
        why: String,
    },
    /// The file is no text.
    #[error("is not UTF-8 text: save it as UTF-8")]
    NotText,
    /// Half of a file may read as a whole one.
    #[error("is still being written: it is read when its writer closes it")]
    Unfinished,
    /// Over [`MAX_BYTES`].
    #[error("is {bytes} bytes long, the limit is {max}: split it into several files")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// More files than the folder may hold.
    #[error("the folder holds more than {max} manifests: this file is left out; put several documents into one file")]
    TooManyFiles {
        /// The limit.
        max: usize,
    },
    /// A folder below too many others.
    #[error("lies below {max} other folders: nothing in it is read; move it up")]
    FolderTooDeep {
        /// The limit.
        max: usize,
    },
    /// Not YAML.
    #[error("is not YAML: {why}: mend it here, or just before")]
    Syntax {
        /// The parser's words.
        why: String,
    },
    /// Nested too deep.
    #[error(
        "is nested deeper than {max} levels: no object that is read here is; look for a bracket or an alias too many"
    )]
    TooDeep {
        /// The limit.
        max: usize,
    },
    /// Too many values, aliases expanded.
    #[error("holds more than {max} values (aliases expanded): split the file")]
    TooManyValues {
        /// The limit.
        max: usize,
    },
    /// An alias to nothing, or to a value that contains it.
    #[error("an alias to something that is not complete here: write the value out")]
    BadAlias,
    /// A YAML tag.
    #[error("the YAML tag {tag} is not supported: remove it")]
    Tag {
        /// The tag.
        tag: String,
    },
    /// A key that is no string.
    #[error("a key must be a plain string: write it in quotes")]
    BadKey,
    /// The same key twice in one mapping.
    #[error("the key {key:?} stands here already (line {first}): remove one of them")]
    DuplicateKey {
        /// The key.
        key: String,
        /// Line of the first.
        first: u32,
    },
    /// A document that is no mapping.
    #[error("a document must be an object with apiVersion, kind and metadata: write these, or remove it")]
    NotAnObject,
    /// A field that has to be there.
    #[error("{path} is missing: add it")]
    Missing {
        /// The field.
        path: String,
    },
    /// A kind that is not read.
    #[error(
        "{kind} of {api_version} is not read here: only {} are; remove the document or move it to another folder",
        scope.kinds()
    )]
    UnknownKind {
        /// apiVersion.
        api_version: String,
        /// kind.
        kind: String,
        /// What would be read.
        scope: Scope,
    },
    /// A field that the kind does not have.
    #[error("{kind} has no field {path}: check its spelling, or remove it")]
    UnknownField {
        /// The kind.
        kind: String,
        /// The field.
        path: String,
    },
    /// A value of the wrong type.
    #[error("{path}: {why}")]
    Shape {
        /// The field.
        path: String,
        /// What was found and expected.
        why: Mismatch,
    },
    /// No SPIFFE ID of a workload.
    #[error("{path}: {why}")]
    NoPrincipal {
        /// The field.
        path: String,
        /// Why not.
        why: PrincipalError,
    },
    /// A value that breaks a rule.
    #[error("{path}: {value:?} {rule}")]
    Value {
        /// The field.
        path: String,
        /// What it holds.
        value: String,
        /// What it must be.
        rule: Broken,
    },
    /// A list that is longer than the kind's definition lets it be.
    #[error("{path} holds {found} entries, the limit is {max}: make it several objects")]
    TooLong {
        /// The field.
        path: String,
        /// How many it holds.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// No stage.
    #[error("the label {STAGE_LABEL} is {value:?}: write off, observe, permissive or strict")]
    BadStage {
        /// What the label holds.
        value: String,
    },
    /// Not exactly one of two ways to say where the veth is.
    #[error(
        "spec.attachment needs exactly one of netns (with interface) and veth: write one, or remove spec.attachment"
    )]
    Attachment,
    /// Two objects claim one name or address.
    #[error("{claim} is already claimed at {file}:{}: remove one of the claims", place.line)]
    Claimed {
        /// What.
        claim: Claim,
        /// File of the first claim.
        file: String,
        /// Its place.
        place: Place,
    },
    /// A workload's label may only raise its namespace's stage.
    #[error(
        "the label {STAGE_LABEL}={} would lower workload {workload} below its namespace's {}: the label is refused, the \
         workload stays {}; a label may only raise",
        stage::name(*label), stage::name(*namespace), stage::name(*namespace)
    )]
    Lowers {
        /// Namespace and name.
        workload: String,
        /// The label.
        label: Stage,
        /// The namespace's stage.
        namespace: Stage,
    },
    /// A document of policy of which no version ever was in force.
    #[error("{object} has no version that is in force: {means}")]
    NeverValid {
        /// Kind, namespace and name.
        object: String,
        /// What follows.
        means: Meanwhile,
    },
    /// An address that its workload does not have.
    #[error("Workload {workload}: its address {address} {why}")]
    Disputed {
        /// Namespace and name.
        workload: String,
        /// The address.
        address: IpAddr,
        /// Why not, and what to do.
        why: NotHad,
    },
    /// The folder itself.
    #[error(
        "the folder cannot be read: {why}: the last good state stays in force; see that --source names a folder, and its permissions"
    )]
    Folder {
        /// The operating system's words.
        why: String,
    },
}

const _: () = assert!(MAX_BYTES < u32::MAX as usize, "lines and columns fit u32");
