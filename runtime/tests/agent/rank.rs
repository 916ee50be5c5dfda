//! Ranks that `sh` cannot play.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub fn run(args: &[String]) {
    match args[0].as_str() {
        "flood" => flood(args[1].parse().unwrap(), args[2].parse().unwrap()),
        "report-until-stop" => report_until_stop(),
        "eat" => eat(args[1].parse().unwrap()),
        other => panic!("{other}"),
    }
}

/// Lines of `width` bytes, `total` bytes in all.
fn flood(total: usize, width: usize) {
    let mut line = vec![b'x'; width];
    line.push(b'\n');
    let block = line.repeat((1 << 20) / line.len() + 1);
    let (mut out, mut left) = (std::io::stdout(), total);
    while left > 0 {
        out.write_all(&block).unwrap();
        left = left.saturating_sub(block.len());
    }
    out.flush().unwrap();
}

fn report_until_stop() {
    let stream = UnixStream::connect(std::env::var_os("PHALANX_SOCKET").unwrap()).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
    for step in 1_u64.. {
        writeln!(
            &stream,
            "{{\"report\":{{\"step\":{step},\"metrics\":{{\"loss\":{}}}}}}}",
            1.0 / step as f64
        )
        .unwrap();
        let answer = answers.next().unwrap().unwrap();
        if answer.contains("\"stop\":true") {
            println!("stopping by itself");
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn eat(mebibytes: usize) {
    let mut eaten = Vec::new();
    for _ in 0..mebibytes {
        eaten.push(vec![1_u8; 1 << 20]);
    }
    println!("ate {}", eaten.len());
}

/// Plays the built-in trainer: what it does is in `$PART`.
pub fn worker(spec: &str) -> i32 {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let runs = RUNS.fetch_add(1, Ordering::Relaxed);
    assert!(spec.contains("none.csv"), "{spec}");
    match std::env::var("PART").unwrap().as_str() {
        "look" => look(runs),
        "stain" => stain(),
        "abort" => std::process::abort(),
        "panic" => panic!("as asked"),
        "sleep" => {
            println!("asleep");
            std::thread::sleep(Duration::from_secs(1000));
            0
        }
        other => panic!("{other}"),
    }
}

/// What a rank could see of another one.
fn look(runs: u32) -> i32 {
    let read = |what: &str| std::fs::read(format!("/proc/self/{what}")).unwrap();
    let status = String::from_utf8(read("status")).unwrap();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let mut names: Vec<String> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
    names.sort();
    let mut shown: Vec<String> = String::from_utf8(read("environ"))
        .unwrap()
        .split('\0')
        .filter(|entry| !entry.is_empty())
        .map(str::to_owned)
        .collect();
    shown.sort();
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    println!("guard {}", nix::unistd::getppid());
    println!("runs {runs}");
    println!("command {}", String::from_utf8(read("cmdline")).unwrap().replace('\0', " ").trim_end());
    println!("folder {}", std::env::current_dir().unwrap().display());
    println!("umask {}", field("Umask:"));
    println!("threads {}", field("Threads:"));
    println!("ignored {}", field("SigIgn:"));
    println!("blocked {}", field("SigBlk:"));
    println!("caught {}", field("SigCgt:"));
    // The folder that is read here is one of them.
    println!("descriptors {}", descriptors - 1);
    println!("environment {}", names.join(" "));
    println!("shown {}", if shown == names { "the same" } else { "differently" });
    0
}

/// Leaves everything behind that a process can.
fn stain() -> i32 {
    // SAFETY: no other thread has been started yet.
    #[allow(unsafe_code)]
    unsafe {
        std::env::set_var("STAIN", "1");
        let _ = nix::sys::signal::signal(nix::sys::signal::SIGTERM, nix::sys::signal::SigHandler::SigIgn);
    }
    std::env::set_current_dir("/tmp").unwrap();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o77));
    std::mem::forget(std::fs::File::open("/dev/null").unwrap());
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    std::thread::spawn(|| std::thread::sleep(Duration::from_secs(1000)));
    #[allow(clippy::zombie_processes)] // That nobody waits for it is the point.
    std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    print!("stained, and the line unfinished");
    3
}
