// Two objectives over one another: every trial a point, and those that no other one beats in both.
import { useCallback, useMemo } from "preact/hooks";
import { type Sweep, type Trial, int, real } from "../api/types";
import { num } from "../state/format";
import { dark, ink } from "../state/theme";
import { Canvas, type Pen } from "./canvas";

const HEIGHT = 260;
const MARGIN = { left: 58, right: 14, top: 10, bottom: 38 };

interface Point {
  x: number;
  y: number;
  best: boolean;
}

export function Front({ sweep, trials }: { sweep: Sweep; trials: Trial[] }) {
  const [first, second] = sweep.objectives ?? [];
  const points = useMemo(() => {
    const best = new Set((sweep.front ?? []).map((one) => int(one.number)));
    const all = trials.map((trial) => ({ x: real(trial.values?.[0]), y: real(trial.values?.[1]), best: best.has(int(trial.number)) }));
    return all.filter((point) => Number.isFinite(point.x + point.y)).sort((a, b) => a.x - b.x);
  }, [sweep, trials]);
  const names = `${first?.metric} ${first?.mode} ${second?.metric} ${second?.mode}`;
  const draw = useCallback((pen: Pen) => paint(pen, points, `${first?.metric} (${first?.mode})`, `${second?.metric} (${second?.mode})`), [points, names, dark.value]);
  if (points.length === 0) return <div class="empty">No trial has both yet.</div>;
  return <Canvas height={HEIGHT} label={`${second?.metric} over ${first?.metric}`} draw={draw} />;
}

function paint({ context, width, height }: Pen, points: Point[], across: string, up: string): void {
  const { muted, faint, line, accent } = ink.value;
  const range = (values: number[]) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    return [low - pad, high + pad] as const;
  };
  const [left, right] = range(points.map((point) => point.x));
  const [low, high] = range(points.map((point) => point.y));
  const px = (x: number) => MARGIN.left + ((x - left) / (right - left)) * (width - MARGIN.left - MARGIN.right);
  const py = (y: number) => MARGIN.top + (1 - (y - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
  context.strokeStyle = line;
  context.fillStyle = muted;
  for (const t of [0, 0.5, 1]) {
    const [x, y] = [left + (right - left) * t, low + (high - low) * t];
    context.beginPath();
    context.moveTo(MARGIN.left, py(y));
    context.lineTo(width - MARGIN.right, py(y));
    context.stroke();
    context.textAlign = "right";
    context.fillText(num(y, 3), MARGIN.left - 6, py(y) + (t === 1 ? 9 : 3));
    context.textAlign = t === 0 ? "left" : t === 1 ? "right" : "center";
    context.fillText(num(x, 3), px(x), height - MARGIN.bottom + 14);
  }
  context.textAlign = "left";
  context.fillText(`↑ ${up}   → ${across}`, MARGIN.left, height - 6);
  const front = points.filter((point) => point.best);
  context.strokeStyle = accent;
  context.beginPath();
  front.forEach((point, i) => (i === 0 ? context.moveTo(px(point.x), py(point.y)) : context.lineTo(px(point.x), py(point.y))));
  context.stroke();
  for (const point of [...points.filter((one) => !one.best), ...front]) {
    context.fillStyle = point.best ? accent : faint;
    context.beginPath();
    context.arc(px(point.x), py(point.y), point.best ? 4 : 2.8, 0, 7);
    context.fill();
  }
}
