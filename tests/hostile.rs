//! What the fuzz targets do, on a stable compiler: files of ours with bytes changed, cut, doubled and put together, the
//! same ones every time.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::path::Path;

/// Changed copies of each seed.
const ROUNDS: u64 = 400;

/// Numbers that look random and are the same everywhere (splitmix64: Steele, Lea & Flood 2014).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Pieces that parsers trip over.
const PIECES: [&[u8]; 16] = [
    b"\0",
    b"\xff",
    b"[[",
    b"\"\"\"",
    b"'''",
    b"{",
    b"}",
    b"=",
    b"1e999",
    b"-9223372036854775809",
    b"nan",
    b"\n[a.b]\na.b = 1\n",
    b"%00%2f..%2f",
    b"&watch=jobs,jobs,logs:j1",
    b"\r\n",
    "\u{202e}\u{feff}".as_bytes(),
];

fn change(seed: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=numbers.below(6) {
        let at = numbers.below(bytes.len());
        match numbers.below(5) {
            0 if !bytes.is_empty() => bytes[at] = numbers.next() as u8,
            1 => bytes.truncate(at),
            2 => drop(bytes.splice(at..at, PIECES[numbers.below(PIECES.len())].iter().copied())),
            3 => bytes.extend_from_within(at..),
            _ => {
                let end = (at + numbers.below(20)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
    bytes
}

fn hostile(seeds: &[Vec<u8>], target: fn(&[u8])) {
    let mut numbers = Numbers(7);
    for seed in seeds {
        target(seed);
        for _ in 0..ROUNDS {
            target(&change(seed, &mut numbers));
        }
    }
}

fn examples() -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "toml" => found.push(std::fs::read(path).unwrap()),
                _ => {}
            }
        }
    }
    assert!(found.len() > 3);
    found
}

#[test]
fn files_of_any_content_are_read_or_refused() {
    hostile(&examples(), targets::files);
    let deep = |open: &str, close: &str| {
        format!("a = {}1{}", open.repeat(50_000), close.repeat(50_000)).into_bytes()
    };
    hostile(&[deep("[", "]"), deep("{a=", "}"), b"[a]\n".repeat(20_000)], |data| {
        targets::files(&data[..data.len().min(200_000)])
    });
}

#[test]
fn lines_of_a_rank_are_read_or_refused() {
    let seeds = [
        br#"{"report":{"step":3,"metrics":{"loss":0.2,"val/acc":1e-300}}}"#.to_vec(),
        br#"{"checkpoint":{"step":3,"path":"/tmp/dir"}}"#.to_vec(),
        vec![b'['; 100_000],
    ];
    hostile(&seeds, targets::socket);
}

#[test]
fn messages_of_an_agent_are_read_or_refused() {
    let hello =
        [&b"\x0a\x30\x0a\x04node\x12\x01i\x1a\x20"[..], br#"{"cpus":1000,"memory_bytes":1}  "#].concat();
    let event = b"\x12\x12\x08\x01\x12\x04j1.1\x18\x05\x2a\x06\x08\x01\x10\x02".to_vec();
    hostile(&[hello, event, vec![0x0a; 3000]], targets::agent);
}

#[test]
fn what_http_reads_is_read_or_refused() {
    let seeds = [
        b"watch=jobs,nodes,logs:j1,metrics:j2&points=100&last_event_id=jobs%3D1".to_vec(),
        b"jobs=12,logs:j1=400,metrics:j2=18446744073709551615".to_vec(),
        b"706878310000000000000001".to_vec(),
        b"[::1]:7422".to_vec(),
        b"page_size=1&page_token=&page_size=2".to_vec(),
    ];
    hostile(&seeds, targets::http);
}
