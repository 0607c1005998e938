//! Attempts to get in that must be refused, in tables. Nothing gets in, and nothing but the counted reason changes.

mod attempts;
pub(crate) mod forger;
mod signatures;
