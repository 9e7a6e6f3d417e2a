// Draws an id from each row of logits: the same id as src/sample.rs draws from the same numbers, which says what is
// drawn.
//
// That holds because everything that is summed is a whole number: the weight of an id is an f32 with the same bits on
// every machine (math.cuh), and its mass is the whole part of weight * 2^40. Whole numbers may be added in any order,
// so a row is shared among threads freely.
//
// Three launches draw for every row of a step. `sample_scan`, a block for each tile of a row, finds each tile's best
// id; `sample_weigh`, a block for each tile too, turns the logits of rows with a temperature into weights, in place;
// `sample_pick`, a block for a row, takes the best id or draws. It sorts nothing. The order of ids is by weight, the
// largest first, and the lower id first among equals; what top-k and top-p keep is a beginning of that order, and so is
// given by the last kept weight (the cut) and how many of the ids of exactly that weight are kept. The cut is found
// digit by digit: a histogram of the weights' first ten bits tells which bin it is in, one of the next ten bits of that
// bin's ids narrows it, and a third finds it. The draw then walks the ids in their own order: sixteen warps sum a
// sixteenth of the row each, the sixteenth that the random number falls into is shared again, and so on until one
// thread can walk the rest.
#include "common.cuh"
#include "math.cuh"
#include "rows.cuh"

namespace weir {

// One row's parameters, as launch/sample.rs packs them.
struct __align__(8) SampleRow {
    float temperature;  // 0 takes the best id; below 0 the row is left alone
    uint32_t top_k;     // ids kept at most, at least 1
    uint64_t share;     // of the mass, kept by top-p, in 2^-53; 2^53 and above keep all
    float floor;        // weights kept at least, in [2^-40, 1]
    uint32_t drawn;     // ids drawn before
    uint64_t seed;
};

// The best of some ids. Where one of them has no finite logit: an infinity, of NO_ID.
struct __align__(8) Best {
    float logit;
    uint32_t id;
};

constexpr uint32_t NO_ID = 0xffffffffu;
constexpr uint32_t TILE = 4096;
constexpr uint32_t TILE_THREADS = 256;
constexpr uint32_t PICK_THREADS = 512;
constexpr uint32_t PICK_WARPS = PICK_THREADS / WARP;
constexpr uint32_t DIGIT_BITS = 10;
constexpr uint32_t BINS = 1 << DIGIT_BITS;
// The bits of 2^-40, the smallest weight whose mass is not 0. Keys count from there: at most 0x14000000, three digits.
constexpr uint32_t KEY_ZERO = 0x2b800000u;
// Candidates that one thread walks by itself.
constexpr uint32_t WALK = 32;

__device__ __forceinline__ uint64_t mass_of(float weight) { return uint64_t(__fmul_rn(weight, 1099511627776.0f)); }
__device__ __forceinline__ uint32_t key_of(float weight) { return __float_as_uint(weight) - KEY_ZERO; }
__device__ __forceinline__ float weight_of(uint32_t key) { return __uint_as_float(key + KEY_ZERO); }

__device__ __forceinline__ bool better(Best a, Best b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// The best over a block of whole warps, in every thread. `parts` is one Best for each warp.
__device__ __forceinline__ Best block_best(Best best, Best* parts) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        Best other;
        other.logit = __shfl_xor_sync(FULL, best.logit, step);
        other.id = __shfl_xor_sync(FULL, best.id, step);
        if (better(other, best)) best = other;
    }
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = best;
    __syncthreads();
    best = parts[0];
    for (uint32_t warp = 1; warp < blockDim.x / WARP; warp++) {
        if (better(parts[warp], best)) best = parts[warp];
    }
    return best;
}

// The best of a row from those of its tiles, in every thread.
__device__ __forceinline__ Best row_best(const Best* bests, uint32_t tiles, Best* parts) {
    Best best = {-INFINITY, NO_ID};
    for (uint32_t tile = threadIdx.x; tile < tiles; tile += blockDim.x) {
        if (better(bests[tile], best)) best = bests[tile];
    }
    return block_best(best, parts);
}

