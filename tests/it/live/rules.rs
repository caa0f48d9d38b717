//! One rule put or taken away, and the mode, over HTTP: what is answered, what is refused and why, who may, and what is
//! remembered of it.

use serde_json::{Value, json};

use super::{Stand, TOKEN};
use crate::sessions::{run, warm};
use crate::support::{PATIENCE, Proxy, Redis, Reply, eventually, http};

fn stand() -> Stand {
    Stand::with_rules(json!([
        {"name": "user", "pattern": "user:*", "ttl": "1m", "max_share": 0.5},
        {"name": "rest", "pattern": "*"},
    ]))
}

#[test]
fn a_rule_is_put_before_the_last_resort_replaced_in_place_moved_and_deleted() {
    let stand = stand();
    let done = stand.put("/api/v1/rules/cart", &json!({"pattern": "cart:*", "ttl": "5m"}));
    assert_eq!((done["generation"].as_u64(), &done["changed"]), (Some(2), &json!(["rules"])));
    assert_eq!((&done["needs_restart"], &done["persisted"]), (&json!([]), &json!(false)));
    assert_eq!(stand.names(), ["user", "cart", "rest"]);
    stand.put("/api/v1/rules/cart", &json!({"pattern": "cart:*", "ttl": "6m"}));
    stand.put("/api/v1/rules/user?before=rest", &json!({"pattern": "user:*"}));
    assert_eq!(stand.names(), ["cart", "user", "rest"]);
    stand.put("/api/v1/rules/first?at=0", &json!({"name": "first", "pattern": "f:*"}));
    assert_eq!(stand.names(), ["first", "cart", "user", "rest"]);
    // Names are what the path says, whatever is in them.
    stand.put("/api/v1/rules/a%2Fb%20c", &json!({"pattern": "x:*"}));
    stand.put("/api/v1/rules/y:%7Bid%7D:*", &json!({"pattern": "y:{id}:*", "tags": ["y:{id}"]}));
    assert_eq!(stand.names(), ["first", "cart", "user", "a/b c", "y:{id}:*", "rest"]);
    stand.delete("/api/v1/rules/a%2Fb%20c");
    let same = stand.put("/api/v1/rules/cart", &json!({"pattern": "cart:*", "ttl": "6m"}));
    assert_eq!((&same["changed"], &same["generation"]), (&json!([]), &stand.rules()["generation"]));
    let mut client = stand.proxy.client();
    assert_eq!(run(&mut client, "NEARSIDE EXPLAIN GET cart:1").get("rule_says"), Reply::bulk("GET for 360000 ms"));
    let warned = stand.put("/api/v1/rules/late?at=5", &json!({"pattern": "user:x*"}));
    assert!(warned["warnings"][0].as_str().is_some_and(|w| w.contains("late (user:x*) is never asked")), "{warned}");
}

#[test]
fn what_is_shown_can_be_put_back() {
    let stand = stand();
    let full = json!({
        "pattern": "t:{id}:*", "commands": ["GET", "STRLEN"], "ttl": "10m", "negative_ttl": "0s", "on_write": "resident",
        "max_value_bytes": "4KiB", "rollout": 12.5, "variants": {"s": {"ttl": "5m"}, "l": {"ttl": "1h"}},
        "tags": ["t:{id}"], "max_share": 0.25, "refresh_ahead": "1s", "stale_while_revalidate": "2s",
    });
    stand.put("/api/v1/rules/t", &full);
    stand.put("/api/v1/rules/_x*", &json!({"pattern": "_x*"}));
    let before = stand.rules();
    let mut client = stand.proxy.client();
    warm(&stand.proxy, &mut client, "user:1");
    run(&mut client, "GET user:1");
    for rule in before["rules"].as_array().expect("rules") {
        let name = rule["name"].as_str().expect("a name");
        let done = stand.put(&format!("/api/v1/rules/{name}"), rule);
        assert_eq!(done["changed"], json!([]), "{rule}");
    }
    let after = stand.rules();
    assert_eq!(after["rules"], before["rules"]);
    assert_eq!(after["rules"][1]["rollout"], 12.5);
    assert!(after["counts"]["user"]["hits"].as_u64() >= Some(1), "{after}");
}

