//! Runs `brigade_format::fuzzing::prio` over what the fuzzer thinks up.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| brigade_format::fuzzing::prio(input));
