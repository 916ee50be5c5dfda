//! The gradient in memory that peers can reach, and the buckets in which it is reduced, each as soon as it is finished.

use crate::model::{Gradient, Tensor};
use phalanx_collective::{ArenaBuffer, Communicator, Pending, ReduceOp, Result, shard_range};
use std::ops::Range;

/// Values of a bucket: 25 MiB, as in PyTorch's DDP (Li et al. 2020).
const BUCKET_LEN: usize = (25 << 20) / size_of::<f32>();
/// Values of the first bucket, small so that reducing can begin early: 1 MiB.
const FIRST_BUCKET_LEN: usize = (1 << 20) / size_of::<f32>();
/// Values in front of the gradient, which one reduction serves too; a whole number of cache lines.
pub(crate) const HEAD_LEN: usize = 32;

/// What travels in front of a gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Head {
    /// The mean loss over the global batch, or this rank's share of it.
    pub(crate) loss: f32,
    /// Whether any rank was asked to stop.
    pub(crate) stop: bool,
    /// Whether any rank's loss depends on other tensors than before.
    pub(crate) usage_changed: bool,
    /// Whether any rank was asked to leave the others, because there are more.
    pub(crate) leave: bool,
}

impl Head {
    pub(crate) fn write(self, to: &mut [f32]) {
        to[..HEAD_LEN].fill(0.0);
        let flags = [self.stop, self.usage_changed, self.leave].map(f32::from);
        to[0] = self.loss;
        to[1..4].copy_from_slice(&flags);
    }

    /// What the sum over ranks says.
    pub(crate) fn read(from: &[f32]) -> Head {
        let [stop, usage_changed, leave] = [1, 2, 3].map(|at| from[at] > 0.0);
        Head { loss: from[0], stop, usage_changed, leave }
    }
}

/// The pieces in which the gradient of these tensors is reduced, in the order in which the way back finishes them: from the
/// end, cut where a tensor begins.
pub(crate) fn buckets(tensors: &[Tensor]) -> Vec<Range<usize>> {
    let mut buckets: Vec<Range<usize>> = Vec::new();
    let mut end = tensors.last().map_or(0, |last| last.range.end);
    for start in tensors.iter().rev().map(|tensor| tensor.range.start) {
        let enough = if buckets.is_empty() { FIRST_BUCKET_LEN } else { BUCKET_LEN };
        if start == 0 || end - start >= enough {
            buckets.push(start..end);
            end = start;
        }
    }
    buckets
}

/// A rank's slices of these buckets, in the order of the parameters, when the optimizer is shared out (ZeRO-1, Rajbhandari
/// et al. 2020).
pub(crate) fn own_slices(buckets: &[Range<usize>], rank: usize, world: usize) -> Vec<Range<usize>> {
    let slice = |bucket: &Range<usize>| {
        let own = shard_range(bucket.len(), world, rank);
        bucket.start + own.start..bucket.start + own.end
    };
    buckets.iter().rev().map(slice).collect()
}

/// A gradient that is being computed, with its [`Head`] in front. Its buckets leave as soon as they are finished.
pub(crate) struct InFlight<'a> {
    buffer: &'a mut ArenaBuffer<f32>,
    buckets: &'a [Range<usize>],
    /// Through which they leave early, if they do.
    communicator: Option<&'a mut Communicator>,
    pending: Vec<Pending<f32>>,
    failed: Result<()>,
    /// Whether a device keeps it, which reduces it.
    stays: bool,
}

impl<'a> InFlight<'a> {
    pub(crate) fn new(
        buffer: &'a mut ArenaBuffer<f32>,
        buckets: &'a [Range<usize>],
        communicator: Option<&'a mut Communicator>,
    ) -> InFlight<'a> {
        InFlight { buffer, buckets, communicator, pending: Vec::new(), failed: Ok(()), stays: false }
    }

    /// One that stays on the device, all of it.
    pub(crate) fn on_device(buffer: &'a mut ArenaBuffer<f32>, buckets: &'a [Range<usize>]) -> InFlight<'a> {
        InFlight { stays: true, ..InFlight::new(buffer, buckets, None) }
    }

    pub(crate) fn head(&mut self) -> &mut [f32] {
        &mut self.buffer[..HEAD_LEN]
    }

    /// Waits for the buckets that have left, and puts the buffer together again; the answer is how many there were.
    ///
    /// # Errors
    /// Those of the reductions; the buffer is then not whole.
    pub(crate) fn land(self) -> Result<usize> {
        self.failed?;
        let landed = self.pending.len();
        let parts: Result<Vec<ArenaBuffer<f32>>> = self.pending.into_iter().map(Pending::wait).collect();
        parts?.into_iter().rev().for_each(|part| self.buffer.unsplit(part));
        Ok(landed)
    }
}