#[test]
fn bad_rules_are_refused_whole_with_every_reason() {
    let stand = stand();
    let mut client = stand.proxy.client();
    warm(&stand.proxy, &mut client, "user:1");
    let before = stand.rules();
    for (path, body, reasons) in [
        ("n", json!({"pattern": "[x"}), &["pattern: \"[x\""][..]),
        ("n", json!({"pattern": "t:{id}", "tags": ["t:{other}"]}), &["tags: \"t:{other}\""]),
        (
            "n",
            json!({"pattern": "t:*", "rollout": 120}),
            &["rollout: \"120\" is not a share of the keys; use 0 to 100 percent"],
        ),
        (
            "n",
            json!({"pattern": "t:*", "max_share": 0.6}),
            &["the max_share of user, n come to 1.1 of cache.max_bytes; 1 is all"],
        ),
        ("n", json!({"pattern": "t:*", "tll": "5m"}), &["\"tll\": unknown key; did you mean ttl?"]),
        (
            "n",
            json!({"pattern": "t:*", "ttl": 5, "mode": "on", "commands": ["GET", "TTL"]}),
            &["ttl: \"5\" is not", "mode: \"on\"", "\"TTL\""],
        ),
        ("n", json!({"ttl": "5m"}), &["pattern is missing"]),
        ("n", json!(["pattern"]), &["keys and values are wanted here"]),
        ("_n", json!({"pattern": "t:*"}), &["\"_n\" is no name"]),
        ("n", json!({"name": "m", "pattern": "t:*"}), &["\"m\" is not the name in the path, \"n\""]),
        ("n?before=nobody", json!({"pattern": "t:*"}), &["before: \"nobody\" is no other rule"]),
        ("n?at=3", json!({"pattern": "t:*"}), &["at: 3 is past the end"]),
    ] {
        let answer = stand.send("PUT", &format!("/api/v1/rules/{path}"), &body.to_string());
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
        let problems = answer.json()["error"]["problems"].clone();
        assert_eq!(problems.as_array().map(Vec::len), Some(reasons.len()), "{body}: {problems}");
        for reason in reasons {
            assert!(
                problems
                    .as_array()
                    .is_some_and(|all| all.iter().any(|p| p.as_str().is_some_and(|p| p.contains(reason)))),
                "{reason}: {problems}"
            );
        }
    }
    for (path, what) in [
        ("n?persist=maybe", "persist: \"maybe\" is not true or false"),
        ("n?befor=user", "\"befor\" is not known behind ?; known here: persist, generation, before, at"),
        ("n?at=0&before=user", "give one place"),
        ("n?generation=x", "no generation"),
        ("%zz", "no text in UTF-8"),
    ] {
        let answer = stand.send("PUT", &format!("/api/v1/rules/{path}"), r#"{"pattern": "t:*"}"#);
        assert_eq!(answer.status, 400, "{path}: {}", answer.body);
        assert!(
            answer.json()["error"]["message"].as_str().is_some_and(|m| m.contains(what)),
            "{path}: {}",
            answer.body
        );
    }
    let gone = stand.send("DELETE", "/api/v1/rules/usr", "");
    assert_eq!((gone.status, &gone.json()["error"]["code"]), (404, &json!("no_such_rule")));
    assert!(gone.body.contains("did you mean"), "{}", gone.body);
    for body in ["", "{}", r#"{"mode": "on"}"#, r#"{"mode": "watch"}"#, r#"{"mode": "off", "x": 1}"#] {
        assert_eq!(stand.send("PUT", "/api/v1/mode", body).status, 400, "{body}");
    }
    let after = stand.rules();
    assert_eq!((&after["rules"], &after["generation"]), (&before["rules"], &before["generation"]));
    assert_eq!(run(&mut client, "NEARSIDE EXPLAIN GET user:1").get("in_l1"), Reply::bulk("yes"));
    assert_eq!(stand.proxy.get("/api/v1/events/recent").json()["total"], 0);
}

#[test]
fn changes_need_the_token_and_the_right_method() {
    let stand = stand();
    let at = stand.proxy.http_address();
    let body = r#"{"pattern": "t:*"}"#;
    for (method, path, body) in [
        ("PUT", "/api/v1/rules/n", body),
        ("DELETE", "/api/v1/rules/user", ""),
        ("PUT", "/api/v1/mode", r#"{"mode": "off"}"#),
        ("POST", "/api/v1/reload", ""),
    ] {
        for token in ["", "wrong", &TOKEN[1..]] {
            let answer = http::send(at, method, path, token, "", body);
            assert_eq!((answer.status, answer.header("www-authenticate").as_deref()), (401, Some("Bearer")), "{path}");
        }
    }
    for (method, path, allowed) in [
        ("POST", "/api/v1/rules/n", "PUT, DELETE"),
        ("GET", "/api/v1/rules/n", "PUT, DELETE"),
        ("PUT", "/api/v1/rules", "GET, HEAD"),
        ("POST", "/api/v1/config", "GET, HEAD"),
        ("DELETE", "/api/v1/events/recent", "GET, HEAD"),
        ("POST", "/api/v1/mode", "GET, HEAD, PUT"),
        ("GET", "/api/v1/reload", "POST"),
    ] {
        let answer = stand.send(method, path, "");
        assert_eq!((answer.status, answer.header("allow").as_deref()), (405, Some(allowed)), "{method} {path}");
    }
    assert_eq!(stand.send("PUT", "/api/v1/rules/a/b", body).status, 404);
    assert_eq!(stand.names(), ["user", "rest"]);
    assert_eq!(stand.proxy.get("/api/v1/events/recent").json()["total"], 0);
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    for (method, path) in [("PUT", "/api/v1/rules/n"), ("PUT", "/api/v1/mode"), ("POST", "/api/v1/reload")] {
        let answer = http::send(proxy.http_address(), method, path, "any", "", body);
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (403, &json!("no_token_configured")), "{path}");
    }
}

#[test]
fn a_change_of_rules_that_have_changed_is_refused_where_it_says_which_it_has_seen() {
    let stand = stand();
    let at = stand.proxy.http_address();
    let tag = stand.proxy.get("/api/v1/rules").header("etag").expect("a tag");
    assert_eq!(tag, "\"1\"");
    let put = |head: &str, name: &str| {
        let body = json!({"pattern": format!("{name}:*")}).to_string();
        http::send(at, "PUT", &format!("/api/v1/rules/{name}"), TOKEN, head, &body)
    };
    assert_eq!(put(&format!("If-Match: {tag}\r\n"), "a").status, 200);
    let refused = put(&format!("If-Match: {tag}\r\n"), "b");
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (412, &json!("other_generation")));
    assert!(refused.body.contains("of generation 2 now"), "{}", refused.body);
    assert_eq!(put("If-Match: \"2\"\r\n", "b").status, 200);
    assert_eq!(put("If-Match: *\r\n", "c").status, 200);
    assert_eq!(put("If-Match: nonsense\r\n", "d").status, 400);
    assert_eq!(stand.send("DELETE", "/api/v1/rules/a?generation=1", "").status, 412);
    assert_eq!(stand.send("DELETE", "/api/v1/rules/a?generation=4", "").status, 200);
    assert_eq!(stand.names(), ["user", "b", "c", "rest"]);
}

