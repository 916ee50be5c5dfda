//! A series with at most so many points, which keeps every peak, every dip and the last value.
//!
//! Samples are gathered into buckets of equally many; of each the lowest, the highest and the last remain. When the
//! buckets are too many, neighbours are joined, which loses none of the three: the whole is read once, in the memory of
//! what is shown (the min-max part of MinMaxLTTB, Van Der Donckt et al. 2023).

/// What was reported at a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    /// The step.
    pub(crate) step: u64,
    /// Seconds since the Unix epoch.
    pub(crate) time: f64,
    /// The value.
    pub(crate) value: f64,
}

/// A sample and its place in the series.
type Placed = (u64, Sample);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    low: Placed,
    high: Placed,
    last: Placed,
}

impl Bucket {
    /// What is not a number is neither low nor high while there is a number.
    fn join(&mut self, later: &Bucket) {
        let is_better = |new: f64, old: f64, better: fn(&f64, &f64) -> bool| {
            !new.is_nan() && (old.is_nan() || better(&new, &old))
        };
        if is_better(later.low.1.value, self.low.1.value, f64::lt) {
            self.low = later.low;
        }
        if is_better(later.high.1.value, self.high.1.value, f64::gt) {
            self.high = later.high;
        }
        self.last = later.last;
    }

    /// What remains, in order.
    fn samples(&self) -> impl Iterator<Item = Sample> {
        let mut placed = [self.low, self.high, self.last];
        placed.sort_by_key(|(place, _)| *place);
        let mut before = None;
        placed
            .into_iter()
            .filter_map(move |(place, sample)| (before.replace(place) != Some(place)).then_some(sample))
    }
}

/// A series in buckets.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    limit: usize,
    /// Samples of a full bucket.
    width: u64,
    count: u64,
    buckets: Vec<Bucket>,
}

impl Series {
    /// An empty one, of at most `limit` points (at least 3).
    pub(crate) fn new(limit: usize) -> Series {
        Series { limit: limit.max(3), width: 1, count: 0, buckets: Vec::new() }
    }

    /// Adds a sample.
    pub(crate) fn push(&mut self, sample: Sample) {
        let placed = (self.count, sample);
        let alone = Bucket { low: placed, high: placed, last: placed };
        let begins = self.count.is_multiple_of(self.width);
        self.count += 1;
        match self.buckets.last_mut() {
            Some(bucket) if !begins => bucket.join(&alone),
            _ => self.buckets.push(alone),
        }
        while self.buckets.len() * usize::try_from(self.width.min(3)).unwrap_or(3) > self.limit {
            self.join_neighbours();
        }
    }

    fn join_neighbours(&mut self) {
        let joined = self.buckets.chunks(2).map(|pair| {
            let mut bucket = pair[0];
            pair[1..].iter().for_each(|later| bucket.join(later));
            bucket
        });
        self.buckets = joined.collect();
        self.width *= 2;
    }

    /// How many samples were added.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// What remains, in order.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.buckets.iter().flat_map(Bucket::samples).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(limit: usize, values: impl IntoIterator<Item = f64>) -> Series {
        let mut series = Series::new(limit);
        for (step, value) in (0..).zip(values) {
            series.push(Sample { step, time: step as f64, value });
        }
        series
    }

    #[test]
    fn what_fits_is_kept_as_it_is() {
        let values: Vec<f64> = series(10, (0..10).map(f64::from)).samples().iter().map(|s| s.value).collect();
        assert_eq!(values, (0..10).map(f64::from).collect::<Vec<_>>());
    }

    #[test]
    fn peaks_dips_and_the_last_value_survive_in_order() {
        for count in [11_usize, 100, 1_000, 99_999] {
            let value = |at: usize| match at {
                _ if at == count / 3 => 1e9,
                _ if at == count / 2 => -1e9,
                _ if at == count - 1 => 7.5,
                at => (at as f64 * 0.7).sin(),
            };
            let series = series(10, (0..count).map(value));
            let samples = series.samples();
            assert!(samples.len() <= 10, "{} of {count}", samples.len());
            assert_eq!(series.count(), count as u64);
            assert!(samples.windows(2).all(|pair| pair[0].step < pair[1].step), "{samples:?}");
            let has = |value: f64| samples.iter().any(|sample| sample.value == value);
            assert!(has(1e9) && has(-1e9), "{samples:?}");
            assert_eq!(
                samples.last().map(|sample| (sample.step, sample.value)),
                Some((count as u64 - 1, 7.5))
            );
        }
    }

    #[test]
    fn what_is_not_a_number_hides_no_number() {
        let values = (0..1000).map(|at| if at == 500 { 3.0 } else { f64::NAN });
        let samples = series(9, values).samples();
        assert!(samples.iter().any(|sample| sample.value == 3.0), "{samples:?}");
        assert!(samples.last().is_some_and(|sample| sample.value.is_nan()));
        assert!(series(9, (0..1000).map(|_| f64::NAN)).samples().iter().all(|sample| sample.value.is_nan()));
    }
}
