//! Wakes the one task that waits for it, from the same thread. A call that comes while nobody waits is kept; several are
//! one. This is what tokio's `Notify` does for a single waiter, without its lock, its list and its ordered atomics: a lane
//! is told of every command, and a client waits once per read.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

#[derive(Debug, Default)]
pub(crate) struct Wake {
    called: Cell<bool>,
    /// Who waited last; kept between waits, because it is nearly always the same task.
    waiter: RefCell<Option<Waker>>,
}

impl Wake {
    /// Ends the wait under way, or else the next one.
    pub(crate) fn call(&self) {
        if !self.called.replace(true)
            && let Some(waiter) = &*self.waiter.borrow()
        {
            waiter.wake_by_ref();
        }
    }

    /// Waits for a call. One task at a time.
    pub(crate) async fn called(&self) {
        poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if self.called.take() {
            return Poll::Ready(());
        }
        let mut waiter = self.waiter.borrow_mut();
        if !waiter.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waiter = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn waker() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (count.clone(), count.into())
    }

    #[test]
    fn a_call_before_the_wait_is_kept_and_calls_are_one() {
        let (wake, (woken, waker)) = (Wake::default(), waker());
        let cx = Context::from_waker(&waker);
        wake.call();
        wake.call();
        assert_eq!(wake.poll(&cx), Poll::Ready(()));
        assert_eq!(wake.poll(&cx), Poll::Pending);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_call_wakes_the_waiter_once() {
        let (wake, (woken, waker)) = (Wake::default(), waker());
        let cx = Context::from_waker(&waker);
        assert_eq!(wake.poll(&cx), Poll::Pending);
        wake.call();
        wake.call();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert_eq!(wake.poll(&cx), Poll::Ready(()));
        assert_eq!(wake.poll(&cx), Poll::Pending);
        wake.call();
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn the_newest_waiter_is_woken() {
        let (wake, (_, first), (woken, second)) = (Wake::default(), waker(), waker());
        assert_eq!(wake.poll(&Context::from_waker(&first)), Poll::Pending);
        assert_eq!(wake.poll(&Context::from_waker(&second)), Poll::Pending);
        wake.call();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    }
}
