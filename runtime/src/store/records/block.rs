//! How consecutive lines or points lie together in one row of the database: a column of small numbers as LEB128,
//! differences to the row before where they are small, values as their exact 64 bits, lines as their exact bytes.

/// A block is closed before it grows past this; a longer line has one of its own.
pub(super) const BLOCK_BYTES: usize = 256 << 10;

const STDERR: u64 = 1;
const PARTIAL: u64 = 2;
const NEWLINE: u64 = 4;

/// A line in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub(super) attempt: u32,
    pub(super) rank: u32,
    pub(super) stderr: bool,
    pub(super) partial: bool,
    pub(super) newline: bool,
    pub(super) time: u64,
    pub(super) bytes: &'a [u8],
}

/// A point in a block; metrics by the job's numbers for their names.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) attempt: u32,
    pub(super) rank: u32,
    pub(super) step: u64,
    pub(super) time: u64,
    pub(super) values: Vec<(u32, f64)>,
}

/// Lines or points being put together, with what the row's columns say of them.
#[derive(Debug)]
pub(super) struct Builder {
    pub(super) body: Vec<u8>,
    pub(super) rows: u64,
    pub(super) attempt_min: u32,
    pub(super) attempt_max: u32,
    pub(super) ranks: i64,
    pub(super) step_min: u64,
    pub(super) step_max: u64,
    pub(super) time_max: u64,
    time: u64,
    step: u64,
}

impl Builder {
    pub(super) fn new() -> Self {
        Builder {
            body: Vec::new(),
            rows: 0,
            attempt_min: u32::MAX,
            attempt_max: 0,
            ranks: 0,
            step_min: u64::MAX,
            step_max: 0,
            time_max: 0,
            time: 0,
            step: 0,
        }
    }

    /// So many more bytes belong in another block.
    pub(super) fn is_full_for(&self, bytes: usize) -> bool {
        self.rows > 0 && self.body.len() + bytes > BLOCK_BYTES
    }

    pub(super) fn push_line(&mut self, line: Line<'_>) {
        self.note(line.attempt, line.rank, line.time);
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        let flags = flag(line.stderr, STDERR) | flag(line.partial, PARTIAL) | flag(line.newline, NEWLINE);
        for number in [u64::from(line.attempt), u64::from(line.rank), flags, self.time_step(line.time)] {
            put(&mut self.body, number);
        }
        put(&mut self.body, line.bytes.len() as u64);
        self.body.extend_from_slice(line.bytes);
    }

    pub(super) fn push_point(&mut self, point: &Point) {
        self.note(point.attempt, point.rank, point.time);
        self.step_min = self.step_min.min(point.step);
        self.step_max = self.step_max.max(point.step);
        let step = difference(point.step, std::mem::replace(&mut self.step, point.step));
        for number in [u64::from(point.attempt), u64::from(point.rank), step, self.time_step(point.time)] {
            put(&mut self.body, number);
        }
        put(&mut self.body, point.values.len() as u64);
        for &(name, value) in &point.values {
            put(&mut self.body, u64::from(name));
            self.body.extend_from_slice(&value.to_bits().to_le_bytes());
        }
    }

    fn note(&mut self, attempt: u32, rank: u32, time: u64) {
        self.rows += 1;
        self.attempt_min = self.attempt_min.min(attempt);
        self.attempt_max = self.attempt_max.max(attempt);
        self.ranks |= rank_bit(rank);
        self.time_max = self.time_max.max(time);
    }

    fn time_step(&mut self, time: u64) -> u64 {
        difference(time, std::mem::replace(&mut self.time, time))
    }
}

/// A rank's bit in a block's `ranks`; 63 of them, so that the number stays positive.
pub(super) fn rank_bit(rank: u32) -> i64 {
    1 << (rank % 63)
}

/// The lines of a block. `None` stands for bytes that are none.
pub(super) fn lines(body: &[u8]) -> impl Iterator<Item = Option<Line<'_>>> {
    let (mut rest, mut time) = (body, 0);
    std::iter::from_fn(move || (!rest.is_empty()).then(|| take_line(&mut rest, &mut time)))
}

/// The points of a block. `None` stands for bytes that are none.
pub(super) fn points(body: &[u8]) -> impl Iterator<Item = Option<Point>> {
    let (mut rest, mut step, mut time) = (body, 0, 0);
    std::iter::from_fn(move || (!rest.is_empty()).then(|| take_point(&mut rest, &mut step, &mut time)))
}

fn take_line<'a>(rest: &mut &'a [u8], time: &mut u64) -> Option<Line<'a>> {
    let (attempt, rank, flags) = (take_u32(rest)?, take_u32(rest)?, take(rest)?);
    *time = sum(*time, take(rest)?);
    let length = usize::try_from(take(rest)?).ok()?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    let has = |bit: u64| flags & bit != 0;
    let (stderr, partial, newline) = (has(STDERR), has(PARTIAL), has(NEWLINE));
    Some(Line { attempt, rank, stderr, partial, newline, time: *time, bytes })
}

