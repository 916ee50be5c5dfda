//! The functions and learning curves that tuners are compared on, with the check values that another language's
//! implementation has to match.

use phalanx_core::spec::{ParamValue, Params};
use std::f64::consts::{E, PI};

/// A function to minimise.
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its `[params]`.
    pub(crate) params: &'static str,
    /// Its value.
    pub(crate) value: fn(&Params) -> f64,
    /// Its least value.
    pub(crate) minimum: f64,
}

/// `[params]` of numbers in one interval.
macro_rules! numbers {
    ($low:literal to $high:literal: $($name:literal)+) => {
        concat!($($name, " = { kind = \"float\", low = ", $low, ", high = ", $high, " }\n"),+)
    };
}

/// All of them.
pub(crate) const FUNCTIONS: [Function; 6] = [
    Function {
        name: "branin",
        params: "x0 = { kind = \"float\", low = -5, high = 10 }\nx1 = { kind = \"float\", low = 0, high = 15 }\n",
        value: |params| branin(&floats(params)),
        minimum: 0.397887357729739,
    },
    Function {
        name: "hartmann6",
        params: numbers!("0" to "1": "x0" "x1" "x2" "x3" "x4" "x5"),
        value: |params| hartmann6(&floats(params)),
        minimum: -3.32236801141551,
    },
    Function {
        name: "rosenbrock10",
        params: numbers!("-5" to "10": "x0" "x1" "x2" "x3" "x4" "x5" "x6" "x7" "x8" "x9"),
        value: |params| rosenbrock(&floats(params)),
        minimum: 0.0,
    },
    Function {
        name: "rastrigin5",
        params: numbers!("-5.12" to "5.12": "x0" "x1" "x2" "x3" "x4"),
        value: |params| rastrigin(&floats(params)),
        minimum: 0.0,
    },
    Function {
        name: "ackley5",
        params: numbers!("-32.768" to "32.768": "x0" "x1" "x2" "x3" "x4"),
        value: |params| ackley(&floats(params)),
        minimum: 0.0,
    },
    Function {
        name: "mixed7",
        params: "lr = { kind = \"float\", low = 1e-5, high = 1, log = true }\n\
                 wd = { kind = \"float\", low = 1e-6, high = 1e-1, log = true }\n\
                 opt = { kind = \"choice\", values = [\"sgd\", \"adam\", \"rmsprop\", \"lion\"] }\n\
                 act = { kind = \"choice\", values = [\"relu\", \"gelu\", \"tanh\"] }\n\
                 layers = { kind = \"int\", low = 1, high = 8 }\n\
                 width = { kind = \"int\", low = 16, high = 1024, log = true }\n\
                 dropout = { kind = \"float\", low = 0, high = 0.9 }\n",
        value: mixed7,
        minimum: 0.0,
    },
];

/// The two whose minimum is the centre of the box, where `auto` begins: the same with the box moved, so that neither it
/// nor a local minimum is at the centre.
pub(crate) const OFF_CENTRE: [Function; 2] = [
    Function {
        name: "rastrigin5 off centre",
        params: numbers!("-3.75" to "6.49": "x0" "x1" "x2" "x3" "x4"),
        value: |params| rastrigin(&floats(params)),
        minimum: 0.0,
    },
    Function {
        name: "ackley5 off centre",
        params: numbers!("-19.431" to "46.105": "x0" "x1" "x2" "x3" "x4"),
        value: |params| ackley(&floats(params)),
        minimum: 0.0,
    },
];

/// None of the benchmark's: other sizes and shapes, so that what samplers were set on is not all that is looked at.
pub(crate) const OTHER_SHAPES: [Function; 3] = [
    Function {
        name: "rosenbrock8",
        params: numbers!("-3" to "6": "x0" "x1" "x2" "x3" "x4" "x5" "x6" "x7"),
        value: |params| rosenbrock(&floats(params)),
        minimum: 0.0,
    },
    Function {
        name: "levy7",
        params: numbers!("-7" to "13": "x0" "x1" "x2" "x3" "x4" "x5" "x6"),
        value: |params| levy(&floats(params)),
        minimum: 0.0,
    },
    Function {
        name: "styblinski-tang5",
        params: numbers!("-5" to "5": "x0" "x1" "x2" "x3" "x4"),
        value: |params| styblinski_tang(&floats(params)),
        minimum: -195.830_828_518_857_1,
    },
];

fn floats(params: &Params) -> Vec<f64> {
    (0..params.len()).filter_map(|index| params.get(&format!("x{index}"))?.as_f64()).collect()
}

