//! Runs `brigade_format::fuzzing::uuids` over what the fuzzer thinks up.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| brigade_format::fuzzing::uuids(input));
