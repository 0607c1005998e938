//! The adapter of ralio.

#![no_main]

libfuzzer_sys::fuzz_target!(|request: &[u8]| verdict_fuzz::normalize::check("ralio", request));
