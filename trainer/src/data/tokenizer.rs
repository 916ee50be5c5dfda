//! Tokenizers: a text as numbers, by characters, bytes, or byte pairs learnt from it.

use phalanx_core::spec::Tokenizer;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The different tokens of a text, and how it is cut into them.
#[derive(Debug)]
pub(super) struct Vocabulary {
    cut: Cut,
    names: Vec<String>,
}

/// The token that each pair becomes. Tokens are numbered in the order of the merges, so that lower ones merge first.
type Merges = HashMap<(u32, u32), u32>;

#[derive(Debug)]
enum Cut {
    Chars(BTreeMap<char, u32>),
    Bytes,
    Pairs(Merges),
}

impl Vocabulary {
    /// The vocabulary of `all` texts; what is learnt (pairs) is learnt from `training`.
    pub(super) fn learn<'a>(
        tokenizer: Tokenizer,
        training: impl Iterator<Item = &'a str>,
        all: impl Iterator<Item = &'a str>,
    ) -> Vocabulary {
        match tokenizer {
            Tokenizer::Char => {
                let chars: BTreeSet<char> = all.flat_map(str::chars).collect();
                let names = chars.iter().map(|char| char.to_string()).collect();
                let numbers = chars.into_iter().zip(0..).collect();
                Vocabulary { cut: Cut::Chars(numbers), names }
            }
            Tokenizer::Byte => {
                Vocabulary { cut: Cut::Bytes, names: bytes().iter().map(|b| name(b)).collect() }
            }
            Tokenizer::Bpe(size) => {
                let (merges, tokens) = learn_pairs(training, size as usize);
                Vocabulary {
                    cut: Cut::Pairs(merges),
                    names: tokens.iter().map(|token| name(token)).collect(),
                }
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Tokens by number; a byte that is no character stands as `\xNN`.
    pub(super) fn into_names(self) -> Vec<String> {
        self.names
    }

    /// Appends the tokens of a text whose characters the vocabulary has.
    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<u32>) {
        match &self.cut {
            Cut::Chars(numbers) => tokens.extend(text.chars().filter_map(|char| numbers.get(&char))),
            Cut::Bytes => tokens.extend(text.bytes().map(u32::from)),
            Cut::Pairs(merges) => {
                let mut known: HashMap<&str, Vec<u32>> = HashMap::new();
                for piece in pieces(text) {
                    tokens.extend(known.entry(piece).or_insert_with(|| merge_piece(piece, merges)).iter());
                }
            }
        }
    }
}

fn bytes() -> Vec<Vec<u8>> {
    (0..=u8::MAX).map(|byte| vec![byte]).collect()
}

fn name(token: &[u8]) -> String {
    let mut name = String::new();
    for chunk in token.utf8_chunks() {
        name.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| name.push_str(&format!("\\x{byte:02x}")));
    }
    name
}

/// Cuts a text into words and what is between them, a space before each belonging to it: pairs never reach across.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    #[derive(PartialEq)]
    enum Kind {
        Space,
        Word,
        Other,
    }
    let kind = |c: char| match c {
        c if c.is_whitespace() => Kind::Space,
        c if c.is_alphanumeric() => Kind::Word,
        _ => Kind::Other,
    };
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut chars = rest.char_indices();
        let (_, mut first) = chars.next()?;
        if first == ' '
            && let Some((_, second)) = chars.clone().next()
            && kind(second) != Kind::Space
        {
            first = second;
        }
        let end = chars.find(|(at, c)| kind(*c) != kind(first) && *at > 0).map_or(rest.len(), |(at, _)| at);
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

/// Merges the pairs of a piece, those learnt first before others.
fn merge_piece(piece: &str, merges: &Merges) -> Vec<u32> {
    let mut tokens: Vec<u32> = piece.bytes().map(u32::from).collect();
    loop {
        let pairs = tokens
            .windows(2)
            .filter_map(|pair| merges.get(&(pair[0], pair[1])).map(|&to| (to, (pair[0], pair[1]))));
        let Some((to, pair)) = pairs.min() else { return tokens };
        replace(&mut tokens, pair, to);
    }
}

