// Causal attention, a head of an image at a time; the pairs of all tokens are never in memory. The
// backward pass makes the attention weights again (Dao et al. 2022, arXiv 2205.14135).

#include <vector>

#include "products.h"

namespace {

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

// Reads the (tokens, width) of a head, `stride` values apart, into floats; pads with zeros.
void pack(const Value* from, long stride, long tokens, long width, const float* bias, float scale,
          const Matrix& to) {
    for (long t = 0; t < tokens; t++) {
        float* row = to.row(t);
#pragma omp simd
        for (long k = 0; k < width; k++)
            row[k] = scale * (read(from[t * stride + k]) + (bias ? bias[k] : 0));
        std::fill(row + width, row + to.columns, 0);
    }
    std::fill(to.row(tokens), to.row(to.rows), 0);
}

}  // namespace

extern "C" {

int usable() { return allowed(); }

// `joined` (batch, tokens, 3, heads, width) holds queries, keys and values without their bias;
// `mixed` is (batch, tokens, heads, width); `totals` (batch, heads, tokens) is the log of the sum
// of exponentials, for the backward pass.
void attend(const Value* joined, const float* bias, Value* mixed, float* totals, long batch,
            long tokens, long heads, long width, int threads) {
    const long rows = padded(tokens), columns = padded(width), size = rows * columns;
    const long channels = heads * width, stride = 3 * channels;
    const float scale = 1 / std::sqrt(float(width));
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(4 * size + BLOCK * (rows + columns) + COPIED * (3 * size + BLOCK * rows));
        const Tiles tiles;
        const Matrix query = scratch.matrix(rows, columns), key = scratch.matrix(rows, columns);
        const Matrix value = scratch.matrix(rows, columns), sums = scratch.matrix(BLOCK, columns);
        float *across = scratch.take(size), *weights = scratch.take(BLOCK * rows);
        float *queries_room = scratch.take(COPIED * size), *keys_room = scratch.take(COPIED * size);
        float* values_room = scratch.take(COPIED * size);
        float* weights_room = scratch.take(COPIED * BLOCK * rows);
#pragma omp for collapse(2) schedule(static)
        for (long b = 0; b < batch; b++)
            for (long h = 0; h < heads; h++) {
                const Value* from = joined + b * tokens * stride + h * width;
                const float* shift = bias + h * width;
                pack(from, stride, tokens, width, shift, scale, query);
                pack(from + channels, stride, tokens, width, shift + channels, 1, key);
                pack(from + 2 * channels, stride, tokens, width, shift + 2 * channels, 1, value);
                const Left queries = as_left(query, queries_room);
                const Right keys = as_right(transposed(key, across), keys_room);
                const Right values = as_right(value, values_room);
                for (long start = 0; start < tokens; start += BLOCK) {
                    const long count = std::min(BLOCK, tokens - start);
                    const int seen = padded(start + count);
                    const Matrix weight{weights, padded(count), seen};
                    multiply(queries.from(start, 0), keys, weights, seen, count, seen, columns);
                    float share[BLOCK];
                    for (long r = 0; r < count; r++) {
                        float *each = weight.row(r), top = -INFINITY, total = 0;
                        const long last = start + r, end = padded(last + 1);
                        std::fill(each + last + 1, each + end, -INFINITY);
#pragma omp simd reduction(max : top)
                        for (long j = 0; j < end; j++) top = each[j] > top ? each[j] : top;
#pragma omp simd reduction(+ : total)
                        for (long j = 0; j < end; j++) {
                            each[j] = exponential(each[j] - top);
                            total += each[j];
                        }
                        std::fill(each + last + 1, each + seen, 0);
                        totals[(b * heads + h) * tokens + last] = top + std::log(total);
                        share[r] = 1 / total;
                    }
                    multiply(as_left(weight, weights_room), values, sums.data, columns, count,
                             columns, seen);
                    for (long r = 0; r < count; r++) {
                        Value* to = mixed + (b * tokens + start + r) * channels + h * width;
#pragma omp simd
                        for (long k = 0; k < width; k++) write(to[k], sums.row(r)[k] * share[r]);
                    }
                }
            }
    }
}

