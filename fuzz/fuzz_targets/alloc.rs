//! Runs `brigade_engine::alloc::fuzzing::steps` over what the fuzzer thinks up.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| brigade_engine::alloc::fuzzing::steps(input));