impl Gradient for InFlight<'_> {
    fn open(&mut self) -> &mut [f32] {
        &mut self.buffer[HEAD_LEN..]
    }

    fn stays(&self) -> bool {
        self.stays
    }

    fn finished(&mut self, start: usize) {
        let Some(communicator) = &mut self.communicator else { return };
        // The last bucket begins with the head, which is not finished before the end.
        while let Some(bucket) = self.buckets.get(self.pending.len())
            && bucket.start >= start.max(1)
            && self.failed.is_ok()
        {
            let part = self.buffer.split_off(HEAD_LEN + bucket.start);
            match communicator.start_allreduce(part, ReduceOp::Sum) {
                Ok(pending) => self.pending.push(pending),
                Err(error) => self.failed = Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(lengths: &[usize]) -> Vec<Tensor> {
        let mut start = 0;
        let tensor = |&length: &usize| {
            let range = start..start + length;
            start += length;
            Tensor { name: String::new(), shape: vec![length], range }
        };
        lengths.iter().map(tensor).collect()
    }

    #[test]
    fn buckets_begin_where_tensors_do_and_the_first_is_small() {
        const MIB: usize = FIRST_BUCKET_LEN;
        assert_eq!(buckets(&tensors(&[3, 4])), vec![0..7; 1]);
        assert_eq!(buckets(&tensors(&[5, MIB, 3])), [5..MIB + 8, 0..5]);
        assert_eq!(buckets(&tensors(&[30 * MIB, MIB / 2, MIB / 2])), [30 * MIB..31 * MIB, 0..30 * MIB]);
        assert_eq!(
            buckets(&tensors(&[9, 20 * MIB, 20 * MIB, MIB])),
            [40 * MIB + 9..41 * MIB + 9, 9..40 * MIB + 9, 0..9]
        );
    }

    #[test]
    fn own_slices_share_all_parameters_out() {
        for lengths in
            [vec![1], vec![7, 3], vec![5, FIRST_BUCKET_LEN, 3], vec![BUCKET_LEN + 11, FIRST_BUCKET_LEN]]
        {
            let buckets = buckets(&tensors(&lengths));
            for world in [1, 2, 3] {
                let mut all: Vec<Range<usize>> =
                    (0..world).flat_map(|rank| own_slices(&buckets, rank, world)).collect();
                all.sort_unstable_by_key(|slice| (slice.start, slice.end));
                let end = all.iter().fold(0, |end, slice| {
                    assert_eq!(slice.start, end);
                    slice.end
                });
                assert_eq!(end, lengths.iter().sum::<usize>());
            }
        }
    }

    #[test]
    fn finished_buckets_leave_and_come_back() {
        let mut communicator = Communicator::solo();
        let tensors = tensors(&[5, FIRST_BUCKET_LEN, 3]);
        let mut buffer = communicator.arena_alloc(HEAD_LEN + FIRST_BUCKET_LEN + 8).unwrap();
        let buckets = buckets(&tensors);
        let mut flight = InFlight::new(&mut buffer, &buckets, Some(&mut communicator));
        flight.open().fill(2.0);
        flight.finished(FIRST_BUCKET_LEN + 5);
        assert_eq!(flight.open().len(), FIRST_BUCKET_LEN + 8, "its bucket is not finished");
        flight.finished(5);
        assert_eq!(flight.open().len(), 5);
        flight.finished(0);
        assert_eq!(flight.open().len(), 5, "the head goes last");
        assert_eq!(flight.land(), Ok(1));
        assert_eq!(buffer.len(), HEAD_LEN + FIRST_BUCKET_LEN + 8);
        assert!(buffer[HEAD_LEN..].iter().all(|value| *value == 2.0));
    }
}
