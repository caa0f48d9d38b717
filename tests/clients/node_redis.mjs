// Smoke suite of node-redis: node_redis.mjs HOST PORT. Prints `ok NAME` a check; exit 1 if any failed. Keys under `smoke:nr:`.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { check, finish, host, port, require, until } from './check.mjs';

const { createClient, commandOptions, defineScript, RESP_TYPES, WatchError } = require('redis');
const open = [];
const connect = async (options = {}) => {
  const client = createClient({ socket: { host, port, connectTimeout: 10000 }, ...options });
  client.on('error', (error) => console.log(`# connection: ${error.message}`));
  open.push(client);
  return client.connect();
};
const k = (name) => `smoke:nr:${name}`;
const plain = (value) => JSON.parse(JSON.stringify(value));
const r = await connect();

async function clean() {
  for await (const keys of r.scanIterator({ MATCH: k('*'), COUNT: 500 })) if (keys.length) await r.del(keys);
}

await clean();
await check('node-redis connects with defaults', async () => {
  assert.equal(await r.ping(), 'PONG');
  assert.equal(await r.set(k('a'), '1'), 'OK');
  assert.equal(await r.get(k('a')), '1');
  assert.equal(await r.get(k('none')), null);
});
for (const RESP of [2, 3]) {
  await check(`node-redis speaks RESP${RESP}`, async () => {
    const client = await connect({ RESP });
    await client.hSet(k('h'), { f: '1', g: '2' });
    assert.deepEqual(plain(await client.hGetAll(k('h'))), { f: '1', g: '2' });
    await client.zAdd(k('z'), [{ score: 1.5, value: 'a' }]);
    assert.equal(await client.zScore(k('z'), 'a'), 1.5);
    assert.deepEqual(plain(await client.zRangeWithScores(k('z'), 0, -1)), [{ value: 'a', score: 1.5 }]);
  });
}
await check('node-redis reads its writes', async () => {
  for (let n = 0; n < 300; n++) {
    await r.set(k('ryw'), String(n));
    assert.equal(await r.get(k('ryw')), String(n));
  }
  await r.mSet([k('m1'), '1', k('m2'), '2']);
  assert.deepEqual(await r.mGet([k('m1'), k('nope'), k('m2')]), ['1', null, '2']);
});
await check('node-redis pipelines', async () => {
  const values = await Promise.all(Array.from({ length: 500 }, (_, n) => [r.set(k(`p${n}`), String(n)), r.get(k(`p${n}`))]).flat());
  assert.deepEqual(values.filter((_, n) => n % 2).map(Number), Array.from({ length: 500 }, (_, n) => n));
  const replies = await r.multi().set(k('x'), '1').get(k('x')).execAsPipeline();
  assert.deepEqual(replies, ['OK', '1']);
});
await check('node-redis transactions', async () => {
  assert.deepEqual(await r.multi().set(k('t'), '1').incr(k('t')).get(k('t')).exec(), ['OK', 2, '2']);
  const watcher = await connect();
  await watcher.watch(k('t'));
  await r.set(k('t'), '5');
  await assert.rejects(watcher.multi().set(k('t'), '9').exec(), WatchError);
  assert.equal(await watcher.get(k('t')), '5');
});
await check('node-redis pub/sub', async () => {
  for (const RESP of [2, 3]) {
    const sub = await connect({ RESP });
    const seen = [];
    await sub.subscribe(k('ch'), (message) => seen.push(message));
    await sub.pSubscribe(k('pat*'), (message) => seen.push(`p ${message}`));
    assert.equal(await r.publish(k('ch'), 'one'), 1);
    assert.equal(await r.publish(k('pat1'), 'two'), 1);
    await until('both messages', () => seen.length === 2);
    assert.deepEqual(seen, ['one', 'p two']);
    await sub.unsubscribe();
    await sub.pUnsubscribe();
    assert.equal(await sub.get(k('none')), null);
  }
});
await check('node-redis blocking pops', async () => {
  const blocked = await connect();
  assert.equal(await blocked.blPop(k('q'), 0.1), null);
  const popped = blocked.blPop(k('q'), 10);
  await r.rPush(k('q'), 'job');
  assert.deepEqual(plain(await popped), { key: k('q'), element: 'job' });
  await r.rPush(k('src'), 'x');
  assert.equal(await blocked.blMove(k('src'), k('dst'), 'LEFT', 'RIGHT', 1), 'x');
});
await check('node-redis scripts', async () => {
  assert.deepEqual(await r.eval('return {KEYS[1], ARGV[1]}', { keys: ['k'], arguments: ['v'] }), ['k', 'v']);
  const sha = await r.scriptLoad("return redis.call('SET', KEYS[1], ARGV[1])");
  await r.evalSha(sha, { keys: [k('s')], arguments: ['from script'] });
  assert.equal(await r.get(k('s')), 'from script');
  const scripted = await connect({ scripts: { addTo: defineScript({
    SCRIPT: "return redis.call('INCRBY', KEYS[1], ARGV[1])",
    NUMBER_OF_KEYS: 1,
    parseCommand(parser, key, by) { parser.pushKey(key); parser.push(String(by)); },
    transformReply: (reply) => reply,
  }) } });
  assert.deepEqual([await scripted.addTo(k('n'), 5), await scripted.addTo(k('n'), 2), await scripted.get(k('n'))], [5, 7, '7']);
  await assert.rejects(r.evalSha('0'.repeat(40)), /NOSCRIPT/);
});
await check('node-redis SCAN', async () => {
  await r.mSet(Array.from({ length: 300 }, (_, n) => [k(`scan${n}`), String(n)]));
  const found = new Set();
  for await (const keys of r.scanIterator({ MATCH: k('scan*'), COUNT: 50 })) keys.forEach((key) => found.add(key));
  assert.equal(found.size, 300);
});
await check('node-redis large values', async () => {
  const large = randomBytes(5 << 20);
  await r.set(k('large'), large);
  const buffers = r.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
  for (let n = 0; n < 2; n++) assert.ok(large.equals(await buffers.get(k('large'))));
});
await check('node-redis streams and consumer groups', async () => {
  const first = await r.xAdd(k('st'), '*', { n: '1' });
  await r.xGroupCreate(k('st'), 'g', '0');
  const read = JSON.stringify(await r.xReadGroup('g', 'c', { key: k('st'), id: '>' }, { COUNT: 1 }));
  assert.ok(read.includes(first), read);
  assert.equal(await r.xAck(k('st'), 'g', first), 1);
  const blocked = await connect();
  const waiting = blocked.xRead({ key: k('st'), id: first }, { BLOCK: 10000 });
  await r.xAdd(k('st'), '*', { n: '2' });
  assert.ok(await waiting);
});
await check('node-redis databases', async () => {
  const three = await connect({ database: 3 });
  await r.set(k('db'), 'zero');
  await three.set(k('db'), 'three');
  assert.deepEqual([await r.get(k('db')), await three.get(k('db'))], ['zero', 'three']);
  await three.select(0);
  assert.equal(await three.get(k('db')), 'zero');
  await three.select(3);
  assert.equal(await three.del(k('db')), 1);
});
await check('node-redis CLIENT commands', async () => {
  const named = await connect({ name: 'smoke-nr' });
  assert.equal(await named.clientGetName(), 'smoke-nr');
  const id = await named.clientId();
  assert.ok((await named.clientList()).some((c) => c.id === id && c.name === 'smoke-nr'));
  assert.match(await named.info(), /redis_version:/);
});
await check('node-redis expiry', async () => {
  await r.set(k('e'), 'v', { expiration: { type: 'PX', value: 120 } });
  assert.equal(await r.get(k('e')), 'v');
  await until('expiry', async () => (await r.get(k('e'))) === null);
  await r.setEx(k('e2'), 100, 'v');
  assert.ok([99, 100].includes(await r.ttl(k('e2'))));
});
await check('node-redis client-side caching of its own', async () => {
  const client = await connect({ RESP: 3, clientSideCache: { ttl: 0, maxEntries: 0, evictPolicy: 'LRU' } });
  await r.set(k('csc'), '1');
  assert.equal(await client.get(k('csc')), '1');
  await r.set(k('csc'), '2');
  await until('the invalidation', async () => (await client.get(k('csc'))) === '2');
});
await clean();
open.forEach((client) => client.destroy());
finish();