fn branin(x: &[f64]) -> f64 {
    let valley = x[1] - 5.1 / (4.0 * PI * PI) * x[0] * x[0] + 5.0 / PI * x[0] - 6.0;
    valley * valley + 10.0 * (1.0 - 1.0 / (8.0 * PI)) * x[0].cos() + 10.0
}

fn hartmann6(x: &[f64]) -> f64 {
    const C: [f64; 4] = [1.0, 1.2, 3.0, 3.2];
    const A: [[f64; 6]; 4] = [
        [10.0, 3.0, 17.0, 3.5, 1.7, 8.0],
        [0.05, 10.0, 17.0, 0.1, 8.0, 14.0],
        [3.0, 3.5, 1.7, 10.0, 17.0, 8.0],
        [17.0, 8.0, 0.05, 10.0, 0.1, 14.0],
    ];
    const P: [[f64; 6]; 4] = [
        [1312.0, 1696.0, 5569.0, 124.0, 8283.0, 5886.0],
        [2329.0, 4135.0, 8307.0, 3736.0, 1004.0, 9991.0],
        [2348.0, 1451.0, 3522.0, 2883.0, 3047.0, 6650.0],
        [4047.0, 8828.0, 8732.0, 5743.0, 1091.0, 381.0],
    ];
    let bump = |index: usize| {
        let far: f64 = (0..6).map(|j| A[index][j] * (x[j] - P[index][j] * 1e-4).powi(2)).sum();
        C[index] * (-far).exp()
    };
    -(0..4).map(bump).sum::<f64>()
}

fn rosenbrock(x: &[f64]) -> f64 {
    x.windows(2).map(|pair| 100.0 * (pair[1] - pair[0] * pair[0]).powi(2) + (1.0 - pair[0]).powi(2)).sum()
}

fn rastrigin(x: &[f64]) -> f64 {
    10.0 * x.len() as f64 + x.iter().map(|v| v * v - 10.0 * (2.0 * PI * v).cos()).sum::<f64>()
}

fn levy(x: &[f64]) -> f64 {
    let w: Vec<f64> = x.iter().map(|x| 1.0 + (x - 1.0) / 4.0).collect();
    let last = w[w.len() - 1];
    let wave = |w: f64| (w - 1.0).powi(2) * (1.0 + 10.0 * (PI * w + 1.0).sin().powi(2));
    (PI * w[0]).sin().powi(2)
        + w[..w.len() - 1].iter().map(|w| wave(*w)).sum::<f64>()
        + (last - 1.0).powi(2) * (1.0 + (2.0 * PI * last).sin().powi(2))
}

fn styblinski_tang(x: &[f64]) -> f64 {
    x.iter().map(|x| 0.5 * (x.powi(4) - 16.0 * x * x + 5.0 * x)).sum()
}

fn ackley(x: &[f64]) -> f64 {
    let mean = |f: fn(f64) -> f64| x.iter().map(|v| f(*v)).sum::<f64>() / x.len() as f64;
    -20.0 * (-0.2 * mean(|v| v * v).sqrt()).exp() - mean(|v| (2.0 * PI * v).cos()).exp() + 20.0 + E
}

fn mixed7(params: &Params) -> f64 {
    let number = |name: &str| params[name].as_f64().unwrap_or(f64::NAN);
    let pick = |name: &str, values: &[(&str, f64)]| match &params[name] {
        ParamValue::Text(text) => {
            values.iter().find(|(value, _)| value == text).map_or(f64::NAN, |(_, number)| *number)
        }
        _ => f64::NAN,
    };
    let best_lr = pick("opt", &[("sgd", -1.0), ("adam", -3.0), ("rmsprop", -3.5), ("lion", -4.0)]);
    let best_dropout = if number("layers") < 6.0 { 0.1 } else { 0.3 };
    0.60 * (number("lr").log10() - best_lr).powi(2)
        + 0.05 * (number("wd").log10() + 4.0).powi(2)
        + pick("opt", &[("sgd", 0.30), ("adam", 0.0), ("rmsprop", 0.15), ("lion", 0.10)])
        + pick("act", &[("relu", 0.05), ("gelu", 0.0), ("tanh", 0.20)])
        + 0.04 * (number("layers") - 4.0).powi(2)
        + 0.10 * (number("width").log2() - 8.0).powi(2)
        + 2.0 * (number("dropout") - best_dropout).powi(2)
}