// Tile blockIdx.x of row blockIdx.y.
__device__ void scan(const float* logits, uint32_t stride, uint32_t vocab, const SampleRow* params, Best* bests) {
    __shared__ Best parts[TILE_THREADS / WARP];
    const size_t row = blockIdx.y;
    if (params[row].temperature < 0.0f) return;
    const float* const from = logits + row * stride;
    const bool rows_wide = wide(logits, stride);
    const uint32_t end = min(vocab, (blockIdx.x + 1) * TILE);
    Best best = {-INFINITY, NO_ID};
    for (uint32_t at = blockIdx.x * TILE + threadIdx.x * 4; at < end; at += TILE_THREADS * 4) {
        float value[4];
        load(value, from + at, end - at, rows_wide);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            // An exponent of all ones: an infinity or not a number, which becomes one that nothing is better than.
            const bool finite = (__float_as_uint(value[i]) & 0x7f800000u) != 0x7f800000u;
            const Best next = {finite ? value[i] : INFINITY, finite ? at + i : NO_ID};
            if (at + i < end && better(next, best)) best = next;
        }
    }
    best = block_best(best, parts);
    if (threadIdx.x == 0) bests[row * gridDim.x + blockIdx.x] = best;
}

// Tile blockIdx.x of row blockIdx.y: its logits become weights, e^((logit - best) / temperature).
__device__ void weigh(float* logits, uint32_t stride, uint32_t vocab, const SampleRow* params, const Best* bests) {
    __shared__ Best parts[TILE_THREADS / WARP];
    const size_t row = blockIdx.y;
    const float temperature = params[row].temperature;
    if (!(temperature > 0.0f)) return;
    const Best best = row_best(bests + row * gridDim.x, gridDim.x, parts);
    if (best.id == NO_ID) return;
    float* const to = logits + row * stride;
    const bool rows_wide = wide(logits, stride);
    const uint32_t end = min(vocab, (blockIdx.x + 1) * TILE);
    for (uint32_t at = blockIdx.x * TILE + threadIdx.x * 4; at < end; at += TILE_THREADS * 4) {
        float value[4];
        load(value, to + at, end - at, rows_wide);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) value[i] = exact_exp(__fdiv_rn(__fadd_rn(value[i], -best.logit), temperature));
        store(to + at, value, end - at, rows_wide);
    }
}

// What is kept of a row's order: ids whose key is above `key`, and the first `equals` of those that have it.
struct Cut {
    uint32_t key;
    uint32_t equals;
    uint64_t mass;  // of all that is kept
};

// Shared memory of a block that picks.
struct Desk {
    unsigned counts[BINS];
    // Masses in two words: atomic sums of 32 bits are the hardware's own, those of 64 in shared memory are loops.
    unsigned masses_low[BINS], masses_high[BINS];
    Best bests[PICK_WARPS];
    uint64_t warp_sums[2][PICK_WARPS];
    uint32_t bin;
    uint64_t count_above, mass_above;
};

__device__ __forceinline__ void count_in(Desk& desk, uint32_t bin, uint32_t count, uint64_t mass) {
    atomicAdd(&desk.counts[bin], count);
    const uint32_t low = uint32_t(mass);
    const uint32_t sum = atomicAdd(&desk.masses_low[bin], low) + low;
    // Each time the low word passes its end one is carried, whoever comes first.
    atomicAdd(&desk.masses_high[bin], uint32_t(mass >> 32) + (sum < low ? 1 : 0));
}

__device__ __forceinline__ uint64_t mass_in(const Desk& desk, uint32_t bin) {
    return uint64_t(desk.masses_high[bin]) << 32 | desk.masses_low[bin];
}

// The sum of x over the threads before this one, and over all. `sums` is one word for each warp, used again after a
// barrier.
__device__ __forceinline__ uint64_t sum_before(uint64_t x, uint64_t* sums, uint64_t& total) {
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    unsigned long long upto = x;
#pragma unroll
    for (uint32_t step = 1; step < WARP; step *= 2) {
        const unsigned long long below = __shfl_up_sync(FULL, upto, step);
        if (lane >= step) upto += below;
    }
    if (lane == WARP - 1) sums[warp] = upto;
    __syncthreads();
    uint64_t before = upto - x;
    total = 0;
    for (uint32_t other = 0; other < PICK_WARPS; other++) {
        if (other < warp) before += sums[other];
        total += sums[other];
    }
    return before;
}

// fraction / 2^53 of total, rounded down; fraction is at most 2^53. `rest` says whether something was rounded away.
__device__ __forceinline__ uint64_t part_of(uint64_t fraction, uint64_t total, bool& rest) {
    const uint64_t low = fraction * total;
    rest = (low & ((uint64_t(1) << 53) - 1)) != 0;
    return __umul64hi(fraction, total) << 11 | low >> 53;
}

