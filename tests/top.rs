//! `phalanx top` through a pseudo-terminal: what it draws, what keys do, and the terminal as it was afterwards.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Home, Service, eventually, script_with, signal};

/// It draws within this, on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
/// Leaves the alternate screen, and shows the cursor.
const LEFT: [&str; 2] = ["\x1b[?1049l", "\x1b[?25h"];

/// The size of the terminal.
const COLUMNS: usize = 100;
const LINES: usize = 30;

/// A command on a terminal.
struct Terminal {
    child: Child,
    keys: File,
    slave: OwnedFd,
    before: Termios,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn start(home: &Home, args: &[&str]) -> Terminal {
        let size = Winsize { ws_row: LINES as u16, ws_col: COLUMNS as u16, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let side = || pty.slave.try_clone().unwrap();
        let mut command = home.phalanx(args);
        command.env("TERM", "xterm-256color").stdin(side()).stdout(side()).stderr(side());
        let child = command.spawn().unwrap();
        drop(command);
        let mut screen = File::from(pty.master.try_clone().unwrap());
        let written = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&written);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                kept.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        Terminal { child, keys: File::from(pty.master), slave: pty.slave, before, written }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    /// Waits until something is on the screen.
    #[track_caller]
    fn shows(&self, what: &str) {
        eventually(&format!("{what:?} on the screen"), LIMIT, || {
            screen(&self.text()).iter().any(|l| l.contains(what))
        });
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for its end; the terminal is as it was.
    #[track_caller]
    fn end(&mut self) -> i32 {
        let mut ended = None;
        eventually("`top` ends", LIMIT, || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        eventually("the terminal is left", LIMIT, || LEFT.iter().all(|left| self.text().contains(left)));
        let after = tcgetattr(&self.slave).unwrap();
        assert_eq!(after, self.before, "the terminal's modes are not what they were");
        ended.unwrap().code().unwrap_or(-1)
    }
}

/// The lines that a terminal shows after this: characters go where the cursor is, which only `CSI row ; column H` moves.
fn screen(written: &str) -> Vec<String> {
    let mut cells = vec![vec![' '; COLUMNS]; LINES];
    let (mut row, mut column) = (0, 0);
    let mut chars = written.chars();
    while let Some(char) = chars.next() {
        if char != '\x1b' {
            if let Some(cell) = cells.get_mut(row).and_then(|line: &mut Vec<char>| line.get_mut(column)) {
                *cell = char;
            }
            column += 1;
        } else if chars.next() == Some('[') {
            let mut sequence = String::new();
            let end = chars.find(|char| {
                sequence.push(*char);
                char.is_ascii_alphabetic()
            });
            if end == Some('H') {
                let place = sequence.trim_end_matches('H').split_once(';').unwrap_or(("1", "1"));
                (row, column) =
                    (place.0.parse::<usize>().unwrap() - 1, place.1.parse::<usize>().unwrap() - 1);
            }
        }
    }
    cells.into_iter().map(|line| line.into_iter().collect()).collect()
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn submit(home: &Home, name: &str, lines: &str) -> String {
    let file = home
        .file(&format!("{name}.toml"), &script_with(&format!("name = \"{name}\"\ngrace = \"1s\""), lines));
    home.run(["submit".as_ref(), file.as_os_str()]).expect(0).out().trim().to_owned()
}

#[test]
fn jobs_are_shown_selected_and_cancelled_by_keys() {
    let home = Home::new();
    let service = Service::start(&home);
    let first = submit(&home, "firstborn", "sleep 60");
    submit(&home, "secondborn", "sleep 60");
    let mut top = Terminal::start(&home, &["top"]);
    top.shows("firstborn");
    // The newest is selected first, the older one below it; nothing happens without a yes.
    top.press("j");
    top.press("c");
    top.shows(&format!("cancel {first}?"));
    top.press("n");
    top.press("c");
    top.shows(&format!("cancel {first}?"));
    top.press("y");
    eventually("the job is cancelled", LIMIT, || {
        home.run(["describe", &first, "--json"]).json()["state"] == "CANCELLED"
    });
    // What is over is shown when it is asked for.
    top.press("a");
    top.shows("CANCELLED");
    top.press("\t\t");
    top.shows("DEVICE");
    top.press("q");
    assert_eq!(top.end(), 0);
    service.stop();
}

#[test]
fn a_service_that_goes_away_is_told_and_waited_for() {
    let home = Home::new();
    let service = Service::start(&home);
    submit(&home, "lasting", "sleep 60");
    let mut top = Terminal::start(&home, &["top"]);
    top.shows("lasting");
    service.kill();
    top.shows("is not running");
    let service = Service::start(&home);
    top.shows(" up ");
    signal(top.child.id(), "TERM");
    assert_eq!(top.end(), 130);
    service.stop();
}

#[test]
fn without_a_terminal_there_is_one_document() {
    let home = Home::new();
    let service = Service::start(&home);
    let id = submit(&home, "one", "sleep 60");
    let said = home.run(["top"]).expect(2);
    assert!(said.err().contains("--json"), "{}", said.err());
    let document = home.run(["top", "--json"]).expect(0).json();
    assert_eq!(document["jobs"][0]["id"], id.as_str());
    assert_eq!(document["nodes"][0]["cpus"]["total"], 4);
    assert_eq!(document["queues"][0]["name"], "default");
    assert!(document["sweeps"].is_array() && document["version"].is_string());
    service.stop();
    let gone = home.run(["top", "--json"]).expect(1);
    assert!(gone.err().contains("phalanx up"), "{}", gone.err());
}
