use super::*;
use phalanx_core::spec::{ArrayData, HeldOut, TableData, TextColumn, TextData, Tokenizer};
use std::fmt::Write as _;

fn csv(target: &str) -> TableData {
    TableData {
        path: "data.csv".to_owned(),
        target: target.to_owned(),
        validation: None,
        test: None,
        normalize: false,
        shape: None,
        text: None,
        memory_bytes: None,
    }
}

fn read_in(folder: &Path, spec: &DataSpec, loss: Option<Loss>) -> Result<Dataset, String> {
    Dataset::read(spec, loss, 1, folder, folder).map_err(|error| error.to_string())
}

fn read_as(bytes: &[u8], table: TableData, loss: Option<Loss>) -> Result<Dataset, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("data.csv"), bytes).unwrap();
    read_in(folder.path(), &DataSpec::Csv(table), loss)
}

/// Samples as a model sees them.
fn batch(data: &Dataset, rows: &[u32]) -> Batch {
    let mut batch = Batch::default();
    data.fill(rows, None, &mut batch).unwrap();
    batch
}

fn all_values(data: &Dataset) -> Vec<f32> {
    batch(data, &(0..data.targets.len() as u32).collect::<Vec<_>>()).values
}

fn read(text: &str) -> Result<Dataset, String> {
    read_as(text.as_bytes(), csv("y"), None)
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    assert_eq!(read(text).unwrap_err(), expected);
}

#[track_caller]
fn refused_with(text: &str, loss: Loss, expected: &str) {
    assert_eq!(read_as(text.as_bytes(), csv("y"), Some(loss)).unwrap_err(), expected);
}

#[test]
fn reads_quoted_headers_in_any_order() {
    let text = "\u{feff}\"a, b\",y,\" c d \",e\r\n1,x,2.5,-3e2\r\n4,z,5, 6 \r\n";
    let data = read(text).unwrap();
    assert_eq!(data.columns, ["a, b", "c d", "e"]);
    assert_eq!(all_values(&data), [1.0, 2.5, -300.0, 4.0, 5.0, 6.0]);
    assert_eq!(data.classes, ["x", "z"]);
    assert_eq!(data.targets, Targets::Classes(vec![0, 1]));
    assert_eq!(data.loss, Loss::CrossEntropy);
    assert!(data.validation.is_empty());
}

#[test]
fn integers_are_classes_in_their_order_and_fractions_are_numbers() {
    let data = read("a,y\n1,10\n2,9\n3,-1\n4,9.0\n").unwrap();
    assert_eq!(data.classes, ["-1", "9", "10"]);
    assert_eq!(data.targets, Targets::Classes(vec![2, 1, 0, 1]));
    let data = read("a,y\n1,10\n2,9.5\n").unwrap();
    assert_eq!(data.loss, Loss::Mse);
    assert_eq!(data.targets, Targets::Values(vec![10.0, 9.5]));
    // A price in whole numbers is no class.
    let mut text = "a,y\n".to_owned();
    (0..300).for_each(|row| writeln!(text, "1,{row}").unwrap());
    assert_eq!(read(&text).unwrap().loss, Loss::Mse);
    assert_eq!(read_as(text.as_bytes(), csv("y"), Some(Loss::CrossEntropy)).unwrap().classes.len(), 300);
}

