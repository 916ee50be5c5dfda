// The real service and a real browser, for the tests of the page.
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const BINARY = process.env.PHALANX ?? new URL("../../target/release/phalanx", import.meta.url).pathname;
export const BROWSER = process.env.CHROMIUM ?? "/usr/bin/chromium";
export const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
];

/** A service on free ports, with a data folder of its own, that can be killed and started again where it was. */
export class Service {
  folder = mkdtempSync(join(tmpdir(), "phalanx-page-"));
  env = {
    ...process.env,
    // What jobs call `phalanx` is the binary under test.
    PATH: dirname(BINARY) + delimiter + process.env.PATH,
    PHALANX_DATA: join(this.folder, "data"),
    XDG_CONFIG_HOME: join(this.folder, "config"),
  };

  async start(args = ["--cpus", "4", "--gpus", "4"]) {
    const [grpc, http] = this.ready ? [this.ready.grpc, this.ready.http.replace("http://", "")] : ["127.0.0.1:0", "127.0.0.1:0"];
    this.child = spawn(BINARY, ["up", "--json", "--grpc", grpc, "--http", http, ...args], { env: this.env, cwd: this.folder, stdio: ["ignore", "pipe", "inherit"] });
    const [line] = await once(createInterface(this.child.stdout), "line");
    this.ready = JSON.parse(line);
    this.token = readFileSync(this.ready.token_file, "utf8").trim();
  }

  async end(signal) {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const exited = once(this.child, "exit");
    this.child.kill(signal);
    await exited;
  }

  async close() {
    await this.end("SIGTERM");
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** What a command prints. */
  run(...args) {
    return execFileSync(BINARY, args, { env: this.env, cwd: this.folder, encoding: "utf8" }).trim();
  }

  /** Submits a job around a shell script; its id. */
  submit(name, script, more = "") {
    return this.submitFile(name, `version = 1\nname = "${name}"\n${more}\n[program]\ncommand = ["sh", "-c", '''${script}''']\n`);
  }

  submitFile(name, toml) {
    const file = join(this.folder, `${name}.toml`);
    writeFileSync(file, toml);
    return this.run("submit", file);
  }

  url(path) {
    return `${this.ready.http}${path}`;
  }
}

/** A browser whose pages tell what they should not have done. */
export class Browser {
  /** Errors in the console, uncaught ones, and requests to another host. */
  faults = [];
  /** A service that is away makes errors that nobody can help. */
  excused = false;

  async start(service) {
    this.service = service;
    this.browser = await chromium.launch({ executablePath: BROWSER, args: FLAGS });
    return this;
  }

  /** One that is not logged in is refused, and the browser calls each refusal an error: it is not held to account. */
  async stranger() {
    return (await this.browser.newContext()).newPage();
  }

  async page(options = {}) {
    const context = await this.browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
    const page = await context.newPage();
    const fault = (text) => this.excused || this.faults.push(text);
    page.on("console", (message) => message.type() === "error" && fault(`console: ${message.text()}`));
    page.on("pageerror", (error) => fault(`uncaught: ${error.stack}`));
    page.on("request", (request) => {
      if (new URL(request.url()).protocol.startsWith("http") && !request.url().startsWith(this.service.ready.http)) fault(`foreign: ${request.url()}`);
    });
    return page;
  }

  /** A page that has logged in. */
  async open(path, options) {
    const page = await this.page(options);
    await page.goto(this.service.url(`/?token=${this.service.token}`));
    await page.goto(this.service.url(path));
    return page;
  }

  close() {
    return this.browser.close();
  }
}
