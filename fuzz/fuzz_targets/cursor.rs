//! Cursors as callers send them.

#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| verdict_fuzz::cursor::check(text));
