//! A convolution with what follows it: norm, activation, pooling.
//!
//! Each image goes through all of them while it is in the cache. A convolution is a product of its patches, laid out
//! beside one another (Chellapilla et al. 2006), with the filters; behind the first layer images lie channel-last, so
//! that a row of a patch is one piece of memory. Of a pooled window only the place of its largest value and the slope of
//! the activation there are kept: nothing else is needed on the way back.

use super::activation::{activate, add_bias, add_column_sums};
use super::fit;
use super::norm::GroupNorm;
use super::parameters::{Initial, Parameters};
use super::pooling::Pooling;
use super::product::{Hands, View, product_into};
use crate::model::Write;
use phalanx_core::spec::Activation;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Images whose gradients are summed before they join those of others: fixed, so that no bit depends on the number of
/// threads.
const IMAGES_AT_ONCE: usize = 8;

/// An image's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plane {
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Plane {
    pub(crate) fn places(&self) -> usize {
        self.height * self.width
    }

    pub(crate) fn len(&self) -> usize {
        self.places() * self.channels
    }
}

/// How an image's values follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// As data has them: all of one channel, then the next. No gradient goes back through such an input.
    ChannelFirst,
    /// As convolutions leave them: all channels of one place, then the next place.
    ChannelLast,
}

#[derive(Debug)]
pub(crate) struct Convolution {
    input: Plane,
    order: Order,
    /// The size between convolution and pooling.
    map: Plane,
    pub(crate) output: Plane,
    kernel: usize,
    pooling: Pooling,
    activation: Activation,
    norm: Option<GroupNorm>,
    weight: Range<usize>,
    bias: Range<usize>,
    kept: Kept,
    /// Gradients of the parameters, of a few images each.
    parts: Vec<f32>,
}

/// What the way back needs of the way forward, all images one after the other.
#[derive(Debug, Default)]
struct Kept {
    /// The filters in the order of the patches.
    filters: Vec<f32>,
    outputs: Vec<f32>,
    /// Where in its window each output came from.
    places: Vec<u32>,
    /// The slopes of gelu and tanh there.
    slopes: Vec<f32>,
    plain: Vec<f32>,
    scales: Vec<f32>,
}

/// One image's share of it.
struct Image<'a> {
    outputs: &'a mut [f32],
    places: &'a mut [u32],
    slopes: &'a mut [f32],
    plain: &'a mut [f32],
    scales: &'a mut [f32],
}

/// What one image needs for a moment.
#[derive(Default)]
struct Scratch {
    patches: Vec<f32>,
    map: Vec<f32>,
    slopes: Vec<f32>,
    pulled: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What a convolution is made of, beside its input.
pub(crate) struct Filters {
    pub(crate) channels: usize,
    pub(crate) kernel: usize,
    pub(crate) pool: usize,
    pub(crate) activation: Activation,
    pub(crate) norm: bool,
}

impl Convolution {
    /// Adds its parameters under the names of an `nn.Sequential`'s modules from `module` on, drawn as PyTorch draws those
    /// of a `Conv2d`.
    pub(crate) fn new(
        parameters: &mut Parameters,
        module: usize,
        input: Plane,
        order: Order,
        filters: &Filters,
    ) -> Convolution {
        let Filters { channels, kernel, pool, activation, norm } = *filters;
        let initial = Initial::Uniform(1.0 / ((input.channels * kernel * kernel) as f32).sqrt());
        let shape = [channels, input.channels, kernel, kernel];
        Convolution {
            input,
            order,
            map: Plane { channels, ..input },
            output: Plane { channels, height: input.height / pool, width: input.width / pool },
            kernel,
            pooling: Pooling::new(input.width, channels, pool),
            activation,
            weight: parameters.add(format!("{module}.weight"), &shape, initial),
            bias: parameters.add(format!("{module}.bias"), &[channels], initial),
            norm: norm.then(|| GroupNorm::new(parameters, &(module + 1).to_string(), channels)),
            kept: Kept::default(),
            parts: Vec::new(),
        }
    }

    /// What the last pass gave, channel-last.
    pub(crate) fn outputs(&self) -> &[f32] {
        &self.kept.outputs
    }

