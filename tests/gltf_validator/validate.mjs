// Prints the Khronos validator's report on a GLB or glTF as JSON. Usage: node validate.mjs FILE
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { validateBytes } from "gltf-validator";

const file = process.argv[2];
const bytes = new Uint8Array(readFileSync(file));
const beside = async (uri) => new Uint8Array(readFileSync(join(dirname(file), decodeURIComponent(uri))));
console.log(JSON.stringify(await validateBytes(bytes, { maxIssues: 20, externalResourceFunction: beside })));
