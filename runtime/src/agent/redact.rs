//! Keeps the values of secrets out of what is stored of a rank's output.
//!
//! A value is taken out where it stands as it is, also across the pieces of a long line. What a program makes of it (a
//! hash, base64, one letter a line) is not known here.

use phalanx_core::Secret;
use std::collections::BTreeMap;

/// What stands for a value.
const MASK: &[u8] = b"***";
/// Parts of values of several lines that are shorter than this stay: they are no secret of their own.
const LEAST_PART: usize = 4;

/// The values to be kept out.
#[derive(Clone, Debug, Default)]
pub(super) struct Redactor {
    /// The longest first, so that one that holds another goes as a whole.
    values: Vec<Secret>,
}

impl Redactor {
    /// Of these secrets. Lines are looked at one by one, so each line of a value counts by itself.
    pub(super) fn new(secrets: &BTreeMap<String, Secret>) -> Redactor {
        let lines = secrets.values().flat_map(|secret| secret.reveal().lines());
        let parts = lines.map(str::trim).filter(|part| part.len() >= LEAST_PART);
        let mut values: Vec<Secret> = parts.filter_map(|part| Secret::new(part.to_owned()).ok()).collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.reveal().len()));
        Redactor { values }
    }

    /// There is nothing to keep out.
    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The line without the values.
    pub(super) fn clean(&self, mut line: Vec<u8>) -> Vec<u8> {
        for value in self.values.iter().map(|value| value.reveal().as_bytes()) {
            let Some(mut found) = find(&line, value) else { continue };
            let mut rest = line.as_slice();
            let mut clean = Vec::with_capacity(line.len());
            loop {
                clean.extend_from_slice(&rest[..found]);
                clean.extend_from_slice(MASK);
                rest = &rest[found + value.len()..];
                match find(rest, value) {
                    Some(next) => found = next,
                    None => break,
                }
            }
            clean.extend_from_slice(rest);
            line = clean;
        }
        line
    }

    /// How many bytes at the end may be the beginning of a value: they wait for what follows.
    pub(super) fn open_end(&self, line: &[u8]) -> usize {
        let begins = |value: &[u8]| {
            let longest = line.len().min(value.len() - 1);
            (1..=longest).rev().find(|&length| line.ends_with(&value[..length])).unwrap_or(0)
        };
        self.values.iter().map(|value| begins(value.reveal().as_bytes())).max().unwrap_or(0)
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor(values: &[&str]) -> Redactor {
        let named = values.iter().enumerate();
        let named = named.map(|(at, value)| (format!("S{at}"), Secret::new((*value).to_owned()).unwrap()));
        Redactor::new(&named.collect())
    }

    fn clean(values: &[&str], line: &str) -> String {
        String::from_utf8(redactor(values).clean(line.as_bytes().to_vec())).unwrap()
    }

    #[test]
    fn values_are_taken_out_wherever_they_stand() {
        assert_eq!(clean(&["hunter22"], "a hunter22hunter22 b hunter2"), "a ****** b hunter2");
        assert_eq!(clean(&["hunter", "hunter22"], "hunter22 hunter"), "*** ***", "the longer one first");
        assert_eq!(clean(&[], "hunter22"), "hunter22");
        let key = "-----BEGIN KEY-----\nabcdef\n12\n-----END KEY-----";
        assert_eq!(clean(&[key], "abcdef"), "***", "each line of a value by itself");
        assert!(redactor(&[]).is_empty());
    }

    #[test]
    fn what_may_go_on_as_a_value_is_kept_back() {
        let redactor = redactor(&["abcabd", "xyzzy"]);
        for (line, open) in [("--abcab", 5), ("--abca", 4), ("abcabd", 0), ("..xyz", 3), ("none", 0), ("", 0)]
        {
            assert_eq!(redactor.open_end(line.as_bytes()), open, "{line}");
        }
    }
}
