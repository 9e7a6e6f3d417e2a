// Runs a kernel's thread grid on the host: blocks one after another, their threads as fibers, every access checked.
//
// A fiber runs until it waits at a barrier or a collective of its warp; the last to arrive lets all go on. Blocks, and the threads
// of each, start in an order drawn from the launch's seed. The compiler calls __tsan_* before each access of a kernel; `touch` then
// looks the address up among the shared memory and the allocations of the launch and holds the access against a shadow of two-byte
// pieces, which remembers who wrote and read last, and in which interval between barriers.
//
// Intervals are numbered over all launches, so that a shadow never needs clearing: what is older than the launch (for shared
// memory: than the block) no longer counts. watch.h decides.

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

// As WeirPlace in grid.h.
struct Place {
    unsigned thread[3], block[3], block_dim[3], grid_dim[3];
};
extern "C" Place weir_place;
Place weir_place;

namespace {

constexpr int THREADS_MAX = 1024, WARP = 32, ARGS_MAX = 64, COPIES_MAX = 256;
constexpr size_t STACK = 256 << 10, SHARED_MAX = 227 << 10;
constexpr size_t PIECE = 2;

// Who touched a piece last.
struct Shadow {
    uint32_t write_interval, write_warp_interval, read_interval, read_warp_interval;
    uint16_t writer, reader;
};
constexpr uint16_t ATOMIC = 0x8000, SEVERAL_OF_WARP = 0x2000, SEVERAL = 0x3000, SEVERAL_BLOCKS = 0x3001;

enum Kind { READ, WRITE, ATOMICALLY };

struct Region {
    uint64_t start, bytes;
    Shadow* shadow;
};

// What the caller shares with every module: the same layout in mod.rs.
struct Launch {
    void (*call)(void**);
    const uint64_t* args;
    uint64_t args_len;
    const Region* regions;
    uint64_t regions_len;
    uint64_t seed;
    uint32_t grid[3], block[3];
    uint32_t shared_bytes;
    uint32_t interval;
    char message[512];
};

enum Waiting { RUNNING, AT_BARRIER, AT_COLLECTIVE, ENDED };
enum Collective { SHUFFLE, BALLOT, MULTIPLY, MEET, SYNC };

struct Fiber {
    jmp_buf at;
    char* stack;
    unsigned thread[3];
    Waiting waiting;
    bool started;
    // Of the collective or barrier it waits in.
    int collective, line;
    unsigned mask;
    uint64_t value, result;
    int kind, other, width;
    float a[8], b[8], acc[8];
    // Copies on their way, oldest first, and the groups they belong to, counted over the thread's life.
    struct Copy {
        void* to;
        const void* from;
        bool valid;
        int group;
    } copies[COPIES_MAX];
    int copies_len, groups;
};

Fiber fibers[THREADS_MAX];
uint32_t warp_interval[THREADS_MAX / WARP];
int ready[THREADS_MAX + 1], ready_first, ready_count;
jmp_buf scheduler;
ucontext_t start_context;
int me, threads, ended, at_barrier, barrier_line;
bool running;
Launch* launch;
uint32_t launch_first, block_first, interval;
char* dynamic_shared;
Shadow* dynamic_shadow;
Shadow* static_shadow;
const Region* last_region;
// The kernel reads these; not zero, so that they do not lie where shared memory does.
uint64_t args_kept[ARGS_MAX] = {1};
void* args_at[ARGS_MAX] = {args_kept};

extern "C" {
// Static shared memory lies among the zeroed variables of this shared object, from __bss_start to _end; constants lie before.
extern char __ehdr_start[] __attribute__((visibility("hidden")));
extern char __bss_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));
}


[[noreturn]] void fail(const char* format, ...) {
    char what[384];
    va_list list;
    va_start(list, format);
    vsnprintf(what, sizeof(what), format, list);
    va_end(list);
    const unsigned* b = weir_place.block;
    const unsigned* t = weir_place.thread;
    snprintf(launch->message, sizeof(launch->message), "%s, in thread %u,%u,%u of block %u,%u,%u", what, t[0], t[1], t[2], b[0],
             b[1], b[2]);
    running = false;
    _longjmp(scheduler, 2);
}

void wake(int fiber) {
    fibers[fiber].waiting = RUNNING;
    ready[(ready_first + ready_count++) % (THREADS_MAX + 1)] = fiber;
}

// Lets others run until somebody wakes this fiber.
__attribute__((noinline)) void pause_here() {
    if (_setjmp(fibers[me].at) == 0) _longjmp(scheduler, 1);
}

