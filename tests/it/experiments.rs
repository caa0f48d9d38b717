//! What experiments say is true, and what they do by themselves is right: an upstream whose latency and errors are known,
//! arms that are the same everywhere, rollouts that grow and are taken back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::fake::Conn;
use crate::support::proxy::Builder;
use crate::support::{Client, Fake, PATIENCE, Proxy, Redis, Reply, eventually};

/// SplitMix64, seeded: the same delays in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// What upstream makes of a GET: how long it takes, and its answer.
type Behaviour = Box<dyn FnMut(&str) -> (Duration, String) + Send>;

const VALUE: &str = "$5\r\nvalue\r\n";

struct World {
    proxy: Proxy,
    client: Client,
    behaviour: Arc<Mutex<Behaviour>>,
    over: Arc<AtomicBool>,
    upstream: Option<JoinHandle<()>>,
    _fake: Fake,
}

impl World {
    fn start(rules: Value) -> World {
        let fake = Fake::start();
        let builder = Proxy::upstream(&fake.url()).set("coherence.max_staleness", "10s").set("coherence.canary", "off");
        let proxy = builder.set("coherence.sample_per_second", 0).set("rules", rules).start();
        let behaviour: Behaviour = Box::new(|_| (Duration::ZERO, VALUE.to_owned()));
        let behaviour = Arc::new(Mutex::new(behaviour));
        let over = Arc::new(AtomicBool::new(false));
        let upstream = serve(fake.lane(), behaviour.clone(), over.clone());
        let client = proxy.client();
        World { proxy, client, behaviour, over, upstream: Some(upstream), _fake: fake }
    }

    fn behave(&self, behaviour: impl FnMut(&str) -> (Duration, String) + Send + 'static) {
        *self.behaviour.lock().expect("a behaviour") = Box::new(behaviour);
    }

    /// How long it took, seen from the client.
    fn get(&mut self, key: &str) -> Duration {
        let asked = Instant::now();
        self.client.cmd(&["GET", key]);
        asked.elapsed()
    }

    /// `k:0` to `k:n`, cached ones and those of the control group.
    fn keys(&mut self, n: usize) -> (Vec<String>, Vec<String>) {
        let keys = (0..n).map(|i| format!("k:{i}"));
        keys.partition(|key| rule_says(&mut self.client, key) != "control")
    }

    fn experiment(&self) -> Value {
        experiment(&self.proxy)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(upstream) = self.upstream.take() {
            let _ = upstream.join();
        }
    }
}

fn serve(mut lane: Conn, behaviour: Arc<Mutex<Behaviour>>, over: Arc<AtomicBool>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            let Some(words) = lane.try_next(Duration::from_millis(50)) else { continue };
            if words[0] == b"GET" {
                let key = String::from_utf8(words[1].clone()).expect("a key");
                let (delay, answer) = behaviour.lock().expect("a behaviour")(&key);
                std::thread::sleep(delay);
                lane.reply(answer);
            } else {
                lane.reply(":-1\r\n");
            }
        }
    })
}

fn experiment(proxy: &Proxy) -> Value {
    proxy.get("/api/v1/experiments").json()["experiments"][0].clone()
}

fn rule_says(client: &mut Client, key: &str) -> String {
    field(&client.cmd(&["NEARSIDE", "EXPLAIN", "GET", key]), "rule_says")
}

