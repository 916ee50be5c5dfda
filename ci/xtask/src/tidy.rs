//! What a reviewer would otherwise say twice, each with its reason. Every check looks at all files of the repository.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::source::Source;
use crate::workspace::{self, Package};

/// Longest function, in lines. Past it, ask which second thing it does.
const FUNCTION_LINES: usize = 100;
/// Longest file before its tests, in lines. Past it, ask which second concept moved in.
const FILE_LINES: usize = 600;
/// Most bytes of a file that is committed: a repository keeps every version for ever.
const FILE_BYTES: u64 = 1 << 20;

/// Exceptions: file, function (empty for the file itself), and why it may be longer. One that is no longer needed is a
/// problem too.
const MAY_BE_LONGER: &[(&str, &str, &str)] = &[];

/// Marks of work that is not done.
const UNFINISHED: [&str; 4] = ["TODO", "FIXME", "XXX", "HACK"];

pub(crate) fn problems(root: &Path) -> Result<Vec<String>> {
    let mut tidy = Tidy { root, problems: Vec::new(), used: Vec::new() };
    let files = workspace::files(root)?;
    let tests = workspace::test_files(root, &files)?;
    for file in &files {
        tidy.file(file, tests.contains(file))?;
    }
    tidy.stale_exceptions();
    for package in workspace::packages(root)? {
        tidy.package(&package, &files)?;
    }
    tidy.examples(&files);
    Ok(tidy.problems)
}

struct Tidy<'a> {
    root: &'a Path,
    problems: Vec<String>,
    /// Exceptions that something needed.
    used: Vec<usize>,
}

impl Tidy<'_> {
    fn say(&mut self, place: &str, what: &str) {
        self.problems.push(format!("{place}: {what}"));
    }

    fn file(&mut self, file: &str, is_test: bool) -> Result<()> {
        let path = self.root.join(file);
        let size = fs::metadata(&path)?.len();
        if size > FILE_BYTES {
            self.say(
                file,
                &format!("{size} bytes are more than {FILE_BYTES}; fetch or generate large files instead"),
            );
        }
        // What is not text is not read.
        let Ok(text) = String::from_utf8(fs::read(&path)?) else { return Ok(()) };
        if text.contains('\0') || file.contains("/gen/") {
            return Ok(());
        }
        self.text(file, &text);
        if file.ends_with(".rs") {
            self.rust(file, &text, is_test);
        }
        Ok(())
    }

    fn text(&mut self, file: &str, text: &str) {
        if !text.is_empty() && !text.ends_with('\n') {
            self.say(file, "no line break at the end; editors add one and make a noisy diff");
        }
        let places = places_of_this_machine(self.root);
        // The words are spelled out in this file alone.
        let finished = file == "ci/xtask/src/tidy.rs" || file == "Cargo.lock" || file.starts_with("LICENSE");
        for (number, line) in (1..).zip(text.split('\n')) {
            let place = format!("{file}:{number}");
            if line.ends_with('\r') {
                self.say(&place, "a carriage return; lines end with a line feed alone");
            }
            for path in places.iter().filter(|path| mentions(line, path)) {
                self.say(
                    &place,
                    &format!("`{path}` is a folder of this machine, and means nothing on another"),
                );
            }
            for word in UNFINISHED.iter().filter(|word| !finished && has_word(line, word)) {
                self.say(&place, &format!("`{word}`: finish it, or open an issue"));
            }
        }
    }

    fn rust(&mut self, file: &str, text: &str, is_test: bool) {
        let source = Source::new(text);
        for (number, line) in source.lines() {
            let place = format!("{file}:{number}");
            for word in ["todo!", "unimplemented!", "dbg!"].iter().filter(|word| line.contains(*word)) {
                self.say(&place, &format!("`{word}`: finish it, or say what is not supported"));
            }
            if !is_test && line.contains(".unwrap()") {
                self.say(
                    &place,
                    "`.unwrap()` outside tests: say what went wrong, or why it cannot (`expect`)",
                );
            }
        }
        if is_test {
            return;
        }
        let lines = source.tests_begin - 1;
        if lines > FILE_LINES && !self.excepted(file, "") {
            self.say(file, &format!("{lines} lines before its tests are more than {FILE_LINES}; which second concept moved in?"));
        }
        for function in source.functions() {
            if function.lines > FUNCTION_LINES && !self.excepted(file, &function.name) {
                let place = format!("{file}:{}", function.line);
                let (name, lines) = (function.name, function.lines);
                self.say(&place, &format!("`{name}` has {lines} lines, more than {FUNCTION_LINES}; which second thing does it do?"));
            }
        }
    }

    fn excepted(&mut self, file: &str, function: &str) -> bool {
        let found = MAY_BE_LONGER.iter().position(|(f, name, _)| *f == file && *name == function);
        self.used.extend(found);
        found.is_some()
    }

    fn stale_exceptions(&mut self) {
        for (index, (file, function, _)) in MAY_BE_LONGER.iter().enumerate() {
            if !self.used.contains(&index) {
                self.say("ci/xtask/src/tidy.rs", &format!("{file} {function} needs no exception any more"));
            }
        }
    }

    fn package(&mut self, package: &Package, files: &[String]) -> Result<()> {
        let folder = package.folder.strip_prefix(self.root).unwrap_or(&package.folder);
        let library = folder.join("src/lib.rs");
        if let Ok(text) = fs::read_to_string(self.root.join(&library))
            && !text.starts_with("//! ")
        {
            self.say(&library.display().to_string(), "begins without `//!`: say what lives in this crate");
        }
        // The root package holds the folders of the others, but its own code is in these.
        let own = |file: &&String| match folder.to_str() {
            Some("") => ["cli/", "tests/", "benches/"].iter().any(|own| file.starts_with(own)),
            _ => Path::new(file).starts_with(folder),
        };
        let mut code = String::new();
        for file in files.iter().filter(own).filter(|file| file.ends_with(".rs")) {
            code.push_str(&fs::read_to_string(self.root.join(file))?);
        }
        let manifest = folder.join("Cargo.toml").display().to_string();
        for dependency in package.dependencies.iter().filter(|dependency| !dependency.optional) {
            if !has_word(&code, &dependency.alias) {
                self.say(&manifest, &format!("`{}` is never named in the code; remove it", dependency.name));
            }
        }
        Ok(())
    }

    fn examples(&mut self, files: &[String]) {
        let mut folders: Vec<&str> = files
            .iter()
            .filter_map(|file| file.strip_prefix("examples/")?.split_once('/'))
            .map(|(folder, _)| folder)
            .collect();
        folders.dedup();
        for folder in folders {
            let readme = format!("examples/{folder}/README.md");
            if !files.contains(&readme) {
                self.say(&readme, "is missing: say what the example shows and how to run it");
            }
        }
    }
}

