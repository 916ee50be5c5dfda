//! Trials a second through `phalanx study`: a process, its pipes and its journal, one request at a time.

use super::{Options, peer, verdict};
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

const TRIALS: u64 = 2000;
const REPORTS: u64 = 1;
/// Trials a second that there are to be.
const GOAL: f64 = 2000.0;

struct Study {
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Study {
    fn ask(&mut self, request: &str) -> String {
        writeln!(self.requests, "{request}").expect("the study reads");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the study answers");
        assert!(!answer.contains("\"error\"") && !answer.is_empty(), "{request}: {answer}");
        answer
    }
}

/// Ask, one report and tell for each trial; a journal of its own each time.
pub(crate) fn run(options: &Options) {
    println!(
        "`phalanx study` with its journal: {TRIALS} trials, ask, {REPORTS} report and tell, one at a time"
    );
    for search in ["random", "tpe", "cmaes"] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let sweep = folder.path().join("sweep.toml");
        let text = format!(
            "version = 1\n[sweep]\ntrials = {TRIALS}\n[search]\nkind = \"{search}\"\n[params]\n\
             a = {{ kind = \"float\", low = 0, high = 1 }}\nb = {{ kind = \"float\", low = 0, high = 1 }}\n"
        );
        std::fs::write(&sweep, text).expect("a temporary file");
        let mut child = Command::new(env!("CARGO_BIN_EXE_phalanx"))
            .args(["study", "--journal"])
            .arg(folder.path().join("journal"))
            .arg(&sweep)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let (requests, answers) = (child.stdin.take(), child.stdout.take());
        let mut study =
            Study { requests: requests.expect("a pipe"), answers: BufReader::new(answers.expect("a pipe")) };
        let start = Instant::now();
        for number in 0..TRIALS {
            study.ask("{\"op\":\"ask\"}");
            let value = 1.0 / (number + 1) as f64;
            study.ask(&format!("{{\"op\":\"report\",\"number\":{number},\"step\":1,\"value\":{value}}}"));
            study.ask(&format!("{{\"op\":\"tell\",\"number\":{number},\"value\":{value}}}"));
        }
        let rate = TRIALS as f64 / start.elapsed().as_secs_f64();
        drop(study);
        child.wait().expect("the study ends");
        print!("  {search:8} {rate:.0} trials/s (goal {GOAL}: {})", verdict(rate >= GOAL));
        let theirs = options.peer.then(|| peer::stored(search)).flatten();
        println!(
            "{}",
            theirs.map_or(String::new(), |theirs| {
                format!("   optuna with SQLite {theirs:.0} trials/s   {:.0}x", rate / theirs)
            })
        );
    }
}
