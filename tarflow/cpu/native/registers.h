// Products of small matrices in registers: strips of columns, and these in tiles.

#pragma once

#include "matrix.h"

#if defined(PAIRS)
#include "pairs.h"
#else
#include "floats.h"
#endif

namespace {

struct Tiles {
    Tiles() {}  // so that unused ones are no warning
};

inline bool allowed() { return true; }

// A ROWS x (VECTORS * WIDTH) tile of `result`, whose sums are kept in registers.
template <long ROWS, long VECTORS, long WIDTH>
inline void tile(Left left, Right right, float* result, long stride, long inner, bool add) {
    using Vector = typename Of<WIDTH>::Vector;
    Vector sum[ROWS][VECTORS];
#pragma GCC unroll 16
    for (long r = 0; r < ROWS; r++)
#pragma GCC unroll 16
        for (long v = 0; v < VECTORS; v++)
            sum[r][v] = add ? *(Vector*)(result + r * stride + v * WIDTH) : Vector{};
    for (long i = 0; i < inner; i += AT_ONCE) {
        decltype(across<WIDTH>(right, 0, 0)) many[VECTORS];
#pragma GCC unroll 16
        for (long v = 0; v < VECTORS; v++) many[v] = across<WIDTH>(right, i, v * WIDTH);
#pragma GCC unroll 16
        for (long r = 0; r < ROWS; r++) {
            const auto each = down(left, r, i);
#pragma GCC unroll 16
            for (long v = 0; v < VECTORS; v++) add_product(sum[r][v], each, many[v]);
        }
    }
#pragma GCC unroll 16
    for (long r = 0; r < ROWS; r++)
#pragma GCC unroll 16
        for (long v = 0; v < VECTORS; v++) *(Vector*)(result + r * stride + v * WIDTH) = sum[r][v];
}

template <long VECTORS, long WIDTH>
void strip(Left left, Right right, float* result, long stride, long rows, long inner, bool add) {
    long i = 0;
    const auto take = [&](auto tile_of, long count) {
        for (; i + count <= rows; i += count)
            tile_of(left.from(i, 0), right, result + i * stride, stride, inner, add);
    };
    constexpr long MOST = VECTORS == 1 ? 12 : 6;
    take(tile<MOST, VECTORS, WIDTH>, MOST);
    take(tile<4, VECTORS, WIDTH>, 4);
    take(tile<1, VECTORS, WIDTH>, 1);
}

inline void multiply(Left left, Right right, float* result, long stride, long rows, long columns,
                     long inner, bool add) {
    long j = 0;
    const auto take = [&](auto strip_of, long count) {
        for (; j + count <= columns; j += count)
            strip_of(left, Right{right.data + j, right.row}, result + j, stride, rows, inner, add);
    };
    take(strip<TILE_VECTORS, WIDEST>, TILE_VECTORS * WIDEST);
    take(strip<1, WIDEST>, WIDEST);
    take(strip<1, LANES>, LANES);
}

}  // namespace
