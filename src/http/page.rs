//! `GET /`: the dashboard page. Its files are part of the binary, so it works offline and always fits the API beside it. They
//! say nothing of their own: every number comes from `/api/v1` and `/metrics`, asked for by the browser.
//!
//! A browser keeps the files and asks whether they are still the same (`ETag`), so that an updated binary shows its own page
//! at once. The policy below lets it load from here and nowhere else, and run no script that stands in a document: a name
//! that came from a client stays text even if the page had a mistake.

use hyper::body::Body;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode};

use super::body::Payload;
use super::change::refusal;
use super::routes::{Answer, Refusal, Routes, answer, readable};

const SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
     frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
);

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

/// A file of the page under the path that it has there.
macro_rules! file {
    ($name:literal, $kind:expr) => {
        File { path: concat!("/page/", $name), kind: $kind, text: include_str!(concat!("page/", $name)) }
    };
}

const FILES: &[File] = &[
    File { path: "/", kind: HTML, text: include_str!("page/index.html") },
    file!("icon.svg", SVG),
    file!("style.css", CSS),
    file!("main.js", JS),
    file!("api.js", JS),
    file!("charts.js", JS),
    file!("dom.js", JS),
    file!("format.js", JS),
    file!("history.js", JS),
    file!("parts.js", JS),
    file!("stream.js", JS),
    file!("tabs/overview.js", JS),
    file!("tabs/cache.js", JS),
    file!("tabs/policy.js", JS),
    file!("tabs/costs.js", JS),
    file!("tabs/system.js", JS),
];

pub(super) fn file(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}

impl Routes {
    pub(super) fn file<B: Body>(&self, file: &File, request: &Request<B>) -> Result<Answer, Refusal> {
        readable(request)?;
        if !self.running.load().config.http.dashboard {
            let message = "the page is turned off (http.dashboard: false); its figures are at /api/v1/dashboard";
            return Err(refusal(StatusCode::NOT_FOUND, "dashboard_off", message.to_owned()));
        }
        Ok(file.answer(request.headers()))
    }
}

impl File {
    fn answer(&self, asked: &HeaderMap) -> Answer {
        let tag = self.tag();
        let mut answer = answer(StatusCode::OK, HeaderValue::from_static(self.kind), self.text.as_bytes().into());
        if known(asked, &tag) {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            *answer.body_mut() = Payload::Whole(None);
        }
        let headers = answer.headers_mut();
        headers.extend(HeaderValue::try_from(tag).ok().map(|tag| (header::ETAG, tag)));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(header::CONTENT_SECURITY_POLICY, SECURITY_POLICY);
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        answer
    }

    /// Weak, because the same content goes out packed and unpacked. 64 bits of FNV-1a: it has to tell one release's file from
    /// the next one's, and nobody's guess.
    fn tag(&self) -> String {
        let hash = self
            .text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        format!("W/\"{hash:016x}\"")
    }
}

/// The browser has this content already.
fn known(asked: &HeaderMap, tag: &str) -> bool {
    let values = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let strong = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    values.flat_map(|value| value.split(',')).any(|one| one.trim() == "*" || strong(one) == strong(tag))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_of_the_page_is_served() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/page");
        let mut found = BTreeSet::new();
        for dir in [root.clone(), root.join("tabs")] {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    found.insert(path.strip_prefix(&root).unwrap().display().to_string());
                }
            }
        }
        let served: BTreeSet<String> =
            FILES.iter().map(|file| file.path.strip_prefix("/page/").unwrap_or("index.html").to_owned()).collect();
        assert_eq!(found, served);
    }

    /// What the security policy would refuse anyway, found before a browser does; and no way to make markup of text.
    #[test]
    fn nothing_inline_nothing_foreign_and_no_markup_made_of_text() {
        for File { path, text, .. } in FILES {
            let forbidden = [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "DOMParser",
                "eval(",
                "new Function",
                " style=",
                " onclick=",
                "<script>",
                "javascript:",
            ];
            for word in forbidden {
                assert!(!text.contains(word), "{path} has {word}");
            }
            let foreign = text.replace("http://www.w3.org/", "");
            assert!(!foreign.contains("http://") && !foreign.contains("https://"), "{path} names another origin");
        }
    }

    #[test]
    fn what_a_browser_has_is_not_sent_again() {
        let file = file("/page/main.js").unwrap();
        let ask = |value: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.extend(value.map(|value| (header::IF_NONE_MATCH, HeaderValue::from_str(value).unwrap())));
            let answer = file.answer(&headers);
            assert!(answer.headers().contains_key(header::ETAG));
            answer.status().as_u16()
        };
        let tag = file.tag();
        assert_eq!(ask(None), 200);
        assert_eq!(ask(Some("W/\"0\"")), 200);
        assert_eq!(ask(Some(&tag)), 304);
        assert_eq!(ask(Some(&format!("\"x\", {tag}"))), 304);
        assert_eq!(ask(Some(tag.trim_start_matches("W/"))), 304);
    }
}