/// A family of learning curves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Power laws that cross.
    Curves,
    /// Exponentials: good trials are often slow starters.
    Late,
}

impl Family {
    /// Its name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Family::Curves => "curves",
            Family::Late => "late",
        }
    }
}

/// The learning curve of one trial.
pub(crate) struct Curve {
    family: Family,
    seed: u64,
    trial: u64,
    end: f64,
    begin: f64,
    speed: f64,
}

impl Curve {
    /// Epochs of a whole curve.
    pub(crate) const EPOCHS: u64 = 81;

    /// The curve that a sweep's seed and a trial's number fix.
    pub(crate) fn new(family: Family, seed: u64, trial: u64) -> Curve {
        let u = |slot| unit(key(seed, trial, slot));
        let speed = match family {
            Family::Curves => 0.3 + 1.2 * u(2),
            Family::Late => 2.0 * 20.0_f64.powf(u(2)),
        };
        Curve { family, seed, trial, end: 0.05 + 0.95 * u(0).powf(1.5), begin: 2.0 + u(1), speed }
    }

    /// The loss without noise after an epoch.
    pub(crate) fn clean(&self, epoch: u64) -> f64 {
        let t = epoch as f64;
        let left = match self.family {
            Family::Curves => (1.0 + t).powf(-self.speed),
            Family::Late => (-t / self.speed).exp(),
        };
        self.end + (self.begin - self.end) * left
    }

    /// The loss that is reported.
    pub(crate) fn loss(&self, epoch: u64) -> f64 {
        self.clean(epoch) + 0.02 * (2.0 * unit(key(self.seed, self.trial, 1000 + epoch)) - 1.0)
    }
}

fn key(seed: u64, trial: u64, slot: u64) -> u64 {
    seed.wrapping_mul(1_000_000_007).wrapping_add(trial.wrapping_mul(1_000_003)).wrapping_add(slot)
}

/// The top 53 bits of SplitMix64.
fn unit(state: u64) -> f64 {
    let z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// Asserts the published check values.
pub(crate) fn check() {
    let at = |low: f64, high: f64, dims: usize| vec![low + 0.3 * (high - low); dims];
    let mixed = Params::from([
        ("lr".to_owned(), ParamValue::Float(1e-2)),
        ("wd".to_owned(), ParamValue::Float(1e-3)),
        ("opt".to_owned(), ParamValue::Text("lion".to_owned())),
        ("act".to_owned(), ParamValue::Text("relu".to_owned())),
        ("layers".to_owned(), ParamValue::Int(6)),
        ("width".to_owned(), ParamValue::Int(100)),
        ("dropout".to_owned(), ParamValue::Float(0.5)),
    ]);
    let least = |family| (0..100).map(|i| Curve::new(family, 0, i).clean(81)).fold(f64::INFINITY, f64::min);
    let (curve, late) = (Curve::new(Family::Curves, 3, 7), Curve::new(Family::Late, 3, 7));
    for (name, found, expected) in [
        ("branin", branin(&[-5.0 + 0.3 * 15.0, 0.3 * 15.0]), 23.846560461005083),
        ("hartmann6", hartmann6(&at(0.0, 1.0, 6)), -1.0188180556734787),
        ("rosenbrock10", rosenbrock(&at(-5.0, 10.0, 10)), 526.5),
        ("rastrigin5", rastrigin(&at(-5.12, 5.12, 5)), 23.228292762667856),
        ("ackley5", ackley(&at(-32.768, 32.768, 5)), 19.079337819752784),
        ("mixed7", mixed7(&mixed), 3.0239126034012327),
        ("levy7, one above its minimum", 1.0 + levy(&[1.0; 7]), 1.0),
        ("styblinski-tang5", styblinski_tang(&[-2.903_534_027_771_177; 5]), OTHER_SHAPES[2].minimum),
        ("u(0)", unit(0), 0.8833108082136426),
        ("u(1)", unit(1), 0.5665615751722809),
        ("curves g(81)", curve.clean(81), 0.19891768672835336),
        ("curves loss(1)", curve.loss(1), 1.2849595094956563),
        ("curves loss(81)", curve.loss(81), 0.19526505855609363),
        ("curves least", least(Family::Curves), 0.06283889722268146),
        ("late g(81)", late.clean(81), 0.23995676140382582),
        ("late loss(1)", late.loss(1), 2.6666985289361573),
        ("late least", least(Family::Late), 0.05023370491942094),
    ] {
        assert!((found / expected - 1.0).abs() < 1e-9, "{name}: {found} is not {expected}");
    }
}
