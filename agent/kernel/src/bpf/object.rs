//! Where the programs come from.

use std::{borrow::Cow, fs, path::PathBuf};

use super::error::BpfError;

/// The object of `cargo xtask build-ebpf`, when it was there as this crate was built.
#[cfg(kumiko_bpf_object)]
static EMBEDDED: Option<&[u8]> = Some(aya::include_bytes_aligned!(env!("KUMIKO_BPF_OBJECT")));
#[cfg(not(kumiko_bpf_object))]
static EMBEDDED: Option<&[u8]> = None;

/// Where the kernel programs are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectSource {
    /// From this binary.
    Embedded,
    /// From a file.
    File(PathBuf),
}

impl ObjectSource {
    /// Whether this build carries the programs itself.
    pub fn embedded_present() -> bool {
        EMBEDDED.is_some()
    }

    /// The object's bytes.
    ///
    /// # Errors
    /// [`BpfError::NoObject`], [`BpfError::ReadObject`].
    pub fn read(&self) -> Result<Cow<'static, [u8]>, BpfError> {
        match self {
            Self::Embedded => EMBEDDED.map(Cow::Borrowed).ok_or(BpfError::NoObject),
            Self::File(path) => match fs::read(path) {
                Ok(bytes) => Ok(Cow::Owned(bytes)),
                Err(source) => Err(BpfError::ReadObject { path: path.clone(), source }),
            },
        }
    }
}
