//! Work that is done to its end, whether or not anybody waits for it.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{FutureExt, StreamExt, future::CatchUnwind, stream::FuturesUnordered};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};
use tokio_util::task::{TaskTracker, task_tracker::TrackedFuture};

/// Work that goes on, on a task of its own, when it is dropped before its end. Until then it is driven by whoever waits for
/// it, so that work for which somebody waits costs no task.
pub(super) struct DetachOnDrop<T: Send + 'static> {
    /// `None` once it has ended.
    work: Option<Work<T>>,
}

// In its box before all else: whatever is put around it is moved about, and the work itself is large.
type Work<T> =
    TrackedFuture<CatchUnwind<AssertUnwindSafe<Pin<Box<dyn Future<Output = T> + Send>>>>>;

/// The work has panicked. The text of the panic is not here, because it may quote a webhook.
pub(super) struct Panicked;

impl<T: Send + 'static> DetachOnDrop<T> {
    /// Work that `tasks` waits for, from now on.
    pub(super) fn new(tasks: &TaskTracker, work: impl Future<Output = T> + Send + 'static) -> Self {
        let work: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(work);
        let work = AssertUnwindSafe(work).catch_unwind();
        Self {
            work: Some(tasks.track_future(work)),
        }
    }
}

impl<T: Send + 'static> Future for DetachOnDrop<T> {
    type Output = Result<T, Panicked>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.work else {
            return Poll::Pending;
        };
        let polled = Pin::new(work).poll(context);
        if polled.is_ready() {
            self.work = None;
        }
        polled.map_err(|_| Panicked)
    }
}

impl<T: Send + 'static> Drop for DetachOnDrop<T> {
    fn drop(&mut self) {
        // Without a runtime the server is gone, and all that it did with it.
        if let Some(work) = self.work.take()
            && Handle::try_current().is_ok()
        {
            tokio::spawn(work);
        }
    }
}

/// One task that does much work at once, whether or not anybody takes what comes of it.
pub(super) struct Driver<T: Send + 'static> {
    begun: mpsc::Sender<Driven<T>>,
}

/// Work, and who is told what has come of it.
struct Driven<T: Send + 'static>(DetachOnDrop<T>, oneshot::Sender<Result<T, Panicked>>);

impl<T: Send + 'static> Driven<T> {
    async fn drive(self) {
        let Self(work, told) = self;
        // Whoever has begun it may have gone away.
        let _ = told.send(work.await);
    }
}

impl<T: Send + 'static> Driver<T> {
    /// A driver that `tasks` waits for. It may have so much work at once, and ends when it has none and can get none.
    pub(super) fn new(tasks: &TaskTracker, most: usize) -> Self {
        let (begun, mut work) = mpsc::channel::<Driven<T>>(most);
        tasks.spawn(async move {
            let mut driven = FuturesUnordered::new();
            loop {
                tokio::select! {
                    Some(()) = driven.next() => {}
                    Some(begun) = work.recv() => driven.push(begun.drive()),
                    else => break,
                }
            }
        });
        Self { begun }
    }

    /// Has work done; what is returned tells what has come of it.
    pub(super) fn drive(
        &self,
        work: DetachOnDrop<T>,
    ) -> impl Future<Output = Result<T, Panicked>> + Send + use<T> {
        let (told, done) = oneshot::channel();
        // With more than it may have, the work detaches and is done all the same.
        let _ = self.begun.try_send(Driven(work, told));
        done.map(|told| told.unwrap_or(Err(Panicked)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn work_that_is_dropped_goes_on_and_is_waited_for() {
        let tasks = TaskTracker::new();
        let (go, wait) = oneshot::channel::<()>();
        let (done, ended) = oneshot::channel();
        let mut work = DetachOnDrop::new(&tasks, async move {
            let _ = wait.await;
            let _ = done.send(());
        });
        assert!((&mut work).now_or_never().is_none());
        drop(work);
        tasks.close();
        assert!(tasks.wait().now_or_never().is_none());
        go.send(()).unwrap();
        tasks.wait().await;
        ended.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_driven_ends_though_nobody_asks() {
        let tasks = TaskTracker::new();
        let driver = Driver::new(&tasks, 2);
        let (done, ended) = oneshot::channel();
        let work = DetachOnDrop::new(&tasks, async move { done.send(7) });
        let told = driver.drive(work);
        assert_eq!(ended.await.unwrap(), 7);
        assert!(matches!(told.await, Ok(Ok(()))));
        let panics = driver.drive(DetachOnDrop::new(&tasks, async { panic!("on purpose") }));
        assert!(panics.await.is_err());
        drop(driver);
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test]
    async fn who_waits_is_given_what_has_come_of_it() {
        let tasks = TaskTracker::new();
        let work = DetachOnDrop::new(&tasks, async { 7 });
        assert!(matches!(work.await, Ok(7)));
        let panics = DetachOnDrop::new(&tasks, async { panic!("on purpose") });
        let panicked: Result<(), Panicked> = panics.await;
        assert!(panicked.is_err() && tasks.is_empty());
    }
}