#[test]
fn bad_cells_name_file_line_and_column() {
    refused(
        "a,b,y\n1,2,0\n1,,1\n",
        "data.csv, line 3, column `b`: the cell is empty; fill it in or remove the line",
    );
    refused(
        "a,b,y\n1,2,0\n1,two,1\n",
        "data.csv, line 3, column `b`: `two` is text, not a number; encode it as a number or remove the column",
    );
    for infinite in ["inf", "-inf", "Infinity", "1e39"] {
        refused(
            &format!("a,y\n{infinite},0\n1,1\n"),
            &format!(
                "data.csv, line 2, column `a`: `{infinite}` is infinite or too large for 32 bits; correct it or remove the line"
            ),
        );
    }
    let nan = "data.csv, line 3, column `a`: the cell is NaN; fill it in or remove the line";
    refused("a,y\n1,0\nNaN,1\n", nan);
    refused("a,y\n1,0\nnan,1\n", nan);
    refused(
        "a,y\n1,0\n2,\n",
        "data.csv, line 3, column `y`: the cell is empty; fill it in or remove the line",
    );
    refused(
        "a,y\n1,0\n2,nan\n",
        "data.csv, line 3, column `y`: the cell is NaN; fill it in or remove the line",
    );
}

#[test]
fn lines_are_those_of_the_file() {
    // A quoted line break and a blank line are lines of the file, though no rows.
    let text = "\"a\nb\",c,y\n1,2,0\n\n1,\"x\n\",1\n";
    refused(
        text,
        "data.csv, line 5, column `c`: `x` is text, not a number; encode it as a number or remove the column",
    );
    refused(
        "a,y\n1,0\n\n\n2\n",
        "data.csv, line 5: 1 cells where the header names 2 columns; column `y` has no cell",
    );
    refused(
        "a,y\r\n1,0\r\n\r\n2,,\r\n",
        "data.csv, line 4: 3 cells where the header names 2 columns; cell 3 comes after the last column `y`",
    );
}

#[test]
fn bad_headers_are_refused() {
    refused("", "data.csv: the file is empty; its first line must name the columns");
    refused("\n\n", "data.csv: the file is empty; its first line must name the columns");
    refused("a,y\n", "data.csv: the file has a header and no rows below it");
    refused(
        "a,b,a,y\n1,2,3,4\n",
        "data.csv, line 1: the column `a` is named twice; rename or remove one of them",
    );
    refused(
        "a,y,y\n1,2,3\n",
        "data.csv, line 1: the column `y` is named twice; rename or remove one of them",
    );
    refused("a,,y\n1,2,3\n", "data.csv, line 1: column 2 has no name; give it one or remove the column");
    refused(
        "a,b\n1,2\n",
        "data.csv, line 1: there is no column `y` (`data.target`); the columns are `a`, `b`",
    );
    refused("y\n1\n", "data.csv, line 1: the only column is the target `y`; there is nothing to learn from");
}

#[test]
fn bytes_that_are_no_utf8_have_a_line() {
    let refused = |bytes: &[u8], expected: &str| {
        assert_eq!(read_as(bytes, csv("y"), None).unwrap_err(), expected);
    };
    refused(
        b"a,y\n1,0\n\xff,1\n",
        "data.csv, line 3, column `a`: the cell is not UTF-8; save the file as UTF-8",
    );
    refused(
        b"a,y\n1,0\n2,\xe9\n",
        "data.csv, line 3, column `y`: the cell is not UTF-8; save the file as UTF-8",
    );
    refused(
        b"a,\xe9,y\n1,0,1\n",
        "data.csv, line 1: the name of column 2 is not UTF-8; save the file as UTF-8",
    );
}

#[test]
fn targets_must_suit_the_loss() {
    refused_with(
        "a,y\n1,0\n2,0.5\n",
        Loss::CrossEntropy,
        "data.csv, line 3, column `y`: `0.5` is a fraction, and cross-entropy needs classes (text or integers); use `loss = \"mse\"` or another target",
    );
    refused_with(
        "a,y\n1,0\n2,cat\n",
        Loss::Mse,
        "data.csv, line 3, column `y`: `cat` is text, and the loss is one of numbers; use `loss = \"cross-entropy\"` or another target",
    );
    refused_with(
        "a,y\n1,0\n2,2\n",
        Loss::Bce,
        "data.csv, line 3, column `y`: `2` is neither 0 nor 1, which `loss = \"bce\"` needs; use `loss = \"cross-entropy\"`",
    );
    refused(
        "a,y\n1,cat\n2,cat\n",
        "data.csv: the column `y` has only the class `cat`; there is nothing to tell apart",
    );
}