    /// Values of a patch.
    fn patch(&self) -> usize {
        self.input.channels * self.kernel * self.kernel
    }

    /// All images of `input` through the layer.
    pub(crate) fn forward(&mut self, parameters: &[f32], input: &[f32]) {
        let images = input.len() / self.input.len();
        let mut kept = std::mem::take(&mut self.kept);
        self.pack(&parameters[self.weight.clone()], &mut kept.filters);
        let (outputs, groups) = (self.output.len(), self.norm.as_ref().map_or(0, GroupNorm::groups));
        kept.places.resize(images * outputs, 0);
        fit(&mut kept.outputs, images * outputs);
        let slopes = if self.activation == Activation::Relu { 0 } else { outputs };
        let plain = if groups > 0 { self.map.len() } else { 0 };
        fit(&mut kept.slopes, images * slopes);
        fit(&mut kept.plain, images * plain);
        fit(&mut kept.scales, images * groups);
        let shares = kept.outputs.par_chunks_mut(outputs).zip(kept.places.par_chunks_mut(outputs));
        let shares = shares
            .zip(pieces(&mut kept.slopes, slopes, images))
            .zip(pieces(&mut kept.plain, plain, images))
            .zip(pieces(&mut kept.scales, groups, images))
            .map(|((((outputs, places), slopes), plain), scales)| Image {
                outputs,
                places,
                slopes,
                plain,
                scales,
            });
        let filters = &kept.filters;
        input.par_chunks(self.input.len()).zip(shares).for_each(|(input, image)| {
            SCRATCH.with_borrow_mut(|scratch| self.image_forward(parameters, filters, input, image, scratch));
        });
        self.kept = kept;
    }

    fn image_forward(
        &self,
        parameters: &[f32],
        filters: &[f32],
        input: &[f32],
        image: Image<'_>,
        scratch: &mut Scratch,
    ) {
        let channels = self.map.channels;
        let patches = self.patches(input, &mut scratch.patches);
        let map = fit(&mut scratch.map, self.map.len());
        let filters = View::rows(filters, self.patch()).t();
        product_into(map, channels, patches, filters, 1.0, Write::Set, Hands::One);
        let bias = &parameters[self.bias.clone()];
        let slopes = match self.activation {
            Activation::Relu => &mut [],
            Activation::Gelu | Activation::Tanh => fit(&mut scratch.slopes, self.map.len()),
        };
        match &self.norm {
            None => activate(self.activation, map, bias, slopes),
            Some(norm) => {
                add_bias(map, bias);
                norm.forward(parameters, map, image.plain, image.scales);
                let none = fit(&mut scratch.pulled, channels);
                none.fill(0.0);
                activate(self.activation, map, none, slopes);
            }
        }
        self.pooling.forward(map, image.outputs, image.places);
        if !image.slopes.is_empty() {
            self.pooling.pick(slopes, image.places, image.slopes);
        }
    }

    /// The gradient of the parameters from `slope`, that of the outputs, and of the input if `into` wants it.
    /// The place of its first parameter.
    pub(crate) fn first(&self) -> usize {
        self.weight.start
    }

    pub(crate) fn backward(
        &mut self,
        parameters: &[f32],
        input: &[f32],
        slope: &[f32],
        gradient: &mut [f32],
        write: Write,
        into: Option<&mut [f32]>,
    ) {
        let mut parts = std::mem::take(&mut self.parts);
        let (images, filters) = (input.len() / self.input.len(), self.kept.filters.len());
        // Filters, bias, and the norm's weight and bias.
        let part = filters + 3 * self.map.channels;
        let groups = images.div_ceil(IMAGES_AT_ONCE);
        fit(&mut parts, groups * part).fill(0.0);
        let into_len = if into.is_some() { self.input.len() } else { 0 };
        let into = into.unwrap_or(&mut []);
        let work = input
            .par_chunks(IMAGES_AT_ONCE * self.input.len())
            .zip(slope.par_chunks(IMAGES_AT_ONCE * self.output.len()))
            .zip(parts.par_chunks_mut(part))
            .zip(pieces(into, IMAGES_AT_ONCE * into_len, groups));
        work.enumerate().for_each(|(group, (((inputs, slopes), part), into))| {
            let images = inputs.chunks_exact(self.input.len()).zip(slopes.chunks_exact(self.output.len()));
            for (at, (input, slope)) in images.enumerate() {
                let image = group * IMAGES_AT_ONCE + at;
                let into = &mut into[at * into_len..(at + 1) * into_len];
                SCRATCH.with_borrow_mut(|scratch| {
                    self.image_backward(parameters, image, input, slope, part, into, scratch);
                });
            }
        });
        let (sum, others) = parts.split_at_mut(part);
        others.chunks_exact(part).for_each(|other| super::activation::add(sum, other));
        self.deliver(sum, gradient, write);
        self.parts = parts;
    }

