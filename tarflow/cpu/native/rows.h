// What a layer does to each row between its products: residuals, norms, GELU. Matrices are
// row-major, (rows, columns). Gradients of biases and of the norms' parameters are summed over rows
// and added to what is there.

#pragma once

#include "values.h"

namespace {

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

// sum = x + delta + bias, then result = (sum - mean) / deviation * weight + shift. Without a
// `delta`, `sum` is `x` itself; without a `weight` there is no norm.
inline void add_norm_rows(const float* x, const Value* delta, const float* bias,
                          const float* weight, const float* shift, float* sum, Value* result,
                          float* means, float* inverses, long rows, long columns) {
    for (long i = 0; i < rows; i++) {
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
}

// The gradient of a sum's second term: the first one's, as a `Value`, and summed over rows for
// the bias. `narrow` may be null.
inline void delta_backward_rows(const float* grad, Value* narrow, float* dbias, long rows,
                                long columns) {
    for (long i = 0; i < rows; i++) {
        const float* from = grad + i * columns;
#pragma omp simd
        for (long j = 0; j < columns; j++) dbias[j] += from[j];
        if (!narrow) continue;
        Value* to = narrow + i * columns;
#pragma omp simd
        for (long j = 0; j < columns; j++) write(to[j], from[j]);
    }
}

// dx = skip + the gradient through the norm, whose `result` is made again; `narrow` and `dbias` as
// in `delta_backward_rows`.
inline void norm_backward_rows(const Value* grad, const float* x, const float* means,
                               const float* inverses, const float* weight, const float* shift,
                               const float* skip, Value* result, float* dx, float* dweight,
                               float* dshift, Value* narrow, float* dbias, long rows,
                               long columns) {
    for (long i = 0; i < rows; i++) {
        const Value* given = grad + i * columns;
        const float *from = x + i * columns, *past = skip + i * columns;
        const float mean = means[i], inverse = inverses[i];
        float along_one = 0, along_unit = 0;
#pragma omp simd reduction(+ : along_one, along_unit)
        for (long j = 0; j < columns; j++) {
            float each = read(given[j]), unit = (from[j] - mean) * inverse;
            dweight[j] += each * unit;
            dshift[j] += each;
            each *= weight[j];
            along_one += each;
            along_unit += each * unit;
        }
        along_one /= columns;
        along_unit /= columns;
        float* to = dx + i * columns;
        Value* again = result + i * columns;
#pragma omp simd
        for (long j = 0; j < columns; j++) {
            const float unit = (from[j] - mean) * inverse;
            write(again[j], unit * weight[j] + shift[j]);
            const float each = read(given[j]) * weight[j] - along_one - unit * along_unit;
            to[j] = past[j] + inverse * each;
        }
        delta_backward_rows(to, narrow ? narrow + i * columns : nullptr, dbias, 1, columns);
    }
}

// result = GELU(x + bias), exact; `x` becomes its slope there, all that the backward pass needs.
inline void gelu_rows(Value* x, const float* bias, Value* result, long rows, long columns) {
    for (long i = 0; i < rows; i++) {
        Value *from = x + i * columns, *to = result + i * columns;
#pragma omp simd
        for (long j = 0; j < columns; j++) {
            const float at = read(from[j]) + bias[j], density = exponential(-0.5f * at * at);
            const float cdf = normal_cdf(at, density);
            write(to[j], at * cdf);
            write(from[j], cdf + 0.39894228f * at * density);
        }
    }
}

// grad *= slope, in place, and its sums over rows.
inline void gelu_backward_rows(const Value* slope, Value* grad, float* dbias, long rows,
                               long columns) {
    for (long i = 0; i < rows; i++) {
        const Value* factor = slope + i * columns;
        Value* each = grad + i * columns;
#pragma omp simd
        for (long j = 0; j < columns; j++) {
            const float product = read(each[j]) * read(factor[j]);
            write(each[j], product);
            dbias[j] += product;
        }
    }
}

}  // namespace
