//! The wire as a program in another language meets it: Python's grpcio, with reflection alone.
//!
//! Needs `target/ci-venv`, which `.ci/run` makes; says that it skips where that is absent.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;
use support::{Home, Service, ended};

#[test]
fn a_python_client_with_reflection_can_submit_and_watch() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/ci-venv/bin/python3");
    let has_grpc = Command::new(&python).args(["-c", "import grpc, grpc_reflection"]).output();
    if !has_grpc.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: {} has no grpcio; .ci/run makes it", python.display());
        return;
    }
    let home = Home::new();
    let service = Service::start(&home);
    let mut client = Command::new(python);
    client.arg(root.join("tests/python/grpc_client.py")).arg(&service.grpc).arg(&service.token_file);
    let ended = ended(&mut client).expect(0);
    assert_eq!(ended.out(), "ok\n");
}