#[test]
fn a_missing_file_is_named() {
    let error = read_in(Path::new("/no/such/folder"), &DataSpec::Csv(csv("y")), None).unwrap_err();
    assert!(error.starts_with("cannot read /no/such/folder/data.csv: No such file"), "{error}");
}

#[test]
fn a_fraction_is_held_out_by_the_seed() {
    let mut text = "a,y\n".to_owned();
    (0..100).for_each(|row| writeln!(text, "{row},{}", row % 2).unwrap());
    let spec = |fraction| TableData { validation: Some(HeldOut::Fraction(fraction)), ..csv("y") };
    let data = read_as(text.as_bytes(), spec(0.25), None).unwrap();
    assert_eq!((data.training.len(), data.validation.len()), (75, 25));
    let mut all = [data.training.clone(), data.validation.clone()].concat();
    all.sort_unstable();
    assert_eq!(all, (0..100).collect::<Vec<_>>());
    assert!(data.validation.windows(2).any(|pair| pair[1] - pair[0] > 1), "not a block of neighbours");
    assert_eq!(read_as(text.as_bytes(), spec(0.25), None).unwrap().validation, data.validation);
    assert_eq!(
        read_as(text.as_bytes(), spec(0.001), None).unwrap_err(),
        "data.csv: `data.validation` is 0.001 of 100 rows, which leaves no held-out row"
    );
}

#[test]
fn normalisation_is_fitted_on_the_training_rows_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("data.csv"), "a,b,y\n1,7,0\n3,7,1\n").unwrap();
    std::fs::write(folder.path().join("other.csv"), "y,extra,b,a\n1,text,8,1000\n").unwrap();
    let other = Some(HeldOut::File("other.csv".to_owned()));
    let spec = DataSpec::Csv(TableData { validation: other, normalize: true, ..csv("y") });
    let data = read_in(folder.path(), &spec, None).unwrap();
    assert_eq!(data.scaling, [(2.0, 1.0), (7.0, 1.0)]);
    assert_eq!(all_values(&data), [-1.0, 0.0, 1.0, 0.0, 998.0, 1.0]);
    assert_eq!((data.training, data.validation), (vec![0, 1], vec![2]));
    assert_eq!(data.targets, Targets::Classes(vec![0, 1, 1]));

    let refused = |text: &str, expected: &str| {
        std::fs::write(folder.path().join("other.csv"), text).unwrap();
        let error = read_in(folder.path(), &spec, None).unwrap_err();
        assert_eq!(error, expected);
    };
    refused(
        "a,b,y\n1,2,0\n1,2,5\n",
        "other.csv, line 3, column `y`: the class `5` is held out but not in the training part; add training rows of it, or hold out others (where they are drawn, another `seed` does)",
    );
    refused(
        "a,y\n1,0\n",
        "other.csv, line 1: there is no column `b`, which the training file has; the columns are `a`, `y`",
    );
}

#[test]
fn a_validation_file_reads_as_its_training_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("data.csv"), "a,y\n1,7\n3,7b\n").unwrap();
    std::fs::write(folder.path().join("other.csv"), "a,y\n1,7\n").unwrap();
    let other = Some(HeldOut::File("other.csv".to_owned()));
    let spec = DataSpec::Csv(TableData { validation: other, normalize: false, ..csv("y") });
    let data = read_in(folder.path(), &spec, None).unwrap();
    assert_eq!(data.targets, Targets::Classes(vec![0, 1, 0]));
}

