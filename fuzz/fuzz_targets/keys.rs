//! Runs `brigade_format::fuzzing::keys` over what the fuzzer thinks up.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| brigade_format::fuzzing::keys(input));
