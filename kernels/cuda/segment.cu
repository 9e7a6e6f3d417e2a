// Attention both ways inside the segments of a packed batch, for encoders; see tile.cuh.
#include "tile.cuh"

namespace {

using namespace weir;

// qkv: [rows][3 * heads * dim], q then k then v. tiles: [gridDim.x][4]: the segment's first row and its rows, the tile's first query
// of the segment and its queries. gridDim.y is heads. wide: whether every row of qkv begins at a multiple of 16 bytes.
template <typename T, int D>
__device__ __forceinline__ void segment(T* out, const T* qkv, const uint32_t* tiles, uint32_t out_stride, uint32_t qkv_stride,
                                        uint32_t heads, uint32_t dim, uint32_t wide, float scale) {
    const uint32_t* tile = tiles + uint64_t(blockIdx.x) * 4;
    const uint64_t first = tile[0];
    const uint32_t column = blockIdx.y * dim;
    Queries<T> queries;
    queries.q = qkv + first * qkv_stride + column;
    queries.out = out + first * out_stride + column;
    queries.q_stride = qkv_stride;
    queries.out_stride = out_stride;
    queries.dim = dim;
    queries.group = 1;
    queries.first = tile[2];
    queries.count = tile[3];
    queries.context = tile[1];
    queries.causal = false;
    queries.window = 0;
    Flat<T> source;
    source.keys = queries.q + heads * dim;
    source.values = source.keys + heads * dim;
    source.row = qkv_stride;
    source.wide = wide != 0;
    attend<D>(queries, source, scale);
}

}  // namespace

#define KERNEL(name, suffix, T, D)                                                                                              \
    extern "C" __global__ void __launch_bounds__(128)                                                                           \
        name##_##suffix(T* out, const T* qkv, const uint32_t* tiles, uint32_t out_stride, uint32_t qkv_stride, uint32_t heads,  \
                        uint32_t dim, uint32_t wide, float scale) {                                                             \
        segment<T, D>(out, qkv, tiles, out_stride, qkv_stride, heads, dim, wide, scale);                                        \
    }                                                                                                                           \
    WEIR_KERNEL(name##_##suffix)
#define KERNELS(suffix, T)               \
    KERNEL(segment64, suffix, T, 64)     \
    KERNEL(segment128, suffix, T, 128)   \
    KERNEL(segment256, suffix, T, 256)
WEIR_FOR_ELEMENTS(KERNELS)