/// Each looks at what the other has left, never at what it has found when it began.
#[test]
fn changes_at_the_same_time_are_all_kept() {
    let stand = stand();
    let at = stand.proxy.http_address();
    const EACH: usize = 8;
    std::thread::scope(|scope| {
        for who in ["a", "b", "c"] {
            scope.spawn(move || {
                for i in 0..EACH {
                    let body = json!({"pattern": format!("{who}{i}:*")}).to_string();
                    let answer = http::send(at, "PUT", &format!("/api/v1/rules/{who}{i}"), TOKEN, "", &body);
                    assert_eq!(answer.status, 200, "{}", answer.body);
                }
            });
        }
    });
    let rules = stand.rules();
    let names = super::names(&rules);
    assert_eq!((names.len(), rules["generation"].as_u64()), (2 + 3 * EACH, Some(1 + 3 * EACH as u64)));
    // Of those who have seen the same rules, one wins.
    let generation = rules["generation"].as_u64().expect("a number");
    let won: usize = std::thread::scope(|scope| {
        let put = |i: usize| {
            let body = json!({"pattern": format!("race{i}:*")}).to_string();
            http::send(at, "PUT", &format!("/api/v1/rules/race{i}?generation={generation}"), TOKEN, "", &body).status
        };
        let all: Vec<_> = (0..4).map(|i| scope.spawn(move || put(i))).collect();
        all.into_iter().map(|t| usize::from(t.join().expect("an answer") == 200)).sum()
    });
    assert_eq!(won, 1);
}