// The shortest beginning of the order that holds `goal` ids, or, BY_MASS, `goal` / 2^53 of the mass `total` (of all
// that the floor lets through where `total` is 0). False, in every thread, if there are not so many.
template <bool BY_MASS>
__device__ bool find_cut(const float* weights, uint32_t vocab, bool rows_wide, float floor, uint64_t goal,
                         uint64_t total, Desk& desk, Cut& cut) {
    uint32_t key = 0;
    uint64_t count_above = 0, mass_above = 0, target = goal;
    for (int shift = 2 * DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        for (uint32_t bin = threadIdx.x; bin < BINS; bin += PICK_THREADS) {
            desk.counts[bin] = 0;
            desk.masses_low[bin] = 0;
            desk.masses_high[bin] = 0;
        }
        __syncthreads();
        // Neighbours of one bin are added up before they are counted: a flat row would otherwise meet in one word.
        uint32_t bin = 0, count = 0;
        uint64_t mass = 0;
        for (uint32_t at = threadIdx.x * 4; at < vocab; at += PICK_THREADS * 4) {
            float value[4];
            load(value, weights + at, vocab - at, rows_wide);
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                const uint32_t own = key_of(value[i]) >> shift;
                // Past the row's end there are zeros, which are below any floor.
                if (!(value[i] >= floor) || own >> DIGIT_BITS != key >> shift >> DIGIT_BITS) continue;
                if (own % BINS != bin && count > 0) {
                    count_in(desk, bin, count, mass);
                    count = 0;
                    mass = 0;
                }
                bin = own % BINS;
                count += 1;
                mass += mass_of(value[i]);
            }
        }
        if (count > 0) count_in(desk, bin, count, mass);
        __syncthreads();
        // Each thread has some bins, the first thread the highest.
        constexpr uint32_t OWN = BINS / PICK_THREADS;
        const uint32_t highest = BINS - 1 - threadIdx.x * OWN;
        uint64_t own_count = 0, own_mass = 0;
        for (uint32_t i = 0; i < OWN; i++) {
            own_count += desk.counts[highest - i];
            own_mass += mass_in(desk, highest - i);
        }
        uint64_t count_all, mass_all;
        uint64_t counts = count_above + sum_before(own_count, desk.warp_sums[0], count_all);
        uint64_t masses = mass_above + sum_before(own_mass, desk.warp_sums[1], mass_all);
        if (shift == 2 * DIGIT_BITS) {
            if (BY_MASS) {
                bool rest;
                target = part_of(goal, total > 0 ? total : mass_all, rest);
                if (rest || target == 0) target += 1;
            } else if (count_all < goal) {
                // Who comes next writes where the sums have just been read.
                __syncthreads();
                return false;
            }
        }
        // The bin in which the sum passes the target is one thread's, and only one's.
        for (uint32_t i = 0; i < OWN; i++) {
            const uint64_t count_here = desk.counts[highest - i], mass_here = mass_in(desk, highest - i);
            const uint64_t sum = BY_MASS ? masses : counts, more = BY_MASS ? mass_here : count_here;
            if (sum < target && sum + more >= target) {
                desk.bin = highest - i;
                desk.count_above = counts;
                desk.mass_above = masses;
            }
            counts += count_here;
            masses += mass_here;
        }
        __syncthreads();
        key |= desk.bin << shift;
        count_above = desk.count_above;
        mass_above = desk.mass_above;
    }
    const uint64_t mass = mass_of(weight_of(key));
    cut.key = key;
    cut.equals = uint32_t(BY_MASS ? (target - mass_above + mass - 1) / mass : target - count_above);
    cut.mass = mass_above + cut.equals * mass;
    return true;
}