// The gradient of `joined`, and summed over batch and tokens that of the bias.
void attend_backward(const Value* joined, const float* bias, const Value* mixed,
                     const float* totals, const Value* grad, Value* djoined, float* dbias,
                     long batch, long tokens, long heads, long width, int threads) {
    const long rows = padded(tokens), columns = padded(width), size = rows * columns;
    const long channels = heads * width, stride = 3 * channels, block = BLOCK * rows;
    const float scale = 1 / std::sqrt(float(width));
    std::vector<float> biases(batch * stride);
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(11 * size + 2 * block + BLOCK * columns + COPIED * (7 * size + 3 * block));
        const Tiles tiles;
        const Matrix query = scratch.matrix(rows, columns), key = scratch.matrix(rows, columns);
        const Matrix value = scratch.matrix(rows, columns), given = scratch.matrix(rows, columns);
        const Matrix dquery = scratch.matrix(rows + BLOCK, columns);
        const Matrix dkey_across = scratch.matrix(columns, rows);
        const Matrix dvalue_across = scratch.matrix(columns, rows);
        float *weights = scratch.take(block), *dlogits = scratch.take(block);
        float *keys_across = scratch.take(size), *values_across = scratch.take(size);
        float *queries_across = scratch.take(size), *given_across = scratch.take(size);
        float* room[10];
        for (int i = 0; i < 10; i++) room[i] = scratch.take(COPIED * (i < 7 ? size : block));
#pragma omp for collapse(2) schedule(static)
        for (long b = 0; b < batch; b++)
            for (long h = 0; h < heads; h++) {
                const Value* from = joined + b * tokens * stride + h * width;
                const float* shift = bias + h * width;
                pack(from, stride, tokens, width, shift, scale, query);
                pack(from + channels, stride, tokens, width, shift + channels, 1, key);
                pack(from + 2 * channels, stride, tokens, width, shift + 2 * channels, 1, value);
                pack(grad + b * tokens * channels + h * width, channels, tokens, width, nullptr, 1,
                     given);
                const Left asked = as_left(query, room[0]), wanted = as_left(given, room[1]);
                const Left asked_down = as_left_transposed(query, queries_across, room[2]);
                const Left wanted_down = as_left_transposed(given, given_across, room[3]);
                const Right keys = as_right(key, room[4]);
                const Right keys_down = as_right(transposed(key, keys_across), room[5]);
                const Right values_down = as_right(transposed(value, values_across), room[6]);
                std::fill(dkey_across.data, dkey_across.data + size, 0);
                std::fill(dvalue_across.data, dvalue_across.data + size, 0);
                for (long start = 0; start < tokens; start += BLOCK) {
                    const long count = std::min(BLOCK, tokens - start), inner = padded(count);
                    const int seen = padded(start + count);
                    const Matrix weight{weights, inner, seen}, dlogit{dlogits, inner, seen};
                    multiply(asked.from(start, 0), keys_down, weights, seen, count, seen, columns);
                    multiply(wanted.from(start, 0), values_down, dlogits, seen, count, seen,
                             columns);
                    for (long r = 0; r < inner; r++) {
                        float *each = weight.row(r), *slope = dlogit.row(r), mean = 0;
                        if (r >= count) {
                            std::fill(each, each + seen, 0);
                            std::fill(slope, slope + seen, 0);
                            continue;
                        }
                        const long last = start + r, end = padded(last + 1);
                        const float* want = given.row(last);
                        const Value* mix = mixed + (b * tokens + last) * channels + h * width;
                        const float total = totals[(b * heads + h) * tokens + last];
#pragma omp simd reduction(+ : mean)
                        for (long k = 0; k < width; k++) mean += read(mix[k]) * want[k];
#pragma omp simd
                        for (long j = 0; j < end; j++) {
                            each[j] = exponential(each[j] - total);
                            slope[j] = each[j] * (slope[j] - mean);
                        }
                        std::fill(each + last + 1, each + seen, 0);
                        std::fill(slope + last + 1, slope + seen, 0);
                    }
                    multiply(wanted_down.from(0, start), as_right(weight, room[7]),
                             dvalue_across.data, rows, columns, seen, inner, true);
                    multiply(asked_down.from(0, start), as_right(dlogit, room[8]),
                             dkey_across.data, rows, columns, seen, inner, true);
                    multiply(as_left(dlogit, room[9]), keys, dquery.row(start), columns, count,
                             columns, seen);
                }
                const Matrix dkey = transposed(dkey_across, keys_across);
                const Matrix dvalue = transposed(dvalue_across, values_across);
                float* sum = &biases[b * stride + h * width];
                for (long t = 0; t < tokens; t++) {
                    Value* to = djoined + (b * tokens + t) * stride + h * width;
                    const auto unpack = [&](const Matrix& part, float factor, long offset) {
                        const float* each = part.row(t);
#pragma omp simd
                        for (long k = 0; k < width; k++) {
                            const float slope = factor * each[k];
                            write(to[offset + k], slope);
                            sum[offset + k] += slope;
                        }
                    };
                    unpack(dquery, scale, 0);
                    unpack(dkey, 1, channels);
                    unpack(dvalue, 1, 2 * channels);
                }
            }
    }
    std::fill(dbias, dbias + stride, 0);
    for (long b = 0; b < batch; b++)
        for (long j = 0; j < stride; j++) dbias[j] += biases[b * stride + j];
}

}  // extern "C"
