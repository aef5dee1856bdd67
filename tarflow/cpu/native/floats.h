// Factors in float32, used where they lie.

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

// What `registers.h` multiplies at a time: an element of a row by a vector of another.
constexpr long AT_ONCE = 1;

inline float down(Left left, long r, long i) {
    return left.data[r * left.row + i * left.column];
}

template <long WIDTH>
inline typename Of<WIDTH>::Vector across(Right right, long i, long j) {
    return *(const typename Of<WIDTH>::Vector*)(right.data + i * right.row + j);
}

template <typename Vector>
inline void add_product(Vector& sum, float each, Vector many) {
    sum += each * many;
}

// result (rows x columns) = or += left (rows x inner) * right (inner x columns), `columns` and
// `inner` in steps of LANES.
inline void multiply(Left left, Right right, float* result, long stride, long rows, long columns,
                     long inner, bool add = false);

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