void run_thread() {
    launch->call(args_at);
    if (fibers[me].copies_len > 0) fail("a thread ends while it copies");
    fibers[me].waiting = ENDED;
    ended++;
    _longjmp(scheduler, 1);
}

// Goes on with a fiber; returns when it waits or ends.
__attribute__((noinline)) void go_on(int fiber) {
    Fiber* f = &fibers[fiber];
    me = fiber;
    memcpy(weir_place.thread, f->thread, sizeof(f->thread));
    if (_setjmp(scheduler) != 0) return;
    if (f->started) _longjmp(f->at, 1);
    f->started = true;
    getcontext(&start_context);
    start_context.uc_stack.ss_sp = f->stack;
    start_context.uc_stack.ss_size = STACK;
    start_context.uc_link = nullptr;
    makecontext(&start_context, run_thread, 0);
    setcontext(&start_context);
}

uint64_t next_random(uint64_t* state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

// 0 .. len in an order drawn from the seed; seed 0 leaves it as it is.
void shuffle_order(unsigned* order, unsigned len, uint64_t* state) {
    for (unsigned i = 0; i < len; i++) order[i] = i;
    if (launch->seed == 0) return;
    for (unsigned i = len; i > 1; i--) {
        unsigned j = unsigned(next_random(state) % i), kept = order[i - 1];
        order[i - 1] = order[j];
        order[j] = kept;
    }
}

const char* waits_at(const Fiber& f) {
    return f.waiting == AT_BARRIER ? "a barrier" : f.waiting == AT_COLLECTIVE ? "a warp's collective" : "nothing";
}

void run_block(unsigned block, uint64_t* random) {
    const uint32_t* grid = launch->grid;
    const uint32_t* dim = launch->block;
    weir_place.block[0] = block % grid[0];
    weir_place.block[1] = block / grid[0] % grid[1];
    weir_place.block[2] = block / grid[0] / grid[1];
    memset(dynamic_shared, 0xff, launch->shared_bytes);
    block_first = ++interval;
    memset(warp_interval, 0, sizeof(warp_interval));
    ended = at_barrier = ready_first = ready_count = 0;
    unsigned order[THREADS_MAX];
    shuffle_order(order, threads, random);
    for (int i = 0; i < threads; i++) {
        Fiber& f = fibers[i];
        f.started = false;
        f.copies_len = f.groups = 0;
        f.thread[0] = i % dim[0];
        f.thread[1] = i / dim[0] % dim[1];
        f.thread[2] = i / dim[0] / dim[1];
        wake(int(order[i]));
    }
    while (running && ready_count > 0) {
        int fiber = ready[ready_first];
        ready_first = (ready_first + 1) % (THREADS_MAX + 1);
        ready_count--;
        go_on(fiber);
    }
    if (!running || ended == threads) return;
    running = false;
    for (int i = 0; i < threads; i++) {
        const Fiber& f = fibers[i];
        if (f.waiting == ENDED) continue;
        snprintf(launch->message, sizeof(launch->message),
                 "thread %d of block %u,%u,%u waits forever at %s on line %d, with mask %08x (%d of %d threads have ended)", i,
                 weir_place.block[0], weir_place.block[1], weir_place.block[2], waits_at(f), f.line, f.mask, ended, threads);
        return;
    }
}

#include "watch.h"

// Waits until every lane of the mask has come to the same collective; the last one to come calls `finish`.
void meet(int collective, unsigned mask, int line, void (*finish)(Fiber* warp, unsigned mask)) {
    Fiber* warp = &fibers[me / WARP * WARP];
    Fiber& f = fibers[me];
    int lane = me % WARP;
    if ((mask >> lane & 1) == 0) fail("lane %d calls a collective with mask %08x on line %d, which leaves it out", lane, mask, line);
    f.waiting = AT_COLLECTIVE;
    f.collective = collective;
    f.mask = mask;
    f.line = line;
    bool all = true;
    for (int other = 0; other < WARP; other++) {
        if ((mask >> other & 1) == 0) continue;
        const Fiber& o = warp[other];
        if (o.waiting == ENDED) fail("lane %d waits on line %d for lane %d, which has ended", lane, line, other);
        if (o.waiting == AT_BARRIER) fail("lane %d waits on line %d for lane %d, which waits at a barrier on line %d", lane, line, other, o.line);
        if (o.waiting != AT_COLLECTIVE) {
            all = false;
        } else if (o.collective != collective || o.mask != mask || o.line != line) {
            fail("lane %d is on line %d with mask %08x while lane %d is on line %d with mask %08x: the warp has diverged", lane, line,
                 mask, other, o.line, o.mask);
        }
    }
    if (!all) {
        pause_here();
        return;
    }
    finish(warp, mask);
    f.waiting = RUNNING;
    for (int other = 0; other < WARP; other++) {
        if ((mask >> other & 1) != 0 && other != lane) wake(me / WARP * WARP + other);
    }
}

void finish_shuffle(Fiber* warp, unsigned mask) {
    for (int lane = 0; lane < WARP; lane++) {
        if ((mask >> lane & 1) == 0) continue;
        Fiber& f = warp[lane];
        if (f.width <= 0 || f.width > WARP || (f.width & (f.width - 1)) != 0) fail("a shuffle of width %d", f.width);
        int base = lane / f.width * f.width, from = lane;
        switch (f.kind) {
            case 0: from = base + (f.other & (f.width - 1)); break;
            case 1: from = lane ^ f.other; break;
            case 2: from = lane + f.other; break;
            default: from = lane - f.other; break;
        }
        bool own = f.kind == 1 ? from >= base + f.width : from < base || from >= base + f.width;
        if (own) from = lane;
        if ((mask >> from & 1) == 0) fail("lane %d takes the value of lane %d, which mask %08x leaves out", lane, from, mask);
        f.result = warp[from].value;
    }
}

void finish_ballot(Fiber* warp, unsigned mask) {
    uint64_t votes = 0;
    for (int lane = 0; lane < WARP; lane++) votes |= uint64_t((mask >> lane & 1) != 0 && warp[lane].value != 0) << lane;
    for (int lane = 0; lane < WARP; lane++) warp[lane].result = votes;
}

void finish_sync(Fiber*, unsigned mask) {
    if (mask == 0xffffffffu) warp_interval[me / WARP]++;
}

void finish_nothing(Fiber*, unsigned) {}

// As wmma.h's element().
int element(int lane, int i) { return ((lane * 8 + i) * 77 + 13) % 256; }

void finish_multiply(Fiber* warp, unsigned) {
    float a[256], b[256], acc[256];
    for (int lane = 0; lane < WARP; lane++) {
        for (int i = 0; i < 8; i++) {
            int at = element(lane, i);
            a[at] = warp[lane].a[i];
            b[at] = warp[lane].b[i];
            acc[at] = warp[lane].acc[i];
        }
    }
    for (int row = 0; row < 16; row++) {
        for (int k = 0; k < 16; k++) {
            for (int column = 0; column < 16; column++) acc[row * 16 + column] += a[row * 16 + k] * b[k * 16 + column];
        }
    }
    for (int lane = 0; lane < WARP; lane++) {
        for (int i = 0; i < 8; i++) warp[lane].acc[i] = acc[element(lane, i)];
    }
}

}  // namespace

