//! Given to libFuzzer; the target itself is in tests/src/fuzz.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ipbroker_tests::fuzz::arrays(data));
