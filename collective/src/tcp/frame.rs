//! What goes over a data connection: a header that says what the payload is and where it belongs, then the payload.

use crate::error::Signature;

/// Begins every frame.
const MAGIC: u32 = u32::from_le_bytes(*b"PHX1");
pub(crate) const HEADER_BYTES: usize = 56;
/// Where the checksum stands; what is before it is covered by it, as is the payload.
const CHECKED_BYTES: usize = 52;
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

    fn unchecked(&self, epoch: u64) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4..8].copy_from_slice(&self.length.to_le_bytes());
        for (at, word) in [epoch, self.seq, self.code, self.bytes, self.offset].into_iter().enumerate() {
            header[8 + 8 * at..16 + 8 * at].copy_from_slice(&word.to_le_bytes());
        }
        header[48..52].copy_from_slice(&self.phase.to_le_bytes());
        header
    }

    /// The header with the checksum over it and the payload.
    pub(crate) fn encode(&self, epoch: u64, payload: &[u8]) -> [u8; HEADER_BYTES] {
        let mut header = self.unchecked(epoch);
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

/// Whether a payload is the one its header was made for.
pub(crate) fn fits(header: &[u8; HEADER_BYTES], payload: &[u8]) -> bool {
    header[CHECKED_BYTES..] == checksum(header, payload).to_le_bytes()
}

fn checksum(header: &[u8; HEADER_BYTES], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..CHECKED_BYTES]);
    hasher.update(payload);
    hasher.finalize()
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
            let header = frame.encode(epoch, &payload);
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
        }
    }
}
