// Attention of a tile of queries over the positions that they see, 32 at a time, with a running maximum: what prefill and segments
// share.
//
// Queries are packed token by token, `group` heads each (the heads that share a KV head), so grouped queries share every load. For
// each tile of 32 positions, counted from position zero:
//
//   keys and values to shared memory, zeros for positions that no query of the tile sees; the next tile's keys are on their way
//   while values are used, and its values while its keys are
//   scores = q . keys * scale           what a query does not see becomes no weight at all
//   keep = e^(max - max'), weights = e^(scores - max')
//   sum = sum * keep + weights          acc = acc * keep + weights . values
//
// A tile of positions of which a query sees nothing leaves its numbers as they are (keep is 1, weights are 0), so its result does
// not depend on which queries share its tile.
//
// Two bodies. For f32, fused multiply-adds: a warp takes rows of queries, lane = position, then lane = column. For f16 and bf16, the
// tensor cores by way of wmma, 16 queries a warp. A fragment's layout is not known there; which row an element belongs to is found
// by loading a matrix of row numbers, and so acc stays in registers while its rows are scaled.
#pragma once
#include "vectors.cuh"

namespace weir {

// The queries of a tile: numbers first .. first + count of their sequence.
template <typename T>
struct Queries {
    const T* q;  // of query 0: its token's first query head of this KV head
    T* out;
    uint64_t q_stride, out_stride;  // elements from token to token
    uint32_t dim, group, first, count;
    // Positions before the sequence's first token, or all of them where attention goes both ways.
    uint32_t context;
    bool causal;
    uint32_t window;  // positions a query sees at most, itself among them; 0: all

    __device__ __forceinline__ uint32_t token(uint32_t i) const { return (first + i) / group; }
    __device__ __forceinline__ uint32_t column(uint32_t i) const { return (first + i) % group * dim; }
    // One past the last position that query i of the tile sees, and the first.
    __device__ __forceinline__ uint32_t end(uint32_t i) const { return causal ? context + token(i) + 1 : context; }
    __device__ __forceinline__ uint32_t start(uint32_t i) const {
        const uint32_t past = end(i);
        return window != 0 && past > window ? past - window : 0;
    }
};

// Keys and values in the paged tensor.
template <typename T>
struct Paged {
    const T* kv;  // the layer's and KV head's key tile of block 0
    const uint32_t* table;
    uint64_t block_len, values;  // elements from block to block, and from keys to values
    uint32_t dim;

    static constexpr bool wide = true;
    __device__ __forceinline__ uint64_t stride() const { return dim; }
    __device__ __forceinline__ const T* keys_of(uint32_t tile) const { return kv + table[tile] * block_len; }
    __device__ __forceinline__ const T* values_of(uint32_t tile) const { return keys_of(tile) + values; }
};

// Keys and values in rows of a matrix.
template <typename T>
struct Flat {
    const T* keys;
    const T* values;
    uint64_t row;
    bool wide;  // whether rows begin at multiples of 16 bytes

