//! Line charts as SVG, for the guide: no more than the guide needs, and the same bytes for the same numbers.

use std::fmt::Write;

/// One line.
pub(crate) struct Line {
    /// What the legend calls it.
    pub(crate) name: String,
    /// From left to right.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A chart.
pub(crate) struct Chart<'a> {
    /// Above it.
    pub(crate) title: &'a str,
    /// Below it.
    pub(crate) x: &'a str,
    /// Beside it.
    pub(crate) y: &'a str,
    /// Whether equal ratios are equally far apart, across and upwards.
    pub(crate) log: (bool, bool),
    /// Its lines; those without a name are thin and grey.
    pub(crate) lines: Vec<Line>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
/// Left, right, top, bottom.
const MARGINS: [f64; 4] = [64.0, 150.0, 34.0, 46.0];
/// Told apart by people who see no red or green, too (Okabe & Ito).
const COLORS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555"];
/// A logarithmic axis ends here at the latest.
const LEAST: f64 = 1e-7;

/// A scale from values to places.
struct Scale {
    low: f64,
    high: f64,
    log: bool,
    from: f64,
    to: f64,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>, log: bool, from: f64, to: f64) -> Scale {
        let bend = |value: f64| if log { value.max(LEAST).log10() } else { value };
        let (low, high) = values
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(bend(v)), high.max(bend(v))));
        let (low, high) = if log { (low.floor(), high.ceil()) } else { (low.min(0.0), high) };
        Scale { low, high: if high > low { high } else { low + 1.0 }, log, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let bent = if self.log { value.max(LEAST).log10() } else { value };
        self.from + (bent - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Round values across the range.
    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let every = ((self.high - self.low) / 8.0).ceil().max(1.0) as usize;
            return (self.low as i32..=self.high as i32)
                .step_by(every)
                .map(|power| 10_f64.powi(power))
                .collect();
        }
        let rough = (self.high - self.low) / 5.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|s| s * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
        let (first, last) = ((self.low / step).ceil() as i64, (self.high / step + 1e-9).floor() as i64);
        (first..=last).map(|at| at as f64 * step).collect()
    }
}

impl Chart<'_> {
    /// The picture.
    pub(crate) fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let [left, right, top, bottom] = MARGINS;
        let across = Scale::of(points().map(|p| p.0), self.log.0, left, WIDTH - right);
        let upwards = Scale::of(points().map(|p| p.1), self.log.1, HEIGHT - bottom, top);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
        );
        self.frame(&mut svg, &across, &upwards);
        let mut named = 0;
        for line in &self.lines {
            let (color, width) = match line.name.is_empty() {
                true => ("#bbbbbb", 0.8),
                false => (COLORS[named % COLORS.len()], 2.0),
            };
            let places: Vec<String> = line
                .points
                .iter()
                .map(|(x, y)| format!("{:.1},{:.1}", across.place(*x), upwards.place(*y)))
                .collect();
            put(
                &mut svg,
                format_args!(
                    "<polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\" points=\"{}\"/>",
                    places.join(" ")
                ),
            );
            if !line.name.is_empty() {
                let (x, y) = (WIDTH - right + 12.0, top + 8.0 + 18.0 * named as f64);
                put(
                    &mut svg,
                    format_args!(
                        "<line x1=\"{x}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\" stroke=\"{color}\" stroke-width=\"2\"/>\
                     <text x=\"{}\" y=\"{}\">{}</text>",
                        x + 18.0,
                        x + 24.0,
                        y + 4.0,
                        line.name
                    ),
                );
                named += 1;
            }
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn frame(&self, svg: &mut String, across: &Scale, upwards: &Scale) {
        let [left, right, top, bottom] = MARGINS;
        let (end, floor) = (WIDTH - right, HEIGHT - bottom);
        for tick in upwards.ticks() {
            let y = upwards.place(tick);
            put(
                svg,
                format_args!(
                    "<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{end}\" y2=\"{y:.1}\" stroke=\"#e5e5e5\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                    left - 6.0,
                    y + 4.0,
                    shown(tick)
                ),
            );
        }
        for tick in across.ticks() {
            let x = across.place(tick);
            put(
                svg,
                format_args!(
                    "<line x1=\"{x:.1}\" y1=\"{floor}\" x2=\"{x:.1}\" y2=\"{}\" stroke=\"#555555\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                    floor + 4.0,
                    floor + 18.0,
                    shown(tick)
                ),
            );
        }
        let middle = (left + end) / 2.0;
        put(
            svg,
            format_args!(
                "<line x1=\"{left}\" y1=\"{floor}\" x2=\"{end}\" y2=\"{floor}\" stroke=\"#555555\"/>"
            ),
        );
        put(
            svg,
            format_args!(
                "<text x=\"{middle}\" y=\"20\" text-anchor=\"middle\" font-size=\"14\">{}</text>",
                self.title
            ),
        );
        put(
            svg,
            format_args!(
                "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - 8.0,
                self.x
            ),
        );
        let height = (top + floor) / 2.0;
        put(
            svg,
            format_args!(
                "<text x=\"14\" y=\"{height}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {height})\">{}</text>",
                self.y
            ),
        );
    }
}

/// Adds a line; a text takes whatever is written to it.
fn put(svg: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(svg, "{line}").expect("a text takes it");
}

/// A tick's value in few characters.
fn shown(value: f64) -> String {
    if value != 0.0 && !(1e-3..1e5).contains(&value.abs()) {
        format!("{value:e}")
    } else {
        format!("{}", (value * 1e6).round() / 1e6)
    }
}
