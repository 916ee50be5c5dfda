// The page in a real browser on the real service: `npm run test:browser`, after `cargo build --release --bin phalanx`.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Browser, Service } from "./service.mjs";

const service = new Service();
const browser = new Browser();
const VIEWS = ["/jobs", "/sweeps", "/curves", "/nodes"];
/** A job that reports and writes ten times a second, for as long as a test needs it. */
const TALKS = "i=0; while [ $i -lt 600 ]; do i=$((i+1)); echo line $i at $(date +%s%3N); phalanx report --step $i loss=$((600-i)).5 acc=0.$i; sleep 0.1; done";

before(async () => {
  await service.start();
  await browser.start(service);
});
after(async () => {
  await browser.close();
  await service.close();
});

test("login: without a cookie nothing but a form, with the token the page, and no token in the address", async () => {
  const page = await browser.stranger();
  for (const path of ["/", "/jobs", "/jobs/j1"]) {
    const answer = await page.goto(service.url(path));
    assert.equal(answer.status(), 401);
    assert.equal(await page.locator("script").count(), 0);
  }
  await page.getByLabel("Access token").fill("wrong");
  await page.getByRole("button").click();
  await page.waitForLoadState();
  assert.equal((await page.context().cookies()).length, 0);
  await page.goto(service.url("/nodes"));
  await page.getByLabel("Access token").fill(service.token);
  await page.getByRole("button").click();
  await page.getByRole("heading", { name: "Cluster" }).waitFor();
  assert.equal(page.url(), service.url("/nodes"));
  const [cookie] = await page.context().cookies();
  assert.ok(cookie.httpOnly && cookie.sameSite === "Strict", JSON.stringify(cookie));
  assert.ok(!cookie.value.includes(service.token));
});

test("every view opens by its address, under a policy that allows no evaluation", async () => {
  const page = await browser.open("/jobs");
  for (const path of ["/", ...VIEWS]) {
    const answer = await page.goto(service.url(path));
    const policy = answer.headers()["content-security-policy"];
    assert.ok(policy.includes("default-src") && !policy.includes("unsafe"), policy);
    await page.getByRole("heading", { level: 1 }).waitFor();
    await page.getByText("Live", { exact: true }).waitFor();
  }
  browser.excused = true;
  await page.goto(service.url("/jobs/j999"));
  await page.getByText("j999").waitFor();
  browser.excused = false;
});

test("a job appears, runs and ends without a reload", async () => {
  const page = await browser.open("/jobs");
  await page.getByText("Live", { exact: true }).waitFor();
  await page.evaluate(() => (window.sameDocument = true));
  service.submit("short-lived", "sleep 1");
  const row = page.getByRole("row").filter({ hasText: "short-lived" });
  await row.getByText("running").waitFor();
  await row.getByText("succeeded").waitFor();
  assert.ok(await page.evaluate(() => window.sameDocument));
  await row.getByRole("link").click();
  await page.getByRole("heading", { name: "short-lived" }).waitFor();
  assert.ok(await page.evaluate(() => window.sameDocument));
});

test("a job's page shows its curves and the end of its log as they grow, in few requests", async () => {
  const id = service.submit("talks", TALKS);
  const page = await browser.open(`/jobs/${id}`);
  const log = page.getByRole("log");
  await log.getByText("line 5 at").waitFor();
  await page.locator("canvas").first().waitFor();
  assert.equal(await page.locator("figure").count(), 2);
  const shown = () => page.locator("figure").filter({ hasText: "loss" }).locator("figcaption b").innerText();
  let requests = 0;
  page.on("request", () => requests++);
  const first = Number(await shown());
  const delays = await page.evaluate(sampleDelays, 3000);
  assert.ok(Number(await shown()) < first, "the loss has fallen");
  assert.ok(delays.length >= 10, `${delays.length} lines in 3 s`);
  assert.ok(requests <= 5, `${requests} requests`);
  console.log(`line written to line shown: p50 ${delays.sort((a, b) => a - b)[delays.length >> 1]} ms`);
  // Reading back is not disturbed by what is written meanwhile.
  await log.evaluate((element) => element.scrollTo(0, 0));
  await page.getByRole("button", { name: "Follow", pressed: false }).waitFor();
  await page.getByLabel("Find in log").fill("line 3 at");
  assert.match(await log.innerText(), /^line 3 at \d+$/);
  service.run("cancel", id);
  await page.locator(".head").getByText("cancelled").waitFor();
});

