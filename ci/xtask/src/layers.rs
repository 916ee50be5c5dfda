//! The layers: who may import whom is read from the table in ARCHITECTURE.md, so that the document cannot drift from the
//! code, and the pure crates reach for nothing that is not an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::source::Source;
use crate::workspace::{self, Package};

/// Crates whose results depend on their arguments alone, so that they run under a virtual clock and from a seed.
const PURE: [&str; 3] = ["phalanx-core", "phalanx-scheduler", "phalanx-tuner"];

/// Hash maps are for lookups whose order reaches no decision, in a file that says so.
const UNORDERED: &str = "its order differs from run to run; take the BTree, or say `// unordered: WHY` where no order reaches a decision";
const SAYS_UNORDERED: &str = "// unordered: ";

/// What a pure crate does not name, and why.
const IMPURE: [(&str, &str); 17] = [
    ("tokio", "a pure crate waits for nothing"),
    ("std::fs", "files are read at the edge"),
    ("std::net", "the network is at the edge"),
    ("std::os", "the operating system is at the edge"),
    ("std::io", "input and output are at the edge"),
    ("std::thread", "a pure crate starts nothing"),
    ("std::env", "the environment comes in as an argument"),
    ("std::process", "processes are the runtime's"),
    ("Instant", "time comes in as an argument"),
    ("SystemTime", "time comes in as an argument"),
    ("HashMap", UNORDERED),
    ("HashSet", UNORDERED),
    ("rand::rng", "randomness comes from a seed"),
    ("thread_rng", "randomness comes from a seed"),
    ("OsRng", "randomness comes from a seed"),
    ("from_os_rng", "randomness comes from a seed"),
    ("println!", "what is printed is the command line's to decide"),
];

/// May import: crate to crates.
type Table = BTreeMap<String, BTreeSet<String>>;

pub(crate) fn problems(root: &Path) -> Result<Vec<String>> {
    let document = fs::read_to_string(root.join("ARCHITECTURE.md")).context("ARCHITECTURE.md")?;
    let table = table(&document)?;
    let packages = workspace::packages(root)?;
    let mut problems = edges(&table, &packages);
    problems.extend(arrows(&document, &table));
    for package in packages.iter().filter(|package| PURE.contains(&package.name.as_str())) {
        problems.extend(impurities(root, package)?);
    }
    Ok(problems)
}

/// The rows `| folder | crate | may import | … |` of the document. Our crates are named without their prefix in the third
/// column; `all` stands for every crate of the table.
fn table(document: &str) -> Result<Table> {
    let rows: Vec<(String, &str)> = document
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
            let [_, name, imports, ..] = cells[..] else { return None };
            let name = name.split('`').nth(1)?;
            (name == "xtask" || name.starts_with("phalanx")).then(|| (name.to_owned(), imports))
        })
        .collect();
    if rows.is_empty() {
        bail!("ARCHITECTURE.md has no table of crates with a row like | `core/` | `phalanx-core` | – | … |");
    }
    let all: BTreeSet<String> = rows.iter().map(|(name, _)| name.clone()).collect();
    let mut table = Table::new();
    for (name, imports) in rows {
        let imports = match imports {
            "all" => all.clone(),
            "–" => BTreeSet::new(),
            list => list.split(',').map(|short| crate_name(short.trim())).collect(),
        };
        if let Some(unknown) = imports.iter().find(|import| !all.contains(*import)) {
            bail!("ARCHITECTURE.md lets `{name}` import `{unknown}`, which has no row in the table");
        }
        table.insert(name, imports);
    }
    Ok(table)
}

/// The crate that the document calls `short`: `cli` is the root package, the others have our prefix.
fn crate_name(short: &str) -> String {
    match short.trim_matches('`') {
        "cli" => "phalanx".to_owned(),
        short => format!("phalanx-{short}"),
    }
}

/// Edges between our packages, of dev-dependencies too, that the table does not have, and packages without a row.
fn edges(table: &Table, packages: &[Package]) -> Vec<String> {
    let ours: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let mut problems = Vec::new();
    for package in packages {
        let Some(allowed) = table.get(&package.name) else {
            problems.push(format!("ARCHITECTURE.md: no row for `{}` in the table of crates", package.name));
            continue;
        };
        let imports = package.dependencies.iter().map(|dependency| dependency.name.as_str());
        for import in imports.filter(|import| ours.contains(import) && !allowed.contains(*import)) {
            problems.push(format!(
                "{}: `{}` imports `{import}`, an edge that ARCHITECTURE.md does not draw",
                package.folder.join("Cargo.toml").display(),
                package.name
            ));
        }
    }
    for name in table.keys().filter(|name| !ours.contains(name.as_str())) {
        problems.push(format!("ARCHITECTURE.md: the table has `{name}`, the workspace has not"));
    }
    problems
}

