//! A byte stream over TCP or a unix socket, split so that one task reads while others may write without waiting. The same
//! two types carry clients and upstream connections; a third, in memory, carries a client whose socket another thread has
//! (`front`). Knows no protocol.

pub(crate) mod pipe;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Piped(pipe::Reader, pipe::Writer),
}

impl Stream {
    pub(crate) fn split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Stream::Tcp(s) => {
                let (r, w) = s.into_split();
                (ReadHalf::Tcp(r), WriteHalf::Tcp(w))
            }
            Stream::Unix(s) => {
                let (r, w) = s.into_split();
                (ReadHalf::Unix(r), WriteHalf::Unix(w))
            }
            Stream::Piped(r, w) => (ReadHalf::Piped(r), WriteHalf::Piped(w)),
        }
    }
}

/// Owned by the one task that reads. Reads through `AsyncRead`, because tokio then knows from a short read that the socket
/// is empty and saves the second `read` that would only say so.
#[derive(Debug)]
pub(crate) enum ReadHalf {
    Tcp(tcp::OwnedReadHalf),
    Unix(unix::OwnedReadHalf),
    Piped(pipe::Reader),
}

impl AsyncRead for ReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ReadHalf::Tcp(r) => Pin::new(r).poll_read(cx, buf),
            ReadHalf::Unix(r) => Pin::new(r).poll_read(cx, buf),
            ReadHalf::Piped(r) => r.poll_read(cx, buf),
        }
    }
}

/// Shared by whoever has bytes for the peer: `try_write` needs no task of its own.
#[derive(Debug)]
pub(crate) enum WriteHalf {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::OwnedWriteHalf),
    Piped(pipe::Writer),
}

impl WriteHalf {
    /// Writes what the kernel takes now; `WouldBlock` when that is nothing.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            WriteHalf::Tcp(w) => w.try_write(bytes),
            WriteHalf::Unix(w) => w.try_write(bytes),
            WriteHalf::Piped(w) => w.try_write(bytes),
        }
    }

    /// For how long TCP keeps trying what the other end does not acknowledge; `None`: as long as it does anyway.
    pub(crate) fn keep_trying(&self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            WriteHalf::Tcp(w) => SockRef::from(w.as_ref()).set_tcp_user_timeout(limit),
            WriteHalf::Unix(_) | WriteHalf::Piped(_) => Ok(()),
        }
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            WriteHalf::Tcp(w) => w.writable().await,
            WriteHalf::Unix(w) => w.writable().await,
            WriteHalf::Piped(w) => {
                poll_fn(|cx| w.poll_writable(cx)).await;
                Ok(())
            }
        }
    }

    /// Writes as much of `buf` as the kernel takes now and removes it from the front.
    pub(crate) fn drain(&self, buf: &mut bytes::BytesMut) -> io::Result<usize> {
        let mut sent = 0;
        while !buf.is_empty() {
            match self.try_write(buf) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    sent += n;
                    drop_front(buf, n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(sent)
    }

    /// Writes all of `bytes`, waiting as often as it must.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Reads what is there into the thread's scratch buffer and appends it to `rbuf`: an idle connection then keeps no read
/// buffer at all, and a busy one only what its partial request needs.
pub(crate) async fn read_some(
    rd: &mut ReadHalf,
    rbuf: &mut bytes::BytesMut,
    scratch: &RefCell<Vec<u8>>,
) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut scratch = scratch.borrow_mut();
        let mut buf = ReadBuf::new(&mut scratch);
        match Pin::new(&mut *rd).poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) => {
                rbuf.extend_from_slice(buf.filled());
                Poll::Ready(Ok(buf.filled().len()))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Drops `n` bytes off the front. An emptied buffer starts anew at its beginning, where `advance` alone would make the next
/// `reserve` find that out.
pub(crate) fn drop_front(buf: &mut bytes::BytesMut, n: usize) {
    if n == buf.len() {
        buf.clear();
    } else {
        bytes::Buf::advance(buf, n);
    }
}

/// A socket whose other end is in the same thread, for probes.
#[cfg(any(test, feature = "bench"))]
pub(crate) struct Peer(std::os::unix::net::UnixStream);

#[cfg(any(test, feature = "bench"))]
impl Peer {
    /// Must be called inside a tokio runtime.
    pub(crate) fn new() -> (Stream, Peer) {
        let (ours, peer) = std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).and_then(|()| peer.set_nonblocking(true)).expect("sockets that do not block");
        (Stream::Unix(UnixStream::from_std(ours).expect("a socket")), Peer(peer))
    }

    /// What has arrived since the last call.
    pub(crate) fn read(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        // Ends with WouldBlock, when it has read what there is.
        let _ = io::Read::read_to_end(&mut self.0, &mut all);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_reaches_the_socket_and_leaves_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        runtime.block_on(async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
            let stream = TcpStream::connect(listener.local_addr().expect("its address")).await.expect("a connection");
            let (_read, write) = Stream::Tcp(stream).split();
            let WriteHalf::Tcp(tcp) = &write else { panic!("a unix socket") };
            for limit in [Some(Duration::from_secs(30)), None] {
                write.keep_trying(limit).expect("TCP_USER_TIMEOUT");
                assert_eq!(SockRef::from(tcp.as_ref()).tcp_user_timeout().expect("it can be read"), limit);
            }
        });
    }
}
