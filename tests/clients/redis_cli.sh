#!/usr/bin/env bash
# Smoke suite of redis-cli and redis-benchmark: redis_cli.sh HOST PORT. Prints `ok NAME` a check; exit 1 if any failed.
# Keys under `smoke:cli:`; redis-benchmark writes its own fixed ones. Every call is bounded, so a hang is a failure.
set -u
host=$1 port=$2 failures=0
cli() { timeout 20 redis-cli -h "$host" -p "$port" "$@"; }

# check NAME EXPECTED-REGEX COMMAND...: the output must match, and timeout must not have ended it
check() {
  local name=$1 want=$2 out status
  shift 2
  out=$("$@" 2>&1 </dev/null)
  status=$?
  if [[ $status -eq 0 && $out =~ $want ]]; then
    echo "ok redis-cli $name"
  else
    failures=$((failures + 1))
    printf 'FAILED redis-cli %s (exit %s), wanted %s, got:\n%.2000s\n' "$name" "$status" "$want" "$out"
  fi
}

interactive() { printf 'SET smoke:cli:i 1\nGET smoke:cli:i\nHELP GET\nMULTI\nINCR smoke:cli:i\nEXEC\nSELECT 1\nPING\nQUIT\n' | cli; }
piped() { for n in $(seq 1000); do printf 'SET smoke:cli:p%d %d\r\n' "$n" "$n"; done | cli --pipe; }
piped_multibulk() { for n in $(seq 1000); do printf '*3\r\n$3\r\nSET\r\n$11\r\nsmoke:cli:m\r\n$4\r\n%04d\r\n' "$n"; done | cli --pipe; }
# These run until they are interrupted; what they printed by then is the check.
bounded() { timeout --signal=INT --preserve-status "$1" stdbuf -oL redis-cli -h "$host" -p "$port" "${@:2}"; true; }
benchmark() { timeout 60 redis-benchmark -h "$host" -p "$port" -q -n 2000 -c 10 "$@" | tr '\r' '\n'; }

check 'answers a command' '^PONG$' cli PING
check 'sets and gets' '^OK$' cli SET smoke:cli:a value
check 'gets' '^value$' cli GET smoke:cli:a
check 'speaks RESP3' '^1# "f" => "1"' bash -c "redis-cli -h $host -p $port HSET smoke:cli:h f 1 >/dev/null; timeout 20 redis-cli -3 --no-raw -h $host -p $port HGETALL smoke:cli:h"
check 'prints errors' 'WRONGTYPE' cli LPUSH smoke:cli:a x
check 'starts interactively' 'OK.1.*QUEUED.*2.*OK.PONG' interactive
check 'chooses a database' '^OK$' cli -n 5 SET smoke:cli:db 5
check 'evaluates' '^7$' cli EVAL 'return ARGV[1]' 0 7
check '--scan' 'smoke:cli:a' cli --scan --pattern 'smoke:cli:*'
check '--pipe, inline' 'errors: 0, replies: 1000' piped
check '--pipe, multibulk' 'errors: 0, replies: 1000' piped_multibulk
check '--bigkeys' 'Biggest string found' cli --bigkeys
check '--memkeys' 'Sampled [0-9]+ keys' cli --memkeys
check '--stat' 'keys.*requests.*connections' bounded 1 --stat -i 0.1
check '--latency' 'min: [0-9]+|^[0-9]+ [0-9]+ [0-9.]+ [0-9]+' bounded 1 --latency -i 0.2
check '--latency-history' 'min|[0-9]+ [0-9]+ [0-9.]+ [0-9]+' bounded 1 --latency-history -i 0.2
check 'subscribes' 'subscribe.*smoke:cli:ch' bounded 1 SUBSCRIBE smoke:cli:ch
check 'monitors' '^OK' bounded 1 MONITOR
check 'repeats' '2.*3' cli -r 3 INCR smoke:cli:n
check 'INFO' 'redis_version:' cli INFO
check 'CLIENT LIST' 'cmd=client' cli CLIENT LIST
check 'redis-benchmark -P 4' 'SET: .*GET: .*INCR: .*LPUSH: .*MSET' benchmark -P 4 -t set,get,incr,lpush,mset
check 'redis-benchmark' 'SET: .*GET: ' benchmark -t set,get
exit $((failures > 0))
