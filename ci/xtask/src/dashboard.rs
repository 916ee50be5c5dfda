//! The dashboard's assets, which are committed so that `cargo build` needs no node: built from their sources, or compared
//! with what the sources give.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Where a build is put that is only compared, below the dashboard's folder.
const FRESH: &str = "node_modules/.fresh";

/// Builds `dashboard/dist`.
pub(crate) fn build(root: &Path) -> Result<()> {
    let folder = root.join("dashboard");
    npm(&folder, &["ci"])?;
    npm(&folder, &["run", "build"])
}

/// Checks types and tests, builds afresh and compares. Says why where it cannot.
pub(crate) fn check(root: &Path) -> Result<Option<String>> {
    let folder = root.join("dashboard");
    if !is_there("npm") {
        return Ok(Some("npm is not installed".to_owned()));
    }
    if npm(&folder, &["ci", "--prefer-offline"]).is_err() {
        return Ok(Some("npm could not fetch what package-lock.json names".to_owned()));
    }
    npm(&folder, &["run", "types"])?;
    npm(&folder, &["test"])?;
    npm(&folder, &["run", "build", "--", "--out", FRESH])?;
    let (committed, fresh) = (folder.join("dist"), folder.join(FRESH));
    let names = files(&committed)?;
    let same = names == files(&fresh)?
        && names.iter().all(|name| fs::read(committed.join(name)).ok() == fs::read(fresh.join(name)).ok());
    if !same {
        bail!("dashboard/dist is not what its sources give; run `cargo xtask dashboard` and commit it");
    }
    Ok(None)
}

fn is_there(program: &str) -> bool {
    let status = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn npm(folder: &Path, args: &[&str]) -> Result<()> {
    println!("$ npm {}", args.join(" "));
    let status =
        Command::new("npm").args(args).current_dir(folder).status().context("`npm` cannot be run")?;
    if !status.success() {
        bail!("`npm {}` failed", args.join(" "));
    }
    Ok(())
}

/// All files below a folder, relative to it, sorted.
fn files(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(folder)?.display().to_string());
            }
        }
    }
    found.sort();
    Ok(found)
}
