"""Smoke suite of redis-py, sync and asyncio: redis_py.py HOST PORT. Prints `ok NAME` a check; exit 1 if any failed.

It uses the library as applications do, with its defaults, and only keys under `smoke:py:`.
"""

import asyncio
import os
import signal
import sys
import threading
import traceback

import redis
import redis.asyncio

HOST, PORT = sys.argv[1], int(sys.argv[2])
PREFIX = "smoke:py:"
LARGE = os.urandom(1024) * 5 * 1024  # 5 MiB
PATIENCE = 30  # seconds; no single check may take longer: a hang is a failure with a name
failed = []


def late(signum, frame):
    raise TimeoutError(f"not within {PATIENCE} s")


def k(name):
    return PREFIX + name


def check(fn):
    name = "redis-py " + fn.__name__
    signal.alarm(PATIENCE)
    try:
        asyncio.run(fn()) if asyncio.iscoroutinefunction(fn) else fn()
        print("ok", name, flush=True)
    except Exception:
        failed.append(name)
        print("FAILED", name, flush=True)
        traceback.print_exc(file=sys.stdout)
    finally:
        signal.alarm(0)


def client(**options):
    return redis.Redis(host=HOST, port=PORT, socket_timeout=20, **options)


def clean():
    with client() as r:
        for key in r.scan_iter(PREFIX + "*"):
            r.delete(key)


def connects_with_defaults():
    with client() as r:
        assert r.ping()
        assert r.set(k("a"), "1") and r.get(k("a")) == b"1"
        assert r.get(k("none")) is None
        assert r.info()["redis_version"]
    with redis.Redis.from_url(f"redis://{HOST}:{PORT}/0", decode_responses=True) as r:
        assert r.get(k("a")) == "1"


def both_protocols():
    for protocol in (2, 3):
        with client(protocol=protocol) as r:
            r.delete(k("h"))
            r.hset(k("h"), mapping={"f": "1", "g": "2"})
            assert r.hgetall(k("h")) == {b"f": b"1", b"g": b"2"}
            r.zadd(k("z"), {"a": 1.5})
            assert r.zscore(k("z"), "a") == 1.5


def read_your_writes():
    with client() as r:
        for n in range(300):
            r.set(k("ryw"), n)
            assert int(r.get(k("ryw"))) == n
        assert r.mset({k("m1"): 1, k("m2"): 2})
        assert r.mget(k("m1"), k("nope"), k("m2")) == [b"1", None, b"2"]


def foreign_writes_are_seen_on_the_next_connection():
    with client() as a, client() as b:
        for n in range(100):
            a.set(k("shared"), n)
            assert int(b.get(k("shared"))) == n


def pipelines():
    with client() as r:
        pipe = r.pipeline(transaction=False)
        for n in range(500):
            pipe.set(k(f"p{n}"), n).get(k(f"p{n}"))
        replies = pipe.execute()
        assert [int(v) for v in replies[1::2]] == list(range(500))
        pipe.set(k("text"), "x").incr(k("text")).get(k("text"))
        replies = pipe.execute(raise_on_error=False)
        assert isinstance(replies[1], redis.ResponseError) and replies[2] == b"x"


def transactions():
    with client() as r:
        with r.pipeline() as pipe:
            assert pipe.set(k("t"), 1).incr(k("t")).get(k("t")).execute() == [True, 2, b"2"]
        with r.pipeline() as pipe:
            pipe.watch(k("t"))
            now = int(pipe.get(k("t")))
            pipe.multi()
            pipe.set(k("t"), now + 1)
            assert pipe.execute() == [True]
        with r.pipeline() as pipe:
            pipe.watch(k("t"))
            r.set(k("t"), 100)
            pipe.multi()
            pipe.set(k("t"), 1)
            try:
                pipe.execute()
                raise AssertionError("EXEC after a watched key changed")
            except redis.WatchError:
                pass
        assert r.get(k("t")) == b"100"

        def increment(pipe):
            pipe.multi()
            pipe.incr(k("t"))

        assert r.transaction(increment, k("t")) == [101]


def pubsub():
    for protocol in (2, 3):
        with client(protocol=protocol) as r:
            with r.pubsub() as sub:
                sub.subscribe(k("ch"))
                sub.psubscribe(k("pat*"))
                assert [sub.get_message(timeout=10)["type"] for _ in range(2)] == ["subscribe", "psubscribe"]
                assert r.publish(k("ch"), "one") == 1
                message = sub.get_message(timeout=10)
                assert (message["type"], message["data"]) == ("message", b"one")
                assert r.publish(k("pat1"), "two") == 1
                message = sub.get_message(timeout=10)
                assert (message["type"], message["data"]) == ("pmessage", b"two")
                sub.ping()
                assert sub.get_message(timeout=10)["type"] == "pong"
                sub.unsubscribe()
                assert sub.get_message(timeout=10)["type"] == "unsubscribe"
            assert r.ping()