// Walks what is kept of `weights` in id order until its mass passes fraction / 2^53 of the whole. The id, in the first
// thread.
__device__ uint32_t draw(const float* weights, uint32_t vocab, bool rows_wide, float floor, Cut cut, uint64_t fraction,
                         Desk& desk) {
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const uint64_t mass_equal = mass_of(weight_of(cut.key));
    uint32_t begin = 0, end = vocab;
    uint32_t equals = cut.equals;  // still to be kept from `begin` on
    uint64_t wanted = 0;           // still to be passed from `begin` on
    for (bool first = true; first || end - begin > WALK; first = false) {
        // A multiple of 4, so that parts begin on sixteen bytes where the row does.
        const uint32_t part = ((end - begin + PICK_WARPS - 1) / PICK_WARPS + 3) / 4 * 4;
        const uint32_t part_end = min(end, begin + (warp + 1) * part);
        unsigned long long mass = 0, same = 0;
        for (uint32_t at = begin + warp * part + lane * 4; at < part_end; at += WARP * 4) {
            float value[4];
            load(value, weights + at, part_end - at, rows_wide);
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                if (!(value[i] >= floor)) continue;
                const uint32_t key = key_of(value[i]);
                if (key > cut.key) mass += mass_of(value[i]);
                if (key == cut.key) same += 1;
            }
        }
#pragma unroll
        for (int step = WARP / 2; step > 0; step /= 2) {
            mass += __shfl_xor_sync(FULL, mass, step);
            same += __shfl_xor_sync(FULL, same, step);
        }
        if (lane == 0) {
            desk.warp_sums[0][warp] = mass;
            desk.warp_sums[1][warp] = same;
        }
        __syncthreads();
        if (first) {
            uint64_t total = 0, left = equals;
            for (uint32_t other = 0; other < PICK_WARPS; other++) {
                const uint64_t kept = min(left, desk.warp_sums[1][other]);
                total += desk.warp_sums[0][other] + kept * mass_equal;
                left -= kept;
            }
            bool rest;
            wanted = part_of(fraction, total, rest);
        }
        // Every thread finds the same part. There is one: `wanted` is less than what is left.
        uint32_t chosen = 0;
        while (true) {
            const uint64_t kept = min(uint64_t(equals), desk.warp_sums[1][chosen]);
            const uint64_t sum = desk.warp_sums[0][chosen] + kept * mass_equal;
            if (sum > wanted || chosen == PICK_WARPS - 1) break;
            wanted -= sum;
            equals -= uint32_t(kept);
            chosen += 1;
        }
        end = min(end, begin + (chosen + 1) * part);
        begin = min(end, begin + chosen * part);
        // The sums have been read.
        __syncthreads();
    }
    if (threadIdx.x > 0) return NO_ID;
    for (uint32_t id = begin; id < end; id++) {
        const float weight = weights[id];
        if (!(weight >= floor)) continue;
        const uint32_t key = key_of(weight);
        if (key < cut.key || (key == cut.key && equals == 0)) continue;
        equals -= key == cut.key ? 1 : 0;
        const uint64_t mass = mass_of(weight);
        if (mass > wanted) return id;
        wanted -= mass;
    }
    return NO_ID;
}

// One round of splitmix64.
__device__ __forceinline__ uint64_t mix(uint64_t value) {
    uint64_t z = value + 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// Row blockIdx.x; `weights` are logits still where the best id is taken.
__device__ void pick(const float* weights, uint32_t stride, uint32_t vocab, const SampleRow* params, const Best* bests,
                     uint32_t tiles, uint32_t* ids) {
    __shared__ Desk desk;
    const size_t row = blockIdx.x;
    const SampleRow rule = params[row];
    if (rule.temperature < 0.0f) return;
    const Best best = row_best(bests + row * tiles, tiles, desk.bests);
    if (best.id == NO_ID || rule.temperature == 0.0f) {
        if (threadIdx.x == 0) ids[row] = best.id;
        return;
    }
    const float* const from = weights + row * stride;
    const bool rows_wide = wide(weights, stride);
    Cut cut = {0, NO_ID, 0};
    if (rule.top_k < vocab) find_cut<false>(from, vocab, rows_wide, rule.floor, rule.top_k, 0, desk, cut);
    if (rule.share < uint64_t(1) << 53)
        find_cut<true>(from, vocab, rows_wide, rule.floor, rule.share, cut.mass, desk, cut);
    const uint64_t fraction = mix(mix(rule.seed) + rule.drawn) >> 11;
    const uint32_t id = draw(from, vocab, rows_wide, rule.floor, cut, fraction, desk);
    if (threadIdx.x == 0) ids[row] = id;
}

}  // namespace weir

extern "C" __global__ void __launch_bounds__(weir::TILE_THREADS)
    sample_scan_f32(const float* logits, uint32_t stride, uint32_t vocab, const void* params, void* bests) {
    weir::scan(logits, stride, vocab, static_cast<const weir::SampleRow*>(params), static_cast<weir::Best*>(bests));
}
extern "C" __global__ void __launch_bounds__(weir::TILE_THREADS)
    sample_weigh_f32(float* logits, uint32_t stride, uint32_t vocab, const void* params, const void* bests) {
    weir::weigh(logits, stride, vocab, static_cast<const weir::SampleRow*>(params),
                static_cast<const weir::Best*>(bests));
}
extern "C" __global__ void __launch_bounds__(weir::PICK_THREADS)
    sample_pick_f32(const float* weights, uint32_t stride, uint32_t vocab, const void* params, const void* bests,
                    uint32_t tiles, uint32_t* ids) {
    weir::pick(weights, stride, vocab, static_cast<const weir::SampleRow*>(params),
               static_cast<const weir::Best*>(bests), tiles, ids);
}
WEIR_KERNEL(sample_scan_f32)
WEIR_KERNEL(sample_weigh_f32)
WEIR_KERNEL(sample_pick_f32)
