//! Scenario files and traces: whatever they say, they are read or refused, and what is read keeps every promise.
#![no_main]

#[path = "../../tests/audit/mod.rs"]
mod audit;
#[path = "../check.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
