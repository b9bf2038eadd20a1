//! What the integration tests share: exchanges to compare, labs to compare them in, and a harness.
//!
//! Every test makes real connections between pods of a lab; what they should give is what the same connections give in
//! a lab without the mesh.

pub mod cases;
pub mod echo;
pub mod forge;
pub mod harness;
pub mod in_force;
pub mod load;
pub mod own_port;
pub mod probe;
pub mod programs;
pub mod twins;
