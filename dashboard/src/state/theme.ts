// Light or dark: the system's wish, or the reader's.
import { computed, signal } from "@preact/signals";

export type Choice = "auto" | "light" | "dark";

const KEY = "phalanx.theme";
const system = matchMedia("(prefers-color-scheme: dark)");
const systemDark = signal(system.matches);
system.addEventListener("change", (event) => (systemDark.value = event.matches));

export const choice = signal<Choice>((localStorage.getItem(KEY) as Choice | null) ?? "auto");
export const dark = computed(() => (choice.value === "auto" ? systemDark.value : choice.value === "dark"));

export function nextChoice(): void {
  const order: Choice[] = ["auto", "light", "dark"];
  choice.value = order[(order.indexOf(choice.value) + 1) % order.length]!;
  localStorage.setItem(KEY, choice.value);
}

const LIGHT = ["#0f766e", "#c8601d", "#4e58cf", "#b13a70", "#94730a", "#2a7ab3", "#5c8420", "#8a4dbd", "#a9503f", "#5c6670"];
const DARK = ["#42bfb0", "#f0965c", "#919bff", "#e983b0", "#d4b14d", "#6fb9e8", "#a4cb61", "#c497ee", "#ec8d7b", "#a9b2ba"];

/** The colour of the nth thing that is compared. */
export function colour(n: number): string {
  const palette = dark.value ? DARK : LIGHT;
  return palette[n % palette.length]!;
}

/** Colours of a canvas, which knows no style sheet. */
export const ink = computed(() =>
  dark.value
    ? { text: "#e8e8e5", muted: "#9a9ea2", faint: "#5a5f63", line: "#2b2f31", surface: "#191c1d", accent: "#42bfb0", best: "#f0965c" }
    : { text: "#1b1d1f", muted: "#686c70", faint: "#b9bcbe", line: "#e6e6e2", surface: "#ffffff", accent: "#0f766e", best: "#c8601d" },
);

/** A colour from 0 (poor) to 1 (good): a calm path from grey violet over teal to warm yellow. */
export function ramp(t: number): string {
  const stops = dark.value
    ? [[58, 52, 88], [48, 98, 130], [52, 160, 148], [168, 205, 120], [247, 226, 140]]
    : [[226, 222, 238], [150, 180, 214], [70, 150, 160], [24, 112, 106], [10, 62, 66]];
  const x = Math.min(1, Math.max(0, t)) * (stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(x));
  const mix = stops[i]!.map((from, c) => Math.round(from + (stops[i + 1]![c]! - from) * (x - i)));
  return `rgb(${mix.join(",")})`;
}
