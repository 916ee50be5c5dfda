//! Our packages, as cargo sees them, and the files of the repository, as git sees them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::source::Source;

/// One package of the workspace.
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line of a package's dependencies, dev-dependencies included.
pub(crate) struct Dependency {
    /// The package's name in the registry.
    pub(crate) name: String,
    /// What the source calls it.
    pub(crate) alias: String,
    pub(crate) optional: bool,
}

/// All packages of the workspace.
pub(crate) fn packages(root: &Path) -> Result<Vec<Package>> {
    let output = run(root, "cargo", &["metadata", "--no-deps", "--format-version", "1", "--offline"])?;
    let metadata: Value = serde_json::from_str(&output)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    packages.iter().map(package).collect()
}

fn package(package: &Value) -> Result<Package> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let manifest = PathBuf::from(text(&package["manifest_path"]).context("a package without a manifest")?);
    let dependencies = package["dependencies"].as_array().into_iter().flatten().filter_map(|dependency| {
        let name = text(&dependency["name"])?;
        let alias = text(&dependency["rename"]).unwrap_or_else(|| name.clone()).replace('-', "_");
        Some(Dependency { name, alias, optional: dependency["optional"] == true })
    });
    Ok(Package {
        name: text(&package["name"]).context("a package without a name")?,
        folder: manifest.parent().context("a manifest without a folder")?.to_owned(),
        dependencies: dependencies.collect(),
    })
}

/// The repository's files, tracked or not, but for ignored ones; relative to the root, sorted.
pub(crate) fn files(root: &Path) -> Result<Vec<String>> {
    let output =
        run(root, "git", &["ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate"])?;
    let mut files: Vec<String> =
        output.lines().filter(|file| root.join(file).is_file()).map(str::to_owned).collect();
    files.sort();
    Ok(files)
}

/// Those of `files` that are compiled for tests and benches only: in such a folder, a module under `#[cfg(test)]`, or named
/// for it (`#[path = "…_tests.rs"]`).
pub(crate) fn test_files(root: &Path, files: &[String]) -> Result<BTreeSet<String>> {
    let mut tests = BTreeSet::new();
    let mut roots: Vec<String> = Vec::new();
    for file in files.iter().filter(|file| file.ends_with(".rs")) {
        let inside = |folder: &str| file.starts_with(folder) || file.contains(&format!("/{folder}"));
        if inside("tests/") || inside("benches/") || file.ends_with("_tests.rs") {
            tests.insert(file.clone());
        }
        let source = Source::new(&fs::read_to_string(root.join(file))?);
        let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
        let modules = match name {
            "lib.rs" | "main.rs" | "mod.rs" => folder.to_owned(),
            name => format!("{folder}/{}", name.trim_end_matches(".rs")),
        };
        roots.extend(source.test_modules.iter().map(|module| format!("{modules}/{module}")));
    }
    let below = |file: &&String, root: &String| {
        file.strip_prefix(root.as_str()).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    };
    tests.extend(files.iter().filter(|file| roots.iter().any(|root| below(file, root))).cloned());
    Ok(tests)
}

fn run(root: &Path, program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .current_dir(root)
        .output()
        .with_context(|| format!("`{program}` cannot be run"))?;
    if !output.status.success() {
        bail!("`{program} {}` failed:\n{}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}