test("what is over is told once, to the page and to whoever listens by themselves", async () => {
  const id = service.submit("over", "echo the end");
  service.run("wait", id);
  const page = await browser.open(`/jobs/${id}`);
  await page.getByRole("log").getByText("the end").waitFor();
  let requests = 0;
  page.on("request", () => requests++);
  const told = await page.evaluate(
    (id) =>
      new Promise((done) => {
        const told = { hello: 0, end: 0, errors: 0 };
        const source = new EventSource(`/api/v1/events?watch=job:${id},logs:${id},metrics:${id}`);
        source.addEventListener("hello", () => told.hello++);
        source.addEventListener("end", () => told.end++);
        source.onerror = () => told.errors++;
        setTimeout(() => done(told) ?? source.close(), 3000);
      }),
    id,
  );
  assert.deepEqual(told, { hello: 1, end: 3, errors: 0 });
  assert.equal(requests, 1, "the page's own stream has stayed open too");
});

/** For so many milliseconds: how long after it was written each line of the log was there. */
function sampleDelays(ms) {
  const delays = [];
  const observer = new MutationObserver((changes) => {
    for (const node of changes.flatMap((change) => [...change.addedNodes])) {
      const written = /at (\d+)$/.exec(node.textContent);
      if (written) delays.push(Date.now() - Number(written[1]));
    }
  });
  observer.observe(document.querySelector("[role=log]"), { childList: true });
  return new Promise((done) => setTimeout(() => done(delays), ms));
}

test("a job that waits says why, on its page and in its queue", async () => {
  const holds = service.submit("holds", "sleep 60", "[gang]\ncpus = 3");
  const waits = service.submit("waits", "true", "[gang]\ncpus = 4");
  const page = await browser.open(`/jobs/${waits}`);
  await page.getByText("Why it waits").waitFor();
  assert.match(await page.locator(".banner").innerText(), /\d/);
  await page.goto(service.url("/nodes"));
  await page.locator(".waiting").getByText("waits").waitFor();
  await page.locator(".cell").nth(3).waitFor();
  service.run("cancel", holds);
  await page.getByText("waits", { exact: true }).waitFor({ state: "detached" });
});

/** A sweep whose trials report ten times a second. */
const SWEEP = `version = 1
name = "search"
[program]
command = ["sh", "-c", '''for i in 1 2 3 4 5 6; do phalanx report --step $i score=$(awk "BEGIN {{ print {x} * $i }}"); sleep 0.2; done''']
[sweep]
metric = "score"
mode = "max"
trials = 30
concurrency = 3
seed = 1
[search]
kind = "random"
[params]
x = { kind = "float", low = 0.1, high = 10.0, log = true }
y = { kind = "float", low = 0.0, high = 1.0 }
kind = { kind = "choice", values = ["a", "b"] }
`;

test("a sweep's charts and its table of trials move by the stream, and the table sorts", async () => {
  const id = service.submitFile("search", SWEEP);
  const page = await browser.open(`/sweeps/${id}`);
  await page.getByRole("heading", { name: "search" }).waitFor();
  const chart = page.locator("canvas").first();
  await page.locator(".card").filter({ hasText: "Trials" }).locator("tbody tr").nth(3).waitFor();
  const { width, height } = await chart.boundingBox();
  assert.ok(width > 200 && height > 100, `${width} × ${height}`);
  const picture = () => chart.evaluate((canvas) => canvas.toDataURL());
  const table = page.getByRole("table", { name: "Trials of search" });
  const before = [await picture(), await table.locator("tbody tr").count()];
  let requests = 0;
  page.on("request", () => requests++);
  await page.waitForTimeout(5000);
  assert.ok(requests <= 5, `${requests} requests in 5 s`);
  assert.notEqual(await picture(), before[0], "the chart has moved");
  assert.ok((await table.locator("tbody tr").count()) > before[1], "there are more trials");
  service.run("wait", id);
  await page.locator(".head").getByText("succeeded").waitFor();
  const heads = await table.locator("th").allInnerTexts();
  const at = heads.indexOf("score");
  assert.ok(at >= 0 && heads.includes("x") && heads.includes("kind"), heads.join());
  const column = async () => (await table.locator(`tbody td:nth-child(${at + 1})`).allInnerTexts()).map(Number);
  const head = table.locator("th").nth(at);
  await head.click();
  const once = await column();
  await head.click();
  const twice = await column();
  assert.equal(once.length, 30);
  assert.deepEqual(twice, [...once].reverse());
  assert.deepEqual(twice, [...twice].sort((a, b) => (twice[0] > twice[29] ? b - a : a - b)));
  await page.locator(".importance li").nth(2).waitFor();
  assert.match(await page.locator(".importance li").first().innerText(), /^x/);
  await page.goto(service.url("/sweeps"));
  await page.getByRole("row").filter({ hasText: "search" }).getByText("succeeded").waitFor();
});

