// What the page reckons by itself: `npm test`.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import * as esbuild from "esbuild";

const folder = mkdtempSync(join(tmpdir(), "phalanx-dashboard-"));
after(() => rmSync(folder, { recursive: true }));
// A clock of the page would keep the test alive.
globalThis.setInterval = () => 0;
const src = fileURLToPath(new URL("../src", import.meta.url));
const names = ["math/smooth", "math/space", "math/stints", "parts/order", "state/format", "state/series", "parts/terminal", "parts/spec"];
await esbuild.build({
  stdin: { contents: names.map((name) => `export * from "./${name}";`).join("\n"), resolveDir: src },
  bundle: true,
  format: "esm",
  outfile: join(folder, "page.mjs"),
});
const page = await import(join(folder, "page.mjs"));

test("a trial is drawn where it ran, and not where it was paused", () => {
  const at = (s) => new Date(1e12 + 1000 * s).toISOString();
  const trial = { number: 7, state: "RUNNING", job: "j9", params: {}, start_time: at(0), stints: [
    { start_time: at(1), end_time: at(3) },
    { start_time: at(8), end_time: null },
  ] };
  const bars = page.stints(trial, 1e12 + 9000).map(({ start, end, state, href }) => [start - 1e12, end - 1e12, state, href]);
  assert.deepEqual(bars, [[1000, 3000, "PAUSED", "/jobs/j9"], [8000, 9000, "RUNNING", "/jobs/j9"]]);
  assert.deepEqual(page.stints({ ...trial, stints: [] }, 0), []);
});

test("a smoothed curve begins where it begins and passes over gaps", () => {
  assert.deepEqual(page.smooth([3, 3, 3], 0.9).map((y) => Math.round(y * 1e9) / 1e9), [3, 3, 3]);
  assert.deepEqual(page.smooth([1, 2, 4], 0), [1, 2, 4]);
  const gap = page.smooth([1, NaN, 1], 0.5);
  assert.ok(Number.isNaN(gap[1]) && gap[2] === 1);
});

test("curves of different steps share one axis, and none has a value that it never had", () => {
  const lines = [
    { x: [1, 2, 4], y: [10, NaN, 40] },
    { x: [2, 3], y: [200, 300] },
  ];
  assert.deepEqual(page.align(lines), [
    [1, 2, 3, 4],
    [10, null, undefined, 40],
    [undefined, 200, 300, undefined],
  ]);
  assert.deepEqual(page.align([]), [[]]);
});

test("a step that comes again cuts off what was reported from there on", () => {
  const series = new page.Series("j1", "loss", 0);
  for (const step of [1, 2, 3, 4]) series.push(step, step, step);
  series.push(3, 10, 30);
  series.push(4, 11, 40);
  assert.deepEqual(series.steps, [1, 2, 3, 4]);
  assert.deepEqual(series.values, [1, 2, 30, 40]);
  assert.equal(series.last, 40);
});

const trial = (number, params, value) => ({ number, state: "COMPLETE", params, value });

test("scales are read from the trials; what never varies has none", () => {
  const trials = [1e-4, 1e-2].map((lr, i) => trial(i, { lr, layers: i, opt: ["b", "a"][i], fixed: 7 }, i));
  assert.deepEqual(page.scales(trials), [
    { kind: "number", name: "lr", low: 1e-4, high: 1e-2, log: true },
    { kind: "number", name: "layers", low: 0, high: 1, log: false },
    { kind: "choice", name: "opt", values: ["a", "b"] },
  ]);
  const [lr] = page.scales(trials);
  assert.ok(Math.abs(page.place(lr, 1e-3) - 0.5) < 1e-12);
  assert.ok(Math.abs(page.at(lr, 0.5) - 1e-3) < 1e-12);
  assert.ok(Number.isNaN(page.place(lr, undefined)));
});

