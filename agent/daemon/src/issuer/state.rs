//! The issuer's directory: `root-key.pem` (0600), `root.pem`, `token-key` (0600), `extra-roots/*.pem`.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use super::{Authority, IssuerError, TokenKey, authority};

/// Most bytes that a file of the directory may have.
const MAX_FILE: u64 = 1 << 20;
/// Most files that are taken from `extra-roots`.
const MAX_EXTRA: usize = 64;

/// The directory.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Uses `path`, making it (0700) when it is not there.
    pub fn open(path: &Path) -> Result<Self, IssuerError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| file_error("cannot make directory", path, source))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Where the root certificate is: agents take it as `--issuer-root`.
    pub fn root_path(&self) -> PathBuf {
        self.path.join("root.pem")
    }

    /// The root, made when it is not there. Whoever comes first makes it: two issuers on one directory share it.
    pub fn authority(&self, trust_domain: &str) -> Result<Authority, IssuerError> {
        let key_path = self.path.join("root-key.pem");
        let key = match self.read_secret(&key_path)? {
            Some(key) => key,
            None => self.create(&key_path, authority::new_key()?.as_bytes(), 0o600)?,
        };
        let key = text(&key_path, &key)?;
        let root_path = self.root_path();
        let root = match read(&root_path)? {
            Some(root) => root,
            None => {
                let root = authority::self_signed(&key, trust_domain)
                    .map_err(|source| IssuerError::Crypto { what: "the root certificate", source })?;
                self.create(&root_path, root.as_bytes(), 0o644)?
            }
        };
        let root = text(&root_path, &root)?;
        Authority::new(&key, &root, trust_domain).map_err(|problem| IssuerError::Content { path: root_path, problem })
    }

    /// The key of join tokens, made when it is not there.
    pub fn token_key(&self) -> Result<TokenKey, IssuerError> {
        let path = self.path.join("token-key");
        let key = match self.read_secret(&path)? {
            Some(key) => key,
            None => {
                let mut bytes = Zeroizing::new([0_u8; 32]);
                SystemRandom::new().fill(bytes.as_mut()).map_err(|_| IssuerError::Random)?;
                self.create(&path, bytes.as_ref(), 0o600)?
            }
        };
        if key.len() != 32 {
            let problem = format!("holds {} bytes, not 32: delete it (all join tokens become void)", key.len());
            return Err(IssuerError::Content { path, problem });
        }
        Ok(TokenKey::new(&key))
    }

    /// Roots of `extra-roots/*.pem`, PEM each, in the order of their names. Read each time, so a root is added or taken
    /// away online.
    pub fn extra_roots(&self) -> Result<Vec<String>, IssuerError> {
        let directory = self.path.join("extra-roots");
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(file_error("cannot read", &directory, source)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(|source| file_error("cannot read", &directory, source))?.path();
            if path.extension().is_some_and(|extension| extension == "pem") {
                paths.push(path);
            }
        }
        if paths.len() > MAX_EXTRA {
            let problem = format!("holds {} files, more than {MAX_EXTRA}", paths.len());
            return Err(IssuerError::Content { path: directory, problem });
        }
        paths.sort();
        let mut roots = Vec::new();
        for path in paths {
            let Some(bytes) = read(&path)? else { continue };
            roots.extend(roots_of(&bytes).map_err(|problem| IssuerError::Content { path: path.clone(), problem })?);
        }
        Ok(roots)
    }

    /// Writes a file that must not be there yet, whole or not at all; the content of whoever was first.
    fn create(&self, path: &Path, content: &[u8], mode: u32) -> Result<Zeroizing<Vec<u8>>, IssuerError> {
        let mut random = [0_u8; 8];
        SystemRandom::new().fill(&mut random).map_err(|_| IssuerError::Random)?;
        let temporary = self.path.join(format!(".new-{:016x}", u64::from_be_bytes(random)));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)
            .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
            // A hard link fails when the name is taken, a rename would replace it.
            .and_then(|()| fs::hard_link(&temporary, path));
        let _ = fs::remove_file(&temporary);
        match written {
            Ok(()) => Ok(Zeroizing::new(content.to_vec())),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                read(path)?.ok_or_else(|| file_error("cannot read", path, ErrorKind::NotFound.into()))
            }
            Err(source) => Err(file_error("cannot write", path, source)),
        }
    }

    fn read_secret(&self, path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, IssuerError> {
        let Some(content) = read(path)? else { return Ok(None) };
        let metadata = fs::metadata(path).map_err(|source| file_error("cannot read", path, source))?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let problem = format!("has mode {mode:04o}, others can read this secret: chmod 600, or make a new one");
            return Err(IssuerError::Content { path: path.to_owned(), problem });
        }
        Ok(Some(content))
    }
}

/// Certificates of a file, PEM each; the error says what is wrong with it.
pub(super) fn roots_of(file: &[u8]) -> Result<Vec<String>, String> {
    let roots = CertificateDer::pem_slice_iter(file).map(|der| der.map(|der| authority::pem(&der)));
    roots.collect::<Result<_, _>>().map_err(|error| format!("is not a PEM certificate: {error}"))
}

fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, IssuerError> {
    let file = match OpenOptions::new().read(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(file_error("cannot open", path, source)),
    };
    let mut content = Zeroizing::new(Vec::new());
    file.take(MAX_FILE + 1).read_to_end(&mut content).map_err(|source| file_error("cannot read", path, source))?;
    if content.len() as u64 > MAX_FILE {
        let problem = format!("is larger than {MAX_FILE} bytes");
        return Err(IssuerError::Content { path: path.to_owned(), problem });
    }
    Ok(Some(content))
}

fn text(path: &Path, bytes: &[u8]) -> Result<Zeroizing<String>, IssuerError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err(IssuerError::Content { path: path.to_owned(), problem: "is not text, so no PEM".to_owned() }),
    }
}

fn file_error(what: &'static str, path: &Path, source: std::io::Error) -> IssuerError {
    IssuerError::File { what, path: path.to_owned(), source }
}
