// The pictures of the documentation, taken of the real page on a service that runs: `node test/pictures.mjs URL TOKEN SWEEP`.
//
// `examples/digits/sweep.toml` on `phalanx up --cpus 4 --gpus 8` is what they show; see docs/dashboard.md.
import { chromium } from "playwright-core";
import { BROWSER, FLAGS } from "./service.mjs";

const [url, token, sweep] = process.argv.slice(2);
const OUT = new URL("../../docs/pictures/", import.meta.url).pathname;
/** Until charts have drawn what they were asked for. */
const DRAWN_MS = 3000;

const browser = await chromium.launch({ executablePath: BROWSER, args: FLAGS });

async function picture(name, path, colorScheme, height, below) {
  const page = await (await browser.newContext({ viewport: { width: 1280, height }, colorScheme })).newPage();
  await page.goto(`${url}/?token=${token}`);
  await page.goto(`${url}${path}`);
  await page.getByRole("heading", { level: 1 }).waitFor();
  await page.waitForTimeout(DRAWN_MS);
  // To below the head of the page, which stays where it is.
  if (below) await page.locator(".card").filter({ hasText: below }).first().evaluate((card) => scrollTo(0, card.offsetTop - 70));
  await page.waitForTimeout(DRAWN_MS / 3);
  await page.screenshot({ path: `${OUT}${name}.png` });
  await page.context().close();
}

await picture("sweep-light", `/sweeps/${sweep}`, "light", 1000);
await picture("sweep-dark", `/sweeps/${sweep}`, "dark", 900, "Importance");
await browser.close();
