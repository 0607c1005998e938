//! The configuration.

#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| verdict_fuzz::config::check(text));
