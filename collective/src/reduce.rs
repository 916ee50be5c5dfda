//! Folding kernels: plain loops that the compiler vectorises.
//!
//! Values fold along a balanced binary tree over rank order that is left-complete: the left part of `n` sources is the
//! largest power of two below `n`. Every kernel here follows it exactly, so that all give the same bits.

use half::{bf16, f16};

use crate::element::{DType, Number, ReduceOp};

/// Elements that one step of the fixed kernels takes: two AVX registers of f32 for each source.
const LANES: usize = 16;
/// Elements that the general kernel folds at a time, so that its intermediate results stay in the first-level cache.
const BLOCK: usize = 256;

/// Folds `sources[..][i]` for `i < len` and writes each result to all `outs`. A mean is the sum divided by `parts`: the
/// number of ranks whose values are in the sources, which may themselves be sums.
///
/// # Safety
/// Every source is valid for reads, every out for writes of `len` elements of `dtype`, aligned to it, and nobody else
/// writes to the former or accesses the latter meanwhile. An out is the same as a source or disjoint from all of them.
pub(crate) unsafe fn fold(
    dtype: DType,
    (op, parts): (ReduceOp, usize),
    sources: &[*const u8],
    outs: &[*mut u8],
    len: usize,
) {
    let work = Work { sources, outs, len, parts };
    // SAFETY: passed on.
    unsafe {
        match dtype {
            DType::F32 => fold_op::<f32>(op, &work),
            DType::F64 => fold_op::<f64>(op, &work),
            DType::BF16 => fold_op::<bf16>(op, &work),
            DType::F16 => fold_op::<f16>(op, &work),
            DType::I64 => fold_op::<i64>(op, &work),
            DType::U8 => unreachable!("bytes are no `Number`, so no reduction of them can be called"),
        }
    }
}

/// What there is to fold.
struct Work<'a> {
    sources: &'a [*const u8],
    outs: &'a [*mut u8],
    len: usize,
    parts: usize,
}

unsafe fn fold_op<T: Number>(op: ReduceOp, work: &Work<'_>) {
    // SAFETY: passed on.
    unsafe {
        match op {
            ReduceOp::Sum => dispatch::<T, Sum>(work),
            ReduceOp::Mean => dispatch::<T, Mean>(work),
            ReduceOp::Min => dispatch::<T, Min>(work),
            ReduceOp::Max => dispatch::<T, Max>(work),
        }
    }
}

/// A reduction: how two values become one, and what is done to the last.
trait Rule<T: Number> {
    fn join(a: T::Acc, b: T::Acc) -> T::Acc;
    #[inline(always)]
    fn finish(acc: T::Acc, _parts: usize) -> T::Acc {
        acc
    }
}

struct Sum;
struct Mean;
struct Min;
struct Max;

impl<T: Number> Rule<T> for Sum {
    #[inline(always)]
    fn join(a: T::Acc, b: T::Acc) -> T::Acc {
        T::add(a, b)
    }
}

impl<T: Number> Rule<T> for Mean {
    #[inline(always)]
    fn join(a: T::Acc, b: T::Acc) -> T::Acc {
        T::add(a, b)
    }
    #[inline(always)]
    fn finish(acc: T::Acc, parts: usize) -> T::Acc {
        T::divide(acc, parts)
    }
}

impl<T: Number> Rule<T> for Min {
    #[inline(always)]
    fn join(a: T::Acc, b: T::Acc) -> T::Acc {
        T::min(a, b)
    }
}

impl<T: Number> Rule<T> for Max {
    #[inline(always)]
    fn join(a: T::Acc, b: T::Acc) -> T::Acc {
        T::max(a, b)
    }
}

unsafe fn dispatch<T: Number, R: Rule<T>>(work: &Work<'_>) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the feature is there; the rest is passed on.
        return unsafe { with_avx2::<T, R>(work) };
    }
    // SAFETY: passed on.
    unsafe { choose::<T, R>(work) }
}

/// The same code compiled for AVX2. It contracts nothing (no fused multiply-add), so the bits are the same.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn with_avx2<T: Number, R: Rule<T>>(work: &Work<'_>) {
    // SAFETY: passed on.
    unsafe { choose::<T, R>(work) }
}

