//! What goes over a data connection: a header that says what the payload is and where it belongs, then the payload.

use crate::error::Signature;

/// Begins every frame.
const MAGIC: u32 = u32::from_le_bytes(*b"PHX1");
pub(crate) const HEADER_BYTES: usize = 64;
/// Where the checksum stands; what is before it is covered by it, as is the payload if [`COVERED`] is set.
const CHECKED_BYTES: usize = 56;
/// The checksum covers the payload too.
const COVERED: u32 = 1;
/// Largest payload: enough to make a system call worth it, and it stays in the second-level cache until it is folded.
pub(crate) const MAX_PAYLOAD_BYTES: usize = 128 << 10;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Sequence number of the operation.
    pub(crate) seq: u64,
    /// The operation as the sender called it.
    pub(crate) code: u64,
    pub(crate) bytes: u64,
    /// Where in the operation's buffer the payload belongs, in bytes.
    pub(crate) offset: u64,
    /// Which part of the operation it is of.
    pub(crate) phase: u32,
    /// Bytes of payload.
    pub(crate) length: u32,
}

/// A header that is none of this group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    Magic,
    Epoch(u64),
    Length(u32),
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bad::Magic => f.write_str("no frame where one should begin"),
            Bad::Epoch(epoch) => write!(f, "a frame of epoch {epoch}"),
            Bad::Length(length) => write!(f, "a frame of {length} bytes"),
        }
    }
}

impl Frame {
    pub(crate) fn signature(&self) -> Option<Signature> {
        Signature::from_code(self.code, self.bytes)
    }

    /// The header with the checksum over it and, if `covered`, the payload.
    pub(crate) fn encode(&self, epoch: u64, payload: &[u8], covered: bool) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4..8].copy_from_slice(&self.length.to_le_bytes());
        for (at, word) in [epoch, self.seq, self.code, self.bytes, self.offset].into_iter().enumerate() {
            header[8 + 8 * at..16 + 8 * at].copy_from_slice(&word.to_le_bytes());
        }
        header[48..52].copy_from_slice(&self.phase.to_le_bytes());
        header[52..56].copy_from_slice(&if covered { COVERED } else { 0 }.to_le_bytes());
        let sum = checksum(&header, payload);
        header[CHECKED_BYTES..].copy_from_slice(&sum.to_le_bytes());
        header
    }

    /// Reads a header; the checksum is compared once the payload is there.
    pub(crate) fn decode(header: &[u8; HEADER_BYTES], epoch: u64) -> Result<Self, Bad> {
        let word32 =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let word64 = |at: usize| u64::from(word32(at)) | u64::from(word32(at + 4)) << 32;
        if word32(0) != MAGIC {
            return Err(Bad::Magic);
        }
        if word64(8) != epoch {
            return Err(Bad::Epoch(word64(8)));
        }
        let length = word32(4);
        if length as usize > MAX_PAYLOAD_BYTES {
            return Err(Bad::Length(length));
        }
        Ok(Frame {
            seq: word64(16),
            code: word64(24),
            bytes: word64(32),
            offset: word64(40),
            phase: word32(48),
            length,
        })
    }
}

#[inline(always)]
fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Whether a header is whole and, if it says so of its payload, that too.
pub(crate) fn fits(header: &[u8; HEADER_BYTES], payload: &[u8]) -> bool {
    header[CHECKED_BYTES..] == checksum(header, payload).to_le_bytes()
}

/// Words that are summed side by side.
const LANES: usize = 16;
const BLOCK_BYTES: usize = 4 * LANES;

/// Fletcher's checksum (1982) over 32-bit words in independent lanes, with sums so wide that they do not wrap within a
/// frame: any change of one or two words is seen, and of more but for one in 2^64. It runs as fast as the memory, where a
/// CRC took a fifth of the time of a large allreduce.
fn checksum(header: &[u8; HEADER_BYTES], payload: &[u8]) -> u64 {
    let mut sums = [[0u64; LANES]; 2];
    if word(header, 52) & COVERED == 0 {
        return mix(&header[..CHECKED_BYTES], &sums);
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the feature is there.
        unsafe { sum_with_avx2(payload, &mut sums) };
        return mix(&header[..CHECKED_BYTES], &sums);
    }
    sum(payload, &mut sums);
    mix(&header[..CHECKED_BYTES], &sums)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn sum_with_avx2(payload: &[u8], sums: &mut [[u64; LANES]; 2]) {
    sum(payload, sums);
}

#[inline(always)]
fn sum(payload: &[u8], sums: &mut [[u64; LANES]; 2]) {
    let (blocks, rest) = payload.as_chunks::<BLOCK_BYTES>();
    for block in blocks {
        add(block, sums);
    }
    if !rest.is_empty() {
        // The header says how long the payload is, so zeros at its end are not confused with its own.
        let mut block = [0; BLOCK_BYTES];
        block[..rest.len()].copy_from_slice(rest);
        add(&block, sums);
    }
}

#[inline(always)]
fn add(block: &[u8; BLOCK_BYTES], [plain, weighted]: &mut [[u64; LANES]; 2]) {
    for lane in 0..LANES {
        let at = 4 * lane;
        let word = word(block, at);
        plain[lane] += u64::from(word);
        weighted[lane] += plain[lane];
    }
}

/// All words into one; each step can be undone, so that a change of one of them changes the result.
fn mix(header: &[u8], sums: &[[u64; LANES]; 2]) -> u64 {
    let header = header.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
    header.chain(sums.iter().flatten().copied()).fold(0, |hash, word| {
        (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) // 2^64 over the golden ratio
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_the_wire_and_any_flipped_bit_is_seen(
            words: [u64; 4], phase: u32, epoch: u64, payload in proptest::collection::vec(any::<u8>(), 0..300), bit: usize
        ) {
            let [seq, code, bytes, offset] = words;
            let frame = Frame { seq, code, bytes, offset, phase, length: payload.len() as u32 };
            let header = frame.encode(epoch, &payload, true);
            prop_assert_eq!(Frame::decode(&header, epoch), Ok(frame));
            prop_assert!(fits(&header, &payload));
            let mut wire = [&header[..], &payload].concat();
            let bit = bit % (wire.len() * 8);
            wire[bit / 8] ^= 1 << (bit % 8);
            let header: [u8; HEADER_BYTES] = wire[..HEADER_BYTES].try_into().unwrap();
            let seen = match Frame::decode(&header, epoch) {
                Ok(read) => read.length as usize != payload.len() || !fits(&header, &wire[HEADER_BYTES..]),
                Err(_) => true,
            };
            prop_assert!(seen);
            // Between processes of one host only the header is covered.
            let bare = frame.encode(epoch, &payload, false);
            prop_assert!(fits(&bare, b"whatever"));
            let mut broken = bare;
            broken[(bit / 8) % HEADER_BYTES] ^= 1 << (bit % 8);
            prop_assert!(Frame::decode(&broken, epoch).is_err() || !fits(&broken, b"whatever"));
        }
    }
}
