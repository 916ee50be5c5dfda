//! Tensors that the loss does not depend on: the same on all ranks, or the sum of gradients means nothing.

use crate::Error;
use crate::gang::Gang;
use crate::model::Tensor;

/// What this rank's loss does not depend on, and what all agreed on last.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// Unused on all ranks; at first, none.
    agreed: Vec<usize>,
    /// Unused in every pass of the present step; `None` before the first.
    step: Option<Vec<usize>>,
}

impl Usage {
    /// A step begins.
    pub(crate) fn begin(&mut self) {
        self.step = None;
    }

    /// A pass did not depend on these.
    pub(crate) fn note(&mut self, unused: &[usize]) {
        match &mut self.step {
            Some(step) => step.retain(|tensor| unused.contains(tensor)),
            None => self.step = Some(unused.to_vec()),
        }
    }

    /// Whether this step's differ from those agreed on. A rank that had no samples has no opinion.
    pub(crate) fn changed(&self) -> bool {
        self.step.as_ref().is_some_and(|step| *step != self.agreed)
    }

    /// Agrees on them anew: how many ranks' losses depend on each tensor, and how many have a say.
    pub(crate) fn compare(&mut self, gang: &mut Gang, tensors: &[Tensor]) -> Result<(), Error> {
        let mut votes = vec![f64::from(u8::from(self.step.is_some())); tensors.len() + 1];
        for &tensor in self.step.iter().flatten() {
            votes[tensor] = 0.0;
        }
        gang.sum(&mut votes)?;
        let voters = votes[tensors.len()];
        let differs = tensors.iter().zip(&votes).find(|(_, votes)| **votes > 0.0 && **votes < voters);
        if let Some((tensor, votes)) = differs {
            return Err(Error::Model(format!(
                "the loss depends on the tensor `{}` on {votes} of {voters} ranks; in one step every rank must use the same tensors",
                tensor.name
            )));
        }
        self.agreed = (0..tensors.len()).filter(|&tensor| votes[tensor] == 0.0).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_unused_if_no_pass_of_the_step_uses_it() {
        let mut usage = Usage::default();
        assert!(!usage.changed(), "no opinion");
        usage.note(&[]);
        assert!(!usage.changed());
        usage.begin();
        usage.note(&[1, 4]);
        usage.note(&[4]);
        assert_eq!(usage.step.as_deref(), Some(&[4][..]));
        assert!(usage.changed());
        usage.agreed = vec![4];
        assert!(!usage.changed());
    }
}
