//! TensorBoard's event files: records of protobuf messages, each with its length and two checksums.
//!
//! The form is that of TFRecord: `length: u64, crc(length): u32, data, crc(data): u32`, little-endian, where `crc` is
//! CRC-32C rotated and offset so that a checksum of checksums is none.

use prost::Message;

/// What the first record of a file says.
const FILE_VERSION: &str = "brain.Event:2";
/// A session begins. Of the second one on in a file it counts: what a later step said before counts no more.
const START: i32 = 1;

/// A record of an event file.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Event {
    /// In seconds since 1970.
    #[prost(double, tag = "1")]
    pub(super) wall_time: f64,
    /// The step.
    #[prost(int64, tag = "2")]
    pub(super) step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    // Part of a oneof there: sent even where it is zero.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl Event {
    /// The first record of a file.
    pub(super) fn version(wall_time: f64) -> Event {
        Event { wall_time, file_version: Some(FILE_VERSION.to_owned()), ..Event::default() }
    }

    /// A session begins or goes on at this step.
    pub(super) fn session(wall_time: f64, step: i64) -> Event {
        Event { wall_time, step, session_log: Some(SessionLog { status: START }), ..Event::default() }
    }

    /// Values by tag.
    pub(super) fn scalars<'a>(
        wall_time: f64,
        step: i64,
        values: impl Iterator<Item = (&'a String, &'a f64)>,
    ) -> Event {
        let value = values.map(|(tag, &value)| Value { tag: tag.clone(), simple_value: Some(value as f32) });
        Event { wall_time, step, summary: Some(Summary { value: value.collect() }), ..Event::default() }
    }

    /// Adds it to a file.
    pub(super) fn append_to(&self, file: &mut Vec<u8>) {
        let length = (self.encoded_len() as u64).to_le_bytes();
        file.extend(length);
        file.extend(masked_crc(&length).to_le_bytes());
        let start = file.len();
        // Into memory that grows there is always room.
        self.encode_raw(file);
        file.extend(masked_crc(&file[start..]).to_le_bytes());
    }
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), a byte at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| (crc >> 8) ^ TABLE[usize::from((crc as u8) ^ byte)])
}

static TABLE: [u32; 256] = table();

/// What a byte does to the checksum, by the reflected polynomial 0x1EDC6F41.
const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4, and the check value of the catalogue of CRCs.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_record_is_framed_and_a_zero_is_a_value() {
        let mut file = Vec::new();
        let values = [("loss".to_owned(), 0.0)];
        let event = Event::scalars(1.5, 3, values.iter().map(|(tag, value)| (tag, value)));
        event.append_to(&mut file);
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        assert_eq!(file.len(), 8 + 4 + length + 4);
        assert_eq!(Event::decode(&file[12..12 + length]).unwrap(), event);
        assert!(length > 9 + 2 + 2 + 6 + 5, "the value 0 was left out");
    }
}
