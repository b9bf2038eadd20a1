//! Model, stages, frames, flow state: values and plain functions. Nothing here can reach a socket, a clock or a file.

pub mod acceptor;
pub mod addr;
pub mod api;
pub mod compile;
pub mod connect;
pub mod dialler;
pub mod flow_record;
pub mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod halves;
pub mod manifest;
pub mod model;
pub mod origin;
pub mod policy;
pub mod principal;
pub mod route;
pub mod stage;
pub mod tlv;

pub use principal::Principal;