    __device__ __forceinline__ uint64_t stride() const { return row; }
    __device__ __forceinline__ const T* keys_of(uint32_t tile) const { return keys + tile * 32 * row; }
    __device__ __forceinline__ const T* values_of(uint32_t tile) const { return values + tile * 32 * row; }
};

constexpr uint32_t TILE_THREADS = 128;

// Positions of the tile at `base` that a query sees: [first, end).
struct Seen {
    uint32_t first, end;
    template <typename T>
    __device__ __forceinline__ Seen(const Queries<T>& queries, uint32_t i, uint32_t base) : first(0), end(0) {
        if (i >= queries.count) return;
        const uint32_t start = queries.start(i), past = queries.end(i);
        first = start > base ? min(start - base, 32u) : 0;
        end = past > base ? min(past - base, 32u) : 0;
    }
    __device__ __forceinline__ bool holds(uint32_t p) const { return first <= p && p < end; }
};

// Copies a tile's keys or values to shared memory: the rows first .. end of it that some query sees, zeros for the others. A tile
// that begins at `past` or later is an empty group of copies.
template <typename T, typename Source>
__device__ __forceinline__ void stage(T* to, uint32_t to_stride, const Source& source, bool values, uint32_t tile, uint32_t start,
                                      uint32_t past, uint32_t dim) {
    const uint32_t base = tile * 32;
    if (base >= past) return end_copies();
    const T* from = values ? source.values_of(tile) : source.keys_of(tile);
    stage_rows(to, to_stride, from, source.stride(), dim, max(start, base) - base, min(past - base, 32u), source.wide);
}

// f32. D: the most columns; the tile has at most 16 queries. Shared memory, in floats: 16 * dim, 2 * 32 * (dim + 4), 16 * 32.
template <int D, typename Source>
__device__ __forceinline__ void attend(const Queries<float>& queries, const Source& source, float scale) {
    constexpr int ROWS = 4, COLUMNS = (D + WARP - 1) / WARP;
    const uint32_t dim = queries.dim, stride = dim + 4;
    WEIR_DYNAMIC_SHARED(float, q);       // [16][dim], scaled
    float* const keys = q + 16 * dim;    // [32][stride]
    float* const values = keys + 32 * stride;
    const uint32_t lane = threadIdx.x % WARP, row = threadIdx.x / WARP * ROWS;
    float* const weights = values + 32 * stride + row * 32;  // [ROWS][32] of this warp
    for (uint32_t i = threadIdx.x; i < 16 * dim; i += TILE_THREADS) {
        const uint32_t r = i / dim, d = i % dim;
        q[i] = r < queries.count ? queries.q[queries.token(r) * queries.q_stride + queries.column(r) + d] * scale : 0.0f;
    }
    float acc[ROWS][COLUMNS], maximum[ROWS], sum[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        maximum[r] = -INFINITY;
        sum[r] = 0.0f;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) acc[r][c] = 0.0f;
    }
    const uint32_t start = queries.start(0), past = queries.end(queries.count - 1);
    stage(keys, stride, source, false, start / 32, start, past, dim);
    stage(values, stride, source, true, start / 32, start, past, dim);
    for (uint32_t tile = start / 32; tile * 32 < past; tile++) {
        const uint32_t base = tile * 32;
        wait_for_copies<1>();
        __syncthreads();
        float score[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) score[r] = 0.0f;
        for (uint32_t d = 0; d < dim; d += 4) {
            float key[4];
            load_vector(keys + lane * stride + d, key);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
#pragma unroll
                for (int i = 0; i < 4; i++) score[r] = fmaf(q[(row + r) * dim + d + i], key[i], score[r]);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const Seen seen(queries, row + r, base);
            const bool mine = seen.holds(lane);
            const float now = fmaxf(maximum[r], warp_max(mine ? score[r] : -INFINITY));
            const float weight = mine ? expf(score[r] - now) : 0.0f;
            // Nothing seen so far: nothing to keep or to lose.
            const float keep = now == -INFINITY ? 1.0f : expf(maximum[r] - now);
            weights[r * 32 + lane] = weight;
            sum[r] = fmaf(sum[r], keep, warp_sum(weight));
            maximum[r] = now;
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) acc[r][c] *= keep;
        }
        wait_for_copies<0>();
        __syncthreads();
        stage(keys, stride, source, false, tile + 1, start, past, dim);
        for (uint32_t p = 0; p < 32; p++) {
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                if (c * WARP + lane >= dim) break;
                const float value = values[p * stride + c * WARP + lane];
#pragma unroll
                for (int r = 0; r < ROWS; r++) acc[r][c] = fmaf(weights[r * 32 + p], value, acc[r][c]);
            }
        }
        __syncthreads();
        stage(values, stride, source, true, tile + 1, start, past, dim);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (row + r >= queries.count) break;
        float* const out = queries.out + queries.token(row + r) * queries.out_stride + queries.column(row + r);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            if (c * WARP + lane < dim) out[c * WARP + lane] = acc[r][c] / sum[r];
        }
    }
}

// f16 and bf16. D: the most columns; the tile has at most 64 queries. Shared memory: T [64 + 2 * 32][D + 8], then float
// [64][SCORES_STRIDE].
constexpr int SCORES_STRIDE = 36;

