use super::*;

const OTHER: PatternId = PatternId::OTHER;

fn names(top: &Top) -> Vec<String> {
    top.keys.iter().map(|hot| String::from_utf8_lossy(&hot.key).into_owned()).collect()
}

/// A draw that is the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[test]
fn a_sketch_holds_what_space_saving_promises() {
    let (mut sketch, mut dice, mut truth) = (Sketch::new(50), Dice(1), HashMap::<u64, u64>::new());
    let total = 100_000;
    for _ in 0..total {
        // Three keys with 10 % each, the rest spread over 10,000.
        let key = if dice.below(10) < 3 { dice.below(3) } else { 3 + dice.below(10_000) };
        *truth.entry(key).or_default() += 1;
        sketch.add(key, &key.to_be_bytes(), 1, OTHER);
    }
    assert!(sketch.places.len() == 50 && sketch.index.len() == 50 && sketch.heap.len() == 50);
    assert!(sketch.least() <= total / 50);
    for place in &sketch.places {
        let real = truth[&place.hash];
        assert!(place.count >= real && place.count - place.inherited <= real, "{}", place.hash);
        assert!(real - (place.count - place.inherited) <= sketch.least());
        assert_eq!(place.key, place.hash.to_be_bytes());
    }
    for key in 0..3 {
        assert!(sketch.index.contains_key(&key), "more than a fiftieth of all");
    }
    for at in 1..sketch.heap.len() {
        assert!(sketch.count_at((at - 1) / 2) <= sketch.count_at(at), "a heap");
        assert_eq!(usize::from(sketch.places[usize::from(sketch.heap[at])].at), at);
    }
}

#[test]
fn hot_keys_are_found_with_their_counts() {
    let hot = HotKeys::new(64, "", 0);
    let mut dice = Dice(7);
    let mut truth = [0_u64; 2];
    for _ in 0..400_000 {
        match dice.below(10) {
            0..=2 => {
                truth[0] += 1;
                hot.hit(0, b"first", 10, OTHER);
            }
            3 => {
                truth[1] += 1;
                hot.hit(0, b"second", 1000, OTHER);
            }
            _ => hot.hit(0, format!("cold:{}", dice.below(50_000)).as_bytes(), 10, OTHER),
        }
    }
    let top = hot.top(By::Hits, 2);
    assert_eq!(names(&top), ["first", "second"]);
    assert_eq!(names(&hot.top(By::Bytes, 2)), ["second", "first"]);
    for (shown, real) in top.keys.iter().zip(truth) {
        // Six standard errors; below by what the sketch may lack.
        let noise = 48.0 * (real as f64).sqrt();
        let (low, high) = (real as f64 - noise - top.error_bound as f64, real as f64 + noise);
        assert!((low..=high).contains(&(shown.hits as f64)), "{} of {real}", shown.hits);
    }
    assert!(top.keys[1].bytes.is_some_and(|bytes| bytes > 900 * truth[1]));
    assert!(top.error_bound <= 400_000 / 64 + 64, "{}", top.error_bound);
}

#[test]
fn the_first_are_counted_one_by_one() {
    let hot = HotKeys::new(8, "", 0);
    (0..3).for_each(|_| hot.hit(0, b"k", 10, OTHER));
    hot.miss(b"k", OTHER);
    let top = hot.top(By::Hits, 1);
    assert_eq!((top.keys[0].hits, top.keys[0].misses, top.keys[0].bytes), (3, 1, Some(30)));
}

/// With a fixed step a client that asks for 32 keys in turn would show one key with all hits.
#[test]
fn keys_in_turn_are_all_seen() {
    let hot = HotKeys::new(64, "", 0);
    for i in 0..640_000 {
        hot.hit(0, format!("k{}", i % 32).as_bytes(), 1, OTHER);
    }
    let top = hot.top(By::Hits, 100);
    assert_eq!(top.keys.len(), 32);
    assert!(top.keys.iter().all(|key| (16_000..24_000).contains(&key.hits)), "{:?}", top.keys);
    assert_eq!(top.error_bound, 0, "there was room for all");
}

