//! What the process may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// A carried flow takes two descriptors, and the usual soft limit is 1,024: a few hundred flows would use it up.
pub(super) fn raise_descriptors() {
    /// Below this a busy node runs out of them.
    const ENOUGH: u64 = 65_536;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(hard)
    });
    match raised {
        Ok(hard) if hard >= ENOUGH => {}
        Ok(hard) => warn!(hard, "few descriptors: two a flow; raise the hard limit (LimitNOFILE= of a systemd unit)"),
        Err(error) => warn!(%error, "the limit of descriptors stays as it is"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_descriptors_does_not_count() {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard / 2), hard).unwrap();
        raise_descriptors();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
