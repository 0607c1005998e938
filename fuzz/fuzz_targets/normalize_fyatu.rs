//! The adapter of fyatu.

#![no_main]

libfuzzer_sys::fuzz_target!(|request: &[u8]| verdict_fuzz::normalize::check("fyatu", request));
