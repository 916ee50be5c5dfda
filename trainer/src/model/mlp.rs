//! `linear` and `mlp`: affine maps with an activation between them, computed by burn's flex backend.
//!
//! All parameters are one flex tensor and every weight a strided view of it, so that optimizers move them in place.
//! The way back is written out: it is shorter than a tape, allocates less, and never computes the gradient of the input.

use super::{Engine, Score, Tensor, Write, loss};
use crate::data::Dataset;
use crate::random::{Stream, key, symmetric};
use burn_backend::ops::FloatTensorOps;
use burn_backend::{Shape, TensorData};
use burn_flex::{Flex, FlexTensor, Layout};
use phalanx_core::spec::{Activation, Loss};

/// One affine map. Its weight is `[outputs, inputs]`, as PyTorch's `Linear` has it, and its bias follows.
#[derive(Clone, Copy, Debug)]
struct Affine {
    inputs: usize,
    outputs: usize,
    weight: usize,
    bias: usize,
}

/// A stack of affine maps.
pub struct Mlp {
    maps: Vec<Affine>,
    tensors: Vec<Tensor>,
    activation: Activation,
    loss: Loss,
    parameters: FlexTensor,
    /// Rows of the present batch, gathered; as long as the largest batch so far.
    batch: FlexTensor,
}

impl Mlp {
    /// A model with these widths from input to output, its parameters drawn by `seed` as PyTorch draws those of a
    /// `Linear`: uniformly from ±1/√inputs (He et al. 2015).
    pub fn new(widths: &[usize], activation: Activation, loss: Loss, seed: u64) -> Mlp {
        let (mut maps, mut tensors, mut end) = (Vec::new(), Vec::new(), 0);
        for (at, pair) in widths.windows(2).enumerate() {
            let (inputs, outputs) = (pair[0], pair[1]);
            let bias = end + inputs * outputs;
            maps.push(Affine { inputs, outputs, weight: end, bias });
            // Modules of an nn.Sequential: activations have numbers too.
            let module = 2 * at;
            tensors.push(Tensor {
                name: format!("{module}.weight"),
                shape: vec![outputs, inputs],
                range: end..bias,
            });
            end = bias + outputs;
            tensors.push(Tensor { name: format!("{module}.bias"), shape: vec![outputs], range: bias..end });
        }
        let key = key(seed, Stream::Parameters);
        let mut parameters = Vec::with_capacity(end);
        for map in &maps {
            let bound = 1.0 / (map.inputs as f32).sqrt();
            let until = map.bias + map.outputs;
            parameters.extend((map.weight..until).map(|at| bound * symmetric(key, at as u64)));
        }
        Mlp { maps, tensors, activation, loss, parameters: flat(parameters), batch: flat(Vec::new()) }
    }

    /// Runs the batch forward; the result holds the input of every map, then the outputs.
    fn forward(&mut self, data: &Dataset, rows: &[u32]) -> Pass {
        let mut pass = Pass { inputs: vec![self.gather(data, rows)], slopes: Vec::new() };
        let last = self.maps.len() - 1;
        for (at, map) in self.maps.iter().enumerate() {
            let weight = self.weight(map).transpose(0, 1);
            let mut output = Flex::float_matmul(pass.inputs[at].clone(), weight);
            let bias = &self.parameters.storage::<f32>()[map.bias..map.bias + map.outputs];
            let values = output.storage_mut::<f32>();
            for row in values.chunks_exact_mut(map.outputs) {
                row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
            if at < last {
                pass.slopes.push(activate(self.activation, values));
            }
            pass.inputs.push(output);
        }
        pass
    }

    /// Copies rows into the batch buffer and returns it as a matrix.
    fn gather(&mut self, data: &Dataset, rows: &[u32]) -> FlexTensor {
        let width = data.width();
        if self.batch.storage::<f32>().len() < rows.len() * width {
            self.batch = flat(vec![0.0; rows.len() * width]);
        }
        let buffer = self.batch.storage_mut::<f32>();
        for (place, &row) in buffer.chunks_exact_mut(width).zip(rows) {
            place.copy_from_slice(data.row(row));
        }
        matrix(&self.batch, 0, rows.len(), width)
    }

    fn weight(&self, map: &Affine) -> FlexTensor {
        matrix(&self.parameters, map.weight, map.outputs, map.inputs)
    }
}

/// What the way forward leaves for the way back.
struct Pass {
    /// The input of every map, then the outputs.
    inputs: Vec<FlexTensor>,
    /// For every hidden map what its activation needs to be undone, if its output does not tell.
    slopes: Vec<Option<Vec<f32>>>,
}

impl Engine for Mlp {
    fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    fn parameters(&self) -> &[f32] {
        self.parameters.storage()
    }

