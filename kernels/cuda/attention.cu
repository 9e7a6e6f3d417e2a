// Attention of single queries over the paged KV tensor: decoding.
//
// A sequence's positions are cut into splits, counted from position zero, whose length depends on how many positions the query sees
// and on nothing else in the step. A block takes one split and one KV head, with all query heads that share it (up to GROUP of
// them), so keys and values are read once:
//
//   for each tile of 32 positions, keys and values of which are copied to shared memory, zeros where the query does not see:
//     scores: lane = position, a warp takes whole heads     running maximum, weights = e^(score - max)
//     acc[head] = acc[head] * keep + weights . values       thread = column, every head of the block in registers
//
// The next tile's keys are on their way while values are used, and its values while its keys are.
//
// A query of one split is written straight to `out`; the others leave acc, maximum and sum in the workspace, and `merge` adds them
// up in order. So a row's bits do not depend on who else is in the step.
#include "vectors.cuh"

namespace {

using namespace weir;

constexpr uint32_t DIRECT = 0xffffffffu;
constexpr uint32_t ITEM_WORDS = 5;

// items: [gridDim.x][5]: the query's row in q and out, where its block table begins in `tables`, the first position and the one past
// the last of the split, and its place in the workspace (or DIRECT). gridDim.y is kv_heads times the slices of GROUP heads that one
// KV head's query heads are cut into. blockDim.x is `dim` rounded up to whole warps.
template <typename T, int GROUP>
__device__ __forceinline__ void decode(T* out, const T* q, const T* kv, float* workspace, const uint32_t* items,
                                       const uint32_t* tables, uint32_t out_stride, uint32_t q_stride, uint32_t heads,
                                       uint32_t kv_heads, uint32_t dim, uint32_t layers, uint32_t layer, uint32_t slots,
                                       float scale) {
    const uint32_t key_stride = dim + PER_VECTOR<T>;
    WEIR_DYNAMIC_SHARED(float, queries);                          // [GROUP][dim], scaled
    float* const weights = queries + GROUP * dim;                 // [32][GROUP]
    float* const keep = weights + 32 * GROUP;                     // [GROUP] each
    float* const maximum = keep + GROUP;
    float* const sum = maximum + GROUP;
    T* const keys = reinterpret_cast<T*>(sum + GROUP);            // [32][key_stride]: rows a bank group apart
    T* const values = keys + 32 * key_stride;                     // [32][dim]

    const uint32_t* item = items + uint64_t(blockIdx.x) * ITEM_WORDS;
    const uint32_t row = item[0], first = item[2], end = item[3], slot = item[4];
    const uint32_t* table = tables + item[1];
    const uint32_t slices = gridDim.y / kv_heads, kv_head = blockIdx.y / slices;
    const uint32_t group = heads / kv_heads, skipped = blockIdx.y % slices * GROUP;
    const uint32_t count = min(uint32_t(GROUP), group - skipped), head = kv_head * group + skipped;
    const uint32_t thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP, warps = blockDim.x / WARP;

    const T* q_heads = q + uint64_t(row) * q_stride + uint64_t(head) * dim;
    for (uint32_t i = thread; i < count * dim; i += blockDim.x) queries[i] = to_float(q_heads[i]) * scale;
    // Heads that are not there weigh nothing.
    for (uint32_t i = thread; i < 32 * GROUP; i += blockDim.x) weights[i] = 0.0f;
    if (thread < GROUP) {
        keep[thread] = 1.0f;
        maximum[thread] = -INFINITY;
        sum[thread] = 0.0f;
    }
    float acc[GROUP];
#pragma unroll
    for (int g = 0; g < GROUP; g++) acc[g] = 0.0f;

    const uint64_t tile_len = uint64_t(32) * dim;
    const uint64_t head_start = (uint64_t(layer) * 2 * kv_heads + kv_head) * tile_len;
    const uint64_t block_len = uint64_t(layers) * 2 * kv_heads * tile_len;
    // One group of copies each; a tile past the last is an empty group.
    const auto stage = [&](uint32_t tile, T* to, uint32_t stride, uint64_t of_values) {
        const uint32_t base = tile * 32;
        if (base >= end) return end_copies();
        const T* from = kv + table[tile] * block_len + head_start + of_values;
        stage_rows(to, stride, from, dim, dim, max(first, base) - base, min(end - base, 32u), true);
    };
    const auto stage_keys = [&](uint32_t tile) { stage(tile, keys, key_stride, 0); };
    const auto stage_values = [&](uint32_t tile) { stage(tile, values, dim, kv_heads * tile_len); };
    stage_keys(first / 32);
    stage_values(first / 32);
    for (uint32_t tile = first / 32; tile * 32 < end; tile++) {
        const uint32_t base = tile * 32, seen_first = max(first, base) - base, seen_end = min(end - base, 32u);
        wait_for_copies<1>();
        __syncthreads();
        for (uint32_t g = warp; g < count; g += warps) {
            float score = 0.0f;
            for (uint32_t d = 0; d < dim; d += PER_VECTOR<T>) {
                float key[PER_VECTOR<T>], query[PER_VECTOR<T>];
                load_vector(keys + lane * key_stride + d, key);
#pragma unroll
                for (int i = 0; i < PER_VECTOR<T>; i += 4) load_vector(queries + g * dim + d + i, query + i);
#pragma unroll
                for (int i = 0; i < PER_VECTOR<T>; i++) score = fmaf(query[i], key[i], score);
            }
            const bool seen = seen_first <= lane && lane < seen_end;
            const float before = maximum[g], sum_before = sum[g];
            const float now = fmaxf(before, warp_max(seen ? score : -INFINITY));
            const float weight = seen ? expf(score - now) : 0.0f;
            const float kept = expf(before - now), added = warp_sum(weight);
            weights[lane * GROUP + g] = weight;
            __syncwarp();
            if (lane == 0) {
                keep[g] = kept;
                maximum[g] = now;
                sum[g] = fmaf(sum_before, kept, added);
            }
        }
        wait_for_copies<0>();
        __syncthreads();
        stage_keys(tile + 1);
        if (thread < dim) {
#pragma unroll
            for (int g = 0; g < GROUP; g++) acc[g] *= keep[g];
#pragma unroll 4
            for (uint32_t p = 0; p < 32; p++) {
                const float value = to_float(values[p * dim + thread]);
#pragma unroll
                for (int g = 0; g < GROUP; g += 4) {
                    float weight[4];
                    load_vector(weights + p * GROUP + g, weight);
#pragma unroll
                    for (int i = 0; i < 4; i++) acc[g + i] = fmaf(weight[i], value, acc[g + i]);
                }
            }
        }
        __syncthreads();
        stage_values(tile + 1);
    }
    if (thread >= dim) return;
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        if (uint32_t(g) >= count) break;
        if (slot == DIRECT) {
            out[uint64_t(row) * out_stride + uint64_t(head + g) * dim + thread] = from_float<T>(acc[g] / sum[g]);
            continue;
        }
        const uint64_t part = uint64_t(slot) * heads + head + g;
        workspace[part * dim + thread] = acc[g];
        if (thread == 0) {
            float* const ends = workspace + uint64_t(slots) * heads * dim + part * 2;
            ends[0] = maximum[g];
            ends[1] = sum[g];
        }
    }
}

