// nvcuda::wmma for tiles of 16x16x16, f16 or bf16 in, f32 accumulated.
//
// A lane holds eight elements of a fragment: element i of lane l is number 8 * l + i of the tile, row by row, behind a fixed
// scramble, so that a kernel which relies on a layout fails here as it would on the device.
#pragma once

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
    static_assert(M == 16 && N == 16 && K == 16, "only 16x16x16 is emulated");
    static constexpr int num_elements = 8;
    T x[8];
};

// Which element of the 16x16 tile (row * 16 + column) is element i of this lane.
static inline int element(int i) { return ((int(threadIdx.x % 32) * 8 + i) * 77 + 13) % 256; }

static inline float widen(float x) { return x; }
static inline float widen(__half x) { return __half2float(x); }
static inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename Use, typename T, typename Layout>
void fill_fragment(fragment<Use, 16, 16, 16, T, Layout>& f, T value) {
    for (int i = 0; i < 8; i++) f.x[i] = value;
}

template <typename T>
void check_place(const T* at, unsigned stride) {
    if (reinterpret_cast<uintptr_t>(at) % 32 != 0) weir_fail("a fragment's address is not aligned to 32 bytes");
    if (stride * sizeof(T) % 16 != 0) weir_fail("a fragment's rows are not 16 bytes apart, or a multiple");
}

template <typename Layout>
struct ByRow {
    static constexpr bool value = true;
};
template <>
struct ByRow<col_major> {
    static constexpr bool value = false;
};

static inline size_t offset(int element, unsigned stride, bool by_row) {
    int row = element / 16, column = element % 16;
    return by_row ? size_t(row) * stride + column : size_t(column) * stride + row;
}

template <typename Use, typename T, typename Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& f, const T* at, unsigned stride, WEIR_LINE) {
    check_place(at, stride);
    weir_warp_meets(line);
    for (int i = 0; i < 8; i++) f.x[i] = at[offset(element(i), stride, ByRow<Layout>::value)];
}

template <typename T>
void load_matrix_sync(fragment<accumulator, 16, 16, 16, T>& f, const T* at, unsigned stride, layout_t layout, WEIR_LINE) {
    check_place(at, stride);
    weir_warp_meets(line);
    for (int i = 0; i < 8; i++) f.x[i] = at[offset(element(i), stride, layout == mem_row_major)];
}

template <typename T>
void store_matrix_sync(T* at, const fragment<accumulator, 16, 16, 16, T>& f, unsigned stride, layout_t layout, WEIR_LINE) {
    check_place(at, stride);
    weir_warp_meets(line);
    for (int i = 0; i < 8; i++) at[offset(element(i), stride, layout == mem_row_major)] = f.x[i];
}

template <typename T, typename A, typename B>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& d, const fragment<matrix_a, 16, 16, 16, T, A>& a,
              const fragment<matrix_b, 16, 16, 16, T, B>& b, const fragment<accumulator, 16, 16, 16, float>& c, WEIR_LINE) {
    float wide_a[8], wide_b[8];
    for (int i = 0; i < 8; i++) {
        wide_a[i] = widen(a.x[i]);
        wide_b[i] = widen(b.x[i]);
        d.x[i] = c.x[i];
    }
    weir_mma(d.x, wide_a, wide_b, line);
}

}  // namespace wmma
}  // namespace nvcuda
