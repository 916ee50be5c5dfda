/** What a terminal would show of it: without colours, and of a progress bar its last state. */
export function plain(line: string): string {
  const text = line.replace(/\x1b\[[0-9;?]*[ -/]*[@-~]/g, "").replace(/\r+$/, "");
  return text.slice(text.lastIndexOf("\r") + 1);
}
