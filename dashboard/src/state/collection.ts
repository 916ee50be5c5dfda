// Resources by their id, changed one by one by the stream and drawn at most once a frame.
import { signal } from "@preact/signals";

/** Between two drawings while changes pour in: faster than anybody reads. */
const DRAW_MS = 80;
/** The same while nobody looks. */
const HIDDEN_MS = 1000;

const waiting = new Set<() => void>();
let flushed = 0;

/** Calls back once before a frame that is drawn soon. */
export function onFrame(work: () => void): void {
  if (waiting.size === 0) {
    const hidden = document.visibilityState === "hidden";
    const wait = (hidden ? HIDDEN_MS : DRAW_MS) - (performance.now() - flushed);
    if (wait > 0) setTimeout(flush, wait);
    else if (hidden) queueMicrotask(flush);
    else requestAnimationFrame(flush);
  }
  waiting.add(work);
}

function flush(): void {
  flushed = performance.now();
  const all = [...waiting];
  waiting.clear();
  for (const work of all) work();
}

/** Whatever is drawn from it subscribes by `rows()`, and is drawn again after a change. */
export class Collection<K, T> {
  private readonly items = new Map<K, T>();
  private readonly version = signal(0);
  private readonly bump = (): void => {
    this.version.value++;
  };
  /** When each was last said by the stream, to tell a stale list from a fresh change. */
  private readonly heard = new Map<K, number>();
  private list: T[] | undefined;

  constructor(private readonly key: (item: T) => K) {}

  /** A change that the stream brought. */
  put(item: T): void {
    const key = this.key(item);
    this.heard.set(key, performance.now());
    this.items.set(key, item);
    this.changed();
  }

  /** A list that was asked for at `asked`: what the stream has said since is newer. */
  fill(items: T[], asked: number): void {
    for (const item of items) {
      const key = this.key(item);
      if ((this.heard.get(key) ?? -1) < asked) this.items.set(key, item);
    }
    this.changed();
  }

  /** All there is now, in place of what there was. */
  replace(items: T[]): void {
    this.items.clear();
    for (const item of items) this.items.set(this.key(item), item);
    this.changed();
  }

  clear(): void {
    this.heard.clear();
    this.replace([]);
  }

  get(key: K): T | undefined {
    this.version.value;
    return this.items.get(key);
  }

  rows(): T[] {
    this.version.value;
    return (this.list ??= [...this.items.values()]);
  }

  get size(): number {
    this.version.value;
    return this.items.size;
  }

  private changed(): void {
    this.list = undefined;
    onFrame(this.bump);
  }
}
