// Products of small matrices on matrix units (AMX): factors in bfloat16, sums in float32.

#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

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

// The tiles of this thread are set up for `multiply` while one of these lives.
class Tiles {
  public:
    Tiles() {
        struct alignas(64) {
            uint8_t palette = 1, first = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } wanted;
        _tile_storeconfig(before);
        _tile_loadconfig(&wanted);
    }
    ~Tiles() { _tile_loadconfig(before); }

  private:
    alignas(64) uint8_t before[64];
};

// Linux gives the registers of matrix units to processes that ask for them.
inline bool allowed() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool answer = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return answer;
}

// result (rows x columns) = or += left (rows x inner) * right (inner x columns), in steps of LANES.
inline void multiply(Left left, Right right, float* result, long stride, long rows, long columns,
                     long inner, bool add = false) {
    const long bytes = 4 * stride;
    for (long i = 0; i < rows; i += LANES)
        for (long j = 0; j < columns; j += LANES) {
            float *upper = result + i * stride + j, *lower = upper + 16 * stride;
            if (add) {
                _tile_loadd(0, upper, bytes);
                _tile_loadd(1, upper + 16, bytes);
                _tile_loadd(2, lower, bytes);
                _tile_loadd(3, lower + 16, bytes);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            for (long k = 0; k < inner; k += 32) {
                const Value* down = left.data + i * left.row + k;
                const uint32_t* across = right.data + k / 2 * right.row + j;
                _tile_loadd(4, down, 2 * left.row);
                _tile_loadd(5, down + 16 * left.row, 2 * left.row);
                _tile_loadd(6, across, 4 * right.row);
                _tile_loadd(7, across + 16, 4 * right.row);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, upper, bytes);
            _tile_stored(1, upper + 16, bytes);
            _tile_stored(2, lower, bytes);
            _tile_stored(3, lower + 16, bytes);
        }
}

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
