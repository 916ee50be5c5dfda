// Builds `dist/`, which is committed and embedded into the service: `npm ci && npm run build`.
// Same sources and same lock file give the same bytes, so that CI can build again and compare.
import { cpSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createHash } from "node:crypto";
import { gzipSync } from "node:zlib";
import * as esbuild from "esbuild";

/** What a first visit may load, in bytes after gzip. */
const BUDGET = 80 << 10;
const OUT = process.argv.includes("--out") ? process.argv[process.argv.indexOf("--out") + 1] : "dist";

rmSync(OUT, { recursive: true, force: true });
const options = {
  entryPoints: { app: "src/main.tsx", login: "src/login.css" },
  outdir: `${OUT}/assets`,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  banner: { js: "// Built from dashboard/src by `npm run build`; do not edit." },
};
await esbuild.build(options);
cpSync("public", OUT, { recursive: true });

// The login page has to stand alone: before login nothing else is served. Its style is allowed by its hash.
const style = readFileSync(`${OUT}/assets/login.css`, "utf8").trim();
rmSync(`${OUT}/assets/login.css`);
const login = readFileSync(`${OUT}/login.html`, "utf8").replace("/* login.css */", style);
writeFileSync(`${OUT}/login.html`, login);
const hash = createHash("sha256").update(style).digest("base64");
writeFileSync(`${OUT}/login.style-hash`, `sha256-${hash}\n`);

const files = readdirSync(OUT, { recursive: true, withFileTypes: true }).filter((file) => file.isFile());
let total = 0;
for (const file of files) {
  const path = `${file.parentPath ?? file.path}/${file.name}`;
  const bytes = gzipSync(readFileSync(path), { level: 9 }).length;
  total += bytes;
  console.log(`${String(bytes).padStart(7)}  ${path}`);
}
console.log(`${String(total).padStart(7)}  in all, after gzip (at most ${BUDGET})`);
if (total > BUDGET) {
  console.error("the page is too large");
  process.exit(1);
}
