//! ssh: somebody at a shell on a terminal, and files of megabytes.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kumiko_lab::command::run as tool;
use kumiko_tests::programs::{self, Client, Server, command};

use crate::run::{Run, bytes, read, sum, text, write};

const FILE: usize = 16 << 20;
/// A shell that reads and writes nobody's files.
const SHELL: &str = "exec env -i TERM=dumb PATH=/usr/bin:/bin PS1='ready> ' bash --norc --noprofile -i";

/// The server sees its directory as /run and its `log` as /var/log, in mounts of its own: /run/sshd must be there, and
/// nothing shall be written about who logged in.
fn start(run: &Run<'_>, dir: &Path, port: u16) -> Result<Server> {
    for made in ["sshd", "log", "data"] {
        std::fs::create_dir(dir.join(made)).with_context(|| format!("making {made}"))?;
    }
    for key in ["host", "user"] {
        tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", &text(&dir.join(key))])?;
    }
    std::fs::copy(dir.join("user.pub"), dir.join("authorized_keys")).context("authorizing the key")?;
    std::fs::set_permissions(dir.join("sshd"), PermissionsExt::from_mode(0o755)).context("the server's directory")?;
    let config = format!(
        "ListenAddress {}\nHostKey /run/host\nAuthorizedKeysFile /run/authorized_keys\nPidFile none\nUsePAM no\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\nStrictModes no\nPrintMotd no\nPrintLastLog no\n\
         UseDNS no\nSubsystem sftp internal-sftp\n",
        run.at(port)?
    );
    write(&dir.join("config"), config)?;
    let script =
        "mount --bind \"$1/log\" /var/log && mount --bind \"$1\" /run && exec /usr/sbin/sshd -D -e -f /run/config";
    run.serve(dir, &mut command(&["unshare", "--mount", "sh", "-c", script, "sh", &text(dir)]), &[port])
}

fn with_options(program: &str, dir: &Path) -> Command {
    let mut command = command(&[program, "-F", "/dev/null", "-i", &text(&dir.join("user"))]);
    for option in ["StrictHostKeyChecking=no", "IdentitiesOnly=yes", "BatchMode=yes", "LogLevel=ERROR"] {
        command.args(["-o", option]);
    }
    command.args(["-o", &format!("UserKnownHostsFile={}", dir.join("known_hosts").display())]);
    command
}

pub(crate) fn sessions(run: &Run<'_>) -> Result<String> {
    let (dir, port) = (run.dir("ssh")?, run.port());
    let _server = start(run, &dir, port)?;
    let mut answer = String::new();
    for to in run.to(port)? {
        answer += &interactive(run, &dir, to)?;
        answer += &copies(run, &dir, to)?;
    }
    Ok(answer)
}

/// Types at a prompt, waits for what the shell says, interrupts a program, and leaves with a code.
fn interactive(run: &Run<'_>, dir: &Path, to: SocketAddr) -> Result<String> {
    let (host, port) = (to.ip().to_string(), to.port().to_string());
    let mut ssh = with_options("ssh", dir);
    let mut shell = Client::start(run.client()?, ssh.args(["-tt", "-p", &port, &format!("root@{host}"), SHELL]))?;
    let prompts = |said: &str| said.matches("ready> ").count();
    shell.wait_said(|said| prompts(said) == 1)?;
    shell.say(b"test -t 0 && echo on a $((2 * 21))-terminal\n")?;
    shell.wait_said(|said| said.contains("on a 42-terminal") && prompts(said) == 2)?;
    // One key at a time, each echoed before the next.
    let typed = b"echo key after key";
    for (at, key) in typed.iter().enumerate() {
        shell.say(&[*key])?;
        let so_far = String::from_utf8_lossy(typed.get(..=at).unwrap_or_default()).into_owned();
        shell.wait_said(|said| said.ends_with(&format!("ready> {so_far}")))?;
    }
    shell.say(b"\n")?;
    shell.wait_said(|said| prompts(said) == 3)?;
    // It is the program itself that says so, so that the interrupt finds it in the foreground; and to the end of the
    // line, for an interrupt flushes what the terminal holds.
    shell.say(b"sh -c 'echo begun-$((1 + 1)); exec sleep 1000'\n")?;
    shell.wait_said(|said| said.contains("begun-2\r\n"))?;
    shell.say(b"\x03")?;
    shell.wait_said(|said| prompts(said) == 4)?;
    shell.say(b"echo interrupted: $?; seq 1 20000 | tail -c 100000 | cksum; seq 1 20000\n")?;
    shell.wait_said(|said| said.contains("\n20000\r\n") && prompts(said) == 5)?;
    shell.say(b"exit 7\n")?;
    let ended = shell.finish()?;
    ensure!(ended.code == Some(7), "ssh ended with {:?}: {}", ended.code, ended.err);
    let said = String::from_utf8_lossy(&ended.out).into_owned();
    ensure!(said.contains("interrupted: 130"), "the interrupt did not get there: {said}");
    // The terminal tells the program before it echoes the interrupt: meanwhile the shell may go on to its prompt, and
    // turn the echo off.
    Ok(format!("the session: {}\n", sum(said.replace("^C", "").as_bytes())))
}

fn copies(run: &Run<'_>, dir: &Path, to: SocketAddr) -> Result<String> {
    let port = to.port().to_string();
    let host = if to.is_ipv6() { format!("root@[{}]", to.ip()) } else { format!("root@{}", to.ip()) };
    let content = bytes(FILE, 5);
    let (up, down) = (dir.join("up"), dir.join("down"));
    write(&up, &content)?;
    let mut answer = String::new();
    let scp = |from: &str, to: &str| -> Result<()> {
        let mut scp = with_options("scp", dir);
        programs::run(run.client()?, scp.args(["-q", "-P", &port, from, to]))?.well().map(drop)
    };
    scp(&text(&up), &format!("{host}:/run/data/file"))?;
    ensure!(read(&dir.join("data/file"))? == content, "the copy at the server is another");
    scp(&format!("{host}:/run/data/file"), &text(&down))?;
    let got = read(&down)?;
    ensure!(got == content, "the copy that came back is another");
    let _ = writeln!(answer, "there and back: {}", sum(&got));
    // Without a terminal: input to its end, which travels as a half-close of the channel.
    let mut ssh = with_options("ssh", dir);
    let ip = to.ip().to_string();
    let counted = programs::run_with(run.client()?, ssh.args(["-p", &port, &format!("root@{ip}"), "cksum"]), &up)?;
    answer += &counted.well().context("counting")?;
    Ok(answer)
}
