//! Command line of `kumiko`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kumiko_core::flow_record::PartyMatch;
use kumiko_core::manifest::Protocol;

/// Trust domain of a folder, if none is said.
pub const TRUST_DOMAIN: &str = "cluster.local";

const COMMON: &str = "Common options";
const EXIT_CODES: &str = "\
Exit codes:
  0  answered
  1  answered no: the agent is not ready (status); or the answer could not be written
  2  wrong usage
  3  the agent cannot be reached, or its answer not be read

Tables are cut to the terminal's width (or to COLUMNS), and are whole when the output is no terminal.
Colours only on a terminal, and never with NO_COLOR set.";

const FLOWS: &str = "\
Paths:
  tunnel  in TLS to or from another node
  agent   on this node, through its agent (a Service whose pod is here)
  fast    on this node, from pod to pod in the kernel
  local   on this node, by the host's stack: a pod whose veth has a limit, or one that is observed
  clear   as without the mesh
  -       nowhere: refused

Examples:
  kumiko flows --verdict deny         what was refused, and why
  kumiko flows -f --to shop/web       who comes to a workload or Service, as it happens
  kumiko flows --from shop/ -o json   a namespace's own, with reason, hint, identities and times

With --follow and -o json each line is a flow that began, went on or ended (state), or {\"lost\":N}: this reader was too
slow for N lines.";

const EXPLAIN: &str = "\
Exit codes: 0 allowed, 1 denied, 2 cannot say (wrong usage, nobody of that name, policy that cannot be read), 3 no agent.

Examples:
  kumiko policy explain --from orders/web-3 --to payments/api-5f2 --port 8443                      what is in force here
  kumiko policy explain --from orders/web-3 --to payments/api-5f2 --port 8443 --folder manifests   what a folder says
  kumiko policy explain --flow 7d0c…                                                               why it was refused";

const APPLY: &str = "\
Each FILE takes the place of the one of its name in the folder, or is a new one there. All of them are checked first, together
with what is in the folder, as the agent would: what is bad is told with file, line and cause, and nothing is changed. Each
is replaced as a whole; of several an agent may read the first alone for a moment.

With --wait it ends when each agent that is named (--socket, and --also for each other one) has exactly these documents in force, and has
looked at every open connection: by then those that lost their right are cut, and no byte of them passes any more, unless
onRevoke lets them.

Exit codes: 0 done, 1 refused, or not in force in time (the documents stay in the folder), 2 wrong usage, 3 no agent.

Examples:
  kumiko policy apply team.yaml --wait
  kumiko policy apply team.yaml --wait --socket /run/n1/admin.sock --also /run/n2/admin.sock";

/// Looks into the kumiko agent of this node.
#[derive(Parser, Debug)]
#[command(name = "kumiko", version, about, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    /// Admin socket of the agent.
    #[arg(
        long,
        global = true,
        env = "KUMIKO_SOCKET",
        default_value = "/run/kumiko/admin.sock",
        value_name = "PATH",
        help_heading = COMMON
    )]
    pub socket: PathBuf,
    /// How to print.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t = Output::Table,
        value_name = "FORMAT",
        help_heading = COMMON
    )]
    pub output: Output,
    /// What to show.
    #[command(subcommand)]
    pub command: Command,
}

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs: one JSON value; one a line with `flows --follow`.
    Json,
}

/// Subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// How the agent is: ready or what it waits for, kernel, source, certificates, flows, refusals.
    Status,
    /// Workloads of the mesh, and whether this node's are captured.
    Workloads,
    /// Connections: who, to whom, how they travel, how they ended and why.
    #[command(after_help = FLOWS)]
    Flows(FlowsArgs),
    /// Tunnels to other nodes.
    Tunnels,
    /// Certificates of this node's workloads.
    Certs,
    /// Who may talk to whom, and why: what is in force, or what a folder of manifests says.
    #[command(subcommand)]
    Policy(PolicyCommand),
}

/// Subcommands of `policy`.
#[derive(Subcommand, Debug)]
pub enum PolicyCommand {
    /// Whether a flow may be, what decides it, and what to do.
    #[command(after_help = EXPLAIN)]
    Explain(ExplainArgs),
    /// Put documents into the folder that agents read, if they do not make it bad.
    #[command(after_help = APPLY)]
    Apply(ApplyArgs),
    /// Everything that decides on this node, and what of it does not and why.
    List,
    /// The tables of this node's verdicts: what workloads with the same rules share, and how full they are.
    Sets,
    /// Whether the folder's policy can be read and does what it says.
    Check(FolderArgs),
}

