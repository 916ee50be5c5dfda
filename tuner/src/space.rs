//! The space as samplers see it: every parameter an axis of floats, every point one optional float per parameter.

use phalanx_core::spec::{Domain, ParamSpec, ParamValue, Params};

/// One float per parameter in the space's order: the number itself, or the index of a choice; `None` where the
/// parameter's condition does not hold.
pub type Point = Vec<Option<f64>>;

/// How the values of a parameter lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Axis {
    /// Numbers, or the indices of an ordinal.
    Numeric(Scale),
    /// The indices of that many unordered values.
    Categories(usize),
    /// One value only, with the float 0.
    Single,
}

/// A range of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// The least.
    pub low: f64,
    /// The largest that is on the grid.
    pub high: f64,
    /// Equal ratios count as equally far apart.
    pub log: bool,
    /// The width of a cell; 0 for a continuum.
    pub step: f64,
}

impl Scale {
    /// Where a number lies once ratios have become differences.
    pub fn bend(&self, value: f64) -> f64 {
        if self.log { value.ln() } else { value }
    }

    /// The bent edges of the cell around a number, for a scale with steps.
    pub fn cell(&self, value: f64) -> (f64, f64) {
        let left = value - self.step / 2.0;
        // A cell that reaches to zero or below has no logarithm: it ends at half of the least number.
        let left = if self.log && left <= 0.0 { self.low / 2.0 } else { left };
        (self.bend(left), self.bend(value + self.step / 2.0))
    }

    /// The bent ends of the range, half a cell outside of a grid.
    pub fn ends(&self) -> (f64, f64) {
        if self.step == 0.0 {
            return (self.bend(self.low), self.bend(self.high));
        }
        (self.cell(self.low).0, self.cell(self.high).1)
    }

    /// The number nearest to a bent place.
    pub fn unbend(&self, place: f64) -> f64 {
        let value = if self.log { place.exp() } else { place };
        let value = if self.step == 0.0 {
            value
        } else {
            self.low + ((value - self.low) / self.step).round() * self.step
        };
        value.clamp(self.low, self.high)
    }
}

impl Axis {
    fn of(domain: &Domain) -> Axis {
        if domain.count() == Some(1) {
            return Axis::Single;
        }
        let numeric = |low, high, log, step| Axis::Numeric(Scale { low, high, log, step });
        match *domain {
            Domain::Float { low, high, log, step: None } => numeric(low, high, log, 0.0),
            Domain::Float { low, log, step: Some(step), .. } => numeric(low, last(domain), log, step),
            Domain::Int { low, log, step, .. } => numeric(low as f64, last(domain), log, step as f64),
            Domain::Choice { ref values } => Axis::Categories(values.len()),
            Domain::Ordinal { ref values } => numeric(0.0, (values.len() - 1) as f64, false, 1.0),
            Domain::Fixed { .. } => Axis::Single,
        }
    }

    /// The float at a share of the axis; equal shares are equally likely.
    pub fn at(&self, unit: f64) -> f64 {
        match self {
            Axis::Numeric(scale) => {
                let (low, high) = scale.ends();
                scale.unbend(low + unit * (high - low))
            }
            Axis::Categories(count) => ((unit * *count as f64) as usize).min(count - 1) as f64,
            Axis::Single => 0.0,
        }
    }

    /// Where a float lies as a share of the axis: `at` brings it back.
    pub fn share(&self, float: f64) -> f64 {
        match self {
            Axis::Numeric(scale) => {
                let (low, high) = scale.ends();
                (scale.bend(float) - low) / (high - low)
            }
            Axis::Categories(count) => (float + 0.5) / *count as f64,
            Axis::Single => 0.5,
        }
    }
}

fn last(domain: &Domain) -> f64 {
    let index = domain.count().unwrap_or(1) - 1;
    domain.nth(index).as_f64().unwrap_or_default()
}

/// One parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// How its values lie.
    pub axis: Axis,
    /// Parents with the floats of theirs under which it is there.
    pub when: Vec<(usize, Vec<f64>)>,
    domain: Domain,
}

impl Param {
    /// The float of one of its values.
    fn float(&self, value: &ParamValue) -> Option<f64> {
        let canonical = self.domain.canonical(value)?;
        match &self.domain {
            _ if self.axis == Axis::Single => Some(0.0),
            Domain::Choice { values } | Domain::Ordinal { values } => {
                values.iter().position(|v| *v == canonical).map(|index| index as f64)
            }
            _ => canonical.as_f64(),
        }
    }

    /// The value of one of its floats.
    fn value(&self, float: f64) -> ParamValue {
        match &self.domain {
            _ if self.axis == Axis::Single => self.domain.nth(0),
            Domain::Float { step: None, low, high, .. } => ParamValue::Float(float.clamp(*low, *high)),
            Domain::Float { low, step: Some(step), .. } => {
                self.domain.nth(((float - low) / step).round() as u64)
            }
            Domain::Int { .. } => ParamValue::Int(float.round() as i64),
            domain => domain.nth(float.round() as u64),
        }
    }

    /// How many values there are; `None` for a continuum.
    pub fn count(&self) -> Option<u64> {
        self.domain.count()
    }

    /// The index of a float that is one of countably many.
    pub fn index_of(&self, float: f64) -> u64 {
        match self.axis {
            Axis::Numeric(scale) => ((float - scale.low) / scale.step).round() as u64,
            Axis::Categories(_) => float as u64,
            Axis::Single => 0,
        }
    }

    /// The float of the value at an index below `count`.
    pub fn nth(&self, index: u64) -> f64 {
        self.float(&self.domain.nth(index)).unwrap_or_default()
    }
}

/// All parameters, parents before those that depend on them.
#[derive(Clone, Debug)]
pub struct Space {
    params: Vec<Param>,
}