#[test]
fn the_fingerprint_sees_every_part() {
    let base = read("a,b,y\n1,2,x\n3,4,z\n").unwrap();
    assert_eq!(base.fingerprint().unwrap(), read("a,b,y\n1,2.0,x\n3,4,z\n").unwrap().fingerprint().unwrap());
    for other in
        ["a,b,y\n1,2,x\n3,5,z\n", "a,c,y\n1,2,x\n3,4,z\n", "a,b,y\n1,2,z\n3,4,x\n", "a,b,y\n1,2,x\n3,4,w\n"]
    {
        assert_ne!(base.fingerprint().unwrap(), read(other).unwrap().fingerprint().unwrap(), "{other}");
    }
}

#[test]
fn a_test_part_is_held_out_too() {
    let mut text = "a,y\n".to_owned();
    (0..100).for_each(|row| writeln!(text, "{row},{}", row % 2).unwrap());
    let (validation, test) = (Some(HeldOut::Fraction(0.2)), Some(HeldOut::Fraction(0.1)));
    let data = read_as(text.as_bytes(), TableData { validation, test, ..csv("y") }, None).unwrap();
    assert_eq!((data.training.len(), data.validation.len(), data.test.len()), (70, 20, 10));
    let mut all = [data.training, data.validation, data.test].concat();
    all.sort_unstable();
    assert_eq!(all, (0..100).collect::<Vec<_>>());
}

#[test]
fn what_is_too_much_for_memory_is_read_from_disk() {
    let mut text = "a,b,y\n".to_owned();
    (0..500).for_each(|row| writeln!(text, "{row},{},{}", row % 7, row % 2).unwrap());
    let table = |memory_bytes| TableData {
        normalize: true,
        validation: Some(HeldOut::Fraction(0.1)),
        memory_bytes,
        ..csv("y")
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("data.csv"), &text).unwrap();
    let inside = read_in(folder.path(), &DataSpec::Csv(table(None)), None).unwrap();
    let outside = read_in(folder.path(), &DataSpec::Csv(table(Some(1000))), None).unwrap();
    assert!(matches!(outside.store, Store::Disk { rows: 500, .. }));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the file has no name any more");
    assert_eq!(inside.scaling, outside.scaling);
    assert_eq!(all_values(&inside), all_values(&outside));
    let rows = [499, 3, 77];
    assert_eq!(batch(&inside, &rows), batch(&outside, &rows));
}

#[test]
fn a_row_may_be_an_image() {
    let text = "a,b,c,d,e,f,y\n1,2,3,4,5,6,0\n7,8,9,10,11,12,1\n";
    let data = read_as(text.as_bytes(), TableData { shape: Some([1, 2, 3]), ..csv("y") }, None).unwrap();
    assert_eq!(data.sample, Sample::Image([1, 2, 3]));
    let shape = Some([1, 2, 2]);
    assert_eq!(
        read_as(text.as_bytes(), TableData { shape, ..csv("y") }, None).unwrap_err(),
        "data.csv: `data.shape` is 1 × 2 × 2 = 4 values, and there are 6 columns beside the target"
    );
}

#[test]
fn a_column_of_text_becomes_tokens() {
    let text = "id,words,y\n1,abba,0\n2,\"c, a\",1\n3,b,0\n";
    let column =
        |column: &str| Some(TextColumn { column: column.to_owned(), tokenizer: Tokenizer::Char, context: 3 });
    let data = read_as(text.as_bytes(), TableData { text: column("words"), ..csv("y") }, None).unwrap();
    assert_eq!(data.vocabulary, [" ", ",", "a", "b", "c"]);
    assert_eq!(data.sample, Sample::Tokens { vocabulary: 5, context: 3 });
    let batch = batch(&data, &[2, 0]);
    assert_eq!((batch.tokens, batch.lengths), (vec![3, 0, 0, 2, 3, 3], vec![1, 3]));
    assert_eq!(batch.targets, Targets::Classes(vec![0, 0]));
    assert_eq!(
        read_as(text.as_bytes(), TableData { text: column("sentence"), ..csv("y") }, None).unwrap_err(),
        "data.csv, line 1: there is no column `sentence` (`data.text`); the columns are `id`, `words`, `y`"
    );
    assert_eq!(
        read_as(b"w,y\na,1\n,2\n", TableData { text: column("w"), ..csv("y") }, None).unwrap_err(),
        "data.csv, line 3, column `w`: the cell is empty; fill it in or remove the line"
    );
}

