//! Settings of the agent's namespace. `/proc/sys/net` shows the namespace of the thread that looks, so each of these
//! runs inside [`Netns::within`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::AgentNsError;
use crate::netns::Netns;

const ROOT: &str = "/proc/sys/net";

/// Whether the kernel has IPv6 at all (`ipv6.disable=1` takes the folder away).
pub(super) fn has_ipv6() -> bool {
    Path::new(ROOT).join("ipv6").exists()
}

/// Settings of the whole namespace, to be made before its interface exists.
pub(super) fn namespace(netns: &Netns, host: &Netns) -> Result<(), AgentNsError> {
    let mut wanted: Vec<(String, String)> = Vec::new();
    // As in the host's namespace: new namespaces take theirs from the first one of the machine instead, and what the
    // operator tuned for the node should hold for what the agent carries.
    for key in ["ipv4/tcp_congestion_control", "ipv4/tcp_syncookies", "ipv4/tcp_rmem", "ipv4/tcp_wmem", "ipv4/tcp_ecn"]
    {
        if let Some(value) = read(host, key)? {
            wanted.push((key.to_owned(), value));
        }
    }
    let mut fixed = vec![
        ("ipv4/ip_forward", "0"),
        // Without timestamps the tuple of a connection in TIME_WAIT cannot be taken again.
        ("ipv4/tcp_timestamps", "1"),
    ];
    for (all, default, value) in [
        ("ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/accept_redirects", "ipv4/conf/default/accept_redirects", "0"),
        ("ipv4/conf/all/send_redirects", "ipv4/conf/default/send_redirects", "0"),
        // Everything is local here, and nobody should hear of it.
        ("ipv4/conf/all/arp_ignore", "ipv4/conf/default/arp_ignore", "8"),
        ("ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6", "0"),
        ("ipv6/conf/all/forwarding", "ipv6/conf/default/forwarding", "0"),
        ("ipv6/conf/all/accept_ra", "ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/all/accept_redirects", "ipv6/conf/default/accept_redirects", "0"),
        ("ipv6/conf/all/autoconf", "ipv6/conf/default/autoconf", "0"),
        ("ipv6/conf/all/accept_dad", "ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/all/dad_transmits", "ipv6/conf/default/dad_transmits", "0"),
        ("ipv6/conf/all/router_solicitations", "ipv6/conf/default/router_solicitations", "0"),
    ] {
        fixed.extend([(all, value), (default, value)]);
    }
    // Mode 1: no link-local address is made.
    fixed.push(("ipv6/conf/default/addr_gen_mode", "1"));
    wanted.extend(own(fixed));
    write(netns, wanted)
}

/// Settings of `eth0`, for a namespace that was made before the defaults above were set.
pub(super) fn agent_link(netns: &Netns, link: &str) -> Result<(), AgentNsError> {
    let v4 = [("rp_filter", "0"), ("accept_redirects", "0"), ("send_redirects", "0"), ("arp_ignore", "8")];
    let v6 = [
        ("disable_ipv6", "0"),
        ("accept_ra", "0"),
        ("autoconf", "0"),
        ("accept_dad", "0"),
        ("dad_transmits", "0"),
        ("router_solicitations", "0"),
        ("addr_gen_mode", "1"),
    ];
    let mut wanted: Vec<_> = v4.map(|(key, value)| (format!("ipv4/conf/{link}/{key}"), value.to_owned())).into();
    wanted.extend(v6.map(|(key, value)| (format!("ipv6/conf/{link}/{key}"), value.to_owned())));
    write(netns, wanted)
}

/// The host's side has no addresses, and must not make itself one.
pub(super) fn host_link(host: &Netns, link: &str) -> Result<(), AgentNsError> {
    write(host, vec![(format!("ipv6/conf/{link}/disable_ipv6"), "1".to_owned())])
}

fn own(pairs: Vec<(&str, &str)>) -> Vec<(String, String)> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn read(netns: &Netns, key: &str) -> Result<Option<String>, AgentNsError> {
    let path = Path::new(ROOT).join(key);
    match netns.within(|| fs::read_to_string(&path)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        // Some are only in the machine's first namespace before a certain kernel.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AgentNsError::Sysctl { path, value: "(reading it)".into(), source }),
    }
}

/// Writes what differs. Settings that this kernel does not have are left out.
fn write(netns: &Netns, wanted: Vec<(String, String)>) -> Result<(), AgentNsError> {
    let mut failed: Option<(PathBuf, String, io::Error)> = None;
    let done = netns.within(|| {
        for (key, value) in wanted {
            let path = Path::new(ROOT).join(&key);
            let now = match fs::read_to_string(&path) {
                Ok(now) => now,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    failed = Some((path, value, error));
                    break;
                }
            };
            if now.split_whitespace().eq(value.split_whitespace()) {
                continue;
            }
            if let Err(error) = fs::write(&path, &value) {
                if key == "ipv4/tcp_congestion_control" {
                    // A restricted algorithm may be used by the machine's first namespace only.
                    tracing::warn!(wanted = value, kept = now.trim(), %error, "congestion control of the agent's namespace");
                    continue;
                }
                failed = Some((path, value, error));
                break;
            }
        }
        Ok(())
    });
    match (failed, done) {
        (Some((path, value, source)), _) => Err(AgentNsError::Sysctl { path, value, source }),
        (None, Err(source)) => {
            Err(AgentNsError::Sysctl { path: PathBuf::from(ROOT), value: "(entering the namespace)".into(), source })
        }
        (None, Ok(())) => Ok(()),
    }
}
