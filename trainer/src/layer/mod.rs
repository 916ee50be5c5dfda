//! What models are made of: each layer's way forward and back, written out over flat slices.
//!
//! A tape would be shorter to use and slower to run: written out, nothing is allocated from step to step, gradients are
//! computed where they will be reduced, and what is not needed (the gradient of the input) is not computed.

pub(crate) mod activation;
pub(crate) mod affine;
pub(crate) mod attention;
pub(crate) mod convolution;
pub(crate) mod math;
pub(crate) mod norm;
pub(crate) mod parameters;
pub(crate) mod pooling;
pub(crate) mod product;
pub(crate) mod wide;

/// The first `len` values of a buffer that grows when it has to; what they hold is whatever was left there.
pub(crate) fn fit(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}
