use super::*;

#[test]
fn weights_fade_the_oldest() {
    assert_eq!(weights(24).collect::<Vec<f64>>(), [1.0; 24]);
    let faded: Vec<f64> = weights(28).collect();
    let expected = [1.0 / 28.0, (1.0 + 1.0 / 28.0) / 2.0, 1.0];
    assert!(faded.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15), "{faded:?}");
    assert_eq!(faded[3..], [1.0; 25]);
}
