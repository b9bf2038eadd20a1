//! What a request asks for.

use kumiko_core::api::query;
use kumiko_core::flow_record::FlowFilter;

use super::{DEFAULT_LIMIT, MAX_LIMIT};

/// What was asked about flows.
#[derive(Debug)]
pub(crate) struct FlowsQuery {
    pub(crate) filter: FlowFilter,
    pub(crate) follow: bool,
    pub(crate) limit: usize,
}

impl FlowsQuery {
    /// Reads the query of a request; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (mut filter, mut follow, mut limit) = (FlowFilter::default(), false, None);
        for (name, value) in query::pairs(text) {
            match name.as_str() {
                "follow" => {
                    follow = match value.as_str() {
                        "true" | "1" | "" => true,
                        "false" | "0" => false,
                        _ => return Err(format!("follow is true or false, not {value:?}")),
                    };
                }
                "limit" => {
                    let number = value.parse::<usize>().ok().filter(|number| *number <= MAX_LIMIT);
                    let error = || format!("limit is a number up to {MAX_LIMIT}, not {value:?}");
                    limit = Some(number.ok_or_else(error)?);
                }
                _ => {
                    if !filter.set(&name, &value).map_err(|error| format!("{name}: {error}"))? {
                        return Err(format!(
                            "no {name:?} here: there are from, to, verdict, wouldDeny, limit and follow"
                        ));
                    }
                }
            }
        }
        let limit = limit.unwrap_or(if follow { 0 } else { DEFAULT_LIMIT });
        Ok(Self { filter, follow, limit })
    }
}
