// Products of small matrices on matrix units (AMX), a tile of pairs at a time.

#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pairs.h"

namespace {

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

inline void multiply(Left left, Right right, float* result, long stride, long rows, long columns,
                     long inner, bool add) {
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

}  // namespace
