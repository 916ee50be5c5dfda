//! The API under requests that schemathesis makes from its own description: no server error, and every answer as described.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use support::{Home, Service, script};

/// Cases that are tried of each operation.
const EXAMPLES: &str = "25";
/// What answers without end, or long enough to be taken for that.
const ENDLESS: &str = "/(events|audit)$";

#[test]
fn every_answer_is_as_described() {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/ci-venv/bin/schemathesis");
    if !program.exists() {
        return eprintln!("skipped: schemathesis is not in target/ci-venv; `.ci/run` installs it");
    }
    let home = Home::new();
    let service = Service::start(&home);
    home.file("job.toml", &script("echo hello"));
    let id = home.run(["submit", "job.toml"]).expect(0).out().trim().to_owned();
    home.run(["wait", &id]).expect(0);
    let output = Command::new(program)
        .arg("run")
        .arg(format!("{}/api/v1/openapi.json", service.http))
        .args(["-H", &format!("Authorization: Bearer {}", service.token())])
        .args([
            "--exclude-path-regex",
            ENDLESS,
            "--max-examples",
            EXAMPLES,
            "--seed",
            "7",
            "--phases",
            "examples,coverage,fuzzing",
        ])
        .args([
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        ])
        .args(["--request-timeout", "10", "--no-shrink", "--generation-deterministic"])
        .current_dir(home.dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    // It serves on, and has lost nothing.
    assert_eq!(home.run(["describe", &id, "--json"]).expect(0).json()["state"], "SUCCEEDED");
}
