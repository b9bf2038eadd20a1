//! Model, stages, frames, flow state: values and plain functions. Nothing here can reach a socket, a clock or a file.

pub mod addr;
pub mod api;
pub mod connect;
pub mod flow_record;
pub mod principal;

pub use principal::Principal;
