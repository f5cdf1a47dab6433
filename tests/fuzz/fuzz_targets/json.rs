//! JSON that is taken is protobuf that prost takes.
#![no_main]

#[allow(dead_code, reason = "the module is a test, too, and each target takes only some of it")]
#[path = "../../../proto/tests/fuzz.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    for signal in checks::SIGNALS {
        checks::json_is_protobuf(signal, text);
    }
});
