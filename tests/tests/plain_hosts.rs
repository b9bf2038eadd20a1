//! docs/plain-hosts.md, run as it stands: a page that a newcomer types must not be wrong.

use std::io::Write as _;
use std::process::{Command, Stdio};

use kumiko_lab::agents::binary;

const PAGE: &str = include_str!("../../docs/plain-hosts.md");

/// Mounts of its own, so that names of namespaces are its own, and a process namespace whose end takes everything along.
const PRELUDE: &str = "mkdir -p /run/netns; mount -t tmpfs none /run/netns; set -eux; exec 2>&1\n";

/// What a command of the page must show. A reader types slowly enough for it; the test waits.
const SHOWN: &[(&str, &str)] = &[
    ("kumiko --socket n1/run/admin.sock flows", "shop/pod1 *shop/iperf:80 *tunnel *closed .* to shop/pod2:5201"),
    ("kumiko --socket n2/run/admin.sock tunnels", "shop/client *shop/iperf *n1 *10.0.0.1:"),
    ("kumiko --socket n2/run/admin.sock flows --verdict deny", "node n1 *shop/pod2:5201 *- *denied"),
];

/// The page's commands, in their order.
fn script() -> String {
    let mut script = PRELUDE.to_owned();
    let mut inside = false;
    for line in PAGE.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside => script += &format!("{line}\n"),
            _ => {}
        }
    }
    for (command, shown) in SHOWN {
        let line = format!("\n{command}\n");
        assert!(script.contains(&line), "{command} is not on the page");
        script = script.replace(&line, &format!("\nuntil {command} | grep '{shown}'; do sleep 0.2; done\n"));
    }
    script + "echo the page is done\n"
}

#[test]
fn the_page_works_as_it_stands() {
    let directory = tempfile::tempdir().unwrap();
    let binaries = binary("kumiko").unwrap().parent().unwrap().to_owned();
    assert!(binary("kumiko-agent").is_ok());
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("timeout")
        .args(["600", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash"])
        .env("PATH", path)
        .env_remove("KUMIKO_SOCKET")
        .current_dir(directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    command.stdin.take().unwrap().write_all(script().as_bytes()).unwrap();
    let output = command.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let logs: Vec<String> = ["issuer.log", "n1.log", "n2.log", "client.log"]
        .iter()
        .map(|name| format!("{name}:\n{}", std::fs::read_to_string(directory.path().join(name)).unwrap_or_default()))
        .collect();
    assert!(output.status.success() && said.ends_with("the page is done\n"), "{said}\n{}", logs.join("\n"));
}
