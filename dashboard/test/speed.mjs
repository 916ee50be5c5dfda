// How fast the page is, on a service that runs: what `cargo bench --bench load` asks, as one line of JSON.
//
//   node test/speed.mjs paint URL TOKEN       first paint of the list of jobs, and until its rows are there, in ms
//   node test/speed.mjs report URL TOKEN JOB  from a report in the job to its figure on the page, in ms
import { chromium } from "playwright-core";
import { BROWSER, FLAGS } from "./service.mjs";

const [mode, url, token, job] = process.argv.slice(2);
/** Loads of the list. */
const LOADS = 9;
/** How long reports are watched. */
const WATCHED_MS = 20_000;
/** What the job reports as `at`: the time of day in milliseconds, modulo this. */
const WRAPS_MS = 100_000;

const browser = await chromium.launch({ executablePath: BROWSER, args: FLAGS });
const page = await (await browser.newContext()).newPage();
await page.goto(`${url}/?token=${token}`);
console.log(JSON.stringify(mode === "paint" ? await paint() : await report()));
await browser.close();

async function paint() {
  const found = { first_paint_ms: [], rows_ms: [] };
  for (let load = 0; load < LOADS; load++) {
    await page.goto(`${url}/jobs`);
    await page.locator("tbody tr").nth(20).waitFor();
    found.rows_ms.push(await page.evaluate(() => performance.now()));
    found.first_paint_ms.push(await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime));
  }
  return found;
}

async function report() {
  await page.goto(`${url}/jobs/${job}`);
  await page.locator("figcaption b").waitFor();
  const delays_ms = await page.evaluate(
    ([watched, wraps]) => {
      const delays = [];
      const figure = document.querySelector("figcaption b");
      const observer = new MutationObserver(() => {
        // The frame that shows it is what a person sees.
        const reported = Number(figure.textContent);
        requestAnimationFrame(() => delays.push((((Date.now() % wraps) - reported) % wraps + wraps) % wraps));
      });
      observer.observe(figure, { childList: true, characterData: true, subtree: true });
      return new Promise((done) => setTimeout(() => done(delays), watched));
    },
    [WATCHED_MS, WRAPS_MS],
  );
  return { delays_ms };
}