/// Arrows of the picture (`core ◄── scheduler, tuner`) that the table contradicts.
fn arrows(document: &str, table: &Table) -> Vec<String> {
    let mut problems = Vec::new();
    for line in document.lines().filter(|line| line.contains("◄──")) {
        let line = line.split("  (").next().unwrap_or(line);
        let stages: Vec<Vec<String>> = line
            .split("◄──")
            .map(|names| names.split(',').map(|name| crate_name(name.trim())).collect())
            .collect();
        for pair in stages.windows(2) {
            for (from, to) in pair[1].iter().flat_map(|from| pair[0].iter().map(move |to| (from, to))) {
                let drawn =
                    to == "phalanx-everything" || table.get(from).is_some_and(|imports| imports.contains(to));
                if !drawn {
                    problems.push(format!(
                        "ARCHITECTURE.md: the picture lets `{from}` import `{to}`, the table does not"
                    ));
                }
            }
        }
    }
    problems
}

/// Lines of a pure crate, tests aside, that name what a pure crate does not.
fn impurities(root: &Path, package: &Package) -> Result<Vec<String>> {
    let prefix = package.folder.join("src");
    let mut problems = Vec::new();
    let files = workspace::files(root)?;
    let tests = workspace::test_files(root, &files)?;
    for file in files.iter().filter(|file| file.ends_with(".rs") && !tests.contains(*file)) {
        let path = root.join(file);
        if !path.starts_with(&prefix) {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let says_unordered = text.contains(SAYS_UNORDERED);
        for (number, line) in Source::new(&text).lines() {
            let impure = IMPURE.iter().filter(|(_, reason)| !(says_unordered && *reason == UNORDERED));
            for (word, reason) in impure.filter(|(word, _)| names(line, word)) {
                problems.push(format!(
                    "{file}:{number}: `{word}` in the pure crate `{}`: {reason}",
                    package.name
                ));
            }
        }
    }
    Ok(problems)
}

/// Whether a line of code names `word`, also as `std::{fs, …}`.
fn names(line: &str, word: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let whole = |text: &str, word: &str| {
        text.match_indices(word)
            .any(|(at, _)| !text[..at].ends_with(is_word) && !text[at + word.len()..].starts_with(is_word))
    };
    whole(line, word)
        || word
            .strip_prefix("std::")
            .is_some_and(|module| line.split_once("std::{").is_some_and(|(_, group)| whole(group, module)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;
    use std::path::PathBuf;

    const DOCUMENT: &str = "\
| folder | crate | may import (ours) | what |
|---|---|---|---|
| `core/` | `phalanx-core` | – | the model |
| `gpu/` | `phalanx-gpu` | core | devices |
| `cli/` | root package `phalanx` | all | the command |
| `docs/` | | | the book |

core ◄── gpu
everything ◄── cli
";

    fn package(name: &str, imports: &[&str]) -> Package {
        let dependency =
            |name: &&str| Dependency { name: (*name).into(), alias: (*name).into(), optional: false };
        Package {
            name: name.into(),
            folder: PathBuf::from(name),
            dependencies: imports.iter().map(dependency).collect(),
        }
    }

    #[test]
    fn edges_that_are_not_drawn_are_found() {
        let table = table(DOCUMENT).unwrap();
        let core = package("phalanx-core", &["serde"]);
        let cli = package("phalanx", &["phalanx-gpu", "phalanx-core"]);
        assert!(edges(&table, &[core, package("phalanx-gpu", &["phalanx-core"]), cli]).is_empty());

        let core = package("phalanx-core", &["phalanx-gpu"]);
        let found = edges(&table, &[core, package("phalanx-gpu", &[]), package("phalanx-new", &[])]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("`phalanx-core` imports `phalanx-gpu`"));
        assert!(found[1].contains("no row for `phalanx-new`"));
        assert!(found[2].contains("the table has `phalanx`"));
    }

    #[test]
    fn the_picture_agrees_with_the_table() {
        let table = table(DOCUMENT).unwrap();
        assert!(arrows(DOCUMENT, &table).is_empty());
        assert_eq!(arrows("gpu ◄── core", &table).len(), 1);
    }

    #[test]
    fn impure_names_are_whole_words() {
        assert!(names("use std::fs;", "std::fs"));
        assert!(names("use std::{fmt, fs};", "std::fs"));
        assert!(names("let now = Instant::now();", "Instant"));
        assert!(!names("struct Instants;", "Instant"));
        assert!(!names("use std::{fmt, fsx};", "std::fs"));
    }
}
