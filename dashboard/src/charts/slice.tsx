// Slices: the outcome over each parameter alone; newer trials stand out, so that one sees where the search went.
import { useCallback } from "preact/hooks";
import { type Trial, real } from "../api/types";
import { type Scale, at, hasValue, place } from "../math/space";
import { num } from "../state/format";
import { dark, ink, ramp } from "../state/theme";
import { Canvas, type Pen } from "./canvas";

const HEIGHT = 170;
const MARGIN = { left: 46, right: 10, top: 8, bottom: 22 };

export function Slice({ trials, scale, best }: { trials: Trial[]; scale: Scale; best: number | undefined }) {
  const draw = useCallback((pen: Pen) => paint(pen, trials, scale, best), [trials, scale, best, dark.value]);
  return (
    <figure>
      <figcaption>
        <span>{scale.name}</span>
        {scale.kind === "number" && scale.log && <span class="note">log</span>}
      </figcaption>
      <Canvas height={HEIGHT} label={`Outcome over ${scale.name}`} draw={draw} />
    </figure>
  );
}

/** A fixed shake of points that share a choice, so that they are told apart. */
function shake(n: number): number {
  return ((n * 0.618034) % 1) - 0.5;
}

function paint({ context, width, height }: Pen, trials: Trial[], scale: Scale, best: number | undefined): void {
  const { muted, line, best: mark } = ink.value;
  const points = trials
    .filter(hasValue)
    .map((trial) => ({ n: trial.number, x: place(scale, trial.params[scale.name]), y: real(trial.value) }))
    .filter((point) => !Number.isNaN(point.x));
  const ys = points.map((point) => point.y).sort((a, b) => a - b);
  // The worst few may be far off; they are drawn at the edge.
  const low = quantile(ys, 0.02);
  const high = quantile(ys, 0.98);
  const pad = (high - low || 1) * 0.08;
  const choices = scale.kind === "choice" ? scale.values.length : 0;
  const inner = width - MARGIN.left - MARGIN.right;
  const px = (x: number, aside = 0) => MARGIN.left + 6 + (choices ? ((x * (choices - 1) + 0.5 + aside * 0.5) / choices) * (inner - 12) : x * (inner - 12));
  const py = (y: number) => MARGIN.top + (1 - Math.min(1, Math.max(0, (y - low + pad) / (high - low + 2 * pad)))) * (height - MARGIN.top - MARGIN.bottom);
  context.strokeStyle = line;
  context.fillStyle = muted;
  context.textAlign = "right";
  for (const y of [low, (low + high) / 2, high]) {
    context.beginPath();
    context.moveTo(MARGIN.left, py(y));
    context.lineTo(width - MARGIN.right, py(y));
    context.stroke();
    context.fillText(num(y, 3), MARGIN.left - 6, py(y) + 4);
  }
  labels(context, scale, width, height, px);
  const last = Math.max(1, ...trials.slice(-1).map((trial) => trial.number));
  const size = points.length > 1000 ? 2 : 3.2;
  for (const point of points) {
    context.globalAlpha = points.length > 1000 ? 0.5 : 0.85;
    context.fillStyle = point.n === best ? mark : ramp(0.2 + 0.7 * (point.n / last));
    context.beginPath();
    context.arc(px(point.x, shake(point.n)), py(point.y), point.n === best ? size + 1.8 : size, 0, 7);
    context.fill();
  }
  context.globalAlpha = 1;
}

function labels(context: CanvasRenderingContext2D, scale: Scale, width: number, height: number, px: (x: number) => number): void {
  if (scale.kind === "choice") {
    context.textAlign = "center";
    const room = (width - MARGIN.left) / scale.values.length / 6.5;
    scale.values.forEach((value, i) => context.fillText(value.slice(0, room), px(i / Math.max(1, scale.values.length - 1)), height - 7));
    return;
  }
  context.textAlign = "left";
  context.fillText(num(Number(at(scale, 0)), 3), MARGIN.left, height - 7);
  context.textAlign = "center";
  context.fillText(num(Number(at(scale, 0.5)), 3), (MARGIN.left + width - MARGIN.right) / 2, height - 7);
  context.textAlign = "right";
  context.fillText(num(Number(at(scale, 1)), 3), width - MARGIN.right, height - 7);
}

function quantile(sorted: number[], q: number): number {
  return sorted.length ? sorted[Math.round(q * (sorted.length - 1))]! : 0;
}
