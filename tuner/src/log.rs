//! The log as bytes: one JSON record a line, so that a journal can be read by eye and cut anywhere.

use crate::error::Error;
use crate::record::Record;

/// Records as lines.
pub fn encode(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        // A record is plain data with texts for keys: it has a JSON form, and a vector takes it.
        serde_json::to_writer(&mut bytes, record).expect("a record has a JSON form");
        bytes.push(b'\n');
    }
    bytes
}

/// The records of a log, and how many of its bytes they take: what is behind them is a record that was cut off while
/// it was written, and nobody was told of it.
///
/// # Errors
/// When a line in the middle is no record.
pub fn decode(bytes: &[u8]) -> Result<(Vec<Record>, usize), Error> {
    let (mut records, mut taken) = (Vec::new(), 0);
    while let Some(length) = bytes[taken..].iter().position(|byte| *byte == b'\n') {
        let line = &bytes[taken..taken + length];
        match serde_json::from_slice(line) {
            Ok(record) => records.push(record),
            // A crash of the machine may leave the last line in any state.
            Err(_) if taken + length + 1 == bytes.len() => break,
            Err(error) => {
                return Err(Error::BadLog(format!("line {} is no record: {error}", records.len() + 1)));
            }
        }
        taken += length + 1;
    }
    Ok((records, taken))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Study;
    use crate::protocol::answer;
    use crate::space::tests::sweep;

    const LINES: &str = "[stopping]\nkind = \"asha\"\nmode = \"promote\"\nmax = 9\neta = 2\n[params]\n\
                         x = { kind = \"float\", low = 1e-3, high = 1, log = true }\nc = { kind = \"choice\", values = [\"ä\", 1] }\n";

    fn requests() -> Vec<String> {
        let mut requests = Vec::new();
        for number in 0..12_u64 {
            requests.push("{\"op\":\"ask\"}".to_owned());
            let value = (number * 7 % 5) as f64 / 3.0;
            requests.push(format!("{{\"op\":\"report\",\"number\":{number},\"step\":1,\"value\":{value}}}"));
            if number % 3 == 2 {
                requests.push(format!("{{\"op\":\"tell\",\"number\":{number},\"value\":{value}}}"));
            }
        }
        requests
    }

    #[test]
    fn a_journal_torn_at_any_byte_goes_on_where_it_was() {
        let spec = sweep(LINES);
        let mut study = Study::new(&spec);
        let mut journal = encode(&study.take_records());
        // After how many bytes which requests had been answered.
        let mut answers = Vec::new();
        let mut ends = vec![journal.len()];
        for request in requests() {
            answers.push(answer(&mut study, request.as_bytes()));
            journal.extend(encode(&study.take_records()));
            ends.push(journal.len());
        }
        for cut in 0..=journal.len() {
            let (records, taken) = decode(&journal[..cut]).unwrap();
            assert!(taken <= cut && journal[..taken].last().is_none_or(|byte| *byte == b'\n'));
            let done = ends.iter().rposition(|end| *end <= taken).unwrap_or(0);
            let mut study = Study::rebuild(&spec, records).unwrap();
            study.take_records();
            // The first request of which nothing is left is answered as it was before.
            for (request, expected) in requests().iter().zip(&answers).skip(done).take(3) {
                assert_eq!(&answer(&mut study, request.as_bytes()), expected, "cut at {cut}: {request}");
            }
        }
    }

    #[test]
    fn damage_in_the_middle_is_told() {
        let mut study = Study::new(&sweep(LINES));
        study.ask();
        let mut journal = encode(&study.take_records());
        let whole = journal.len();
        journal.extend(b"{\"asked\":{\"num\0\n");
        assert_eq!(decode(&journal).map(|(records, taken)| (records.len(), taken)), Ok((2, whole)));
        journal.extend(b"{}\n");
        assert!(matches!(decode(&journal), Err(Error::BadLog(message)) if message.contains("line 3")));
    }
}