#[inline(always)]
unsafe fn choose<T: Number, R: Rule<T>>(work: &Work<'_>) {
    let &Work { sources, outs, len, parts } = work;
    // SAFETY: passed on; the arrays hold the same pointers.
    unsafe {
        match (sources, outs) {
            (&[a, b], &[x]) => fixed::<T, R, 2, 1>([a.cast(), b.cast()], [x.cast()], len, parts),
            (&[a, b], &[x, y]) => fixed::<T, R, 2, 2>([a.cast(), b.cast()], [x.cast(), y.cast()], len, parts),
            (&[a, b, c, d], &[x]) => {
                fixed::<T, R, 4, 1>([a.cast(), b.cast(), c.cast(), d.cast()], [x.cast()], len, parts);
            }
            (&[a, b, c, d], &[x, y, z, w]) => fixed::<T, R, 4, 4>(
                [a.cast(), b.cast(), c.cast(), d.cast()],
                [x.cast(), y.cast(), z.cast(), w.cast()],
                len,
                parts,
            ),
            _ => general::<T, R>(work),
        }
    }
}

/// The loop for a known, power-of-two number of sources: all of a step is in registers.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // indices into several arrays say it best
unsafe fn fixed<T: Number, R: Rule<T>, const N: usize, const M: usize>(
    sources: [*const T; N],
    outs: [*mut T; M],
    len: usize,
    parts: usize,
) {
    let whole = len - len % LANES;
    let mut i = 0;
    // SAFETY: `i + lane < len`; within a step everything is read before anything is written, so outs may be sources.
    unsafe {
        while i < whole {
            let mut acc = [[T::Acc::default(); LANES]; N];
            for n in 0..N {
                for lane in 0..LANES {
                    acc[n][lane] = sources[n].add(i + lane).read().widen();
                }
            }
            let mut width = N;
            while width > 1 {
                for n in 0..width / 2 {
                    for lane in 0..LANES {
                        acc[n][lane] = R::join(acc[2 * n][lane], acc[2 * n + 1][lane]);
                    }
                }
                width /= 2;
            }
            for out in outs {
                for lane in 0..LANES {
                    out.add(i + lane).write(T::narrow(R::finish(acc[0][lane], parts)));
                }
            }
            i += LANES;
        }
        while i < len {
            let value = fold_one::<T, R>(&sources, i);
            for out in outs {
                out.add(i).write(T::narrow(R::finish(value, parts)));
            }
            i += 1;
        }
    }
}

/// Where the left part of `n > 1` sources ends.
fn split(n: usize) -> usize {
    n.next_power_of_two() / 2
}

unsafe fn fold_one<T: Number, R: Rule<T>>(sources: &[*const T], i: usize) -> T::Acc {
    // SAFETY: by the contract of `fold`.
    unsafe {
        match sources {
            [one] => one.add(i).read().widen(),
            many => {
                let (left, right) = many.split_at(split(many.len()));
                R::join(fold_one::<T, R>(left, i), fold_one::<T, R>(right, i))
            }
        }
    }
}

/// Any number of sources, block by block.
#[inline(always)]
unsafe fn general<T: Number, R: Rule<T>>(work: &Work<'_>) {
    let &Work { sources, outs, len, parts } = work;
    let mut acc = [T::Acc::default(); BLOCK];
    let mut from = 0;
    while from < len {
        let count = BLOCK.min(len - from);
        // SAFETY: `from + count <= len`; the block is read whole before it is written.
        unsafe {
            fold_block::<T, R>(sources, from, &mut acc[..count]);
            for value in &mut acc[..count] {
                *value = R::finish(*value, parts);
            }
            for out in outs {
                let out = out.cast::<T>().add(from);
                for (i, value) in acc[..count].iter().enumerate() {
                    out.add(i).write(T::narrow(*value));
                }
            }
        }
        from += count;
    }
}

