//! Command lines of `kumiko-agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The node agent of the kumiko mesh.
#[derive(Parser, Debug)]
#[command(name = "kumiko-agent", version, about, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Capture, carry and judge the traffic of this node's enrolled pods.
    Run(Box<RunOptions>),
    /// Sign workload certificates for the agents of a cluster without another issuer.
    Issuer(IssuerOptions),
    /// Print the join token of one node: what it shows the issuer whenever it asks for a certificate.
    Token(TokenOptions),
    /// Reset what is captured, then remove every trace of the agent from this node.
    Cleanup(CleanupOptions),
}

/// Where this node's state lives; several nodes can share one kernel by giving each its own.
#[derive(Args, Debug, Clone)]
pub struct Places {
    /// Directory of the admin socket, the lock and the agent's namespace.
    #[arg(long, default_value = "/run/kumiko")]
    pub run_dir: PathBuf,
    /// Mounted bpffs under which maps and links are pinned.
    #[arg(long, default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Name of the agent's network namespace.
    #[arg(long, default_value = "kumiko")]
    pub netns_name: String,
}

/// Options of `run`.
#[derive(Args, Debug, Clone)]
pub struct RunOptions {
    /// Name of this node, as in Workload and Node objects.
    #[arg(long)]
    pub node: String,
    /// Desired state: `dir:PATH`, a folder of YAML manifests that is watched.
    #[arg(long)]
    pub source: SourceUrl,
    /// Address of the issuer.
    #[arg(long)]
    pub issuer: SocketAddr,
    /// PEM file with the issuer's root: the only one that its TLS may chain to.
    #[arg(long)]
    pub issuer_root: PathBuf,
    /// File that holds this node's join token. It is read for each certificate, so a new token is taken without a restart.
    #[arg(long)]
    pub join_token: PathBuf,
    /// SPIFFE trust domain.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: String,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened: words here would become the help of the command")]
    pub places: Places,
    /// Shards, one thread each [default: one a core, at most 16].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub shards: Option<u32>,
    /// cgroup v2 directory of the node's kubelet: its sockets may probe declared ports of strict pods.
    #[arg(long)]
    pub kubelet_cgroup: Option<PathBuf>,
    /// Serve Prometheus metrics on this address too (they are always on the admin socket).
    #[arg(long)]
    pub metrics: Option<SocketAddr>,
    /// What a permissive pod's new connections do while the agent is down.
    #[arg(long, value_enum, default_value_t = WithoutAgent::Clear)]
    pub permissive_without_agent: WithoutAgent,
    /// Object file of the kernel programs, instead of the one built in.
    #[arg(long)]
    pub bpf_object: Option<PathBuf>,
    /// Log statements of the kernel programs that are switched on, for debugging: 0 none, 1 error to 5 trace. Each costs
    /// thousands of verified instructions.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=5))]
    pub bpf_log: u8,
    /// Seconds between two readings of the flow table.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub collect_interval: u64,
    /// Seconds without a packet after which a flow is looked up among the sockets of its pods and of the agent.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub idle_check: u64,
    /// Seconds that SIGTERM waits for open flows before it resets them.
    #[arg(long, default_value_t = 10)]
    pub drain_timeout: u64,
    /// Log filter, as for `RUST_LOG`.
    #[arg(long, default_value = "info")]
    pub log: String,
}

impl RunOptions {
    /// Time between two readings of the flow table.
    pub fn collect_every(&self) -> Duration {
        Duration::from_secs(self.collect_interval)
    }
}

/// Options of `issuer`.
#[derive(Args, Debug, Clone)]
pub struct IssuerOptions {
    /// Address to serve on.
    #[arg(long)]
    pub listen: SocketAddr,
    /// Directory of root key (made once, 0600), root certificate (root.pem, for the agents' --issuer-root) and token key.
    #[arg(long)]
    pub state: PathBuf,
    /// Desired state: tells which principals have a workload on which node.
    #[arg(long)]
    pub source: SourceUrl,
    /// SPIFFE trust domain.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: String,
    /// Lifetime of a workload certificate, such as 4h or 90m.
    #[arg(long, default_value = "4h", value_parser = parse_duration)]
    pub svid_ttl: Duration,
    /// Log filter, as for `RUST_LOG`.
    #[arg(long, default_value = "info")]
    pub log: String,
}

/// Options of `token`.
#[derive(Args, Debug, Clone)]
pub struct TokenOptions {
    /// The issuer's state directory.
    #[arg(long)]
    pub state: PathBuf,
    /// Node that may use the token.
    #[arg(long)]
    pub node: String,
    /// How long the token may be used, such as 90d. The agent shows it with each renewal: put a new one into its file
    /// before then, or its certificates run out.
    #[arg(long, default_value = "365d", value_parser = parse_duration)]
    pub ttl: Duration,
}

/// Options of `cleanup`.
#[derive(Args, Debug, Clone)]
pub struct CleanupOptions {
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened: words here would become the help of the command")]
    pub places: Places,
    /// Object file of the kernel programs, instead of the one built in.
    #[arg(long)]
    pub bpf_object: Option<PathBuf>,
}

/// What a permissive pod does without an agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum WithoutAgent {
    /// Connects in the clear.
    Clear,
    /// Is refused.
    Refuse,
}

/// Where the desired state comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceUrl {
    /// A folder of YAML manifests.
    Dir(PathBuf),
}

impl FromStr for SourceUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(PathBuf::from(path))),
            _ => Err(format!("{text:?} is not a source: write dir:PATH for a folder of YAML manifests")),
        }
    }
}

/// Reads `90s`, `15m`, `4h`, `2d`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration: write a number and s, m, h or d, such as 4h");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text.strip_suffix(unit).unwrap_or(text).parse().map_err(|_| wrong())?;
    let seconds = number.checked_mul(factor).filter(|s| *s > 0).ok_or_else(wrong)?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("90m").unwrap(), Duration::from_secs(5400));
        for bad in ["", "4", "h", "0s", "4w", "99999999999999999999s", "1é"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sources() {
        assert_eq!("dir:/x".parse::<SourceUrl>().unwrap(), SourceUrl::Dir("/x".into()));
        assert!("file:/x".parse::<SourceUrl>().is_err());
        assert!("dir:".parse::<SourceUrl>().is_err());
    }
}
