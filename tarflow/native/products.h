// Products of small matrices inside one thread: on matrix units (AMX) where activations are in
// bfloat16 and the processor has them, else in float32 registers. `Left` and `Right` are what a
// product wants its factors as; sums are in float32.

#pragma once

#include <algorithm>

#include "values.h"

#if defined(BFLOAT16) && defined(__AMX_BF16__)
#define MATRIX_UNITS
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// Row-major floats; rows and columns of all matrices here are padded with zeros to whole vectors.
struct Matrix {
    float* data;
    long rows, columns;

    long size() const { return rows * columns; }
    float* row(long i) const { return data + i * columns; }
};

#if defined(MATRIX_UNITS)
constexpr long LANES = 32, BLOCK = 64;
constexpr long COPIED = 1;  // floats that a factor takes for an element of its matrix, at most
#else
#if defined(__AVX512F__)
constexpr long LANES = 16, TILE_ROWS = 6, TILE_VECTORS = 4;  // 24 of 32 registers hold sums
#elif defined(__AVX__)
constexpr long LANES = 8, TILE_ROWS = 6, TILE_VECTORS = 2;
#else
constexpr long LANES = 4, TILE_ROWS = 6, TILE_VECTORS = 2;
#endif
constexpr long BLOCK = 48;  // rows to multiply at a time: whole vectors, whole tiles
constexpr long COPIED = 0;
#endif

inline long padded(long count) { return (count + LANES - 1) / LANES * LANES; }

Matrix transposed(const Matrix& from, float* room) {
    for (long k0 = 0; k0 < from.columns; k0 += LANES)
        for (long t0 = 0; t0 < from.rows; t0 += LANES)
            for (long k = k0; k < k0 + LANES; k++)
#pragma omp simd
                for (long t = t0; t < t0 + LANES; t++)
                    room[k * from.rows + t] = from.data[t * from.columns + k];
    return {room, from.columns, from.rows};
}

#if defined(MATRIX_UNITS)

struct Left {
    const Value* data;
    long row;

    Left from(long i, long j) const { return {data + i * row + j, row}; }
};

struct Right {
    const uint32_t* data;  // element (i, j) holds those at (2i, j) and (2i + 1, j)
    long row;
};

Left as_left(const Matrix& from, float* room) {
    Value* to = reinterpret_cast<Value*>(room);
#pragma omp simd
    for (long i = 0; i < from.size(); i++) write(to[i], from.data[i]);
    return {to, from.columns};
}

Left as_left_transposed(const Matrix& from, float* across, float* room) {
    return as_left(transposed(from, across), room);
}

Right as_right(const Matrix& from, float* room) {
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
bool allowed() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool answer = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return answer;
}

// result (rows x columns) = or += left (rows x inner) * right (inner x columns), in steps of LANES.
void multiply(Left left, Right right, float* result, long stride, long rows, long columns,
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

#else

struct Left {
    const float* data;
    long row, column;  // from one element to the next

    Left from(long i, long j) const { return {data + i * row + j * column, row, column}; }
};

struct Right {
    const float* data;
    long row;
};

Left as_left(const Matrix& from, float*) { return {from.data, from.columns, 1}; }

Left as_left_transposed(const Matrix& from, float*, float*) {
    return {from.data, 1, from.columns};
}

Right as_right(const Matrix& from, float*) { return {from.data, from.columns}; }

struct Tiles {
    Tiles() {}  // so that unused ones are no warning
};

bool allowed() { return true; }

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));

// A ROWS x (VECTORS * LANES) tile of `result`, whose sums are kept in registers.
template <long ROWS, long VECTORS>
inline void tile(Left left, Right right, float* result, long stride, long inner, bool add) {
    Vector sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (long r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (long v = 0; v < VECTORS; v++)
            sum[r][v] = add ? *(Vector*)(result + r * stride + v * LANES) : Vector{};
    for (long i = 0; i < inner; i++) {
        Vector across[VECTORS];
#pragma GCC unroll 8
        for (long v = 0; v < VECTORS; v++)
            across[v] = *(const Vector*)(right.data + i * right.row + v * LANES);
#pragma GCC unroll 8
        for (long r = 0; r < ROWS; r++) {
            const float down = left.data[r * left.row + i * left.column];
#pragma GCC unroll 8
            for (long v = 0; v < VECTORS; v++) sum[r][v] += down * across[v];
        }
    }
#pragma GCC unroll 8
    for (long r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (long v = 0; v < VECTORS; v++) *(Vector*)(result + r * stride + v * LANES) = sum[r][v];
}

template <long VECTORS>
void strip(Left left, Right right, float* result, long stride, long rows, long inner, bool add) {
    long i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
        tile<TILE_ROWS, VECTORS>(left.from(i, 0), right, result + i * stride, stride, inner, add);
    for (; i + 2 <= rows; i += 2)
        tile<2, VECTORS>(left.from(i, 0), right, result + i * stride, stride, inner, add);
    for (; i < rows; i++)
        tile<1, VECTORS>(left.from(i, 0), right, result + i * stride, stride, inner, add);
}

// result (rows x columns) = or += left (rows x inner) * right (inner x columns), `columns` in steps
// of LANES.
void multiply(Left left, Right right, float* result, long stride, long rows, long columns,
              long inner, bool add = false) {
    const auto part = [&](long j) { return Right{right.data + j, right.row}; };
    long j = 0;
    for (; j + TILE_VECTORS * LANES <= columns; j += TILE_VECTORS * LANES)
        strip<TILE_VECTORS>(left, part(j), result + j, stride, rows, inner, add);
    for (; j < columns; j += LANES)
        strip<1>(left, part(j), result + j, stride, rows, inner, add);
}

#endif

}  // namespace
