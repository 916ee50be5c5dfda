//! What can be moved and what can be reduced.

use std::ops::Range;

use half::{bf16, f16};
pub use phalanx_core::flight::{DType, ReduceOp};

mod sealed {
    pub trait Sealed {}
}

/// An element that can be moved between ranks.
pub trait Element: Copy + Send + Sync + 'static + sealed::Sealed {
    /// Its type on the wire.
    const DTYPE: DType;
}

/// An element that can be reduced.
pub trait Number: Element {
    /// What it is folded in.
    #[doc(hidden)]
    type Acc: Copy + Default;
    #[doc(hidden)]
    fn widen(self) -> Self::Acc;
    #[doc(hidden)]
    fn narrow(acc: Self::Acc) -> Self;
    #[doc(hidden)]
    fn add(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    #[doc(hidden)]
    fn min(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    #[doc(hidden)]
    fn max(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    #[doc(hidden)]
    fn divide(sum: Self::Acc, world: usize) -> Self::Acc;
}

impl sealed::Sealed for u8 {}
impl Element for u8 {
    const DTYPE: DType = DType::U8;
}

macro_rules! float {
    ($ty:ty, $dtype:ident, $acc:ty, $widen:expr, $narrow:expr) => {
        impl sealed::Sealed for $ty {}
        impl Element for $ty {
            const DTYPE: DType = DType::$dtype;
        }
        impl Number for $ty {
            type Acc = $acc;
            #[inline(always)]
            fn widen(self) -> $acc {
                let widen: fn($ty) -> $acc = $widen;
                widen(self)
            }
            #[inline(always)]
            fn narrow(acc: $acc) -> $ty {
                let narrow: fn($acc) -> $ty = $narrow;
                narrow(acc)
            }
            #[inline(always)]
            fn add(a: $acc, b: $acc) -> $acc {
                a + b
            }
            // A comparison with NaN is false: `b` is taken when it is NaN, and the second test takes `a` when it is.
            #[inline(always)]
            #[allow(clippy::eq_op)]
            fn min(a: $acc, b: $acc) -> $acc {
                if a < b || a != a { a } else { b }
            }
            #[inline(always)]
            #[allow(clippy::eq_op)]
            fn max(a: $acc, b: $acc) -> $acc {
                if a > b || a != a { a } else { b }
            }
            #[inline(always)]
            fn divide(sum: $acc, world: usize) -> $acc {
                sum / world as $acc
            }
        }
    };
}

float!(f32, F32, f32, |v| v, |v| v);
float!(f64, F64, f64, |v| v, |v| v);
float!(bf16, BF16, f32, |v| f32::from_bits(u32::from(v.to_bits()) << 16), round_bf16);
float!(f16, F16, f32, widen_f16, round_f16);

/// Round to nearest even without a branch, so that the loop around it vectorises; NaN stays NaN (made quiet).
#[inline(always)]
#[allow(clippy::eq_op)]
fn round_bf16(v: f32) -> bf16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let kept = if v != v { bits | 0x0040_0000 } else { rounded };
    bf16::from_bits((kept >> 16) as u16)
}

/// Without a branch or a call, so that the loop around it vectorises. Multiplying moves the exponent's bias, subnormals
/// included (after F. Giesen, "half to float done quick").
#[inline(always)]
fn widen_f16(v: f16) -> f32 {
    const REBIAS: f32 = f32::from_bits((254 - 15) << 23);
    const INFINITE: u32 = 0x7c00 << 13;
    let bits = u32::from(v.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * REBIAS).to_bits();
    let special = magnitude | 0xff << 23;
    f32::from_bits((if magnitude >= INFINITE { special } else { finite }) | (bits & 0x8000) << 16)
}

/// Rounds to nearest even without a branch; NaN stays NaN (after F. Giesen's `float_to_half_fast3_rtne`).
#[inline(always)]
fn round_f16(v: f32) -> f16 {
    const TOO_LARGE: u32 = (127 + 16) << 23;
    const SMALLEST_NORMAL: u32 = (127 - 14) << 23;
    // Adding it pushes a subnormal's bits to where the half has them; the addition rounds.
    const ALIGN_SUBNORMAL: u32 = ((127 - 15) + (23 - 10) + 1) << 23;
    let sign = v.to_bits() & 0x8000_0000;
    let bits = v.to_bits() ^ sign;
    let special = if bits > 0xff << 23 { 0x7e00 } else { 0x7c00 };
    let subnormal =
        (f32::from_bits(bits) + f32::from_bits(ALIGN_SUBNORMAL)).to_bits().wrapping_sub(ALIGN_SUBNORMAL);
    let odd = (bits >> 13) & 1;
    let normal = bits.wrapping_sub((127 - 15) << 23).wrapping_add(0xfff + odd) >> 13;
    let finite = if bits < SMALLEST_NORMAL { subnormal } else { normal };
    let half = if bits >= TOO_LARGE { special } else { finite };
    f16::from_bits((half | sign >> 16) as u16)
}

impl sealed::Sealed for i64 {}
impl Element for i64 {
    const DTYPE: DType = DType::I64;
}
impl Number for i64 {
    type Acc = i64;
    #[inline(always)]
    fn widen(self) -> i64 {
        self
    }
    #[inline(always)]
    fn narrow(acc: i64) -> i64 {
        acc
    }
    #[inline(always)]
    fn add(a: i64, b: i64) -> i64 {
        a.wrapping_add(b)
    }
    #[inline(always)]
    fn min(a: i64, b: i64) -> i64 {
        Ord::min(a, b)
    }
    #[inline(always)]
    fn max(a: i64, b: i64) -> i64 {
        Ord::max(a, b)
    }
    #[inline(always)]
    fn divide(sum: i64, world: usize) -> i64 {
        sum / world as i64
    }
}

/// The elements of a buffer of `len` that belong to `rank`: contiguous, in rank order, and equal in size but for the
/// first `len % world`, which hold one more.
pub fn shard_range(len: usize, world: usize, rank: usize) -> Range<usize> {
    let (size, longer) = (len / world, len % world);
    let start = rank * size + rank.min(longer);
    start..start + size + usize::from(rank < longer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_a_buffer_once_and_in_order() {
        for world in 1..9 {
            for len in 0..40 {
                let mut next = 0;
                for rank in 0..world {
                    let range = shard_range(len, world, rank);
                    assert_eq!(range.start, next);
                    next = range.end;
                    assert!(range.len() == len / world || range.len() == len / world + 1);
                }
                assert_eq!(next, len);
            }
        }
    }

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        let mut bits = 1u32;
        for _ in 0..200_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let v = f32::from_bits(bits);
            let (ours, theirs) = (round_bf16(v), bf16::from_f32(v));
            assert!(ours == theirs || (ours.is_nan() && theirs.is_nan()), "{v} {ours} {theirs}");
        }
        assert!(round_bf16(f32::from_bits(0x7f80_0001)).is_nan());
    }

    #[test]
    fn f16_converts_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let v = f16::from_bits(bits);
            let (ours, theirs) = (widen_f16(v), v.to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}");
        }
        let mut bits = 1u32;
        for n in 0..2_000_000u32 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Half of them near the range of a half, where most of the cases are.
            let v = f32::from_bits(if n % 2 == 0 { bits } else { bits & 0x87ff_ffff | 0x3000_0000 });
            let (ours, theirs) = (round_f16(v), f16::from_f32(v));
            assert!(
                ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()),
                "{v:e} {ours} {theirs}"
            );
        }
    }

    #[test]
    fn min_and_max_carry_nan_from_either_side() {
        assert!(<f32 as Number>::min(f32::NAN, 1.0).is_nan() && <f32 as Number>::min(1.0, f32::NAN).is_nan());
        assert!(<f64 as Number>::max(f64::NAN, 1.0).is_nan() && <f64 as Number>::max(1.0, f64::NAN).is_nan());
        assert_eq!(<f32 as Number>::min(1.0, 2.0), 1.0);
        assert_eq!(<f32 as Number>::max(1.0, 2.0), 2.0);
    }
}
