//! Products of matrices, by the crate `gemm`: the kernels that burn's flex and candle's CPU backends stand on.

use crate::model::Write;
use gemm::Parallelism;

/// A matrix in a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_step: usize,
    column_step: usize,
}

impl<'a> View<'a> {
    /// All of a slice, row after row.
    pub(crate) fn rows(values: &'a [f32], columns: usize) -> View<'a> {
        debug_assert!(values.len().is_multiple_of(columns));
        View::strided(values, values.len() / columns, columns, columns)
    }

    /// `rows` rows that begin `row_step` values apart.
    pub(crate) fn strided(values: &'a [f32], rows: usize, columns: usize, row_step: usize) -> View<'a> {
        View { values, rows, columns, row_step, column_step: 1 }
    }

    /// The transposed matrix.
    pub(crate) fn t(self) -> View<'a> {
        View {
            rows: self.columns,
            columns: self.rows,
            row_step: self.column_step,
            column_step: self.row_step,
            ..self
        }
    }

    fn end(&self) -> usize {
        end_of(self.rows, self.columns, self.row_step, self.column_step)
    }
}

/// One past the last value of a matrix.
fn end_of(rows: usize, columns: usize, row_step: usize, column_step: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_step + (columns - 1) * column_step + 1 }
}

/// Who works on a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hands {
    /// The calling thread.
    One,
    /// All threads of the pool it is in.
    All,
}

/// Puts `scale` × a·b into `out`, whose rows begin `row_step` values apart, or adds it to what is there.
pub(crate) fn product_into(
    out: &mut [f32],
    row_step: usize,
    a: View<'_>,
    b: View<'_>,
    scale: f32,
    write: Write,
    hands: Hands,
) {
    assert_eq!(a.columns, b.rows, "inner sizes");
    assert!(row_step >= b.columns, "rows of the result overlap");
    assert!(a.end() <= a.values.len() && b.end() <= b.values.len(), "a factor leaves its slice");
    assert!(end_of(a.rows, b.columns, row_step, 1) <= out.len(), "the result leaves its slice");
    let add = write == Write::Add;
    // SAFETY: all three matrices lie in their slices, as was just checked; `out` is borrowed exclusively and its rows do
    // not overlap; the steps are counted in elements and are far below `isize::MAX`.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            row_step as isize,
            add,
            a.values.as_ptr(),
            a.column_step as isize,
            a.row_step as isize,
            b.values.as_ptr(),
            b.column_step as isize,
            b.row_step as isize,
            f32::from(u8::from(add)),
            scale,
            false,
            false,
            false,
            match hands {
                Hands::One => Parallelism::None,
                Hands::All => Parallelism::Rayon(0),
            },
        );
    }
}

/// a·b into all of `out`, by all threads.
pub(crate) fn product(out: &mut [f32], a: View<'_>, b: View<'_>, write: Write) {
    product_into(out, b.columns, a, b, 1.0, write, Hands::All);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_and_their_transposes_multiply() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let b = [1.0, 0.0, -1.0, 2.0, 1.0, 1.0];
        let mut out = [7.0; 4];
        product(&mut out, View::rows(&a, 3), View::rows(&b, 2), Write::Set);
        assert_eq!(out, [2.0, 7.0, 5.0, 16.0]);
        product(&mut out, View::rows(&a, 3), View::rows(&b, 2), Write::Add);
        assert_eq!(out, [4.0, 14.0, 10.0, 32.0]);
        // aᵀ·a, of the first two columns only, into every second place of a row of four.
        let mut wide = [9.0; 8];
        let left = View::strided(&a, 2, 2, 3);
        product_into(&mut wide, 4, left.t(), left, 0.5, Write::Set, Hands::One);
        assert_eq!(wide, [8.5, 11.0, 9.0, 9.0, 11.0, 14.5, 9.0, 9.0]);
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let noise = |len: usize| (0..len).map(|at| (at as f32 * 0.37).sin()).collect::<Vec<f32>>();
        let (a, b) = (noise(300 * 211), noise(211 * 190));
        let of = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![0.0; 300 * 190];
            pool.install(|| product(&mut out, View::rows(&a, 211), View::rows(&b, 190), Write::Set));
            out
        };
        assert_eq!(of(1), of(3));
    }

    #[test]
    #[should_panic(expected = "the result leaves its slice")]
    fn a_short_result_is_refused() {
        product(&mut [0.0; 3], View::rows(&[1.0; 4], 2), View::rows(&[1.0; 4], 2), Write::Set);
    }
}