template <int D, typename T, typename Source>
__device__ __forceinline__ void attend(const Queries<T>& queries, const Source& source, float scale) {
    using namespace nvcuda;
    using Accumulator = wmma::fragment<wmma::accumulator, 16, 16, 16, float>;
    constexpr int STRIDE = D + 8, PANELS = D / 16;
    const uint32_t dim = queries.dim;
    WEIR_DYNAMIC_SHARED(T, q);                 // [64][STRIDE]
    T* const keys = q + 64 * STRIDE;           // [32][STRIDE]
    T* const values = keys + 32 * STRIDE;      // [32][STRIDE]
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Of this warp: 16 rows of scores, which the weights then overwrite, and, in column 32, what each row keeps.
    float* const scores = reinterpret_cast<float*>(values + 32 * STRIDE) + warp * 16 * SCORES_STRIDE;
    T* const weights = reinterpret_cast<T*>(scores);
    constexpr int WEIGHTS_STRIDE = SCORES_STRIDE * 2, KEEP = 32;

    if (on_vectors(queries.q, queries.q_stride)) {
        const uint32_t vectors = dim / PER_VECTOR<T>;
        for (uint32_t i = threadIdx.x; i < 64 * vectors; i += TILE_THREADS) {
            const uint32_t r = i / vectors, d = i % vectors * PER_VECTOR<T>;
            const bool valid = r < queries.count;
            const uint64_t from = valid ? queries.token(r) * queries.q_stride + queries.column(r) : 0;
            // They arrive with the first keys.
            copy_async(q + r * STRIDE + d, queries.q + from + d, valid);
        }
    } else {
        for (uint32_t i = threadIdx.x; i < 64 * dim; i += TILE_THREADS) {
            const uint32_t r = i / dim, d = i % dim;
            q[r * STRIDE + d] =
                r < queries.count ? queries.q[queries.token(r) * queries.q_stride + queries.column(r) + d] : from_float<T>(0.0f);
        }
    }
    // Two lanes share a row, 16 columns each.
    const uint32_t row = lane / 2, half = lane % 2 * 16, query = warp * 16 + row;
    const bool busy = warp * 16 < queries.count;
    // Which row each element of an accumulator belongs to.
    int row_of[Accumulator::num_elements];
    for (uint32_t c = 0; c < 8; c++) scores[row * SCORES_STRIDE + lane % 2 * 8 + c] = float(row);
    __syncwarp();
    {
        Accumulator rows;
        wmma::load_matrix_sync(rows, scores, SCORES_STRIDE, wmma::mem_row_major);
#pragma unroll
        for (int i = 0; i < rows.num_elements; i++) row_of[i] = int(rows.x[i]) * SCORES_STRIDE + KEEP;
    }
    Accumulator acc[PANELS];
#pragma unroll
    for (int c = 0; c < PANELS; c++) wmma::fill_fragment(acc[c], 0.0f);
    float maximum = -INFINITY, sum = 0.0f;

    const uint32_t start = queries.start(0), past = queries.end(queries.count - 1);
    // What this warp's queries see.
    const uint32_t warp_start = busy ? queries.start(warp * 16) : past;
    const uint32_t warp_past = busy ? queries.end(min(warp * 16 + 16, queries.count) - 1) : 0;
    stage(keys, STRIDE, source, false, start / 32, start, past, dim);
    stage(values, STRIDE, source, true, start / 32, start, past, dim);
    for (uint32_t tile = start / 32; tile * 32 < past; tile++) {
        const uint32_t base = tile * 32;
        const bool seeing = base < warp_past && warp_start < base + 32;
        wait_for_copies<1>();
        __syncthreads();
        if (seeing) {
            Accumulator score[2];
            wmma::fill_fragment(score[0], 0.0f);
            wmma::fill_fragment(score[1], 0.0f);
#pragma unroll
            for (int k = 0; k < PANELS; k++) {
                if (k * 16 >= dim) break;
                wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> a;
                wmma::load_matrix_sync(a, q + warp * 16 * STRIDE + k * 16, STRIDE);
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major> b;
                    wmma::load_matrix_sync(b, keys + n * 16 * STRIDE + k * 16, STRIDE);
                    wmma::mma_sync(score[n], a, b, score[n]);
                }
            }
            wmma::store_matrix_sync(scores, score[0], SCORES_STRIDE, wmma::mem_row_major);
            wmma::store_matrix_sync(scores + 16, score[1], SCORES_STRIDE, wmma::mem_row_major);
            __syncwarp();
            const Seen seen(queries, query, base);
            float own[16], most = maximum;
#pragma unroll
            for (int c = 0; c < 16; c += 4) load_vector(scores + row * SCORES_STRIDE + half + c, own + c);
#pragma unroll
            for (int c = 0; c < 16; c++) {
                own[c] = seen.holds(half + c) ? own[c] * scale : -INFINITY;
                most = fmaxf(most, own[c]);
            }
            most = fmaxf(most, __shfl_xor_sync(FULL, most, 1));
            // Everybody has read the scores before weights take their place.
            __syncwarp();
            const float keep = most == -INFINITY ? 1.0f : expf(maximum - most);
            float added = 0.0f;
            unsigned words[8];
#pragma unroll
            for (int c = 0; c < 16; c += 2) {
                const T low = from_float<T>(own[c] == -INFINITY ? 0.0f : expf(own[c] - most));
                const T high = from_float<T>(own[c + 1] == -INFINITY ? 0.0f : expf(own[c + 1] - most));
                // The sum is that of the weights as they are multiplied.
                added += to_float(low) + to_float(high);
                words[c / 2] = pack(low, high);
            }
            uint4* const place = reinterpret_cast<uint4*>(weights + row * WEIGHTS_STRIDE + half);
            place[0] = make_uint4(words[0], words[1], words[2], words[3]);
            place[1] = make_uint4(words[4], words[5], words[6], words[7]);
            added += __shfl_xor_sync(FULL, added, 1);
            if (half == 0) scores[row * SCORES_STRIDE + KEEP] = keep;
            sum = fmaf(sum, keep, added);
            maximum = most;
        }
        wait_for_copies<0>();
        __syncthreads();
        stage(keys, STRIDE, source, false, tile + 1, start, past, dim);
        if (seeing) {
            float keep[Accumulator::num_elements];
#pragma unroll
            for (int i = 0; i < Accumulator::num_elements; i++) keep[i] = scores[row_of[i]];
            wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> a[2];
            wmma::load_matrix_sync(a[0], weights, WEIGHTS_STRIDE);
            wmma::load_matrix_sync(a[1], weights + 16, WEIGHTS_STRIDE);
#pragma unroll
            for (int c = 0; c < PANELS; c++) {
                if (c * 16 >= dim) break;
#pragma unroll
                for (int i = 0; i < Accumulator::num_elements; i++) acc[c].x[i] *= keep[i];
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::row_major> b;
                    wmma::load_matrix_sync(b, values + k * 16 * STRIDE + c * 16, STRIDE);
                    wmma::mma_sync(acc[c], a[k], b, acc[c]);
                }
            }
        }
        __syncthreads();
        stage(values, STRIDE, source, true, tile + 1, start, past, dim);
    }
    if (!busy) return;
    const bool wide_out = on_vectors(queries.out, queries.out_stride);
#pragma unroll
    for (int c = 0; c < PANELS; c++) {
        if (c * 16 >= dim) break;
        __syncwarp();
        wmma::store_matrix_sync(scores, acc[c], SCORES_STRIDE, wmma::mem_row_major);
        __syncwarp();
        if (query >= queries.count) continue;
        T* const out = queries.out + queries.token(query) * queries.out_stride + queries.column(query) + c * 16 + lane % 2 * 8;
        float result[8];
#pragma unroll
        for (int d = 0; d < 8; d += 4) load_vector(scores + row * SCORES_STRIDE + lane % 2 * 8 + d, result + d);
#pragma unroll
        for (int d = 0; d < 8; d++) result[d] /= sum;
        store_vector(out, result, wide_out);
    }
}

}  // namespace weir
