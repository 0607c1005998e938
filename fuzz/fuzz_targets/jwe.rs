//! The parser of encrypted payloads.

#![no_main]

libfuzzer_sys::fuzz_target!(|compact: &[u8]| verdict_fuzz::jwe::check(compact));
