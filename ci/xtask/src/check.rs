//! Everything that CI runs, in one command: the quick steps first, the tests last, and every step even if one before it
//! failed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{dashboard, layers, proto, report, sanitize, tidy};

/// One profile for all: what the product is built with is what is tested, and nothing is compiled twice.
const LINTS: [&str; 8] = [
    "clippy",
    "--release",
    "--workspace",
    "--all-targets",
    "--locked",
    "--",
    "--deny=warnings",
    UNSAFE_NEEDS_A_REASON,
];
const UNSAFE_NEEDS_A_REASON: &str = "--deny=clippy::undocumented_unsafe_blocks";
/// With what the product is built without, the trainer's adapters: apart they would have features of shared packages to
/// themselves, and every such package, Parquet and the matrix kernels among them, would be compiled again. That the product
/// does without is what the lints see.
const TESTS: [&str; 6] = [
    "test",
    "--release",
    "--workspace",
    "--features=phalanx-trainer/burn,phalanx-trainer/candle",
    "--locked",
    "--no-fail-fast",
];

/// How a step ended.
pub(crate) enum Outcome {
    Passed,
    Failed(String),
    /// What it needs is not installed.
    Skipped(String),
}

/// The steps in their order, and what came of those that ran.
#[derive(Default)]
struct Steps(Vec<(&'static str, Outcome, Duration)>);

pub(crate) fn run(root: &Path) -> Result<()> {
    let mut steps = Steps::default();
    steps.run("format", || cargo(root, &["fmt", "--all", "--check"]));
    steps.run("layers", || report("layers", &layers::problems(root)?).map(passed));
    steps.run("tidy", || report("tidy", &tidy::problems(root)?).map(passed));
    steps.run("wire", || proto::check(root).map(passed));
    steps.run("wire: style", || buf(root, &["lint"]));
    steps.run("wire: compatibility", || compatible(root));
    steps.run("licences and advisories", || {
        let args = ["deny", "--locked", "check"];
        if installed("cargo", &["deny", "--version"]) {
            cargo(root, &args)
        } else {
            skipped("cargo-deny is not installed")
        }
    });
    steps.run("python", || {
        let args = ["-m", "unittest", "discover", "-s", "python/tests", "-t", "python"];
        if installed("python3", &["--version"]) {
            command(root, "python3", &args)
        } else {
            skipped("python3 is not installed")
        }
    });
    steps.run("dashboard", || Ok(dashboard::check(root)?.map_or(Outcome::Passed, Outcome::Skipped)));
    steps.run("lints", || cargo(root, &LINTS));
    steps.run("tests", || cargo(root, &TESTS));
    steps.run("miri", || sanitize::miri(root));
    steps.summary()
}

/// Only the steps on unsafe code.
pub(crate) fn sanitize(root: &Path) -> Result<()> {
    let mut steps = Steps::default();
    steps.run("miri", || sanitize::miri(root));
    steps.run("address sanitizer", || sanitize::address(root));
    steps.summary()
}

impl Steps {
    fn run(&mut self, name: &'static str, work: impl FnOnce() -> Result<Outcome>) {
        println!("\n== {name}");
        let start = Instant::now();
        let outcome = work().unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        match &outcome {
            Outcome::Passed => {}
            Outcome::Failed(reason) => println!("failed: {reason}"),
            Outcome::Skipped(reason) => println!("skipped: {reason}"),
        }
        self.0.push((name, outcome, start.elapsed()));
    }

    fn summary(&self) -> Result<()> {
        println!("\n== summary");
        let mut failed = Vec::new();
        for (name, outcome, took) in &self.0 {
            let word = match outcome {
                Outcome::Passed => "passed".to_owned(),
                Outcome::Failed(_) => "FAILED".to_owned(),
                Outcome::Skipped(reason) => format!("skipped ({reason})"),
            };
            println!("{name:24} {:>7.1} s  {word}", took.as_secs_f64());
            if matches!(outcome, Outcome::Failed(_)) {
                failed.push(*name);
            }
        }
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

/// Where `npm install --prefix target/buf @bufbuild/buf` puts it.
const BUF: &str = "target/buf/node_modules/.bin/buf";

/// Runs buf: the one on the path, or the one that `.ci/run` has installed.
fn buf(root: &Path, args: &[&str]) -> Result<Outcome> {
    let local = root.join(BUF);
    let local = local.to_string_lossy();
    match ["buf", &local].into_iter().find(|program| installed(program, &["--version"])) {
        Some(program) => command(root, program, args),
        None => skipped("buf is not installed: npm install --prefix target/buf @bufbuild/buf"),
    }
}

/// Nothing of the wire is broken that the last release, or before the first one the last commit, had.
fn compatible(root: &Path) -> Result<Outcome> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).current_dir(root).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let release = git(&["describe", "--tags", "--abbrev=0", "--match", "v*"]);
    let Some(base) = release.or_else(|| git(&["rev-parse", "--verify", "HEAD^"])) else {
        return skipped("there is no commit to compare with");
    };
    let folder = root.join("target/wire-before");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    for file in git(&["ls-tree", "-r", "--name-only", &base, "api/proto"]).unwrap_or_default().lines() {
        let text =
            git(&["show", &format!("{base}:{file}")]).with_context(|| format!("reading {file} of {base}"))?;
        let path = folder.join(file);
        std::fs::create_dir_all(path.parent().unwrap_or(&folder))?;
        std::fs::write(path, text)?;
    }
    let before = folder.join("api/proto");
    if !before.exists() {
        return skipped("the commit to compare with has no wire");
    }
    buf(root, &["breaking", "--against", &before.to_string_lossy()])
}

fn passed(_: ()) -> Outcome {
    Outcome::Passed
}

pub(crate) fn skipped(reason: &str) -> Result<Outcome> {
    Ok(Outcome::Skipped(reason.to_owned()))
}

fn cargo(root: &Path, args: &[&str]) -> Result<Outcome> {
    command(root, "cargo", args)
}

fn command(root: &Path, program: &str, args: &[&str]) -> Result<Outcome> {
    command_with(root, program, args, &[])
}

pub(crate) fn command_with(
    root: &Path,
    program: &str,
    args: &[&str],
    env: &[(&str, &str)],
) -> Result<Outcome> {
    let variables: String = env.iter().map(|(name, value)| format!("{name}={value} ")).collect();
    println!("$ {variables}{program} {}", args.join(" "));
    let status = Command::new(program)
        .args(args)
        .envs(env.iter().copied())
        .current_dir(root)
        .status()
        .with_context(|| format!("`{program}` cannot be run"))?;
    Ok(if status.success() {
        Outcome::Passed
    } else {
        Outcome::Failed(format!("`{program} {}`", args.join(" ")))
    })
}

/// Whether a program is there and answers.
pub(crate) fn installed(program: &str, args: &[&str]) -> bool {
    let status = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_step_fails_the_whole_and_hides_none() {
        let mut steps = Steps::default();
        steps.run("first", || bail!("broken"));
        steps.run("second", || skipped("not installed"));
        steps.run("third", || command(Path::new("."), "false", &[]));
        steps.run("fourth", || command(Path::new("."), "true", &[]));
        assert_eq!(steps.0.len(), 4);
        assert_eq!(steps.summary().unwrap_err().to_string(), "failed: first, third");
    }
}