def blocking_pops():
    with client() as r:
        assert r.blpop(k("q"), timeout=0.1) is None
        threading.Timer(0.1, lambda: client().rpush(k("q"), "job")).start()
        assert list(r.blpop([k("q0"), k("q")], timeout=10)) == [k("q").encode(), b"job"]
        r.rpush(k("src"), "1", "2")
        assert r.blmove(k("src"), k("dst"), 1, "LEFT", "RIGHT") == b"1"
        assert r.brpop(k("src"), timeout=1)[1] == b"2"
        r.zadd(k("bz"), {"a": 1})
        assert r.bzpopmin(k("bz"), timeout=1)[1] == b"a"


def scripts():
    with client() as r:
        assert r.eval("return {KEYS[1], ARGV[1]}", 1, "k", "v") == [b"k", b"v"]
        sha = r.script_load("return redis.call('SET', KEYS[1], ARGV[1])")
        r.evalsha(sha, 1, k("s"), "from script")
        assert r.get(k("s")) == b"from script"
        add = r.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
        assert [add([k("n")], [5]), add([k("n")], [2])] == [5, 7]
        assert r.get(k("n")) == b"7"
        assert add([k("n")], [1], client=r.pipeline()) is not None
        assert r.script_exists(sha, "0" * 40) == [True, False]
        try:
            r.evalsha("0" * 40, 0)
            raise AssertionError("an unknown script ran")
        except redis.exceptions.NoScriptError:
            pass


def scan():
    with client() as r:
        wanted = {k(f"scan{n}").encode() for n in range(300)}
        r.mset({key: 1 for key in wanted})
        assert set(r.scan_iter(k("scan*"), count=50)) == wanted
        r.hset(k("bigh"), mapping={f"f{n}": n for n in range(600)})
        assert len(dict(r.hscan_iter(k("bigh"), count=100))) == 600
        r.sadd(k("bigs"), *range(300))
        assert len(set(r.sscan_iter(k("bigs")))) == 300


def large_values():
    with client() as r:
        r.set(k("large"), LARGE)
        assert r.get(k("large")) == LARGE
        assert r.get(k("large")) == LARGE
        assert r.getrange(k("large"), 0, 9) == LARGE[:10]
        assert r.mget(k("large"), k("none")) == [LARGE, None]


def data_types():
    with client() as r:
        assert r.lpush(k("l"), "a", "b") == 2 and r.lrange(k("l"), 0, -1) == [b"b", b"a"]
        assert r.sadd(k("set"), "x", "y") == 2 and r.smembers(k("set")) == {b"x", b"y"}
        r.zadd(k("zs"), {"a": 1, "b": 2.5})
        assert [list(p) for p in r.zrange(k("zs"), 0, -1, withscores=True)] == [[b"a", 1.0], [b"b", 2.5]]
        assert r.incrbyfloat(k("f"), 0.5) == 0.5
        r.geoadd(k("geo"), [13.361389, 38.115556, "Palermo"])
        assert abs(r.geopos(k("geo"), "Palermo")[0][0] - 13.361389) < 1e-4
        r.pfadd(k("hll"), "a", "b")
        assert r.pfcount(k("hll")) == 2
        r.setbit(k("bits"), 7, 1)
        assert r.bitcount(k("bits")) == 1 and r.type(k("bits")) == b"string"


def streams():
    with client() as r:
        first = r.xadd(k("st"), {"n": 1})
        r.xadd(k("st"), {"n": 2})
        assert r.xlen(k("st")) == 2 and r.xrange(k("st"))[0] == (first, {b"n": b"1"})
        assert r.xgroup_create(k("st"), "g", id="0")
        read = r.xreadgroup("g", "c1", {k("st"): ">"}, count=2)
        entries = read[k("st").encode()][0] if isinstance(read, dict) else read[0][1]
        assert [fields for _, fields in entries] == [{b"n": b"1"}, {b"n": b"2"}]
        assert r.xack(k("st"), "g", first) == 1
        assert r.xpending(k("st"), "g")["pending"] == 1
        assert len(r.xclaim(k("st"), "g", "c2", 0, [entries[1][0]])) == 1
        assert not r.xread({k("st"): "$"}, block=50)
        threading.Timer(0.1, lambda: client().xadd(k("st"), {"n": 3})).start()
        assert r.xread({k("st"): "$"}, block=10000)


