//! A work-sharing pool for regions of a few microseconds.
//!
//! A *region* is one [`Pool::run`]: `tasks` calls of one closure. The caller publishes it, takes part, and returns when every
//! task has ended. Tasks are claimed one at a time from a counter, so a helper that is late (parked, or robbed of its core by
//! a neighbour) costs nothing: the others take its tasks, and nobody waits for a helper that has claimed none.
//!
//! The whole claim state is one word, `epoch:32 | tasks:16 | next:16`. A helper reads it, reads the region's closure, and
//! claims by compare-exchange. Success proves that the epoch was still open with a task unclaimed, hence that the caller is
//! still inside `run` and the closure alive; the closure's words are atomics, so reading stale ones before a failed claim is
//! harmless. (A helper would have to sleep through exactly 2^32 regions between the two to be fooled.)
//!
//! After a region helpers look for the next one for some 30 microseconds, with pauses, then park.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

use crate::Isa;

/// Pauses a helper makes before it parks: about 30 microseconds at 60 ns a pause.
const SPINS_BEFORE_PARK: u32 = 500;
/// Pauses the caller makes, waiting for claimed tasks, between two offers of its core to others.
const SPINS_BEFORE_YIELD: u32 = 2_000;
/// Tasks in one region at most; longer runs are several regions.
const TASKS_MAX: usize = 0xffff;
/// Threads in one pool at most.
pub const THREADS_MAX: usize = 256;

type Body = unsafe fn(*const (), usize);

/// The threads that kernels run on, handed to every op. Cloning shares them; the last clone ends them.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    /// Held for the length of a region; a run that finds it held (nested, or from another thread) works inline.
    region: Mutex<()>,
    helpers: Vec<JoinHandle<()>>,
    isa: Isa,
    runs: AtomicU64,
}

struct Shared {
    /// `epoch:32 | tasks:16 | next:16`.
    ticket: AtomicU64,
    body: AtomicUsize,
    data: AtomicPtr<()>,
    done: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    parked: AtomicUsize,
    gate: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
}

impl Pool {
    /// A pool of `threads` in all, the caller included: 0 and 1 run everything inline. At most [`THREADS_MAX`]; a thread
    /// that the system refuses is done without.
    pub fn new(threads: usize) -> Pool {
        Pool::with_isa(threads, Isa::current())
    }

    /// A pool whose ops use the bodies of `isa`, or of the best one the machine has below it. For tests and `weir doctor`.
    pub fn with_isa(threads: usize, isa: Isa) -> Pool {
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            body: AtomicUsize::new(0),
            data: AtomicPtr::new(std::ptr::null_mut()),
            done: AtomicUsize::new(0),
            panic: Mutex::new(None),
            parked: AtomicUsize::new(0),
            gate: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let helpers = (1..threads.min(THREADS_MAX))
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new().name(format!("weir-kernel-{index}")).spawn(move || shared.help()).ok()
            })
            .collect();
        Pool {
            inner: Arc::new(Inner {
                shared,
                region: Mutex::new(()),
                helpers,
                isa: isa.available(),
                runs: AtomicU64::new(0),
            }),
        }
    }

    /// Threads that take part in a run, the caller included.
    pub fn threads(&self) -> usize {
        self.inner.helpers.len().saturating_add(1)
    }

    /// The instruction set whose bodies the ops use on this pool.
    pub fn isa(&self) -> Isa {
        self.inner.isa
    }

    /// Runs begun so far. While it grows, whoever computes on this pool is getting somewhere.
    pub fn runs(&self) -> u64 {
        self.inner.runs.load(Ordering::Relaxed)
    }

    /// Calls `f(0)` .. `f(tasks - 1)`, each once, in any order, on any thread of the pool, and returns when all have ended.
    /// A run inside a task, or while another thread runs, is inline. If tasks panic, the caller panics with the payload of
    /// one of them, after all have ended (inline: at the first).
    pub fn run<F: Fn(usize) + Sync>(&self, tasks: usize, f: F) {
        self.inner.runs.fetch_add(1, Ordering::Relaxed);
        if tasks <= 1 || self.inner.helpers.is_empty() {
            return (0..tasks).for_each(f);
        }
        let _region = match self.inner.region.try_lock() {
            Ok(guard) => guard,
            // A task of an earlier region panicked through its caller; the pool itself is whole.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return (0..tasks).for_each(f),
        };
        let mut start = 0;
        while start < tasks {
            let count = (tasks - start).min(TASKS_MAX);
            self.inner.shared.region(count, &|task| f(start + task));
            start += count;
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).field("isa", &self.inner.isa).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.gate));
        self.shared.wake.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper catches its tasks' panics; joining cannot fail in a way that anybody could act on.
            let _ = helper.join();
        }
    }
}

