//! Images: a folder with a folder of PNG or JPEG files for each class, or arrays.

use super::assemble::{Found, Part, Wanted};
use super::batch::Sample;
use super::error::DataError;
use super::source::{Places, Source};
use super::store::Store;
use super::target::Cells;
use super::{Dataset, array};
use phalanx_core::spec::{ArrayData, HeldOut, Loss};
use std::path::{Path, PathBuf};

/// Reads what `data` names.
pub(super) fn dataset(
    data: &ArrayData,
    loss: Option<Loss>,
    seed: u64,
    base: &Path,
) -> Result<Dataset, DataError> {
    let source = Source::new(base, &data.path);
    if !source.path.is_dir() {
        return array::npy(data, loss, seed, base);
    }
    if data.target.is_some() {
        return Err(
            source.fail("the classes of a folder of images are the names of its folders; leave `target` out")
        );
    }
    let mut images = Images::default();
    let training = images.read(source)?;
    let mut other =
        |held_out: &Option<HeldOut>| match held_out {
            Some(HeldOut::File(path)) => images.read(Source::new(base, path)).map(Some),
            Some(HeldOut::Files { path, .. }) => Err(Source::new(base, path)
                .fail("a folder of images has no file of targets; name the folder alone")),
            Some(HeldOut::Fraction(_)) | None => Ok(None),
        };
    let (validation, test) = (other(&data.validation)?, other(&data.test)?);
    let Images { shape, values, .. } = images;
    let store = Store::Bytes { width: shape.iter().product(), values };
    let wanted = Wanted {
        held_out: [data.validation.as_ref(), data.test.as_ref()],
        normalize: data.normalize,
        // Names of folders are classes, also where they look like numbers.
        loss: loss.or(Some(Loss::CrossEntropy)),
        seed,
    };
    let (columns, vocabulary) = (Vec::new(), Vec::new());
    Found { sample: Sample::Image(shape), columns, vocabulary, store, training, validation, test }
        .assemble(&wanted)
}

/// Images of one size, channel-first.
#[derive(Default)]
struct Images {
    shape: [usize; 3],
    values: Vec<u8>,
    /// The image that set the size.
    first: String,
}

impl Images {
    /// Takes all images below a folder, classes and files in the order of their names.
    fn read(&mut self, source: Source) -> Result<Part, DataError> {
        let (mut targets, mut names) = (Cells::default(), Vec::new());
        for class in entries(&source, &source.path)? {
            if !class.is_dir() {
                continue;
            }
            let label = class.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for file in entries(&source, &class)? {
                let extension = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
                if !matches!(extension.as_str(), "png" | "jpg" | "jpeg") {
                    continue;
                }
                let name = format!("{label}/{}", file.file_name().unwrap_or_default().to_string_lossy());
                let fail = |problem: String| source.fail(format!("{name}: {problem}"));
                let bytes = std::fs::read(&file).map_err(|error| fail(error.to_string()))?;
                let image = if extension == "png" { decode_png(&bytes) } else { decode_jpeg(&bytes) };
                self.take(
                    &name,
                    &image.map_err(|problem| fail(format!("not readable as an image: {problem}")))?,
                )
                .map_err(fail)?;
                targets.push(&label);
                names.push(name);
            }
        }
        if names.is_empty() {
            return Err(source
                .fail("there is no folder with PNG or JPEG files in it; each class is a folder of its own"));
        }
        Ok(Part { source, targets, places: Places::Files(names) })
    }

    fn take(&mut self, name: &str, image: &Image) -> Result<(), String> {
        let Image { channels, height, width, .. } = *image;
        if self.first.is_empty() {
            self.shape = [channels, height, width];
            name.clone_into(&mut self.first);
        }
        if self.shape != [channels, height, width] {
            let [c, h, w] = self.shape;
            return Err(format!(
                "the image has {channels} channels of {width} × {height}, and {} has {c} of {w} × {h}; bring all to one size",
                self.first
            ));
        }
        for channel in 0..channels {
            let places = image.pixels.chunks_exact(image.step);
            self.values.extend(places.map(|pixel| pixel[channel]));
        }
        Ok(())
    }
}

fn entries(source: &Source, folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        paths.sort_unstable();
        Ok(paths)
    };
    read().map_err(|error| source.unreadable(error))
}

/// Pixels row by row, `step` bytes each, of which the first `channels` count: what is transparent is not seen.
struct Image {
    channels: usize,
    height: usize,
    width: usize,
    step: usize,
    pixels: Vec<u8>,
}

fn decode_png(bytes: &[u8]) -> Result<Image, String> {
    let mut decoder = png::Decoder::new(std::io::Cursor::new(bytes));
    // Palettes and depths other than eight bits become eight bits a channel.
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(|error| error.to_string())?;
    let size = reader.output_buffer_size().ok_or("it is too large")?;
    let mut pixels = vec![0; size];
    let info = reader.next_frame(&mut pixels).map_err(|error| error.to_string())?;
    pixels.truncate(info.buffer_size());
    let step = info.color_type.samples();
    let channels = if step <= 2 { 1 } else { 3 };
    Ok(Image { channels, height: info.height as usize, width: info.width as usize, step, pixels })
}

fn decode_jpeg(bytes: &[u8]) -> Result<Image, String> {
    use zune_jpeg::JpegDecoder;
    use zune_jpeg::zune_core::bytestream::ZCursor;
    use zune_jpeg::zune_core::colorspace::ColorSpace;
    use zune_jpeg::zune_core::options::DecoderOptions;
    let mut decoder = JpegDecoder::new(ZCursor::new(bytes));
    decoder.decode_headers().map_err(|error| error.to_string())?;
    let gray = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let (colors, channels) = if gray { (ColorSpace::Luma, 1) } else { (ColorSpace::RGB, 3) };
    decoder.set_options(DecoderOptions::default().jpeg_set_out_colorspace(colors));
    let pixels = decoder.decode().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions().ok_or("it has no size")?;
    Ok(Image { channels, height, width, step: channels, pixels })
}
