//! What the end-to-end tests share: the real binary, a data folder of its own, and a service on free ports.
#![allow(dead_code)]

use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// No single command of a test takes longer, or it hangs.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// A data folder, and a folder for files.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
}

impl Home {
    pub(crate) fn new() -> Home {
        Home { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Writes a file into the folder for files.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The binary on this data folder, in the folder for files.
    pub(crate) fn phalanx<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        self.program(Path::new(env!("CARGO_BIN_EXE_phalanx")), args)
    }

    /// The same with another file of it.
    pub(crate) fn program<S: AsRef<std::ffi::OsStr>>(
        &self,
        program: &Path,
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .env("PHALANX_DATA", self.data())
            .env_remove("PHALANX_SERVER")
            .env_remove("PHALANX_TOKEN_FILE")
            .env_remove("PHALANX_SOCKET")
            .env_remove("PHALANX_JOB")
            .env_remove("RUST_LOG")
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ended {
        ended(&mut self.phalanx(args))
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Ended {
    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test unless the code is this one.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Ended {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out(), self.err());
        self
    }

    /// Stdout as one JSON document.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out()).unwrap_or_else(|error| panic!("{error}: {}", self.out()))
    }

    /// Stdout as one JSON object a line.
    #[track_caller]
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        self.out().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Runs a command to its end, within the limit.
pub(crate) fn ended(command: &mut Command) -> Ended {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    finish(child)
}

/// Waits for a child whose stdout and stderr are pipes, within the limit.
pub(crate) fn finish(child: Child) -> Ended {
    finish_within(child, COMMAND_LIMIT)
}

/// The same with a limit of its own.
pub(crate) fn finish_within(child: Child, limit: Duration) -> Ended {
    let pid = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(limit) {
        Ok(output) => {
            let Output { status, stdout, stderr } = output.unwrap();
            use std::os::unix::process::ExitStatusExt;
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
            Ended { code, stdout, stderr }
        }
        Err(_) => {
            signal(pid, "KILL");
            panic!("process {pid} took longer than {limit:?}");
        }
    }
}

/// Sends a signal by name.
pub(crate) fn signal(pid: u32, name: &str) {
    Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap();
}

/// Waits until something is so; fails the test if it is not in time.
#[track_caller]
pub(crate) fn eventually(what: &str, limit: Duration, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process is there (a zombie is not).
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A service on free ports.
pub(crate) struct Service {
    pub(crate) child: Child,
    pub(crate) grpc: String,
    pub(crate) http: String,
    pub(crate) token_file: PathBuf,
    pub(crate) ready: Value,
}

impl Service {
    /// With four CPUs to give away.
    pub(crate) fn start(home: &Home) -> Service {
        Service::start_with(home, &["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--cpus", "4"])
    }

    pub(crate) fn start_with(home: &Home, args: &[&str]) -> Service {
        Service::start_in(home, args, &[])
    }

    /// With variables in its environment.
    pub(crate) fn start_in(home: &Home, args: &[&str], variables: &[(&str, &str)]) -> Service {
        let mut command = home.phalanx(["up", "--json"].iter().chain(args));
        command.envs(variables.iter().copied());
        Service::of(command)
    }

    /// By `up --json`.
    pub(crate) fn of(mut command: Command) -> Service {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut stderr = String::new();
            child.stderr.as_mut().unwrap().read_to_string(&mut stderr).unwrap();
            panic!("`up` did not get ready: {stderr}");
        }
        // What it says is read to the end, or it would stop at a full pipe.
        let mut stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::stderr()));
        let ready: Value = serde_json::from_str(&line).unwrap();
        let text = |key: &str| ready[key].as_str().unwrap().to_owned();
        Service {
            child,
            grpc: text("grpc"),
            http: text("http"),
            token_file: text("token_file").into(),
            ready,
        }
    }

    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(&self.token_file).unwrap().trim().to_owned()
    }

    /// Asks it to end and waits for that.
    pub(crate) fn stop(mut self) -> i32 {
        signal(self.child.id(), "TERM");
        let mut code = None;
        eventually("the service ends", Duration::from_secs(30), || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code().unwrap_or(-1)
    }

    /// As a crash would end it.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// An HTTP request by hand: the status, the headers and the body.
    pub(crate) fn http(&self, request: &str) -> (u16, String, String) {
        use std::io::Write;
        let address = self.http.strip_prefix("http://").unwrap();
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.replace('\n', "\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_owned(), body.to_owned())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.child.id(), "TERM");
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(10) {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A job file around a shell script.
pub(crate) fn script(lines: &str) -> String {
    format!("version = 1\n[program]\ncommand = [\"sh\", \"-c\", '''{lines}''']\n")
}

/// A job file around a shell script, with more keys before it.
pub(crate) fn script_with(keys: &str, lines: &str) -> String {
    format!("version = 1\n{keys}\n[program]\ncommand = [\"sh\", \"-c\", '''{lines}''']\n")
}

/// Whether a folder holds no more than records.
pub(crate) fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Python with a module of the frameworks that Phalanx is used with, from `target/frameworks-venv`, which `.ci/run` makes;
/// says that the test skips where it is not there.
pub(crate) fn frameworks(module: &str) -> Option<Command> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/frameworks-venv");
    let python = venv.join("bin/python3");
    if !venv.join("complete").exists() {
        eprintln!("skipped: {} is not there; .ci/run makes it with {module}", venv.display());
        return None;
    }
    ended(Command::new(&python).args(["-c", &format!("import {module}")])).expect(0);
    Some(Command::new(python))
}
