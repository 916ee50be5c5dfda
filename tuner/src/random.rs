//! Counter-based randomness: a stream per (seed, trial, purpose, parameter name) and nothing shared between streams,
//! so that a draw does not depend on how many others were made, or in which order.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// One stream.
pub(crate) struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of a parameter (or of another `name`) for one purpose in one trial.
    pub(crate) fn new(seed: u64, trial: u64, purpose: &str, name: &str) -> Self {
        let mut key = [0_u8; 32];
        let (first, second) =
            (fnv(0xcbf2_9ce4_8422_2325, purpose, name), fnv(0x6c62_272e_07bb_0142, purpose, name));
        for (part, word) in key.chunks_exact_mut(8).zip([seed, trial, first, second]) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        Stream(ChaCha8Rng::from_seed(key))
    }

    /// A number from 0 to below 1, with 53 random bits.
    pub(crate) fn unit(&mut self) -> f64 {
        const SCALE: f64 = 1.0 / (1_u64 << 53) as f64;
        (self.0.random::<u64>() >> 11) as f64 * SCALE
    }
}

/// FNV-1a over both texts, kept apart by a byte that neither contains.
fn fnv(basis: u64, purpose: &str, name: &str) -> u64 {
    let bytes = purpose.bytes().chain([0xff]).chain(name.bytes());
    bytes.fold(basis, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_told_apart_by_each_part_of_their_key() {
        let first = |seed, trial, purpose, name| Stream::new(seed, trial, purpose, name).unit();
        let base = first(1, 2, "p", "n");
        assert_eq!(base, first(1, 2, "p", "n"));
        for other in
            [first(2, 2, "p", "n"), first(1, 3, "p", "n"), first(1, 2, "pn", ""), first(1, 2, "p", "m")]
        {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn units_are_spread_evenly() {
        let mut cells = [0_u32; 10];
        for trial in 0..10_000 {
            cells[(Stream::new(7, trial, "u", "x").unit() * 10.0) as usize] += 1;
        }
        assert!(cells.iter().all(|&count| (900..1100).contains(&count)), "{cells:?}");
    }
}
