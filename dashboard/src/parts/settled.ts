import { useEffect, useState } from "preact/hooks";

/**
 * A value that changes at most every `ms`: for what is dear to draw. The last change is always shown in the end.
 */
export function useSettled<T>(value: T, ms: number): T {
  const [settled, setSettled] = useState({ value, at: 0 });
  useEffect(() => {
    if (value === settled.value) return;
    const wait = Math.max(0, settled.at + ms - performance.now());
    const timer = setTimeout(() => setSettled({ value, at: performance.now() }), wait);
    return () => clearTimeout(timer);
  }, [value, settled, ms]);
  return settled.value;
}
