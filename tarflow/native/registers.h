// Products of small matrices in float32 registers.

#pragma once

#include "matrix.h"

namespace {

struct Left {
    const float* data;
    long row, column;  // from one element to the next

    Left from(long i, long j) const { return {data + i * row + j * column, row, column}; }
};

struct Right {
    const float* data;
    long row;
};

inline Left as_left(const Matrix& from, float*) { return {from.data, from.columns, 1}; }

inline Right as_right(const Matrix& from, float*) { return {from.data, from.columns}; }

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
    for (long i = 0; i < inner; i++) {
        Vector across[VECTORS];
#pragma GCC unroll 16
        for (long v = 0; v < VECTORS; v++)
            across[v] = *(const Vector*)(right.data + i * right.row + v * WIDTH);
#pragma GCC unroll 16
        for (long r = 0; r < ROWS; r++) {
            const float down = left.data[r * left.row + i * left.column];
#pragma GCC unroll 16
            for (long v = 0; v < VECTORS; v++) sum[r][v] += down * across[v];
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

// result (rows x columns) = or += left (rows x inner) * right (inner x columns), `columns` in steps
// of LANES.
inline void multiply(Left left, Right right, float* result, long stride, long rows, long columns,
                     long inner, bool add = false) {
    long j = 0;
    const auto take = [&](auto strip_of, long count) {
        for (; j + count <= columns; j += count)
            strip_of(left, Right{right.data + j, right.row}, result + j, stride, rows, inner, add);
    };
    take(strip<TILE_VECTORS, WIDEST>, TILE_VECTORS * WIDEST);
    take(strip<1, WIDEST>, WIDEST);
    take(strip<1, LANES>, LANES);
}

// A sum over blocks of rows of weight^T * factor.
class SumDown {
  public:
    SumDown(const Matrix& factor, Scratch& scratch)
        : factor(factor), sum(scratch.matrix(factor.rows, factor.columns)) {
        std::fill(sum.data, sum.data + sum.size(), 0);
    }

    void add(const Matrix& weight, long start, float*) const {
        multiply(Left{weight.data, 1, weight.columns}, Right{factor.row(start), factor.columns},
                 sum.data, sum.columns, weight.columns, sum.columns, weight.rows, true);
    }

    Matrix result(float*) const { return sum; }

  private:
    Matrix factor, sum;
};

}  // namespace
