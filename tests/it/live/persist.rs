//! Rules written back into the file, where that is asked for: the file loads as what runs, keeps every other byte, and is
//! not taken for somebody else's change. Where it cannot be done nothing is changed at all.

use serde_json::json;

use super::Stand;
use crate::support::{PATIENCE, eventually};

const REST: &str = "
# Rules of the house.
rules:
  - name: user     # people
    pattern: 'user:*'
    ttl: 60s

  # everything else
  - pattern: '*'

# How much is said.
log:
  level: info  # enough
";

#[test]
fn a_rule_that_is_persisted_is_in_the_file_and_every_comment_stays() {
    let stand = Stand::with_file(REST);
    let body = json!({"pattern": "cart:*", "ttl": "7m", "rollout": 25});
    let done = stand.put("/api/v1/rules/cart?persist=true", &body);
    assert_eq!((&done["persisted"], &done["changed"]), (&json!(true), &json!(["rules"])));
    let user = "    pattern: 'user:*'\n    ttl: 60s\n";
    let cart = "  - name: \"cart\"\n    pattern: \"cart:*\"\n    ttl: 7m\n    rollout: 25\n";
    let with_cart = REST.replace(user, &format!("{user}{cart}"));
    let written = std::fs::read_to_string(stand.file()).expect("the file");
    assert_eq!(written, stand.text(&with_cart));
    assert_eq!(stand.rules()["by_hand"], json!([]));
    // It is no news to the process, whoever looks at it.
    let again = stand.reload();
    assert_eq!((&again["changed"], &again["undone"]), (&json!([]), &json!([])));
    stand.delete("/api/v1/rules/cart?persist=true");
    assert_eq!(std::fs::read_to_string(stand.file()).expect("the file"), stand.text(REST));
    // Changed without being persisted before: the file gets the rules as they run.
    stand.delete("/api/v1/rules/*");
    stand.put("/api/v1/rules/user?persist=true", &json!({"pattern": "user:*", "ttl": "2m"}));
    assert_eq!((stand.names(), &stand.rules()["by_hand"]), (vec!["user".to_owned()], &json!([])));
    let left = std::fs::read_dir(stand.dir.path()).expect("the directory").count();
    assert_eq!(left, 2, "the token and the file, no draft");
}

#[test]
fn what_was_written_by_us_is_no_change_for_the_watch() {
    let stand = Stand::with_file(REST);
    for i in 0..3 {
        stand.put(&format!("/api/v1/rules/r{i}?persist=true"), &json!({"pattern": format!("r{i}:*")}));
    }
    // The next look that finds a change has passed over ours.
    let text = std::fs::read_to_string(stand.file()).expect("the file");
    std::fs::write(stand.file(), text.replace("level: info", "level: debug")).expect("somebody's change");
    eventually(PATIENCE, "the reload", || stand.reloads("ok") > 0.0);
    assert_eq!(stand.reloads("ok"), 1.0);
    assert_eq!(stand.names(), ["user", "r0", "r1", "r2", "*"]);
    let events = stand.proxy.get("/api/v1/events/recent").json();
    assert_eq!((&events["total"], &events["events"][0]["detail"]["changed"]), (&json!(4), &json!("log.level")));
}

/// The file and what runs stay as they are, and the reason is said.
#[track_caller]
fn refused(stand: &Stand, reason: &str) {
    let before = (
        std::fs::read_to_string(stand.file()).ok(),
        stand.rules()["rules"].clone(),
        stand.rules()["generation"].clone(),
    );
    for (method, path, body) in [
        ("PUT", "/api/v1/rules/cart?persist=true", r#"{"pattern": "cart:*"}"#),
        ("DELETE", "/api/v1/rules/user?persist=true", ""),
    ] {
        let answer = stand.send(method, path, body);
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (409, &json!("not_persisted")), "{}", answer.body);
        assert!(answer.body.contains(reason), "{}", answer.body);
    }
    let after = (
        std::fs::read_to_string(stand.file()).ok(),
        stand.rules()["rules"].clone(),
        stand.rules()["generation"].clone(),
    );
    assert_eq!(after, before);
    assert_eq!(stand.proxy.get("/api/v1/events/recent").json()["total"], 0);
    // Without the wish it is done.
    stand.put("/api/v1/rules/cart", &json!({"pattern": "cart:*"}));
}

#[test]
fn a_file_in_braces_and_rules_from_the_environment_are_refused() {
    let rules = json!([{"name": "user", "pattern": "user:*"}]);
    // The harness writes JSON.
    refused(&Stand::with_rules(rules.clone()), "not written as one key a line");
    let stand = Stand::with(|builder| builder.env("NEARSIDE_RULES", &rules.to_string()));
    refused(&stand, "the rules come from NEARSIDE_RULES, which wins over the file");
}

/// A read-only mount fails at the same place. No mode of the directory would do: it does not hold for root.
#[test]
fn a_directory_that_takes_no_draft_is_refused() {
    let stand = Stand::with_file(REST);
    // In the draft's place there is something that cannot be removed as a file.
    let draft = stand.dir.path().join(format!(".own.yaml.nearside-{}", stand.proxy.pid()));
    std::fs::create_dir(draft).expect("a directory");
    refused(&stand, "cannot be written: ");
}

#[test]
fn a_file_that_somebody_has_changed_meanwhile_is_not_overwritten() {
    let stand = Stand::with_file(REST);
    let bad = stand.text("rules: [\n");
    std::fs::write(stand.file(), &bad).expect("a broken text");
    eventually(PATIENCE, "the refusal", || stand.reloads("failed") == 1.0);
    let answer = stand.send("DELETE", "/api/v1/rules/user?persist=true", "");
    assert_eq!(answer.status, 409, "{}", answer.body);
    assert!(answer.body.contains("not valid as it is"), "{}", answer.body);
    std::fs::write(stand.file(), stand.text(&format!("{REST}# more\n"))).expect("another text");
    let answer = stand.send("DELETE", "/api/v1/rules/user?persist=true", "");
    // The watch may have been faster.
    assert!(answer.status == 200 || answer.body.contains("has changed since it was loaded"), "{}", answer.body);
    assert!(std::fs::read_to_string(stand.file()).expect("the file").ends_with("# more\n"));
}
