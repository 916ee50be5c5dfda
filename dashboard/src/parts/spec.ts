// What was asked of a job, key by key, in the words of the job file where the model has others.
import { bytes, duration } from "../state/format";

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** `[key, value]` of all that was said; what is empty or absent is left out. */
export function keys(spec: Json, path = ""): [string, string][] {
  if (spec === null || (typeof spec === "object" && Object.keys(spec).length === 0)) return [];
  if (Array.isArray(spec)) return [[path, spec.every((item) => typeof item !== "object") ? spec.join(" ") : JSON.stringify(spec)]];
  if (typeof spec !== "object") return [[path, said(path, spec)]];
  const names = Object.keys(spec);
  if (names.join() === "secs,nanos") return [[path, duration(Number(spec.secs) * 1000 + Number(spec.nanos) / 1e6)]];
  if (names.join() === "min,max" && spec.min === spec.max) return [[path, String(spec.min)]];
  const only = names[0]!;
  // A variant of the model: `{ Mlp: { … } }` is `kind = "mlp"` and its keys.
  if (names.length === 1 && /^[A-Z]/.test(only)) {
    const inner = spec[only]!;
    const own: [string, string][] = path === "work" ? [] : [[`${path}.kind`, only.toLowerCase()]];
    return [...own, ...keys(inner, path === "work" ? (only === "Train" ? "train" : "program") : path)];
  }
  return names.flatMap((name) => keys(spec[name]!, path ? `${path}.${name}` : name));
}

function said(path: string, value: boolean | number | string): string {
  const key = path.slice(path.lastIndexOf(".") + 1);
  if (typeof value !== "number") return String(value);
  if (key.endsWith("_bytes")) return bytes(value);
  return key === "cpus" || path.includes(".custom.") ? String(value / 1000) : String(value);
}
