//! The commands of the README and of the guides, run as a reader would type them: what it shows works, or this fails.
//!
//! A `sh` block after `<!-- executed -->` runs in one shell with the others, so that variables last; one after
//! `<!-- executed: first terminal -->` is started on its own and stays until the end. A `text` block right after it is what
//! must come out: its lines in their order, with any numbers for its numbers and anything for `…`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest time for the whole tour.
const LIMIT: Duration = Duration::from_secs(240);
/// Longest time until what runs in the first terminal says what the README shows.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// The set-up commands: the first is run here, the second runs this test.
const SET_UP: [&str; 2] = ["cargo run --release -- run examples/digits/sweep.toml", "cargo xtask check"];

struct Block {
    line: usize,
    mark: Option<String>,
    script: String,
    wanted: Vec<String>,
}

#[test]
fn every_command_of_the_readme_works() {
    let blocks = blocks(&fs::read_to_string(root().join("README.md")).unwrap());
    let unmarked: Vec<&str> = blocks.iter().filter(|b| b.mark.is_none()).map(|b| b.script.trim()).collect();
    assert_eq!(unmarked, SET_UP, "every other `sh` block is marked `<!-- executed -->`");
    tour("README.md", &blocks);
}

#[test]
fn every_command_of_the_guide_to_queues_works() {
    let blocks = blocks(&fs::read_to_string(root().join("docs/queues.md")).unwrap());
    assert!(blocks.len() > 5 && blocks.iter().all(|block| block.mark.is_some()), "every block is executed");
    tour("docs/queues.md", &blocks);
    // What the guide shows is what it runs.
    let guide = fs::read_to_string(root().join("docs/queues.md")).unwrap();
    let site = fs::read_to_string(root().join("examples/queues/site.toml")).unwrap();
    assert!(guide.contains(&format!("```toml\n{site}```")), "the guide shows another site.toml");
}

#[test]
fn every_command_of_the_guide_to_exports_works() {
    let blocks = blocks(&fs::read_to_string(root().join("docs/exports.md")).unwrap());
    assert!(blocks.len() > 1 && blocks.iter().all(|block| block.mark.is_some()), "every block is executed");
    tour("docs/exports.md", &blocks);
}

#[test]
fn every_command_of_the_guide_to_placement_groups_works() {
    let guide = fs::read_to_string(root().join("docs/placement-groups.md")).unwrap();
    let blocks = blocks(&guide);
    assert!(blocks.len() > 4 && blocks.iter().all(|block| block.mark.is_some()), "every block is executed");
    tour("docs/placement-groups.md", &blocks);
    // What the guide shows is what it runs.
    let pool = fs::read_to_string(root().join("examples/groups/pool.toml")).unwrap();
    assert!(guide.contains(&format!("```toml\n{pool}```")), "the guide shows another pool.toml");
}

/// A guide in which every block is executed.
fn guide(document: &'static str) {
    let blocks = blocks(&fs::read_to_string(root().join(document)).unwrap());
    assert!(blocks.len() > 2 && blocks.iter().all(|block| block.mark.is_some()), "every block is executed");
    tour(document, &blocks);
}

#[test]
fn every_command_of_the_quickstart_works() {
    let guide = fs::read_to_string(root().join("docs/quickstart.md")).unwrap();
    let mut blocks = blocks(&guide);
    assert!(blocks.len() > 7 && blocks.iter().all(|block| block.mark.is_some()), "every block is executed");
    if !client_python().exists() {
        eprintln!("skipped: the search from Python; .ci/run makes target/frameworks-venv with grpcio");
        blocks.retain(|block| !block.script.contains("python3") && !block.script.contains("s1"));
    }
    tour("docs/quickstart.md", &blocks);
    // What it shows is what it runs.
    let search = fs::read_to_string(root().join("examples/digits/search.py")).unwrap();
    assert!(guide.contains(&format!("```python\n{search}```")), "the guide shows another search.py");
}

/// A Python with grpcio.
fn client_python() -> std::path::PathBuf {
    root().join("target/frameworks-venv/bin/python3")
}

#[test]
fn every_command_of_the_guide_to_the_dashboard_works() {
    guide("docs/dashboard.md");
}

#[test]
fn every_command_of_the_guide_to_programs_works() {
    guide("docs/programs.md");
    // What it shows is what it runs.
    let guide = fs::read_to_string(root().join("docs/programs.md")).unwrap();
    let example = fs::read_to_string(root().join("examples/shell/socket_lines.py")).unwrap();
    assert!(guide.contains(&format!("```python\n{example}```")), "the guide shows another socket_lines.py");
}

