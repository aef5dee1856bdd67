// What a layer does to each row between its products: residuals, norms, GELU, and sums over rows
// for the gradients of biases. Matrices are row-major, (rows, columns).
//
// Sums over rows do not depend on the number of threads: rows are cut into bands, and the sums of
// the bands are added in order.

#include <algorithm>
#include <vector>

#include "values.h"

namespace {

constexpr long BANDS = 64;

template <typename Body>
void in_bands(long rows, int threads, Body body) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long band = 0; band < BANDS; band++)
        body(band, rows * band / BANDS, rows * (band + 1) / BANDS);
}

// Room for a sum of each column and band.
class ColumnSums {
  public:
    explicit ColumnSums(long columns) : columns(columns), sums(BANDS * columns) {}

    float* of(long band) { return &sums[band * columns]; }

    void add_up(float* total) const {
        std::copy(sums.begin(), sums.begin() + columns, total);
        for (long band = 1; band < BANDS; band++) {
            const float* sum = &sums[band * columns];
#pragma omp simd
            for (long j = 0; j < columns; j++) total[j] += sum[j];
        }
    }

  private:
    long columns;
    std::vector<float> sums;
};

// The normal distribution function; `density` is exp(-x^2/2). In the tail it is the density times
// a polynomial in 1 / (1 + 0.2828 |x|), fitted to a relative error of 1.3e-7.
inline float normal_cdf(float x, float density) {
    float t = 1.0f / (1.0f + 0.28284271f * std::fabs(x));
    float tail = 0.025127128025190917f;
    tail = tail * t - 0.09143686821028699f;
    tail = tail * t + 0.08452310274933658f;
    tail = tail * t - 0.0027895206708256695f;
    tail = tail * t + 0.07071007590468897f;
    tail = tail * t + 0.08427217891009392f;
    tail = tail * t + 0.1039212287605806f;
    tail = tail * t + 0.11283480367190867f;
    tail = tail * t + 0.11283793092890428f;
    tail *= t * density;
    return x > 0 ? 1 - tail : tail;
}

}  // namespace

extern "C" {

// sum = x + delta + bias, then result = (sum - mean) / deviation * weight + shift. Without a
// `delta`, `sum` is `x` itself; without a `weight` there is no norm.
void add_norm(const float* x, const Value* delta, const float* bias, const float* weight,
              const float* shift, float* sum, Value* result, float* means, float* inverses,
              long rows, long columns, int threads) {
    in_bands(rows, threads, [=](long, long first, long last) {
        for (long i = first; i < last; i++) {
            const float* from = x + i * columns;
            if (delta) {
                const Value* added = delta + i * columns;
                float* to = sum + i * columns;
#pragma omp simd
                for (long j = 0; j < columns; j++) to[j] = from[j] + (read(added[j]) + bias[j]);
                from = to;
            }
            if (!weight) continue;
            float total = 0, squares = 0;
#pragma omp simd reduction(+ : total)
            for (long j = 0; j < columns; j++) total += from[j];
            const float mean = total / columns;
#pragma omp simd reduction(+ : squares)
            for (long j = 0; j < columns; j++) squares += (from[j] - mean) * (from[j] - mean);
            const float inverse = 1 / std::sqrt(squares / columns + 1e-5f);
            Value* to = result + i * columns;
#pragma omp simd
            for (long j = 0; j < columns; j++)
                write(to[j], (from[j] - mean) * inverse * weight[j] + shift[j]);
            means[i] = mean;
            inverses[i] = inverse;
        }
    });
}

// The gradient of a sum's second term: the first one's, as a `Value`, and summed over rows for
// the bias. `narrow` may be null.
void delta_backward(const float* grad, Value* narrow, float* dbias, long rows, long columns,
                    int threads) {
    ColumnSums biases(columns);
    in_bands(rows, threads, [&](long band, long first, long last) {
        float* bias = biases.of(band);
        for (long i = first; i < last; i++) {
            const float* from = grad + i * columns;
#pragma omp simd
            for (long j = 0; j < columns; j++) bias[j] += from[j];
            if (!narrow) continue;
            Value* to = narrow + i * columns;
#pragma omp simd
            for (long j = 0; j < columns; j++) write(to[j], from[j]);
        }
    });
    biases.add_up(dbias);
}

// dx = skip + the gradient through the norm; `narrow` and `dbias` as in `delta_backward`, of dx.
void norm_backward(const Value* grad, const float* x, const float* means, const float* inverses,
                   const float* weight, const float* skip, float* dx, float* dweight,
                   float* dshift, Value* narrow, float* dbias, long rows, long columns,
                   int threads) {
    ColumnSums weights(columns), shifts(columns), biases(columns);
    in_bands(rows, threads, [&](long band, long first, long last) {
        float *dw = weights.of(band), *ds = shifts.of(band), *db = biases.of(band);
        const float* factor = weight;  // GCC 12 does not vectorize with the captured one
        for (long i = first; i < last; i++) {
            const Value* g = grad + i * columns;
            const float *from = x + i * columns, *past = skip + i * columns;
            const float mean = means[i], inverse = inverses[i];
            float along_one = 0, along_unit = 0;
#pragma omp simd reduction(+ : along_one, along_unit)
            for (long j = 0; j < columns; j++) {
                float each = read(g[j]), unit = (from[j] - mean) * inverse;
                dw[j] += each * unit;
                ds[j] += each;
                each *= factor[j];
                along_one += each;
                along_unit += each * unit;
            }
            along_one /= columns;
            along_unit /= columns;
            float* to = dx + i * columns;
#pragma omp simd
            for (long j = 0; j < columns; j++) {
                float unit = (from[j] - mean) * inverse;
                float each = read(g[j]) * factor[j] - along_one - unit * along_unit;
                to[j] = past[j] + inverse * each;
                db[j] += to[j];
            }
            if (!narrow) continue;
            Value* low = narrow + i * columns;
#pragma omp simd
            for (long j = 0; j < columns; j++) write(low[j], to[j]);
        }
    });
    weights.add_up(dweight);
    shifts.add_up(dshift);
    if (dbias) biases.add_up(dbias);
}

// result = GELU(x + bias), exact; `x` becomes its slope there, all that the backward pass needs.
void gelu(Value* x, const float* bias, Value* result, long rows, long columns, int threads) {
    in_bands(rows, threads, [=](long, long first, long last) {
        for (long i = first; i < last; i++) {
            Value *from = x + i * columns, *to = result + i * columns;
#pragma omp simd
            for (long j = 0; j < columns; j++) {
                float at = read(from[j]) + bias[j], density = exponential(-0.5f * at * at);
                float cdf = normal_cdf(at, density);
                write(to[j], at * cdf);
                write(from[j], cdf + 0.39894228f * at * density);
            }
        }
    });
}

// grad *= slope, in place, and its sums over rows.
void gelu_backward(const Value* slope, Value* grad, float* dbias, long rows, long columns,
                   int threads) {
    ColumnSums biases(columns);
    in_bands(rows, threads, [&](long band, long first, long last) {
        float* bias = biases.of(band);
        for (long i = first; i < last; i++) {
            const Value* factor = slope + i * columns;
            Value* each = grad + i * columns;
#pragma omp simd
            for (long j = 0; j < columns; j++) {
                float product = read(each[j]) * read(factor[j]);
                write(each[j], product);
                bias[j] += product;
            }
        }
    });
    biases.add_up(dbias);
}

}  // extern "C"
