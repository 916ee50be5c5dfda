//! The gang as a rank sees it: where its part of a batch begins, and how gradients and scores meet.

use crate::Error;
use crate::bucket::{HEAD_LEN, Head, InFlight, buckets};
use crate::environment::Environment;
use crate::model::{DeviceGradient, Tensor};
use crate::optimizer::squared_norm;
use phalanx_collective::{ArenaBuffer, Communicator, Config, ReduceOp, Transport, TransportChoice};
use std::ops::Range;
use std::time::Duration;

/// Room in the arena beside the gradient, for alignment.
const ARENA_SLACK_BYTES: usize = 4096;
/// How long a rank that has lost another one waits before it ends: the agent is to see first the death that started it.
const MOURNING: Duration = Duration::from_millis(200);

/// This rank among the others.
pub(crate) struct Gang {
    communicator: Communicator,
    rank: u32,
    /// The pieces in which gradients are reduced.
    buckets: Vec<Range<usize>>,
    /// Whether they are while the way back still computes.
    overlap: bool,
}

impl Gang {
    /// Meets the others. Ranks whose `fingerprint` differs are refused. Without `overlap` it is as it pays; with `on_device`
    /// gradients are reduced by NCCL on the GPUs that hold them.
    pub(crate) fn meet(
        environment: &Environment,
        fingerprint: String,
        tensors: &[Tensor],
        overlap: Option<bool>,
        on_device: bool,
    ) -> Result<Gang, Error> {
        let rank = environment.rank;
        let buckets = buckets(tensors);
        if environment.world == 1 {
            return Ok(Gang { communicator: Communicator::solo(), rank, buckets, overlap: false });
        }
        let parameters = buckets.first().map_or(0, |last| last.end);
        let config = Config {
            epoch: environment.attempt,
            master_addr: environment.master_addr.clone(),
            master_port: environment.master_port,
            fingerprint,
            flight_dir: environment.scratch.clone(),
            transport: if on_device { TransportChoice::Nccl } else { TransportChoice::Auto },
            arena_bytes: (parameters + HEAD_LEN) * size_of::<f32>() + ARENA_SLACK_BYTES,
            ..Config::new(rank as usize, environment.world as usize)
        };
        let communicator =
            Communicator::connect(config).map_err(|source| Error::Collective { rank, source })?;
        let overlap = overlap.unwrap_or_else(|| overlap_pays(&communicator));
        Ok(Gang { communicator, rank, buckets, overlap })
    }

    pub(crate) fn rank(&self) -> u64 {
        self.communicator.rank() as u64
    }

    pub(crate) fn world(&self) -> u64 {
        self.communicator.world() as u64
    }

    /// A buffer for the gradient and its head, where peers can reach it.
    pub(crate) fn gradient_buffer(&self, parameters: usize) -> Result<ArenaBuffer<f32>, Error> {
        self.communicator.arena_alloc(HEAD_LEN + parameters).map_err(|source| self.fail(source))
    }

    /// Whether gradients are reduced on the GPUs that hold them.
    pub(crate) fn on_device(&self) -> bool {
        self.communicator.transport() == Transport::Nccl
    }

