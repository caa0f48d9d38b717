use super::*;

const B: Micros = 1_000;

const NOUGHT: At = At { place: 0, sidecar: 0 };

const ONE: At = At { place: 1, sidecar: 1 };

fn truth() -> (Truth, Key) {
    by(vec![Promise::tracking(Duration::from_micros(B)); 2])
}

fn by(promises: Vec<Promise>) -> (Truth, Key) {
    let mut truth = Truth::new(promises, Duration::from_micros(5 * B));
    let key = truth.add_key("k".to_owned(), None);
    truth.keys[key].begun = 100;
    (truth, key)
}

fn known(version: i64, sent: Micros, known: Micros) -> Known {
    Known { version, sent, known, by: Actor::Writer(0), how: "SET" }
}

fn read(key: Key, got: i64, sent: Micros) -> Read {
    Read { key, got, sent, replied: sent + 10, session: 0, sidecar: 0, place: 0, how: "GET" }
}

fn violated(truth: &Truth) -> Vec<Property> {
    truth.violated.keys().copied().collect()
}

#[test]
fn stale_is_what_was_known_longer_than_the_bound_before_it_was_asked_for() {
    let (mut truth, k) = truth();
    truth.learn(k, known(1, 0, 10));
    truth.learn(k, known(2, 4_000, 5_000));
    truth.judge(read(k, 1, 5_000 + B), Floors::default()); // known no longer than B: the sidecar may not know it yet
    assert_eq!(violated(&truth), []);
    assert_eq!((truth.outdated, truth.oldest), (1, B));
    truth.judge(read(k, 1, 5_001 + B), Floors::default());
    assert_eq!(violated(&truth), [Property::Staleness]);
    let because = truth.evidence[0].because.unwrap();
    assert_eq!((because.version, because.known), (2, 5_000));
}

#[test]
fn what_somebody_has_read_exists() {
    let (mut truth, k) = truth();
    truth.judge(read(k, 7, 100), Floors::default());
    truth.judge(read(k, 6, 111 + B), Floors::default());
    assert_eq!(violated(&truth), [Property::Staleness]);
}

#[test]
fn a_reply_is_held_against_each_floor_by_itself() {
    let floors = Floors { written: Some(known(3, 0, 1)), seen: Some(known(4, 0, 1)), sidecar: Some(known(5, 0, 1)) };
    for (got, expected) in [
        (5, vec![]),
        (4, vec![Property::SidecarWrites]),
        (3, vec![Property::SidecarWrites, Property::Monotonic]),
        (2, vec![Property::ReadYourWrites, Property::SidecarWrites, Property::Monotonic]),
    ] {
        let (mut truth, k) = truth();
        truth.judge(read(k, got, 5), floors);
        assert_eq!(violated(&truth), expected, "{got}");
    }
}

#[test]
fn each_sidecar_answers_for_what_it_has_acknowledged() {
    let (mut truth, k) = truth();
    truth.acknowledge(k, known(9, 0, 1), ONE);
    truth.acknowledge(k, known(8, 0, 2), ONE);
    assert_eq!(truth.acknowledged(k, NOUGHT), None);
    assert_eq!(truth.acknowledged(k, ONE).unwrap().version, 9);
}

#[test]
fn nobody_reads_what_nobody_wrote() {
    let (mut truth, k) = truth();
    truth.judge(read(k, 100, 1), Floors::default());
    assert_eq!(violated(&truth), []);
    truth.judge(read(k, 101, 2), Floors::default());
    assert_eq!(violated(&truth), [Property::Invented]);
}

#[test]
fn a_mortal_key_is_missing_or_there_at_its_time_only() {
    let life = Duration::from_micros(20_000);
    let mortal = |truth: &mut Truth| {
        let key = truth.add_key("e".to_owned(), Some(life));
        truth.begin_set(key);
        truth.learn(key, known(1, 1_000, 2_000));
        key
    };
    // (got, sent, what is wrong about it)
    let rows = [
        (1, 2_000 + 20_000 + B + EXPIRY_GRAIN, None),
        (1, 2_001 + 20_000 + B + EXPIRY_GRAIN, Some(Property::Expiry)),
        (0, 2_000 + B, None),
        (0, 2_001 + B, Some(Property::Staleness)),
        (0, 1_000 + 20_000 - 10, None), // may have expired before the reply
    ];
    for (got, sent, wrong) in rows {
        let (mut truth, _) = truth();
        let key = mortal(&mut truth);
        truth.judge(read(key, got, sent), Floors::default());
        assert_eq!(violated(&truth), Vec::from_iter(wrong), "{got} at {sent}");
    }
}

