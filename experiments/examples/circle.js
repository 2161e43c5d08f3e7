#!/usr/bin/env node
// A Node script as a program. From the root:
//
// python run.py experiments/examples/circle.js --space experiments/examples/circle.json \
//     --metric loss --mode min --trials 30
const values = {};
const words = process.argv.slice(2);
for (let i = 0; i < words.length; i += 2) values[words[i].replace(/^--/, "")] = words[i + 1];
const x = Number(values.x);
const y = Number(values["y-coordinate"]);
const loss = Math.abs(Math.hypot(x, y) - 1) + (values.shift === "True" ? 0.1 : 0);
console.log(`[tune-metric]: ${JSON.stringify({ loss })}`);