    /// A gradient that is about to be computed. With `overlap` its buckets may leave as they are finished.
    pub(crate) fn flight<'a>(
        &'a mut self,
        gradient: &'a mut ArenaBuffer<f32>,
        overlap: bool,
    ) -> InFlight<'a> {
        if self.on_device() {
            return InFlight::on_device(gradient, &self.buckets);
        }
        let communicator = (self.overlap && overlap).then_some(&mut self.communicator);
        InFlight::new(gradient, &self.buckets, communicator)
    }

    /// Sums what lies on the ranks' GPUs, there, and copies it to `gradient` behind its head; with `own` each rank is left
    /// with its [own slices](crate::bucket::own_slices) only. The answer is how many buckets there were.
    pub(crate) fn reduce_on_device(
        &mut self,
        device: &mut dyn DeviceGradient,
        gradient: &mut [f32],
        own: bool,
    ) -> Result<usize, Error> {
        let mut memory = device.memory();
        for bucket in &self.buckets {
            let part = memory.split_off(bucket.start);
            let reduced = self.communicator.on_device().and_then(|mut on| {
                let mut part = on.lend(part)?;
                match own {
                    true => on.reduce_scatter(&mut part, ReduceOp::Sum),
                    false => on.allreduce(&mut part, ReduceOp::Sum).map(|()| 0..bucket.len()),
                }
            });
            let reduced = reduced.map_err(|source| self.fail(source))?;
            let start = bucket.start + reduced.start;
            let to = HEAD_LEN + start..HEAD_LEN + bucket.start + reduced.end;
            device.download(start, &mut gradient[to])?;
        }
        Ok(self.buckets.len())
    }

    /// Sums a gradient and its head over all ranks, but for the first buckets that [landed](InFlight::land).
    pub(crate) fn reduce(&mut self, gradient: &mut [f32], landed: usize) -> Result<Head, Error> {
        if self.world() > 1 {
            for bucket in &self.buckets[landed..] {
                let start = if bucket.start == 0 { 0 } else { HEAD_LEN + bucket.start };
                let bucket = &mut gradient[start..HEAD_LEN + bucket.end];
                let reduced = self.communicator.allreduce(bucket, ReduceOp::Sum);
                reduced.map_err(|source| self.fail(source))?;
            }
            if landed == self.buckets.len() {
                let reduced = self.communicator.allreduce(&mut gradient[..HEAD_LEN], ReduceOp::Sum);
                reduced.map_err(|source| self.fail(source))?;
            }
        }
        Ok(Head::read(gradient))
    }

    /// The same, but each rank is left with the sum in its [own slices](crate::bucket::own_slices) only, which are there
    /// already if `landed`. Also says the whole gradient's sum of squares.
    pub(crate) fn reduce_own(&mut self, gradient: &mut [f32], landed: bool) -> Result<(Head, f64), Error> {
        let mut sums = vec![0.0];
        for bucket in &self.buckets {
            let bucket = &mut gradient[HEAD_LEN + bucket.start..HEAD_LEN + bucket.end];
            let own = match landed {
                true => Ok(self.communicator.shard(bucket.len())),
                false => self.communicator.reduce_scatter(bucket, ReduceOp::Sum),
            };
            sums[0] += squared_norm(&bucket[own.map_err(|source| self.fail(source))?]);
        }
        sums.extend(gradient[..HEAD_LEN].iter().map(|&value| f64::from(value)));
        self.sum(&mut sums)?;
        let head: Vec<f32> = sums[1..].iter().map(|&sum| sum as f32).collect();
        Ok((Head::read(&head), sums[0]))
    }

    /// Puts every rank's own slices of `values` together.
    pub(crate) fn gather(&mut self, values: &mut [f32]) -> Result<(), Error> {
        for bucket in &self.buckets {
            let gathered = self.communicator.allgather(&mut values[bucket.clone()]);
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

    pub(crate) fn fail(&self, source: phalanx_collective::Error) -> Error {
        if matches!(source, phalanx_collective::Error::PeerLost { .. }) {
            std::thread::sleep(MOURNING);
        }
        Error::Collective { rank: self.rank, source }
    }
}

/// Whether reducing pays while the way back still computes: between hosts, where it is mostly waiting, and on a host with a
/// core to spare for each rank. Where all cores compute, what one thread gains another loses.
fn overlap_pays(communicator: &Communicator) -> bool {
    match communicator.transport() {
        Transport::Solo => false,
        Transport::Tcp | Transport::Hosts => true,
        Transport::Shm | Transport::Nccl => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            cores >= communicator.world() * (rayon::current_num_threads() + 1)
        }
    }
}
