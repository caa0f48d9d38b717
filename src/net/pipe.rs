//! A byte stream between two threads, in memory: what a socket buffer is between two processes. Bounded, closed by dropping
//! an end, one task waiting at each end. Bytes cross in whatever batches they were written; a write into a pipe that is not
//! empty wakes nobody, because its reader has been woken and has not come yet.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::ReadBuf;

/// What a pipe holds, as much as Linux gives a unix socket: enough for a batch, little enough for 10,000 clients.
pub(crate) const CAPACITY: usize = 208 * 1024;

/// An empty pipe keeps no buffer larger than this.
const KEPT: usize = 16 * 1024;

/// What both ends see, and whoever asks how much is in it.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    inside: Mutex<Inside>,
    /// Bytes ever written. Stored with the lock held, so that whoever sees them in here finds them in the pipe.
    written: AtomicU64,
}

#[derive(Debug, Default)]
struct Inside {
    bytes: BytesMut,
    writer: End,
    reader: End,
}

#[derive(Debug, Default)]
struct End {
    state: State,
    waiting: Option<Waker>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// Dropped.
    Closed,
    /// The writer's source broke: the reader is to see an error, not the end of a stream.
    Broken,
}

impl Pipe {
    pub(crate) fn pair() -> (Writer, Reader) {
        let pipe = Arc::<Pipe>::default();
        (Writer { pipe: pipe.clone() }, Reader { pipe, read: 0 })
    }

    /// Bytes that were written and not read yet.
    pub(crate) fn queued(&self) -> usize {
        self.inside.lock().bytes.len()
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }
}

#[derive(Debug)]
pub(crate) struct Writer {
    pipe: Arc<Pipe>,
}

impl Writer {
    pub(crate) fn pipe(&self) -> &Arc<Pipe> {
        &self.pipe
    }

    /// Bytes ever written.
    pub(crate) fn written(&self) -> u64 {
        self.pipe.written()
    }

    /// Writes what the pipe takes now; `WouldBlock` when that is nothing.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut inside = self.pipe.inside.lock();
        if inside.reader.state != State::Open {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let n = bytes.len().min(CAPACITY.saturating_sub(inside.bytes.len()));
        if n == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        inside.bytes.extend_from_slice(&bytes[..n]);
        self.pipe.written.store(self.pipe.written.load(Ordering::Relaxed) + n as u64, Ordering::Release);
        let waiting = inside.reader.waiting.take();
        drop(inside);
        wake(waiting);
        Ok(n)
    }

    /// Until there is room, or nobody to write for.
    pub(crate) fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        let mut inside = self.pipe.inside.lock();
        if inside.bytes.len() < CAPACITY || inside.reader.state != State::Open {
            return Poll::Ready(());
        }
        inside.writer.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The reader sees an error once it has read what is there.
    pub(crate) fn fail(self) {
        self.pipe.inside.lock().writer.state = State::Broken;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut inside = self.pipe.inside.lock();
        if inside.writer.state == State::Open {
            inside.writer.state = State::Closed;
        }
        let waiting = inside.reader.waiting.take();
        drop(inside);
        wake(waiting);
    }
}

#[derive(Debug)]
pub(crate) struct Reader {
    pipe: Arc<Pipe>,
    read: u64,
}

impl Reader {
    pub(crate) fn pipe(&self) -> &Arc<Pipe> {
        &self.pipe
    }

    /// Bytes ever read.
    pub(crate) fn read(&self) -> u64 {
        self.read
    }

    /// Whether there is anything to read; no lock.
    pub(crate) fn has_bytes(&self) -> bool {
        self.pipe.written() != self.read
    }

    /// As `AsyncRead` has it: nothing read is the end of the stream.
    pub(super) fn poll_read(&mut self, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inside = self.pipe.inside.lock();
        if inside.bytes.is_empty() {
            return match inside.writer.state {
                State::Open => {
                    inside.reader.waiting = Some(cx.waker().clone());
                    Poll::Pending
                }
                State::Closed => Poll::Ready(Ok(())),
                State::Broken => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            };
        }
        let n = inside.bytes.len().min(buf.remaining());
        buf.put_slice(&inside.bytes[..n]);
        super::drop_front(&mut inside.bytes, n);
        self.read += n as u64;
        emptied(inside);
        Poll::Ready(Ok(()))
    }

