//! The dashboard in a real browser, on the real service: `dashboard/test/browser.test.mjs`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};

/// What the tests need beside the binary, and how it is had.
fn missing(folder: &Path, browser: &str) -> Option<String> {
    let node = Command::new("node").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !node.is_ok_and(|status| status.success()) {
        return Some("node is not installed".to_owned());
    }
    if !folder.join("node_modules/playwright-core").exists() {
        return Some("playwright-core is not there; `npm ci` in dashboard/ fetches it".to_owned());
    }
    (!Path::new(browser).exists())
        .then(|| format!("no browser at {browser}; install Debian's `chromium`, or set CHROMIUM"))
}

#[test]
fn the_page_works_in_a_browser() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboard");
    let browser = std::env::var("CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned());
    if let Some(reason) = missing(&folder, &browser) {
        eprintln!("skipped: {reason}");
        return;
    }
    let tests = Command::new("node")
        .args(["--test", "--test-reporter=spec", "test/browser.test.mjs"])
        .current_dir(&folder)
        .env("PHALANX", env!("CARGO_BIN_EXE_phalanx"))
        .env("CHROMIUM", browser)
        .env_remove("PHALANX_SERVER")
        .env_remove("PHALANX_TOKEN_FILE")
        .env_remove("NODE_TEST_CONTEXT")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&tests.stdout);
    assert!(tests.status.success(), "{said}{}", String::from_utf8_lossy(&tests.stderr));
    println!("{said}");
}