#[test]
fn who_changed_what_and_when_is_remembered() {
    let stand = stand();
    let mut client = stand.proxy.client();
    let id = run(&mut client, "CLIENT ID").int();
    stand.put("/api/v1/rules/cart", &json!({"pattern": "cart:*"}));
    assert_eq!(run(&mut client, "NEARSIDE MODE off"), Reply::ok());
    assert_eq!(run(&mut client, "NEARSIDE MODE off"), Reply::ok());
    assert_eq!(stand.proxy.get("/api/v1/mode").json()["mode"], "off");
    let done = stand.put("/api/v1/mode", &json!({"mode": "serve"}));
    assert_eq!(done["changed"], json!(["cache.mode"]));
    assert_eq!(stand.proxy.get("/api/v1/mode").json()["mode"], "serve");
    stand.delete("/api/v1/rules/cart");
    stand.reload();
    let answer = stand.proxy.get("/api/v1/events/recent").json();
    let events = answer["events"].as_array().expect("events");
    let told: Vec<(&str, &str)> =
        events.iter().map(|e| (e["kind"].as_str().unwrap_or(""), e["message"].as_str().unwrap_or(""))).collect();
    assert_eq!(
        told,
        [
            ("reload", "configuration read again, nothing changed"),
            ("rules", "rule cart deleted"),
            ("mode", "cache mode is serve now"),
            ("mode", "cache mode is off now"),
            ("rules", "rule cart put"),
        ]
    );
    assert_eq!(answer["total"], 5);
    assert!(
        events[3]["actor"].as_str().is_some_and(|a| a.starts_with(&format!("client id={id} addr="))),
        "{}",
        events[3]
    );
    assert!(events[4]["actor"].as_str().is_some_and(|a| a.starts_with("http 127.0.0.1:")), "{}", events[4]);
    let at = events[0]["at"].as_str().expect("a time");
    assert!(at.len() == 24 && at.ends_with('Z') && at[10..].starts_with('T'), "{at}");
    assert_eq!((events[4]["id"].as_u64(), &events[4]["detail"]["generation"]), (Some(1), &json!("2")));
    let two = stand.proxy.get("/api/v1/events/recent?n=2").json();
    assert_eq!((two["events"].as_array().map(Vec::len), &two["total"]), (Some(2), &json!(5)));
    for bad in ["n=0", "n=201", "n=x", "m=1"] {
        assert_eq!(stand.proxy.get(&format!("/api/v1/events/recent?{bad}")).status, 400, "{bad}");
    }
    stand.proxy.wait_logged("cache mode is off now (by client id=");
}

