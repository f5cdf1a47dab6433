//! The borrowed reading of records and prost read the same.
#![no_main]

#[allow(dead_code)]
#[path = "../../../proto/tests/wire.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    checks::reads_what_prost_reads(bytes);
});