    fn parameters_mut(&mut self) -> &mut [f32] {
        debug_assert!(self.parameters.is_unique(), "a view outlived its pass: this would copy");
        self.parameters.storage_mut()
    }

    fn forward_backward(
        &mut self,
        data: &Dataset,
        rows: &[u32],
        scale: f32,
        gradient: &mut [f32],
        write: Write,
    ) -> f64 {
        assert_eq!(gradient.len(), self.parameters().len());
        if rows.is_empty() {
            if write == Write::Set {
                gradient.fill(0.0);
            }
            return 0.0;
        }
        let Pass { mut inputs, mut slopes } = self.forward(data, rows);
        let Some(mut slope) = inputs.pop() else { unreachable!("a pass has outputs") };
        let width = self.maps[self.maps.len() - 1].outputs;
        let sum = loss::backward(self.loss, slope.storage_mut(), width, &data.targets, rows, scale);
        for (at, map) in self.maps.iter().enumerate().rev() {
            let Some(input) = inputs.pop() else { unreachable!("a map has an input") };
            let weight = Flex::float_matmul(slope.transpose(0, 1), input.clone());
            put(&mut gradient[map.weight..map.bias], weight.storage(), write);
            put_column_sums(&mut gradient[map.bias..map.bias + map.outputs], slope.storage(), write);
            if at > 0 {
                slope = Flex::float_matmul(slope, self.weight(map));
                let saved = slopes.pop().flatten();
                deactivate(self.activation, slope.storage_mut(), input.storage(), saved.as_deref());
            }
        }
        sum
    }

    fn evaluate(&mut self, data: &Dataset, rows: &[u32]) -> Score {
        if rows.is_empty() {
            return Score::default();
        }
        let mut pass = self.forward(data, rows);
        let width = self.maps[self.maps.len() - 1].outputs;
        let Some(mut outputs) = pass.inputs.pop() else { unreachable!("a pass has outputs") };
        loss::score(self.loss, outputs.storage_mut(), width, &data.targets, rows)
    }
}

fn flat(values: Vec<f32>) -> FlexTensor {
    let len = values.len();
    FlexTensor::from_data(TensorData::new(values, [len]))
}

/// A row-major matrix that lies at `start` of a flat tensor; no copy.
fn matrix(flat: &FlexTensor, start: usize, rows: usize, columns: usize) -> FlexTensor {
    let layout = Layout::new(Shape::from(vec![rows, columns]), vec![columns as isize, 1], start);
    flat.clone().with_layout(layout)
}

fn put(to: &mut [f32], from: &[f32], write: Write) {
    match write {
        Write::Set => to.copy_from_slice(from),
        Write::Add => to.iter_mut().zip(from).for_each(|(to, from)| *to += from),
    }
}

fn put_column_sums(to: &mut [f32], from: &[f32], write: Write) {
    if write == Write::Set {
        to.fill(0.0);
    }
    for row in from.chunks_exact(to.len()) {
        to.iter_mut().zip(row).for_each(|(to, from)| *to += from);
    }
}

/// Applies the activation in place; returns its slopes where the result alone does not tell them.
fn activate(activation: Activation, values: &mut [f32]) -> Option<Vec<f32>> {
    match activation {
        Activation::Relu => {
            // Not `max`, which would turn NaN into 0 and hide a diverged run.
            values.iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value });
            None
        }
        Activation::Tanh => {
            values.iter_mut().for_each(|value| *value = value.tanh());
            None
        }
        Activation::Gelu => Some(values.iter_mut().map(gelu).collect()),
    }
}

/// x·Φ(x) in place of x; returns its slope Φ(x) + x·φ(x).
fn gelu(value: &mut f32) -> f32 {
    let x = *value;
    let below = 0.5 * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2));
    const INV_SQRT_TAU: f32 = 0.398_942_3;
    *value = x * below;
    below + x * INV_SQRT_TAU * (-0.5 * x * x).exp()
}

