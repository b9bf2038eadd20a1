//! FTP: a second connection for each transfer, from the client (passive) or from the server (active).

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kumiko_lab::Family;
use kumiko_lab::command::run as tool;
use kumiko_tests::programs::{self, Server, command};

use crate::run::{Run, bytes, read, sum, text, write};

const SIZES: [usize; 3] = [0, 1_000, 5_000_001];

/// vsftpd takes a data connection only from the address that the control connection comes from.
fn start(run: &Run<'_>, dir: &Path, port: u16, passive: u16) -> Result<Server> {
    for size in SIZES {
        write(&dir.join(format!("ftp/{size}")), bytes(size, size as u64))?;
    }
    let inbox = dir.join("ftp/in");
    for made in [&inbox, &dir.join("empty")] {
        std::fs::create_dir(made).with_context(|| format!("making {}", made.display()))?;
    }
    tool("chown", &["ftp", &text(&inbox)])?;
    let (listen, address) = match run.family {
        Family::V4 => ("listen=YES\nlisten_ipv6=NO", "listen_address"),
        Family::V6 => ("listen=NO\nlisten_ipv6=YES", "listen_address6"),
    };
    let config = format!(
        "{listen}\n{address}={ip}\nlisten_port={port}\nbackground=NO\nanonymous_enable=YES\nno_anon_password=YES\n\
         anon_root={dir}/ftp\nwrite_enable=YES\nanon_upload_enable=YES\nanon_umask=022\n\
         pasv_min_port={passive}\npasv_max_port={passive}\nconnect_from_port_20=YES\nsecure_chroot_dir={dir}/empty\n\
         xferlog_enable=NO\nseccomp_sandbox=NO\n\
         isolate=NO\nisolate_network=NO\n",
        ip = run.at(port)?.ip(),
        dir = dir.display(),
    );
    let file = dir.join("vsftpd.conf");
    write(&file, config)?;
    run.serve(dir, &mut command(&["vsftpd", &text(&file)]), &[port])
}

pub(crate) fn transfers(run: &Run<'_>) -> Result<String> {
    let (dir, port, passive) = (run.dir("ftp")?, run.port(), run.port());
    let _server = start(run, &dir, port, passive)?;
    let client = run.side.lab.pod("client-1")?.ip(run.family);
    let active = match client {
        std::net::IpAddr::V4(ip) => ip.to_string(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
    };
    // EPSV and EPRT carry ports only; PASV and PORT, of IPv4, carry addresses too.
    let mut forms: Vec<(&str, Vec<&str>)> = vec![("epsv", vec![]), ("eprt", vec!["--ftp-port", &active])];
    if run.family == Family::V4 {
        forms.push(("pasv", vec!["--disable-epsv", "--no-ftp-skip-pasv-ip"]));
        forms.push(("port", vec!["--disable-eprt", "--ftp-port", &active]));
    }
    let mut answer = String::new();
    for (way, to) in run.to(port)?.into_iter().enumerate() {
        for (form, options) in &forms {
            let listed = curl(run, to, options, &["--list-only", ""])?;
            let mut names: Vec<&str> = listed.split_whitespace().collect();
            names.sort_unstable();
            let _ = writeln!(answer, "{form} lists {names:?}");
            for size in SIZES {
                let (got, expected) = (dir.join("got"), bytes(size, size as u64));
                curl(run, to, options, &["-o", &text(&got), &size.to_string()])?;
                // curl makes no file of nothing.
                let down = if size == 0 { Vec::new() } else { read(&got)? };
                ensure!(down == expected, "{form}: {size} bytes came as {}", sum(&down));
                let name = format!("{form}-{way}-{size}");
                curl(run, to, options, &["-T", &text(&dir.join(format!("ftp/{size}"))), &format!("in/{name}")])?;
                let up = read(&dir.join("ftp/in").join(&name))?;
                ensure!(up == expected, "{form}: {size} bytes arrived as {}", sum(&up));
                let _ = writeln!(answer, "{form} down {}, up {}", sum(&down), sum(&up));
            }
        }
    }
    Ok(answer)
}

/// The last of `words` is the path.
fn curl(run: &Run<'_>, to: SocketAddr, options: &[&str], words: &[&str]) -> Result<String> {
    let (path, words) = words.split_last().context("no path")?;
    let mut curl = command(&["curl", "-sS", "--max-time", "60"]);
    curl.args(options).args(words).arg(format!("ftp://{to}/{path}"));
    programs::run(run.client()?, &mut curl)?.well().with_context(|| format!("{options:?} {words:?} {path}"))
}
