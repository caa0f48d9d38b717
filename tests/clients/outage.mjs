// ioredis or node-redis, with its defaults, under remote control: outage.mjs HOST PORT LIBRARY. Each line on stdin is a
// command (`get k`), each line of output what the library makes of it: `value V`, `error TYPE: MESSAGE`, or `pending` where
// that takes more than three seconds; `settled` then waits for it.
import { createInterface } from 'node:readline';
import { host, port, require } from './check.mjs';

const PATIENCE_MS = 3000;
const client = process.argv[4] === 'ioredis' ? new (require('ioredis'))({ host, port }) : require('redis').createClient({ socket: { host, port } });
// Without a listener node-redis ends the process at the first lost connection, and ioredis prints it.
client.on('error', () => {});
if (process.argv[4] !== 'ioredis') await client.connect();

const methods = process.argv[4] === 'ioredis' ? {} : { lpush: 'lPush' };
let last;

function said(promise) {
  return promise.then((value) => `value ${value}`, (error) => `error ${error.constructor.name}: ${error.message}`);
}

for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...args] = line.split(' ');
  if (name !== 'settled') last = said(client[methods[name] ?? name](...args));
  const late = new Promise((done) => setTimeout(() => done('pending'), PATIENCE_MS));
  console.log(name === 'settled' ? await last : await Promise.race([last, late]));
}
process.exit(0);
