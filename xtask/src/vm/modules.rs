//! Kernel modules and the order to insert them in. Debian's packages hold no list of dependencies; each module names
//! its own in its `.modinfo` section.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A module, unpacked.
pub(super) struct Module {
    /// Its file's name.
    pub file: String,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// The wanted modules with all that they depend on, dependencies first. What is not there is built in.
pub(super) fn in_order(dir: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut there = HashMap::new();
    collect(dir, &mut there)?;
    let mut ordered = Vec::new();
    let mut done = Vec::new();
    for name in wanted {
        add(name, &there, &mut done, &mut ordered)?;
    }
    Ok(ordered)
}

fn collect(dir: &Path, there: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?.flatten() {
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            collect(&path, there)?;
        } else if let Some((name, _)) = entry.file_name().to_str().and_then(|name| name.split_once(".ko")) {
            there.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn add(name: &str, there: &HashMap<String, PathBuf>, done: &mut Vec<String>, ordered: &mut Vec<Module>) -> Result<()> {
    let name = name.replace('-', "_");
    let Some(path) = there.get(&name).filter(|_| !done.contains(&name)) else { return Ok(()) };
    done.push(name.clone());
    let content = read(path)?;
    for dependency in depends(&content) {
        add(&dependency, there, done, ordered)?;
    }
    ordered.push(Module { file: format!("{name}.ko"), content });
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        let unpacked = std::process::Command::new("xz").args(["-dc"]).arg(path).output().context("running xz")?;
        return Ok(unpacked.stdout);
    }
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// What a module's `.modinfo` says after `depends=`.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module.get(at + KEY.len()..).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::depends;

    #[test]
    fn dependencies_of_a_module() {
        assert_eq!(depends(b"x\0license=GPL\0depends=stp,llc\0name=bridge\0"), ["stp", "llc"]);
        assert!(depends(b"x\0depends=\0name=veth\0").is_empty());
        assert!(depends(b"nothing").is_empty());
    }
}