#[test]
fn the_configuration_is_shown_as_it_runs_without_secrets() {
    let stand = Stand::with(|builder| {
        builder.set("rules", json!([{"name": "user", "pattern": "user:*"}])).env("NEARSIDE_CACHE__MAX_BYTES", "3MiB")
    });
    stand.put("/api/v1/mode", &json!({"mode": "off"}));
    let answer = stand.proxy.get("/api/v1/config");
    let shown: Value = answer.json();
    assert_eq!(shown["config"]["cache"]["max_bytes"], "3MiB");
    assert_eq!(shown["config"]["cache"]["mode"], "off");
    assert_eq!(
        shown["config"]["workers"].as_u64(),
        Some(std::env::var("NEARSIDE_TEST_WORKERS").map_or(1, |n| n.parse().expect("a number")))
    );
    assert_eq!(shown["config"]["rules"][0]["name"], "user");
    assert_eq!(shown["by_hand"], json!(["cache.mode"]));
    assert!(!answer.body.contains(TOKEN), "{}", answer.body);
}

/// Nobody had asked the lane about fields that expire, because nothing cached any.
#[test]
fn rules_that_begin_to_name_reads_of_hashes_get_hits() {
    let stand = Stand::with_rules(json!([{"name": "h", "pattern": "h:*", "commands": ["GET"]}]));
    if stand.redis.cmd(&["COMMAND", "INFO", "HEXPIRE"]).items() != [Reply::Nil] {
        eprintln!("SKIPPED rules_that_begin_to_name_reads_of_hashes_get_hits: fields expire on this server");
        return;
    }
    stand.redis.cmd(&["HSET", "h:1", "f", "v"]);
    let mut client = stand.proxy.client();
    let wanted = Reply::bulks(&["f", "v"]);
    assert_eq!(run(&mut client, "HGETALL h:1"), wanted);
    let kept = |client: &mut crate::support::Client| {
        run(client, "NEARSIDE EXPLAIN HGETALL h:1").get("in_l1") == Reply::bulk("yes")
    };
    assert!(!kept(&mut client));
    stand.put("/api/v1/rules/h", &json!({"pattern": "h:*", "commands": ["GET", "HGETALL"]}));
    eventually(PATIENCE, "HGETALL in the L1", || run(&mut client, "HGETALL h:1") == wanted && kept(&mut client));
    let hits = stand.proxy.stat("hits");
    assert_eq!(run(&mut client, "HGETALL h:1"), wanted);
    assert_eq!(stand.proxy.stat("hits"), hits + 1.0);
    stand.redis.cmd(&["HSET", "h:1", "f", "w"]);
    eventually(PATIENCE, "the new value", || run(&mut client, "HGETALL h:1") == Reply::bulks(&["f", "w"]));
}

/// Hits are weighed only while a byte or a rule has a price: the first hit behind the change counts, and nothing before it.
#[test]
fn a_price_that_comes_while_it_runs_holds_for_the_hits_behind_it() {
    let stand = Stand::with_rules(json!([{"name": "user", "pattern": "user:*", "ttl": "10m"}]));
    let mut client = stand.proxy.client();
    warm(&stand.proxy, &mut client, "user:1");
    let saved = || stand.proxy.metric("nearside_cost_saved_total{rule=\"user\"}");
    let mut hit = |n: usize| (0..n).for_each(|_| drop(run(&mut client, "GET user:1")));
    hit(5);
    assert_eq!(saved(), 0.0);
    for (cost, each) in [("0.5", 0.5), ("0", 0.0), ("2", 2.0)] {
        let before = saved();
        stand.put("/api/v1/rules/user", &json!({"pattern": "user:*", "ttl": "10m", "cost_per_miss": cost}));
        // The side port's thread takes the price over at its next second; without one there is nothing to see of it.
        if each > 0.0 {
            eventually(PATIENCE, "the price", || {
                hit(1);
                saved() > before
            });
        } else {
            eventually(PATIENCE, "no price", || {
                let before = saved();
                hit(1);
                saved() == before
            });
        }
        let before = saved();
        hit(3);
        let grown = saved() - before;
        assert!((grown - 3.0 * each).abs() < 1e-9, "{grown} for three hits at {cost}");
    }
}
