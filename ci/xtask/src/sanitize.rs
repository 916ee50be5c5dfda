//! The unsafe code under tools that see what a test cannot: Miri where it can run the code, AddressSanitizer where system calls
//! or other ranks are in it. Both come with a nightly toolchain.

use std::path::Path;

use anyhow::Result;

use crate::check::{Outcome, command_with, installed, skipped};

/// The tests whose code Miri can run: no mapping of memory, no sockets, no processes. It sees data races between threads too.
const MIRI_TESTS: [&str; 12] = [
    "reduce::",
    "convert::",
    "element::tests::shards",
    "element::tests::min",
    "arena::",
    "recorder::tests::the_last",
    "queue::",
    "shm::word",
    "tcp::frame",
    "communicator::",
    "config::",
    "fault::",
];

/// Miri on the kernels, the allocator, the futex word, the flight recorder and the queue of the collectives.
pub(crate) fn miri(root: &Path) -> Result<Outcome> {
    if !installed("cargo", &["+nightly", "miri", "--version"]) {
        return skipped("no Miri: rustup toolchain install nightly --component miri");
    }
    let args = ["+nightly", "miri", "test", "--locked", "-p", "phalanx-collective", "--lib", "--"];
    let args: Vec<&str> = args.into_iter().chain(MIRI_TESTS).collect();
    let env = [
        ("CARGO_TARGET_DIR", "target/miri"),
        // The clock and the free memory are the real ones.
        ("MIRIFLAGS", "-Zmiri-disable-isolation"),
        // It is some hundred times slower.
        ("PROPTEST_CASES", "2"),
    ];
    command_with(root, "cargo", &args, &env)
}

/// AddressSanitizer on all tests of the collectives, with ranks as threads and as processes.
pub(crate) fn address(root: &Path) -> Result<Outcome> {
    if !installed("cargo", &["+nightly", "--version"]) {
        return skipped("no nightly toolchain: rustup toolchain install nightly");
    }
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let args = ["+nightly", "test", "--release", "--locked", "-p", "phalanx-collective", "--lib", "--tests"];
    let args: Vec<&str> = args.into_iter().chain(["--target", &target]).collect();
    let env = [
        ("CARGO_TARGET_DIR", "target/asan"),
        ("RUSTFLAGS", "-Zsanitizer=address"),
        // What a rank that is killed had is no leak.
        ("ASAN_OPTIONS", "detect_leaks=0"),
    ];
    command_with(root, "cargo", &args, &env)
}
