use super::*;
use std::fmt::Write as _;

const CSV: fn(&str) -> DataSpec = |target| DataSpec::Csv {
    path: "data.csv".to_owned(),
    target: target.to_owned(),
    validation: None,
    normalize: false,
};

fn read_as(bytes: &[u8], spec: &DataSpec, loss: Option<Loss>) -> Result<Dataset, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("data.csv"), bytes).unwrap();
    Dataset::read(spec, loss, folder.path(), 1).map_err(|error| error.to_string())
}

fn read(text: &str) -> Result<Dataset, String> {
    read_as(text.as_bytes(), &CSV("y"), None)
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    assert_eq!(read(text).unwrap_err(), expected);
}

#[track_caller]
fn refused_with(text: &str, loss: Loss, expected: &str) {
    assert_eq!(read_as(text.as_bytes(), &CSV("y"), Some(loss)).unwrap_err(), expected);
}

#[test]
fn reads_quoted_headers_in_any_order() {
    let text = "\u{feff}\"a, b\",y,\" c d \",e\r\n1,x,2.5,-3e2\r\n4,z,5, 6 \r\n";
    let data = read(text).unwrap();
    assert_eq!(data.columns, ["a, b", "c d", "e"]);
    assert_eq!(data.features, [1.0, 2.5, -300.0, 4.0, 5.0, 6.0]);
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
    assert_eq!(read_as(text.as_bytes(), &CSV("y"), Some(Loss::CrossEntropy)).unwrap().classes.len(), 300);
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
        assert_eq!(read_as(bytes, &CSV("y"), None).unwrap_err(), expected);
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
        "data.csv, line 3, column `y`: `cat` is text, not a number; encode it as a number or remove the column",
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
    let error = Dataset::read(&CSV("y"), None, Path::new("/no/such/folder"), 1).unwrap_err().to_string();
    assert!(error.starts_with("cannot read /no/such/folder/data.csv: No such file"), "{error}");
}

#[test]
fn a_fraction_is_held_out_by_the_seed() {
    let mut text = "a,y\n".to_owned();
    (0..100).for_each(|row| writeln!(text, "{row},{}", row % 2).unwrap());
    let spec = |fraction| DataSpec::Csv {
        path: "data.csv".to_owned(),
        target: "y".to_owned(),
        validation: Some(Validation::Fraction(fraction)),
        normalize: false,
    };
    let data = read_as(text.as_bytes(), &spec(0.25), None).unwrap();
    assert_eq!((data.training.len(), data.validation.len()), (75, 25));
    let mut all = [data.training.clone(), data.validation.clone()].concat();
    all.sort_unstable();
    assert_eq!(all, (0..100).collect::<Vec<_>>());
    assert!(data.validation.windows(2).any(|pair| pair[1] - pair[0] > 1), "not a block of neighbours");
    assert_eq!(read_as(text.as_bytes(), &spec(0.25), None).unwrap().validation, data.validation);
    assert_eq!(
        read_as(text.as_bytes(), &spec(0.001), None).unwrap_err(),
        "data.csv: `data.validation` is 0.001 of 100 rows, which leaves no held-out row"
    );
}

#[test]
fn normalisation_is_fitted_on_the_training_rows_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("data.csv"), "a,b,y\n1,7,0\n3,7,1\n").unwrap();
    std::fs::write(folder.path().join("other.csv"), "y,extra,b,a\n1,text,8,1000\n").unwrap();
    let spec = DataSpec::Csv {
        path: "data.csv".to_owned(),
        target: "y".to_owned(),
        validation: Some(Validation::File("other.csv".to_owned())),
        normalize: true,
    };
    let data = Dataset::read(&spec, None, folder.path(), 1).unwrap();
    assert_eq!(data.scaling, [(2.0, 1.0), (7.0, 1.0)]);
    assert_eq!(data.features, [-1.0, 0.0, 1.0, 0.0, 998.0, 1.0]);
    assert_eq!((data.training, data.validation), (vec![0, 1], vec![2]));
    assert_eq!(data.targets, Targets::Classes(vec![0, 1, 1]));

    let refused = |text: &str, expected: &str| {
        std::fs::write(folder.path().join("other.csv"), text).unwrap();
        let error = Dataset::read(&spec, None, folder.path(), 1).unwrap_err().to_string();
        assert_eq!(error, expected);
    };
    refused(
        "a,b,y\n1,2,0\n1,2,5\n",
        "other.csv, line 3, column `y`: the class `5` is in the validation part but not in the training part; add training rows of it or choose another `seed`",
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
    let spec = DataSpec::Csv {
        path: "data.csv".to_owned(),
        target: "y".to_owned(),
        validation: Some(Validation::File("other.csv".to_owned())),
        normalize: false,
    };
    let data = Dataset::read(&spec, None, folder.path(), 1).unwrap();
    assert_eq!(data.targets, Targets::Classes(vec![0, 1, 0]));
}

#[test]
fn the_fingerprint_sees_every_part() {
    let base = read("a,b,y\n1,2,x\n3,4,z\n").unwrap();
    assert_eq!(base.fingerprint(), read("a,b,y\n1,2.0,x\n3,4,z\n").unwrap().fingerprint());
    for other in
        ["a,b,y\n1,2,x\n3,5,z\n", "a,c,y\n1,2,x\n3,4,z\n", "a,b,y\n1,2,z\n3,4,x\n", "a,b,y\n1,2,x\n3,4,w\n"]
    {
        assert_ne!(base.fingerprint(), read(other).unwrap().fingerprint(), "{other}");
    }
}
