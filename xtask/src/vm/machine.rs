//! Booting a kernel in qemu, without hardware help: that works everywhere.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The longest that a machine may run.
const LIMIT: Duration = Duration::from_secs(300);
/// What `/init` begins its lines with.
const MARK: &str = "kumiko-vm: ";

/// Boots; the lines that `/init` said, if the last of them is that all went well.
pub(super) fn boot(vmlinuz: &Path, initrd: &Path, log: &Path, verbose: bool) -> Result<String> {
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "2048", "-smp", "2", "-nodefaults", "-no-reboot"])
        .args(["-nographic", "-serial", "stdio", "-append"])
        // The limits of the lab are made for real processors.
        .arg("console=ttyS0 reboot=t panic=-1 quiet KUMIKO_LAB_PATIENCE=10 PATH=/bin")
        .arg("-kernel")
        .arg(vmlinuz)
        .arg("-initrd")
        .arg(initrd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("cannot start qemu-system-x86_64; run `cargo xtask setup`")?;
    let console = child.stdout.take().context("the machine's console")?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    let mut log_file = File::create(log).with_context(|| format!("making {}", log.display()))?;
    let (began, mut said) = (Instant::now(), String::new());
    let (mut verdict, mut failed) = (None, None::<String>);
    while verdict.is_none() {
        match lines.recv_timeout(LIMIT.saturating_sub(began.elapsed())) {
            Ok(line) => {
                writeln!(log_file, "{line}").context("writing the machine's log")?;
                if verbose {
                    println!("  | {line}");
                }
                if let Some(why) = &mut failed {
                    // It says why in as many lines as it likes, then powers off.
                    why.push_str(&format!("\n{line}"));
                    continue;
                }
                match judge(&line, &mut said) {
                    Some(Err(why)) => failed = Some(why),
                    other => verdict = other,
                }
            }
            Err(RecvTimeoutError::Timeout) => verdict = Some(Err(format!("not done after {} s", LIMIT.as_secs()))),
            Err(RecvTimeoutError::Disconnected) => {
                verdict = Some(Err(failed.take().unwrap_or_else(|| "it ended without a word".to_owned())));
            }
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    match verdict {
        Some(Ok(())) => Ok(format!("{said}  {} s\n", began.elapsed().as_secs())),
        Some(Err(why)) => bail!("{why}\n(the whole console is in {})", log.display()),
        None => bail!("no verdict"),
    }
}

/// What a line of the console means: nothing yet, all well, or why not.
fn judge(line: &str, said: &mut String) -> Option<Result<(), String>> {
    if line.contains("end Kernel panic") {
        return Some(Err("the kernel panicked".to_owned()));
    }
    let text = line.split_once(MARK)?.1;
    if text == "ok" {
        return Some(Ok(()));
    }
    if text.starts_with("failed") {
        return Some(Err(text.to_owned()));
    }
    said.push_str(&format!("  {text}\n"));
    None
}