fn text(context: u32) -> TextData {
    TextData {
        path: "data.txt".to_owned(),
        validation: Some(HeldOut::Fraction(0.25)),
        test: None,
        tokenizer: Tokenizer::Char,
        context,
        stride: context,
    }
}

#[test]
fn a_text_is_cut_into_samples_and_its_end_is_held_out() {
    let folder = tempfile::tempdir().unwrap();
    let read = |bytes: &[u8], data: TextData| {
        std::fs::write(folder.path().join("data.txt"), bytes).unwrap();
        read_in(folder.path(), &DataSpec::Text(data), None)
    };
    let data = read(b"abcdabcdabcdefgh", text(3)).unwrap();
    assert_eq!(data.sample, Sample::Text { vocabulary: 8, context: 3 });
    assert_eq!((data.training.len(), data.validation.len(), data.outputs()), (3, 1, 8));
    let first = batch(&data, &[1, 3]);
    assert_eq!(first.tokens, [3, 0, 1, 4, 5, 6]);
    assert_eq!(first.targets, Targets::Classes(vec![0, 1, 2, 5, 6, 7]));
    let data = read(b"abcdabcdabcdefgh", TextData { stride: 1, ..text(3) }).unwrap();
    assert_eq!(data.training.len(), 9, "overlapping samples");
    assert_eq!(
        read(b"abcdabcdabcdefgh", text(4)).unwrap_err(),
        "data.txt: the validation part has 4 tokens, and a sample needs 5: `data.context` and the one that follows; make it smaller"
    );
    assert_eq!(
        read(b"ab\n\xff", text(1)).unwrap_err(),
        "data.txt, line 2: the text is not UTF-8; save the file as UTF-8"
    );
    assert_eq!(read(b"", text(1)).unwrap_err(), "data.txt: the file is empty");
    assert_eq!(
        read(b"aaaaaaaaaaaa", text(1)).unwrap_err(),
        "data.txt: the text has only one different token; there is nothing to tell apart"
    );
}

fn npy(descr: &str, shape: &str, values: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    header.extend(std::iter::repeat_n(' ', 63 - (header.len() + 10) % 64));
    header.push('\n');
    [&b"\x93NUMPY\x01\x00"[..], &(header.len() as u16).to_le_bytes(), header.as_bytes(), values].concat()
}

fn arrays() -> ArrayData {
    ArrayData {
        path: "x".to_owned(),
        target: Some("y".to_owned()),
        features: None,
        validation: None,
        test: None,
        normalize: false,
    }
}