    #[allow(clippy::too_many_arguments)]
    fn image_backward(
        &self,
        parameters: &[f32],
        image: usize,
        input: &[f32],
        slope: &[f32],
        part: &mut [f32],
        into: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (kept, channels, len) = (&self.kept, self.map.channels, self.output.len());
        let own = image * len..(image + 1) * len;
        let map = fit(&mut scratch.map, self.map.len());
        let (outputs, places) = (&kept.outputs[own.clone()], &kept.places[own.clone()]);
        let slopes = kept.slopes.get(own).unwrap_or(&[]);
        self.pooling.backward(slope, outputs, slopes, places, map);
        let (filters, rest) = part.split_at_mut(kept.filters.len());
        let (bias, norm_part) = rest.split_at_mut(channels);
        if let Some(norm) = &self.norm {
            let (len, groups) = (self.map.len(), norm.groups());
            let plain = &kept.plain[image * len..(image + 1) * len];
            let scales = &kept.scales[image * groups..(image + 1) * groups];
            let (weight, norm_bias) = norm_part.split_at_mut(channels);
            norm.backward(parameters, map, plain, scales, weight, norm_bias);
        }
        add_column_sums(bias, map);
        let patches = self.patches(input, &mut scratch.patches);
        let slopes = View::rows(map, channels);
        product_into(filters, self.patch(), slopes.t(), patches, 1.0, Write::Add, Hands::One);
        if !into.is_empty() {
            let pulled = fit(&mut scratch.pulled, self.map.places() * self.patch());
            let filters = View::rows(&kept.filters, self.patch());
            product_into(pulled, self.patch(), slopes, filters, 1.0, Write::Set, Hands::One);
            self.gather(pulled, into);
        }
    }

    /// The filters in the order of the patches' values.
    fn pack(&self, weight: &[f32], filters: &mut Vec<f32>) {
        fit(filters, weight.len());
        match self.order {
            Order::ChannelFirst => filters.copy_from_slice(weight),
            Order::ChannelLast => {
                self.each_weight(|at, packed| filters[packed] = weight[at]);
            }
        }
    }

    /// Calls `f` with the place of every weight in the parameters and in the packed filters.
    fn each_weight(&self, mut f: impl FnMut(usize, usize)) {
        let (window, channels) = (self.kernel * self.kernel, self.input.channels);
        for filter in 0..self.map.channels {
            for channel in 0..channels {
                for place in 0..window {
                    let at = (filter * channels + channel) * window + place;
                    f(at, filter * self.patch() + place * channels + channel);
                }
            }
        }
    }

    /// Puts the summed gradient where it belongs.
    fn deliver(&self, sum: &[f32], gradient: &mut [f32], write: Write) {
        let (filters, rest) = sum.split_at(self.weight.len());
        let channels = self.map.channels;
        if write == Write::Set {
            gradient[self.weight.clone()].fill(0.0);
            gradient[self.bias.clone()].fill(0.0);
        }
        let weight = &mut gradient[self.weight.clone()];
        match self.order {
            Order::ChannelFirst => super::activation::add(weight, filters),
            Order::ChannelLast => self.each_weight(|at, packed| weight[at] += filters[packed]),
        }
        super::activation::add(&mut gradient[self.bias.clone()], &rest[..channels]);
        if let Some(norm) = &self.norm {
            for (range, values) in
                [(&norm.weight, &rest[channels..2 * channels]), (&norm.bias, &rest[2 * channels..])]
            {
                let gradient = &mut gradient[range.clone()];
                if write == Write::Set {
                    gradient.fill(0.0);
                }
                super::activation::add(gradient, values);
            }
        }
    }

