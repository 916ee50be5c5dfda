// One sweep: the best so far and how it was found, every trial, and what the parameters do.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { ApiError, post } from "../api/client";
import { type Sweep, type Trial, int, isTerminal, real, when } from "../api/types";
import { Contour } from "../charts/contour";
import { Front } from "../charts/front";
import { Gantt, lanes } from "../charts/gantt";
import { type Line, Lines } from "../charts/lines";
import { Parallel } from "../charts/parallel";
import { Slice } from "../charts/slice";
import { type Scale, bestSoFar, hasValue, importance, scales } from "../math/space";
import { stints } from "../math/stints";
import { Bar, Card, Fact, Segments, State } from "../parts/marks";
import { useSettled } from "../parts/settled";
import { Trials } from "../parts/trials";
import { ago, now, num, param, plural } from "../state/format";
import { go } from "../state/route";
import { alsoWatch, attempt, loadSweep, open, series, sweeps, trials } from "../state/store";
import { colour, dark, ink } from "../state/theme";
import { Progress } from "./sweeps";

/** Trials whose whole curves are asked for; those of others grow from when the page was opened. */
const CURVES = 40;
/** Whole curves are asked for so long after the first trial, and not sooner again; each time a stream is opened anew. */
const CURVES_FIRST_MS = 400;
const CURVES_AGAIN_MS = 15_000;
/** Asked for again once so many more trials are there. */
const CURVES_TRIALS = 20;
/** Trials that are drawn: the best and the newest. */
const DRAWN = 60;
/** Between two drawings of what is dear, by how many trials there are. */
const SETTLE_MS = 500;
const SETTLE_MANY_MS = 3000;
const MANY = 500;
/** Trials of the timeline. */
const TIMELINE = 500;

export function SweepView({ id }: { id: string }) {
  const [missing, setMissing] = useState("");
  useEffect(() => {
    let left = false;
    loadSweep(id).then(
      () => left || open(topics(id, []), () => {}, id),
      (error) => error instanceof ApiError && setMissing(error.message),
    );
    return () => {
      left = true;
    };
  }, [id]);
  const sweep = sweeps.get(id);
  const all = trials.rows();
  const max = isMax(sweep);
  const settled = useSettled(all, all.length > MANY ? SETTLE_MANY_MS : SETTLE_MS);
  const space = useMemo(() => scales(settled), [settled]);
  useCurves(id, all, max);
  if (!sweep) return <div class="empty">{missing || "…"}</div>;
  document.title = `${sweep.name || id} · Phalanx`;
  const metric = sweep.objectives?.[0]?.metric ?? "value";
  return (
    <>
      <Head sweep={sweep} />
      {sweep.reason?.text && (sweep.state === "QUEUED" || sweep.state === "FAILED") && <p class={`banner ${sweep.state === "FAILED" ? "bad" : "wait"}`}>{sweep.reason.text}</p>}
      <Summary sweep={sweep} metric={metric} />
      <div class="two">
        <Best trials={all} metric={metric} max={max} />
        <Intermediate trials={all} metric={metric} max={max} />
      </div>
      {(sweep.objectives?.length ?? 0) > 1 && (
        <Card title="Front" note="the trials that no other one beats in both objectives">
          <Front sweep={sweep} trials={settled} />
        </Card>
      )}
      <Trials sweep={sweep} trials={all} max={max} />
      <div class="two">
        <Importance trials={settled} space={space} />
        <Contours trials={settled} space={space} max={max} />
      </div>
      <Card title="Parallel coordinates">
        <Parallel trials={settled} scales={space} metric={metric} max={max} />
      </Card>
      <Card title="Slices" note={`${metric} over each parameter; later trials stand out`}>
        <div class="slices">
          {space.map((scale) => (
            <Slice key={scale.name} trials={settled} scale={scale} best={sweep.best ? int(sweep.best.number) : undefined} />
          ))}
        </div>
        {space.length === 0 && <div class="empty">Needs two trials that differ.</div>}
      </Card>
      <Timeline trials={settled} />
      {sweep.toml && (
        <details class="card spec">
          <summary>
            <h2>Sweep file</h2>
          </summary>
          <pre>{sweep.toml}</pre>
        </details>
      )}
    </>
  );
}

function isMax(sweep: Sweep | undefined): boolean {
  return sweep?.objectives?.[0]?.mode === "max";
}

function topics(id: string, jobs: string[]): string[] {
  return [`sweep:${id}`, ...jobs.map((job) => `metrics:${job}`)];
}