fn take_point(rest: &mut &[u8], step: &mut u64, time: &mut u64) -> Option<Point> {
    let (attempt, rank) = (take_u32(rest)?, take_u32(rest)?);
    *step = sum(*step, take(rest)?);
    *time = sum(*time, take(rest)?);
    let count = take(rest)?;
    let mut values = Vec::new();
    for _ in 0..count {
        let name = take_u32(rest)?;
        let (bits, after) = rest.split_first_chunk()?;
        *rest = after;
        values.push((name, f64::from_bits(u64::from_le_bytes(*bits))));
    }
    Some(Point { attempt, rank, step: *step, time: *time, values })
}

/// The signed difference with its sign in the lowest bit, so that small ones are short; wraps both ways.
fn difference(now: u64, before: u64) -> u64 {
    let signed = now.wrapping_sub(before) as i64;
    ((signed << 1) ^ (signed >> 63)) as u64
}

fn sum(before: u64, difference: u64) -> u64 {
    let signed = (difference >> 1) as i64 ^ -((difference & 1) as i64);
    before.wrapping_add(signed as u64)
}

fn put(body: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        body.push(number as u8 | 0x80);
        number >>= 7;
    }
    body.push(number as u8);
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    u32::try_from(take(rest)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_went_in() {
        let long = vec![0xff; 1 << 20];
        let cases: [(u32, u32, u64, &[u8]); 4] = [
            (1, 0, 5, b""),
            (u32::MAX, u32::MAX, u64::MAX, b"\r\n\0"),
            (0, 7, 0, "nör".as_bytes()),
            (2, 1, 9, &long),
        ];
        let flags = [(true, false, true), (false, true, false), (false, false, false), (true, true, true)];
        let wanted: Vec<Line<'_>> = (cases.iter().zip(flags))
            .map(|(&(attempt, rank, time, bytes), (stderr, partial, newline))| Line {
                attempt,
                rank,
                stderr,
                partial,
                newline,
                time,
                bytes,
            })
            .collect();
        let mut builder = Builder::new();
        wanted.iter().for_each(|&line| builder.push_line(line));
        assert_eq!(lines(&builder.body).collect::<Option<Vec<_>>>().unwrap(), wanted);
        assert_eq!((builder.rows, builder.attempt_min, builder.attempt_max), (4, 0, u32::MAX));
        assert_eq!(builder.time_max, u64::MAX);
    }

    #[test]
    fn points_come_back_to_the_bit() {
        let odd =
            [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, f64::MIN_POSITIVE / 2.0, 0.1 + 0.2];
        let point = |step, time, values: &[(u32, f64)]| Point {
            attempt: 1,
            rank: 3,
            step,
            time,
            values: values.into(),
        };
        let values: Vec<(u32, f64)> =
            odd.iter().enumerate().map(|(name, &value)| (name as u32 * 999, value)).collect();
        let wanted = [point(0, 9, &values), point(u64::MAX, 0, &[]), point(1, u64::MAX, &values[..1])];
        let mut builder = Builder::new();
        wanted.iter().for_each(|point| builder.push_point(point));
        let found: Vec<Point> = points(&builder.body).collect::<Option<_>>().unwrap();
        type Bits = (u64, u64, Vec<(u32, u64)>);
        let bits = |points: &[Point]| -> Vec<Bits> {
            let values = |p: &Point| p.values.iter().map(|&(name, value)| (name, value.to_bits())).collect();
            points.iter().map(|p| (p.step, p.time, values(p))).collect()
        };
        assert_eq!(bits(&found), bits(&wanted));
        assert_eq!((builder.step_min, builder.step_max), (0, u64::MAX));
    }

    #[test]
    fn a_usual_point_takes_few_bytes() {
        let mut builder = Builder::new();
        let point = |step| Point {
            attempt: 1,
            rank: 0,
            step,
            time: 1_700_000_000_000_000 + step * 900,
            values: vec![(0, 0.5)],
        };
        (0..1000).for_each(|step| builder.push_point(&point(step)));
        assert!(builder.body.len() < 17 * 1000, "{}", builder.body.len());
    }

    #[test]
    fn damaged_bytes_are_noticed_and_never_read_past() {
        let mut builder = Builder::new();
        let line = Line {
            attempt: 1,
            rank: 1,
            stderr: true,
            partial: false,
            newline: true,
            time: 77,
            bytes: b"hello",
        };
        builder.push_line(line);
        for length in 1..builder.body.len() {
            assert!(lines(&builder.body[..length]).any(|line| line.is_none()), "{length}");
        }
        assert!(points(&[0xff; 32]).next().unwrap().is_none());
    }
}
