// Products of small matrices inside one thread: on matrix units (AMX) where activations are in
// bfloat16 and the processor has them, else in float32 registers. `Left` and `Right` are what a
// product wants its factors as; sums are in float32.

#pragma once

#include <algorithm>
#include <vector>

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
constexpr long LANES = 32;  // rows and columns come in these
constexpr long BLOCK = 64;  // rows to multiply at a time
constexpr long COPIED = 1;  // floats that a factor takes for an element of its matrix, at most
#else
#if defined(__AVX512F__)
constexpr long WIDEST = 16, TILE_VECTORS = 4;  // of 32 registers 24 hold the sums of 6 rows
#elif defined(__AVX__)
constexpr long WIDEST = 8, TILE_VECTORS = 2;
#else
constexpr long WIDEST = 4, TILE_VECTORS = 2;
#endif
constexpr long LANES = WIDEST < 8 ? WIDEST : 8, BLOCK = 48, COPIED = 0;
#endif

inline long padded(long count) { return (count + LANES - 1) / LANES * LANES; }

// Memory of a thread, kept from call to call.
class Scratch {
  public:
    explicit Scratch(long floats) {
        static thread_local std::vector<float> kept;
        if (long(kept.size()) < floats + 16) kept.resize(floats + 16);
        next = kept.data();
        while (reinterpret_cast<uintptr_t>(next) % 64) next++;
    }

    float* take(long floats) { return (next += floats) - floats; }

    Matrix matrix(long rows, long columns) { return {take(rows * columns), rows, columns}; }

  private:
    float* next;
};

template <long WIDTH>
struct Of {
    typedef float Vector __attribute__((vector_size(4 * WIDTH), aligned(4)));
    typedef int32_t Places __attribute__((vector_size(4 * WIDTH)));
};

// Swaps the off-diagonal halves of all blocks of 2 * STEP in a square whose rows are `row`.
template <long WIDTH, long STEP>
inline void swap_halves(typename Of<WIDTH>::Vector (&row)[WIDTH]) {
    typename Of<WIDTH>::Places upper, lower;
#pragma GCC unroll 16
    for (int j = 0; j < WIDTH; j++) {
        upper[j] = j & STEP ? WIDTH + j - STEP : j;
        lower[j] = j & STEP ? WIDTH + j : j + STEP;
    }
#pragma GCC unroll 16
    for (int i = 0; i < WIDTH; i++) {
        if (i & STEP) continue;
        const auto above = row[i], below = row[i + STEP];
        row[i] = __builtin_shuffle(above, below, upper);
        row[i + STEP] = __builtin_shuffle(above, below, lower);
    }
    if constexpr (2 * STEP < WIDTH) swap_halves<WIDTH, 2 * STEP>(row);
}

inline Matrix transposed(const Matrix& from, float* room) {
    constexpr long SIDE = LANES < 16 ? LANES : 16;
    typename Of<SIDE>::Vector row[SIDE];
    for (long i = 0; i < from.rows; i += SIDE)
        for (long j = 0; j < from.columns; j += SIDE) {
#pragma GCC unroll 16
            for (long r = 0; r < SIDE; r++)
                row[r] = *(const typename Of<SIDE>::Vector*)(from.row(i + r) + j);
            swap_halves<SIDE, 1>(row);
#pragma GCC unroll 16
            for (long r = 0; r < SIDE; r++)
                *(typename Of<SIDE>::Vector*)(room + (j + r) * from.rows + i) = row[r];
        }
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

#endif

}  // namespace
