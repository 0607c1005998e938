//! Every scheme's way of reading a signature.

#![no_main]

libfuzzer_sys::fuzz_target!(|request: &[u8]| verdict_fuzz::signature::check(request));
