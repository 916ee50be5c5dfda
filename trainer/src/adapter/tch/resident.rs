//! The gradient of a model on a GPU, where the ranks' NCCL reduces it: one flat tensor.

use super::failed;
use crate::Error;
use crate::model::{DeviceGradient, Write};
use ::tch::{Device, Kind, TchError, Tensor as Values, no_grad};
use phalanx_collective::DeviceMemory;
use std::ffi::c_void;

/// The gradients of all variables in one tensor, on their device.
pub(super) struct Resident {
    flat: Values,
    /// Its parts, in the variables' order and shapes.
    parts: Vec<Values>,
}

impl Resident {
    pub(super) fn new(variables: &[Values], device: Device) -> Result<Resident, TchError> {
        let len: usize = variables.iter().map(Values::numel).sum();
        let flat = Values::f_zeros([len as i64], (Kind::Float, device))?;
        let mut start = 0;
        let part = |variable: &Values| {
            let len = variable.numel() as i64;
            start += len;
            flat.f_narrow(0, start - len, len)?.f_view_as(variable)
        };
        let parts = variables.iter().map(part).collect::<Result<_, _>>()?;
        Ok(Resident { flat, parts })
    }

    /// Takes the gradients of a pass; those that are not there are zero.
    pub(super) fn take(&mut self, gradients: &[Values], write: Write) -> Result<(), TchError> {
        no_grad(|| {
            for (part, gradient) in self.parts.iter_mut().zip(gradients) {
                match (gradient.defined(), write) {
                    (true, Write::Set) => part.f_copy_(gradient)?,
                    (true, Write::Add) => drop(part.f_add_(gradient)?),
                    (false, Write::Set) => drop(part.f_zero_()?),
                    (false, Write::Add) => {}
                }
            }
            Ok(())
        })
    }
}

impl DeviceGradient for Resident {
    #[expect(unsafe_code, reason = "what a tensor's address points at, only its framework knows")]
    fn memory(&mut self) -> DeviceMemory<f32> {
        /// `CU_STREAM_LEGACY`: the default stream, which libtorch works in as long as nobody gives it another; tch cannot.
        const DEFAULT_STREAM: *mut c_void = std::ptr::without_provenance_mut(1);
        let (address, len) = (self.flat.data_ptr().expose_provenance() as u64, self.flat.numel());
        // SAFETY: the tensor is contiguous, of f32 and on the first GPU, which is the rank's; it lives as long as the model
        // and is used by nobody while gradients are reduced.
        unsafe { DeviceMemory::new(address, len, DEFAULT_STREAM) }
    }

    fn clear(&mut self) -> Result<(), Error> {
        self.flat.f_zero_().map(drop).map_err(failed)
    }

    fn download(&mut self, start: usize, values: &mut [f32]) -> Result<(), Error> {
        let part = self.flat.f_narrow(0, start as i64, values.len() as i64);
        part.and_then(|part| part.f_copy_data(values, values.len())).map_err(failed)
    }
}
