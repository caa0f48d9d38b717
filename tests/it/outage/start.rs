use std::time::Instant;

use super::{quick, refused, secs, until_answered, wait_gone, warm};
use crate::support::{Proxy, Redis, Reply};

#[test]
fn clients_are_greeted_before_upstream_was_ever_there() {
    let mut redis = Redis::start();
    redis.stop();
    let proxy = quick(Proxy::to(&redis)).start();
    wait_gone(&proxy);
    let mut c = proxy.client();
    let hello = c.cmd(&["HELLO", "3", "SETNAME", "me"]);
    assert_eq!(hello.get("version"), Reply::bulk("7.0.0"));
    assert_eq!(c.cmd(&["CLIENT", "GETNAME"]), Reply::bulk("me"));
    assert_eq!(c.cmd(&["CLIENT", "SETINFO", "LIB-NAME", "x"]), Reply::ok());
    assert_eq!(c.cmd(&["SELECT", "15"]), Reply::ok());
    refused(&c.cmd(&["SELECT", "16"]));
    assert_eq!(c.cmd(&["PING"]), Reply::status("PONG"));
    refused(&c.cmd(&["AUTH", "anything"]));
    refused(&c.cmd(&["HELLO", "3", "AUTH", "default", "anything"]));
    refused(&c.cmd(&["GET", "k"]));
    assert_eq!(proxy.get("/health/ready").status, 200);
    redis.restart();
    assert_eq!(until_answered(&mut c, &["SET", "k", "1"]), Reply::ok());
    redis.cmd(&["SET", "k", "0"]);
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"), "its database is the one that it selected");
}

#[test]
fn only_credentials_that_upstream_has_accepted_are_accepted() {
    let mut redis = Redis::builder().args(&["--requirepass", "secret"]).start();
    let proxy = quick(Proxy::to(&redis)).start();
    let mut c = proxy.client();
    assert_eq!(until_answered(&mut c, &["AUTH", "secret"]), Reply::ok());
    c.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    assert!(proxy.client().cmd(&["AUTH", "wrong"]).text().starts_with("WRONGPASS"));
    redis.stop();
    wait_gone(&proxy);
    let mut late = proxy.client();
    refused(&late.cmd(&["GET", "k"]));
    refused(&late.cmd(&["AUTH", "wrong"]));
    refused(&late.cmd(&["AUTH", "other", "secret"]));
    refused(&late.cmd(&["GET", "k"]));
    assert_eq!(late.cmd(&["AUTH", "secret"]), Reply::ok());
    assert_eq!(late.cmd(&["GET", "k"]), Reply::bulk("1"));
    let mut third = proxy.client();
    assert!(matches!(third.cmd(&["HELLO", "3", "AUTH", "default", "secret"]), Reply::Map(_)));
    assert_eq!(third.cmd(&["GET", "k"]), Reply::bulk("1"));
}

#[test]
fn a_name_without_an_address_is_said() {
    let proxy = quick(Proxy::upstream("redis://no-such-host.invalid:6379")).start();
    let start = Instant::now();
    let text = refused(&proxy.client().cmd(&["SET", "k", "1"]));
    assert!(text.contains("no-such-host.invalid"), "{text}");
    assert!(start.elapsed() < secs(5), "it took {:?}", start.elapsed());
    assert!(!proxy.client().cmd(&["NEARSIDE", "STATS"]).is_error());
}
