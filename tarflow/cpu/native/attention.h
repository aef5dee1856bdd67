// Causal attention of one head of one image; the pairs of all tokens are never in memory, and the
// backward pass makes the attention weights again (Dao et al. 2022, arXiv 2205.14135).

#pragma once

#include "products.h"

namespace {

// Rows of a head lie apart, so the processor does not guess which comes next; those that may be
// cold are asked for some rows ahead.
constexpr long AHEAD = 4;

inline void fetch(const Value* row, long width) {
    for (long k = 0; k < width; k += 64 / long(sizeof(Value))) __builtin_prefetch(row + k);
}

// Reads a row of a head as floats.
inline void pack(const Value* from, long width, const float* bias, float scale, float* to) {
#pragma omp simd
    for (long k = 0; k < width; k++) to[k] = scale * (read(from[k]) + (bias ? bias[k] : 0));
}

// Writes it back, and adds it to `sum`.
inline void unpack(const float* from, long width, float scale, Value* to, float* sum) {
#pragma omp simd
    for (long k = 0; k < width; k++) {
        const float each = scale * from[k];
        write(to[k], each);
        sum[k] += each;
    }
}

// Sets what is outside the upper left corner to zero.
inline void pad(const Matrix& matrix, long rows, long columns) {
    for (long i = 0; i < rows; i++)
        std::fill(matrix.row(i) + columns, matrix.row(i + 1), 0);
    std::fill(matrix.row(rows), matrix.row(matrix.rows), 0);
}

// Heads of `width` channels next to each other in rows of `heads * width`; `joined` holds queries,
// keys and values one after the other in a row three times as long.
struct Heads {
    long tokens, heads, width;

    long rows() const { return padded(tokens); }
    long columns() const { return padded(width); }
    long size() const { return rows() * columns(); }
    long channels() const { return heads * width; }
    float scale() const { return 1 / std::sqrt(float(width)); }

    long forward_room() const {
        const long block = BLOCK * rows();
        return 4 * size() + block + BLOCK * columns() + COPIED * (3 * size() + block);
    }
    long backward_room() const {
        const long block = BLOCK * rows();
        return 11 * size() + 2 * block + BLOCK * columns() + COPIED * (7 * size() + 2 * block);
    }
};

// Reads all three of `joined`, adds their bias and scales the queries.
inline void pack_joined(const Heads& shape, const Value* joined, const float* bias,
                        const Matrix& query, const Matrix& key, const Matrix& value) {
    const long width = shape.width, channels = shape.channels();
    for (long t = 0; t < shape.tokens; t++) {
        const Value* from = joined + t * 3 * channels;
        for (long part = 0; part < 3; part++)
            fetch(from + (3 * AHEAD + part) * channels, width);
        pack(from, width, bias, shape.scale(), query.row(t));
        pack(from + channels, width, bias + channels, 1, key.row(t));
        pack(from + 2 * channels, width, bias + 2 * channels, 1, value.row(t));
    }
    for (const Matrix& each : {query, key, value}) pad(each, shape.tokens, width);
}

// `joined` is without its `bias`. All pointers are at the first value of the head in the first row
// of the image; `totals` (tokens) is the log of the sum of exponentials, for the backward pass.
inline void attend_head(const Heads& shape, const Value* joined, const float* bias, Value* mixed,
                        float* totals, Scratch scratch) {
    const long tokens = shape.tokens, width = shape.width, rows = shape.rows();
    const long columns = shape.columns(), channels = shape.channels();
    const Matrix query = scratch.matrix(rows, columns), key = scratch.matrix(rows, columns);
    const Matrix value = scratch.matrix(rows, columns), sums = scratch.matrix(BLOCK, columns);
    pack_joined(shape, joined, bias, query, key, value);
    const auto room = [&] { return scratch.take(COPIED * shape.size()); };
    const Left queries = as_left(query, room());
    const Right keys = as_right(transposed(key, scratch.take(shape.size())), room());
    const Right values = as_right(value, room());
    float* weights = scratch.take(BLOCK * rows);
    float* weights_room = scratch.take(COPIED * BLOCK * rows);
    for (long start = 0; start < tokens; start += BLOCK) {
        const long count = std::min(BLOCK, tokens - start), seen = padded(start + count);
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
            totals[last] = top + std::log(total);
            share[r] = 1 / total;
        }
        multiply(as_left(weight, weights_room), values, sums.data, columns, count, columns, seen);
        for (long r = 0; r < count; r++) {
            Value* to = mixed + (start + r) * channels;
#pragma omp simd
            for (long k = 0; k < width; k++) write(to[k], sums.row(r)[k] * share[r]);
        }
    }
}

