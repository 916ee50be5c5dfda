//! The Python package's own tests, with the real binary and the real frameworks.
//!
//! Those are in `target/frameworks-venv`, which `.ci/run` makes. Where it is absent the tests that need none of it run with
//! the system's Python, and the others say that they skip.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use support::finish_within;

/// All of them together: importing five frameworks takes its time.
const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn the_package_does_what_its_tests_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let venv = root.join("target/frameworks-venv");
    let complete = venv.join("complete").exists();
    let python = if complete { venv.join("bin/python3") } else { "python3".into() };
    let mut tests = Command::new(python);
    tests.args(["-m", "unittest", "discover", "-s", "python/tests", "-t", "python", "-v"]);
    tests.env("PHALANX_TEST_BINARY", env!("CARGO_BIN_EXE_phalanx")).current_dir(root);
    for ours in
        ["PHALANX_SERVER", "PHALANX_TOKEN_FILE", "PHALANX_DATA", "PHALANX_SOCKET", "PHALANX_JOB", "RANK"]
    {
        tests.env_remove(ours);
    }
    let child = tests.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(child) = child else {
        eprintln!("skipped: python3 is not installed");
        return;
    };
    let ended = finish_within(child, LIMIT).expect(0);
    let said = ended.err();
    let skipped: Vec<&str> = said.lines().filter(|line| line.contains("skipped")).collect();
    if complete {
        assert!(skipped.is_empty(), "with all that it needs a test skipped: {skipped:#?}");
    } else {
        eprintln!("skipped: target/frameworks-venv is not there, which .ci/run makes: {skipped:#?}");
    }
}
