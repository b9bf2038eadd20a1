//! Who may talk to whom: the objects that teams write, and the one evaluator of them.
//!
//! [`object`] has the documents' types, [`load`] takes them from manifests, [`judge`] is the formula, [`verdict`] asks it
//! for both ends of a flow, [`explain`] says why, [`ask`] takes questions in people's words, [`compile`] makes the
//! kernel's tables of it, [`revoke`] ends what is open and allowed no more, [`labels`] is what two nodes compare,
//! [`legacy`] what is older than its pod's enrolment,
//! [`history`] keeps what was in force, [`list`] says what is, [`nobody`] what names nobody, and [`seen`] why a flow that was seen was let or refused.

pub mod ask;
pub mod compile;
pub mod explain;
pub mod foreign;
pub mod history;
pub mod judge;
pub mod labels;
pub mod legacy;
pub mod list;
pub mod load;
pub mod nobody;
pub mod object;
pub mod port;
pub mod revoke;
pub mod rule;
pub mod seen;
pub mod selector;
pub mod settings;
pub mod verdict;

#[cfg(test)]
mod tests;
