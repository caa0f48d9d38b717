"""redis-py, with its defaults, under remote control: outage.py HOST PORT. Each line on stdin is a command (`get k`), each
line of output what the library makes of it: `value V`, or `error TYPE: MESSAGE`."""

import sys

import redis

client = redis.Redis(host=sys.argv[1], port=int(sys.argv[2]), decode_responses=True)
for line in sys.stdin:
    name, *args = line.split()
    try:
        print("value", getattr(client, name)(*args), flush=True)
    except Exception as error:
        print(f"error {type(error).__name__}: {error}", flush=True)
