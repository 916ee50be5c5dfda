//! An elastic gang after one of it was killed or has come: those that are there find out where they are, and go on from there.

use crate::Error;
use crate::run::{Run, state, worker};
use crate::sampler::Position;

impl Run<'_> {
    /// Trains on with those that are left of the others, or have come to them. False: there is nothing left to do.
    pub(crate) fn regroup(&mut self) -> Result<bool, Error> {
        loop {
            if !self.gang.meet_anew()? {
                return Ok(false);
            }
            let parameters = self.model.parameters().len();
            self.worker = worker(self.train, &self.gang, parameters);
            self.gradient = self.gang.gradient_buffer(parameters)?;
            match self.agree() {
                Err(error) if self.gang.outlives(&error) => {}
                other => return other.map(|()| true),
            }
        }
    }

    /// Agrees with the group as it stands, else with those after it. False: there is nothing left to do.
    pub(crate) fn agree_in_time(&mut self) -> Result<bool, Error> {
        match self.agree() {
            Err(error) if self.gang.outlives(&error) => self.regroup(),
            other => other.map(|()| true),
        }
    }

    /// Finds out who has come furthest, which all others copy: one that has just come, and one that another left in the
    /// step that the first has done. All that made a step have the same bits after it, so the step counts.
    fn agree(&mut self) -> Result<(), Error> {
        let (rank, world) = (self.gang.rank() as usize, self.gang.world() as usize);
        let mut words = vec![[0.0; 2]; world];
        if self.has_state {
            words[rank] = [(self.position.step + 1) as f64, f64::from(u8::from(self.settled))];
        }
        self.gang.sum(words.as_flattened_mut())?;
        let furthest = words.iter().map(|[step, _]| *step).fold(0.0, f64::max);
        let Some(source) = words.iter().position(|[step, _]| *step == furthest).filter(|_| furthest > 0.0)
        else {
            let reason = "every rank that knew how far the training had come was killed; it goes on from its checkpoint";
            return Err(Error::Configuration(reason.to_owned()));
        };
        let same = words.iter().all(|[step, _]| *step == furthest);
        if !same {
            self.copy(source, words[rank][0] < furthest)?;
        }
        self.settled = same && words.iter().all(|[_, settled]| *settled > 0.0);
        // A wish to stop may have been that of one that is gone, whose node is ended; who still has it says so again.
        (self.stop, self.leave) = (false, false);
        let first = state(self.train, &self.data, &self.model_name, &self.data_hash, self.position, None);
        self.lead(first);
        Ok(())
    }

    /// All take over what rank `source` has; one that `lacks` it has nothing of worth until it has all.
    fn copy(&mut self, source: usize, lacks: bool) -> Result<(), Error> {
        self.has_state &= !lacks;
        let Position { step, epoch, index } = self.position;
        let mut position = [step, epoch, index].map(|count| count as i64);
        self.gang.broadcast(&mut position, source)?;
        let mut loss = [self.loss.unwrap_or(f64::NAN)];
        self.gang.broadcast(&mut loss, source)?;
        self.gang.broadcast(self.model.parameters_mut(), source)?;
        let mut values = vec![0.0; self.model.parameters().len()];
        for slot in 0..self.optimizer.slots().len() {
            self.optimizer.spread(slot, &mut values);
            self.gang.broadcast(&mut values, source)?;
            self.optimizer.take(slot, &values);
        }
        let [step, epoch, index] = position.map(i64::cast_unsigned);
        self.position = Position { step, epoch, index };
        self.loss = Some(loss[0]).filter(|loss| !loss.is_nan());
        self.has_state = true;
        Ok(())
    }
}