/// One of a flat array's fields.
fn field(reply: &Reply, name: &str) -> String {
    let items = reply.items();
    let texts: Vec<String> =
        items.iter().map(|item| if matches!(item, Reply::Array(_)) { String::new() } else { item.text() }).collect();
    let pairs: HashMap<&str, &str> = texts.chunks(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    (*pairs.get(name).unwrap_or_else(|| panic!("no {name} in {texts:?}"))).to_owned()
}

fn row(client: &mut Client, name: &str) -> String {
    field(&client.cmd(&["NEARSIDE", "RULES"]).items()[0], name)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// What upstream was told to take for a read, and what the client saw, in milliseconds.
#[derive(Default)]
struct Reads {
    told: Vec<f64>,
    seen: Vec<f64>,
}

impl Reads {
    /// How much longer the client saw them than upstream was told, on average: the most by which the sidecar may err.
    fn excess(&self) -> f64 {
        mean(&self.seen) - mean(&self.told)
    }
}

/// The truth is known: upstream takes 1 or 9 ms, half of the time each, so 5 ms on average and 9 ms in 95 of 100; a hit
/// takes nothing beside that. What is measured lies between what upstream was told and what the client saw, however busy
/// the machine is, and the intervals hold the truth, give or take that excess.
#[test]
fn intervals_hold_what_upstream_is_known_to_take() {
    let mut w = World::start(json!([{"name": "part", "pattern": "k:*", "rollout": 50}]));
    let (cached, control) = w.keys(80);
    let (cached, control) = (&cached[..30], &control[..25]);
    let told = Arc::new(Mutex::new((Dice(11), 0.0)));
    let of_upstream = told.clone();
    w.behave(move |_| {
        let mut told = of_upstream.lock().expect("what it was told");
        let delay = if told.0.below(2) == 0 { 1 } else { 9 };
        told.1 = delay as f64;
        (Duration::from_millis(delay), VALUE.to_owned())
    });
    let mut read = |keys: &[String], rounds: usize| {
        let mut reads = Reads::default();
        for key in (0..rounds).flat_map(|_| keys) {
            told.lock().expect("what it was told").1 = 0.0;
            reads.seen.push(ms(w.get(key)));
            reads.told.push(told.lock().expect("what it was told").1);
        }
        reads
    };
    let (of_control, of_cached) = (read(control, 8), read(cached, 6));
    let misses = of_cached.told.iter().filter(|told| **told > 0.0).count();
    assert!((30..40).contains(&misses), "{misses} of 180 reads of 30 keys went up");

    let one = w.experiment();
    let arm = |i: usize| &one["arms"][i]["windows"]["15m"];
    let within = |figure: &Value, truth: f64, above: f64, below: f64| {
        assert!(number(&figure["low"]) <= truth + above, "{truth} ms, at most {above} more: {figure}");
        assert!(number(&figure["high"]) >= truth - below, "{truth} ms, at most {below} less: {figure}");
    };
    assert_eq!((&one["arms"][0]["arm"], &one["arms"][1]["arm"]), (&json!("control"), &json!("cached")));
    assert_eq!((number(&arm(0)["requests"]), number(&arm(1)["requests"])), (200.0, 180.0));
    for (figures, reads) in [(arm(0), &of_control), (arm(1), &of_cached)] {
        let measured = number(&figures["mean_ms"]["value"]);
        assert!((mean(&reads.told)..=mean(&reads.seen)).contains(&measured), "{figures}");
    }
    within(&arm(0)["mean_ms"], 5.0, of_control.excess(), 0.0);
    let longest = of_control.seen.iter().copied().fold(0.0, f64::max);
    within(&arm(0)["p95_ms"], 9.0, longest - 9.0, 0.0);
    let share = misses as f64 / 180.0;
    within(&arm(1)["mean_ms"], 5.0 * share, of_cached.excess(), 0.0);
    let difference = &one["differences"][0]["windows"]["15m"];
    within(&difference["mean_ms"], 5.0 * share - 5.0, of_cached.excess(), of_control.excess());
    assert!(number(&difference["mean_ms"]["high"]) < 0.0, "the cache is faster: {difference}");
    assert_eq!((number(&arm(1)["hits"]), number(&arm(1)["misses"])), (180.0 - misses as f64, misses as f64));
    within(&arm(1)["hit_rate"], 1.0 - share, 0.0, 0.0);
    assert_eq!((&arm(0)["hit_rate"], number(&arm(0)["errors"])), (&Value::Null, 0.0));
    assert!(row(&mut w.client, "arms").starts_with("control:requests=200,hits=0,misses=0,errors=0,"));
}

fn guarded(more: Value) -> Value {
    let guard = json!({"percent": 50, "auto_rollback": {"window": "1s", "min_requests": 50}});
    let mut rule = json!({"name": "part", "pattern": "k:*", "rollout": guard});
    rule.as_object_mut().expect("a rule").extend(more.as_object().expect("keys").clone());
    json!([rule])
}

/// Reads all keys again and again until the rule is rolled back, or so many windows were judged.
fn read_until(w: &mut World, keys: &[String], windows: f64) -> Value {
    let end = Instant::now() + 2 * PATIENCE;
    loop {
        for key in keys {
            w.get(key);
        }
        let one = w.experiment();
        if one["state"] == "rolled_back" || number(&one["auto_rollback"]["windows_judged"]) >= windows {
            return one;
        }
        assert!(Instant::now() < end, "nothing has come of it: {one}");
    }
}

#[test]
fn errors_of_the_cached_keys_alone_roll_the_rule_back() {
    let mut w = World::start(guarded(json!({})));
    let (cached, control) = w.keys(120);
    // Every third of the cached keys fails; the others are there to be dropped.
    let failing: Vec<String> = cached.iter().step_by(3).cloned().collect();
    let fine = cached[1].clone();
    let bad = failing.clone();
    w.behave(move |key| {
        let answer = if bad.iter().any(|b| b == key) { "-ERR it is broken\r\n" } else { VALUE };
        (Duration::ZERO, answer.to_owned())
    });
    assert_eq!(row(&mut w.client, "rollout_state"), "steady");
    w.get(&fine);
    eventually(PATIENCE, "an entry", || w.client.cmd(&["NEARSIDE", "ENTRY", &fine]) != Reply::Nil);
    let one = read_until(&mut w, &[cached.clone(), control].concat(), f64::INFINITY);
    assert_eq!((&one["share"], &one["rolled_back_because"]["code"]), (&json!(0.0), &json!("error_rate")));
    let reason = one["rolled_back_because"]["message"].as_str().expect("a sentence").to_owned();
    assert!(reason.starts_with("errors: ") && reason.ends_with("where 1.00 % are allowed"), "{reason}");
    w.proxy.wait_logged("rule part: rolled back");
    assert_eq!(
        ["rollout_state", "rollout_percent", "rollout_reason"].map(|name| row(&mut w.client, name)),
        ["rolled_back".to_owned(), "0".to_owned(), reason]
    );
    assert_eq!(w.proxy.metric("nearside_rollout_changes_total{change=\"roll_back\"}"), 1.0);
    // Nothing is served from what was stored, and nothing is stored any more.
    assert!(cached.iter().all(|key| rule_says(&mut w.client, key) == "control"));
    assert_eq!(w.client.cmd(&["NEARSIDE", "ENTRY", &fine]), Reply::Nil);
    let hits = w.proxy.stat("hits");
    for _ in 0..5 {
        w.get(&fine);
    }
    assert_eq!(w.proxy.stat("hits"), hits);
}

/// A cache that makes requests slower: its values are too large to be kept, and upstream takes longer for them.
#[test]
fn cached_keys_that_are_slower_roll_the_rule_back() {
    let mut w = World::start(guarded(json!({"max_value_bytes": 4})));
    let (cached, control) = w.keys(60);
    let slow = cached.clone();
    w.behave(move |key| {
        let delay = if slow.iter().any(|s| s == key) { 15 } else { 0 };
        (Duration::from_millis(delay), VALUE.to_owned())
    });
    let one = read_until(&mut w, &[cached, control].concat(), f64::INFINITY);
    assert_eq!(one["rolled_back_because"]["code"], "latency_mean", "{one}");
}

/// An A/A test: both groups are served alike, with errors and with a spread of latencies.
#[test]
fn equal_arms_are_left_alone() {
    let mut w = World::start(guarded(json!({"max_value_bytes": 4})));
    let (cached, control) = w.keys(120);
    let mut dice = Dice(5);
    w.behave(move |_| {
        let answer = if dice.below(50) == 0 { "-ERR now and then\r\n" } else { VALUE };
        (Duration::from_micros(dice.below(2000)), answer.to_owned())
    });
    // As they are numbered: neither group before the other.
    let mut keys = [cached, control].concat();
    keys.sort();
    let one = read_until(&mut w, &keys, 3.0);
    assert_eq!((&one["state"], &one["share"]), (&json!("steady"), &json!(0.5)), "{one}");
    assert_eq!(w.proxy.metric("nearside_rollout_changes_total{change=\"roll_back\"}"), 0.0);
}

#[test]
fn a_ramp_climbs_by_itself_and_keeps_what_it_has_cached() {
    let redis = Redis::start();
    let rollout = json!({"ramp": {"steps": [10, 50, 100], "hold": "1s"}});
    let rules = json!([{"name": "part", "pattern": "k:*", "rollout": rollout}]);
    let proxy = Proxy::to(&redis).set("rules", rules).start();
    let mut c = proxy.client();
    let mut cached = |share: &str| -> Option<Vec<usize>> {
        let all = (0..200).filter(|i| rule_says(&mut c, &format!("k:{i}")) != "control").collect();
        (row(&mut c, "rollout_percent") == share).then_some(all)
    };
    let first = cached("10").expect("the first step lasts a second");
    let mut reader = proxy.client();
    let key = format!("k:{}", first[0]);
    eventually(PATIENCE, "an entry", || {
        reader.cmd(&["GET", &key]);
        reader.cmd(&["NEARSIDE", "ENTRY", &key]) != Reply::Nil
    });
    eventually(PATIENCE, "the last step", || row(&mut reader, "rollout_percent") == "100");
    assert_eq!(cached("100").expect("it stays there").len(), 200);
    assert_ne!(reader.cmd(&["NEARSIDE", "ENTRY", &key]), Reply::Nil, "a larger share dropped what the smaller one had");
    assert_eq!(proxy.metric("nearside_rollout_changes_total{change=\"step\"}"), 2.0);
    proxy.wait_logged("rule part: 50 % of its keys are cached now");
    let one = experiment(&proxy);
    assert_eq!(
        (&one["state"], &one["share"], &one["ramp"]["steps"]),
        (&json!("steady"), &json!(1.0), &json!([0.1, 0.5, 1.0]))
    );
    assert!((5..40).contains(&first.len()), "{} of 200 at 10 %", first.len());
}

#[test]
fn every_sidecar_puts_a_key_into_the_same_arm() {
    let redis = Redis::start();
    let variants = json!({"short": {"ttl": "5m"}, "long": {"ttl": "1h"}});
    let rules = json!([{"name": "part", "pattern": "k:*", "rollout": 60, "variants": variants}]);
    let sidecars = [0, 1].map(|_| Proxy::to(&redis).set("rules", rules.clone()).start());
    let [mut a, mut b] = [0, 1].map(|i| sidecars[i].client());
    let mut found: HashMap<String, usize> = HashMap::new();
    for i in 0..300 {
        let key = format!("k:{i}");
        let says = rule_says(&mut a, &key);
        assert_eq!(says, rule_says(&mut b, &key), "{key}");
        *found.entry(says).or_default() += 1;
    }
    let of = |says: &str| found.get(says).copied().unwrap_or(0);
    let [control, short, long] =
        [of("control"), of("GET for 300000 ms, variant short"), of("GET for 3600000 ms, variant long")];
    assert!((90..150).contains(&control) && control + short + long == 300, "{found:?}");
    assert!((60..120).contains(&short) && (60..120).contains(&long), "{found:?}");
}

/// Whichever worker answers, and by whichever command: every hit is counted in its arm, and an MGET's duration only where
/// all its keys are in one.
#[test]
fn hits_count_in_their_arm_on_every_worker() {
    let redis = Redis::start();
    let variants = json!({"brief": {"ttl": "5m"}, "long": {"ttl": "1h"}});
    let rules = json!([{"name": "part", "pattern": "k:*", "variants": variants}, {"name": "rest", "pattern": "*"}]);
    let configure = |b: Builder| b.set("rules", rules).set("workers", 3);
    let proxy = configure(Proxy::to(&redis)).start();
    eventually(PATIENCE, "a lane", || proxy.stats()["coherence"] == "tracking");
    let mut c = proxy.client();
    let (brief, long): (Vec<String>, Vec<String>) =
        (0..40).map(|i| format!("k:{i}")).partition(|key| rule_says(&mut c, key).ends_with("brief"));
    let words =
        |keys: &[String]| -> Vec<String> { ["MGET".to_owned()].into_iter().chain(keys.iter().cloned()).collect() };
    let all = words(&[brief.clone(), long.clone()].concat());
    eventually(PATIENCE, "all are kept", || {
        let before = proxy.stat("hits");
        c.cmd(&all);
        proxy.stat("hits") - before == 40.0
    });
    let figures = |i: usize, name: &str| number(&experiment(&proxy)["arms"][i]["windows"]["start"][name]);
    let state = || [0, 1].map(|i| (figures(i, "requests"), figures(i, "hits")));
    let (before, hits) = (state(), proxy.stat("hits"));
    let mut clients: Vec<Client> = (0..6).map(|_| proxy.client()).collect();
    for client in &mut clients {
        brief.iter().for_each(|key| drop(client.cmd(&["GET", key])));
        client.cmd(&words(&brief));
        client.cmd(&words(&long));
        client.cmd(&all);
        client.cmd(&["GET", "beside"]);
    }
    let (s, l) = (brief.len() as f64, long.len() as f64);
    let wanted = [
        (before[0].0 + 6.0 * (s + 1.0), before[0].1 + 6.0 * 3.0 * s),
        (before[1].0 + 6.0, before[1].1 + 6.0 * 2.0 * l),
    ];
    assert_eq!(state(), wanted);
    assert!(proxy.stat("hits") - hits >= 6.0 * (3.0 * s + 2.0 * l));
    assert_eq!(experiment(&proxy)["differences"][0]["against"], "brief");
}

#[test]
fn a_bad_rollout_ends_the_start_with_what_would_be_right() {
    let redis = Redis::start();
    let rules = json!([{"name": "part", "pattern": "k:*", "rollout": {"ramp": {"steps": [10, 1], "hold": 0}}}]);
    let mut proxy = Proxy::to(&redis).set("rules", rules).without_waiting().start();
    assert_eq!(proxy.wait_exit(PATIENCE).code(), Some(2));
    proxy.wait_logged("rollout: ramp: steps: 2 to 16 percentages above 0, each more than the one before");
    proxy.wait_logged("rollout: ramp: hold: \"0\" is too small; at least 1s");
}
