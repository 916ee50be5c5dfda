//! Whole buffers from one float to another: what goes over the wire in fewer bits, or is folded in more.

use half::{bf16, f16};

use crate::element::{DType, Number};

/// Writes `len` elements of `from` as elements of `to`. Widening is exact; narrowing rounds to the nearest, ties to even.
///
/// # Safety
/// `source` is valid for reads of `len` elements of `from`, `out` for writes of as many of `to`, both aligned; they do not
/// overlap.
pub(crate) unsafe fn convert((from, source): (DType, *const u8), (to, out): (DType, *mut u8), len: usize) {
    // SAFETY: passed on.
    unsafe {
        match (from, to) {
            (DType::F32, DType::BF16) => each::<f32, bf16>(source, out, len),
            (DType::F32, DType::F16) => each::<f32, f16>(source, out, len),
            (DType::BF16, DType::F32) => each::<bf16, f32>(source, out, len),
            (DType::F16, DType::F32) => each::<f16, f32>(source, out, len),
            _ => unreachable!("only floats that are folded in f32 are converted"),
        }
    }
}

unsafe fn each<A: Number<Acc = f32>, B: Number<Acc = f32>>(source: *const u8, out: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the feature is there; the rest is passed on.
        return unsafe { with_avx2::<A, B>(source, out, len) };
    }
    // SAFETY: passed on.
    unsafe { plain::<A, B>(source, out, len) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn with_avx2<A: Number<Acc = f32>, B: Number<Acc = f32>>(source: *const u8, out: *mut u8, len: usize) {
    // SAFETY: passed on.
    unsafe { plain::<A, B>(source, out, len) }
}

#[inline(always)]
unsafe fn plain<A: Number<Acc = f32>, B: Number<Acc = f32>>(source: *const u8, out: *mut u8, len: usize) {
    let (source, out) = (source.cast::<A>(), out.cast::<B>());
    for i in 0..len {
        // SAFETY: `i` is below `len`.
        unsafe { out.add(i).write(B::narrow(source.add(i).read().widen())) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_is_the_same_and_narrowing_rounds_once() {
        let short: Vec<bf16> = (0..1000).map(|i| bf16::from_f32(i as f32 * 0.37 - 90.0)).collect();
        let mut wide = vec![0f32; 1000];
        let mut back = vec![bf16::ZERO; 1000];
        // SAFETY: all have a thousand elements and are ours.
        unsafe {
            convert((DType::BF16, short.as_ptr().cast()), (DType::F32, wide.as_mut_ptr().cast()), 1000);
            convert((DType::F32, wide.as_ptr().cast()), (DType::BF16, back.as_mut_ptr().cast()), 1000);
        }
        assert_eq!(short, back);
        assert!(wide.iter().zip(&short).all(|(w, s)| *w == s.to_f32()));
        let mut half = [f16::ZERO; 1];
        // SAFETY: one element each.
        unsafe {
            convert(
                (DType::F32, [1.0f32 + 1.0 / 4096.0].as_ptr().cast()),
                (DType::F16, half.as_mut_ptr().cast()),
                1,
            )
        };
        assert_eq!(half[0], f16::ONE);
    }
}
