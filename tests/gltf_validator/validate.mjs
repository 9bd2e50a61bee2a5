// Prints the Khronos validator's report on a GLB as JSON. Usage: node validate.mjs FILE
import { readFileSync } from "node:fs";
import { validateBytes } from "gltf-validator";

const bytes = new Uint8Array(readFileSync(process.argv[2]));
console.log(JSON.stringify(await validateBytes(bytes, { maxIssues: 20 })));
