//! JSON bodies of OCSF, policy engines, tokens and the like are mapped without a panic, and to
//! no grant that is good for ever.
#![no_main]

#[allow(dead_code, reason = "the module is a test, too, and each target takes only some of it")]
#[path = "../../../query/tests/fuzz.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    checks::document(text);
});