extern "C" {

void* weir_dynamic_shared() { return dynamic_shared; }

void weir_fail(const char* what) { fail("%s", what); }

void weir_barrier(int line) {
    Fiber& f = fibers[me];
    f.line = line;
    if (ended > 0) fail("a barrier on line %d after %d threads of the block have ended", line, ended);
    f.waiting = AT_BARRIER;
    if (at_barrier == 0) barrier_line = line;
    if (line != barrier_line) fail("a barrier on line %d while others wait at one on line %d", line, barrier_line);
    if (++at_barrier < threads) {
        pause_here();
        return;
    }
    at_barrier = 0;
    interval++;
    f.waiting = RUNNING;
    for (int i = 0; i < threads; i++) {
        if (i != me) wake(i);
    }
}

void weir_syncwarp(unsigned mask, int line) { meet(SYNC, mask, line, finish_sync); }

void weir_warp_meets(int line) { meet(MEET, 0xffffffffu, line, finish_nothing); }

uint64_t weir_shuffle(int kind, unsigned mask, uint64_t value, int other, int width, int line) {
    Fiber& f = fibers[me];
    f.kind = kind;
    f.value = value;
    f.other = other;
    f.width = width;
    meet(SHUFFLE, mask, line, finish_shuffle);
    return f.result;
}

unsigned weir_ballot(unsigned mask, int predicate, int line) {
    fibers[me].value = uint64_t(predicate != 0);
    meet(BALLOT, mask, line, finish_ballot);
    return unsigned(fibers[me].result);
}

void weir_mma(float* acc, const float* a, const float* b, int line) {
    Fiber& f = fibers[me];
    memcpy(f.a, a, sizeof(f.a));
    memcpy(f.b, b, sizeof(f.b));
    memcpy(f.acc, acc, sizeof(f.acc));
    meet(MULTIPLY, 0xffffffffu, line, finish_multiply);
    memcpy(acc, f.acc, sizeof(f.acc));
}

void weir_atomic_access(void* address, unsigned bytes) { touch(address, bytes, ATOMICALLY); }
void weir_copy(void* to, const void* from, unsigned bytes) { memcpy(to, from, bytes); }

void weir_copy_async(void* to, const void* from, bool valid) {
    Fiber& f = fibers[me];
    if (f.copies_len == COPIES_MAX) fail("more than %d copies on the way", COPIES_MAX);
    if ((uint64_t(to) | uint64_t(from)) % 16 != 0) fail("a copy between %p and %p, which are not both multiples of 16", from, to);
    // It may overwrite from now on, and nobody may read until it has arrived.
    touch(to, 16, WRITE);
    forget(to, 16);
    f.copies[f.copies_len++] = {to, from, valid, f.groups};
}

void weir_copies_end_group() { fibers[me].groups++; }

void weir_copies_arrive(int groups_left) {
    Fiber& f = fibers[me];
    int arrived = 0;
    for (; arrived < f.copies_len && f.copies[arrived].group < f.groups - groups_left; arrived++) {
        const Fiber::Copy& copy = f.copies[arrived];
        touch(copy.to, 16, WRITE);
        if (copy.valid) {
            touch(copy.from, 16, READ);
            memcpy(copy.to, copy.from, 16);
        } else {
            memset(copy.to, 0, 16);
        }
    }
    f.copies_len -= arrived;
    memmove(f.copies, f.copies + arrived, f.copies_len * sizeof(f.copies[0]));
}

// Runs a launch. Returns 0, or 1 with what went wrong in its message.
int weir_run(Launch* of) {
    launch = of;
    launch->message[0] = 0;
    threads = int(of->block[0] * of->block[1] * of->block[2]);
    if (threads <= 0 || threads > THREADS_MAX || threads % WARP != 0 || of->args_len > ARGS_MAX || of->shared_bytes > SHARED_MAX) {
        snprintf(of->message, sizeof(of->message), "%d threads, %u bytes of shared memory or %lu arguments cannot be", threads,
                 of->shared_bytes, of->args_len);
        return 1;
    }
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if (!dynamic_shared) {
        dynamic_shared = (char*)mmap(nullptr, SHARED_MAX, PROT_READ | PROT_WRITE, flags, -1, 0);
        dynamic_shadow = (Shadow*)calloc(SHARED_MAX / PIECE, sizeof(Shadow));
        static_shadow = (Shadow*)calloc(size_t(_end - __bss_start) / PIECE + 1, sizeof(Shadow));
    }
    for (int i = 0; i < threads; i++) {
        if (!fibers[i].stack) fibers[i].stack = (char*)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, flags, -1, 0);
    }
    for (uint64_t i = 0; i < of->args_len; i++) {
        args_kept[i] = of->args[i];
        args_at[i] = &args_kept[i];
    }
    memcpy(weir_place.block_dim, of->block, sizeof(of->block));
    memcpy(weir_place.grid_dim, of->grid, sizeof(of->grid));
    last_region = nullptr;
    interval = of->interval;
    launch_first = interval + 1;
    running = true;
    uint64_t random = of->seed;
    const unsigned blocks = of->grid[0] * of->grid[1] * of->grid[2];
    unsigned* order = (unsigned*)malloc((blocks + 1) * sizeof(unsigned));
    shuffle_order(order, blocks, &random);
    for (unsigned i = 0; i < blocks && running; i++) run_block(order[i], &random);
    free(order);
    of->interval = interval + 1;
    bool good = running;
    running = false;
    return good ? 0 : 1;
}

// What the compiler puts before each access.
#define WEIR_WATCH(bytes)                                                              \
    void __tsan_read##bytes(void* at) { touch(at, bytes, READ); }                      \
    void __tsan_write##bytes(void* at) { touch(at, bytes, WRITE); }                    \
    void __tsan_unaligned_read##bytes(void* at) { touch(at, bytes, READ); }            \
    void __tsan_unaligned_write##bytes(void* at) { touch(at, bytes, WRITE); }          \
    void __tsan_volatile_read##bytes(void* at) { touch(at, bytes, READ); }             \
    void __tsan_volatile_write##bytes(void* at) { touch(at, bytes, WRITE); }
WEIR_WATCH(1)
WEIR_WATCH(2)
WEIR_WATCH(4)
WEIR_WATCH(8)
WEIR_WATCH(16)
void __tsan_read_range(void* at, size_t bytes) { touch(at, bytes, READ); }
void __tsan_write_range(void* at, size_t bytes) { touch(at, bytes, WRITE); }
void __tsan_init() {}
// And where it sees an address that does not suit its type.
void __ubsan_handle_type_mismatch_v1(void*, void* at) { fail("an access at %p, which is not a multiple of its size", at); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