#[test]
fn every_command_of_the_guide_to_hosts_works() {
    guide("docs/hosts.md");
}

#[test]
fn every_command_of_the_guide_to_secrets_works() {
    guide("docs/secrets.md");
}

#[test]
fn every_command_of_the_guide_to_http_works() {
    if Command::new("/usr/bin/curl").arg("--version").output().is_err() {
        return eprintln!("skipped: curl is not installed");
    }
    guide("docs/http.md");
}

/// The book has every page, and every page of it is there.
#[test]
fn the_book_lists_every_page() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let listed: Vec<&str> = summary.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
    for page in &listed {
        assert!(root().join("docs").join(page).is_file(), "{page} is listed and not there");
    }
    for folder in ["docs", "docs/adr", "docs/reference"] {
        for entry in fs::read_dir(root().join(folder)).unwrap().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root().join("docs")).unwrap().to_str().unwrap().to_owned();
            let page = name.ends_with(".md") && name != "SUMMARY.md";
            assert!(!page || listed.contains(&name.as_str()), "{name} is not in docs/SUMMARY.md");
        }
    }
}

/// Links between pages and to parts of them; of the book none leaves its folder, where a reader of the book is not.
#[test]
fn every_link_leads_somewhere() {
    let mut pages: Vec<_> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "python/README.md"]
            .map(|page| root().join(page))
            .into();
    for folder in ["docs", "docs/adr", "docs/reference"] {
        let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        pages.extend(entries.filter(|path| path.extension().is_some_and(|suffix| suffix == "md")));
    }
    let book = fs::canonicalize(root().join("docs")).unwrap();
    let mut checked = 0;
    for page in &pages {
        let text = outside_of_fences(&fs::read_to_string(page).unwrap());
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            if link.contains("://") || link.contains(' ') {
                continue;
            }
            let (path, part) = link.split_once('#').map_or((link, None), |(path, part)| (path, Some(part)));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            let at = || format!("{}: {link}", page.display());
            let target = fs::canonicalize(&target).unwrap_or_else(|error| panic!("{}: {error}", at()));
            assert!(!page.starts_with(&book) || target.starts_with(&book), "{} leaves the book", at());
            if let Some(part) = part {
                let heads = outside_of_fences(&fs::read_to_string(&target).unwrap());
                let heads = heads.lines().filter(|line| line.starts_with('#')).map(anchor);
                assert!(heads.collect::<Vec<_>>().contains(&part.to_owned()), "{}: no such part", at());
            }
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked} links");
}

fn outside_of_fences(page: &str) -> String {
    page.split("```").step_by(2).collect()
}

/// What a heading is linked by.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_command_of_the_guide_to_training_works() {
    let guide = fs::read_to_string(root().join("docs/training.md")).unwrap();
    let blocks = blocks(&guide);
    assert!(blocks.len() > 4 && blocks.iter().all(|block| block.mark.is_some()), "every block is executed");
    tour("docs/training.md", &blocks);
    // What the guide shows is what it runs.
    let job = fs::read_to_string(root().join("examples/digits/tour.toml")).unwrap();
    assert!(guide.contains(&format!("```toml\n{job}```")), "the guide shows another tour.toml");
}

#[test]
fn every_command_of_the_language_model_works() {
    let blocks = blocks(&fs::read_to_string(root().join("examples/charlm/README.md")).unwrap());
    assert!(blocks.len() == 2 && blocks.iter().all(|block| block.mark.is_some()), "every block is executed");
    tour("examples/charlm/README.md", &blocks);
}

/// Fetches its digits from npm's registry.
#[test]
fn every_command_of_the_digits_by_convolution_works() {
    if !["npm", "node"].iter().all(|tool| Command::new(tool).arg("--version").output().is_ok()) {
        return eprintln!("skipped: npm and node are not installed");
    }
    let blocks = blocks(&fs::read_to_string(root().join("examples/mnist_cnn/README.md")).unwrap());
    assert!(blocks.len() == 1 && blocks[0].mark.is_some(), "every block is executed");
    tour("examples/mnist_cnn/README.md", &blocks);
}

