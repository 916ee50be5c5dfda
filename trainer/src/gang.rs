//! The gang as a rank sees it: where its part of a batch begins, and how gradients and scores meet.

use crate::Error;
use crate::bucket::{HEAD_LEN, Head, InFlight, buckets};
use crate::environment::Environment;
use crate::model::{DeviceGradient, Tensor};
use crate::optimizer::squared_norm;
use crate::place::Place;
use phalanx_collective::{ArenaBuffer, Communicator, Config, Element, ReduceOp, Transport, TransportChoice};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

/// Room in the arena beside the gradient, for alignment.
const ARENA_SLACK_BYTES: usize = 4096;
/// How long a rank that has lost another one waits before it ends: the agent is to see first the death that started it.
const MOURNING: Duration = Duration::from_millis(200);

/// What all ranks must have in common.
pub(crate) struct Common {
    /// A hash of what they are to do.
    pub(crate) run: String,
    /// The hash of the checkpoint that the first of them start from. Those that come later copy what these have.
    pub(crate) checkpoint: Option<blake3::Hash>,
}

/// This rank among the others.
pub(crate) struct Gang {
    communicator: Communicator,
    place: Place,
    /// As its job counts it.
    rank: u32,
    common: Common,
    flight_dir: Option<PathBuf>,
    transport: TransportChoice,
    /// The pieces in which gradients are reduced.
    buckets: Vec<Range<usize>>,
    /// Whether they are while the way back still computes.
    overlap: bool,
}

impl Gang {
    /// Meets the others at `place`; where one of them is killed meanwhile, those that are left at the next one. Ranks whose
    /// [`Common`] differs are refused. Without `overlap` buckets leave early where it pays; with `on_device` gradients are
    /// reduced by NCCL on the GPUs that hold them. `None`: the training is over.
    pub(crate) fn meet(
        environment: &Environment,
        place: Place,
        common: Common,
        tensors: &[Tensor],
        overlap: Option<bool>,
        on_device: bool,
    ) -> Result<Option<Gang>, Error> {
        let mut gang = Gang {
            communicator: Communicator::solo(),
            place,
            rank: environment.rank,
            common,
            flight_dir: environment.scratch.clone(),
            transport: if on_device { TransportChoice::Nccl } else { TransportChoice::Auto },
            buckets: buckets(tensors),
            overlap: false,
        };
        let met = match gang.connect() {
            Err(error) if gang.outlives(&error) => gang.meet_anew()?,
            other => other.map(|()| true)?,
        };
        gang.overlap = gang.world() > 1 && overlap.unwrap_or_else(|| overlap_pays(&gang.communicator));
        Ok(met.then_some(gang))
    }

    fn connect(&mut self) -> Result<(), Error> {
        // Whoever still stands in the group before is not held up by this rank.
        self.communicator = Communicator::solo();
        if self.place.world == 1 {
            return Ok(());
        }
        let parameters = self.buckets.first().map_or(0, |last| last.end);
        let Common { run, checkpoint } = &self.common;
        let start = checkpoint.filter(|_| self.place.is_first());
        let config = Config {
            fingerprint: format!("{run} {start:?}"),
            flight_dir: self.flight_dir.clone(),
            transport: self.transport,
            arena_bytes: (parameters + HEAD_LEN) * size_of::<f32>() + ARENA_SLACK_BYTES,
            ..self.place.config()
        };
        let met = Communicator::connect(config);
        self.communicator = met.map_err(|source| Error::Collective { rank: self.rank, source })?;
        self.place.met(self.communicator.abort_handle());
        Ok(())
    }

    /// Leaves the others and meets those that are left, or have come, at the next place. Buffers for gradients are to be
    /// made anew. False: the training is over.
    pub(crate) fn meet_anew(&mut self) -> Result<bool, Error> {
        loop {
            self.communicator = Communicator::solo();
            if !self.place.move_on()? {
                return Ok(false);
            }
            match self.connect() {
                Err(error) if self.outlives(&error) => {}
                other => return other.map(|()| true),
            }
        }
    }

    /// Whether the others go on with this rank though this has happened: one of them was killed, in an elastic gang.
    pub(crate) fn outlives(&self, error: &Error) -> bool {
        use phalanx_collective::AbortReason::Mismatch;
        use phalanx_collective::Error::{Aborted, PeerLost, RendezvousTimeout, Timeout};
        let Error::Collective { source, .. } = error else { return false };
        self.place.is_elastic()
            && match source {
                Aborted { reason, .. } => *reason != Mismatch,
                source => matches!(source, PeerLost { .. } | RendezvousTimeout { .. } | Timeout { .. }),
            }
    }

    /// Whether nobody has been lost or has come since the training began.
    pub(crate) fn is_first(&self) -> bool {
        self.place.is_first()
    }

    /// Whether this rank has been asked to leave the others after a step.
    pub(crate) fn is_over(&self) -> bool {
        self.place.is_over()
    }

    /// Copies `values` of one rank to all.
    pub(crate) fn broadcast<T: Element>(&mut self, values: &mut [T], from: usize) -> Result<(), Error> {
        let sent = self.communicator.broadcast(values, from);
        sent.map_err(|source| self.fail(source))
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
    pub(crate) fn part(&mut self) -> Result<(), Error> {
        let parted = self.communicator.barrier();
        parted.map_err(|source| self.fail(source))
    }

    pub(crate) fn fail(&self, source: phalanx_collective::Error) -> Error {
        let lost = matches!(source, phalanx_collective::Error::PeerLost { .. });
        if lost && !self.place.is_elastic() {
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
