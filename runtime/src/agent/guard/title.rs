//! How a forked rank shows itself in the process table: with a command line and an environment of its own, as a program
//! would that had been started. Both are in the memory that the kernel has laid out for the guard at its start, and
//! `/proc/PID/cmdline` and `/proc/PID/environ` read from there.

use std::ffi::OsString;
use std::ops::Range;

/// A variable of the guard that is there to be written over.
pub(in crate::agent) const ROOM: &str = "PHALANX_GUARD_ROOM";
/// How long it is.
pub(in crate::agent) const ROOM_BYTES: usize = 16 << 10;
/// What a rank is called; the kernel keeps 15 bytes.
const NAME: &std::ffi::CStr = c"phalanx-worker";
const COMMAND_LINE: &[u8] = b"phalanx\0worker\0";
/// How a guard is shown, which was started by a name that says nothing.
const GUARD: &[u8] = b"phalanx\0guard\0";
/// Where in a line of `/proc/PID/stat`, after the name, the places begin.
const ARGUMENTS: usize = 45;

/// Whether an environment has room.
pub(in crate::agent) fn has_room_for(env: &[(OsString, OsString)]) -> bool {
    env.iter().map(|(name, value)| name.len() + value.len() + 2).sum::<usize>() <= ROOM_BYTES
}

/// Shows this process as a guard.
pub(super) fn show_guard() {
    // What cannot be shown is no reason not to run.
    if let Some([arguments, _]) = places() {
        write(arguments, GUARD);
    }
}

/// Shows this process with this environment.
pub(super) fn show(env: &[(OsString, OsString)]) {
    // What cannot be shown is no reason not to run.
    let _ = nix::sys::prctl::set_name(NAME);
    let Some([arguments, environment]) = places() else { return };
    let mut text = Vec::with_capacity(ROOM_BYTES);
    for (name, value) in env {
        text.extend_from_slice(name.as_encoded_bytes());
        text.push(b'=');
        text.extend_from_slice(value.as_encoded_bytes());
        text.push(0);
    }
    write(arguments, COMMAND_LINE);
    write(environment, &text);
}

/// Where the kernel reads the command line and the environment of this process.
fn places() -> Option<[Range<usize>; 2]> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields = stat.rsplit_once(')')?.1.split_whitespace().skip(ARGUMENTS);
    let places: Vec<usize> = fields.take(4).filter_map(|field| field.parse().ok()).collect();
    let &[a, b, c, d] = &places[..] else { return None };
    Some([a..b, c..d])
}

/// Writes a text and zeros after it, where it fits.
#[allow(unsafe_code)]
fn write(place: Range<usize>, text: &[u8]) {
    if place.start == 0 || place.len() < text.len() {
        return;
    }
    // SAFETY: the kernel has laid these bytes out for this process, writable, when it started. Nothing of Rust's or the C
    // library's points there that is read again: arguments are copied when they are asked for, and the environment has
    // been made anew.
    unsafe {
        let start = std::ptr::with_exposed_provenance_mut::<u8>(place.start);
        std::ptr::write_bytes(start, 0, place.len());
        std::ptr::copy_nonoverlapping(text.as_ptr(), start, text.len());
    }
}