/// Multiplies `slope` by that of the activation whose result was `output`.
fn deactivate(activation: Activation, slope: &mut [f32], output: &[f32], saved: Option<&[f32]>) {
    match (activation, saved) {
        (Activation::Gelu, Some(saved)) => slope.iter_mut().zip(saved).for_each(|(slope, s)| *slope *= s),
        (Activation::Tanh, _) => slope.iter_mut().zip(output).for_each(|(slope, y)| *slope *= 1.0 - y * y),
        // Branchless, so that it vectorises.
        _ => slope.iter_mut().zip(output).for_each(|(slope, y)| *slope = if *y > 0.0 { *slope } else { 0.0 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Targets;

    fn data(targets: Targets, loss: Loss) -> Dataset {
        let rows = 11;
        Dataset {
            path: "made.csv".into(),
            columns: (0..5).map(|at| format!("x{at}")).collect(),
            features: (0..rows * 5).map(|at| symmetric(99, at)).collect(),
            targets,
            classes: Vec::new(),
            training: (0..rows as u32).collect(),
            validation: Vec::new(),
            loss,
            scaling: Vec::new(),
        }
    }

    fn classes() -> Targets {
        Targets::Classes((0..11).map(|at| at % 3).collect())
    }

    fn total(model: &mut Mlp, data: &Dataset, rows: &[u32]) -> f64 {
        model.evaluate(data, rows).loss
    }

    #[test]
    fn gradients_match_finite_differences() {
        let values = || Targets::Values((0..11).map(|at| (at % 2) as f32).collect());
        let cases = [
            (vec![5, 3], Loss::CrossEntropy, classes()),
            (vec![5, 7, 3], Loss::CrossEntropy, classes()),
            (vec![5, 6, 4, 1], Loss::Mse, values()),
            (vec![5, 6, 1], Loss::Bce, values()),
            (vec![5, 6, 1], Loss::Mae, values()),
        ];
        for (widths, loss, targets) in cases {
            for activation in [Activation::Relu, Activation::Tanh, Activation::Gelu] {
                let data = data(targets.clone(), loss);
                let mut model = Mlp::new(&widths, activation, loss, 4);
                let rows: Vec<u32> = (0..11).collect();
                let mut gradient = vec![f32::NAN; model.parameters().len()];
                let sum = model.forward_backward(&data, &rows, 0.5, &mut gradient, Write::Set);
                assert!((sum - total(&mut model, &data, &rows)).abs() < 1e-5);
                let mut off = 0;
                for (at, &slope) in gradient.iter().enumerate() {
                    const STEP: f32 = 2e-3;
                    let middle = model.parameters()[at];
                    model.parameters_mut()[at] = middle + STEP;
                    let up = total(&mut model, &data, &rows);
                    model.parameters_mut()[at] = middle - STEP;
                    let down = total(&mut model, &data, &rows);
                    model.parameters_mut()[at] = middle;
                    let difference = 0.5 * (up - down) / (2.0 * f64::from(STEP));
                    let error = (difference - f64::from(slope)).abs();
                    off += usize::from(error > 2e-3 * difference.abs().max(0.2));
                }
                // A step across a kink (relu, mae) shows as a difference that no slope has.
                let kinks = if activation == Activation::Relu || loss == Loss::Mae { 3 } else { 0 };
                assert!(off <= kinks, "{widths:?} {activation:?} {loss:?}: {off} of {}", gradient.len());
            }
        }
    }

    #[test]
    fn parts_of_a_batch_add_up() {
        let data = data(classes(), Loss::CrossEntropy);
        let mut model = Mlp::new(&[5, 8, 3], Activation::Relu, Loss::CrossEntropy, 1);
        let len = model.parameters().len();
        let (mut whole, mut parts) = (vec![0.0; len], vec![7.0; len]);
        let rows: Vec<u32> = (0..11).collect();
        let all = model.forward_backward(&data, &rows, 1.0, &mut whole, Write::Set);
        let mut sum = model.forward_backward(&data, &[], 1.0, &mut parts, Write::Set);
        sum += model.forward_backward(&data, &rows[..4], 1.0, &mut parts, Write::Add);
        sum += model.forward_backward(&data, &[], 1.0, &mut parts, Write::Add);
        sum += model.forward_backward(&data, &rows[4..], 1.0, &mut parts, Write::Add);
        assert!((all - sum).abs() < 1e-5 * all);
        for (whole, parts) in whole.iter().zip(&parts) {
            assert!((whole - parts).abs() < 1e-5 * whole.abs().max(1.0), "{whole} {parts}");
        }
    }

    #[test]
    fn tensors_cover_the_parameters() {
        let model = Mlp::new(&[5, 8, 3], Activation::Relu, Loss::CrossEntropy, 1);
        let names: Vec<&str> = model.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["0.weight", "0.bias", "2.weight", "2.bias"]);
        let mut end = 0;
        for tensor in model.tensors() {
            assert_eq!(tensor.range.start, end);
            assert_eq!(tensor.range.len(), tensor.shape.iter().product::<usize>());
            end = tensor.range.end;
        }
        assert_eq!(end, model.parameters().len());
        assert!(model.parameters().iter().all(|p| p.abs() <= 1.0 / 5f32.sqrt() && p.is_finite()));
    }
}