test("curves of several jobs are compared, on a log scale and smoothed, by an address that can be sent on", async () => {
  const ids = ["one", "two"].map((name) => service.submit(name, "for i in 1 2 3 4 5; do phalanx report --step $i loss=$i; done"));
  for (const id of ids) service.run("wait", id);
  const page = await browser.open("/jobs");
  for (const id of ids) await page.getByRole("row").filter({ hasText: id }).getByRole("checkbox").check();
  await page.getByRole("link", { name: "Compare curves" }).click();
  await page.locator("figure").getByText("loss").waitFor();
  await page.getByRole("button", { name: "Log", exact: true }).click();
  await page.getByLabel("Smoothing").fill("0.5");
  assert.equal(page.url(), service.url(`/curves?jobs=${ids.join("%2C")}&log=1&smooth=0.5`));
  await page.locator(".u-over").hover();
  await page.locator(".pointer-note").getByText("one").waitFor();
});

test("a killed service comes back, and the page goes on where it was", async () => {
  const id = service.submit("survives", TALKS);
  const page = await browser.open(`/jobs/${id}`);
  await page.getByRole("log").getByText("line 5 at").waitFor();
  await page.evaluate(() => (window.sameDocument = true));
  browser.excused = true; // The browser says so for every try.
  await service.end("SIGKILL");
  await page.getByText("Reconnecting").waitFor();
  await service.start();
  await page.getByText("Live", { exact: true }).waitFor();
  browser.excused = false;
  const count = async () => Number(/line (\d+) at \d+$/.exec((await page.getByRole("log").innerText()).trim())[1]);
  const then = await count();
  await page.getByRole("log").getByText(`line ${then + 5} at`).waitFor();
  const numbers = (await page.getByRole("log").innerText()).match(/line \d+/g).map((line) => Number(line.slice(5)));
  assert.deepEqual(numbers, numbers.map((_, i) => numbers[0] + i), "no line is missing or twice");
  assert.ok(await page.evaluate(() => window.sameDocument));
  service.run("cancel", id);
});

test("everything is reached by the keyboard", async () => {
  const page = await browser.open("/jobs");
  await page.locator("tbody tr").nth(1).waitFor();
  await page.keyboard.press("j");
  await page.keyboard.press("j");
  const name = await page.locator("tbody tr:focus a").innerText();
  await page.keyboard.press("x");
  await page.getByText("1 job picked").waitFor();
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name, level: 1 }).waitFor();
  await page.keyboard.press("g");
  await page.keyboard.press("n");
  await page.getByRole("heading", { name: "Cluster" }).waitFor();
  await page.keyboard.press("?");
  await page.getByRole("dialog").waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  await page.keyboard.press("g");
  await page.keyboard.press("j");
  await page.getByRole("heading", { name: "Jobs" }).waitFor();
  await page.keyboard.press("/");
  await page.keyboard.type("short-l");
  await page.locator("tbody tr").nth(1).waitFor({ state: "detached" });
  assert.match(await page.locator("tbody").innerText(), /short-lived/);
  // A head is a button: Tab reaches it and Enter sorts.
  await page.getByRole("button", { name: "Name" }).focus();
  await page.keyboard.press("Enter");
  await page.locator("th[aria-sort=ascending]").getByText("Name").waitFor();
});

test("it is dark where the system is dark, and as the reader wants it", async () => {
  const brightness = (page) => page.evaluate(() => Number(/\d+/.exec(getComputedStyle(document.body).backgroundColor)[0]));
  const page = await browser.open("/jobs", { colorScheme: "dark" });
  await page.getByRole("heading", { name: "Jobs" }).waitFor();
  assert.ok((await brightness(page)) < 60);
  await page.getByRole("button", { name: /Theme/ }).click();
  assert.ok((await brightness(page)) > 200);
  await page.reload();
  await page.getByRole("heading", { name: "Jobs" }).waitFor();
  assert.ok((await brightness(page)) > 200, "the choice is kept");
});

test("a telephone shows every view without scrolling sideways", async () => {
  const page = await browser.open("/jobs", { viewport: { width: 400, height: 800 } });
  for (const path of [...VIEWS, "/jobs/j2"]) {
    await page.goto(service.url(path));
    await page.getByRole("heading", { level: 1 }).waitFor();
    await page.waitForTimeout(300);
    const width = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(width <= 400, `${path} is ${width} wide`);
  }
});

test("no page has put an error into the console or asked another host", () => {
  assert.deepEqual(browser.faults, []);
});
