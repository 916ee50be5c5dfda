// Training curves: one series per job, rank and metric, filled by a thinned history and extended by the stream.
import { signal } from "@preact/signals";
import { type Curves, real } from "../api/types";
import { onFrame } from "./collection";

export class Series {
  readonly steps: number[] = [];
  /** Seconds since the Unix epoch. */
  readonly times: number[] = [];
  /** NaN where the value is not finite. */
  readonly values: number[] = [];

  constructor(
    readonly job: string,
    readonly name: string,
    readonly rank: number,
  ) {}

  /** A step that comes again (the next attempt goes on from a checkpoint) cuts off what was reported from there on. */
  push(step: number, time: number, value: number): void {
    const last = this.steps.length - 1;
    if (last >= 0 && step <= this.steps[last]!) this.cut(lowerBound(this.steps, step));
    this.steps.push(step);
    this.times.push(time);
    this.values.push(value);
  }

  get last(): number {
    return this.values.length ? this.values[this.values.length - 1]! : NaN;
  }

  private cut(length: number): void {
    this.steps.length = length;
    this.times.length = length;
    this.values.length = length;
  }
}

/** The first index whose element is not below `x`, in an ascending array. */
export function lowerBound(sorted: ArrayLike<number>, x: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle]! < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

export class SeriesSet {
  private readonly byKey = new Map<string, Series>();
  readonly version = signal(0);
  private readonly bump = (): void => {
    this.version.value++;
  };

  clear(): void {
    this.byKey.clear();
    onFrame(this.bump);
  }

  /** News of one job. */
  add(news: Curves): void {
    if (news.reset) for (const [key, known] of this.byKey) if (known.job === news.job) this.byKey.delete(key);
    for (const part of news.series) {
      const series = this.of(news.job, part.rank, part.metric);
      for (let i = 0; i < part.step.length; i++) series.push(part.step[i]!, part.time[i] ?? NaN, finite(real(part.value[i])));
    }
    onFrame(this.bump);
  }

  /** Adds what a trial says of itself, unless its job has said so already. */
  extend(job: string, name: string, step: number, time: number, value: number): void {
    const series = this.of(job, 0, name);
    const last = series.steps.length - 1;
    if (last >= 0 && series.steps[last]! >= step) return;
    series.push(step, time, finite(value));
    onFrame(this.bump);
  }

  all(): Series[] {
    this.version.value;
    return [...this.byKey.values()];
  }

  private of(job: string, rank: number, name: string): Series {
    const key = keyOf(job, rank, name);
    let series = this.byKey.get(key);
    if (!series) this.byKey.set(key, (series = new Series(job, name, rank)));
    return series;
  }
}

function keyOf(job: string, rank: number, name: string): string {
  return `${job}/${rank}/${name}`;
}

function finite(value: number): number {
  return Number.isFinite(value) ? value : NaN;
}
