// Prints the Khronos validator's report of a .glb as JSON: node validate.mjs head.glb
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

// FACEFIT_NODE_MODULES: the folder that holds node_modules, where it is not this one.
const home = process.env.FACEFIT_NODE_MODULES ?? dirname(fileURLToPath(import.meta.url));
const require = createRequire(`${home}/x.js`);
const validator = require("gltf-validator");

const report = await validator.validateBytes(new Uint8Array(await readFile(process.argv[2])), { maxIssues: 100 });
console.log(JSON.stringify(report));
