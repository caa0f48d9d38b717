//! What an answer's body is: bytes that are all there, or a stream of events; and gzip for the former.

use std::convert::Infallible;
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};

use super::api::events::Stream;

/// What is shorter fits into a packet or two with its head, and compressing it saves nobody anything.
const GZIP_FROM: usize = 1024;

pub(super) enum Payload {
    /// None: it has been sent.
    Whole(Option<Bytes>),
    Events(Stream),
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Payload::Whole(bytes) => Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b)))),
            Payload::Events(stream) => stream.poll(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Payload::Whole(bytes) if bytes.as_ref().is_none_or(Bytes::is_empty))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Payload::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Payload::Events(_) => SizeHint::default(),
        }
    }
}

/// The client says that it takes gzip, and does not say `q=0` of it.
pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut codings = values.flat_map(|value| value.split(','));
    codings.any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = parameters.trim().strip_prefix("q=").map_or(Ok(1.0), str::parse::<f32>);
        name.trim().eq_ignore_ascii_case("gzip") && weight.is_ok_and(|q| q > 0.0)
    })
}

/// Compresses an answer that is worth it; 10 KiB take 0.1 ms.
pub(super) fn gzip(answer: &mut Response<Payload>) {
    if answer.status() != StatusCode::OK {
        return;
    }
    let Payload::Whole(Some(bytes)) = answer.body_mut() else { return };
    if bytes.len() <= GZIP_FROM {
        return;
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    // Memory takes what is written to it; were it not so, the answer goes as it is.
    let Ok(packed) = encoder.write_all(bytes).and_then(|()| encoder.finish()) else { return };
    *bytes = packed.into();
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_for_whoever_asks() {
        let takes = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            takes_gzip(&headers)
        };
        for value in ["gzip", "br, GZIP", "deflate,gzip;q=0.5", "gzip; q=1"] {
            assert!(takes(value), "{value}");
        }
        for value in ["", "identity", "gzip;q=0", "gzip;q=0.000", "gzip;q=x", "gzipped", "*"] {
            assert!(!takes(value), "{value}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
