// Small matrices inside one thread: how they lie, where they live, and how they are transposed.

#pragma once

#include <algorithm>
#include <vector>

#include "values.h"

#if defined(BFLOAT16) && defined(__AVX512BF16__)
#define PAIRS  // factors are in bfloat16
#if defined(__AMX_BF16__)
#define MATRIX_UNITS
#endif
#endif

namespace {

// Row-major floats; rows and columns of all matrices here are padded with zeros to whole vectors.
struct Matrix {
    float* data;
    long rows, columns;

    long size() const { return rows * columns; }
    float* row(long i) const { return data + i * columns; }
};

#if defined(__AVX512F__)
constexpr long WIDEST = 16, TILE_VECTORS = 4;  // of 32 registers 24 hold the sums of 6 rows
#elif defined(__AVX__)
constexpr long WIDEST = 8, TILE_VECTORS = 2;
#else
constexpr long WIDEST = 4, TILE_VECTORS = 2;
#endif

// Rows and columns come in LANES; BLOCK rows are multiplied at a time; a factor takes at most COPIED
// floats for an element of its matrix.
#if defined(MATRIX_UNITS)
constexpr long LANES = 32, BLOCK = 64, COPIED = 1;
#elif defined(PAIRS)
constexpr long LANES = 16, BLOCK = 32, COPIED = 1;
#else
constexpr long LANES = WIDEST < 8 ? WIDEST : 8, BLOCK = 24, COPIED = 0;
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

}  // namespace
