//! Verdicts as plain functions over values: the programs and the tests call the same code.
