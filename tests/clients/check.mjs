// What the Node suites share: a check that prints `ok NAME`, and the libraries, which tests/run installs under target/.
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { resolve } from 'node:path';

export const host = process.argv[2];
export const port = Number(process.argv[3]);
export const require = createRequire(pathToFileURL(resolve(process.env.NEARSIDE_NODE_DIR ?? 'target/clients/node', 'x.js')));

// No single check may take longer: a hang is a failure with a name.
const PATIENCE_MS = 30000;
const failed = [];

export async function check(name, fn, patience = PATIENCE_MS) {
  let timer;
  const late = new Promise((_, no) => { timer = setTimeout(() => no(new Error(`not within ${patience} ms`)), patience); });
  try {
    await Promise.race([fn(), late]);
    console.log(`ok ${name}`);
  } catch (error) {
    failed.push(name);
    console.log(`FAILED ${name}\n${error.stack}`);
  } finally {
    clearTimeout(timer);
  }
}

export function finish() {
  process.exit(failed.length ? 1 : 0);
}

// Waits for a condition, looking often.
export async function until(what, condition) {
  for (let left = 1000; left > 0; left--) {
    if (await condition()) return;
    await new Promise((done) => setTimeout(done, 10));
  }
  throw new Error(`not within 10 s: ${what}`);
}
