//! Writes the definitions of kumiko's own kinds: `cargo run -p kumiko-core --example crds -- DIR`.

use std::path::PathBuf;
use std::{env, fs};

use kumiko_core::policy::object::definitions;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = PathBuf::from(env::args_os().nth(1).ok_or("usage: crds DIR")?);
    fs::create_dir_all(&dir)?;
    for (name, definition) in definitions() {
        fs::write(dir.join(name), serde_saphyr::to_string(&definition)?)?;
    }
    Ok(())
}