def databases():
    with client(db=0) as zero, client(db=3) as three:
        zero.set(k("db"), "zero")
        three.set(k("db"), "three")
        assert (zero.get(k("db")), three.get(k("db"))) == (b"zero", b"three")
        three.delete(k("db"))
        assert three.get(k("db")) is None and zero.get(k("db")) == b"zero"


def client_commands():
    with client(client_name="smoke-py") as r:
        assert r.client_getname() in ("smoke-py", b"smoke-py")
        own = r.client_id()
        assert own > 0 and any(int(c["id"]) == own and c["name"] == "smoke-py" for c in r.client_list())
        assert int(r.client_info()["id"]) == own
        r.client_setname("renamed")
        assert r.client_getname() in ("renamed", b"renamed")
        assert r.echo("x") == b"x" and r.time()[0] > 0 and r.dbsize() > 0


def expiry():
    with client() as r:
        r.set(k("e"), "v", px=120)
        assert r.get(k("e")) == b"v" and 0 < r.pttl(k("e")) <= 120
        wait_until(lambda: r.get(k("e")) is None)
        r.set(k("e2"), "v", ex=100)
        assert r.ttl(k("e2")) in (99, 100)
        assert r.persist(k("e2")) and r.ttl(k("e2")) == -1
        assert r.expire(k("e2"), 0) and r.get(k("e2")) is None
        assert r.getex(k("e2")) is None and r.getdel(k("e2")) is None


def monitor():
    with client() as r, r.monitor() as m:
        client().get(k("watched"))
        commands = m.listen()
        assert any(k("watched") in next(commands)["command"] for _ in range(50))


def many_threads_share_a_pool():
    r, errors = client(), []

    def work(number):
        for n in range(100):
            r.set(k(f"th{number}"), n)
            if int(r.get(k(f"th{number}"))) != n:
                errors.append((number, n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors, errors


def wait_until(condition):
    tick, left = threading.Event(), 1000
    while not condition() and left:
        tick.wait(0.01)
        left -= 1
    assert left, "not within 10 s"


async def aio_commands_and_pipelines():
    async with redis.asyncio.Redis(host=HOST, port=PORT) as r:
        assert await r.set(k("aio"), "1") and await r.get(k("aio")) == b"1"
        async with r.pipeline(transaction=True) as pipe:
            assert await pipe.incr(k("aio")).get(k("aio")).execute() == [2, b"2"]
        replies = await asyncio.gather(*(r.incr(k("aio-n")) for _ in range(100)))
        assert sorted(replies) == list(range(1, 101))
        await r.set(k("aio-large"), LARGE)
        assert await r.get(k("aio-large")) == LARGE


async def aio_pubsub_and_blocking():
    async with redis.asyncio.Redis(host=HOST, port=PORT) as r:
        async with r.pubsub() as sub:
            await sub.subscribe(k("aio-ch"))
            assert (await sub.get_message(timeout=10))["type"] == "subscribe"
            await r.publish(k("aio-ch"), "hello")
            assert (await sub.get_message(timeout=10))["data"] == b"hello"
        popped, _ = await asyncio.gather(r.blpop([k("aio-q")], timeout=10), r.rpush(k("aio-q"), "x"))
        assert popped[1] == b"x"


async def aio_cancelled_block_leaves_others_alone():
    async with redis.asyncio.Redis(host=HOST, port=PORT) as r:
        task = asyncio.create_task(r.blpop([k("aio-none")], timeout=30))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await r.rpush(k("aio-none"), "kept")
        wanted = 1
        assert await r.llen(k("aio-none")) == wanted


CHECKS = [connects_with_defaults, both_protocols, read_your_writes, foreign_writes_are_seen_on_the_next_connection,
          pipelines, transactions, pubsub, blocking_pops, scripts, scan, large_values, data_types, streams, databases,
          client_commands, expiry, monitor, many_threads_share_a_pool, aio_commands_and_pipelines,
          aio_pubsub_and_blocking, aio_cancelled_block_leaves_others_alone]

if __name__ == "__main__":
    signal.signal(signal.SIGALRM, late)
    clean()
    for fn in CHECKS:
        check(fn)
    clean()
    sys.exit(1 if failed else 0)
