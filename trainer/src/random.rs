//! Numbers that look random and are a pure function of a seed, a stream and an index.

/// What a number is for; two uses of one seed never share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// The order of samples in an epoch.
    Epoch(u64),
    /// Which rows are held out.
    Split,
    /// Initial parameters.
    Parameters,
    /// What dropout leaves out in an epoch.
    Dropout(u64),
}

/// The finaliser of splitmix64 (Steele, Lea & Flood 2014): a bijection of 64 bits in which every input bit reaches every output bit.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// 2^64 / φ, the step of splitmix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The key of a stream; [`draw`] turns it into numbers.
pub(crate) fn key(seed: u64, stream: Stream) -> u64 {
    let stream = match stream {
        Stream::Split => 0,
        Stream::Parameters => 1,
        Stream::Epoch(epoch) => epoch.wrapping_add(2),
        // From the other end, so that the two never meet.
        Stream::Dropout(epoch) => !epoch,
    };
    mix(mix(seed.wrapping_add(GOLDEN)).wrapping_add(stream.wrapping_mul(GOLDEN)))
}

/// The number at `index` of the stream with `key`.
pub(crate) fn draw(key: u64, index: u64) -> u64 {
    mix(key.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// A number from -1 (included) to 1 (excluded).
pub(crate) fn symmetric(key: u64, index: u64) -> f32 {
    // 24 bits are what an f32 in [1, 2) tells apart.
    const HALF: f32 = (1u32 << 23) as f32;
    (draw(key, index) >> 40) as f32 / HALF - 1.0
}

/// A number from 0 (included) to 1 (excluded).
pub(crate) fn unit(key: u64, index: u64) -> f64 {
    // 53 bits are what an f64 in [1, 2) tells apart.
    (draw(key, index) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_over_its_range() {
        let key = key(7, Stream::Parameters);
        let values: Vec<f32> = (0..100_000).map(|index| symmetric(key, index)).collect();
        assert!(values.iter().all(|value| (-1.0..1.0).contains(value)));
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 1e5;
        let variance = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.01, "{mean}");
        assert!((variance - 1.0 / 3.0).abs() < 0.01, "{variance}");
    }

    #[test]
    fn streams_differ() {
        let keys =
            [Stream::Split, Stream::Parameters, Stream::Epoch(0), Stream::Epoch(1), Stream::Dropout(0)]
                .map(|s| key(1, s));
        for (at, one) in keys.iter().enumerate() {
            assert!(keys[..at].iter().all(|other| other != one));
        }
        assert_ne!(key(1, Stream::Split), key(2, Stream::Split));
    }
}
