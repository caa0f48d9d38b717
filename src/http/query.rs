//! What stands behind `?` in a request: pairs, decoded once. One that is not known is refused, because its wish would not be
//! granted.

use hyper::{Request, StatusCode};

use super::change::{malformed, refusal};
use super::routes::Refusal;

/// The pairs, in their order; each at most once.
pub(super) fn query<B>(request: &Request<B>, known: &[&str]) -> Result<Vec<(String, String)>, Refusal> {
    let mut found: Vec<(String, String)> = Vec::new();
    for pair in request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some((key, value)) = decoded(key).zip(decoded(value)) else {
            return Err(malformed("what stands behind ? is no text in UTF-8".to_owned()));
        };
        if !known.contains(&key.as_str()) {
            return Err(unknown(&key, known));
        }
        if found.iter().any(|(other, _)| *other == key) {
            return Err(malformed(format!("{key} is given twice")));
        }
        found.push((key, value));
    }
    Ok(found)
}

fn unknown(key: &str, known: &[&str]) -> Refusal {
    let known = if known.is_empty() { "nothing".to_owned() } else { known.join(", ") };
    let message = format!("{key:?} is not known behind ?; known here: {known}");
    refusal(StatusCode::BAD_REQUEST, "unknown_parameter", message)
}

/// With `%41` as the byte that it stands for.
pub(super) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let (byte, behind) = if *first == b'%' {
            let (digits, behind) = behind.split_at_checked(2)?;
            let plain = digits.iter().all(u8::is_ascii_hexdigit);
            let digits = std::str::from_utf8(digits).ok().filter(|_| plain)?;
            (u8::from_str_radix(digits, 16).ok()?, behind)
        } else {
            (*first, behind)
        };
        bytes.push(byte);
        rest = behind;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded_once() {
        assert_eq!(decoded("session%3A*").as_deref(), Some("session:*"));
        assert_eq!(decoded("a%2525%2F").as_deref(), Some("a%25/"));
        for broken in ["%", "%4", "%+1", "%zz", "%ff"] {
            assert_eq!(decoded(broken), None, "{broken}");
        }
    }

    #[test]
    fn what_is_not_known_is_named_with_what_is() {
        let ask = |query: &str| query_of(query).map_err(|refusal| (refusal.code, refusal.message));
        assert_eq!(ask("range=15m"), Ok(vec![("range".to_owned(), "15m".to_owned())]));
        let message = "\"rnage\" is not known behind ?; known here: range".to_owned();
        assert_eq!(ask("rnage=15m"), Err(("unknown_parameter", message)));
        assert_eq!(ask("range=1&range=2").unwrap_err().0, "malformed");
    }

    fn query_of(text: &str) -> Result<Vec<(String, String)>, Refusal> {
        let request = Request::builder().uri(format!("/x?{text}")).body(()).unwrap();
        query(&request, &["range"])
    }
}
