// Curves of several jobs over one another.
import { useEffect } from "preact/hooks";
import { type Run, Curves } from "../parts/curves";
import { plural } from "../state/format";
import { query, setQuery } from "../state/route";
import { jobs, loadJobs, open } from "../state/store";

/** Where nothing is picked, the newest so many are shown. */
const NEWEST = 6;
/** Jobs that can be compared: each has a colour, and the service reads them all. */
const MOST = 40;

export function CurvesView() {
  const named = (query.value.get("jobs") ?? "").split(",").filter(Boolean).slice(0, MOST);
  const newest = jobs
    .rows()
    .filter((job) => job.start_time && !job.sweep)
    .sort((a, b) => Date.parse(b.submit_time ?? "") - Date.parse(a.submit_time ?? ""))
    .slice(0, NEWEST)
    .map((job) => job.id);
  const ids = named.length > 0 ? named : newest;
  useEffect(() => {
    document.title = "Curves · Phalanx";
    open(["jobs", ...ids.map((id) => `metrics:${id}`)], () => void loadJobs(1));
  }, [ids.join()]);
  const runs: Run[] = ids.map((id) => {
    const job = jobs.get(id);
    return { id, label: job?.name ? `${job.name} ${id}` : id };
  });
  return (
    <>
      <div class="head">
        <h1>Curves</h1>
        <span class="muted">{named.length > 0 ? plural(ids.length, "job") : "the newest jobs; pick others in the table of jobs"}</span>
      </div>
      <Curves runs={runs} onDrop={(id) => setQuery({ jobs: ids.filter((other) => other !== id).join(",") })} />
    </>
  );
}
