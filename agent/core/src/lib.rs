//! Model, stages, frames, flow state: values and plain functions. Nothing here can reach a socket, a clock or a file.

pub mod addr;
pub mod api;
pub mod compile;
pub mod connect;
pub mod flow_record;
pub mod manifest;
pub mod model;
pub mod principal;
pub mod route;
pub mod stage;

pub use principal::Principal;
