//! The pool: every task once, whatever happens in it.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use weir_kernels::Pool;

fn counts(pool: &Pool, tasks: usize) -> Vec<usize> {
    let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    pool.run(tasks, |task| {
        counts[task].fetch_add(1, Ordering::Relaxed);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn every_task_runs_once() {
    for threads in [0, 1, 2, 5] {
        let pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads.max(1));
        for tasks in [0, 1, 2, 3, 64, 1000, 70_000] {
            assert_eq!(counts(&pool, tasks), vec![1; tasks], "{threads} threads, {tasks} tasks");
        }
    }
}

#[test]
fn many_short_regions_follow_each_other() {
    let pool = Pool::new(4);
    let total = AtomicUsize::new(0);
    for _ in 0..20_000 {
        pool.run(3, |task| {
            total.fetch_add(task + 1, Ordering::Relaxed);
        });
    }
    assert_eq!(total.into_inner(), 20_000 * 6);
}

#[test]
fn nested_runs_are_inline() {
    let pool = Pool::new(3);
    let total = AtomicUsize::new(0);
    pool.run(10, |_| {
        let outer = std::thread::current().id();
        pool.run(10, |_| {
            assert_eq!(std::thread::current().id(), outer);
            total.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!(total.into_inner(), 100);
}

#[test]
fn threads_that_share_a_pool_all_finish() {
    let pool = Pool::new(3);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for tasks in 0..200 {
                    assert_eq!(counts(&pool, tasks), vec![1; tasks]);
                }
            });
        }
    });
}

#[test]
fn a_panic_reaches_the_caller_and_leaves_the_pool_whole() {
    let pool = Pool::new(3);
    for round in 0..50 {
        let ran = AtomicUsize::new(0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(20, |task| {
                ran.fetch_add(1, Ordering::Relaxed);
                assert!(task != 7, "task seven of round {round}");
            });
        }));
        let payload = outcome.unwrap_err();
        let message = payload.downcast_ref::<String>().unwrap();
        assert!(message.contains(&format!("task seven of round {round}")), "{message}");
        assert_eq!(ran.into_inner(), 20, "the other tasks run all the same");
        assert_eq!(counts(&pool, 100), vec![1; 100]);
    }
    // Regions are shared again, not inline: some task meets another thread in the same region.
    let barrier = std::sync::Barrier::new(2);
    pool.run(2, |_| {
        barrier.wait();
    });
}

#[test]
fn parked_helpers_wake_up() {
    let pool = Pool::new(2);
    // The barrier needs both threads, whether the helper has parked meanwhile or not.
    for _ in 0..200 {
        let barrier = std::sync::Barrier::new(2);
        pool.run(2, |_| {
            barrier.wait();
        });
        for _ in 0..200 {
            std::thread::yield_now();
        }
    }
}
