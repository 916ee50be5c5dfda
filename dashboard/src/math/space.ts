// What a sweep's trials say about its parameters: their scales, and how much of the outcome each explains.
import { type ParamValue, type Trial, real } from "../api/types";

/** Where a parameter's values lie, read from the trials themselves. */
export type Scale =
  | { kind: "number"; name: string; low: number; high: number; log: boolean }
  | { kind: "choice"; name: string; values: string[] };

/** Positive numbers that span this much are drawn on a log scale. */
const LOG_SPAN = 50;

export function scales(trials: Trial[]): Scale[] {
  const names = new Map<string, ParamValue[]>();
  for (const trial of trials) {
    for (const [name, value] of Object.entries(trial.params ?? {})) {
      const list = names.get(name);
      if (list) list.push(value);
      else names.set(name, [value]);
    }
  }
  const found: Scale[] = [];
  for (const [name, values] of names) {
    const scale = values.every((value) => typeof value === "number") ? numeric(name, values as number[]) : choice(name, values);
    // One value alone is fixed and says nothing.
    if (scale.kind === "number" ? scale.high > scale.low : scale.values.length > 1) found.push(scale);
  }
  return found;
}

function numeric(name: string, values: number[]): Scale {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return { kind: "number", name, low, high, log: low > 0 && high / low >= LOG_SPAN };
}

function choice(name: string, values: ParamValue[]): Scale {
  const distinct = [...new Set(values.map((value) => text(value)))];
  distinct.sort(new Intl.Collator(undefined, { numeric: true }).compare);
  return { kind: "choice", name, values: distinct };
}

export function text(value: ParamValue | undefined): string {
  return value == null ? "–" : typeof value === "string" ? value : JSON.stringify(value);
}

/** Where a value lies on its scale, from 0 to 1; NaN where the trial has no such parameter. */
export function place(scale: Scale, value: ParamValue | undefined): number {
  if (value === undefined) return NaN;
  if (scale.kind === "choice") {
    const at = scale.values.indexOf(text(value));
    return at < 0 ? NaN : scale.values.length === 1 ? 0.5 : at / (scale.values.length - 1);
  }
  const { low, high, log } = scale;
  if (typeof value !== "number") return NaN;
  return log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
}

/** The value at a place of a scale, from 0 to 1. */
export function at(scale: Scale, t: number): number | string {
  if (scale.kind === "choice") return scale.values[Math.round(t * (scale.values.length - 1))]!;
  const { low, high, log } = scale;
  return log ? low * (high / low) ** t : low + (high - low) * t;
}

export function hasValue(trial: Trial): boolean {
  return Number.isFinite(real(trial.value));
}

/** Bins of a number; each has at least as many trials as bins. */
const BINS = 8;

/**
 * How much of the variance of the outcome each parameter explains alone: ε², the correlation ratio over quantile bins
 * (Kelley 1935) without what chance alone would explain. From 0 to 1; what parameters do together is in none of them.
 */
export function importance(trials: Trial[], of: Scale[]): { name: string; share: number }[] {
  const usable = trials.filter(hasValue);
  const shares = of.map((scale) => ({ name: scale.name, share: explained(usable, scale) }));
  return shares.sort((a, b) => b.share - a.share);
}

function explained(trials: Trial[], scale: Scale): number {
  const pairs: [number, number][] = [];
  for (const trial of trials) {
    const x = place(scale, trial.params[scale.name]);
    if (!Number.isNaN(x)) pairs.push([x, real(trial.value)]);
  }
  const n = pairs.length;
  if (n < 4) return 0;
  const groups = scale.kind === "choice" ? byPlace(pairs) : byQuantile(pairs);
  const k = groups.length;
  if (k < 2 || n <= k) return 0;
  const mean = average(pairs.map((pair) => pair[1]));
  let total = 0;
  for (const [, y] of pairs) total += (y - mean) ** 2;
  if (total === 0) return 0;
  let within = 0;
  for (const group of groups) {
    const centre = average(group);
    for (const y of group) within += (y - centre) ** 2;
  }
  return Math.max(0, 1 - (within / (n - k)) / (total / (n - 1)));
}

function byPlace(pairs: [number, number][]): number[][] {
  const groups = new Map<number, number[]>();
  for (const [x, y] of pairs) groups.set(x, [...(groups.get(x) ?? []), y]);
  return [...groups.values()];
}

function byQuantile(pairs: [number, number][]): number[][] {
  const sorted = [...pairs].sort((a, b) => a[0] - b[0]);
  const bins = Math.max(2, Math.min(BINS, Math.floor(Math.sqrt(sorted.length))));
  const groups: number[][] = [];
  let last = NaN;
  sorted.forEach(([x, y], i) => {
    const bin = Math.floor((i * bins) / sorted.length);
    // Equal values stay together.
    if (x === last || bin < groups.length) groups[groups.length - 1]!.push(y);
    else groups.push([y]);
    last = x;
  });
  return groups;
}

function average(values: number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** The best value up to each trial. */
export function bestSoFar(values: number[], max: boolean): number[] {
  let best = NaN;
  return values.map((value) => {
    if (Number.isFinite(value) && !(max ? value <= best : value >= best)) best = value;
    return best;
  });
}

/** How good each value is, from 0 to 1, by rank: a few outliers do not take the colours of all others. */
export function goodness(trials: Trial[], max: boolean): Map<number, number> {
  const usable = trials.filter(hasValue).sort((a, b) => real(a.value) - real(b.value));
  const last = Math.max(1, usable.length - 1);
  return new Map(usable.map((trial, i) => [trial.number, max ? i / last : 1 - i / last]));
}

/** Of a scale with choices the nearest choice, else the place itself. */
function snap(scale: Scale, t: number): number {
  const last = scale.kind === "choice" ? scale.values.length - 1 : 0;
  return last > 0 ? Math.round(t * last) / last : t;
}

/**
 * Values on a grid of `size` × `size`, from scattered points in the unit square, by inverse distance (Shepard 1968).
 * Row by row from the lowest y. There is nothing between two choices.
 */
export function surface(points: { x: number; y: number; z: number }[], size: number, across: Scale, up: Scale): Float64Array {
  const grid = new Float64Array(size * size);
  for (let row = 0; row < size; row++) {
    const y = snap(up, (row + 0.5) / size);
    for (let column = 0; column < size; column++) {
      const x = snap(across, (column + 0.5) / size);
      let sum = 0;
      let weights = 0;
      for (const point of points) {
        const distance = (point.x - x) ** 2 + (point.y - y) ** 2 + SOFTEN;
        const weight = 1 / (distance * distance);
        sum += weight * point.z;
        weights += weight;
      }
      grid[row * size + column] = sum / weights;
    }
  }
  return grid;
}

/** Squared distance below which points are averaged rather than met. */
const SOFTEN = 2e-4;