test("the parameter that decides explains all, the one that does not explains nothing", () => {
  const trials = Array.from({ length: 240 }, (_, i) => trial(i, { matters: i % 12, idle: (i * 7919) % 240 }, (i % 12) ** 2));
  const found = Object.fromEntries(page.importance(trials, page.scales(trials)).map(({ name, share }) => [name, share]));
  assert.ok(found.matters > 0.9, found.matters);
  assert.ok(found.idle < 0.1, found.idle);
  assert.deepEqual(page.importance([], []), []);
});

test("the best so far never gets worse, whichever way is better", () => {
  assert.deepEqual(page.bestSoFar([1, NaN, 3, 2], true), [1, 1, 3, 3]);
  assert.deepEqual(page.bestSoFar([3, 1, 2], false), [3, 1, 1]);
  assert.ok(Number.isNaN(page.bestSoFar([NaN], true)[0]));
});

test("a surface meets its points and is flat between choices", () => {
  const number = { kind: "number", name: "x", low: 0, high: 1, log: false };
  const choice = { kind: "choice", name: "y", values: ["a", "b"] };
  const grid = page.surface([{ x: 0, y: 0, z: 0 }, { x: 1, y: 1, z: 1 }], 10, number, choice);
  assert.ok(grid[0] < 0.05 && grid[99] > 0.95);
  assert.equal(grid[0], grid[40]);
});

test("sorting is by number where there are numbers, and what has no value goes last either way", () => {
  const rows = [{ v: 10 }, { v: null }, { v: 9 }, { v: NaN }, { v: 100 }];
  const columns = [{ key: "v", head: "v", value: (row) => row.v }];
  const order = (down) => page.sorted(rows, columns, { key: "v", down }).map((row) => row.v);
  assert.deepEqual(order(false), [9, 10, 100, null, NaN]);
  assert.deepEqual(order(true), [100, 10, 9, null, NaN]);
  assert.deepEqual(page.sorted([{ v: "j10" }, { v: "j9" }], columns, { key: "v", down: false }).map((row) => row.v), ["j9", "j10"]);
});

test("figures are read back as they were written", () => {
  for (const value of [0, 1, -2.5, 0.00012345, 123456, 0.1 + 0.2]) {
    assert.ok(Math.abs(Number(page.num(value)) - value) <= Math.abs(value) * 1e-4, page.num(value));
  }
  assert.equal(page.num(1234567), "1.235e6");
  assert.equal(page.num(1e-7), "1e-7");
  assert.equal(page.num(NaN), "–");
  assert.equal(page.num(Infinity), "∞");
  assert.deepEqual([0, 4200, 65_000, 7_800_000, 90_000_000].map(page.duration), ["0 s", "4.2 s", "1m 05s", "2h 10m", "1d 1h"]);
  assert.equal(page.bytes(80 * 2 ** 30), "80 GiB");
});

test("a log line is shown as a terminal would leave it", () => {
  assert.equal(page.plain("\x1b[31mred\x1b[0m"), "red");
  assert.equal(page.plain(" 10%\r 50%\r100%"), "100%");
  assert.equal(page.plain("dos\r"), "dos");
});

test("a specification is read key by key in the words of the job file", () => {
  const spec = {
    name: "digits",
    time_limit: { secs: 7200, nanos: 0 },
    env: {},
    gang: { workers: { min: 2, max: 2 }, each: { cpus: 500, memory_bytes: 67108864, custom: { license: 1000 } }, topology: null },
    work: { Train: { model: { Mlp: { hidden: [16, 8] } }, batch_size: 32 } },
  };
  assert.deepEqual(page.keys(spec), [
    ["name", "digits"],
    ["time_limit", "2h 00m"],
    ["gang.workers", "2"],
    ["gang.each.cpus", "0.5"],
    ["gang.each.memory_bytes", "64 MiB"],
    ["gang.each.custom.license", "1"],
    ["train.model.kind", "mlp"],
    ["train.model.hidden", "16 8"],
    ["train.batch_size", "32"],
  ]);
});
