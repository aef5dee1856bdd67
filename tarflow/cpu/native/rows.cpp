// What a block does to rows of tokens, by several threads: the functions of `rows.h` for its layers,
// and its affine map.

#include "rows.h"
#include "bands.h"

namespace {

// e^-x; it overflows where it should, so that a flow that diverges is noticed.
inline float shrinkage(float x) {
    const float power = exponential(x < -88.0f ? 88.0f : -x);
    return x < -88.0f ? INFINITY : power;
}

}  // namespace

extern "C" {

void add_norm(const float* x, const Value* delta, const float* bias, const float* weight,
              const float* shift, float* sum, Value* result, float* means, float* inverses,
              long rows, long columns, int threads) {
    in_bands(rows, threads, [=](long, long first, long last) {
        const long at = first * columns;
        add_norm_rows(x + at, delta ? delta + at : nullptr, bias, weight, shift, sum + at,
                      result + at, means + first, inverses + first, last - first, columns);
    });
}

void delta_backward(const float* grad, Value* narrow, float* dbias, long rows, long columns,
                    int threads) {
    ColumnSums biases(BANDS, columns);
    in_bands(rows, threads, [&](long band, long first, long last) {
        const long at = first * columns;
        delta_backward_rows(grad + at, narrow ? narrow + at : nullptr, biases.of(band),
                            last - first, columns);
    });
    biases.add_up(dbias);
}

void norm_backward(const Value* grad, const float* x, const float* means, const float* inverses,
                   const float* weight, const float* shift, const float* skip, Value* result,
                   float* dx, float* dweight, float* dshift, Value* narrow, float* dbias,
                   long rows, long columns, int threads) {
    ColumnSums weights(BANDS, columns), shifts(BANDS, columns), biases(BANDS, columns);
    in_bands(rows, threads, [&](long band, long first, long last) {
        const long at = first * columns;
        norm_backward_rows(grad + at, x + at, means + first, inverses + first, weight, shift,
                           skip + at, result + at, dx + at, weights.of(band), shifts.of(band),
                           narrow ? narrow + at : nullptr, biases.of(band), last - first, columns);
    });
    weights.add_up(dweight);
    shifts.add_up(dshift);
    if (dbias) biases.add_up(dbias);
}

void gelu(Value* x, const float* bias, Value* result, long rows, long columns, int threads) {
    in_bands(rows, threads, [=](long, long first, long last) {
        const long at = first * columns;
        gelu_rows(x + at, bias, result + at, last - first, columns);
    });
}

void gelu_backward(const Value* slope, Value* grad, float* dbias, long rows, long columns,
                   int threads) {
    ColumnSums biases(BANDS, columns);
    in_bands(rows, threads, [&](long band, long first, long last) {
        const long at = first * columns;
        gelu_backward_rows(slope + at, grad + at, biases.of(band), last - first, columns);
    });
    biases.add_up(dbias);
}

// result = (x - shift) * exp(-log_scale), but for the first token of an image, which stays.
// `output` (images, tokens, 2 * width) holds the log-scale and the shift of the token that follows;
// `result` is in raster order, which is that of `x` or, if `backwards`, the opposite. `logdet`
// (images) is in nats per dimension.
void affine(const float* x, const Value* output, float* result, float* logdet, long images,
            long tokens, long width, long backwards, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long b = 0; b < images; b++) {
        float total = 0;
        for (long t = 0; t < tokens; t++) {
            const float* from = x + (b * tokens + t) * width;
            float* to = result + (b * tokens + (backwards ? tokens - 1 - t : t)) * width;
            if (t == 0) {
                std::copy(from, from + width, to);
                continue;
            }
            const Value* log_scale = output + 2 * (b * tokens + t - 1) * width;
            const Value* shift = log_scale + width;
#pragma omp simd reduction(+ : total)
            for (long j = 0; j < width; j++) {
                const float each = read(log_scale[j]);
                to[j] = (from[j] - read(shift[j])) * shrinkage(each);
                total += each;
            }
        }
        logdet[b] = -total / (tokens * width);
    }
}

// The gradients of `x` and `output`.
void affine_backward(const Value* output, const float* result, const float* grad,
                     const float* dlogdet, float* dx, Value* doutput, long images, long tokens,
                     long width, long backwards, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long b = 0; b < images; b++) {
        const float each_log_scale = dlogdet[b] / (tokens * width);
        for (long t = 0; t < tokens; t++) {
            const long raster = (b * tokens + (backwards ? tokens - 1 - t : t)) * width;
            const float *given = grad + raster, *made = result + raster;
            float* to = dx + (b * tokens + t) * width;
            if (t == 0) {
                std::copy(given, given + width, to);
                continue;
            }
            const Value* log_scale = output + 2 * (b * tokens + t - 1) * width;
            Value* dlog_scale = doutput + 2 * (b * tokens + t - 1) * width;
            Value* dshift = dlog_scale + width;
#pragma omp simd
            for (long j = 0; j < width; j++) {
                to[j] = given[j] * shrinkage(read(log_scale[j]));
                write(dshift[j], -to[j]);
                write(dlog_scale[j], -given[j] * made[j] - each_log_scale);
            }
        }
        Value* last = doutput + 2 * (b * tokens + tokens - 1) * width;
        std::fill(last, last + 2 * width, 0);  // no token follows
    }
}

}  // extern "C"
