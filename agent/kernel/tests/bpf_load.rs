//! Loads every program on the running kernel. Needs root; says so and passes without it.

use kumiko_kernel::bpf::{Datapath, LoadOptions, ObjectSource};

#[test]
fn loads() {
    let dir = std::path::PathBuf::from("/tmp/ka/load");
    let d = match Datapath::load(&LoadOptions { object: ObjectSource::Embedded, pin_dir: dir.clone() }) {
        Ok(d) => d,
        Err(e) => {
            let mut e: &dyn std::error::Error = &e;
            loop {
                println!("{e}");
                match e.source() {
                    Some(s) => e = s,
                    None => break,
                }
            }
            panic!("no");
        }
    };
    println!("{:?}", d.verified_instructions());
    Datapath::remove_everything(&dir).unwrap();
}
