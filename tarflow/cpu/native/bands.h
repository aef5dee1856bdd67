// Work on rows or values, by several threads. Sums do not depend on how many there are: each band
// has its own sum, and these are added in order.

#pragma once

#include <algorithm>
#include <vector>

namespace {

constexpr long BANDS = 32;

template <typename Body>
void in_bands(long count, int threads, Body body) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long band = 0; band < BANDS; band++)
        body(band, count * band / BANDS, count * (band + 1) / BANDS);
}

class ColumnSums {
  public:
    ColumnSums(long parts, long columns)
        : parts(parts), columns(columns), sums(parts * columns) {}

    float* of(long part) { return &sums[part * columns]; }

    void add_up(float* total) const {
        std::copy(sums.begin(), sums.begin() + columns, total);
        for (long part = 1; part < parts; part++) {
            const float* sum = &sums[part * columns];
#pragma omp simd
            for (long j = 0; j < columns; j++) total[j] += sum[j];
        }
    }

  private:
    long parts, columns;
    std::vector<float> sums;
};

}  // namespace
