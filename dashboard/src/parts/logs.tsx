// The end of a job's log, following it until somebody scrolls up.
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { type LogLine, int, when } from "../api/types";
import { clock } from "../state/format";
import { tail } from "../state/store";
import { Card } from "./marks";
import { plain } from "./terminal";

/** Lines that are drawn; the rest is reached by the filter. */
const DRAWN = 1000;
/** Nearer to the end than this counts as at the end, in pixels. */
const END_PX = 30;

export function Logs({ ranks }: { ranks: number }) {
  const [rank, setRank] = useState("");
  const [words, setWords] = useState("");
  const [follow, setFollow] = useState(true);
  const [stamps, setStamps] = useState(false);
  const box = useRef<HTMLDivElement>(null);
  tail.all();
  const version = tail.version.value;
  const lines = useMemo(() => pick(tail.all(), rank, words), [version, rank, words]);

  useLayoutEffect(() => {
    if (follow && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [lines, follow]);
  const scrolled = () => {
    const { scrollTop, clientHeight, scrollHeight } = box.current!;
    setFollow(scrollHeight - scrollTop - clientHeight < END_PX);
  };
  const tools = (
    <>
      {ranks > 1 && (
        <select aria-label="Rank" value={rank} onChange={(event) => setRank(event.currentTarget.value)}>
          <option value="">All ranks</option>
          {Array.from({ length: ranks }, (_, i) => (
            <option key={i} value={i}>
              Rank {i}
            </option>
          ))}
        </select>
      )}
      <input type="search" placeholder="Find in log" aria-label="Find in log" value={words} onInput={(event) => setWords(event.currentTarget.value)} />
      <label class="check">
        <input type="checkbox" checked={stamps} onChange={() => setStamps(!stamps)} /> time
      </label>
      <button type="button" aria-pressed={follow} onClick={() => setFollow(!follow)}>
        Follow
      </button>
    </>
  );
  return (
    <Card title="Log" tools={tools} note={tail.dropped > 0 ? `the last ${tail.all().length} lines` : undefined}>
      {lines.length === 0 ? (
        <div class="empty">{words || rank ? "No line is like this." : "No output yet."}</div>
      ) : (
        <div class="log" ref={box} onScroll={scrolled} tabIndex={0} role="log" aria-label="Log">
          {lines.map((line) => (
            <Row key={line.seq} line={line} ranks={ranks > 1} stamps={stamps} />
          ))}
        </div>
      )}
    </Card>
  );
}

function Row({ line, ranks, stamps }: { line: LogLine; ranks: boolean; stamps: boolean }) {
  return (
    <div class={line.stream.toLowerCase() === "stderr" ? "stderr" : ""}>
      {stamps && <time>{clock(when(line.time))}</time>}
      {ranks && <em>{line.rank}</em>}
      <span>{plain(line.line)}</span>
    </div>
  );
}

function pick(lines: LogLine[], rank: string, words: string): LogLine[] {
  const wanted = words.toLowerCase();
  const fits = lines.filter((line) => (rank === "" || line.rank === Number(rank)) && line.line.toLowerCase().includes(wanted));
  return fits.slice(-DRAWN).sort((a, b) => int(a.seq) - int(b.seq));
}