/// Where policy is read from.
#[derive(Args, Debug)]
pub struct FolderArgs {
    /// Folder of manifests: policy, and the namespaces, nodes and workloads that it is about.
    #[arg(long, value_name = "DIR")]
    pub folder: PathBuf,
    /// Trust domain of the mesh: all SPIFFE IDs begin with it.
    #[arg(long, value_name = "NAME", default_value = TRUST_DOMAIN)]
    pub trust_domain: String,
}

/// Options of `policy explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// Ask about this folder of manifests, not the agent.
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// Trust domain of a folder's mesh [default: cluster.local].
    #[arg(long, value_name = "NAME", requires = "folder")]
    pub trust_domain: Option<String>,
    /// A flow that this node's agent has seen, by the id in `kumiko flows -o json`: why it was let or refused, by what was
    /// in force then.
    #[arg(long, value_name = "ID", conflicts_with_all = ["folder", "from", "to", "port", "protocol"])]
    pub flow: Option<String>,
    /// Who begins the flow: NAMESPACE/WORKLOAD or an IP address.
    #[arg(long, value_name = "WHO", required_unless_present = "flow")]
    pub from: Option<PartyMatch>,
    /// Whom it goes to: NAMESPACE/WORKLOAD or an IP address.
    #[arg(long, value_name = "WHOM", required_unless_present = "flow")]
    pub to: Option<PartyMatch>,
    /// The destination's port: a pod's, not its Service's. ICMP and others have none.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Protocol; `icmp` is ICMPv6, too, and `other` what has none of these names.
    #[arg(long, value_enum, default_value_t = ProtocolName::Tcp)]
    pub protocol: ProtocolName,
}

/// Options of `policy apply`.
#[derive(Args, Debug)]
pub struct ApplyArgs {
    /// Manifests, named *.yaml or *.yml.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Admin socket of another agent that is to have them, once for each.
    #[arg(long, value_name = "PATH")]
    pub also: Vec<PathBuf>,
    /// Wait until they are in force on every agent that is named, for open connections too.
    #[arg(long)]
    pub wait: bool,
    /// Longest wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "wait", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// Where the agents' folder is for this command [default: where the agent says that it is].
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
}

/// A protocol by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[allow(missing_docs, reason = "each variant is named after what it is")]
pub enum ProtocolName {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Other,
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Self {
        match name {
            ProtocolName::Tcp => Self::Tcp,
            ProtocolName::Udp => Self::Udp,
            ProtocolName::Sctp => Self::Sctp,
            ProtocolName::Icmp => Self::Icmp,
            ProtocolName::Other => Self::Other,
        }
    }
}

/// Options of `flows`.
#[derive(Args, Debug, Default)]
pub struct FlowsArgs {
    /// Keep showing flows as they begin and end.
    #[arg(short, long)]
    pub follow: bool,
    /// Only flows from NAMESPACE/NAME, NAMESPACE/ or an IP address.
    #[arg(long, value_name = "WHO")]
    pub from: Option<PartyMatch>,
    /// Only flows to NAMESPACE/NAME (a workload or Service), NAMESPACE/ or an IP address.
    #[arg(long, value_name = "WHOM")]
    pub to: Option<PartyMatch>,
    /// Only flows with this verdict.
    #[arg(long, value_enum, value_name = "VERDICT")]
    pub verdict: Option<VerdictName>,
    /// Only flows that go on and would be refused, were everything enforced that is in audit, and everybody strict.
    #[arg(long)]
    pub would_deny: bool,
    /// Most flows to show, the newest; with --follow those to begin with [default: 1000; with --follow 10].
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=20_000))]
    pub last: Option<u32>,
}

/// A verdict by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum VerdictName {
    /// May go on.
    Allow,
    /// Was refused.
    Deny,
    /// Went on, though an enforced policy would have refused it.
    Audit,
}

impl VerdictName {
    /// As the admin API writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
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
    fn wrong_parties_are_wrong_usage() {
        let error = Cli::try_parse_from(["kumiko", "flows", "--from", "nobody"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("NAMESPACE/NAME"), "{error}");
    }
}
