//! `[train] optimizer` and `[train] schedule`: how parameters follow gradients.

use super::kind;
use crate::spec::reader::{Table, as_number};
use serde::{Deserialize, Serialize};
use toml::de::DeValue;

/// How parameters follow gradients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Optimizer {
    /// Stochastic gradient descent with momentum; decay is added to the gradient.
    Sgd {
        /// Learning rate.
        lr: f64,
        /// Momentum; 0 for none.
        momentum: f64,
        /// L2 weight decay.
        weight_decay: f64,
    },
    /// Adam (Kingma & Ba 2015); decay is added to the gradient.
    Adam(AdamFields),
    /// Adam with decoupled weight decay (Loshchilov & Hutter 2019).
    AdamW(AdamFields),
    /// Lion (Chen et al. 2023).
    Lion {
        /// Learning rate.
        lr: f64,
        /// Decay rates of the update and of the momentum.
        betas: [f64; 2],
        /// Decoupled weight decay.
        weight_decay: f64,
    },
}

/// What Adam and AdamW have in common.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamFields {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Keeps the division finite.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

/// How the learning rate moves over the run, as a factor of the optimizer's `lr`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Schedule {
    /// It stays.
    Constant,
    /// Linear warm-up, then it stays.
    Warmup {
        /// Steps of warm-up.
        warmup: u64,
    },
    /// Multiplied by `gamma` every `every` steps.
    Step {
        /// Steps between drops.
        every: u64,
        /// The factor of a drop.
        gamma: f64,
        /// Steps of linear warm-up; drops are counted from the run's first step.
        #[serde(default)]
        warmup: u64,
    },
    /// Linear warm-up, then half a cosine down to `floor`.
    Cosine {
        /// Steps of warm-up.
        warmup: u64,
        /// The last factor.
        floor: f64,
    },
    /// Linear warm-up, then linearly down to `floor`.
    Linear {
        /// Steps of warm-up.
        warmup: u64,
        /// The last factor.
        floor: f64,
    },
    /// Up from 1/25 to 1 over the first `rise` of the run, then down to 1e-4 by cosines (Smith & Topin 2018).
    OneCycle {
        /// The share of the run that rises.
        rise: f64,
    },
}

impl AdamFields {
    pub(super) const DEFAULT: AdamFields =
        AdamFields { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
}

/// The optimizer, and the words in the names of tensors that its weight decay leaves alone.
pub(super) fn read(table: Table<'_>) -> Option<(Optimizer, Vec<String>)> {
    #[derive(Clone, Copy)]
    enum Kind {
        Sgd,
        Adam,
        AdamW,
        Lion,
    }
    let kinds = [("sgd", Kind::Sgd), ("adam", Kind::Adam), ("adamw", Kind::AdamW), ("lion", Kind::Lion)];
    let kind = kind(&table, &kinds)?;
    let lr = |default| table.number("lr", "above 0", |lr| lr > 0.0).unwrap_or(default);
    let decay = |default| table.number("weight_decay", "0 or more", |decay| decay >= 0.0).unwrap_or(default);
    let adam = |default_decay| AdamFields {
        lr: lr(AdamFields::DEFAULT.lr),
        betas: read_betas(&table, AdamFields::DEFAULT.betas),
        eps: table.number("eps", "above 0", |eps| eps > 0.0).unwrap_or(AdamFields::DEFAULT.eps),
        weight_decay: decay(default_decay),
    };
    let optimizer = match kind {
        Kind::Sgd => Optimizer::Sgd {
            lr: lr(0.1),
            momentum: table
                .number("momentum", "0 or more and below 1", |m| (0.0..1.0).contains(&m))
                .unwrap_or(0.0),
            weight_decay: decay(0.0),
        },
        Kind::Adam => Optimizer::Adam(adam(0.0)),
        Kind::AdamW => Optimizer::AdamW(adam(0.01)),
        Kind::Lion => {
            Optimizer::Lion { lr: lr(1e-4), betas: read_betas(&table, [0.9, 0.99]), weight_decay: decay(0.0) }
        }
    };
    let no_decay = table.texts("no_decay").unwrap_or_default();
    if no_decay.iter().any(String::is_empty) {
        table.problem(
            table.span_of("no_decay"),
            "`train.optimizer.no_decay` has an empty text, which is part of every name",
        );
    }
    table.finish();
    Some((optimizer, no_decay))
}

fn read_betas(table: &Table<'_>, default: [f64; 2]) -> [f64; 2] {
    let Some(value) = table.value("betas") else { return default };
    if let DeValue::Array(items) = value.get_ref() {
        let betas: Vec<f64> = items.iter().filter_map(|item| as_number(item.get_ref())).collect();
        if let [first, second] = betas[..]
            && items.len() == 2
            && [first, second].iter().all(|beta| (0.0..1.0).contains(beta))
        {
            return [first, second];
        }
    }
    table
        .problem(value.span(), format!("`{}` must be two numbers from 0 to below 1", table.path_of("betas")));
    default
}

pub(super) fn read_schedule(table: Table<'_>) -> Option<Schedule> {
    #[derive(Clone, Copy)]
    enum Kind {
        Constant,
        Step,
        Cosine,
        Linear,
        OneCycle,
    }
    let kinds = [
        ("constant", Kind::Constant),
        ("step", Kind::Step),
        ("cosine", Kind::Cosine),
        ("linear", Kind::Linear),
        ("one-cycle", Kind::OneCycle),
    ];
    let kind = kind(&table, &kinds)?;
    let warmup = || table.integer("warmup", 0..=i64::MAX).unwrap_or(0) as u64;
    let floor = || table.number("floor", "from 0 to 1", |floor| (0.0..=1.0).contains(&floor)).unwrap_or(0.0);
    let schedule = match kind {
        Kind::Constant => match warmup() {
            0 => Schedule::Constant,
            warmup => Schedule::Warmup { warmup },
        },
        Kind::Step => {
            table.require("every", "every = 1000");
            Schedule::Step {
                every: table.integer("every", 1..=i64::MAX).unwrap_or(1) as u64,
                gamma: table.number("gamma", "above 0", |gamma| gamma > 0.0).unwrap_or(0.1),
                warmup: warmup(),
            }
        }
        Kind::Cosine => Schedule::Cosine { warmup: warmup(), floor: floor() },
        Kind::Linear => Schedule::Linear { warmup: warmup(), floor: floor() },
        Kind::OneCycle => Schedule::OneCycle {
            rise: table.number("rise", "between 0 and 1", |rise| rise > 0.0 && rise < 1.0).unwrap_or(0.3),
        },
    };
    table.finish();
    Some(schedule)
}