/** Asks for whole curves once the trials are there, and now and then for those of later trials. */
function useCurves(id: string, all: Trial[], max: boolean): void {
  const asked = useRef(-Infinity);
  const latest = useRef(all);
  latest.current = all;
  const some = all.length > 0;
  useEffect(() => {
    if (!some) return;
    const wait = Math.max(CURVES_FIRST_MS, asked.current + CURVES_AGAIN_MS - performance.now());
    const timer = setTimeout(() => {
      asked.current = performance.now();
      alsoWatch(topics(id, curvesOf(latest.current, max)));
    }, wait);
    return () => clearTimeout(timer);
  }, [id, some, max, Math.floor(all.length / CURVES_TRIALS)]);
}

/** Jobs of the trials whose curves are worth their whole length: those that run and the best. */
function curvesOf(all: Trial[], max: boolean): string[] {
  return shown(all, max, CURVES).flatMap((trial) => (trial.job ? [trial.job] : []));
}

function shown(all: Trial[], max: boolean, most: number): Trial[] {
  const running = all.filter((trial) => trial.state === "RUNNING").slice(-most / 2);
  const best = all.filter((trial) => hasValue(trial) && trial.state !== "RUNNING");
  best.sort((a, b) => (max ? real(b.value) - real(a.value) : real(a.value) - real(b.value)));
  return [...running, ...best].slice(0, most);
}

function Head({ sweep }: { sweep: Sweep }) {
  const act = async (verb: string) => {
    if (verb === "cancel" && !confirm(`Cancel ${sweep.name || sweep.id} and its trials for good?`)) return;
    const changed = await attempt(() => post<Sweep>(`/sweeps/${encodeURIComponent(sweep.id)}:${verb}`));
    if (changed) sweeps.put(changed);
  };
  const verbs = isTerminal(sweep.state) ? [] : sweep.state === "PAUSED" ? ["resume", "cancel"] : ["pause", "cancel"];
  return (
    <div class="head">
      <h1>{sweep.name || sweep.id}</h1>
      <State state={sweep.state} />
      <code>{sweep.id}</code>
      <div class="tools">
        {verbs.map((verb) => (
          <button type="button" key={verb} onClick={() => void act(verb)}>
            {verb[0]!.toUpperCase() + verb.slice(1)}
          </button>
        ))}
      </div>
    </div>
  );
}

function Summary({ sweep, metric }: { sweep: Sweep; metric: string }) {
  const best = sweep.best;
  const counts = sweep.counts ?? {};
  const handed = Object.values(counts).reduce<number>((sum, count) => sum + int(count), 0);
  return (
    <section class="card summary">
      <div class="hero">
        <span class="note">Best {metric}</span>
        <strong>{best ? num(real(best.value)) : "–"}</strong>
        <span class="note">{best ? best.job ? <a href={`/jobs/${best.job}`}>trial {best.number}</a> : `trial ${best.number}` : "no complete trial yet"}</span>
      </div>
      {best && (
        <dl class="params">
          {Object.entries(best.params).map(([name, value]) => (
            <Fact key={name} name={name}>
              {param(value)}
            </Fact>
          ))}
        </dl>
      )}
      <div class="how-far">
        <Progress sweep={sweep} />
        <p class="note">
          {handed}
          {int(sweep.trials) > 0 && ` of ${int(sweep.trials)}`} trials:{" "}
          {Object.entries(counts)
            .filter(([, count]) => int(count) > 0)
            .map(([state, count]) => `${count} ${state}`)
            .join(", ")}
          . {plural(int(sweep.steps_run), "step")} run
          {sweep.search && `, ${sweep.search}`}
          {sweep.stopping && sweep.stopping !== "none" && ` with ${sweep.stopping}`}
          {sweep.submit_time && `, ${ago(when(sweep.submit_time))}`}
        </p>
      </div>
    </section>
  );
}

function Best({ trials: all, metric, max }: { trials: Trial[]; metric: string; max: boolean }) {
  const lines = useMemo((): Line[] => {
    const usable = all.filter(hasValue).sort((a, b) => int(a.number) - int(b.number));
    const x = usable.map((trial) => int(trial.number));
    const values = (complete: boolean) => usable.map((trial) => ((trial.state === "COMPLETE") === complete ? real(trial.value) : NaN));
    const ended = values(true);
    return [
      { label: "not to its end", colour: ink.value.faint, x, y: values(false), dots: true },
      { label: "complete", colour: colour(0), x, y: ended, dots: true },
      { label: "best so far", colour: ink.value.best, x, y: bestSoFar(ended, max), stairs: true, width: 2 },
    ];
  }, [all, max, dark.value]);
  const pick = (_: string, x: number) => {
    const job = all.find((trial) => int(trial.number) === x)?.job;
    if (job) go(`/jobs/${job}`);
  };
  return (
    <Card title="History" note={`${metric} by trial`}>
      <Lines lines={lines} axis="step" label={`History of ${metric}`} height={250} onPick={pick} />
    </Card>
  );
}