#[test]
fn every_command_of_the_guide_to_sweeps_works() {
    let guide = fs::read_to_string(root().join("docs/sweeps.md")).unwrap();
    let blocks = blocks(&guide);
    assert!(blocks.len() > 5 && blocks.iter().all(|block| block.mark.is_some()), "every block is executed");
    tour("docs/sweeps.md", &blocks);
    // What the guide shows is what it runs.
    let sweep = fs::read_to_string(root().join("examples/digits/sweep.toml")).unwrap();
    assert!(guide.contains(&format!("```toml\n{sweep}```")), "the guide shows another sweep.toml");
}

#[test]
fn every_command_of_the_guide_to_tuning_works() {
    let guide = fs::read_to_string(root().join("docs/tuning.md")).unwrap();
    let blocks = blocks(&guide);
    assert!(blocks.len() > 1 && blocks.iter().all(|block| block.mark.is_some()), "every block is executed");
    tour("docs/tuning.md", &blocks);
    for picture in guide.lines().filter_map(|line| line.split_once("](pictures/")) {
        let name = picture.1.trim_end_matches(')');
        assert!(
            root().join("docs/pictures").join(name).exists(),
            "the guide shows {name}, which is not there"
        );
    }
}

#[test]
fn every_command_of_the_guide_to_scheduling_works_and_every_rule_has_its_test() {
    let guide = fs::read_to_string(root().join("docs/scheduling.md")).unwrap();
    let blocks = blocks(&guide);
    assert!(blocks.len() > 5 && blocks.iter().all(|block| block.mark.is_some()), "every block is executed");
    tour("docs/scheduling.md", &blocks);
    let rules = guide.split("## What is promised").nth(1).unwrap();
    every_row_names_its_tests(rules, &["core/src", "scheduler/src", "scheduler/tests", "runtime/src"]);
}

#[test]
fn what_is_protected_has_its_tests() {
    let security = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let part = security.split("## Which tests hold it").nth(1).unwrap();
    every_row_names_its_tests(part, &["server/src", "runtime/src", "tests"]);
}

/// The rows of a table end with the names of tests that are there.
fn every_row_names_its_tests(table: &str, folders: &[&str]) {
    let mut sources = String::new();
    for folder in folders {
        read_sources(&root().join(folder), &mut sources);
    }
    for row in table.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let tests = row.rsplit('|').nth(1).unwrap().split('`').skip(1).step_by(2);
        let gone: Vec<&str> =
            tests.clone().filter(|test| !sources.contains(&format!("fn {test}("))).collect();
        assert!(tests.count() > 0 && gone.is_empty(), "no test {gone:?} for {row}");
    }
}

/// All Rust below a folder, in one text.
fn read_sources(folder: &Path, sources: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, sources);
        } else if path.extension().is_some_and(|suffix| suffix == "rs") {
            sources.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs the blocks of a document.
fn tour(document: &'static str, blocks: &[Block]) {
    let folder = tempfile::tempdir().unwrap();
    let mut terminals =
        Terminals { document, folder: folder.path(), root: root(), first: Vec::new(), start: Instant::now() };
    terminals.prepare();
    let mut shell = Shell::start(&terminals);
    for block in blocks {
        match block.mark.as_deref() {
            None => {
                if let Some(ours) = block.script.trim().strip_prefix("cargo run --release -- ") {
                    shell.run(&Block { script: format!("phalanx {ours}\n"), ..copy(block) }, &terminals);
                }
            }
            Some("executed") => shell.run(block, &terminals),
            Some("executed: first terminal") => terminals.keep(block),
            Some(mark) => panic!("{document}:{}: unknown mark {mark:?}", block.line),
        }
    }
    shell.end();
}

fn copy(block: &Block) -> Block {
    Block { line: block.line, mark: None, script: String::new(), wanted: block.wanted.clone() }
}

/// All `sh` blocks, each with its mark and the `text` block that follows it.
fn blocks(readme: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut mark = None;
    // The fence we are in: its language, and the line it began on.
    let mut fence: Option<(String, String)> = None;
    let mut last_was_sh = false;
    for (number, line) in (1..).zip(readme.lines()) {
        match (&mut fence, line) {
            (None, line) if line.starts_with("```") => {
                fence = Some((line[3..].trim().to_owned(), String::new()))
            }
            (None, "") => {}
            (None, line) => {
                mark = line.strip_prefix("<!-- ").and_then(|l| l.strip_suffix(" -->")).map(str::to_owned);
                last_was_sh = false;
            }
            (Some((language, content)), "```") => {
                if language == "sh" {
                    let script = std::mem::take(content);
                    blocks.push(Block { line: number, mark: mark.take(), script, wanted: Vec::new() });
                } else if language == "text" && last_was_sh {
                    blocks.last_mut().unwrap().wanted = content.lines().map(str::to_owned).collect();
                }
                last_was_sh = language == "sh";
                fence = None;
            }
            (Some((_, content)), line) => {
                content.push_str(line);
                content.push('\n');
            }
        }
    }
    blocks
}

/// What all commands share, and the commands that stay.
struct Terminals<'a> {
    /// What the commands stand in.
    document: &'static str,
    folder: &'a Path,
    root: &'a Path,
    first: Vec<Child>,
    start: Instant,
}