    /// The patch around every place of an image as a matrix with a row for each.
    fn patches<'a>(&self, input: &[f32], patches: &'a mut Vec<f32>) -> View<'a> {
        let (places, patch) = (self.map.places(), self.patch());
        let patches = fit(patches, places * patch);
        match self.order {
            Order::ChannelFirst => {
                self.shifted_planes(input, patches);
                View::rows(patches, places).t()
            }
            Order::ChannelLast => {
                self.each_patch_row(|patch_row, source, len| match source {
                    Some(source) => {
                        patches[patch_row..patch_row + len].copy_from_slice(&input[source..source + len])
                    }
                    None => patches[patch_row..patch_row + len].fill(0.0),
                });
                View::rows(patches, patch)
            }
        }
    }

    /// Every channel shifted by every place of the window, one after the other.
    fn shifted_planes(&self, input: &[f32], patches: &mut [f32]) {
        let (height, width, reach) = (self.input.height, self.input.width, self.kernel / 2);
        let mut rows = patches.chunks_exact_mut(width);
        for plane in input.chunks_exact(self.input.places()) {
            for dy in 0..self.kernel {
                for dx in 0..self.kernel {
                    for y in 0..height {
                        let Some(row) = rows.next() else { unreachable!("a row for every shift") };
                        let Some(from) = (y + dy).checked_sub(reach).filter(|from| *from < height) else {
                            row.fill(0.0);
                            continue;
                        };
                        let source = &plane[from * width..(from + 1) * width];
                        // Columns before and after those that the shifted image has.
                        let (before, after) =
                            (reach.saturating_sub(dx).min(width), dx.saturating_sub(reach).min(width));
                        row[..before].fill(0.0);
                        row[width - after..].fill(0.0);
                        if before + after < width {
                            row[before..width - after].copy_from_slice(&source[after..width - before]);
                        }
                    }
                }
            }
        }
    }

    /// Adds every value of the patches to the place of the image that it came from.
    fn gather(&self, patches: &[f32], into: &mut [f32]) {
        into.fill(0.0);
        self.each_patch_row(|patch_row, source, len| {
            if let Some(source) = source {
                let from = &patches[patch_row..patch_row + len];
                into[source..source + len].iter_mut().zip(from).for_each(|(to, from)| *to += from);
            }
        });
    }

    /// Calls `f` with each piece of memory that a row of a patch shares with a channel-last image: its place in the
    /// patches, in the image (none outside of it), and its length.
    #[inline(always)]
    fn each_patch_row(&self, mut f: impl FnMut(usize, Option<usize>, usize)) {
        let Plane { channels, height, width } = self.input;
        let (kernel, reach) = (self.kernel, self.kernel / 2);
        let mut at = 0;
        for y in 0..height {
            for x in 0..width {
                let (left, right) = (x.saturating_sub(reach), (x + reach + 1).min(width));
                let before = (left + reach - x) * channels;
                let len = (right - left) * channels;
                for dy in 0..kernel {
                    match (y + dy).checked_sub(reach).filter(|from| *from < height) {
                        None => f(at, None, kernel * channels),
                        Some(from) => {
                            if before > 0 {
                                f(at, None, before);
                            }
                            f(at + before, Some((from * width + left) * channels), len);
                            let after = kernel * channels - before - len;
                            if after > 0 {
                                f(at + before + len, None, after);
                            }
                        }
                    }
                    at += kernel * channels;
                }
            }
        }
    }
}

/// A buffer in pieces of `len` values, or as many empty pieces.
fn pieces(buffer: &mut [f32], len: usize, count: usize) -> rayon::vec::IntoIter<&mut [f32]> {
    let pieces: Vec<&mut [f32]> = match len {
        0 => (0..count).map(|_| &mut [][..]).collect(),
        len => buffer.chunks_mut(len).collect(),
    };
    pieces.into_par_iter()
}