// items: [gridDim.x][3]: the query's row, its first place in the workspace, and how many it has. gridDim.y is heads.
template <typename T>
__device__ __forceinline__ void merge(T* out, const float* workspace, const uint32_t* items, uint32_t out_stride, uint32_t heads,
                                      uint32_t dim, uint32_t slots) {
    const uint32_t* item = items + uint64_t(blockIdx.x) * 3;
    const uint32_t row = item[0], first = item[1], count = item[2], head = blockIdx.y, d = threadIdx.x;
    if (d >= dim) return;
    const float* const ends = workspace + uint64_t(slots) * heads * dim;
    float maximum = -INFINITY;
    for (uint32_t s = 0; s < count; s++) maximum = fmaxf(maximum, ends[((uint64_t(first) + s) * heads + head) * 2]);
    float acc = 0.0f, sum = 0.0f;
    for (uint32_t s = 0; s < count; s++) {
        const uint64_t part = (uint64_t(first) + s) * heads + head;
        const float keep = expf(ends[part * 2] - maximum);
        acc = fmaf(workspace[part * dim + d], keep, acc);
        sum = fmaf(ends[part * 2 + 1], keep, sum);
    }
    out[uint64_t(row) * out_stride + uint64_t(head) * dim + d] = from_float<T>(acc / sum);
}

}  // namespace

#define DECODE(name, suffix, T, GROUP)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256, 2) name##_##suffix(                                                          \
        T* out, const T* q, const T* kv, float* workspace, const uint32_t* items, const uint32_t* tables, uint32_t out_stride,  \
        uint32_t q_stride, uint32_t heads, uint32_t kv_heads, uint32_t dim, uint32_t layers, uint32_t layer, uint32_t slots,    \
        float scale) {                                                                                                          \
        decode<T, GROUP>(out, q, kv, workspace, items, tables, out_stride, q_stride, heads, kv_heads, dim, layers, layer, slots, \
                         scale);                                                                                                \
    }                                                                                                                           \
    WEIR_KERNEL(name##_##suffix)
#define KERNELS(suffix, T)                                                                                                      \
    DECODE(decode4, suffix, T, 4)                                                                                               \
    DECODE(decode8, suffix, T, 8)                                                                                               \
    DECODE(decode16, suffix, T, 16)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                           \
        merge_##suffix(T* out, const float* workspace, const uint32_t* items, uint32_t out_stride, uint32_t heads, uint32_t dim, \
                       uint32_t slots) {                                                                                        \
        merge<T>(out, workspace, items, out_stride, heads, dim, slots);                                                         \
    }                                                                                                                           \
    WEIR_KERNEL(merge_##suffix)
WEIR_FOR_ELEMENTS(KERNELS)