impl Terminals<'_> {
    /// `phalanx` on the path, with free ports for `up`: the documented ones may be in use here.
    fn prepare(&self) {
        let bin = self.folder.join("bin");
        fs::create_dir_all(&bin).unwrap();
        let program = env!("CARGO_BIN_EXE_phalanx");
        let ports = "--grpc 127.0.0.1:0 --http 127.0.0.1:0";
        // Whoever names the documented address means the service that is there.
        let meant = r#"args=()
for arg in "$@"; do
    case $arg in *127.0.0.1:742[12]*)
        at() { sed -n "s|.*\"$1\": *\"\([^\"]*\)\".*|\1|p" "$PHALANX_DATA/service.json"; }
        http=$(at http)
        arg=${arg//127.0.0.1:7421/$(at grpc)}
        arg=${arg//127.0.0.1:7422/${http#*://}} ;;
    esac
    args+=("$arg")
done"#;
        let up = format!("case $1 in up) exec '{program}' \"$@\" {ports} ;; esac");
        for (name, before, program) in [("phalanx", up.as_str(), program), ("curl", "", "/usr/bin/curl")] {
            let script = format!("#!/bin/bash\n{before}\n{meant}\nexec '{program}' \"${{args[@]}}\"\n");
            fs::write(bin.join(name), script).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        // The environment that the reader was told to make.
        let python = format!("#!/bin/bash\nexec '{}' \"$@\"\n", client_python().display());
        if client_python().exists() && self.document == "docs/quickstart.md" {
            fs::write(bin.join("python3"), python).unwrap();
            fs::set_permissions(bin.join("python3"), fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    fn bash(&self) -> Command {
        let path = format!("{}:{}", self.folder.join("bin").display(), std::env::var("PATH").unwrap());
        let mut bash = Command::new("bash");
        bash.env("PATH", path)
            .env("PYTHONPATH", root().join("python"))
            .env("PHALANX_DATA", self.folder.join("data"))
            .env("XDG_CONFIG_HOME", self.folder.join("config"))
            .env_remove("PHALANX_SERVER")
            .env_remove("PHALANX_TOKEN_FILE")
            .current_dir(self.root)
            // Ctrl-C for the one that stays must not reach the others.
            .process_group(0);
        bash
    }

    /// Starts a block that stays, and waits until it has said what the README shows.
    fn keep(&mut self, block: &Block) {
        let said = self.folder.join(format!("terminal-{}", block.line));
        let file = File::create(&said).unwrap();
        let mut bash = self.bash();
        bash.args(["-c", &block.script]).stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        self.first.push(bash.spawn().unwrap());
        let start = Instant::now();
        loop {
            let text = fs::read_to_string(&said).unwrap();
            match missing(&block.wanted, &text) {
                None if !text.is_empty() => return,
                missing => assert!(
                    start.elapsed() < READY_LIMIT,
                    "{}:{}: {}did not say {missing:?} but\n{text}",
                    self.document,
                    block.line,
                    block.script
                ),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminals<'_> {
    fn drop(&mut self) {
        for child in &mut self.first {
            // To the whole group, as a terminal's Ctrl-C is.
            let _ = Command::new("kill").args(["-INT", "--", &format!("-{}", child.id())]).status();
            let start = Instant::now();
            while matches!(child.try_wait(), Ok(None)) && start.elapsed() < READY_LIMIT {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = Command::new("kill")
                .args(["-KILL", "--", &format!("-{}", child.id())])
                .stderr(Stdio::null())
                .status();
            let _ = child.wait();
        }
    }
}

/// The second terminal: one shell that takes block after block.
struct Shell {
    child: Child,
}

impl Shell {
    fn start(terminals: &Terminals<'_>) -> Self {
        let mut bash = terminals.bash();
        bash.args(["--norc", "-s"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Shell { child: bash.spawn().unwrap() }
    }

    /// Runs a block and compares what it said.
    fn run(&mut self, block: &Block, terminals: &Terminals<'_>) {
        let said = terminals.folder.join(format!("block-{}", block.line));
        let code = terminals.folder.join(format!("code-{}", block.line));
        // `&&` chains the lines as `set -e` would, without ending the shell; standard input is the shell's own script.
        let chained: Vec<&str> = block.script.lines().filter(|line| !line.trim().is_empty()).collect();
        let script = format!(
            "{{ {}\n}} >{} 2>&1 </dev/null; echo $? >{code}.new; mv {code}.new {code}\n",
            chained.join(" &&\n"),
            said.display(),
            code = code.display()
        );
        self.child.stdin.as_mut().unwrap().write_all(script.as_bytes()).unwrap();
        while !code.exists() {
            assert!(
                terminals.start.elapsed() < LIMIT && self.child.try_wait().unwrap().is_none(),
                "{}:{}: did not end:\n{}",
                terminals.document,
                block.line,
                fs::read_to_string(&said).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let text = fs::read_to_string(&said).unwrap();
        let code = fs::read_to_string(&code).unwrap();
        println!("$ {}{text}", block.script);
        assert_eq!(
            code.trim(),
            "0",
            "{}:{}: {}ended with it and said\n{text}",
            terminals.document,
            block.line,
            block.script
        );
        if let Some(line) = missing(&block.wanted, &text) {
            let at = format!("{}:{}", terminals.document, block.line);
            panic!("{at}: {}should say\n{line}\nbut said\n{text}", block.script);
        }
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .args(["-KILL", "--", &format!("-{}", self.child.id())])
            .stderr(Stdio::null())
            .status();
        let _ = self.child.wait();
    }
}

/// The first wanted line that does not follow, in order, in what was said.
fn missing<'a>(wanted: &'a [String], said: &str) -> Option<&'a str> {
    let mut lines = said.lines();
    wanted.iter().map(String::as_str).find(|wanted| !lines.any(|line| is_like(wanted, line)))
}

/// Whether a line has the shape of the README's: any numbers, any spacing, and anything for `…`.
fn is_like(wanted: &str, line: &str) -> bool {
    let (wanted, line) = (shape(wanted), shape(line));
    let parts: Vec<&str> = wanted.split('…').collect();
    let [first, middle @ .., last] = &parts[..] else { return wanted == line };
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    for part in middle {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

/// A line with every number as `#` and single spaces.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    for c in line.trim().chars() {
        match c {
            '0'..='9' if shape.ends_with('#') => {}
            '0'..='9' => shape.push('#'),
            c if c.is_whitespace() && shape.ends_with(' ') => {}
            c if c.is_whitespace() => shape.push(' '),
            c => shape.push(c),
        }
        // A fraction is part of its number.
        if shape.ends_with("#.#") {
            shape.truncate(shape.len() - 2);
        }
    }
    shape
}

#[test]
fn shapes_are_compared_as_the_readme_needs() {
    assert!(is_like("accuracy: 0.98", "accuracy:   0.9722"));
    assert!(is_like("j1  digits  …  SUCCEEDED", "j12 digits default 2026-01-01 SUCCEEDED"));
    assert!(is_like("took 5 s", "took 1.25 s"));
    assert!(!is_like("accuracy: 0.98", "accuracy: none"));
    assert!(!is_like("a … b … c", "a c b"));
    assert!(!is_like("RUNNING", "RUNNING now"));
    let said = "one 1\nnoise\ntwo 2\n";
    assert_eq!(missing(&["one 7".into(), "two 9".into()], said), None);
    assert_eq!(missing(&["two 9".into(), "one 7".into()], said), Some("one 7"));
}

#[test]
fn blocks_are_found_with_their_marks() {
    let found = blocks(
        "```sh\na\n```\n\nwords\n\n<!-- executed -->\n```sh\nb\nc\n```\n\n```text\nout\n```\n```toml\nx = 1\n```\n",
    );
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].mark.as_deref(), found[0].script.as_str()), (None, "a\n"));
    assert_eq!((found[1].mark.as_deref(), found[1].script.as_str()), (Some("executed"), "b\nc\n"));
    assert_eq!(found[1].wanted, ["out"]);
}