#[test]
fn what_no_reply_can_be_held_against_is_forgotten() {
    let (mut truth, k) = truth();
    truth.keys[k].begun = i64::MAX;
    let times = 1..20 * FORGET_AT_ONCE as u64;
    for time in times.clone() {
        truth.learn(k, known(time as i64, time * B, time * B));
    }
    assert!(truth.keys[k].known.len() < 2 * FORGET_AT_ONCE);
    // A request that has waited for as long as one may is still judged by what was known when it was sent.
    let sent = (times.end - 1) * B - 10 * B;
    truth.judge(read(k, (times.end - 12) as i64, sent), Floors::default());
    assert_eq!(violated(&truth), []);
    truth.judge(read(k, (times.end - 14) as i64, sent), Floors::default());
    assert_eq!(violated(&truth), [Property::Staleness]);
}

#[test]
fn evidence_is_bounded_and_has_something_of_each_kind() {
    let (mut truth, k) = truth();
    for _ in 0..100 {
        truth.judge(read(k, 101, 1), Floors::default());
    }
    truth.check_at_large(Property::AtRest, "k", false, || "differs".to_owned());
    assert_eq!(truth.violations(), 101);
    assert_eq!(truth.evidence.len(), EVIDENCE_EACH + 1);
}

/// The table of modes, applied: each place is judged by its own, whoever wrote.
#[test]
fn pubsub_is_late_by_b_for_what_was_announced_and_by_its_cap_for_the_rest() {
    const CAP: Micros = 10 * B;
    let pubsub = Promise::pubsub(Duration::from_micros(B), Duration::from_micros(CAP));
    let promises = vec![pubsub.clone(), pubsub, Promise::tracking(Duration::from_micros(B))];
    let two = At { place: 2, sidecar: 2 };
    // (announced by, got 0 by, after): what is wrong about it
    let rows = [
        (Some(ONE), 0, B, None),
        (Some(ONE), 0, B + 1, Some(Property::Staleness)),
        (Some(two), 0, B + 1, None), // whoever tracks announces nothing
        (Some(two), 0, CAP + 1, Some(Property::Staleness)),
        (None, 0, B + 1, None),
        (None, 0, CAP, None),
        (None, 0, CAP + 1, Some(Property::Staleness)),
        (None, 2, B + 1, Some(Property::Staleness)), // the tracking one has no excuse
    ];
    for (writer, place, age, wrong) in rows {
        let (mut truth, k) = by(promises.clone());
        match writer {
            Some(at) => truth.acknowledge(k, known(1, 0, 10), at),
            None => truth.learn(k, known(1, 0, 10)),
        }
        truth.judge(Read { place, sidecar: place, ..read(k, 0, 10 + age) }, Floors::default());
        assert_eq!(violated(&truth), Vec::from_iter(wrong), "{writer:?} {place} {age}");
    }
}

#[test]
fn what_a_mode_does_not_promise_is_not_judged() {
    let (mut truth, k) = by(vec![Promise::pubsub(Duration::from_micros(B), Duration::from_micros(9 * B))]);
    truth.hand_over(k, known(3, 0, 1), NOUGHT); // by a script that does not name its key
    assert_eq!(truth.acknowledged(k, NOUGHT), None);
    truth.acknowledge(k, known(2, 0, 1), NOUGHT);
    assert_eq!(truth.acknowledged(k, NOUGHT).unwrap().version, 2);
    truth.check(Property::Torn, &read(k, 1, 5), None, false, String::new);
    let floors = Floors { seen: Some(known(4, 0, 1)), ..Floors::default() };
    truth.judge(Read { how: "GETRANGE", ..read(k, 1, 5) }, floors);
    assert_eq!((violated(&truth), truth.checks.get(&Property::Torn)), (vec![], None));
    truth.judge(read(k, 1, 5), floors);
    assert_eq!(violated(&truth), [Property::Monotonic]);
    let (mut truth, k) = self::truth();
    truth.hand_over(k, known(3, 0, 1), NOUGHT);
    assert_eq!(truth.acknowledged(k, NOUGHT).unwrap().version, 3);
}
