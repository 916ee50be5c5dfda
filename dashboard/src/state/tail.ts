// The end of a job's log, of bounded length.
import { signal } from "@preact/signals";
import { type LogLine, int } from "../api/types";
import { onFrame } from "./collection";

/** Lines that are kept; older ones are in `phalanx logs`. */
const KEPT = 5000;

export class LogTail {
  private lines: LogLine[] = [];
  private upTo = 0;
  /** Lines that were dropped at the front. */
  dropped = 0;
  readonly version = signal(0);
  private readonly bump = (): void => {
    this.version.value++;
  };

  clear(): void {
    this.lines = [];
    this.upTo = 0;
    this.dropped = 0;
    this.bump();
  }

  /** Lines in the order of their sequence; one that is there already counts once. */
  add(lines: LogLine[]): void {
    const fresh = lines.filter((line) => int(line.seq) > this.upTo);
    if (fresh.length === 0) return;
    if (this.lines.length === 0) this.dropped = int(fresh[0]!.seq) - 1;
    this.lines.push(...fresh);
    this.upTo = int(fresh[fresh.length - 1]!.seq);
    const excess = this.lines.length - KEPT;
    if (excess > 0) {
      this.lines.splice(0, excess);
      this.dropped += excess;
    }
    onFrame(this.bump);
  }

  all(): LogLine[] {
    this.version.value;
    return this.lines;
  }
}
