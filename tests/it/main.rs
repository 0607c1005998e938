//! verdict from outside: one binary, a module for each subject.

mod adapters;
mod bad_input;
mod cli;
mod config;
mod consumers;
mod crash;
mod damage;
mod fixtures;
mod golden;
mod ingest;
mod ingest_stream;
mod known_answers;
mod list_events;
mod log;
mod manners;
mod quarantine;
mod renormalize;
mod retention;
mod simulated_disk;
mod soak;
mod status;
mod subscribe;
mod support;
mod trouble;
mod troubled_log;
mod verification;
