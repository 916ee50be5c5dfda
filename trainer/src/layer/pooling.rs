//! Pooling: of each window of an image its largest value, channel by channel.

use super::wide::wide;

/// Windows side by side over channel-last images; what is left of the image beside the last whole window is passed over.
#[derive(Debug)]
pub(crate) struct Pooling {
    side: usize,
    /// Of the image, in places.
    width: usize,
    channels: usize,
    /// From the first value of a window to that of each of its places.
    offsets: Vec<u32>,
}

impl Pooling {
    pub(crate) fn new(width: usize, channels: usize, side: usize) -> Pooling {
        let offset = |place: usize| ((place / side * width + place % side) * channels) as u32;
        Pooling { side, width, channels, offsets: (0..side * side).map(offset).collect() }
    }

    /// The largest value of each window, and how far from the window's first value it lies.
    pub(crate) fn forward(&self, map: &[f32], outputs: &mut [f32], places: &mut [u32]) {
        let cells = outputs.chunks_exact_mut(self.channels).zip(places.chunks_exact_mut(self.channels));
        for ((output, places), corner) in cells.zip(self.corners()) {
            output.copy_from_slice(&map[corner..corner + self.channels]);
            places.fill(0);
            for &offset in &self.offsets[1..] {
                let start = corner + offset as usize;
                keep_larger(&map[start..start + self.channels], offset, output, places);
            }
        }
    }

    /// The values at the places that pooling took.
    pub(crate) fn pick(&self, map: &[f32], places: &[u32], picked: &mut [f32]) {
        let cells = picked.chunks_exact_mut(self.channels).zip(places.chunks_exact(self.channels));
        for ((picked, places), corner) in cells.zip(self.corners()) {
            for (channel, (picked, place)) in picked.iter_mut().zip(places).enumerate() {
                *picked = map[corner + channel + *place as usize];
            }
        }
    }

    /// Puts the gradient of each output, times the slope of the activation, where the output came from, and 0 elsewhere.
    /// Without `slopes` the activation was relu, whose slope the outputs tell.
    pub(crate) fn backward(
        &self,
        gradient: &[f32],
        outputs: &[f32],
        slopes: &[f32],
        places: &[u32],
        map: &mut [f32],
    ) {
        map.fill(0.0);
        let mut at = 0;
        for corner in self.corners().take(gradient.len() / self.channels) {
            for channel in 0..self.channels {
                let factor = match slopes.get(at) {
                    Some(slope) => *slope,
                    None => f32::from(u8::from(outputs[at] > 0.0)),
                };
                map[corner + channel + places[at] as usize] = gradient[at] * factor;
                at += 1;
            }
        }
    }

    /// Where each window begins.
    fn corners(&self) -> impl Iterator<Item = usize> {
        let across = self.width / self.side;
        (0..).flat_map(move |y| (0..across).map(move |x| (y * self.width + x) * self.side * self.channels))
    }
}

wide! {
    /// Takes what is larger, and NaN, which stays.
    fn keep_larger(from: &[f32], offset: u32, output: &mut [f32], places: &mut [u32]) {
        for ((from, output), place) in from.iter().zip(output).zip(places) {
            let take = *from > *output || from.is_nan();
            *output = if take { *from } else { *output };
            *place = if take { offset } else { *place };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_give_their_largest_and_take_its_gradient_back() {
        // Two channels of a 5 by 4 image: the fifth column belongs to no window.
        let mut map = vec![0.0f32; 40];
        map.iter_mut().enumerate().for_each(|(at, value)| *value = ((at * 7) % 40) as f32);
        let pooling = Pooling::new(5, 2, 2);
        let (mut outputs, mut places) = (vec![0.0; 8], vec![9; 8]);
        pooling.forward(&map, &mut outputs, &mut places);
        for (at, output) in outputs.iter().enumerate() {
            let (y, x, channel) = (at / 4, at / 2 % 2, at % 2);
            let window = (0..4).map(|w| map[((2 * y + w / 2) * 5 + 2 * x + w % 2) * 2 + channel]);
            assert_eq!(*output, window.fold(f32::MIN, f32::max));
        }
        let mut picked = vec![0.0; 8];
        pooling.pick(&map, &places, &mut picked);
        assert_eq!(picked, outputs);
        let mut back = vec![7.0; 40];
        pooling.backward(&[1.0; 8], &outputs, &[], &places, &mut back);
        assert_eq!(back.iter().sum::<f32>(), outputs.iter().filter(|output| **output > 0.0).count() as f32);
        assert!(back.iter().zip(&map).all(|(back, value)| *back == 0.0 || outputs.contains(value)));
    }

    #[test]
    fn nan_is_the_largest() {
        let pooling = Pooling::new(2, 1, 2);
        for at in 0..4 {
            let mut map = [1.0, 2.0, 3.0, 4.0];
            map[at] = f32::NAN;
            let (mut output, mut place) = ([0.0], [0]);
            pooling.forward(&map, &mut output, &mut place);
            assert!(output[0].is_nan());
        }
    }
}
