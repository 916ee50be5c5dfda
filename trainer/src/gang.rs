//! The gang as a rank sees it: where its part of a batch begins, and how gradients and scores meet.

use crate::Error;
use crate::environment::Environment;
use crate::optimizer::squared_norm;
use phalanx_collective::{ArenaBuffer, Communicator, Config, ReduceOp, shard_range};
use std::ops::Range;
use std::time::Duration;

/// Values of a bucket, the piece of the gradient that is reduced at once: 25 MiB, as in PyTorch's DDP (Li et al. 2020).
const BUCKET_LEN: usize = (25 << 20) / size_of::<f32>();
/// Values of the first bucket, small so that reducing can begin early: 1 MiB.
const FIRST_BUCKET_LEN: usize = (1 << 20) / size_of::<f32>();
/// Room in the arena beside the gradient, for alignment.
const ARENA_SLACK_BYTES: usize = 4096;
/// How long a rank that has lost another one waits before it ends: the agent is to see first the death that started it.
const MOURNING: Duration = Duration::from_millis(200);

/// What travels at the end of a gradient, so that one reduction serves for all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tail {
    /// The mean loss over the global batch.
    pub(crate) loss: f32,
    /// Whether any rank was asked to stop.
    pub(crate) stop: bool,
}

/// Values of a [`Tail`] in the buffer: the loss, then the stops.
pub(crate) const TAIL_LEN: usize = 2;

/// The pieces of a buffer that are reduced one after the other.
fn buckets(len: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let size = if start == 0 { FIRST_BUCKET_LEN } else { BUCKET_LEN };
        let bucket = start..(start + size).min(len);
        start = bucket.end;
        (!bucket.is_empty()).then_some(bucket)
    })
}

/// This rank's slices of so many parameters, one of each bucket, when the optimizer is shared out (ZeRO-1, Rajbhandari et
/// al. 2020).
pub(crate) fn own_slices(parameters: usize, rank: usize, world: usize) -> Vec<Range<usize>> {
    let slice = |bucket: Range<usize>| {
        let own = shard_range(bucket.len(), world, rank);
        bucket.start + own.start..bucket.start + own.end
    };
    buckets(parameters).map(slice).collect()
}

/// This rank among the others.
pub(crate) struct Gang {
    communicator: Communicator,
    rank: u32,
}

impl Gang {
    /// Meets the others. Ranks whose `fingerprint` differs are refused.
    pub(crate) fn meet(
        environment: &Environment,
        fingerprint: String,
        parameters: usize,
    ) -> Result<Gang, Error> {
        let rank = environment.rank;
        if environment.world == 1 {
            return Ok(Gang { communicator: Communicator::solo(), rank });
        }
        let config = Config {
            epoch: environment.attempt,
            master_addr: environment.master_addr.clone(),
            master_port: environment.master_port,
            fingerprint,
            flight_dir: environment.scratch.clone(),
            arena_bytes: (parameters + TAIL_LEN) * size_of::<f32>() + ARENA_SLACK_BYTES,
            ..Config::new(rank as usize, environment.world as usize)
        };
        let communicator =
            Communicator::connect(config).map_err(|source| Error::Collective { rank, source })?;
        Ok(Gang { communicator, rank })
    }

    pub(crate) fn rank(&self) -> u64 {
        self.communicator.rank() as u64
    }

    pub(crate) fn world(&self) -> u64 {
        self.communicator.world() as u64
    }

    /// A buffer for the gradient and its tail, where peers can reach it.
    pub(crate) fn gradient_buffer(&self, parameters: usize) -> Result<ArenaBuffer<f32>, Error> {
        self.communicator.arena_alloc(parameters + TAIL_LEN).map_err(|source| self.fail(source))
    }

    /// Sums a gradient whose last values are this rank's share of the tail over all ranks; also says its sum of squares.
    pub(crate) fn reduce(&mut self, gradient: &mut [f32]) -> Result<(Tail, f64), Error> {
        if self.world() > 1 {
            for bucket in buckets(gradient.len()) {
                let reduced = self.communicator.allreduce(&mut gradient[bucket], ReduceOp::Sum);
                reduced.map_err(|source| self.fail(source))?;
            }
        }
        let (gradient, tail) = gradient.split_at(gradient.len() - TAIL_LEN);
        Ok((Tail { loss: tail[0], stop: tail[1] > 0.0 }, squared_norm(gradient)))
    }

    /// The same, but each rank is left with the sum in its [own slices](own_slices) only.
    pub(crate) fn reduce_own(&mut self, gradient: &mut [f32]) -> Result<(Tail, f64), Error> {
        let (gradient, tail) = gradient.split_at_mut(gradient.len() - TAIL_LEN);
        let mut sums = [f64::from(tail[0]), f64::from(tail[1]), 0.0];
        for bucket in buckets(gradient.len()) {
            let bucket = &mut gradient[bucket];
            let own = self.communicator.reduce_scatter(bucket, ReduceOp::Sum);
            sums[2] += squared_norm(&bucket[own.map_err(|source| self.fail(source))?]);
        }
        self.sum(&mut sums)?;
        Ok((Tail { loss: sums[0] as f32, stop: sums[1] > 0.0 }, sums[2]))
    }

    /// Puts every rank's own slices of `values` together.
    pub(crate) fn gather(&mut self, values: &mut [f32]) -> Result<(), Error> {
        for bucket in buckets(values.len()) {
            let gathered = self.communicator.allgather(&mut values[bucket]);
            gathered.map_err(|source| self.fail(source))?;
        }
        Ok(())
    }

    /// Sums a few numbers over all ranks.
    pub(crate) fn sum(&mut self, values: &mut [f64]) -> Result<(), Error> {
        if values.is_empty() {
            return Ok(());
        }
        let summed = self.communicator.allreduce(values, ReduceOp::Sum);
        summed.map_err(|source| self.fail(source))
    }

    /// Whether any rank says yes.
    pub(crate) fn any(&mut self, yes: bool) -> Result<bool, Error> {
        let mut votes = [f64::from(u8::from(yes))];
        self.sum(&mut votes)?;
        Ok(votes[0] > 0.0)
    }

    /// Waits for all, so that nobody leaves while another still needs it.
    pub(crate) fn part(mut self) -> Result<(), Error> {
        let parted = self.communicator.barrier();
        parted.map_err(|source| self.fail(source))
    }

    fn fail(&self, source: phalanx_collective::Error) -> Error {
        if matches!(source, phalanx_collective::Error::PeerLost { .. }) {
            std::thread::sleep(MOURNING);
        }
        Error::Collective { rank: self.rank, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_slices_share_all_parameters_out() {
        for parameters in [1, 7, FIRST_BUCKET_LEN, FIRST_BUCKET_LEN + 5, FIRST_BUCKET_LEN + BUCKET_LEN + 11] {
            for world in [1, 2, 3] {
                let mut all: Vec<Range<usize>> =
                    (0..world).flat_map(|rank| own_slices(parameters, rank, world)).collect();
                all.sort_unstable_by_key(|slice| (slice.start, slice.end));
                let end = all.iter().fold(0, |end, slice| {
                    assert_eq!(slice.start, end);
                    slice.end
                });
                assert_eq!(end, parameters);
            }
        }
    }
}
