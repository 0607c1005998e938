//! verdict from outside: one binary, a module for each subject.

mod adapters;
mod bad_input;
mod cli;
mod config;
mod fixtures;
mod ingest;
mod known_answers;
mod log;
mod manners;
mod subscribe;
mod support;
mod trouble;
