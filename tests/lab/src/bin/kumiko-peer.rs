//! The lab's helper program: a scripted peer for a pod, or (`guard ID`) a lab's guard.

use kumiko_lab::{guard, peer};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => peer::process::serve(),
        ["guard", id] => guard::run(id),
        other => anyhow::bail!("usage: kumiko-peer [guard ID], not {other:?}"),
    }
}
