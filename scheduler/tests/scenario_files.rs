//! The fuzz target's check on inputs mutated by seed: a stable toolchain, a few seconds, every time. With a nightly one
//! `cargo fuzz run scenario` (in `scheduler/`) looks further. `PHALANX_SEED=N` runs one seed alone.
#![allow(missing_docs, clippy::unwrap_used)]

mod audit;
#[path = "../fuzz/check.rs"]
mod check;

const SEEDS: u64 = 3000;
const INPUTS: [&str; 7] = [
    include_str!("../fuzz/seeds/everything.toml"),
    include_str!("../fuzz/seeds/small.json"),
    include_str!("../../examples/what-if/cluster.toml"),
    include_str!("../../examples/what-if/philly.csv"),
    include_str!("../../examples/what-if/openb_pods.csv"),
    include_str!("../../examples/what-if/pai_tasks.csv"),
    include_str!("../../examples/what-if/sacct.txt"),
];
/// What numbers and words are replaced by.
const WORDS: [&str; 24] = [
    "0",
    "-1",
    "1",
    "0.001",
    "0.0001",
    "1e308",
    "-0.0",
    "nan",
    "inf",
    "9223372036854775807",
    "18446744073709551615",
    "99999999999999999999999",
    "65536",
    "65537",
    "1e12",
    "\"\"",
    "[]",
    "{}",
    "true",
    "\"16EiB\"",
    "1970-01-01",
    "a.b",
    "\"\u{1F980}\"",
    "\u{0}",
];

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

/// One change of the kind that people and machines make.
fn mutate(random: &mut Random, text: &mut String) {
    let lines: Vec<&str> = text.lines().collect();
    let (a, b) = (random.below(lines.len()), random.below(lines.len()));
    *text = match random.below(6) {
        // A line too few, too many, or somewhere else.
        0 => {
            lines.iter().enumerate().filter(|(at, _)| *at != a).map(|(_, line)| format!("{line}\n")).collect()
        }
        1 => lines
            .iter()
            .enumerate()
            .flat_map(|(at, line)| vec![format!("{line}\n"); 1 + usize::from(at == a)])
            .collect(),
        2 => {
            let mut lines = lines.clone();
            lines.swap(a, b);
            lines.join("\n")
        }
        // A word that is another one.
        3 | 4 => {
            let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '"');
            let starts: Vec<usize> = text
                .char_indices()
                .filter(|&(at, c)| is_word(c) && !text[..at].ends_with(is_word))
                .map(|(at, _)| at)
                .collect();
            let Some(&start) = starts.get(random.below(starts.len())) else { return };
            let end = text[start..].find(|c| !is_word(c)).map_or(text.len(), |end| start + end);
            format!("{}{}{}", &text[..start], WORDS[random.below(WORDS.len())], &text[end..])
        }
        // A letter that is none.
        _ => {
            let at = random.below(text.len());
            let at = (0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            let cut = text[at..].chars().next().map_or(0, char::len_utf8);
            format!(
                "{}{}{}",
                &text[..at],
                ["", "=", "[", "\"", ",", "\n", "|"][random.below(7)],
                &text[at + cut..]
            )
        }
    };
}

#[test]
fn whatever_a_file_says_it_is_read_or_refused_and_what_is_read_keeps_every_promise() {
    INPUTS.iter().for_each(|input| check::check(input.as_bytes()));
    let one = std::env::var("PHALANX_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = one.map_or(0..SEEDS, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let mut random = Random(seed.wrapping_mul(0xA076_1D64_78BD_642F));
        let mut text = INPUTS[random.below(INPUTS.len())].to_owned();
        for _ in 0..1 + random.below(4) {
            mutate(&mut random, &mut text);
        }
        let checked = std::panic::catch_unwind(|| check::check(text.as_bytes()));
        if let Err(panic) = checked {
            println!("{text}\nseed {seed}: run it alone with PHALANX_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
