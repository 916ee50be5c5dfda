// The messages of the API as the page reads them: proto3 JSON with the original field names. 64-bit integers may come as
// numbers or as texts, so they are read through `int` below.

export type JobState =
  | "QUEUED"
  | "STARTING"
  | "RUNNING"
  | "PAUSED"
  | "RESTARTING"
  | "PREEMPTED"
  | "SUCCEEDED"
  | "FAILED"
  | "CANCELLED";

export interface Reason {
  code: string;
  text: string;
}

export interface Gang {
  min_workers: number;
  max_workers: number;
  cpus: number;
  gpus: number;
  memory_bytes: number | string;
  resources?: Record<string, number>;
  placement: string;
  group?: string | null;
}

export interface RankPlacement {
  rank: number;
  node: string;
  gpus: number[];
}

export interface Attempt {
  number: number;
  state: string;
  start_time?: string | null;
  end_time?: string | null;
  exit_code?: number | null;
  failed_rank?: number | null;
  message: string;
}

export interface Checkpoint {
  attempt: number;
  step: number | string;
  time?: string | null;
  metric?: number | string | null;
  path: string;
}

export interface Job {
  id: string;
  name: string;
  state: JobState;
  reason?: Reason | null;
  queue: string;
  priority: number;
  attempt: number;
  exit_code?: number | null;
  submit_time?: string | null;
  start_time?: string | null;
  end_time?: string | null;
  sweep?: string | null;
  trial?: number | null;
  gang?: Gang | null;
  placement?: RankPlacement[];
  attempts?: Attempt[];
  checkpoints?: Checkpoint[];
}

export interface LogLine {
  job: string;
  attempt: number;
  rank: number;
  stream: string;
  seq: number | string;
  time?: string | null;
  line: string;
  partial?: boolean;
}

export type ParamValue = number | string | boolean | null;
export type Params = Record<string, ParamValue>;

export interface BestTrial {
  number: number;
  params: Params;
  value: number | string;
  job?: string | null;
}

export interface Sweep {
  id: string;
  name: string;
  state: string;
  reason?: Reason | null;
  queue?: string;
  best?: BestTrial | null;
  front?: BestTrial[];
  counts: Record<string, number | string>;
  steps_run?: number | string;
  objectives?: { metric: string; mode: string; target?: number | null }[];
  search?: string;
  stopping?: string;
  /** How many there are at most; 0 where the search ends by itself. */
  trials?: number | string;
  concurrency?: number;
  submit_time?: string | null;
  start_time?: string | null;
  end_time?: string | null;
  /** The file; only where one sweep is asked for. */
  toml?: string | null;
}

export interface Trial {
  number: number;
  state: string;
  params: Params;
  value?: number | string | null;
  values?: (number | string)[];
  step?: number | string | null;
  job?: string | null;
  sampler?: string;
  message?: string;
  start_time?: string | null;
  end_time?: string | null;
  /** When it ran; between two it was paused, or waited to go on. */
  stints?: Stint[];
}

export interface Stint {
  start_time: string;
  end_time?: string | null;
}

export interface Amount {
  total: number;
  free: number;
}

export interface Gpu {
  index: number;
  uuid: string;
  name: string;
  memory_total: number | string;
  memory_used: number | string;
  utilization: number;
  free: number;
}

export interface Node {
  name: string;
  state: string;
  cpus: Amount;
  memory: Amount;
  gpus?: Gpu[];
  labels?: Record<string, string>;
  resources?: Record<string, Amount>;
}

export interface Queue {
  name: string;
  weight: number;
  discipline: string;
  guaranteed?: Record<string, number>;
  quota?: Record<string, number>;
  held?: Record<string, number>;
  share: number;
  running: number | string;
  length: number | string;
  waiting?: { id: string; name: string; reason?: Reason | null }[];
}

/** News of a job's metrics: columns of equal length for each series, thinned so that peaks and the last value remain. */
export interface Curves {
  job: string;
  /** What follows replaces what there was; else it goes on at the end. */
  reset: boolean;
  series: {
    attempt: number;
    rank: number;
    metric: string;
    step: number[];
    value: (number | string)[];
    /** Seconds since the Unix epoch. */
    time: number[];
  }[];
}

/** A 64-bit integer or a number that may have come as a text. */
export function int(value: number | string | null | undefined): number {
  return value == null ? 0 : Number(value);
}

/** A metric's value: `NaN`, `Infinity` and `-Infinity` come as texts. */
export function real(value: number | string | null | undefined): number {
  return value == null ? NaN : Number(value);
}

/** Milliseconds since the Unix epoch, or NaN. */
export function when(time: string | null | undefined): number {
  return time ? Date.parse(time) : NaN;
}

const TERMINAL = new Set(["SUCCEEDED", "FAILED", "CANCELLED", "COMPLETE", "COMPLETED", "STOPPED"]);

export function isTerminal(state: string): boolean {
  return TERMINAL.has(state);
}

export function isWaiting(state: string): boolean {
  return state === "QUEUED" || state === "RESTARTING" || state === "PREEMPTED" || state === "PAUSED";
}
