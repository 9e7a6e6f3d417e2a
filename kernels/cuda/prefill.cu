// Causal attention of chunks of prompts over the paged KV tensor; see tile.cuh.
#include "tile.cuh"

namespace {

using namespace weir;

// tiles: [gridDim.x][5]: the row in q and out of the sequence's first token in this step, the positions before it, where its block
// table begins in `tables`, and the tile's first query and queries, counted token by token, heads / kv_heads each. gridDim.y is
// kv_heads.
template <typename T, int D>
__device__ __forceinline__ void prefill(T* out, const T* q, const T* kv, const uint32_t* tiles, const uint32_t* tables,
                                        uint32_t out_stride, uint32_t q_stride, uint32_t heads, uint32_t kv_heads, uint32_t dim,
                                        uint32_t layers, uint32_t layer, uint32_t window, float scale) {
    const uint32_t* tile = tiles + uint64_t(blockIdx.x) * 5;
    const uint32_t kv_head = blockIdx.y, group = heads / kv_heads, column = kv_head * group * dim;
    const uint64_t first = tile[0], tile_len = uint64_t(32) * dim;
    Queries<T> queries;
    queries.q = q + first * q_stride + column;
    queries.out = out + first * out_stride + column;
    queries.q_stride = q_stride;
    queries.out_stride = out_stride;
    queries.dim = dim;
    queries.group = group;
    queries.first = tile[3];
    queries.count = tile[4];
    queries.context = tile[1];
    queries.causal = true;
    queries.window = window;
    Paged<T> source;
    source.kv = kv + (uint64_t(layer) * 2 * kv_heads + kv_head) * tile_len;
    source.table = tables + tile[2];
    source.block_len = uint64_t(layers) * 2 * kv_heads * tile_len;
    source.values = kv_heads * tile_len;
    source.dim = dim;
    attend<D>(queries, source, scale);
}

}  // namespace

#define KERNEL(name, suffix, T, D)                                                                                              \
    extern "C" __global__ void __launch_bounds__(128) name##_##suffix(                                                          \
        T* out, const T* q, const T* kv, const uint32_t* tiles, const uint32_t* tables, uint32_t out_stride, uint32_t q_stride, \
        uint32_t heads, uint32_t kv_heads, uint32_t dim, uint32_t layers, uint32_t layer, uint32_t window, float scale) {       \
        prefill<T, D>(out, q, kv, tiles, tables, out_stride, q_stride, heads, kv_heads, dim, layers, layer, window, scale);     \
    }                                                                                                                           \
    WEIR_KERNEL(name##_##suffix)
#define KERNELS(suffix, T)               \
    KERNEL(prefill64, suffix, T, 64)     \
    KERNEL(prefill128, suffix, T, 128)   \
    KERNEL(prefill256, suffix, T, 256)
WEIR_FOR_ELEMENTS(KERNELS)