impl Space {
    /// The space of a valid specification.
    pub fn new(specs: &[ParamSpec]) -> Space {
        let mut params: Vec<Param> = Vec::with_capacity(specs.len());
        for spec in specs {
            let when = spec.when.iter().filter_map(|condition| {
                let parent = params.iter().position(|param| param.name == condition.parent)?;
                let floats =
                    condition.values.iter().filter_map(|value| params[parent].float(value)).collect();
                Some((parent, floats))
            });
            let when = when.collect();
            params.push(Param {
                name: spec.name.clone(),
                axis: Axis::of(&spec.domain),
                when,
                domain: spec.domain.clone(),
            });
        }
        Space { params }
    }

    /// The parameters in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// How many points there are; `None` for a continuum, or where they are too many to count. Points that differ
    /// only in absent parameters are counted apart.
    pub fn count(&self) -> Option<u64> {
        self.params.iter().try_fold(1_u64, |product, param| product.checked_mul(param.count()?))
    }

    /// Whether a parameter is there, once the ones before it are decided.
    pub fn is_active(&self, index: usize, decided: &[Option<f64>]) -> bool {
        self.params[index]
            .when
            .iter()
            .all(|(parent, floats)| decided[*parent].is_some_and(|float| floats.contains(&float)))
    }

    /// A whole point: what is given as far as it can be there, the rest as proposed for its parameter's index.
    pub fn complete(&self, given: &[Option<f64>], mut propose: impl FnMut(usize) -> f64) -> Point {
        let mut point: Point = Vec::with_capacity(self.params.len());
        for (index, given) in given.iter().enumerate() {
            let active = self.is_active(index, &point);
            point.push(active.then(|| given.unwrap_or_else(|| propose(index))));
        }
        point
    }

    /// The point as a trial gets it.
    pub fn params_of(&self, point: &[Option<f64>]) -> Params {
        let named = self.params.iter().zip(point);
        named
            .filter_map(|(param, float)| float.map(|float| (param.name.clone(), param.value(float))))
            .collect()
    }

    /// The point of parameters that may be there in part only; `None` where one of them does not belong here.
    pub fn point_of(&self, params: &Params) -> Option<Point> {
        if params.keys().any(|name| self.params.iter().all(|param| param.name != *name)) {
            return None;
        }
        let floats = self.params.iter().map(|param| match params.get(&param.name) {
            Some(value) => param.float(value).map(Some),
            None => Some(None),
        });
        floats.collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use phalanx_core::spec::SweepSpec;
    use proptest::prelude::*;

    /// A sweep with these lines behind `[sweep]`.
    pub(crate) fn sweep(lines: &str) -> SweepSpec {
        let text = format!("version = 1\n[sweep]\nmetric = \"m\"\n{lines}");
        SweepSpec::parse(&text, "test")
            .unwrap_or_else(|problems| panic!("{}", problems.render("sweep.toml", &text)))
    }

    /// Every kind of parameter, with conditions on conditions.
    pub(crate) const EVERY_KIND: &str = r#"
[params]
plain = { kind = "float", low = -1.5, high = 2.5 }
log = { kind = "float", low = 1e-6, high = 1.0, log = true }
stepped = { kind = "float", low = 0.0, high = 0.52, step = 0.05 }
count = { kind = "int", low = -3, high = 8 }
width = { kind = "int", low = 1, high = 1000, log = true }
even = { kind = "int", low = 2, high = 64, log = true, step = 2 }
opt = { kind = "choice", values = ["sgd", "adamw", 3, true] }
batch = { kind = "ordinal", values = [32, 64, 128] }
beta2 = { kind = "float", low = 0.9, high = 0.999, when = { opt = ["adamw", 3] } }
amsgrad = { kind = "choice", values = [true, false], when = { opt = "adamw" } }
deep = { kind = "int", low = 1, high = 3, when = { amsgrad = true, batch = [32, 64] } }
fixed = 50
"#;

    #[test]
    fn conditions_hold_through_levels() {
        let space = Space::new(&sweep(EVERY_KIND).params);
        let at = |name: &str| space.params().iter().position(|param| param.name == name).unwrap();
        let mut given: Point = vec![None; space.params().len()];
        given[at("opt")] = Some(1.0);
        given[at("amsgrad")] = Some(0.0);
        given[at("batch")] = Some(1.0);
        let params = space.params_of(&space.complete(&given, |_| 2.0));
        assert_eq!(params["deep"], ParamValue::Int(2));
        given[at("opt")] = Some(2.0);
        let params = space.params_of(&space.complete(&given, |_| 0.95));
        assert!(
            params.contains_key("beta2") && !params.contains_key("amsgrad") && !params.contains_key("deep")
        );
    }

    proptest! {
        #[test]
        fn every_place_of_an_axis_is_a_value_and_comes_back(unit in 0.0_f64..1.0) {
            let spec = sweep(EVERY_KIND);
            let space = Space::new(&spec.params);
            let none: Point = vec![None; space.params().len()];
            let point = space.complete(&none, |index| space.params()[index].axis.at(unit));
            let params = space.params_of(&point);
            for param in &spec.params {
                if let Some(value) = params.get(&param.name) {
                    prop_assert_eq!(param.domain.canonical(value), Some(value.clone()));
                }
            }
            let back = space.params_of(&space.point_of(&params).unwrap());
            prop_assert_eq!(&back, &params);
            for (param, float) in space.params().iter().zip(&point) {
                if let Some(float) = float {
                    let there = param.axis.at(param.axis.share(*float));
                    prop_assert!((there - float).abs() <= 1e-9 * float.abs(), "{}", param.name);
                }
            }
        }
    }
}
