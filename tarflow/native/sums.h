// Sums of columns that do not depend on the number of threads: parts of the rows have sums of
// their own, which are added in order.

#pragma once

#include <algorithm>
#include <vector>

namespace {

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
