//! Developer tasks, so that what CI does is one command and is written in Rust instead of shell.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod check;
mod dashboard;
mod layers;
mod proto;
mod reference;
mod sanitize;
mod source;
mod tidy;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask TASK

  check             everything that CI runs; a failing step does not hide the others
  layers            the edges between our crates are those that ARCHITECTURE.md draws, and pure crates are pure
  tidy              what a reviewer would otherwise say twice
  dashboard [--check]
                    build dashboard/dist from its sources (--check: test them, and fail if it is out of date)
  sanitize          the unsafe code under Miri and AddressSanitizer, where a nightly toolchain has them
  proto [--check]   generate api/src/gen from api/proto (--check: fail if it is out of date)
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[&str]) -> Result<()> {
    let root = root();
    match args {
        ["check"] => check::run(&root),
        ["layers"] => report("layers", &layers::problems(&root)?),
        ["tidy"] => report("tidy", &tidy::problems(&root)?),
        ["dashboard"] => dashboard::build(&root),
        ["dashboard", "--check"] => {
            if let Some(reason) = dashboard::check(&root)? {
                println!("skipped: {reason}");
            }
            Ok(())
        }
        ["sanitize"] => check::sanitize(&root),
        ["proto"] => proto::generate(&root),
        ["proto", "--check"] => proto::check(&root),
        _ => bail!("unknown task {:?}\n\n{USAGE}", args.join(" ")),
    }
}

/// Prints all problems; fails if there are any.
fn report(task: &str, problems: &[String]) -> Result<()> {
    for problem in problems {
        eprintln!("{problem}");
    }
    match problems.len() {
        0 => {
            println!("{task}: nothing to say");
            Ok(())
        }
        count => bail!("{task} found {count} problem{}", if count == 1 { "" } else { "s" }),
    }
}

/// The workspace's root: two folders above this package.
fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let here = PathBuf::from(here);
    here.ancestors().nth(2).map(PathBuf::from).unwrap_or(here)
}
