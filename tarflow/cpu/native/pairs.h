// Factors in bfloat16, in pairs that one instruction multiplies and adds up; sums are in float32.

#pragma once

#include <immintrin.h>

#include "matrix.h"

namespace {

struct Left {
    const Value* data;
    long row;

    Left from(long i, long j) const { return {data + i * row + j, row}; }
};

struct Right {
    const uint32_t* data;  // element (i, j) holds those at (2i, j) and (2i + 1, j)
    long row;
};

inline Left as_left(const Matrix& from, float* room) {
    Value* to = reinterpret_cast<Value*>(room);
#pragma omp simd
    for (long i = 0; i < from.size(); i++) write(to[i], from.data[i]);
    return {to, from.columns};
}

inline Right as_right(const Matrix& from, float* room) {
    uint32_t* to = reinterpret_cast<uint32_t*>(room);
    for (long i = 0; i < from.rows; i += 2) {
        const float *even = from.row(i), *odd = from.row(i + 1);
        uint32_t* pairs = to + i / 2 * from.columns;
#pragma omp simd
        for (long j = 0; j < from.columns; j++) {
            Value low, high;
            write(low, even[j]);
            write(high, odd[j]);
            pairs[j] = low | uint32_t(high) << 16;
        }
    }
    return {to, from.columns};
}

// What `registers.h` multiplies at a time: a pair of a row by a vector of pairs.
constexpr long AT_ONCE = 2;

inline __m512bh down(Left left, long r, long i) {
    int pair;
    std::memcpy(&pair, left.data + r * left.row + i, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
}

template <long WIDTH>
inline __m512bh across(Right right, long i, long j) {
    static_assert(WIDTH == 16);
    return (__m512bh)_mm512_loadu_si512(right.data + i / 2 * right.row + j);
}

template <typename Vector>
inline void add_product(Vector& sum, __m512bh each, __m512bh many) {
    sum = (Vector)_mm512_dpbf16_ps((__m512)sum, each, many);
}

// result (rows x columns) = or += left (rows x inner) * right (inner x columns), `columns` and
// `inner` in steps of LANES.
inline void multiply(Left left, Right right, float* result, long stride, long rows, long columns,
                     long inner, bool add = false);

// A sum over blocks of rows of weight^T * factor, kept transposed: so the weights need no turning.
class SumDown {
  public:
    SumDown(const Matrix& factor, Scratch& scratch)
        : across(scratch.matrix(factor.columns, factor.rows)) {
        const Matrix turned = transposed(factor, scratch.take(factor.size()));
        left = as_left(turned, scratch.take(factor.size()));
        std::fill(across.data, across.data + across.size(), 0);
    }

    void add(const Matrix& weight, long start, float* room) const {
        multiply(left.from(0, start), as_right(weight, room), across.data, across.columns,
                 across.rows, weight.columns, weight.rows, true);
    }

    Matrix result(float* room) const { return transposed(across, room); }

  private:
    Matrix across;
    Left left;
};

}  // namespace