#[test]
fn arrays_of_numpy_and_idx_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let read = |x: &[u8], y: &[u8]| {
        std::fs::write(folder.path().join("x"), x).unwrap();
        std::fs::write(folder.path().join("y"), y).unwrap();
        read_in(folder.path(), &DataSpec::Images(arrays()), None)
    };
    let floats: Vec<u8> = (0..8).flat_map(|value| (value as f64 * 0.5).to_le_bytes()).collect();
    let labels = npy("<i8", "(2,)", &[5i64.to_le_bytes(), (-3i64).to_le_bytes()].concat());
    let data = read(&npy("<f8", "(2, 2, 2)", &floats), &labels).unwrap();
    assert_eq!(
        (data.sample, &data.classes[..]),
        (Sample::Image([1, 2, 2]), &["-3".to_owned(), "5".to_owned()][..])
    );
    assert_eq!(all_values(&data), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]);
    assert_eq!(data.targets, Targets::Classes(vec![1, 0]));

    // Channels at the end come to the front.
    let pixels: Vec<u8> = (0..24).collect();
    let data = read(&npy("|u1", "(2, 2, 2, 3)", &pixels), &labels).unwrap();
    assert_eq!(data.sample, Sample::Image([3, 2, 2]));
    assert_eq!(all_values(&data)[..12], [0.0, 3.0, 6.0, 9.0, 1.0, 4.0, 7.0, 10.0, 2.0, 5.0, 8.0, 11.0]);

    let idx = [&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2][..], &[1, 2, 3, 4, 5, 6, 7, 255]].concat();
    let idx_labels = [&[0, 0, 8, 1, 0, 0, 0, 2][..], &[9, 4]].concat();
    let data = read(&idx, &idx_labels).unwrap();
    assert_eq!(data.sample, Sample::Image([1, 2, 2]));
    assert_eq!(all_values(&data), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 255.0]);
    assert_eq!(data.classes, ["4", "9"]);

    let refused = |x: &[u8], y: &[u8], expected: &str| assert_eq!(read(x, y).unwrap_err(), expected);
    refused(
        &idx[..20],
        &idx_labels,
        "x: the shape [2, 2, 2] needs 8 bytes of numbers, and the file has 4; it is cut short or damaged",
    );
    refused(
        b"\x1f\x8bgzip",
        &idx_labels,
        "x: the file is neither `.npy` nor IDX; unpack it if it is compressed",
    );
    refused(b"", &idx_labels, "x: the file is empty");
    refused(
        &idx,
        &labels[..labels.len() - 8],
        "y: the shape [2] needs 16 bytes of numbers, and the file has 8; it is cut short or damaged",
    );
    let three = npy("|u1", "(3,)", &[1, 2, 3]);
    refused(&idx, &three, "y: there are 3 targets and 2 samples in x");
    let nan = npy("<f4", "(2, 1)", &[1f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat());
    refused(&nan, &labels, "x, entry 2: the cell is NaN; fill it in or remove the line");
    refused(
        &npy("<c8", "(2,)", &[0; 16]),
        &labels,
        "x: the array's type is `<c8`; save it as float32, or as integers",
    );
}

#[test]
fn tensors_are_read() {
    use ::safetensors::tensor::{Dtype, TensorView};
    let folder = tempfile::tempdir().unwrap();
    let x: Vec<u8> = (0..6).flat_map(|value| (value as f32).to_le_bytes()).collect();
    let y: Vec<u8> = [0.5f32, 1.5, -1.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let views = [
        ("x", TensorView::new(Dtype::F32, vec![3, 2], &x).unwrap()),
        ("y", TensorView::new(Dtype::F32, vec![3], &y).unwrap()),
    ];
    std::fs::write(folder.path().join("x"), ::safetensors::serialize(views, None).unwrap()).unwrap();
    let read = |data: ArrayData| read_in(folder.path(), &DataSpec::Safetensors(data), None);
    let data = read(arrays()).unwrap();
    assert_eq!((data.sample, data.loss), (Sample::Features(2), Loss::Mse));
    assert_eq!(data.targets, Targets::Values(vec![0.5, 1.5, -1.0]));
    assert_eq!(all_values(&data), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let error = read(ArrayData { target: Some("z".to_owned()), ..arrays() }).unwrap_err();
    assert_eq!(error, "x: which tensor has the samples? The file has `x`, `y`; name one as `features`");
    let features = Some("x".to_owned());
    let error = read(ArrayData { target: Some("z".to_owned()), features, ..arrays() }).unwrap_err();
    assert_eq!(error, "x: there is no tensor `z` (`data.target`); there are `x`, `y`");
}

fn png(width: u32, height: u32, color: png::ColorType, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header().unwrap().write_image_data(pixels).unwrap();
    bytes
}

#[test]
fn a_folder_of_images_has_a_folder_for_each_class() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join("x").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let read = || read_in(folder.path(), &DataSpec::Images(ArrayData { target: None, ..arrays() }), None);
    write("cat/1.png", &png(2, 1, png::ColorType::Rgb, &[1, 2, 3, 4, 5, 6]));
    write("cat/notes.txt", b"not an image");
    write("dog/1.png", &png(2, 1, png::ColorType::Rgba, &[7, 8, 9, 255, 10, 11, 12, 0]));
    let data = read().unwrap();
    assert_eq!(
        (data.sample, &data.classes[..]),
        (Sample::Image([3, 1, 2]), &["cat".to_owned(), "dog".to_owned()][..])
    );
    assert_eq!(all_values(&data), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0, 7.0, 10.0, 8.0, 11.0, 9.0, 12.0]);
    write("dog/2.png", &png(1, 1, png::ColorType::Grayscale, &[1]));
    assert_eq!(
        read().unwrap_err(),
        "x: dog/2.png: the image has 1 channels of 1 × 1, and cat/1.png has 3 of 2 × 1; bring all to one size"
    );
    write("dog/2.png", b"nothing");
    assert!(read().unwrap_err().starts_with("x: dog/2.png: not readable as an image: "));
    std::fs::remove_dir_all(folder.path().join("x")).unwrap();
    write("readme.txt", b"");
    assert_eq!(
        read().unwrap_err(),
        "x: there is no folder with PNG or JPEG files in it; each class is a folder of its own"
    );
}

