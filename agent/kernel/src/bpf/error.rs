//! What can go wrong with the kernel part.

use std::{io, path::PathBuf};

/// An error of the loader or of a map.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// No object: neither embedded nor named.
    #[error(
        "no kernel programs in this build: run `cargo xtask build-ebpf` and build again, or name them with --bpf-object"
    )]
    NoObject,
    /// The object could not be read.
    #[error("cannot read the kernel programs from {path}: {source}")]
    ReadObject {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The pin directory could not be made or read.
    #[error("cannot use {path} for pins: {source} (is a bpf file system mounted there? `mount -t bpf bpf DIR`)")]
    PinDir {
        /// The directory or a pin in it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file system is another one.
    #[error("{path} is no bpf file system: `mount -t bpf bpf {path}` makes it one, or name another --bpffs", path = path.display())]
    NotBpffs {
        /// What was named.
        path: PathBuf,
    },
    /// A pinned map is not of the layout that this version uses.
    #[error(
        "pinned map {path} has another layout ({found}, this agent needs {expected}): run `kumiko-agent cleanup` first"
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// What is needed.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// aya could not load the object's maps.
    #[error("cannot create the kernel maps: {0} (root, or CAP_BPF with CAP_NET_ADMIN, is needed)")]
    Load(#[from] Box<aya::EbpfError>),
    /// A program is missing from the object.
    #[error("the object has no program {0}: it is of another version")]
    MissingProgram(&'static str),
    /// The verifier refused a program, or it could not be loaded.
    #[error("the kernel refused program {program}: {source}")]
    Program {
        /// Which.
        program: &'static str,
        /// Why, with the verifier's log.
        source: Box<aya::programs::ProgramError>,
    },
    /// It cannot be waited for the end of running programs.
    #[error("cannot wait for running kernel programs to end: {0} (membarrier(2), or CAP_NET_RAW for a packet socket)")]
    Wait(io::Error),
    /// A map operation failed.
    #[error("cannot {call} map {map}: {source}")]
    Map {
        /// What was tried.
        call: &'static str,
        /// On which.
        map: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A ring buffer could not be opened.
    #[error("cannot open ring {ring}: {source}")]
    Ring {
        /// Which.
        ring: String,
        /// Why.
        source: Box<aya::maps::MapError>,
    },
    /// A program could not be attached.
    #[error("cannot attach {program} to {target}: {source}")]
    Attach {
        /// Which.
        program: &'static str,
        /// Where.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// The command program could not be run.
    #[error("cannot run flow_command: {0}")]
    Command(io::Error),
    /// The command program answered with a number that this version does not know.
    #[error("flow_command answered {0}: the programs are of another version")]
    Answer(u32),
}
