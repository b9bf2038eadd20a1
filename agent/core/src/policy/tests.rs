//! The evaluator against a naive one, the reader's words, and what people are told.

mod compiled;
mod definitions;
mod differential;
mod documents;
mod naive;
mod random;
mod told;
