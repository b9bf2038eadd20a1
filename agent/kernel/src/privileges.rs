//! What the agent may do.

use rustix::thread::{CapabilitySet, capabilities};

/// What loading programs, making namespaces and setting up interfaces takes, with the names that people know.
const NEEDED: [(CapabilitySet, &str); 3] = [
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    (CapabilitySet::NET_RAW, "CAP_NET_RAW"),
];

/// Names of the capabilities that the calling thread needs and has not.
///
/// # Errors
/// As `capget(2)`.
pub fn missing() -> std::io::Result<Vec<&'static str>> {
    let effective = capabilities(None)?.effective;
    Ok(NEEDED.iter().filter(|(needed, _)| !effective.contains(*needed)).map(|(_, name)| *name).collect())
}
