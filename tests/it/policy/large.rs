use std::io::Write;
use std::thread;

use super::{denying, is_noperm, nokey, noperm};
use crate::sessions::run;
use crate::support::{Client, Redis, Reply, encode};

const BIG: usize = 3 << 20;

/// Sends everything from a thread of its own, so that replies can be read meanwhile.
fn sending(client: &Client, commands: &[&[&[u8]]]) -> thread::JoinHandle<()> {
    let bytes: Vec<u8> = commands.iter().flat_map(|args| encode(args)).collect();
    let mut writer = client.writer();
    // A client that is closed meanwhile takes no more.
    thread::spawn(move || drop(writer.write_all(&bytes)))
}

#[test]
fn a_refused_large_request_is_read_off_and_answered_in_its_place() {
    let redis = Redis::start();
    let proxy = denying(&redis, &["append", "~secret:*"]).start();
    let big = vec![b'x'; BIG];
    let mut client = proxy.client();
    let sender = sending(
        &client,
        &[
            &[b"SET", b"a", b"1"],
            &[b"APPEND", b"a", &big],
            &[b"GET", b"a"],
            &[b"SET", b"secret:big", &big],
            &[b"EVAL", b"return 1", b"2", b"a", b"secret:k", &big],
            &[b"SET", b"open", &big],
            &[b"STRLEN", b"open"],
        ],
    );
    let by = "commands.deny: ~secret:*";
    assert_eq!(client.reply(), Reply::ok());
    assert_eq!(client.reply(), noperm("append", "commands.deny: append"));
    assert_eq!(client.reply(), Reply::bulk("1"));
    assert_eq!(client.reply(), nokey("set", by));
    assert_eq!(client.reply(), nokey("eval", by));
    assert_eq!(client.reply(), Reply::ok());
    assert_eq!(client.reply(), Reply::Int(BIG as i64));
    sender.join().expect("the sender");
    assert_eq!(redis.cmd(&["EXISTS", "secret:big"]), Reply::Int(0));
    assert_eq!(redis.cmd(&["GET", "a"]), Reply::bulk("1"));
}

#[test]
fn a_refused_large_request_aborts_a_transaction() {
    let redis = Redis::start();
    let proxy = denying(&redis, &["~secret:*"]).start();
    let big = vec![b'x'; BIG];
    let mut client = proxy.client();
    let sender = sending(
        &client,
        &[&[b"MULTI"], &[b"SET", b"open", &big], &[b"SET", b"secret:big", &big], &[b"EXEC"], &[b"EXISTS", b"open"]],
    );
    assert_eq!([client.reply(), client.reply()], [Reply::ok(), Reply::status("QUEUED")]);
    assert!(is_noperm(&client.reply()));
    assert!(client.reply().text().starts_with("EXECABORT"));
    assert_eq!(client.reply(), Reply::Int(0));
    sender.join().expect("the sender");
}

/// The first key and its value are upstream when the second one comes: it must never get the rest.
#[test]
fn a_key_that_is_refused_too_late_ends_both_connections() {
    let redis = Redis::start();
    let proxy = denying(&redis, &["~secret:*"]).start();
    let big = vec![b'x'; BIG];
    let mut client = proxy.client();
    let sender =
        sending(&client, &[&[b"SET", b"a", b"1"], &[b"MSET", b"open", &big, b"secret:k", b"v"], &[b"GET", b"a"]]);
    assert_eq!(client.reply(), Reply::ok());
    assert_eq!(client.reply(), nokey("mset", "commands.deny: ~secret:*"));
    assert_eq!(client.expect_closed(), b"");
    sender.join().expect("the sender");
    assert_eq!(redis.cmd(&["EXISTS", "open", "secret:k"]), Reply::Int(0));
    assert_eq!(run(&mut proxy.client(), "GET a"), Reply::bulk("1"));
}

#[test]
fn keys_without_a_fixed_place_in_a_large_request_are_not_known() {
    let redis = Redis::start();
    let proxy = denying(&redis, &["~secret:*"]).start();
    let big = vec![b'x'; BIG];
    let mut client = proxy.client();
    let sender = sending(&client, &[&[b"XREAD", b"STREAMS", b"s", &big], &[b"NOSUCHCOMMAND", &big], &[b"PING"]]);
    for _ in 0..2 {
        let reply = client.reply();
        assert!(is_noperm(&reply) && reply.text().contains("whose keys are not known"), "{reply:?}");
    }
    assert_eq!(client.reply(), Reply::status("PONG"));
    sender.join().expect("the sender");
}
