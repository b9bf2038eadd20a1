//! The reader's words, and what people are told.

mod definitions;
mod documents;
mod told;