impl Shared {
    fn region<F: Fn(usize) + Sync>(&self, tasks: usize, f: &F) {
        unsafe fn call<F: Fn(usize) + Sync>(data: *const (), task: usize) {
            // SAFETY: `data` is the `&F` published with this very function, and the caller of `region` keeps it borrowed
            // until every claimed task has ended.
            let f = unsafe { &*data.cast::<F>() };
            f(task);
        }
        let body: Body = call::<F>;
        self.done.store(0, Ordering::Relaxed);
        self.body.store(body as usize, Ordering::Relaxed);
        self.data.store(std::ptr::from_ref(f).cast_mut().cast(), Ordering::Relaxed);
        let epoch = (self.ticket.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        self.ticket.store((epoch << 32) | ((tasks as u64) << 16), Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.gate));
            self.wake.notify_all();
        }
        while self.claim_and_run() {}
        let mut spins = 0;
        while self.done.load(Ordering::Acquire) < tasks {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD {
                std::hint::spin_loop();
            } else {
                spins = 0;
                std::thread::yield_now();
            }
        }
        if let Some(payload) = lock(&self.panic).take() {
            resume_unwind(payload);
        }
    }

    /// Claims one task of the open region and runs it; false when there is none to claim.
    fn claim_and_run(&self) -> bool {
        let mut ticket = self.ticket.load(Ordering::Acquire);
        loop {
            let (tasks, next) = ((ticket >> 16) & 0xffff, ticket & 0xffff);
            if next >= tasks {
                return false;
            }
            let body = self.body.load(Ordering::Relaxed);
            let data = self.data.load(Ordering::Relaxed);
            match self.ticket.compare_exchange_weak(ticket, ticket + 1, Ordering::AcqRel, Ordering::Acquire) {
                Err(now) => ticket = now,
                Ok(_) => {
                    // SAFETY: the claim succeeded, so the region of this epoch is open and has this task outstanding: its
                    // caller has not returned, `body` and `data` were stored before the ticket was and not since, and
                    // `body` was made from a `Body`.
                    let outcome = catch_unwind(AssertUnwindSafe(|| unsafe {
                        let body = std::mem::transmute::<usize, Body>(body);
                        body(data, next as usize);
                    }));
                    if let Err(payload) = outcome {
                        *lock(&self.panic) = Some(payload);
                    }
                    self.done.fetch_add(1, Ordering::Release);
                    return true;
                }
            }
        }
    }

    fn help(&self) {
        let mut idle = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.claim_and_run() {
                idle = 0;
            } else if idle < SPINS_BEFORE_PARK {
                idle += 1;
                std::hint::spin_loop();
            } else {
                self.park();
                idle = 0;
            }
        }
    }

    fn park(&self) {
        let mut gate = lock(&self.gate);
        self.parked.fetch_add(1, Ordering::SeqCst);
        // A publisher stores the ticket before it reads `parked`; seeing no open task here means it will see this thread.
        while !self.stop.load(Ordering::SeqCst) && !self.open(self.ticket.load(Ordering::SeqCst)) {
            gate = self.wake.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        self.parked.fetch_sub(1, Ordering::SeqCst);
    }

    fn open(&self, ticket: u64) -> bool {
        (ticket & 0xffff) < ((ticket >> 16) & 0xffff)
    }
}

/// Locks a mutex whose data no panic can leave half written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