unsafe fn fold_block<T: Number, R: Rule<T>>(sources: &[*const u8], from: usize, acc: &mut [T::Acc]) {
    // SAFETY: by the contract of `fold`; `from + acc.len() <= len`.
    unsafe {
        match sources {
            [] => {}
            [one] => {
                let one = one.cast::<T>().add(from);
                for (i, value) in acc.iter_mut().enumerate() {
                    *value = one.add(i).read().widen();
                }
            }
            [a, b] => {
                let (a, b) = (a.cast::<T>().add(from), b.cast::<T>().add(from));
                for (i, value) in acc.iter_mut().enumerate() {
                    *value = R::join(a.add(i).read().widen(), b.add(i).read().widen());
                }
            }
            many => {
                let (left, right) = many.split_at(split(many.len()));
                let mut other = [T::Acc::default(); BLOCK];
                let other = &mut other[..acc.len()];
                fold_block::<T, R>(left, from, acc);
                fold_block::<T, R>(right, from, other);
                for (value, other) in acc.iter_mut().zip(other) {
                    *value = R::join(*value, *other);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the documentation promises, said as simply as possible.
    fn expected(values: &[f32]) -> f32 {
        match values {
            [one] => *one,
            many => {
                let mut left = 1;
                while left * 2 < many.len() {
                    left *= 2;
                }
                expected(&many[..left]) + expected(&many[left..])
            }
        }
    }

    fn run<T: Number>(op: ReduceOp, ranks: &mut [Vec<T>], in_place: bool) -> Vec<Vec<T>> {
        let len = ranks[0].len();
        let mut result = if in_place { Vec::new() } else { vec![ranks[0].clone()] };
        let outs: Vec<*mut u8> = match in_place {
            true => ranks.iter_mut().map(|r| r.as_mut_ptr().cast()).collect(),
            false => vec![result[0].as_mut_ptr().cast()],
        };
        let sources: Vec<*const u8> = match in_place {
            true => outs.iter().map(|p| p.cast_const()).collect(),
            false => ranks.iter().map(|r| r.as_ptr().cast()).collect(),
        };
        // SAFETY: all have `len` elements and are ours.
        unsafe { fold(T::DTYPE, (op, sources.len()), &sources, &outs, len) };
        if in_place {
            result = ranks.to_vec();
        }
        result
    }

    proptest! {
        #[test]
        fn sums_follow_the_tree_bit_for_bit(world in 2usize..10, len in 0usize..600, seed in any::<u32>(), in_place: bool) {
            let mut bits = seed | 1;
            let mut next = || {
                bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (bits >> 8) as f32 * 1e-3 - 8e3
            };
            let mut ranks: Vec<Vec<f32>> = (0..world).map(|_| (0..len).map(|_| next()).collect()).collect();
            let sums: Vec<f32> =
                (0..len).map(|i| expected(&ranks.iter().map(|r| r[i]).collect::<Vec<_>>())).collect();
            for result in run(ReduceOp::Sum, &mut ranks, in_place) {
                prop_assert!(result.iter().zip(&sums).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }

        #[test]
        fn integers_reduce_exactly(world in 2usize..7, len in 0usize..70, seed in any::<i64>()) {
            let value = |r: usize, i: usize| seed.wrapping_mul(r as i64 * 7 + 3).wrapping_add(i as i64 * 0x9e37_79b9);
            let ranks: Vec<Vec<i64>> = (0..world).map(|r| (0..len).map(|i| value(r, i)).collect()).collect();
            for op in [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Min, ReduceOp::Max] {
                let result = run(op, &mut ranks.clone(), false);
                for i in 0..len {
                    let column = (0..world).map(|r| ranks[r][i]);
                    let sum = column.clone().fold(0i64, i64::wrapping_add);
                    let wanted = match op {
                        ReduceOp::Sum => sum,
                        ReduceOp::Mean => sum / world as i64,
                        ReduceOp::Min => column.min().unwrap(),
                        ReduceOp::Max => column.max().unwrap(),
                    };
                    prop_assert_eq!(result[0][i], wanted);
                }
            }
        }
    }

    #[test]
    fn worlds_of_1_2_and_4_agree_when_shards_are_folded_in_the_tree() {
        let shards: Vec<Vec<f32>> =
            (0..4).map(|s| (0..100).map(|i| 0.1 + 1e-3 * (s * i) as f32).collect()).collect();
        let four = run(ReduceOp::Sum, &mut shards.clone(), false).remove(0);
        let pair = |a: usize| run(ReduceOp::Sum, &mut shards[a..a + 2].to_vec(), false).remove(0);
        let two = run(ReduceOp::Sum, &mut [pair(0), pair(2)], true).remove(0);
        assert_eq!(four, two);
    }

    #[test]
    fn short_floats_fold_in_f32_and_round_once() {
        // 1 + 2^-8 + 2^-8: rounding after each addition would lose both small ones in bf16.
        let mut ranks = vec![
            vec![bf16::ONE; 20],
            vec![bf16::from_f32(1.0 / 256.0); 20],
            vec![bf16::from_f32(1.0 / 256.0); 20],
        ];
        let sum = run(ReduceOp::Sum, &mut ranks, false).remove(0);
        assert!(sum.iter().all(|v| v.to_f32() == 1.0 + 1.0 / 128.0));
        let mut halves = vec![vec![f16::MAX; 33], vec![f16::MAX; 33]];
        assert!(run(ReduceOp::Mean, &mut halves, true).concat().iter().all(|v| *v == f16::MAX));
    }

    #[test]
    fn nan_wins_a_minimum() {
        let mut ranks = vec![vec![f64::NAN, 1.0], vec![0.0, f64::NAN], vec![2.0, 2.0]];
        assert!(run(ReduceOp::Min, &mut ranks, false)[0].iter().all(|v| v.is_nan()));
    }
}
