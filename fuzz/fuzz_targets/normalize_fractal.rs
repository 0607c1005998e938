//! The adapter of fractal.

#![no_main]

libfuzzer_sys::fuzz_target!(|request: &[u8]| verdict_fuzz::normalize::check("fractal", request));