    /// Moves everything there is behind `out`.
    pub(crate) fn take_into(&mut self, out: &mut BytesMut) {
        let mut inside = self.pipe.inside.lock();
        self.read += inside.bytes.len() as u64;
        if out.is_empty() {
            std::mem::swap(out, &mut inside.bytes);
        } else {
            out.extend_from_slice(&inside.bytes);
        }
        inside.bytes.clear();
        emptied(inside);
    }

    /// Until there is something to read (where it is wanted), or no more will come; true: the latter.
    pub(crate) fn poll_readable(&self, cx: &Context<'_>, wanted: bool) -> Poll<bool> {
        let mut inside = self.pipe.inside.lock();
        if wanted && !inside.bytes.is_empty() {
            return Poll::Ready(false);
        }
        if inside.writer.state != State::Open {
            return Poll::Ready(true);
        }
        inside.reader.waiting = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut inside = self.pipe.inside.lock();
        inside.reader.state = State::Closed;
        inside.bytes = BytesMut::new();
        emptied(inside);
    }
}

/// The writer goes on when the pipe has been emptied, in one batch instead of many.
fn emptied(mut inside: parking_lot::MutexGuard<'_, Inside>) {
    if !inside.bytes.is_empty() {
        return;
    }
    if inside.bytes.capacity() > KEPT {
        inside.bytes = BytesMut::new();
    }
    let waiting = inside.writer.waiting.take();
    drop(inside);
    wake(waiting);
}

fn wake(waiting: Option<Waker>) {
    if let Some(waker) = waiting {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn poll(reader: &mut Reader, waker: &Waker) -> Poll<io::Result<Vec<u8>>> {
        let mut space = [0; 8];
        let mut buf = ReadBuf::new(&mut space);
        let polled = reader.poll_read(&Context::from_waker(waker), &mut buf);
        polled.map_ok(|()| buf.filled().to_vec())
    }

    #[test]
    fn bytes_come_out_in_order_and_one_wake_is_enough_for_many_writes() {
        let (writer, mut reader) = Pipe::pair();
        let count = Arc::new(Count::default());
        let waker: Waker = count.clone().into();
        assert!(poll(&mut reader, &waker).is_pending());
        assert!(matches!(writer.try_write(b"0123"), Ok(4)));
        assert!(matches!(writer.try_write(b"456789"), Ok(6)));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(reader.has_bytes());
        assert!(matches!(poll(&mut reader, &waker), Poll::Ready(Ok(b)) if b == b"01234567"));
        assert!(matches!(poll(&mut reader, &waker), Poll::Ready(Ok(b)) if b == b"89"));
        assert!(!reader.has_bytes());
        assert_eq!((writer.written(), reader.read()), (10, 10));
    }

    #[test]
    fn a_full_pipe_takes_nothing_until_it_is_emptied() {
        let (writer, mut reader) = Pipe::pair();
        let count = Arc::new(Count::default());
        let waker: Waker = count.clone().into();
        let much = vec![0; CAPACITY + 1];
        assert!(matches!(writer.try_write(&much), Ok(CAPACITY)));
        assert!(writer.try_write(b"x").is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock));
        assert!(writer.poll_writable(&Context::from_waker(&waker)).is_pending());
        let mut out = BytesMut::from(&b"before"[..]);
        reader.take_into(&mut out);
        assert_eq!(out.len(), CAPACITY + 6);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(matches!(writer.try_write(b"x"), Ok(1)));
    }

    #[test]
    fn each_end_sees_the_other_go() {
        let waker = Waker::noop();
        let (writer, mut reader) = Pipe::pair();
        writer.try_write(b"last").expect("room");
        drop(writer);
        assert!(matches!(poll(&mut reader, waker), Poll::Ready(Ok(b)) if b == b"last"));
        assert!(matches!(poll(&mut reader, waker), Poll::Ready(Ok(b)) if b.is_empty()));

        let (writer, mut reader) = Pipe::pair();
        writer.fail();
        assert!(matches!(poll(&mut reader, waker), Poll::Ready(Err(_))));

        let (writer, reader) = Pipe::pair();
        drop(reader);
        assert!(writer.try_write(b"x").is_err_and(|e| e.kind() == io::ErrorKind::BrokenPipe));
    }
}