#[test]
fn workers_and_misses_are_added_up_under_the_clients_names() {
    let hot = HotKeys::new(8, "app:", 2);
    for worker in 0..3 {
        (0..3200).for_each(|_| hot.hit(worker, b"app:k", 5, PatternId::PLAIN));
    }
    (0..400).for_each(|_| hot.miss(b"app:k", PatternId::PLAIN));
    (0..800).for_each(|_| hot.miss(b"app:gone", OTHER));
    let top = hot.top(By::Hits, 10);
    assert_eq!(names(&top), ["k"]);
    assert_eq!(top.keys[0].pattern, PatternId::PLAIN);
    assert!((8_600..10_600).contains(&top.keys[0].hits), "{}", top.keys[0].hits);
    assert!((300..500).contains(&top.keys[0].misses), "{}", top.keys[0].misses);
    let by_misses = hot.top(By::Misses, 10);
    assert_eq!(names(&by_misses), ["gone", "k"]);
    assert_eq!((by_misses.keys[0].hits, by_misses.keys[0].bytes), (0, None));
    assert_eq!(hot.busiest(1), [b"k".to_vec()]);
    assert_eq!(hot.busiest(9), [b"k".to_vec(), b"gone".to_vec()]);
}

#[test]
fn off_follows_nothing() {
    let hot = HotKeys::new(0, "", 1);
    for _ in 0..1000 {
        hot.hit(0, b"k", 1, OTHER);
        hot.hit(1, b"k", 1, OTHER);
        hot.hit(9, b"k", 1, OTHER);
        hot.miss(b"k", OTHER);
        hot.value(b"k", 1000, OTHER);
    }
    assert!(hot.top(By::Hits, 9).keys.is_empty() && hot.top(By::Misses, 9).keys.is_empty());
    assert!(hot.busiest(9).is_empty() && hot.big_values().is_empty());
    // What counts down comes to its end all the same.
    hot.workers[0].left.left.store(1, Relaxed);
    hot.hit(0, b"k", 1, OTHER);
    assert_eq!(hot.workers[0].left.left.load(Relaxed), u32::MAX);
}

#[test]
fn memory_is_bounded_whatever_keys_come() {
    let hot = HotKeys::new(100, "", 0);
    for i in 0..100_000 {
        let key = format!("{i:0>width$}", width = 1 + i % (KEY_MAX + 100));
        hot.hit(0, key.as_bytes(), 1, OTHER);
        hot.miss(key.as_bytes(), OTHER);
        hot.value(key.as_bytes(), i, OTHER);
    }
    let sketches = [hot.workers[0].served.lock().hits.clone(), hot.misses.lock().clone()];
    for sketch in sketches {
        assert!(sketch.places.len() == 100 && sketch.index.len() == 100);
        assert!(sketch.index.capacity() <= 224, "{}", sketch.index.capacity());
        let keys: usize = sketch.places.iter().map(|place| place.key.len()).max().unwrap_or(0);
        assert!(keys <= KEY_MAX);
    }
    let fixed = size_of::<Place>() + size_of::<u16>() + 2 * (size_of::<(u64, u16)>() + 1);
    assert!(fixed + KEY_MAX <= PLACE_BYTES, "{fixed}");
    assert_eq!(hot.big_values().len(), BIG_MAX);
}

#[test]
fn the_largest_values_are_kept() {
    let hot = HotKeys::new(8, "p:", 0);
    (0..100).for_each(|i| hot.value(format!("p:k{i}").as_bytes(), 1000 + i, OTHER));
    hot.value(b"p:k99", 5, OTHER);
    hot.value(b"p:k98", 9000, OTHER);
    hot.value(b"p:small", 5, OTHER);
    let big = hot.big_values();
    assert_eq!(big.len(), BIG_MAX);
    assert_eq!((big[0].key.as_slice(), big[0].bytes), (&b"k98"[..], 9000));
    assert_eq!((big[1].key.as_slice(), big[1].bytes), (&b"k99"[..], 1099));
    assert!(big.iter().all(|value| value.bytes >= 1080));
}

#[test]
fn an_alias_is_one_process_s_own() {
    let (one, other) = (HotKeys::new(8, "", 0), HotKeys::new(8, "", 0));
    assert_eq!(one.alias(b"k"), one.alias(b"k"));
    assert_ne!(one.alias(b"k"), one.alias(b"l"));
    assert_ne!(one.alias(b"k"), other.alias(b"k"));
    assert_eq!(one.alias(b"k").len(), 16);
}
