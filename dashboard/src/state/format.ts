// Figures as people read them.
import { signal } from "@preact/signals";

/** Milliseconds since the Unix epoch, once a second. */
export const now = signal(Date.now());
setInterval(() => {
  if (document.visibilityState === "visible") now.value = Date.now();
}, 1000);

/** Five significant digits at most, no thousands separators: it can be read back by a program. */
export function num(value: number | null | undefined, digits = 5): string {
  if (value == null || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return trimZeros(value.toExponential(Math.min(3, digits - 1)));
  if (Number.isInteger(value)) return String(value);
  return String(Number(value.toPrecision(digits)));
}

function trimZeros(text: string): string {
  return text.replace(/\.?0+e/, "e").replace("e+", "e");
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(value: number): string {
  if (!(value > 0)) return "0";
  const unit = Math.min(UNITS.length - 1, Math.floor(Math.log2(value) / 10));
  return `${num(value / 2 ** (10 * unit), 3)} ${UNITS[unit]}`;
}

/** `4.2 s`, `3m 05s`, `2h 10m`, `3d 4h`. */
export function duration(ms: number): string {
  if (!Number.isFinite(ms)) return "–";
  const s = Math.max(0, ms) / 1000;
  if (s === 0) return "0 s";
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.round(s)} s`;
  const two = (n: number) => String(Math.floor(n)).padStart(2, "0");
  if (s < 3600) return `${Math.floor(s / 60)}m ${two(s % 60)}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h ${two((s % 3600) / 60)}m`;
  return `${Math.floor(s / 86400)}d ${Math.floor((s % 86400) / 3600)}h`;
}

/** How long ago, coarsely. */
export function ago(time: number): string {
  if (!Number.isFinite(time)) return "–";
  const s = Math.max(0, now.value - time) / 1000;
  if (s < 5) return "just now";
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  if (s < 30 * 86400) return `${Math.floor(s / 86400)} d ago`;
  return new Date(time).toISOString().slice(0, 10);
}

/** Date and time of day in the reader's zone. */
export function moment(time: number): string {
  if (!Number.isFinite(time)) return "–";
  const date = new Date(time - new Date(time).getTimezoneOffset() * 60_000);
  return date.toISOString().slice(0, 19).replace("T", " ");
}

/** Time of day with milliseconds. */
export function clock(time: number): string {
  return Number.isFinite(time) ? new Date(time - new Date(time).getTimezoneOffset() * 60_000).toISOString().slice(11, 23) : "";
}

/** A parameter's value as text. */
export function param(value: unknown): string {
  if (typeof value === "number") return num(value, 4);
  return value == null ? "–" : typeof value === "string" ? value : JSON.stringify(value);
}

export function plural(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`;
}
