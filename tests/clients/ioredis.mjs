// Smoke suite of ioredis: ioredis.mjs HOST PORT. Prints `ok NAME` a check; exit 1 if any failed. Keys under `smoke:io:`.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { check, finish, host, port, require, until } from './check.mjs';

const Redis = require('ioredis');
const open = [];
const connect = (options = {}) => {
  const client = new Redis({ host, port, maxRetriesPerRequest: 2, ...options });
  client.on('error', (error) => console.log(`# connection: ${error.message}`));
  open.push(client);
  return client;
};
const k = (name) => `smoke:io:${name}`;
const r = connect();

async function clean() {
  for await (const keys of r.scanStream({ match: k('*'), count: 500 })) if (keys.length) await r.del(...keys);
}

await clean();
await check('ioredis connects with defaults', async () => {
  assert.equal(await r.ping(), 'PONG');
  assert.equal(await r.set(k('a'), '1'), 'OK');
  assert.equal(await r.get(k('a')), '1');
  assert.equal(await r.get(k('none')), null);
});
await check('ioredis reads its writes', async () => {
  for (let n = 0; n < 300; n++) {
    await r.set(k('ryw'), n);
    assert.equal(await r.get(k('ryw')), String(n));
  }
  await r.mset(k('m1'), 1, k('m2'), 2);
  assert.deepEqual(await r.mget(k('m1'), k('nope'), k('m2')), ['1', null, '2']);
});
await check('ioredis pipelines', async () => {
  const pipe = r.pipeline();
  for (let n = 0; n < 500; n++) pipe.set(k(`p${n}`), n).get(k(`p${n}`));
  const replies = await pipe.exec();
  assert.deepEqual(replies.filter((_, n) => n % 2).map(([, v]) => v), Array.from({ length: 500 }, (_, n) => String(n)));
  const [[error], [none, value]] = await r.pipeline().incr(k('p0')).lpush(k('p0'), 'x').get(k('p0')).exec().then((all) => [all[1], all[2]]);
  assert.match(error.message, /WRONGTYPE/);
  assert.deepEqual([none, value], [null, '1']);
});
await check('ioredis auto-pipelining', async () => {
  const client = connect({ enableAutoPipelining: true });
  const values = await Promise.all(Array.from({ length: 200 }, (_, n) => client.set(k(`ap${n}`), n).then(() => client.get(k(`ap${n}`)))));
  assert.deepEqual(values.map(Number), Array.from({ length: 200 }, (_, n) => n));
});
await check('ioredis transactions', async () => {
  const replies = await r.multi().set(k('t'), 1).incr(k('t')).get(k('t')).exec();
  assert.deepEqual(replies.map(([, v]) => v), ['OK', 2, '2']);
  const watcher = connect();
  await watcher.watch(k('t'));
  await r.set(k('t'), 5);
  assert.equal(await watcher.multi().set(k('t'), 9).exec(), null);
  assert.equal(await watcher.get(k('t')), '5');
  await r.multi({ pipeline: false });
  await r.set(k('t'), 6);
  assert.deepEqual(await r.exec(), [[null, 'OK']]);
});
await check('ioredis pub/sub', async () => {
  const sub = connect();
  const seen = [];
  sub.on('message', (channel, message) => seen.push(message));
  sub.on('pmessage', (pattern, channel, message) => seen.push(`p ${message}`));
  assert.equal(await sub.subscribe(k('ch')), 1);
  assert.equal(await sub.psubscribe(k('pat*')), 2);
  assert.equal(await r.publish(k('ch'), 'one'), 1);
  assert.equal(await r.publish(k('pat1'), 'two'), 1);
  await until('both messages', () => seen.length === 2);
  assert.deepEqual(seen, ['one', 'p two']);
  // In this order: with both kinds held, ioredis 6.0.0 never settles unsubscribe() without arguments, whatever the server.
  await sub.punsubscribe(k('pat*'));
  await sub.unsubscribe();
  assert.equal(await sub.get(k('none')), null);
});
await check('ioredis blocking pops', async () => {
  const blocked = connect();
  assert.equal(await blocked.blpop(k('q'), 0.1), null);
  const popped = blocked.blpop(k('q'), 10);
  await r.rpush(k('q'), 'job');
  assert.deepEqual(await popped, [k('q'), 'job']);
  await r.rpush(k('src'), 'x');
  assert.equal(await blocked.blmove(k('src'), k('dst'), 'LEFT', 'RIGHT', 1), 'x');
  assert.equal(await r.get(k('none')), null);
});
await check('ioredis scripts', async () => {
  assert.deepEqual(await r.eval('return {KEYS[1], ARGV[1]}', 1, 'k', 'v'), ['k', 'v']);
  const sha = await r.script('LOAD', "return redis.call('SET', KEYS[1], ARGV[1])");
  await r.evalsha(sha, 1, k('s'), 'from script');
  assert.equal(await r.get(k('s')), 'from script');
  r.defineCommand('addTo', { numberOfKeys: 1, lua: "return redis.call('INCRBY', KEYS[1], ARGV[1])" });
  assert.deepEqual([await r.addTo(k('n'), 5), await r.addTo(k('n'), 2), await r.get(k('n'))], [5, 7, '7']);
  await assert.rejects(r.evalsha('0'.repeat(40), 0), /NOSCRIPT/);
});
await check('ioredis SCAN', async () => {
  await r.mset(Object.fromEntries(Array.from({ length: 300 }, (_, n) => [k(`scan${n}`), n])));
  const found = new Set();
  for await (const keys of r.scanStream({ match: k('scan*'), count: 50 })) keys.forEach((key) => found.add(key));
  assert.equal(found.size, 300);
});
await check('ioredis large values', async () => {
  const large = randomBytes(5 << 20);
  await r.set(k('large'), large);
  for (let n = 0; n < 2; n++) assert.ok(large.equals(await r.getBuffer(k('large'))));
});
await check('ioredis hashes, sorted sets, streams', async () => {
  await r.hset(k('h'), { f: 1, g: 2 });
  assert.deepEqual({ ...(await r.hgetall(k('h'))) }, { f: '1', g: '2' });
  await r.zadd(k('z'), 1, 'a', 2.5, 'b');
  const flat = (await r.zrange(k('z'), 0, -1, 'WITHSCORES')).flat().map(String);
  assert.deepEqual(flat, ['a', '1', 'b', '2.5']);
  const first = await r.xadd(k('st'), '*', 'n', 1);
  await r.xgroup('CREATE', k('st'), 'g', '0');
  assert.ok(JSON.stringify(await r.xreadgroup('GROUP', 'g', 'c', 'COUNT', 1, 'STREAMS', k('st'), '>')).includes(first));
  assert.equal(await r.xack(k('st'), 'g', first), 1);
  const blocked = connect();
  const waiting = blocked.xread('BLOCK', 10000, 'STREAMS', k('st'), first);
  await r.xadd(k('st'), '*', 'n', 2);
  assert.ok(await waiting);
});
await check('ioredis databases', async () => {
  const three = connect({ db: 3 });
  await r.set(k('db'), 'zero');
  await three.set(k('db'), 'three');
  assert.deepEqual([await r.get(k('db')), await three.get(k('db'))], ['zero', 'three']);
  await three.select(0);
  assert.equal(await three.get(k('db')), 'zero');
  await three.select(3);
  assert.equal(await three.del(k('db')), 1);
});
await check('ioredis CLIENT commands', async () => {
  const named = connect({ connectionName: 'smoke-io' });
  assert.equal(await named.client('GETNAME'), 'smoke-io');
  const id = await named.client('ID');
  assert.match(await named.client('LIST'), new RegExp(`^id=${id} .* name=smoke-io `, 'm'));
  assert.match(await named.info(), /redis_version:/);
});
await check('ioredis expiry', async () => {
  await r.set(k('e'), 'v', 'PX', 120);
  assert.equal(await r.get(k('e')), 'v');
  await until('expiry', async () => (await r.get(k('e'))) === null);
  await r.setex(k('e2'), 100, 'v');
  assert.ok([99, 100].includes(await r.ttl(k('e2'))));
});
// ioredis ends a connection on which MONITOR's +OK and the first line arrive in one read, as Redis may send them when it is
// busy with others (their commands are the lines). That one error of its own is no failure of ours.
const monitored = async (attempts) => {
  try {
    const monitor = await connect().monitor();
    open.push(monitor);
    const seen = [];
    monitor.on('monitor', (time, args) => seen.push(args.join(' ')));
    await until('the command', async () => {
      await r.get(k('watched'));
      return seen.some((line) => line.includes(k('watched')));
    });
  } catch (error) {
    if (attempts === 0 || !String(error).includes('Command queue state error')) throw error;
    await monitored(attempts - 1);
  }
};
await check('ioredis MONITOR', () => monitored(10));
await clean();
open.forEach((client) => client.disconnect());
finish();
