// The outcome over two parameters: interpolated between the trials, which are drawn as points.
import { useCallback, useMemo } from "preact/hooks";
import type { Trial } from "../api/types";
import { type Scale, at, goodness, hasValue, place, surface } from "../math/space";
import { num } from "../state/format";
import { dark, ink, ramp } from "../state/theme";
import { Canvas, type Pen } from "./canvas";

const HEIGHT = 300;
const GRID = 80;
/** Levels of colour: bands are read more easily than a smear. */
const BANDS = 10;
/** Trials that shape the surface; of more, the newest. */
const MOST = 600;
const MARGIN = { left: 56, right: 12, top: 8, bottom: 24 };

interface Props {
  trials: Trial[];
  x: Scale;
  y: Scale;
  max: boolean;
}

export function Contour({ trials, x, y, max }: Props) {
  const points = useMemo(() => {
    const usable = trials.filter(hasValue).slice(-MOST);
    const good = goodness(usable, max);
    return usable
      .map((trial) => ({ x: place(x, trial.params[x.name]), y: place(y, trial.params[y.name]), z: good.get(trial.number)! }))
      .filter((point) => !Number.isNaN(point.x + point.y));
  }, [trials, x, y, max]);
  const grid = useMemo(() => (points.length ? surface(points, GRID, x, y) : undefined), [points, x, y]);
  const draw = useCallback((pen: Pen) => grid && paint(pen, grid, points, x, y), [grid, points, x, y, dark.value]);
  if (!grid) return <div class="empty">No trial has both.</div>;
  return <Canvas height={HEIGHT} label={`Outcome over ${x.name} and ${y.name}`} draw={draw} />;
}

function paint({ context, width, height }: Pen, grid: Float64Array, points: { x: number; y: number }[], x: Scale, y: Scale): void {
  const { muted, surface: paper } = ink.value;
  const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  const cell = { width: inner.width / GRID, height: inner.height / GRID };
  for (let row = 0; row < GRID; row++) {
    for (let column = 0; column < GRID; column++) {
      context.fillStyle = ramp(Math.round(grid[row * GRID + column]! * BANDS) / BANDS);
      context.fillRect(MARGIN.left + column * cell.width, MARGIN.top + (GRID - 1 - row) * cell.height, cell.width + 0.6, cell.height + 0.6);
    }
  }
  context.lineWidth = 1;
  for (const point of points) {
    context.beginPath();
    context.arc(MARGIN.left + point.x * inner.width, MARGIN.top + (1 - point.y) * inner.height, 2.4, 0, 7);
    context.fillStyle = muted;
    context.fill();
    context.strokeStyle = paper;
    context.stroke();
  }
  context.fillStyle = muted;
  const tick = (scale: Scale, t: number) => {
    const value = at(scale, t);
    return typeof value === "number" ? num(value, 3) : value.slice(0, 8);
  };
  context.textAlign = "right";
  context.fillText(tick(y, 1), MARGIN.left - 6, MARGIN.top + 9);
  context.fillText(tick(y, 0.5), MARGIN.left - 6, MARGIN.top + inner.height / 2 + 4);
  context.fillText(tick(y, 0), MARGIN.left - 6, MARGIN.top + inner.height);
  context.textAlign = "left";
  context.fillText(tick(x, 0), MARGIN.left, height - 8);
  context.textAlign = "center";
  context.fillText(tick(x, 0.5), MARGIN.left + inner.width / 2, height - 8);
  context.textAlign = "right";
  context.fillText(tick(x, 1), width - MARGIN.right, height - 8);
}