function Intermediate({ trials: all, metric, max }: { trials: Trial[]; metric: string; max: boolean }) {
  const [scale, setScale] = useState<"linear" | "log">("linear");
  const version = series.version.value;
  const lines = useMemo((): Line[] => {
    const curves = new Map(series.all().filter((one) => one.name === metric && one.rank === 0).map((one) => [one.job, one]));
    const found: Line[] = [];
    // The best come first and are drawn last.
    for (const trial of shown(all, max, DRAWN).reverse()) {
      const curve = trial.job ? curves.get(trial.job) : undefined;
      if (curve) found.push({ label: `trial ${trial.number}`, colour: colour(int(trial.number)), x: curve.steps, y: curve.values, width: 1.25 });
    }
    return found;
  }, [version, all, metric, max, dark.value]);
  const pick = (label: string) => {
    const job = all.find((trial) => `trial ${trial.number}` === label)?.job;
    if (job) go(`/jobs/${job}`);
  };
  const tools = <Segments label="Vertical axis" value={scale} options={[["linear", "Linear"], ["log", "Log"]]} onPick={setScale} />;
  return (
    <Card title="Intermediate values" note={all.length > DRAWN ? "the best, and those that run" : ""} tools={tools}>
      {lines.length === 0 ? <div class="empty">No reports yet.</div> : <Lines lines={lines} axis="step" log={scale === "log"} label={`Intermediate values of ${metric}`} height={250} onPick={pick} />}
    </Card>
  );
}

function Importance({ trials: all, space }: { trials: Trial[]; space: Scale[] }) {
  const shares = useMemo(() => importance(all, space), [all, space]);
  return (
    <Card title="Importance" note="share of the variance that each explains alone">
      {shares.length === 0 ? (
        <div class="empty">Needs two trials that differ.</div>
      ) : (
        <ol class="importance">
          {shares.map(({ name, share }) => (
            <li key={name}>
              <span>{name}</span>
              <Bar share={share} label={`Importance of ${name}`} />
              <b>{share.toFixed(2)}</b>
            </li>
          ))}
        </ol>
      )}
    </Card>
  );
}

function Contours({ trials: all, space, max }: { trials: Trial[]; space: Scale[]; max: boolean }) {
  const [picked, setPicked] = useState<[string, string]>(["", ""]);
  const ranked = useMemo(() => {
    // Numbers first: between choices there is nothing to interpolate.
    const kind = (name: string) => Number(space.find((scale) => scale.name === name)?.kind === "choice");
    const names = importance(all, space).map((entry) => entry.name);
    return names.sort((a, b) => kind(a) - kind(b));
  }, [all, space]);
  const name = (i: 0 | 1) => (space.some((scale) => scale.name === picked[i]) ? picked[i] : ranked[i]);
  const [x, y] = [0, 1].map((i) => space.find((scale) => scale.name === name(i as 0 | 1)));
  const select = (i: 0 | 1) => (
    <select
      aria-label={i === 0 ? "Horizontal parameter" : "Vertical parameter"}
      value={name(i)}
      onChange={(event) => setPicked(i === 0 ? [event.currentTarget.value, name(1) ?? ""] : [name(0) ?? "", event.currentTarget.value])}
    >
      {space.map((scale) => (
        <option key={scale.name}>{scale.name}</option>
      ))}
    </select>
  );
  return (
    <Card title="Contour" tools={x && y && <>{select(0)} × {select(1)}</>}>
      {x && y && x !== y ? <Contour trials={all} x={x} y={y} max={max} /> : <div class="empty">Needs two parameters that vary.</div>}
    </Card>
  );
}

function Timeline({ trials: all }: { trials: Trial[] }) {
  const begun = all.filter((trial) => trial.stints?.length).sort((a, b) => when(b.start_time) - when(a.start_time));
  const spans = begun.slice(0, TIMELINE).flatMap((trial) => stints(trial, now.value));
  return (
    <Card title="Timeline" note={begun.length > TIMELINE ? `the newest ${TIMELINE} trials` : "trials by number, those at a time below one another"}>
      <Gantt {...lanes(spans, [""])} label="When each trial ran" narrow />
    </Card>
  );
}