/// Replaces a pair wherever it stands, from the left.
fn replace(tokens: &mut Vec<u32>, pair: (u32, u32), to: u32) {
    let (mut read, mut write) = (0, 0);
    while read < tokens.len() {
        let found = read + 1 < tokens.len() && (tokens[read], tokens[read + 1]) == pair;
        tokens[write] = if found { to } else { tokens[read] };
        read += if found { 2 } else { 1 };
        write += 1;
    }
    tokens.truncate(write);
}

/// Merges the most frequent pair again and again until there are `size` tokens or no pair comes twice; of equals the
/// smaller one goes first, so that one text gives one vocabulary.
fn learn_pairs<'a>(texts: impl Iterator<Item = &'a str>, size: usize) -> (Merges, Vec<Vec<u8>>) {
    let mut counted: BTreeMap<&str, i64> = BTreeMap::new();
    texts.flat_map(pieces).for_each(|piece| *counted.entry(piece).or_default() += 1);
    let mut words: Vec<(Vec<u32>, i64)> =
        counted.into_iter().map(|(piece, count)| (piece.bytes().map(u32::from).collect(), count)).collect();
    // How often each pair stands, and in which words it may.
    let mut counts: HashMap<(u32, u32), i64> = HashMap::new();
    let mut places: HashMap<(u32, u32), BTreeSet<usize>> = HashMap::new();
    for (at, (word, count)) in words.iter().enumerate() {
        for pair in word.windows(2) {
            *counts.entry((pair[0], pair[1])).or_default() += count;
            places.entry((pair[0], pair[1])).or_default().insert(at);
        }
    }
    let (mut merges, mut tokens) = (HashMap::new(), bytes());
    while tokens.len() < size {
        let best = counts.iter().max_by_key(|&(pair, count)| (*count, std::cmp::Reverse(*pair)));
        let Some((&pair, _)) = best.filter(|(_, count)| **count > 1) else { break };
        let to = tokens.len() as u32;
        merges.insert(pair, to);
        tokens.push([&tokens[pair.0 as usize][..], &tokens[pair.1 as usize]].concat());
        for at in places.remove(&pair).unwrap_or_default() {
            let (word, count) = &mut words[at];
            for old in word.windows(2) {
                *counts.entry((old[0], old[1])).or_default() -= *count;
            }
            replace(word, pair, to);
            for new in word.windows(2) {
                *counts.entry((new[0], new[1])).or_default() += *count;
                places.entry((new[0], new[1])).or_default().insert(at);
            }
        }
        counts.remove(&pair);
    }
    (merges, tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "low lower lowest, newer newest wider: low low  ü\n";

    fn learn(tokenizer: Tokenizer) -> Vocabulary {
        Vocabulary::learn(tokenizer, [TEXT].into_iter(), [TEXT].into_iter())
    }

    #[test]
    fn tokens_put_together_are_the_text() {
        for tokenizer in [Tokenizer::Char, Tokenizer::Byte, Tokenizer::Bpe(300)] {
            let vocabulary = learn(tokenizer);
            let mut tokens = Vec::new();
            vocabulary.encode(TEXT, &mut tokens);
            let names = vocabulary.into_names();
            let text: String = tokens.iter().map(|&token| names[token as usize].as_str()).collect();
            assert_eq!(text.replace("\\xc3\\xbc", "ü"), TEXT, "{tokenizer:?}");
        }
    }

    #[test]
    fn characters_are_numbered_in_their_order() {
        let vocabulary = Vocabulary::learn(Tokenizer::Char, [].into_iter(), ["cab", "da"].into_iter());
        let mut tokens = Vec::new();
        vocabulary.encode("dabc", &mut tokens);
        assert_eq!(tokens, [3, 0, 1, 2]);
    }

    #[test]
    fn frequent_pieces_become_tokens() {
        let vocabulary = learn(Tokenizer::Bpe(400));
        let mut tokens = Vec::new();
        vocabulary.encode(" low", &mut tokens);
        assert_eq!(tokens.len(), 1, "{:?}", vocabulary.names);
        assert!(vocabulary.len() < 400, "pairs that come once are not learnt");
        // The first merge is the most frequent pair: `lo` or `ow`, five times each; the smaller one.
        assert_eq!(learn(Tokenizer::Bpe(257)).names[256], "lo");
    }

    #[test]
    fn pieces_are_words_with_the_space_before_them() {
        let found: Vec<&str> = pieces("ab, c  d\n\ne ").collect();
        assert_eq!(found, ["ab", ",", " c", "  ", "d", "\n\n", "e", " "]);
    }
}
