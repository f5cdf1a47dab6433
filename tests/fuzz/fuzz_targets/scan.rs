//! The scanner and prost take the same requests, and find the same records in them.
#![no_main]

#[allow(dead_code, reason = "the module is a test, too, and each target takes only some of it")]
#[path = "../../../proto/tests/fuzz.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for signal in checks::SIGNALS {
        checks::agrees_with_prost(signal, bytes);
    }
});