mod arrow {
    use super::*;
    use arrow_array::types::Int8Type;
    use arrow_array::{
        ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int64Array, RecordBatch, StringArray,
    };
    use arrow_ipc::CompressionType;
    use arrow_ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
    use std::sync::Arc;

    /// A number that may be missing, an integer, a flag and a text as a dictionary.
    fn batch(a: &[Option<f64>], b: &[i64], c: &[bool], y: &[Option<&str>]) -> RecordBatch {
        let columns: [(&str, ArrayRef, bool); 4] = [
            ("a", Arc::new(Float64Array::from(a.to_vec())), true),
            ("b", Arc::new(Int64Array::from(b.to_vec())), false),
            ("c", Arc::new(BooleanArray::from(c.to_vec())), false),
            ("y", Arc::new(y.iter().copied().collect::<DictionaryArray<Int8Type>>()), true),
        ];
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    }

    fn file(batches: &[RecordBatch]) -> Vec<u8> {
        let options =
            IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME)).unwrap();
        let schema = batches[0].schema();
        let mut writer = FileWriter::try_new_with_options(Vec::new(), &schema, options).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.into_inner().unwrap()
    }

    #[test]
    fn arrow_reads_as_the_same_csv_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.csv");
        let read = |bytes: &[u8], target: &str| {
            std::fs::write(&path, bytes).unwrap();
            read_in(folder.path(), &DataSpec::Arrow(csv(target)), None)
        };
        let values = [Some(0.5), Some(-1.0), Some(2.0)];
        let all = batch(&values, &[3, 4, 5], &[true, false, true], &[Some("x"), Some("z"), Some("x")]);
        let first = all.slice(0, 2);
        let whole = file(&[first.clone(), all.slice(2, 1)]);
        let data = read(&whole, "y").unwrap();
        let same = read_as(b"a,b,c,y\n0.5,3,1,x\n-1,4,0,z\n2,5,1,x\n", csv("y"), None).unwrap();
        assert_eq!(data.fingerprint().unwrap(), same.fingerprint().unwrap());
        assert_eq!((all_values(&data), data.targets), (all_values(&same), same.targets));

        let mut stream = StreamWriter::try_new(Vec::new(), &first.schema()).unwrap();
        stream.write(&first).unwrap();
        let stream = stream.into_inner().unwrap();
        let same = read_as(b"a,b,c,y\n0.5,3,1,x\n-1,4,0,z\n", csv("y"), None).unwrap();
        assert_eq!(all_values(&read(&stream, "y").unwrap()), all_values(&same));

        let missing = |a, y| file(&[batch(&[a], &[3], &[true], &[y])]);
        for (bytes, target, expected) in [
            (
                missing(None, Some("x")),
                "y",
                "row 1, column `a`: the cell is empty; fill it in or remove the line",
            ),
            (
                missing(Some(1.0), None),
                "y",
                "row 1, column `y`: the cell is empty; fill it in or remove the line",
            ),
            (
                whole.clone(),
                "b",
                "row 1, column `y`: `x` is text, not a number; encode it as a number or remove the column",
            ),
        ] {
            assert_eq!(read(&bytes, target).unwrap_err(), format!("data.csv, {expected}"));
        }
        let lists = arrow_array::ListArray::from_iter_primitive::<Int8Type, _, _>([Some([Some(1)])]);
        let columns: [(&str, ArrayRef); 2] =
            [("l", Arc::new(lists)), ("y", Arc::new(StringArray::from(vec!["x"])))];
        let lists = file(&[RecordBatch::try_from_iter(columns).unwrap()]);
        let error = read(&lists, "y").unwrap_err();
        assert!(error.starts_with("data.csv: column `l` is of the type List("), "{error}");
        for end in 0..whole.len() {
            // The end of a file says where its batches are; what is behind the footer's start is all or nothing.
            let error = read(&whole[..end], "y").unwrap_err();
            assert!(error.starts_with("data.csv: not readable as Arrow IPC: "), "{end}: {error}");
        }
    }
}