/// Folders that only this machine has: the checkout, and the home of who runs this.
fn places_of_this_machine(root: &Path) -> Vec<String> {
    let home = std::env::var("HOME").unwrap_or_default();
    // A checkout right below `/` may well have a name that others use too.
    let root = if root.components().count() > 2 { root.display().to_string() } else { String::new() };
    [root, home].into_iter().filter(|path| path.len() > 1).collect()
}

/// Whether the line has a path in `folder`.
fn mentions(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let begins = !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-/~}".contains(c));
        begins && line[at + folder.len()..].starts_with('/')
    })
}

fn has_word(text: &str, word: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(is_word) && !text[at + word.len()..].starts_with(is_word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, text: &str) -> Vec<String> {
        let mut tidy =
            Tidy { root: Path::new("/somewhere/checkout"), problems: Vec::new(), used: Vec::new() };
        tidy.text(file, text);
        if file.ends_with(".rs") {
            tidy.rust(file, text, file.starts_with("tests/"));
        }
        tidy.problems
    }

    #[test]
    fn each_check_finds_what_it_is_for() {
        for (file, text, wanted) in [
            ("a.md", "no end".to_owned(), "no line break"),
            ("a.md", "dos\r\n".to_owned(), "carriage return"),
            ("a.md", "see /somewhere/checkout/a\n".to_owned(), "folder of this machine"),
            ("a.md", format!("{}: later\n", UNFINISHED[0]), "open an issue"),
            ("a.rs", "fn f() { todo!() }\n".to_owned(), "`todo!`"),
            ("a.rs", "fn f() { g().unwrap(); }\n".to_owned(), "outside tests"),
            ("a.rs", format!("fn f() {{\n{}}}\n", "g();\n".repeat(FUNCTION_LINES)), "`f` has 102 lines"),
            ("a.rs", "const A: u8 = 0;\n".repeat(FILE_LINES + 1), "601 lines before its tests"),
        ] {
            let problems = found(file, &text);
            assert!(problems.len() == 1 && problems[0].contains(wanted), "{wanted}: {problems:?}");
        }
    }

    #[test]
    fn what_is_fine_is_left_alone() {
        let tests =
            format!("#[cfg(test)]\nmod tests {{\n{}fn f() {{ g().unwrap() }}\n}}\n", "\n".repeat(FILE_LINES));
        assert_eq!(found("a.rs", &tests), [""; 0]);
        assert_eq!(found("a.rs", "// never `todo!`\nfn f() { g(\".unwrap()\") }\n"), [""; 0]);
        assert_eq!(found("tests/a.rs", "fn f() { g().unwrap() }\n"), [""; 0]);
        assert_eq!(found("a.md", "/elsewhere/somewhere/checkout/b and /somewhere/checkouts\n"), [""; 0]);
    }
}
