//! The adapter of gu1.

#![no_main]

libfuzzer_sys::fuzz_target!(|request: &[u8]| verdict_fuzz::normalize::check("gu1", request));
