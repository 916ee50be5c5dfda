// Curves as they are drawn: smoothed, on one axis.

/**
 * Exponential moving average with the weight of the start taken out (as in Adam), so that the first points are not drawn
 * towards zero. `weight` is from 0 (as it is) to just below 1. Values that are not finite are passed over.
 */
export function smooth(values: ArrayLike<number>, weight: number): number[] {
  const out = new Array<number>(values.length);
  let average = 0;
  let taken = 1;
  for (let i = 0; i < values.length; i++) {
    const value = values[i]!;
    if (!Number.isFinite(value)) {
      out[i] = NaN;
      continue;
    }
    average = weight * average + (1 - weight) * value;
    taken *= weight;
    out[i] = average / (1 - taken);
  }
  return out;
}

export interface Xy {
  x: ArrayLike<number>;
  y: ArrayLike<number>;
}

/** Ascending `x` of all lines and, for each, its value there: `null` for a gap, `undefined` where it has no such `x`. */
export function align(lines: Xy[]): [number[], ...(number | null | undefined)[][]] {
  const first = lines[0];
  if (!first) return [[]];
  const same = lines.every((line) => line.x === first.x || equal(line.x, first.x));
  const xs = same ? Array.from(first.x) : union(lines.map((line) => line.x));
  const columns = lines.map((line) => {
    const column = new Array<number | null | undefined>(xs.length);
    let at = 0;
    for (let i = 0; i < xs.length; i++) {
      if (at < line.x.length && line.x[at] === xs[i]) {
        const y = line.y[at++]!;
        column[i] = Number.isFinite(y) ? y : null;
      } else column[i] = undefined;
    }
    return column;
  });
  return [xs, ...columns];
}

function equal(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

function union(lists: ArrayLike<number>[]): number[] {
  const total = lists.reduce((sum, list) => sum + list.length, 0);
  const all = new Float64Array(total);
  let at = 0;
  for (const list of lists) {
    all.set(list as number[], at);
    at += list.length;
  }
  all.sort();
  const out: number[] = [];
  for (const x of all) if (x !== out[out.length - 1]) out.push(x);
  return out;
}