mod parquet {
    use super::*;
    use ::parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    /// A row group: its columns.
    type Group<'a> = (&'a [Option<f64>], &'a [i64], &'a [&'a str]);

    /// Row groups of a number that may be missing, an integer and a text.
    fn write(path: &Path, groups: &[Group<'_>]) {
        let schema = "message table { optional double a; required int64 b; required binary y (UTF8); }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let file = std::fs::File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, Default::default()).unwrap();
        for (a, b, y) in groups {
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<f64> = a.iter().flatten().copied().collect();
            let levels: Vec<i16> = a.iter().map(|value| i16::from(value.is_some())).collect();
            column.typed::<DoubleType>().write_batch(&values, Some(&levels), None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(b, None, None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let texts: Vec<ByteArray> = y.iter().map(|text| ByteArray::from(*text)).collect();
            column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
    }

    #[test]
    fn parquet_reads_as_the_same_csv_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.csv");
        let read = |target: &str| read_in(folder.path(), &DataSpec::Parquet(csv(target)), None);
        write(&path, &[(&[Some(0.5), Some(-1.0)], &[3, 4], &["x", "z"]), (&[Some(2.0)], &[5], &["x"])]);
        let data = read("y").unwrap();
        let same = read_as(b"a,b,y\n0.5,3,x\n-1,4,z\n2,5,x\n", csv("y"), None).unwrap();
        assert_eq!(data.fingerprint().unwrap(), same.fingerprint().unwrap());
        assert_eq!((all_values(&data), data.targets), (all_values(&same), same.targets));

        write(&path, &[(&[Some(0.5)], &[3], &["x"]), (&[None], &[5], &["z"])]);
        assert_eq!(
            read("y").unwrap_err(),
            "data.csv, row 2, column `a`: the cell is empty; fill it in or remove the line"
        );
        assert_eq!(
            read("b").unwrap_err(),
            "data.csv, row 1, column `y`: `x` is text, not a number; encode it as a number or remove the column"
        );
        assert_eq!(
            read("c").unwrap_err(),
            "data.csv: there is no column `c` (`data.target`); the columns are `a`, `b`, `y`"
        );
        std::fs::write(&path, b"PAR1").unwrap();
        assert!(read("y").unwrap_err().starts_with("data.csv: not readable as Parquet: "));
    }
}
