// Parallel coordinates: one line a trial, through every parameter to its value; the good ones are drawn last.
import { useCallback, useMemo, useState } from "preact/hooks";
import { type Trial, real } from "../api/types";
import { goodness, hasValue, type Scale, at, place } from "../math/space";
import { num, param } from "../state/format";
import { go } from "../state/route";
import { dark, ink, ramp } from "../state/theme";
import { Canvas, type Pen } from "./canvas";

const HEIGHT = 260;
const TOP = 26;
const BOTTOM = 22;
const SIDE = 34;
/** A brush of less than this many pixels is a click. */
const NEAR_PX = 6;

/** Lines that are drawn; of more trials the best. */
const LINES = 2000;

interface Props {
  trials: Trial[];
  scales: Scale[];
  metric: string;
  max: boolean;
}

export function Parallel({ trials, scales, metric, max }: Props) {
  const usable = useMemo(() => best(trials.filter(hasValue), max), [trials, max]);
  const good = useMemo(() => goodness(usable, max), [usable, max]);
  const axes = useMemo(() => [...scales, valueScale(usable, metric)], [scales, usable, metric]);
  const lines = useMemo(
    () =>
      usable
        .map((trial) => ({ trial, good: good.get(trial.number)!, places: axes.map((axis, i) => place(axis, i < scales.length ? trial.params[axis.name] : real(trial.value))) }))
        .sort((a, b) => a.good - b.good),
    [usable, axes, good],
  );
  const [near, setNear] = useState<Trial>();
  const draw = useCallback((pen: Pen) => paint(pen, axes, lines, near), [axes, lines, near, dark.value]);
  if (scales.length === 0 || usable.length === 0) return <div class="empty">No finished trial with parameters yet.</div>;
  const point = (x: number | undefined, y: number, width: number) => {
    if (x === undefined) return setNear(undefined);
    const gap = (width - 2 * SIDE) / (axes.length - 1);
    const position = (x - SIDE) / gap;
    const i = Math.min(axes.length - 2, Math.max(0, Math.floor(position)));
    const t = position - i;
    let best: Trial | undefined;
    let least = NEAR_PX;
    for (const line of lines) {
      const [a, b] = [line.places[i]!, line.places[i + 1]!];
      const distance = Math.abs(height(a + (b - a) * t) - y);
      if (distance <= least) [best, least] = [line.trial, distance];
    }
    if (best !== near) setNear(best);
  };
  return (
    <>
      <Canvas height={HEIGHT} label={`Parallel coordinates of ${usable.length} trials`} draw={draw} onPoint={point} onClick={() => near?.job && go(`/jobs/${near.job}`)} />
      <p class="note">{near ? `trial ${near.number}: ${Object.entries(near.params).map(([k, v]) => `${k} ${param(v)}`).join(" · ")} → ${num(real(near.value))}` : "Better trials stand out. Point at a line; click to open its job."}</p>
    </>
  );
}

function best(trials: Trial[], max: boolean): Trial[] {
  if (trials.length <= LINES) return trials;
  return trials.sort((a, b) => (max ? real(b.value) - real(a.value) : real(a.value) - real(b.value))).slice(0, LINES);
}

function valueScale(trials: Trial[], metric: string): Scale {
  let low = Infinity;
  let high = -Infinity;
  for (const trial of trials) {
    low = Math.min(low, real(trial.value));
    high = Math.max(high, real(trial.value));
  }
  return { kind: "number", name: metric, low, high: high > low ? high : low + 1, log: false };
}

function height(t: number): number {
  return HEIGHT - BOTTOM - t * (HEIGHT - TOP - BOTTOM);
}

function paint({ context, width }: Pen, axes: Scale[], lines: { trial: Trial; good: number; places: number[] }[], near: Trial | undefined): void {
  const { text, muted, line, best } = ink.value;
  const gap = (width - 2 * SIDE) / (axes.length - 1);
  const path = (places: number[]) => {
    context.beginPath();
    let open = false;
    places.forEach((t, i) => {
      if (Number.isNaN(t)) open = false;
      else if (open) context.lineTo(SIDE + i * gap, height(t));
      else {
        context.moveTo(SIDE + i * gap, height(t));
        open = true;
      }
    });
    context.stroke();
  };
  context.lineWidth = lines.length > 500 ? 0.75 : 1.25;
  for (const { places, good } of lines) {
    context.globalAlpha = Math.max(0.08, Math.min(0.9, 60 / lines.length)) * (0.35 + 0.65 * good);
    context.strokeStyle = ramp(good);
    path(places);
  }
  context.globalAlpha = 1;
  const shown = near && lines.find((entry) => entry.trial === near);
  if (shown) {
    context.strokeStyle = best;
    context.lineWidth = 2.5;
    path(shown.places);
  }
  context.lineWidth = 1;
  axes.forEach((axis, i) => {
    const x = SIDE + i * gap;
    context.strokeStyle = line;
    context.beginPath();
    context.moveTo(x, TOP);
    context.lineTo(x, HEIGHT - BOTTOM);
    context.stroke();
    context.textAlign = i === 0 ? "left" : i === axes.length - 1 ? "right" : "center";
    const edge = i === 0 ? 2 : i === axes.length - 1 ? width - 2 : x;
    context.fillStyle = text;
    context.fillText(clip(axis.name, gap), edge, 12);
    context.fillStyle = muted;
    context.fillText(end(axis, 1), edge, 24);
    context.fillText(end(axis, 0), edge, HEIGHT - 8);
  });
}

function end(axis: Scale, t: number): string {
  const value = at(axis, t);
  return clip(typeof value === "number" ? num(value, 3) : value, 90);
}

function clip(text: string, px: number): string {
  const most = Math.max(4, Math.floor(px / 6.5));
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}