// The gradient `djoined` of `joined`; that of its bias is added to `dbias`.
inline void attend_backward_head(const Heads& shape, const Value* joined, const float* bias,
                                 const Value* mixed, const float* totals, const Value* grad,
                                 Value* djoined, float* dbias, Scratch scratch) {
    const long tokens = shape.tokens, width = shape.width, rows = shape.rows();
    const long columns = shape.columns(), channels = shape.channels();
    const long size = shape.size(), block = BLOCK * rows;
    const Matrix query = scratch.matrix(rows, columns), key = scratch.matrix(rows, columns);
    const Matrix value = scratch.matrix(rows, columns), given = scratch.matrix(rows, columns);
    pack_joined(shape, joined, bias, query, key, value);
    for (long t = 0; t < tokens; t++) {
        fetch(grad + (t + AHEAD) * channels, width);
        pack(grad + t * channels, width, nullptr, 1, given.row(t));
    }
    pad(given, tokens, width);
    float *keys_across = scratch.take(size), *values_across = scratch.take(size);
    const auto room = [&] { return scratch.take(COPIED * size); };
    const Left asked = as_left(query, room()), wanted = as_left(given, room());
    const Right keys = as_right(key, room());
    const Right keys_down = as_right(transposed(key, keys_across), room());
    const Right values_down = as_right(transposed(value, values_across), room());
    const Matrix dquery = scratch.matrix(rows + BLOCK, columns);
    const SumDown dkeys(query, scratch), dvalues(given, scratch);
    float *weights = scratch.take(block), *dlogits = scratch.take(block);
    float *right_room = scratch.take(COPIED * block), *left_room = scratch.take(COPIED * block);
    for (long start = 0; start < tokens; start += BLOCK) {
        const long count = std::min(BLOCK, tokens - start), inner = padded(count);
        const long seen = padded(start + count);
        const Matrix weight{weights, inner, seen}, dlogit{dlogits, inner, seen};
        multiply(asked.from(start, 0), keys_down, weights, seen, count, seen, columns);
        multiply(wanted.from(start, 0), values_down, dlogits, seen, count, seen, columns);
        for (long r = 0; r < count; r++) {
            float *each = weight.row(r), *slope = dlogit.row(r), mean = 0;
            const long last = start + r, end = padded(last + 1);
            const float *want = given.row(last), total = totals[last];
            const Value* mix = mixed + last * channels;
            fetch(mix + AHEAD * channels, width);
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
        std::fill(weight.row(count), weight.row(inner), 0);
        std::fill(dlogit.row(count), dlogit.row(inner), 0);
        dvalues.add(weight, start, right_room);
        dkeys.add(dlogit, start, right_room);
        multiply(as_left(dlogit, left_room), keys, dquery.row(start), columns, count, columns,
                 seen);
    }
    const Matrix dkey = dkeys.result(keys_across), dvalue = dvalues.result(values_across);
    for (long t = 0; t < tokens; t++) {
        Value* to = djoined + t * 3 * channels;
        unpack(dquery.row(t), width, shape.scale(), to, dbias);
        unpack(dkey.row(t), width, 1, to + channels, dbias + channels);
        unpack(dvalue.row(t), width, 1, to + 2 * channels, dbias + 2 * channels);
    }
}

}  // namespace
